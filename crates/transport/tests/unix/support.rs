//! Scratch folders, bounded waits, and other processes.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Lines};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::Duration;

use migration_ipc_transport::{
    BindError, BindOptions, ConnectError, Endpoint, Listener, Stream, bind, connect,
};
use rustix::process::geteuid;
use tempfile::TempDir;

/// How long anything here may take before it counts as stuck.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) const ALICE: u32 = 60_001;
/// Over the limit of a signed number.
pub(crate) const BOB: u32 = 4_294_967_290;

pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .expect("not stuck")
}

/// A folder of its own for one test, in a place that every user can reach.
pub(crate) struct Scratch(TempDir);

impl Scratch {
    pub(crate) fn new() -> Self {
        let scratch = Self(TempDir::with_prefix("mig-").expect("a scratch folder"));
        set_mode(scratch.path(), 0o755);
        scratch
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        endpoint(&self.join("s.sock"))
    }

    pub(crate) fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path()).expect("readable");
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }
}

pub(crate) fn endpoint(path: &Path) -> Endpoint {
    Endpoint::parse(path.to_str().expect("UTF-8")).expect("an endpoint")
}

pub(crate) async fn serve(endpoint: &Endpoint) -> Result<Box<dyn Listener>, BindError> {
    within(bind(endpoint, &BindOptions::new())).await
}

pub(crate) async fn reach(endpoint: &Endpoint) -> Result<Box<dyn Stream>, ConnectError> {
    connect(endpoint, PATIENCE).await
}

pub(crate) fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("chmod");
}

pub(crate) fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).expect("there").mode() & 0o7777
}

pub(crate) fn give_to(path: &Path, uid: u32) {
    chown(path, Some(uid), Some(uid)).expect("chown");
}

/// A socket that nobody listens on, as a killed service leaves it.
pub(crate) fn leave_stale_socket(endpoint: &Endpoint) {
    drop(std::os::unix::net::UnixListener::bind(endpoint.address()).expect("bound"));
}

/// Whether other users can be played here. Says so if not: a test that was skipped shows nothing.
pub(crate) fn is_root() -> bool {
    let root = geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: only root can start processes of other users");
    }
    root
}

/// A process of this test program that plays a role of [`crate::children`]. It is killed at the end.
pub(crate) struct Player {
    process: Child,
    said: Lines<BufReader<ChildStderr>>,
}

impl Player {
    pub(crate) fn start(role: &str, endpoint: &str, configure: impl FnOnce(&mut Command)) -> Self {
        // On Linux a name that any user can follow, wherever the program lies.
        let program = if cfg!(target_os = "linux") {
            PathBuf::from("/proc/self/exe")
        } else {
            std::env::current_exe().expect("this program")
        };
        let mut command = Command::new(program);
        command
            .args(["children::play", "--exact", "--ignored", "--nocapture"])
            .env("MIG_TEST_ROLE", role)
            .env("MIG_TEST_ENDPOINT", endpoint)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        configure(&mut command);
        Self::spawn(command)
    }

    /// One that got a descriptor as its third, as the service manager passes sockets
    /// (sd_listen_fds(3)); `listen` sets the variables that say so.
    #[cfg(target_os = "linux")]
    pub(crate) fn start_with(
        passed: impl Into<std::os::fd::OwnedFd>,
        listen: &str,
        role: &str,
        endpoint: &Endpoint,
    ) -> Self {
        let script = format!("export {listen}; exec \"$0\" \"$@\" 3<&0 </dev/null");
        let mut command = Command::new("sh");
        command
            .args(["-c", &script])
            .arg(std::env::current_exe().expect("this program"))
            .args(["children::play", "--exact", "--ignored", "--nocapture"])
            .env("MIG_TEST_ROLE", role)
            .env("MIG_TEST_ENDPOINT", endpoint.to_string())
            .stdin(passed.into())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        Self::spawn(command)
    }

    fn spawn(mut command: Command) -> Self {
        let mut process = command.spawn().expect("started");
        let said = BufReader::new(process.stderr.take().expect("piped")).lines();
        Self { process, said }
    }

    pub(crate) fn start_as(uid: u32, role: &str, endpoint: &Endpoint) -> Self {
        Self::start(role, &endpoint.to_string(), |command| {
            command.uid(uid).gid(uid);
        })
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// The next line that it said; it must say one.
    pub(crate) fn line(&mut self) -> String {
        self.said
            .next()
            .expect("it says something")
            .expect("in UTF-8")
    }
}

impl Drop for Player {
    fn drop(&mut self) {
        let _already_gone = self.process.kill();
        self.process.wait().expect("reaped");
    }
}
