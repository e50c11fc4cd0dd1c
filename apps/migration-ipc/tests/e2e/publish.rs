//! `publish`: messages from scripts.

use std::collections::HashMap;
use std::io::Write as _;
use std::process::Stdio;

use serde_json::Value;

use crate::harness::{Finished, Running, Sandbox, until};

/// `publish` that keeps what it accepts in the folder `outbox`.
fn start(sandbox: &Sandbox, name: &str, arguments: &[&str], input: Stdio) -> Running {
    let (endpoint, data) = (sandbox.endpoint(), sandbox.text("outbox"));
    let mut all = vec!["publish", "--endpoint", &endpoint, "--data-dir", &data];
    all.extend(["--session", "script", "--max-pause", "0.2"]);
    all.extend(arguments);
    let mut command = sandbox.command(&all);
    command.stdin(input);
    Running::start(sandbox, name, command)
}

#[track_caller]
pub(crate) fn publish(sandbox: &Sandbox, arguments: &[&str], input: &str) -> Finished {
    let mut running = start(sandbox, "publish", arguments, Stdio::piped());
    let mut stdin = running.stdin().unwrap();
    stdin.write_all(input.as_bytes()).unwrap();
    drop(stdin);
    running.wait()
}

/// `publish` that has said this and goes on.
#[track_caller]
pub(crate) fn start_waiting(sandbox: &Sandbox, arguments: &[&str], input: &str) -> Running {
    let mut running = start(sandbox, "waiting", arguments, Stdio::piped());
    let mut stdin = running.stdin().unwrap();
    stdin.write_all(input.as_bytes()).unwrap();
    running
}

fn actions(count: usize) -> String {
    let line = |number| format!("{{\"action\":\"a{number}\"}}\n");
    (0..count).map(line).collect()
}

fn lines(output: &str) -> Vec<Value> {
    let parse = |line| serde_json::from_str(line).unwrap();
    output.lines().map(parse).collect()
}

/// The ids that were accepted, in order.
fn accepted(output: &str) -> Vec<String> {
    let id = |line: &Value| line["accepted"].as_str().map(str::to_owned);
    lines(output).iter().filter_map(id).collect()
}

fn outcomes(output: &str) -> HashMap<String, String> {
    let outcome = |line: &Value| {
        let id = line["id"].as_str()?;
        Some((id.to_owned(), line["outcome"].as_str().unwrap().to_owned()))
    };
    lines(output).iter().filter_map(outcome).collect()
}

fn journal(sandbox: &Sandbox, message_type: &str) -> Vec<Value> {
    let data = sandbox.text("service-data");
    let journal = sandbox.run(&["journal", "--json", "--data-dir", &data]);
    assert_eq!(journal.code, Some(0), "{}", journal.errors);
    let mut lines = lines(&journal.output);
    lines.retain(|line| line["type"] == message_type);
    lines
}

fn ids(journal: &[Value]) -> Vec<String> {
    let id = |line: &Value| line["id"].as_str().unwrap().to_owned();
    journal.iter().map(id).collect()
}

#[test]
fn every_line_is_accepted_and_then_handled_in_order() {
    let sandbox = Sandbox::new();
    let _service = sandbox.service(&[]);
    for durable in [&["--durable", "USER_ACTION"][..], &["USER_ACTION"]] {
        let before = journal(&sandbox, "USER_ACTION").len();
        let published = publish(&sandbox, durable, &actions(300));
        assert_eq!(published.code, Some(0), "{}", published.errors);
        let accepted = accepted(&published.output);
        assert_eq!(accepted.len(), 300);
        let outcomes = outcomes(&published.output);
        assert_eq!(outcomes.len(), 300);
        assert!(outcomes.values().all(|outcome| outcome == "handled"));
        let handled = &journal(&sandbox, "USER_ACTION")[before..];
        assert_eq!(ids(handled), accepted);
        assert!(handled.iter().all(|line| line["session"] == "script"));
    }
    let user = sandbox.user("script").unwrap();
    assert_eq!(user["lastAction"]["text"], "a299");
}

#[test]
fn a_bad_line_is_named_and_the_others_are_sent() {
    let sandbox = Sandbox::new();
    let _service = sandbox.service(&[]);
    let long = format!("{{\"action\":\"{}\"}}", "x".repeat(1_048_576));
    let just_too_long = format!("{{\"action\":\"{}\"}}", "x".repeat(1_048_500));
    let input = format!("{{\"action\":\"a\"}}\n[1]\n{long}\n{just_too_long}\n{{\"action\":\"b\"}}");
    let published = publish(&sandbox, &["--durable", "USER_ACTION"], &input);
    assert_eq!(published.code, Some(1));
    for (number, problem) in [(2, "no JSON object"), (3, "longer"), (4, "")] {
        let line = format!("line {number}: ");
        let found = published
            .errors
            .lines()
            .any(|it| it.contains(&line) && it.contains(problem));
        assert!(found, "{}", published.errors);
    }
    assert_eq!(accepted(&published.output).len(), 2);
    assert_eq!(journal(&sandbox, "USER_ACTION").len(), 2);
}

#[test]
fn a_message_that_is_refused_is_an_outcome_and_no_failure() {
    let sandbox = Sandbox::new();
    let _service = sandbox.service(&[]);
    let published = publish(&sandbox, &["--durable", "A_TYPE_OF_MY_OWN"], "{\"a\":1}\n");
    assert_eq!(published.code, Some(0), "{}", published.errors);
    let lines = lines(&published.output);
    assert_eq!(lines[1]["outcome"], "rejected");
    assert!(
        lines[1]["error"]
            .as_str()
            .unwrap()
            .contains("A_TYPE_OF_MY_OWN")
    );
}

#[test]
fn what_was_accepted_without_a_service_is_sent_by_the_next_run() {
    let sandbox = Sandbox::new();
    let durable = ["--durable", "USER_ACTION"];
    let mut first = start(&sandbox, "first", &durable, Stdio::piped());
    let mut stdin = first.stdin().unwrap();
    stdin.write_all(actions(50).as_bytes()).unwrap();
    stdin.flush().unwrap();
    until("all are accepted", || first.output().lines().count() == 50);
    let left = accepted(&first.output());
    first.kill();

    let _service = sandbox.service(&[]);
    let second = publish(&sandbox, &durable, "{\"action\":\"new\"}\n");
    assert_eq!(second.code, Some(0), "{}", second.errors);
    let new = accepted(&second.output);
    let outcomes = outcomes(&second.output);
    assert_eq!(outcomes.len(), 51);
    let all = [left, new].concat();
    assert!(all.iter().all(|id| outcomes[id] == "handled"));
    assert_eq!(ids(&journal(&sandbox, "USER_ACTION")), all);
}

#[test]
fn a_service_that_is_killed_and_comes_back_gets_everything_once() {
    let sandbox = Sandbox::new();
    let service = sandbox.service(&[]);
    let mut running = start(
        &sandbox,
        "publish",
        &["--durable", "USER_ACTION"],
        Stdio::piped(),
    );
    let mut stdin = running.stdin().unwrap();
    stdin.write_all(actions(500).as_bytes()).unwrap();
    until("some are handled", || running.output().contains("handled"));
    service.kill();
    let _service = sandbox.service(&[]);
    drop(stdin);
    let published = running.wait();
    assert_eq!(published.code, Some(0), "{}", published.errors);
    let handled = ids(&journal(&sandbox, "USER_ACTION"));
    assert_eq!(handled, accepted(&published.output));
}

#[test]
fn a_reader_that_goes_away_is_an_error_and_no_panic() {
    let sandbox = Sandbox::new();
    let _service = sandbox.service(&[]);
    let (endpoint, data) = (sandbox.endpoint(), sandbox.text("outbox"));
    let mut command = sandbox.command(&[
        "publish",
        "--endpoint",
        &endpoint,
        "--data-dir",
        &data,
        "USER_ACTION",
    ]);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    let mut stdin = child.stdin.take().unwrap();
    // It may end before it has read everything.
    let _ = stdin.write_all(actions(100).as_bytes());
    drop(stdin);
    let finished = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&finished.stderr);
    assert_eq!(finished.status.code(), Some(1), "{errors}");
    assert!(errors.contains("standard output"), "{errors}");
}

#[test]
fn a_folder_that_another_one_uses_is_refused() {
    let sandbox = Sandbox::new();
    let first = start_waiting(&sandbox, &["--durable", "USER_ACTION"], &actions(1));
    first.until_output("accepted");
    let second = publish(&sandbox, &["USER_ACTION"], "");
    assert_eq!(second.code, Some(2));
    assert!(
        second.errors.contains("in use by another process"),
        "{}",
        second.errors
    );
}
