//! What the service says, as one stream.

use migration_ipc::messages::{
    BackupRequest, ConfigurationUpdate, EscalationNotice, ShutdownRequest, StatusUpdate,
};
use migration_ipc::{
    DispatcherError, HandlerError, IpcMessage, MessageDispatcher, MessagePayload, State,
};
use tokio::sync::mpsc;

use crate::service_message::{NotAServiceMessage, ServiceMessage};

/// How many messages wait for the agent; the connection's reading waits beyond it.
const CAPACITY: usize = 64;

type Sender = mpsc::Sender<ServiceMessage>;

/// A dispatcher whose handlers pass every message of the service on.
pub(crate) fn open() -> Result<(MessageDispatcher, mpsc::Receiver<ServiceMessage>), DispatcherError>
{
    let (sender, messages) = mpsc::channel(CAPACITY);
    let dispatcher = MessageDispatcher::builder(sender)
        .handle(pass_on::<BackupRequest>)
        .handle(pass_on::<StatusUpdate>)
        .handle(pass_on::<EscalationNotice>)
        .handle(pass_on::<ConfigurationUpdate>)
        .handle(pass_on::<ShutdownRequest>)
        .build()?;
    Ok((dispatcher, messages))
}

async fn pass_on<P>(payload: P, State(inbox): State<Sender>) -> Result<(), HandlerError>
where
    P: MessagePayload + Into<ServiceMessage>,
{
    let stopping = |_| HandlerError::new("the agent is exiting");
    inbox.send(payload.into()).await.map_err(stopping)
}

/// A reply of the service as the message that it is.
pub(crate) fn read_reply(reply: &IpcMessage) -> Result<ServiceMessage, NotAServiceMessage> {
    let payload = reply
        .payload
        .as_ref()
        .map(|payload| serde_json::from_str(payload.get()));
    let payload = payload.and_then(Result::ok).unwrap_or_default();
    ServiceMessage::parse(&reply.message_type, &payload)
}
