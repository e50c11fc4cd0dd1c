//! `agent` without a terminal.

use std::fs;

use crate::harness::{Sandbox, until};

const REQUEST: &str = r#"{"deadline":"2099-01-01T12:00:00Z"}"#;

fn at_work(arguments: &[&str]) -> (Sandbox, crate::harness::Running, crate::harness::Running) {
    let sandbox = Sandbox::new();
    sandbox.write("docs/a.txt", "alpha");
    let service = sandbox.service(&[]);
    let agent = sandbox.agent("s1", arguments);
    until("the agent is there", || sandbox.user("s1").is_some());
    (sandbox, service, agent)
}

#[test]
fn an_agent_reacts_visibly_to_every_message() {
    let (sandbox, _service, agent) = at_work(&["--consent", "auto"]);
    let messages = [
        (
            "STATUS_UPDATE",
            r#"{"overallStatus":"blocked","totalUsers":7}"#,
            "is blocked (0 of 7",
        ),
        (
            "ESCALATION_NOTICE",
            r#"{"reason":"large_pst","ticketNumber":"T-1"}"#,
            "large_pst, ticket T-1",
        ),
        (
            "CONFIGURATION_UPDATE",
            r#"{"key":"colour","value":"blue"}"#,
            "`colour` of the user is now \"blue\"",
        ),
        ("BACKUP_REQUEST", REQUEST, "until 2099-01-01T12:00:00Z"),
    ];
    for (message_type, payload, expected) in messages {
        assert_eq!(
            sandbox.send(&["--all", message_type, payload]).code,
            Some(0)
        );
        agent.until_output(expected);
    }
    agent.until_output("The backup is complete: 1 files, 5 bytes.");
    assert_eq!(
        fs::read(sandbox.path("backups/s1/a.txt")).unwrap(),
        b"alpha"
    );
    let goodbye = r#"{"reason":"update","gracePeriodSeconds":5}"#;
    assert_eq!(
        sandbox.send(&["--all", "SHUTDOWN_REQUEST", goodbye]).code,
        Some(0)
    );
    let ended = agent.wait();
    assert_eq!(ended.code, Some(0));
    assert!(
        ended.output.contains("asked to exit within 5 s: update"),
        "{}",
        ended.output
    );
}

#[test]
fn an_agent_waits_for_a_service_that_is_gone_and_what_it_said_arrives() {
    let (sandbox, service, agent) = at_work(&["--consent", "deny", "--max-pause", "0.5"]);
    assert_eq!(service.stop().code, Some(0));
    agent.until_output("The service is not there; waiting for it");
    let _service = sandbox.service(&[]);
    agent.until_output("The service is there again.");
    sandbox.send(&["--session", "s1", "BACKUP_REQUEST", REQUEST]);
    until("the service knows", || {
        sandbox.user("s1").unwrap()["lastAction"]["text"] == "backup_declined"
    });
    assert_eq!(agent.stop().code, Some(0));
}

#[test]
fn a_backup_goes_on_without_the_service_and_is_told_when_that_is_back() {
    let sandbox = Sandbox::new();
    // Large enough to be still at work when the service is killed.
    for index in 0..40 {
        sandbox.write(&format!("docs/{index}.bin"), vec![index; 1024 * 1024]);
    }
    let service = sandbox.service(&[]);
    let agent = sandbox.agent("s1", &["--consent", "auto", "--max-pause", "0.5"]);
    until("the agent is there", || sandbox.user("s1").is_some());
    sandbox.send(&["--session", "s1", "BACKUP_REQUEST", REQUEST]);
    until("it is copying", || {
        sandbox.path("backups/s1/0.bin").exists()
    });
    service.kill();
    agent.until_output("The backup is complete: 40 files");
    assert_eq!(agent.output().matches("copied twice").count(), 0);

    let _service = sandbox.service(&[]);
    sandbox.until_state("s1", "completed");
    until("its traces are removed", || {
        !sandbox.path("backups/s1/manifest.work").exists()
    });
    let output = agent.output();
    assert_eq!(
        output.matches("The backup is complete").count(),
        1,
        "{output}"
    );
}

#[test]
fn an_agent_ends_with_its_lifeline() {
    let (sandbox, _service, agent) = at_work(&["--consent", "auto"]);
    assert_eq!(agent.stop().code, Some(0));
    until("the service knows", || {
        sandbox.user("s1").unwrap()["agents"]
            .as_array()
            .unwrap()
            .is_empty()
    });
}

#[test]
fn a_user_who_declines_is_reported() {
    let (sandbox, _service, _agent) = at_work(&["--consent", "deny"]);
    sandbox.send(&["--session", "s1", "BACKUP_REQUEST", REQUEST]);
    until("the service knows", || {
        sandbox.user("s1").unwrap()["lastAction"]["text"] == "backup_declined"
    });
    assert_eq!(sandbox.user("s1").unwrap()["state"], "requested");
    assert!(!sandbox.path("backups/s1").exists());
}

#[test]
fn what_cannot_be_backed_up_is_reported_as_a_failure() {
    let (sandbox, _service, agent) = at_work(&["--consent", "auto"]);
    let request = r#"{"deadline":"2099-01-01T12:00:00Z","categories":["files","email"]}"#;
    sandbox.send(&["--session", "s1", "BACKUP_REQUEST", request]);
    sandbox.until_state("s1", "failed");
    let user = sandbox.user("s1").unwrap();
    assert_eq!(user["categories"]["files"]["items"], 1);
    assert!(user["categories"]["email"]["error"].is_string());
    assert!(
        user["lastError"]["text"]
            .as_str()
            .unwrap()
            .starts_with("backup_incomplete")
    );
    agent.until_output("The backup is not complete");
    assert_eq!(sandbox.status()["overallStatus"], "blocked");
}

#[test]
fn asking_needs_a_terminal_and_the_error_says_what_does_not() {
    let sandbox = Sandbox::new();
    sandbox.write("docs/a.txt", "alpha");
    let arguments = sandbox.agent_arguments("s1", &[]);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let agent = sandbox.run(&arguments);
    assert_eq!(agent.code, Some(2));
    assert!(agent.errors.contains("--consent auto"), "{}", agent.errors);
}

#[test]
fn an_agent_may_be_started_before_its_service() {
    let sandbox = Sandbox::new();
    sandbox.write("docs/a.txt", "alpha");
    let agent = sandbox.agent("s1", &["--consent", "auto", "--max-pause", "0.5"]);
    agent.until_output("The service is not there; waiting for it");
    let _service = sandbox.service(&[]);
    until("the agent is there", || sandbox.user("s1").is_some());
}

/// How often a backup may be through before it is stopped.
#[cfg(unix)]
const TOO_QUICK: usize = 20;

/// Users are accounts here, so that two sessions of one account share a backup.
#[cfg(unix)]
#[test]
fn a_lease_survives_a_restart_of_the_service() {
    let was_at_work = (0..TOO_QUICK).any(|_| restart_while_an_agent_is_at_work());
    assert!(was_at_work, "no backup of {TOO_QUICK} was seen at work");
}

/// `false` when the backup was through too soon to show anything.
#[cfg(unix)]
fn restart_while_an_agent_is_at_work() -> bool {
    use rustix::process::{Signal, kill_process};

    let sandbox = Sandbox::new();
    for index in 0..40 {
        sandbox.write(&format!("docs/{index}.bin"), vec![index; 1024 * 1024]);
    }
    let (endpoint, data) = (sandbox.endpoint(), sandbox.text("service-data"));
    let arguments = ["service", "--endpoint", &endpoint, "--data-dir", &data];
    let service = sandbox.start_service(&arguments);
    let one = sandbox.agent("s1", &["--consent", "auto", "--max-pause", "0.5"]);
    let state = || sandbox.status()["users"][0]["state"].clone();
    until("the agent is there", || {
        sandbox.status()["connections"]["announced"] == 1
    });
    sandbox.send(&["--all", "BACKUP_REQUEST", REQUEST]);
    until("it is at work, or was", || {
        let state = state();
        state == "running" || state == "completed"
    });
    kill_process(one.id(), Signal::STOP).unwrap();
    service.kill();

    let _service = sandbox.start_service(&arguments);
    if state() == "completed" {
        kill_process(one.id(), Signal::CONT).unwrap();
        return false;
    }
    let two = sandbox.agent("s2", &["--consent", "auto"]);
    until("the other session is there", || {
        let agents = sandbox.status()["users"][0]["agents"].clone();
        agents
            .as_array()
            .unwrap()
            .iter()
            .any(|it| it["session"] == "s2")
    });
    assert_eq!(state(), "running", "nobody took the lease away");
    kill_process(one.id(), Signal::CONT).unwrap();
    one.until_output("The backup is complete: 40 files");
    until("the service knows", || state() == "completed");
    assert!(!two.output().contains("is requested"), "{}", two.output());
    true
}
