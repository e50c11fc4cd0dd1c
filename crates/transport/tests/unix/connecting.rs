//! A client's errors.

use migration_ipc_transport::ConnectError;

use crate::support::{Scratch, leave_stale_socket, reach};

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
