//! `key`, and what is kept on the disk with one.

use std::fs;
use std::path::Path;

use crate::harness::{Sandbox, until};
use crate::publish::publish;

/// What a command says that fails.
#[track_caller]
fn mistake(sandbox: &Sandbox, arguments: &[&str]) -> String {
    let finished = sandbox.run(arguments);
    assert_eq!(finished.code, Some(2), "{}", finished.errors);
    finished.errors
}

/// Whether a text is in any file of a folder.
fn is_below(folder: &Path, text: &str) -> bool {
    fs::read_dir(folder).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        if path.is_dir() {
            return is_below(&path, text);
        }
        // On Windows the file that holds the lock cannot be read while it is held.
        let content = fs::read(&path).unwrap_or_default();
        content
            .windows(text.len())
            .any(|part| part == text.as_bytes())
    })
}

#[test]
fn a_key_is_made_once_and_shown_by_name_alone() {
    let sandbox = Sandbox::new();
    let file = sandbox.text("keys");
    let made = sandbox.run(&["key", "new", &file, "--name", "lab"]);
    assert_eq!(made.code, Some(0), "{}", made.errors);
    assert!(made.output.contains("`lab` (shared)"), "{}", made.output);

    let text = fs::read_to_string(&file).unwrap();
    let key = text.split_whitespace().last().unwrap();
    assert_eq!(key.len(), 64);
    assert!(!made.output.contains(key));

    let shown = sandbox.run(&["key", "check", &file]);
    assert_eq!(shown.code, Some(0), "{}", shown.errors);
    assert!(shown.output.contains("lab"), "{}", shown.output);
    assert!(!shown.output.contains(&key[..8]), "{}", shown.output);

    let again = mistake(&sandbox, &["key", "new", &file]);
    assert!(again.contains("is not replaced"), "{again}");
    assert_eq!(fs::read_to_string(&file).unwrap(), text);
}

#[test]
fn static_keys_are_made_for_both_sides_or_for_none() {
    let sandbox = Sandbox::new();
    let (own, peer) = (sandbox.text("service.keys"), sandbox.text("agent.keys"));
    let new = ["key", "new", &own, "--kind", "static"];
    let alone = mistake(&sandbox, &new);
    assert!(alone.contains("--peer"), "{alone}");

    sandbox.write("agent.keys", "something else");
    let new = [&new[..], &["--name", "k", "--peer", &peer]].concat();
    let taken = mistake(&sandbox, &new);
    assert!(taken.contains("is not replaced"), "{taken}");
    assert!(!sandbox.path("service.keys").exists());

    fs::remove_file(&peer).unwrap();
    let made = sandbox.run(&new);
    assert_eq!(made.code, Some(0), "{}", made.errors);
    for file in [&own, &peer] {
        let shown = sandbox.run(&["key", "check", file]);
        assert_eq!(shown.code, Some(0), "{}", shown.errors);
        assert!(shown.output.contains("static-private"), "{}", shown.output);
        assert!(shown.output.contains("static-public"), "{}", shown.output);
    }

    let text = fs::read_to_string(&own).unwrap();
    let private = text.lines().take(2).collect::<Vec<_>>().join("\n");
    fs::write(&own, private).unwrap();
    let half = mistake(&sandbox, &["key", "check", &own]);
    assert!(
        half.contains("line 2") && half.contains("static-public"),
        "{half}"
    );
}

#[test]
fn a_key_file_with_a_mistake_names_it_and_no_key() {
    let sandbox = Sandbox::new();
    let file = sandbox.text("keys");
    let name = mistake(&sandbox, &["key", "new", &file, "--name", "two words"]);
    assert!(name.contains("letters"), "{name}");
    assert!(!sandbox.path("keys").exists());
    let missing = mistake(&sandbox, &["key", "check", &file]);
    assert!(missing.contains("does not exist"), "{missing}");

    sandbox.run(&["key", "new", &file]);
    let key = fs::read_to_string(&file).unwrap();
    let key = key.split_whitespace().last().unwrap();
    fs::write(&file, format!("migration-ipc-keys 1\n\na shared {key}0\n")).unwrap();
    let long = mistake(&sandbox, &["key", "check", &file]);
    assert!(long.contains("line 3") && long.contains("65"), "{long}");
    assert!(!long.contains(&key[..8]), "{long}");
}

#[cfg(unix)]
#[test]
fn a_key_file_that_others_can_read_is_not_used() {
    use std::os::unix::fs::PermissionsExt as _;
    let sandbox = Sandbox::new();
    let file = sandbox.text("keys");
    sandbox.run(&["key", "new", &file]);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    let open = mistake(&sandbox, &["key", "check", &file]);
    assert!(open.contains("chmod 600"), "{open}");
    let protect = mistake(
        &sandbox,
        &["key", "new", &sandbox.text("other"), "--protect", "user"],
    );
    assert!(protect.contains("only Windows has DPAPI"), "{protect}");
    assert!(!sandbox.path("other").exists());
}

#[cfg(windows)]
#[test]
fn a_protected_key_file_is_of_use_and_shows_no_key() {
    let sandbox = Sandbox::new();
    for scope in ["user", "machine"] {
        let file = sandbox.text(scope);
        let made = sandbox.run(&["key", "new", &file, "--name", "lab", "--protect", scope]);
        assert_eq!(made.code, Some(0), "{}", made.errors);
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.starts_with("migration-ipc-keys 1 dpapi\n"), "{text}");
        let shown = sandbox.run(&["key", "check", &file]);
        assert!(shown.output.contains("lab"), "{}", shown.errors);
    }
}

#[test]
fn what_is_kept_with_a_key_is_nowhere_on_the_disk_and_arrives() {
    let sandbox = Sandbox::new();
    let key = sandbox.text("outbox.key");
    let line = "{\"action\":\"hunter2\"}\n";
    let options =
        |durable: &'static str| ["--outbox-key", &key, durable, "USER_ACTION"].map(String::from);
    let arguments = options("--durable");
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();

    // Nobody is there, so that it stays.
    let mut waiting = crate::publish::start_waiting(&sandbox, &arguments, line);
    waiting.until_output("accepted");
    assert!(!is_below(&sandbox.path("outbox"), "hunter2"));
    assert!(is_below(&sandbox.path("outbox"), "USER_ACTION"));
    waiting.kill_now();

    let shown = sandbox.run(&["key", "check", &key]);
    assert!(shown.output.contains("outbox"), "{}", shown.errors);

    let _service = sandbox.service(&[]);
    let sent = publish(&sandbox, &arguments, "");
    assert_eq!(sent.code, Some(0), "{}", sent.errors);
    until("the service has it", || {
        sandbox
            .user("script")
            .is_some_and(|user| user["lastAction"]["text"] == "hunter2")
    });
}
