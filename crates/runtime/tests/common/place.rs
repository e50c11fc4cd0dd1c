//! Endpoints of the operating system.

use std::sync::atomic::{AtomicU32, Ordering};

use std::time::Duration;

use migration_ipc::transport::{ConnectError, ConnectOptions, Stream, connect_with};
use migration_ipc::{BindOptions, Endpoint, ServiceMode, Trust};

/// A place for a service of its own: no other test, and no other process, has the same.
pub(crate) struct Place {
    endpoint: Endpoint,
    /// Removed in the end.
    #[cfg(unix)]
    folder: tempfile::TempDir,
}

impl Place {
    #[cfg(unix)]
    pub(crate) fn new(name: &str) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("mig-")
            .tempdir()
            .expect("a scratch folder");
        let path = folder.path().join(format!("{name}-{}.sock", number()));
        let endpoint = Endpoint::parse(path.to_str().expect("UTF-8")).expect("a short path");
        Self { endpoint, folder }
    }

    #[cfg(windows)]
    pub(crate) fn new(name: &str) -> Self {
        let name = format!("mig-{name}-{}-{}", std::process::id(), number());
        let endpoint = Endpoint::parse(&name).expect("a short name");
        Self { endpoint }
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        self.endpoint.clone()
    }

    /// Connects as a client does that knows whose service it is.
    pub(crate) async fn open(&self, limit: Duration) -> Result<Box<dyn Stream>, ConnectError> {
        let options = ConnectOptions::new().trust(Trust::OwnAccount);
        connect_with(&self.endpoint, limit, &options).await
    }

    #[cfg(unix)]
    pub(crate) fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }
}

fn number() -> u32 {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    NUMBER.fetch_add(1, Ordering::Relaxed)
}

/// Tests serve as whoever runs them.
pub(crate) fn development() -> BindOptions {
    BindOptions::new().mode(ServiceMode::Development)
}

/// A process has 1,024 file descriptors on many systems unless it asks for more.
#[cfg(unix)]
pub(crate) fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let wanted = 4096;
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= wanted) {
        return;
    }
    let raised = Rlimit {
        current: Some(limit.maximum.map_or(wanted, |maximum| maximum.min(wanted))),
        ..limit
    };
    setrlimit(Resource::Nofile, raised).unwrap();
}

#[cfg(windows)]
pub(crate) fn raise_file_limit() {}
