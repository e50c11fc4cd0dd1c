//! What can be shown on Linux only: full queues (elsewhere they look like no service), and the
//! descriptors of another process.

use std::collections::BTreeSet;
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
