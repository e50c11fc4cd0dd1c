//! `service`, `status` and `send`.

use serde_json::json;

use crate::harness::{Sandbox, until};

const REQUEST: &str = r#"{"deadline":"2099-01-01T12:00:00Z","categories":["files"]}"#;

fn ready(sandbox: &Sandbox) {
    sandbox.write("docs/a.txt", "alpha");
}

#[test]
fn status_json_has_everything_an_operator_needs() {
    let sandbox = Sandbox::new();
    ready(&sandbox);
    let _service = sandbox.service(&[]);
    let _agent = sandbox.agent("s1", &["--consent", "auto"]);
    until("the agent is there", || sandbox.user("s1").is_some());
    assert_eq!(
        sandbox
            .send(&["--session", "s1", "BACKUP_REQUEST", REQUEST])
            .code,
        Some(0)
    );
    sandbox.until_state("s1", "completed");

    let status = sandbox.status();
    assert_eq!(status["overallStatus"], "ready");
    assert_eq!(status["totalUsers"], 1);
    assert_eq!(status["connections"]["announced"], 1);
    assert!(status["traffic"]["messagesPerSecond"].as_f64().unwrap() > 0.0);
    for quantile in ["p50Ms", "p99Ms"] {
        assert!(
            status["traffic"]["handling"][quantile].as_f64().unwrap() > 0.0,
            "{status}"
        );
    }
    let started = &status["traffic"]["types"]["AGENT_STARTED"];
    assert_eq!(started["received"]["messages"], 1);
    assert!(started["received"]["bytes"].as_u64().unwrap() > 100);

    let user = &status["users"][0];
    assert_eq!(user["progress"], 100.0);
    assert_eq!(user["bytesTransferred"], 5);
    assert_eq!(user["delaysUsed"], 0);
    assert_eq!(user["agents"][0]["session"], "s1");
    assert_eq!(user["categories"]["files"]["items"], 1);
    assert!(
        user["manifestPath"]
            .as_str()
            .unwrap()
            .ends_with("manifest.json")
    );
    assert_eq!(user["lastAction"]["text"], "backup_accepted");

    let text = sandbox.run(&["status", "--endpoint", &sandbox.endpoint()]);
    assert!(text.output.contains("completed"), "{}", text.output);
}

#[test]
fn a_message_to_nobody_has_an_exit_code_of_its_own() {
    let sandbox = Sandbox::new();
    let _service = sandbox.service(&[]);
    for to in [
        &["--all"][..],
        &["--session", "nowhere"],
        &["--user", "no-such-account"],
    ] {
        let mut arguments = to.to_vec();
        arguments.extend(["SHUTDOWN_REQUEST", "{}"]);
        let sent = sandbox.send(&arguments);
        assert_eq!(sent.code, Some(5), "{to:?} {}", sent.errors);
        assert!(sent.errors.contains("no recipient"), "{}", sent.errors);
    }
}

#[test]
fn a_request_to_nobody_waits_for_whoever_comes() {
    let sandbox = Sandbox::new();
    ready(&sandbox);
    let _service = sandbox.service(&[]);
    let sent = sandbox.send(&["--all", "BACKUP_REQUEST", REQUEST]);
    assert_eq!(sent.code, Some(0), "{}", sent.errors);
    assert!(sent.output.contains("kept"), "{}", sent.output);
    let _agent = sandbox.agent("s1", &["--consent", "auto"]);
    sandbox.until_state("s1", "completed");
}

#[test]
fn the_state_survives_a_restart() {
    let sandbox = Sandbox::new();
    ready(&sandbox);
    let service = sandbox.service(&[]);
    let agent = sandbox.agent("s1", &["--consent", "deny"]);
    until("the agent is there", || sandbox.user("s1").is_some());
    sandbox.send(&["--session", "s1", "BACKUP_REQUEST", REQUEST]);
    let escalation = r#"{"reason":"quota_exceeded","details":"too much"}"#;
    sandbox.send(&["--session", "s1", "ESCALATION_NOTICE", escalation]);
    until("the user declined", || {
        sandbox
            .user("s1")
            .is_some_and(|user| user["lastAction"]["text"] == "backup_declined")
    });
    agent.stop();
    assert_eq!(service.stop().code, Some(0));

    let _service = sandbox.service(&[]);
    let user = sandbox.user("s1").unwrap();
    assert_eq!(user["state"], "requested");
    assert_eq!(user["deadline"], "2099-01-01T12:00:00Z");
    assert_eq!(user["agents"], json!([]));
    assert_eq!(user["escalations"][0]["reason"], "quota_exceeded");
    assert_eq!(user["lastAction"]["text"], "backup_declined");
    let _agent = sandbox.agent("s1", &["--consent", "auto"]);
    sandbox.until_state("s1", "completed");
}

#[test]
fn a_second_service_is_refused() {
    let sandbox = Sandbox::new();
    let _service = sandbox.service(&[]);
    let endpoint = sandbox.endpoint();
    let data = sandbox.text("service-data");
    let same_state = sandbox.run(&[
        "service",
        "--development",
        "--data-dir",
        &data,
        "--endpoint",
        &endpoint,
    ]);
    assert_eq!(same_state.code, Some(1));
    assert!(
        same_state.errors.contains("in use by another process"),
        "{}",
        same_state.errors
    );
    // Wine lets two processes create a pipe as its first instance.
    if cfg!(unix) {
        let other = sandbox.text("other-data");
        let second = sandbox.run(&["service", "--data-dir", &other, "--endpoint", &endpoint]);
        assert_eq!(second.code, Some(1));
        assert!(
            second.errors.contains("already served"),
            "{}",
            second.errors
        );
    }
}

#[test]
fn the_configuration_asks_whoever_announces() {
    let sandbox = Sandbox::new();
    ready(&sandbox);
    sandbox.write(
        "service.toml",
        "[backup]\nrequest = \"on_announce\"\npriority = \"high\"\n",
    );
    let _service = sandbox.service(&["--config", &sandbox.text("service.toml")]);
    let agent = sandbox.agent("s1", &["--consent", "deny"]);
    agent.until_output("priority high");
}

#[test]
fn agents_are_told_when_the_whole_changes() {
    let sandbox = Sandbox::new();
    ready(&sandbox);
    let _service = sandbox.service(&[]);
    let one = sandbox.agent("s1", &["--consent", "auto"]);
    let two = sandbox.agent("s2", &["--consent", "deny"]);
    until("both are there", || {
        sandbox.user("s1").is_some() && sandbox.user("s2").is_some()
    });
    sandbox.send(&["--session", "s1", "BACKUP_REQUEST", REQUEST]);
    for agent in [&one, &two] {
        agent.until_output("The migration is in progress");
    }
    two.stop();
    let two = sandbox.agent("s2", &["--consent", "auto"]);
    until("it is back", || {
        !sandbox.user("s2").unwrap()["agents"]
            .as_array()
            .unwrap()
            .is_empty()
    });
    sandbox.send(&["--session", "s2", "BACKUP_REQUEST", REQUEST]);
    for agent in [&one, &two] {
        agent.until_output("everybody is ready (2 of 2 users are ready)");
    }
}

#[cfg(unix)]
#[test]
fn the_roster_counts_people_who_never_connected() {
    let sandbox = Sandbox::new();
    sandbox.write(
        "service.toml",
        "roster = [\"root\", \"4711\", \"no-such-person\"]\n",
    );
    let (endpoint, data) = (sandbox.endpoint(), sandbox.text("service-data"));
    let config = sandbox.text("service.toml");
    let _service = sandbox.start_service(&[
        "service",
        "--endpoint",
        &endpoint,
        "--data-dir",
        &data,
        "--config",
        &config,
    ]);
    until("all three count", || sandbox.status()["totalUsers"] == 3);
    let status = sandbox.status();
    let users = status["users"].as_array().unwrap();
    let ids: Vec<&str> = users
        .iter()
        .map(|user| user["user"].as_str().unwrap())
        .collect();
    assert_eq!(ids, ["0", "4711", "no-such-person"]);
    assert_eq!(users[0]["name"], "root");

    assert_eq!(
        sandbox
            .send(&["--user", "4711", "BACKUP_REQUEST", REQUEST])
            .code,
        Some(0)
    );
    assert_eq!(sandbox.status()["users"][1]["state"], "requested");
}

#[cfg(unix)]
#[test]
fn a_terminated_service_drains_and_removes_its_socket() {
    use rustix::process::{Signal, kill_process};
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let sandbox = Sandbox::new();
        let service = sandbox.service(&[]);
        kill_process(service.id(), signal).unwrap();
        assert_eq!(service.wait().code, Some(0));
        assert!(!sandbox.path("service.sock").exists());
    }
}

#[test]
fn logs_can_be_json() {
    let sandbox = Sandbox::new();
    let service = sandbox.service(&["--log-format", "json", "--log-level", "debug"]);
    let log = service.stop().errors;
    for line in log.lines() {
        let entry: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(entry["level"].is_string(), "{line}");
    }
    assert!(log.contains("listening"));
}
