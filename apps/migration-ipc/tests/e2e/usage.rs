//! Mistakes on the command line and in the configuration: each says what is wrong and what would
//! be right.

use crate::harness::Sandbox;

#[test]
fn a_mistake_has_exit_code_2_and_a_text_that_helps() {
    let sandbox = Sandbox::new();
    let wrong = sandbox.write("wrong.toml", "[delays]\ncount = 9\n");
    let wrong = wrong.to_str().unwrap();
    let missing = sandbox.text("missing");
    let cases: &[(&[&str], &str)] = &[
        (&[], "Usage"),
        (&["serve"], "service"),
        (&["demo", "--agents", "0"], "1..=64"),
        (&["demo", &missing], "missing"),
        (&["service", "--endpoint", ""], "the endpoint is empty"),
        (
            &["service", "--config", wrong],
            "`delays.count` is 9; it must be from 0 to 3",
        ),
        (
            &["service", "--config", &missing],
            "cannot read the configuration",
        ),
        (
            &["service", "--log-level", "=="],
            "use error, warn, info, debug or trace",
        ),
        (&["agent", "--category", "files"], "NAME=PATH"),
        (&["agent", "--category", "a/b=/x"], "letters"),
        (
            &["agent", "--category", "a=/x", "--category", "a=/y"],
            "given twice",
        ),
        (
            &["agent", "--consent", "maybe"],
            "[possible values: ask, auto, deny]",
        ),
        (&["agent", "--consent", "auto"], "--category NAME=PATH"),
        (&["send", "BACKUP_REQUEST", "{}"], "--all"),
        (
            &["send", "--all", "--user", "x", "BACKUP_REQUEST", "{}"],
            "cannot be used with",
        ),
        (
            &["send", "--all", "BACKUP_REQUEST", "{"],
            "this is not JSON",
        ),
        (
            &["send", "--all", "BACKUP_REQUEST", "{}"],
            "missing field `deadline`",
        ),
        (
            &["send", "--all", "AGENT_STARTED", "{}"],
            "use one of BACKUP_REQUEST",
        ),
        (&["check", &missing], "cannot read the manifest"),
        (&["demo-janitor", &missing], "is not a scratch folder"),
    ];
    for (arguments, expected) in cases {
        let finished = sandbox.run(arguments);
        let text = finished.errors;
        assert_eq!(finished.code, Some(2), "{arguments:?}: {text}");
        assert!(text.contains(expected), "{arguments:?}: {text}");
    }
}

#[test]
fn no_service_has_exit_code_3() {
    let sandbox = Sandbox::new();
    let endpoint = sandbox.endpoint();
    for arguments in [
        &["status", "--endpoint", &endpoint][..],
        &[
            "send",
            "--endpoint",
            &endpoint,
            "--all",
            "SHUTDOWN_REQUEST",
            "{}",
        ],
    ] {
        let finished = sandbox.run(arguments);
        assert_eq!(finished.code, Some(3), "{}", finished.errors);
        assert!(
            finished.errors.contains("no service is running"),
            "{}",
            finished.errors
        );
    }
}

#[test]
fn help_lists_the_exit_codes() {
    let sandbox = Sandbox::new();
    let help = sandbox.run(&["--help"]);
    assert_eq!(help.code, Some(0));
    for expected in [
        "Exit codes",
        "demo",
        "service",
        "agent",
        "status",
        "send",
        "check",
    ] {
        assert!(help.output.contains(expected), "{expected}");
    }
    assert!(!help.output.contains("janitor"));
}
