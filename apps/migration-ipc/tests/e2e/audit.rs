//! `audit`: what the service recorded, while it runs and after it was killed.

use serde_json::Value;

use crate::harness::{Finished, Sandbox, until};

fn audit(sandbox: &Sandbox, arguments: &[&str]) -> Finished {
    let data = sandbox.text("service-data");
    let mut all = vec!["audit", "--data-dir", &data];
    all.extend(arguments);
    sandbox.run(&all)
}

fn records(sandbox: &Sandbox) -> Vec<Value> {
    let printed = audit(sandbox, &["--json"]);
    assert_eq!(printed.code, Some(0), "{}", printed.errors);
    let parse = |line| serde_json::from_str(line).unwrap();
    printed.output.lines().map(parse).collect()
}

#[test]
fn the_audit_log_has_who_came_and_what_operators_did_also_after_a_kill() {
    let sandbox = Sandbox::new();
    let service = sandbox.service(&[]);
    let nobody = sandbox.send(&["--user", "no-such-account", "SHUTDOWN_REQUEST", "{}"]);
    assert_eq!(nobody.code, Some(5), "{}", nobody.errors);
    let is_there = |event: &str| records(&sandbox).iter().any(|it| it["event"] == event);
    until("the action is on the disk", || is_there("action"));
    let before = records(&sandbox);
    assert_eq!(before[0]["event"], "policy_in_force");
    let connected = before.iter().find(|it| it["role"] == "operator").unwrap();
    assert!(connected["account"].is_string() && connected["connection"].is_string());
    let action = before.iter().find(|it| it["event"] == "action").unwrap();
    assert_eq!(action["what"], "SHUTDOWN_REQUEST");
    assert_eq!(action["to"], "user no-such-account");
    assert_eq!(action["account"], connected["account"]);

    service.kill();
    assert_eq!(records(&sandbox)[..before.len()], before);
    // Whoever comes next writes on behind it.
    let service = sandbox.service(&[]);
    service.stop();
    let after = records(&sandbox);
    let starts = after.iter().filter(|it| it["event"] == "policy_in_force");
    assert_eq!(starts.count(), 2);
    let table = audit(&sandbox, &[]).output;
    assert!(
        table.starts_with("TIME") && table.contains("action=send"),
        "{table}"
    );
}

#[test]
fn a_folder_without_an_audit_log_is_left_alone() {
    let sandbox = Sandbox::new();
    let none = audit(&sandbox, &["--json"]);
    assert_eq!(none.code, Some(2));
    assert!(none.errors.contains("no audit log"), "{}", none.errors);
    assert!(!sandbox.path("service-data").exists());
}
