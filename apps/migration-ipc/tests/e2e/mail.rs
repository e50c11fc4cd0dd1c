//! `mail` and `dead-letters`: what is kept for users who are absent, and what was refused.

use serde_json::Value;

use crate::harness::{Finished, Sandbox, until};
use crate::publish::publish;

const REQUEST: &str = r#"{"deadline":"2099-01-01T12:00:00Z"}"#;

impl Sandbox {
    /// Runs a command of an operator, with its words before the endpoint and after it.
    fn operate(&self, words: &[&str], arguments: &[&str]) -> Finished {
        let endpoint = self.endpoint();
        self.run(&[words, &["--endpoint", &endpoint], arguments].concat())
    }

    #[track_caller]
    fn kept(&self, shelf: &str) -> Vec<Value> {
        let listed = self.operate(&[shelf, "list"], &["--json"]);
        assert_eq!(listed.code, Some(0), "{}", listed.errors);
        let parse = |line| serde_json::from_str(line).unwrap();
        listed.output.lines().map(parse).collect()
    }

    /// The account that everything here runs as.
    fn account(&self) -> String {
        let status = self.status();
        let user = status["users"][0]["user"].as_str().unwrap();
        user.split('/').next().unwrap().to_owned()
    }

    #[track_caller]
    fn send_setting(&self, to: &str, value: &str) {
        let payload = format!("{{\"key\":\"colour\",\"value\":\"{value}\"}}");
        let sent = self.send(&["--user", to, "CONFIGURATION_UPDATE", &payload]);
        assert_eq!(sent.code, Some(0), "{}", sent.errors);
        assert!(sent.output.contains("kept as mail"), "{}", sent.output);
    }
}

#[test]
fn mail_waits_for_its_user_over_a_restart_of_the_service() {
    let sandbox = Sandbox::new();
    sandbox.write("docs/a.txt", "alpha");
    let service = sandbox.service(&[]);
    let agent = sandbox.agent("s1", &["--consent", "auto"]);
    until("the agent is there", || sandbox.user("s1").is_some());
    agent.stop();
    until("it is gone", || {
        sandbox.user("s1").unwrap()["agents"]
            .as_array()
            .unwrap()
            .is_empty()
    });
    let account = sandbox.account();
    for value in ["red", "green", "blue"] {
        sandbox.send_setting(&account, value);
    }
    let mail = sandbox.kept("mail");
    let values: Vec<_> = mail.iter().map(|it| &it["payload"]["value"]).collect();
    assert_eq!(values, ["red", "green", "blue"]);
    assert_eq!(mail[0]["type"], "CONFIGURATION_UPDATE");
    assert_eq!(mail[0]["user"], account.as_str());
    let number = mail[1]["number"].to_string();
    let dropped = sandbox.operate(&["mail", "drop"], &[&number, "4711"]);
    assert_eq!(dropped.code, Some(1));
    assert!(dropped.output.contains("dropped"), "{}", dropped.output);
    assert!(dropped.errors.contains("4711"), "{}", dropped.errors);

    service.kill();
    let _service = sandbox.service(&[]);
    let table = sandbox.operate(&["mail", "list"], &[]).output;
    assert!(
        table.starts_with("NUMBER") && table.lines().count() == 3,
        "{table}"
    );
    let agent = sandbox.agent("s1", &["--consent", "auto"]);
    agent.until_output("is now \"blue\"");
    let output = agent.output();
    assert!(output.contains("is now \"red\""), "{output}");
    assert!(!output.contains("green"), "{output}");
    until("nothing is kept any more", || {
        sandbox.kept("mail").is_empty()
    });
}

#[test]
fn what_was_refused_is_kept_and_can_be_tried_again() {
    let sandbox = Sandbox::new();
    let _service = sandbox.service(&[]);
    let bad = publish(&sandbox, &["--durable", "USER_ACTION"], "{}\n");
    assert!(bad.output.contains("rejected"), "{}", bad.output);
    let done = r#"{"success":true}"#;
    publish(&sandbox, &["--durable", "BACKUP_COMPLETED"], done);
    let delay = r#"{"reason":"user_busy","requestedDelay":3600}"#;
    let delayed = publish(&sandbox, &["--durable", "DELAY_REQUEST"], delay);
    assert!(
        delayed.output.contains("cannot be put off"),
        "{}",
        delayed.output
    );

    let letters = sandbox.kept("dead-letters");
    assert_eq!(letters.len(), 2);
    assert_eq!(letters[0]["type"], "USER_ACTION");
    assert_eq!(letters[0]["code"], "bad_payload");
    assert_eq!(letters[1]["session"], "script");
    assert_eq!(letters[1]["direction"], "from_agent");

    let numbers: Vec<String> = letters.iter().map(|it| it["number"].to_string()).collect();
    sandbox.send(&["--all", "BACKUP_REQUEST", REQUEST]);
    let arguments: Vec<&str> = numbers.iter().map(String::as_str).collect();
    let again = sandbox.operate(&["dead-letters", "requeue"], &arguments);
    assert_eq!(again.code, Some(1), "one of them is as bad as before");
    assert!(again.errors.contains(&numbers[0]), "{}", again.errors);
    assert_eq!(again.output.trim(), format!("{}: handled", numbers[1]));
    let user = sandbox.user("script").unwrap();
    assert_eq!(
        (&user["state"], &user["delaysUsed"]),
        (&"delayed".into(), &1.into())
    );

    let dropped = sandbox.operate(&["dead-letters", "drop"], &[&numbers[0]]);
    assert_eq!(dropped.code, Some(0), "{}", dropped.errors);
    assert!(sandbox.kept("dead-letters").is_empty());
}
