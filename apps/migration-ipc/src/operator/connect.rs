//! An operator's connection to the service.

use std::time::Duration;

use migration_ipc::transport::ConnectError as TransportError;
use migration_ipc::{
    ConnectError, DisconnectReason, Encryption, Endpoint, IpcClient, MessageDispatcher, Request,
    RequestError, Role, SendError, ServiceKind, Trust,
};

use crate::address::Address;
use crate::cli::{Exit, Failure};
use crate::encrypting::connection_config;

/// How long a service that is there may take to answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long it may take to answer the hello. One of the older kind says at once that it does not know
/// what that is; one that is silent for longer is of no use to an operator either.
const HELLO_TIMEOUT: Duration = Duration::from_secs(8);

/// How long the service may take to answer a request. The longest is to handle a message once more,
/// which may wait for its store.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Connects as an operator to the service at an address.
pub(crate) async fn connect(address: &Address) -> Result<IpcClient, Failure> {
    let trust = address.owner.trust().await?;
    let encryption = address.encrypting.load().await?;
    connect_to(&address.endpoint()?, trust, encryption).await
}

/// Connects as an operator.
pub(crate) async fn connect_to(
    endpoint: &Endpoint,
    trust: Trust,
    encryption: Option<Encryption>,
) -> Result<IpcClient, Failure> {
    let mut config = encryption
        .as_ref()
        .map(connection_config)
        .unwrap_or_default();
    config.timeouts.hello = HELLO_TIMEOUT;
    let mut builder = IpcClient::builder(MessageDispatcher::empty())
        .endpoint(endpoint.for_operators())
        .trust(trust)
        .role(Role::Operator)
        .connect_timeout(CONNECT_TIMEOUT)
        .connection_config(config);
    if let Some(encryption) = encryption {
        builder = builder.encryption(encryption);
    }
    let client = builder.connect().await.map_err(failure)?;
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
        | ConnectError::Ended(DisconnectReason::Refused(_) | DisconnectReason::NotEncrypted(_)) => {
            Exit::Refused
        }
        _ => Exit::CannotConnect,
    };
    Failure {
        exit,
        error: error.into(),
    }
}

/// Sends a request and returns the service's reply.
pub(crate) async fn ask<R: Request>(client: &IpcClient, request: R) -> Result<R::Reply, Failure> {
    let reply = client.request(request).within(ANSWER_TIMEOUT).await;
    reply.map_err(|error| {
        let exit = match &error {
            RequestError::Rejected(_) => Exit::Refused,
            RequestError::Unknown(_) | RequestError::NotSent(SendError::Closed(_)) => {
                Exit::Disconnected
            }
            _ => Exit::Failed,
        };
        Failure {
            exit,
            error: error.into(),
        }
    })
}
