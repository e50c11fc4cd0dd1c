//! An operator's connection to the service.

use std::time::Duration;

use migration_ipc::transport::ConnectError as TransportError;
use migration_ipc::{
    Answer, ConnectError, DisconnectReason, Endpoint, IpcClient, MessageDispatcher, MessagePayload,
    Role, SendError, ServiceKind, Trust,
};

use crate::address::Address;
use crate::cli::{Exit, Failure};

/// How long a service that is there may take to answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Connects as an operator to the service at an address.
pub(crate) async fn connect(address: &Address) -> Result<IpcClient, Failure> {
    let trust = address.owner.trust().await?;
    connect_to(&address.endpoint()?, trust).await
}

/// Connects as an operator.
pub(crate) async fn connect_to(endpoint: &Endpoint, trust: Trust) -> Result<IpcClient, Failure> {
    let connecting = IpcClient::builder(MessageDispatcher::empty())
        .endpoint(endpoint.for_operators())
        .trust(trust)
        .role(Role::Operator)
        .connect_timeout(CONNECT_TIMEOUT)
        .connect();
    let client = connecting.await.map_err(failure)?;
    match client.service_kind() {
        ServiceKind::New(_) => Ok(client),
        ServiceKind::Plain => Err(Failure::new(
            Exit::Refused,
            "the service does not know operators; it may be of the older kind",
        )),
    }
}

/// What an error while connecting means to scripts.
fn failure(error: ConnectError) -> Failure {
    let exit = match &error {
        ConnectError::Transport(TransportError::Denied { .. })
        | ConnectError::Ended(DisconnectReason::Refused(_)) => Exit::Refused,
        _ => Exit::CannotConnect,
    };
    Failure {
        exit,
        error: error.into(),
    }
}

/// Sends a request and returns the service's reply.
pub(crate) async fn ask<R: MessagePayload>(
    client: &IpcClient,
    request: impl MessagePayload,
) -> Result<R, Failure> {
    match client.send_acknowledged(request).await {
        Ok(Answer::Replied(reply)) => Ok(reply.payload()?),
        Ok(Answer::Handled) => Err(Failure::new(Exit::Failed, "the service gave no answer")),
        Err(error) => {
            let exit = match &error {
                SendError::Rejected(_) => Exit::Refused,
                SendError::Closed(_) | SendError::Lost(_) => Exit::Disconnected,
                _ => Exit::Failed,
            };
            Err(Failure {
                exit,
                error: error.into(),
            })
        }
    }
}
