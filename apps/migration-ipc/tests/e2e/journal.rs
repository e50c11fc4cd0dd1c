//! `journal`, of a service that runs and of one that does not.

use serde_json::Value;

use crate::harness::{Finished, Sandbox};

const REQUEST: &str = r#"{"deadline":"2099-01-01T12:00:00Z","categories":["files"]}"#;

fn journal(sandbox: &Sandbox, arguments: &[&str]) -> Finished {
    let data = sandbox.text("service-data");
    let mut all = vec!["journal", "--data-dir", &data];
    all.extend(arguments);
    sandbox.run(&all)
}

#[test]
fn the_journal_has_what_was_handled_in_order_whether_the_service_runs_or_not() {
    let sandbox = Sandbox::new();
    sandbox.write("docs/a.txt", "alpha");
    let service = sandbox.service(&[]);
    assert_eq!(
        sandbox.send(&["--all", "BACKUP_REQUEST", REQUEST]).code,
        Some(0)
    );
    let agent = sandbox.agent("s1", &["--consent", "auto"]);
    sandbox.until_state("s1", "completed");
    agent.stop();

    let running = journal(&sandbox, &["--json"]);
    assert_eq!(running.code, Some(0), "{}", running.errors);
    let lines: Vec<Value> = running
        .output
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let types: Vec<&str> = lines
        .iter()
        .map(|it| it["type"].as_str().unwrap())
        .collect();
    assert_eq!(types[0], "AGENT_STARTED");
    let place = |message_type| types.iter().position(|it| *it == message_type).unwrap();
    assert!(place("BACKUP_STARTED") < place("BACKUP_COMPLETED"));
    assert!(
        !types.iter().any(|it| it.starts_with("SERVICE_")),
        "what operators ask is not in it: {types:?}"
    );
    assert_eq!(lines[0]["outcome"], "replied", "with the request");
    assert_eq!(lines[0]["session"], Value::Null, "not announced before");
    for line in &lines[1..] {
        assert_eq!(line["session"], "s1");
        assert!(line["user"].is_string() && line["id"].is_string());
        assert!(line["time"].as_str().unwrap().ends_with('Z'));
    }

    service.kill();
    let stopped = journal(&sandbox, &["--json"]);
    assert_eq!(stopped.code, Some(0), "{}", stopped.errors);
    assert_eq!(stopped.output, running.output);
    let table = journal(&sandbox, &[]).output;
    assert!(
        table.starts_with("TIME") && table.contains("BACKUP_COMPLETED"),
        "{table}"
    );
}

#[test]
fn a_folder_without_a_journal_is_left_alone() {
    let sandbox = Sandbox::new();
    let none = journal(&sandbox, &["--json"]);
    assert_eq!(none.code, Some(2));
    assert!(
        none.errors.contains("no state of a service"),
        "{}",
        none.errors
    );
    assert!(!sandbox.path("service-data").exists());
}
