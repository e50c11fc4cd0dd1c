//! What can be shown on Linux only: full queues (elsewhere they look like no service), and the
//! descriptors of another process.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::net::UnixStream as StdStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use migration_ipc_transport::{BindError, ConnectError, Endpoint, connect};
use tokio::net::{UnixListener, UnixSocket};

use crate::support::{Scratch, reach, serve, within};

/// A listener with as many clients as it lets wait.
fn full_queue(endpoint: &Endpoint) -> (UnixListener, StdStream) {
    let socket = UnixSocket::new_stream().unwrap();
    socket.bind(endpoint.address()).unwrap();
    // One more may wait than is said here.
    let listener = socket.listen(0).unwrap();
    (listener, StdStream::connect(endpoint.address()).unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_is_waited_for_until_the_time_is_over() {
    let scratch = Scratch::new();
    let endpoint = scratch.endpoint();
    let _full = full_queue(&endpoint);
    let limit = Duration::from_secs(5);
    let begun = tokio::time::Instant::now();
    let error = connect(&endpoint, limit).await.unwrap_err();
    assert!(matches!(error, ConnectError::TimedOut { .. }), "{error:?}");
    assert_eq!(begun.elapsed(), limit);
}

#[tokio::test]
async fn a_full_queue_that_moves_lets_the_client_in() {
    let scratch = Scratch::new();
    let endpoint = scratch.endpoint();
    let (listener, _client) = full_queue(&endpoint);
    let waiting = tokio::spawn({
        let endpoint = endpoint.clone();
        async move { reach(&endpoint).await }
    });
    within(listener.accept()).await.unwrap();
    within(listener.accept()).await.unwrap();
    within(waiting).await.unwrap().unwrap();
}

/// The attempt to connect fails, but not for want of a service.
#[tokio::test]
async fn a_live_service_with_a_full_queue_is_noticed() {
    let scratch = Scratch::new();
    let endpoint = scratch.endpoint();
    let _full = full_queue(&endpoint);
    let error = serve(&endpoint).await.unwrap_err();
    assert!(
        matches!(error, BindError::InUse { holder: None, .. }),
        "{error:?}"
    );
}

/// A program that the service starts must not inherit its connections.
#[tokio::test]
async fn every_descriptor_is_closed_on_exec() {
    fn inherited() -> BTreeSet<String> {
        let mut list = Command::new("ls");
        list.args(["-l", "/proc/self/fd"]).stdin(Stdio::null());
        let output = String::from_utf8(list.output().unwrap().stdout).unwrap();
        let targets = output.lines().filter_map(|line| line.split_once(" -> "));
        let targets = targets.map(|(_descriptor, target)| target.to_owned());
        targets
            .filter(|target| target.starts_with("socket:") || target.contains(".sock"))
            .collect()
    }
    let before = inherited();
    let scratch = Scratch::new();
    let endpoint = scratch.endpoint();
    let mut listener = serve(&endpoint).await.unwrap();
    let _client = reach(&endpoint).await.unwrap();
    let _server = within(listener.accept()).await.unwrap();
    assert_eq!(inherited(), before);
}

/// A handle of each client's process is asked for and closed again: thousands of clients must not
/// cost thousands of descriptors more.
#[tokio::test]
async fn no_handle_of_a_clients_process_is_kept() {
    const CLIENTS: usize = 200;
    let scratch = Scratch::new();
    let endpoint = scratch.endpoint();
    let mut listener = serve(&endpoint).await.unwrap();
    let mut streams = Vec::new();
    for _ in 0..CLIENTS {
        streams.push(reach(&endpoint).await.unwrap());
        let server = within(listener.accept()).await.unwrap();
        let peer = server.identify().await.unwrap();
        assert_eq!(peer.process_id(), Some(std::process::id()));
        streams.push(server);
    }
    let descriptors = fs::read_dir("/proc/self/fd").unwrap();
    let targets = descriptors.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
    let handles = targets.filter(|target| target.to_string_lossy().contains("pidfd"));
    // Other tests of this program accept clients at the same time.
    let handles = handles.count();
    assert!(handles < CLIENTS / 4, "{handles} of {}", streams.len());
}

/// Sockets of the abstract name space have no mode: everybody may connect to them.
#[tokio::test]
async fn no_socket_has_an_abstract_name() {
    let scratch = Scratch::new();
    let endpoint = scratch.endpoint();
    let mut listener = serve(&endpoint).await.unwrap();
    let _client = reach(&endpoint).await.unwrap();
    let _server = within(listener.accept()).await.unwrap();

    let descriptors = fs::read_dir("/proc/self/fd").unwrap();
    let own: BTreeSet<String> = descriptors
        .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
        .filter_map(|target| {
            let target = target.to_str()?.strip_prefix("socket:[")?;
            Some(target.strip_suffix(']')?.to_owned())
        })
        .collect();
    let table = fs::read_to_string("/proc/net/unix").unwrap();
    let mut paths = Vec::new();
    for line in table.lines().skip(1) {
        // Num RefCount Protocol Flags Type St Inode Path (proc(5)).
        let mut columns = line.split_whitespace().skip(6);
        if columns.next().is_some_and(|inode| own.contains(inode)) {
            paths.extend(columns.next().map(str::to_owned));
        }
    }
    assert!(paths.contains(&endpoint.to_string()), "{paths:?}");
    assert!(!paths.iter().any(|path| path.starts_with('@')), "{paths:?}");
}
