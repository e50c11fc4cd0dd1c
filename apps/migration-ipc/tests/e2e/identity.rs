//! Two users of one machine at one service.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use crate::harness::{PROGRAM, Running, Sandbox, until};

/// Accounts that need no entry in the account database.
const ALICE: u32 = 54_321;
const BOB: u32 = 54_322;

/// A sandbox that other accounts can use, with the program in it; `None` unless this is root.
fn shared() -> Option<Sandbox> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root can run processes as two other accounts");
        return None;
    }
    let sandbox = Sandbox::new();
    sandbox.write("docs/a.txt", "alpha");
    // Whatever the umask is.
    for (path, mode) in [("", 0o755), ("docs", 0o755), ("docs/a.txt", 0o644)] {
        fs::set_permissions(sandbox.path(path), Permissions::from_mode(mode)).unwrap();
    }
    // The build's folder may be closed to others.
    // By a process of its own: a file that this process had open for writing while another test
    // started a child could not be executed (ETXTBSY).
    let copy = Command::new("cp")
        .arg(PROGRAM)
        .arg(sandbox.path("program"))
        .status();
    assert!(copy.unwrap().success());
    fs::set_permissions(sandbox.path("program"), Permissions::from_mode(0o755)).unwrap();
    Some(sandbox)
}

fn service(sandbox: &Sandbox) -> Running {
    service_with(sandbox, &[])
}

fn service_with(sandbox: &Sandbox, more: &[&str]) -> Running {
    fs::create_dir(sandbox.path("run")).unwrap();
    fs::set_permissions(sandbox.path("run"), Permissions::from_mode(0o755)).unwrap();
    let (endpoint, data) = (
        sandbox.text("run/service.sock"),
        sandbox.text("service-data"),
    );
    let arguments = [
        "service",
        "--until-stdin-ends",
        "--endpoint",
        &endpoint,
        "--data-dir",
        &data,
    ];
    let mut command = sandbox.command(&arguments);
    command.args(more).stdin(Stdio::piped());
    let service = Running::start(sandbox, "service", command);
    until("the service answers", || status(sandbox, 0).code == Some(0));
    service
}

fn as_account(sandbox: &Sandbox, uid: u32, arguments: &[&str]) -> Command {
    let mut command = Command::new(sandbox.path("program"));
    command
        .args(arguments)
        .args(["--endpoint", &sandbox.text("run/service.sock")]);
    command
        .env("HOME", sandbox.text(&format!("home-{uid}")))
        .uid(uid)
        .gid(uid);
    command.stdin(Stdio::null());
    command
}

fn status(sandbox: &Sandbox, uid: u32) -> crate::harness::Finished {
    let command = as_account(sandbox, uid, &["status", "--json"]);
    Running::start(sandbox, &format!("status-{uid}"), command).wait()
}

fn agent(sandbox: &Sandbox, uid: u32, arguments: &[&str]) -> Running {
    let home = sandbox.path(&format!("home-{uid}"));
    fs::create_dir_all(&home).unwrap();
    chown(&home, Some(uid), Some(uid)).unwrap();
    let docs = format!("files={}", sandbox.text("docs"));
    let mut all = vec![
        "agent",
        "--consent",
        "auto",
        "--category",
        &docs,
        "--until-stdin-ends",
    ];
    all.extend(arguments);
    let mut command = as_account(sandbox, uid, &all);
    command.stdin(Stdio::piped());
    Running::start(sandbox, &format!("agent-{uid}"), command)
}

#[test]
fn each_account_has_its_own_backup_and_names_only_itself() {
    let Some(sandbox) = shared() else { return };
    let _service = service(&sandbox);
    let _alice = agent(&sandbox, ALICE, &[]);
    let _bob = agent(&sandbox, BOB, &["--user", "54322"]);
    let users = || {
        let status: serde_json::Value = serde_json::from_str(&status(&sandbox, 0).output).unwrap();
        let users = status["users"].as_array().unwrap().iter();
        users
            .map(|user| user["user"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    until("both are there", || users() == ["54321", "54322"]);

    let mallory = agent(&sandbox, BOB, &["--user", "54321", "--session", "evil"]).wait();
    assert_eq!(mallory.code, Some(4), "{}", mallory.errors);
    assert_eq!(users(), ["54321", "54322"]);

    let endpoint = sandbox.text("run/service.sock");
    let request = r#"{"deadline":"2099-01-01T12:00:00Z"}"#;
    let send = [
        "send",
        "--endpoint",
        &endpoint,
        "--user",
        "54321",
        "BACKUP_REQUEST",
        request,
    ];
    assert_eq!(sandbox.run(&send).code, Some(0));
    let backup = sandbox.path("home-54321/.local/share/migration-ipc/backups/54321/a.txt");
    until("alice has a backup", || backup.is_file());
    let metadata = backup.metadata().unwrap();
    use std::os::unix::fs::MetadataExt as _;
    assert_eq!((metadata.uid(), metadata.mode() & 0o777), (ALICE, 0o600));
    let of_bob = sandbox.path("home-54322/.local/share/migration-ipc");
    assert!(of_bob.is_dir() && !of_bob.join("backups").exists());
}

#[test]
fn only_operators_see_the_status_and_send() {
    let Some(sandbox) = shared() else { return };
    let _service = service(&sandbox);
    let refused = status(&sandbox, ALICE);
    assert_eq!(refused.code, Some(4), "{}", refused.errors);
    assert!(refused.errors.contains("operator"), "{}", refused.errors);
    let send = as_account(
        &sandbox,
        ALICE,
        &["send", "--all", "SHUTDOWN_REQUEST", "{}"],
    );
    assert_eq!(Running::start(&sandbox, "send", send).wait().code, Some(4));
}

#[test]
fn no_command_of_operators_works_for_anybody_else() {
    let Some(sandbox) = shared() else { return };
    let _service = service(&sandbox);
    let commands: [&[&str]; 8] = [
        &["status"],
        &["send", "--all", "SHUTDOWN_REQUEST", "{}"],
        &["send", "--user", "54322", "SHUTDOWN_REQUEST", "{}"],
        &["mail", "list"],
        &["mail", "drop", "1"],
        &["dead-letters", "list"],
        &["dead-letters", "drop", "1"],
        &["dead-letters", "requeue", "1"],
    ];
    for uid in [ALICE, BOB] {
        for arguments in commands {
            let command = as_account(&sandbox, uid, arguments);
            let ended = Running::start(&sandbox, "refused", command).wait();
            assert_eq!(ended.code, Some(4), "{arguments:?}: {}", ended.errors);
            assert_eq!(ended.output, "", "{arguments:?}");
        }
    }
}

/// Whoever can exchange the folder decides what the service remembers.
#[test]
fn the_service_refuses_a_data_folder_that_is_anothers_or_a_link() {
    let Some(sandbox) = shared() else { return };
    let make = |name: &str| {
        let path = sandbox.path(name);
        fs::create_dir(&path).unwrap();
        path
    };
    let theirs = make("theirs");
    chown(&theirs, Some(ALICE), Some(ALICE)).unwrap();
    let open = make("open");
    fs::set_permissions(&open, Permissions::from_mode(0o777)).unwrap();
    let closed = make("closed");
    fs::set_permissions(&closed, Permissions::from_mode(0o700)).unwrap();
    std::os::unix::fs::symlink(&closed, sandbox.path("link")).unwrap();
    let table = [
        ("theirs", "belongs to uid 54321"),
        ("theirs/data", "belongs to uid 54321"),
        ("open/data", "mode 0777"),
        ("link", "is a link"),
        ("link/", "is a link"),
    ];
    for (name, problem) in table {
        let (endpoint, data) = (sandbox.text("none.sock"), sandbox.text(name));
        let ended = sandbox.run(&["service", "--endpoint", &endpoint, "--data-dir", &data]);
        assert_eq!(ended.code, Some(2), "{name}: {}", ended.errors);
        assert!(ended.errors.contains(problem), "{name}: {}", ended.errors);
    }
    assert!(fs::read_dir(&theirs).unwrap().next().is_none());
    assert!(fs::read_dir(&open).unwrap().next().is_none());
    assert!(fs::read_dir(&closed).unwrap().next().is_none());
}

#[test]
fn members_of_the_allowed_groups_may_connect_and_nobody_else() {
    let Some(sandbox) = shared() else { return };
    let config = sandbox.write("config.toml", "allowed_groups = [\"54321\", \"54399\"]");
    let _service = service_with(&sandbox, &["--config", config.to_str().unwrap()]);
    // Its group, as its user, has the number 54321.
    assert_eq!(
        status(&sandbox, ALICE).code,
        Some(4),
        "known, and no operator"
    );
    let refused = status(&sandbox, BOB);
    assert!(!refused.errors.contains("operator"), "{}", refused.errors);
    assert_ne!(refused.code, Some(0));
}

#[test]
fn the_state_is_for_the_service_alone() {
    let Some(sandbox) = shared() else { return };
    let _service = service(&sandbox);
    let mode = sandbox
        .path("service-data")
        .metadata()
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[test]
fn an_ordinary_user_sees_the_demonstration_and_what_it_could_not_read() {
    let Some(sandbox) = shared() else { return };
    chown(sandbox.temporary(), Some(ALICE), Some(ALICE)).unwrap();
    let secret = sandbox.write("docs/secret.txt", "of root");
    fs::set_permissions(secret, Permissions::from_mode(0o600)).unwrap();
    fs::create_dir(sandbox.path("kept")).unwrap();
    chown(sandbox.path("kept"), Some(ALICE), Some(ALICE)).unwrap();

    let (docs, kept) = (sandbox.text("docs"), sandbox.text("kept"));
    let mut command = Command::new(sandbox.path("program"));
    command
        .args(["demo", &docs, "--agents", "1", "--keep", &kept])
        .uid(ALICE)
        .gid(ALICE);
    command
        .env("TMPDIR", sandbox.temporary())
        .stdin(Stdio::null());
    let demo = Running::start(&sandbox, "demo", command).wait();
    assert_eq!(demo.code, Some(1), "{}{}", demo.output, demo.errors);
    assert!(
        demo.output.contains("`secret.txt`: it cannot be read"),
        "{}",
        demo.output
    );
    assert!(
        demo.output.contains("secret.txt: cannot be compared"),
        "{}",
        demo.output
    );
    assert!(sandbox.leftovers().is_empty());

    let manifest = fs::read_to_string(sandbox.path("kept/agent-1/manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
    assert_eq!(manifest["state"], "incomplete");
    let files = &manifest["categories"]["files"];
    assert_eq!(files["skipped"][0]["path"], "secret.txt");
    assert_eq!(files["skipped"][0]["cause"], "unreadable");
    assert_eq!(files["files"][0]["path"], "a.txt");
}
