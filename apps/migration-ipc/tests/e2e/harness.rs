//! Sandboxes, and processes that do not outlive their test.

use std::fmt::Display;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long anything may take; generous, because a program takes its time to start under Wine.
const PATIENCE: Duration = Duration::from_secs(120);

/// How often a condition is looked at.
const GLANCE: Duration = Duration::from_millis(20);

/// The program under test.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_migration-ipc");

/// Waits for a condition, and fails the test if it does not come true.
#[track_caller]
pub(crate) fn until(what: &str, condition: impl FnMut() -> bool) {
    until_seen(what, GLANCE, condition);
}

/// The same with another pause between two looks, for what must not be seen late.
#[track_caller]
pub(crate) fn until_seen(what: &str, glance: Duration, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(
            Instant::now() < deadline,
            "this did not come true in time: {what}"
        );
        thread::park_timeout(glance);
    }
}

/// The seed of a test with random choices: `MIGRATION_IPC_SEED`, or a new one. A test prints it, so
/// that it can be run again.
pub(crate) fn seed() -> u64 {
    match std::env::var("MIGRATION_IPC_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => fastrand::u64(..),
    }
}

/// Prints past the capture of output, which would hide what a test that passes has to say.
pub(crate) fn report(text: impl Display) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// A folder, an endpoint and a temporary directory of one test.
pub(crate) struct Sandbox {
    folder: tempfile::TempDir,
}

impl Sandbox {
    pub(crate) fn new() -> Self {
        // Not where the environment says: a socket's path must be short.
        let folder = if cfg!(unix) {
            tempfile::tempdir_in("/tmp")
        } else {
            tempfile::tempdir()
        };
        let sandbox = Self {
            folder: folder.unwrap(),
        };
        fs::create_dir(sandbox.temporary()).unwrap();
        sandbox
    }

    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.folder.path().join(relative)
    }

    /// A path as an argument.
    pub(crate) fn text(&self, relative: &str) -> String {
        self.path(relative).to_str().unwrap().to_owned()
    }

    pub(crate) fn write(&self, relative: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(relative);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    /// The temporary directory of the sandbox's processes.
    pub(crate) fn temporary(&self) -> PathBuf {
        self.path("t")
    }

    pub(crate) fn leftovers(&self) -> Vec<PathBuf> {
        fs::read_dir(self.temporary())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect()
    }

    pub(crate) fn endpoint(&self) -> String {
        if cfg!(windows) {
            let name = self.folder.path().file_name().unwrap().to_str().unwrap();
            format!("migration-ipc-test-{}", name.trim_start_matches('.'))
        } else {
            self.text("service.sock")
        }
    }

    /// The program with this sandbox as its world.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.args(arguments).stdin(Stdio::null());
        // The services of the tests are in development mode.
        if cfg!(windows) && connects(arguments) {
            command.args(["--trust-owner", "self"]);
        }
        for variable in ["TMPDIR", "TMP", "TEMP"] {
            command.env(variable, self.temporary());
        }
        for variable in ["HOME", "USERPROFILE", "LOCALAPPDATA"] {
            command.env(variable, self.folder.path());
        }
        for variable in [
            "XDG_DATA_HOME",
            "XDG_STATE_HOME",
            "XDG_RUNTIME_DIR",
            "XDG_SESSION_ID",
        ] {
            command.env_remove(variable);
        }
        command
    }

    /// Runs the program to its end.
    #[track_caller]
    pub(crate) fn run(&self, arguments: &[&str]) -> Finished {
        let name = format!("run-{:?}", thread::current().id());
        Running::start(self, &name, self.command(arguments)).wait()
    }

    /// A service that serves, until it is stopped or dropped.
    #[track_caller]
    pub(crate) fn service(&self, arguments: &[&str]) -> Running {
        let (endpoint, data) = (self.endpoint(), self.text("service-data"));
        let mut all = vec!["service", "--development"];
        all.extend(["--endpoint", &endpoint, "--data-dir", &data]);
        all.extend(arguments);
        self.start_service(&all)
    }

    /// A service with these arguments and no others, that serves.
    #[track_caller]
    pub(crate) fn start_service(&self, arguments: &[&str]) -> Running {
        let endpoint = self.endpoint();
        let mut status = vec!["status", "--endpoint", &endpoint];
        // A service that requires encryption says nothing to others.
        if arguments.contains(&"--require-encryption") {
            let key = arguments.windows(2).find(|pair| pair[0] == "--key-file");
            status.extend(key.unwrap());
            status.push("--require-encryption");
        }
        let mut service = Running::start(self, "service", self.lifeline(arguments));
        until("the service answers", || {
            assert!(!service.has_ended(), "{}", service.log());
            self.run(&status).code == Some(0)
        });
        service
    }

    /// An agent that backs up the sandbox's folder `docs`.
    pub(crate) fn agent(&self, session: &str, arguments: &[&str]) -> Running {
        Running::start(
            self,
            session,
            self.lifeline(&self.agent_arguments(session, arguments)),
        )
    }

    /// Some arguments that every agent here needs, and then others.
    pub(crate) fn agent_arguments(&self, session: &str, arguments: &[&str]) -> Vec<String> {
        let docs = format!("files={}", self.text("docs"));
        let backups = self.text("backups");
        let mut all = vec!["agent".to_owned()];
        for (flag, value) in [
            ("--endpoint", self.endpoint().as_str()),
            ("--session", session),
            ("--backup-folder", session),
            ("--backup-root", &backups),
            ("--category", &docs),
        ] {
            all.extend([flag.to_owned(), value.to_owned()]);
        }
        all.extend(arguments.iter().map(|&argument| argument.to_owned()));
        all
    }

    /// A command that ends when its test does.
    fn lifeline<S: AsRef<str>>(&self, arguments: &[S]) -> Command {
        let arguments: Vec<&str> = arguments.iter().map(AsRef::as_ref).collect();
        let mut command = self.command(&arguments);
        command.arg("--until-stdin-ends").stdin(Stdio::piped());
        command
    }

    /// What `status --json` says.
    #[track_caller]
    pub(crate) fn status(&self) -> Value {
        self.status_with(&[])
    }

    /// The same with further arguments.
    #[track_caller]
    pub(crate) fn status_with(&self, arguments: &[&str]) -> Value {
        let endpoint = self.endpoint();
        let mut all = vec!["status", "--json", "--endpoint", &endpoint];
        all.extend(arguments);
        let status = self.run(&all);
        assert_eq!(status.code, Some(0), "{}", status.errors);
        serde_json::from_str(&status.output).unwrap()
    }

    /// The user of an announced session, as `status --json` has it.
    pub(crate) fn user(&self, session: &str) -> Option<Value> {
        let status = self.status();
        let is_session =
            |user: &&Value| user["user"].as_str().unwrap().split('/').nth(1) == Some(session);
        status["users"]
            .as_array()
            .unwrap()
            .iter()
            .find(is_session)
            .cloned()
    }

    #[track_caller]
    pub(crate) fn until_state(&self, session: &str, state: &str) {
        until(&format!("{session} is {state}"), || {
            self.user(session)
                .is_some_and(|user| user["state"] == state)
        });
    }

    #[track_caller]
    pub(crate) fn send(&self, arguments: &[&str]) -> Finished {
        let endpoint = self.endpoint();
        let mut all = vec!["send", "--endpoint", &endpoint];
        all.extend(arguments);
        self.run(&all)
    }
}

/// Whether a command is one that connects to a service.
fn connects(arguments: &[&str]) -> bool {
    const COMMANDS: [&str; 7] = [
        "agent",
        "publish",
        "status",
        "send",
        "journal",
        "mail",
        "dead-letters",
    ];
    arguments
        .first()
        .is_some_and(|command| COMMANDS.contains(command))
}

/// What a process said, and how it ended.
pub(crate) struct Finished {
    pub(crate) code: Option<i32>,
    pub(crate) output: String,
    pub(crate) errors: String,
}

/// A process that is killed with its test.
pub(crate) struct Running {
    child: Child,
    output: PathBuf,
    errors: PathBuf,
}

impl Running {
    #[track_caller]
    pub(crate) fn start(sandbox: &Sandbox, name: &str, command: Command) -> Self {
        let output = File::create(sandbox.path(&format!("{name}.out"))).unwrap();
        Self::start_at(sandbox, name, command, output)
    }

    /// The same with another place for what it prints.
    #[track_caller]
    pub(crate) fn start_at(
        sandbox: &Sandbox,
        name: &str,
        mut command: Command,
        place: File,
    ) -> Self {
        let output = sandbox.path(&format!("{name}.out"));
        let errors = sandbox.path(&format!("{name}.err"));
        command.stdout(place).stderr(File::create(&errors).unwrap());
        Self {
            child: command.spawn().unwrap(),
            output,
            errors,
        }
    }

    #[cfg(unix)]
    pub(crate) fn id(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.child)
    }

    /// Its standard input, if that is a pipe and was not taken before.
    pub(crate) fn stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    pub(crate) fn output(&self) -> String {
        read(&self.output)
    }

    pub(crate) fn log(&self) -> String {
        read(&self.errors)
    }

    #[track_caller]
    pub(crate) fn until_output(&self, text: &str) {
        until(&format!("it prints `{text}`"), || {
            self.output().contains(text)
        });
    }

    /// Waits for its end.
    #[track_caller]
    pub(crate) fn wait(mut self) -> Finished {
        let mut status: Option<ExitStatus> = None;
        until("the process ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        let code = status.and_then(|status| status.code());
        Finished {
            code,
            output: self.output(),
            errors: self.log(),
        }
    }

    /// Ends it without giving it a chance to do anything about that.
    #[track_caller]
    pub(crate) fn kill(mut self) {
        self.kill_now();
    }

    /// The same, and its output can still be read.
    #[track_caller]
    pub(crate) fn kill_now(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Cuts its lifeline and waits for its end.
    #[track_caller]
    pub(crate) fn stop(mut self) -> Finished {
        drop(self.child.stdin.take());
        self.wait()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has usually ended before.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            // Their folder may be gone before them.
            let said = [&self.output, &self.errors].map(|path| fs::read(path).unwrap_or_default());
            report(format_args!(
                "what `{}` had to say:\n{}",
                self.output.display(),
                String::from_utf8_lossy(&said.concat())
            ));
        }
    }
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned()
}
