//! A client's errors, and its check of the server.

use std::os::unix::net::UnixStream as StdStream;
use std::time::Duration;

use migration_ipc_transport::{ConnectError, Endpoint, connect};
use tokio::net::UnixSocket;

use crate::support::{Scratch, leave_stale_socket, reach, within};

/// A listener with as many clients as it lets wait.
pub(crate) fn full_queue(endpoint: &Endpoint) -> (tokio::net::UnixListener, Vec<StdStream>) {
    let socket = UnixSocket::new_stream().unwrap();
    socket.bind(endpoint.address()).unwrap();
    // Linux lets one more wait than it is told.
    let listener = socket.listen(0).unwrap();
    (
        listener,
        vec![StdStream::connect(endpoint.address()).unwrap()],
    )
}

#[tokio::test]
async fn nobody_there_is_an_error_at_once() {
    let scratch = Scratch::new();
    let endpoint = scratch.endpoint();
    let error = reach(&endpoint).await.unwrap_err();
    assert!(
        matches!(error, ConnectError::NotRunning { .. }),
        "no socket: {error:?}"
    );
    let text = error.to_string();
    assert!(
        text.starts_with(&format!("no service is running at {endpoint}; ")),
        "{text}"
    );
    leave_stale_socket(&endpoint);
    let error = reach(&endpoint).await.unwrap_err();
    assert!(
        matches!(error, ConnectError::NotRunning { .. }),
        "a stale one: {error:?}"
    );
}

#[cfg(target_os = "linux")]
#[tokio::test(start_paused = true)]
async fn a_full_queue_is_waited_for_until_the_time_is_over() {
    let scratch = Scratch::new();
    let endpoint = scratch.endpoint();
    let (_listener, _clients) = full_queue(&endpoint);
    let limit = Duration::from_secs(5);
    let begun = tokio::time::Instant::now();
    let error = connect(&endpoint, limit).await.unwrap_err();
    assert!(matches!(error, ConnectError::TimedOut { .. }), "{error:?}");
    assert_eq!(begun.elapsed(), limit);
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_full_queue_that_moves_lets_the_client_in() {
    let scratch = Scratch::new();
    let endpoint = scratch.endpoint();
    let (listener, _clients) = full_queue(&endpoint);
    let waiting = tokio::spawn({
        let endpoint = endpoint.clone();
        async move { reach(&endpoint).await }
    });
    within(listener.accept()).await.unwrap();
    within(listener.accept()).await.unwrap();
    within(waiting).await.unwrap().unwrap();
}
