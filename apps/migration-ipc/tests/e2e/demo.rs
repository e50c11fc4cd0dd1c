//! `demo`, and what is left of it: nothing, or what was asked to be kept.

use std::fs;
use std::process::Command;

use serde_json::Value;

use crate::harness::{Finished, Running, Sandbox, until};

/// Some real files in the sandbox's folder `docs`.
fn docs(sandbox: &Sandbox) {
    sandbox.write("docs/a.txt", "alpha");
    sandbox.write("docs/empty", "");
    sandbox.write("docs/sub/grüße.bin", vec![7; 200_000]);
    sandbox.write("docs/sub/deeper/b.txt", "beta");
}

fn has_row(finished: &Finished, agent: &str) -> bool {
    finished
        .output
        .lines()
        .any(|line| line.starts_with(agent) && line.ends_with("same as source"))
}

#[test]
fn the_demonstration_works_without_arguments_and_leaves_nothing() {
    let sandbox = Sandbox::new();
    let agents: &[&str] = if cfg!(windows) {
        &["demo", "--agents", "1"]
    } else {
        &["demo"]
    };
    let demo = sandbox.run(agents);
    assert_eq!(demo.code, Some(0), "{}{}", demo.output, demo.errors);
    assert!(has_row(&demo, "agent-1"), "{}", demo.output);
    assert_eq!(has_row(&demo, "agent-3"), !cfg!(windows), "{}", demo.output);
    assert!(
        demo.output.contains("agent-1: completed"),
        "{}",
        demo.output
    );
    let encrypted = "Every connection is encrypted: service and agents require the key `demo`";
    assert!(demo.output.contains(encrypted), "{}", demo.output);
    assert!(sandbox.leftovers().is_empty(), "{:?}", sandbox.leftovers());
}

#[test]
fn five_agents_back_up_a_real_folder_and_the_backups_are_kept() {
    let sandbox = Sandbox::new();
    docs(&sandbox);
    let (source, keep) = (sandbox.text("docs"), sandbox.text("kept"));
    let demo = sandbox.run(&["demo", &source, "--agents", "5", "--keep", &keep]);
    assert_eq!(demo.code, Some(0), "{}{}", demo.output, demo.errors);
    for agent in 1..=5 {
        let folder = format!("kept/agent-{agent}");
        for file in ["a.txt", "empty", "sub/grüße.bin", "sub/deeper/b.txt"] {
            let copy = fs::read(sandbox.path(&format!("{folder}/{file}"))).unwrap();
            assert_eq!(
                copy,
                fs::read(sandbox.path(&format!("docs/{file}"))).unwrap(),
                "{file}"
            );
        }
        let manifest =
            fs::read_to_string(sandbox.path(&format!("{folder}/manifest.json"))).unwrap();
        let manifest: Value = serde_json::from_str(&manifest).unwrap();
        assert_eq!(manifest["state"], "complete");
        let files = manifest["categories"]["files"]["files"].as_array().unwrap();
        assert_eq!(files.len(), 4);
        let a = files.iter().find(|file| file["path"] == "a.txt").unwrap();
        assert_eq!(a["size"], 5);
        let hash = "8ed3f6ad685b959ead7022518e1af76cd816f8e8ec7ccdda1ed4018e8f2223f8";
        assert_eq!(a["sha256"], hash);
        assert!(a["modified"].is_string());
    }
    assert!(sandbox.leftovers().is_empty(), "{:?}", sandbox.leftovers());
}

#[test]
fn a_kept_backup_is_brought_up_to_date_and_checked_again() {
    let sandbox = Sandbox::new();
    docs(&sandbox);
    let (source, keep) = (sandbox.text("docs"), sandbox.text("kept"));
    let demo =
        |sandbox: &Sandbox| sandbox.run(&["demo", &source, "--agents", "1", "--keep", &keep]);
    assert_eq!(demo(&sandbox).code, Some(0));
    let backup = sandbox.text("kept/agent-1");
    assert_eq!(sandbox.run(&["check", &backup]).code, Some(0));

    sandbox.write("kept/agent-1/a.txt", "alphA");
    let flipped = sandbox.run(&["check", &backup]);
    assert_eq!(flipped.code, Some(1));
    assert!(
        flipped.output.contains("a.txt: byte 4 differs"),
        "{}",
        flipped.output
    );

    sandbox.write("kept/agent-1/a.txt", "alph");
    let short = sandbox.run(&["check", &backup]);
    assert_eq!(short.code, Some(1));
    assert!(
        short.output.contains("a.txt: 4 bytes in the backup, 5"),
        "{}",
        short.output
    );

    fs::remove_file(sandbox.path("docs/empty")).unwrap();
    assert_eq!(sandbox.run(&["check", &backup]).code, Some(1));
    assert_eq!(demo(&sandbox).code, Some(0));
    assert_eq!(sandbox.run(&["check", &backup]).code, Some(0));
}

#[test]
fn several_paths_have_a_folder_each() {
    let sandbox = Sandbox::new();
    docs(&sandbox);
    sandbox.write("more/docs/c.txt", "gamma");
    let (one, two, keep) = (
        sandbox.text("docs"),
        sandbox.text("more/docs"),
        sandbox.text("kept"),
    );
    let demo = sandbox.run(&["demo", &one, &two, "--agents", "1", "--keep", &keep]);
    assert_eq!(demo.code, Some(0), "{}{}", demo.output, demo.errors);
    // The bytes of both: a report on the second path once replaced the last one on the first.
    let row = demo
        .output
        .lines()
        .find(|line| line.ends_with("same as source"));
    assert!(row.unwrap().contains("195.3 KiB"), "{}", demo.output);
    assert!(sandbox.path("kept/agent-1/docs/a.txt").is_file());
    assert!(sandbox.path("kept/agent-1/docs-2/c.txt").is_file());
}

#[test]
fn a_backup_that_is_not_good_fails_the_demonstration() {
    let sandbox = Sandbox::new();
    docs(&sandbox);
    sandbox.write("kept/agent-1/thesis.txt", "not a backup");
    let (source, keep) = (sandbox.text("docs"), sandbox.text("kept"));
    let demo = sandbox.run(&["demo", &source, "--agents", "2", "--keep", &keep]);
    assert_eq!(demo.code, Some(1));
    assert!(demo.output.contains("agent-1: `"), "{}", demo.output);
    assert!(demo.output.contains("holds no backup"), "{}", demo.output);
    assert!(has_row(&demo, "agent-2"), "{}", demo.output);
    assert_eq!(
        fs::read(sandbox.path("kept/agent-1/thesis.txt")).unwrap(),
        b"not a backup"
    );
    assert!(sandbox.leftovers().is_empty());
}

#[test]
fn a_destination_inside_the_source_is_refused() {
    let sandbox = Sandbox::new();
    docs(&sandbox);
    let (source, keep) = (sandbox.text("docs"), sandbox.text("docs/kept"));
    let demo = sandbox.run(&["demo", &source, "--agents", "1", "--keep", &keep]);
    assert_eq!(demo.code, Some(1));
    assert!(
        demo.output.contains("lies inside the source"),
        "{}",
        demo.output
    );
    assert!(!sandbox.path("docs/kept").exists());
}

/// How often a demonstration may be too quick to be seen at its work.
const TOO_QUICK: usize = 20;

/// A demonstration in the middle of its work, which `is_there` sees. It looks at its agents ten times a
/// second, and on a busy machine an agent did all of its work between two looks: then another one is
/// started.
fn at_work(
    sandbox: &Sandbox,
    command: impl Fn() -> Command,
    is_there: impl Fn() -> bool,
) -> Running {
    for _ in 0..TOO_QUICK {
        let mut demo = Running::start(sandbox, "demo", command());
        until("an agent is at work, or was", || {
            demo.output().contains("agent-1: running") || demo.has_ended()
        });
        if is_there() && !demo.has_ended() {
            return demo;
        }
        until("it is through", || demo.has_ended());
        assert!(
            demo.output().contains("agent-1: completed"),
            "{}",
            demo.log()
        );
    }
    panic!("no demonstration of {TOO_QUICK} was seen at work");
}

#[test]
fn a_killed_demonstration_leaves_nothing() {
    let sandbox = Sandbox::new();
    let demo = at_work(
        &sandbox,
        || sandbox.command(&["demo", "--agents", "1"]),
        || !sandbox.leftovers().is_empty(),
    );
    demo.kill();
    until("the scratch folder is gone", || {
        sandbox.leftovers().is_empty()
    });
}

#[cfg(target_os = "linux")]
mod interrupted {
    //! Whatever ends the demonstration, its processes and its scratch folder go.

    use rustix::process::{Signal, kill_process};

    use super::*;
    use crate::harness::PROGRAM;

    fn nothing_is_left(sandbox: &Sandbox) {
        until("the scratch folder is gone", || {
            sandbox.leftovers().is_empty()
        });
        until("all processes are gone", || processes_of(sandbox) == 0);
    }

    /// How many processes have the sandbox in their command line. One that has ended and that
    /// nobody waited for has no command line any more.
    fn processes_of(sandbox: &Sandbox) -> usize {
        let scratch = sandbox.temporary();
        let scratch = scratch.to_str().unwrap();
        let command_line = |entry: fs::DirEntry| fs::read_to_string(entry.path().join("cmdline"));
        let lines = fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| command_line(entry.ok()?).ok());
        lines.filter(|line| line.contains(scratch)).count()
    }

    fn after_signal(signal: Signal) -> Finished {
        let sandbox = Sandbox::new();
        // The service, three agents and the janitor.
        let is_there = || processes_of(&sandbox) >= 5;
        let demo = at_work(&sandbox, || sandbox.command(&["demo"]), is_there);
        kill_process(demo.id(), signal).unwrap();
        let finished = demo.wait();
        nothing_is_left(&sandbox);
        finished
    }

    #[test]
    fn ctrl_c_leaves_nothing() {
        let demo = after_signal(Signal::INT);
        assert_eq!(demo.code, Some(130));
        assert!(demo.errors.contains("SIGINT"), "{}", demo.errors);
    }

    #[test]
    fn termination_leaves_nothing() {
        assert_eq!(after_signal(Signal::TERM).code, Some(130));
    }

    #[test]
    fn a_kill_leaves_no_process() {
        assert_eq!(after_signal(Signal::KILL).code, None);
    }

    #[test]
    fn a_killed_parent_leaves_nothing() {
        let sandbox = Sandbox::new();
        let demo_in_a_shell = || {
            let mut shell = Command::new("sh");
            // Not the last command, or the shell would become it.
            shell
                .args(["-c", &format!("{PROGRAM} demo; true")])
                .env("TMPDIR", sandbox.temporary());
            shell
        };
        let shell = at_work(&sandbox, demo_in_a_shell, || processes_of(&sandbox) >= 5);
        kill_process(shell.id(), Signal::KILL).unwrap();
        shell.wait();
        nothing_is_left(&sandbox);
    }
}
