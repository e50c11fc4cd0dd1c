//! Encrypted connections between the programs.

use std::fs;

use crate::harness::{Sandbox, until};

const REQUEST: &str = r#"{"deadline":"2099-01-01T12:00:00Z"}"#;

const SAID_OF_THE_KEY: &str = "the service has no such key";

const SAID_OF_THE_SERVICE: &str = "the service does not encrypt, and this client demands it";

/// Makes a key with the name `k`, and returns its file.
#[track_caller]
fn new_key(sandbox: &Sandbox, file: &str) -> String {
    let path = sandbox.text(file);
    let made = sandbox.run(&["key", "new", &path, "--name", "k"]);
    assert_eq!(made.code, Some(0), "{}", made.errors);
    path
}

/// What demands encryption with the key of a file.
fn demand(file: &str) -> [&str; 3] {
    ["--key-file", file, "--require-encryption"]
}

/// Runs a backup of an agent, with operators that have these flags.
#[track_caller]
fn back_up(sandbox: &Sandbox, operator: &[&str], agent: &[&str]) {
    sandbox.write("docs/a.txt", "alpha");
    let agent = sandbox.agent("s1", &[agent, &["--consent", "auto"]].concat());
    let is_there = || {
        let status = sandbox.status_with(operator);
        status["connections"]["announced"] == 1
    };
    until("the agent is there", is_there);
    let send = ["--session", "s1", "BACKUP_REQUEST", REQUEST];
    let sent = sandbox.send(&[operator, &send].concat());
    assert_eq!(sent.code, Some(0), "{}", sent.errors);
    agent.until_output("The backup is complete: 1 files, 5 bytes.");
    assert_eq!(agent.stop().code, Some(0));
    let copy = fs::read(sandbox.path("backups/s1/a.txt")).unwrap();
    assert_eq!(copy, b"alpha");
}

#[test]
fn a_backup_is_made_over_connections_that_both_sides_demand_to_be_encrypted() {
    let sandbox = Sandbox::new();
    let key = new_key(&sandbox, "keys");
    let _service = sandbox.service(&demand(&key));
    back_up(&sandbox, &demand(&key), &demand(&key));

    // An operator without the key learns nothing.
    let endpoint = sandbox.endpoint();
    let plain = sandbox.run(&["status", "--endpoint", &endpoint]);
    assert_eq!(plain.code, Some(4), "{}", plain.errors);
    assert!(
        plain.errors.contains("demands encryption"),
        "{}",
        plain.errors
    );
    assert_eq!(plain.output, "");
}

#[test]
fn a_backup_is_made_with_static_keys() {
    let sandbox = Sandbox::new();
    let (own, peer) = (sandbox.text("service.keys"), sandbox.text("agent.keys"));
    let new = ["key", "new", &own, "--kind", "static", "--peer", &peer];
    assert_eq!(sandbox.run(&new).code, Some(0));
    let _service = sandbox.service(&["--key-file", &own]);
    back_up(&sandbox, &demand(&peer), &demand(&peer));
}

#[test]
fn a_service_that_only_offers_encryption_serves_those_who_have_no_key() {
    let sandbox = Sandbox::new();
    let key = new_key(&sandbox, "keys");
    let path = key.replace('\\', "\\\\");
    let config = sandbox.write(
        "service.toml",
        format!("[encryption]\nkey_file = \"{path}\"\n"),
    );
    let _service = sandbox.service(&["--config", config.to_str().unwrap()]);
    back_up(&sandbox, &[], &[]);
    // And those who demand it.
    sandbox.status_with(&demand(&key));
}

#[test]
fn another_key_under_the_same_name_is_refused_and_the_audit_log_has_the_cause() {
    let sandbox = Sandbox::new();
    sandbox.write("docs/a.txt", "alpha");
    let (key, other) = (new_key(&sandbox, "keys"), new_key(&sandbox, "other"));
    let _service = sandbox.service(&demand(&key));

    let endpoint = sandbox.endpoint();
    let status = [&["status", "--endpoint", &endpoint][..], &demand(&other)].concat();
    let refused = sandbox.run(&status);
    assert_eq!(refused.code, Some(4), "{}", refused.errors);
    assert!(
        refused.errors.contains(SAID_OF_THE_KEY),
        "{}",
        refused.errors
    );

    let agent = sandbox.agent(
        "s1",
        &[&demand(&other)[..], &["--consent", "auto"]].concat(),
    );
    let ended = agent.wait();
    assert_eq!(ended.code, Some(4), "{}", ended.errors);
    assert!(ended.errors.contains(SAID_OF_THE_KEY), "{}", ended.errors);

    let data = sandbox.text("service-data");
    let is_told = |line: &str| line.contains("encryption_refused") && line.contains("unreadable");
    until("the audit log has it", || {
        let audit = sandbox.run(&["audit", "--json", "--data-dir", &data]);
        audit.output.lines().any(is_told)
    });
}

#[test]
fn an_agent_that_demands_encryption_waits_until_the_service_encrypts() {
    let sandbox = Sandbox::new();
    sandbox.write("docs/a.txt", "alpha");
    let key = new_key(&sandbox, "keys");
    let service = sandbox.service(&[]);

    let endpoint = sandbox.endpoint();
    let status = [&["status", "--endpoint", &endpoint][..], &demand(&key)].concat();
    let ended = sandbox.run(&status);
    assert_eq!(ended.code, Some(4), "{}", ended.errors);
    assert!(
        ended.errors.contains(SAID_OF_THE_SERVICE),
        "{}",
        ended.errors
    );

    let options = ["--consent", "auto", "--max-pause", "0.5"];
    let agent = sandbox.agent("s1", &[&demand(&key)[..], &options].concat());
    agent.until_output("The service does not encrypt; waiting until it does");
    agent.until_output(SAID_OF_THE_SERVICE);
    assert!(sandbox.user("s1").is_none());

    assert_eq!(service.stop().code, Some(0));
    let _service = sandbox.service(&demand(&key));
    agent.until_output("The service is there again.");
    assert_eq!(agent.stop().code, Some(0));
}

#[test]
fn a_key_file_that_cannot_be_used_is_a_mistake_that_is_explained() {
    let sandbox = Sandbox::new();
    let missing = sandbox.text("missing");
    let outbox = sandbox.text("outbox.key");
    sandbox.run(&["key", "new", &outbox, "--kind", "outbox"]);
    let (endpoint, data) = (sandbox.endpoint(), sandbox.text("service-data"));
    let service = [
        "service",
        "--development",
        "--endpoint",
        &endpoint,
        "--data-dir",
        &data,
    ];
    let status = ["status", "--endpoint", &endpoint];
    let cases: [(&[&str], &[&str], &str); 5] = [
        (&service, &["--require-encryption"], "there is no key"),
        (&service, &["--key-file", &missing], "does not exist"),
        (&status, &["--require-encryption"], "--key-file <FILE>"),
        (&status, &["--key-file", &missing], "does not exist"),
        (
            &status,
            &["--key-file", &outbox],
            "none of them is for connections",
        ),
    ];
    for (command, flags, expected) in cases {
        let finished = sandbox.run(&[command, flags].concat());
        assert_eq!(finished.code, Some(2), "{flags:?}: {}", finished.errors);
        assert!(finished.errors.contains(expected), "{}", finished.errors);
    }
}
