//! The handle of a reconnecting client.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use migration_ipc_protocol::{
    EncodeError, Idempotence, IpcMessage, MessageId, MessagePayload, MessageType, OutboxId,
    RawValue, Timestamp, message_types,
};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::accepting::Letters;
use super::builder::ReconnectingIpcClientBuilder;
use super::large;
use super::log::OutboxReport;
use super::options::{Durability, Policy, SendOptions};
use super::queue::{Awaited, Confidence, Entry, History, Overflow};
use super::sealing::Cover;
use super::shared::Shared;
use super::state::ReconnectState;
use super::stored::{self, Head};
use crate::config::MAX_TIMEOUT;
use crate::connection::{DisconnectReason, IpcConnection, SendError};
use crate::delivery::{Fate, Receipt, receipt};
use crate::dispatch::MessageDispatcher;
use crate::factory;

/// A client that connects again whenever its connection is lost, and keeps what is sent meanwhile.
///
/// Each connection begins with hello and announcement. Then what waits goes out in the order in
/// which it was accepted: messages in memory among themselves, and durable ones within their
/// stream. Every send yields a [`Receipt`].
///
/// * A message in memory that was certainly not sent when a connection ends goes out with the next;
///   one that may have been handled resolves as [`Fate::Unknown`].
/// * A durable message is on disk before `send` returns, and is sent until the service has answered
///   for it, by this process or the next one. A service with a ledger handles it once. To one
///   without, a message that is not [idempotent](MessagePayload::IDEMPOTENCE) goes once at most,
///   and resolves as [`Fate::Unknown`] when the answer is lost.
///
/// ```no_run
/// use migration_ipc::messages::{AgentStarted, BackupCompleted, BackupProgress, UserAction};
/// use migration_ipc::{Backoff, Endpoint, MessageDispatcher, Overflow, ReconnectingIpcClient};
///
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// let client = ReconnectingIpcClient::builder(MessageDispatcher::empty())
///     .endpoint(Endpoint::client_default()?)
///     .announce_with(|| AgentStarted::new("", "1.0.0", "1"))
///     .backoff(Backoff::default().unlimited())
///     .overflow::<BackupProgress>(Overflow::KeepLatest)
///     .start()
///     .await?;
/// let receipt = client.send(UserAction::new("", "opened")).await?;
/// println!("{}", receipt.fate().await);
/// # Ok(()) }
/// ```
///
/// Clones are handles to the same client. When the last one is dropped the client stops in the
/// background, without waiting for what is still to be sent.
#[derive(Debug, Clone)]
pub struct ReconnectingIpcClient {
    handle: Arc<Handle>,
}

#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
    report: Option<OutboxReport>,
    restored: Mutex<Option<mpsc::Receiver<Restored>>>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.request_stop(Instant::now());
    }
}

/// What a client that stopped left behind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Remaining {
    /// Messages in memory that were not sent; their receipts say so.
    pub dropped: usize,
    /// Messages in the outbox that the next run will send.
    pub kept: usize,
}

/// A message that an earlier run accepted, and what became of it. Whether that run had sent it is
/// not known, so [`Fate::Expired`] and [`Fate::Superseded`] do not exclude that it was handled.
#[derive(Debug, Clone)]
pub struct Restored {
    /// The id of the message.
    pub id: MessageId,
    /// What became of it.
    pub fate: Fate,
}

/// What becomes of the messages that earlier runs accepted, in the order in which it is known.
#[derive(Debug)]
pub struct RestoredFates(mpsc::Receiver<Restored>);

impl RestoredFates {
    /// Waits for the next one; `None` once all are told, or the client has stopped. Cancel safe.
    pub async fn recv(&mut self) -> Option<Restored> {
        self.0.recv().await
    }
}

impl ReconnectingIpcClient {
    /// Begins a client whose incoming messages go to this dispatcher.
    pub fn builder(dispatcher: MessageDispatcher) -> ReconnectingIpcClientBuilder {
        ReconnectingIpcClientBuilder::new(dispatcher)
    }

    pub(super) fn new(
        shared: Arc<Shared>,
        report: Option<OutboxReport>,
        restored: mpsc::Receiver<Restored>,
    ) -> Self {
        Self {
            handle: Arc::new(Handle {
                shared,
                report,
                restored: Mutex::new(Some(restored)),
            }),
        }
    }

    fn shared(&self) -> &Shared {
        &self.handle.shared
    }

    // --- what it is ----------------------------------------------------------------------------

    /// Watches where the client is.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<ReconnectState> {
        self.shared().state.subscribe()
    }

    /// Where the client is at this moment.
    #[must_use]
    pub fn current_state(&self) -> ReconnectState {
        self.shared().state.borrow().clone()
    }

    /// The present connection, if there is one. What is sent on it directly is neither queued nor
    /// ordered with what the client sends.
    #[must_use]
    pub fn connection(&self) -> Option<IpcConnection> {
        self.shared().connection.borrow().clone()
    }

    /// Waits until there is a connection. For what is worth nothing later and is not to be kept: a
    /// request whose reply is awaited, or a stream of items. What is sent on it directly is neither
    /// queued nor ordered with what the client sends; when it is lost, whoever sent it is told what is
    /// known of it.
    ///
    /// ```
    /// use std::time::Duration;
    /// use migration_ipc::{ReconnectingIpcClient, Request, RequestError};
    ///
    /// async fn ask<P: Request>(
    ///     client: &ReconnectingIpcClient,
    ///     question: P,
    /// ) -> Result<P::Reply, RequestError> {
    ///     let service = client.connected().await?;
    ///     service.request(question).within(Duration::from_secs(5)).await
    /// }
    /// ```
    ///
    /// It waits for as long as the client tries to connect; a caller with less time puts a timeout
    /// around it. Cancel safe.
    ///
    /// # Errors
    /// [`SendError::GaveUp`] and [`SendError::Closed`] when the client connects no more.
    pub async fn connected(&self) -> Result<IpcConnection, SendError> {
        let mut state = self.state();
        loop {
            match &*state.borrow_and_update() {
                ReconnectState::Connected { .. } => {
                    // One that was just lost is on its way out, and another state follows.
                    if let Some(connection) = self.connection()
                        && !connection.current_state().is_ending()
                    {
                        return Ok(connection);
                    }
                }
                ReconnectState::Connecting { .. } | ReconnectState::Waiting { .. } => {}
                ReconnectState::GaveUp { error } => return Err(SendError::GaveUp(error.clone())),
                ReconnectState::Stopped => return Err(stopped()),
            }
            state.changed().await.map_err(|_| stopped())?;
        }
    }

    /// Messages accepted whose fate is not known, in memory and in the outbox.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        let core = self.shared().lock();
        let kept = core.disk.as_ref().map_or(0, |disk| disk.queue.messages());
        core.memory.messages() + core.large.messages() + kept
    }

    /// What was found in the outbox at the start; `None` without an outbox.
    #[must_use]
    pub fn outbox_report(&self) -> Option<&OutboxReport> {
        self.handle.report.as_ref()
    }

    /// The id of the outbox; `None` without one.
    #[must_use]
    pub fn outbox_id(&self) -> Option<OutboxId> {
        self.handle.report.as_ref().map(|report| report.id)
    }

    /// What becomes of the messages that earlier runs accepted. The first call has them all; later
    /// ones have nothing.
    #[must_use]
    pub fn restored(&self) -> Option<RestoredFates> {
        self.handle
            .restored
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
            .map(RestoredFates)
    }

    // --- sending -------------------------------------------------------------------------------

    /// Sends a message as its type has it: in memory, unless
    /// [`durable`](ReconnectingIpcClientBuilder::durable) was said of the type.
    ///
    /// `Ok` means accepted; the receipt tells the rest. When the queue is full, the type's
    /// [`Overflow`] says what happens.
    ///
    /// Cancel safe in that the message is wholly accepted or wholly absent; of a durable one the
    /// caller that dropped the future does not know which.
    ///
    /// # Errors
    /// [`SendError::Encode`] when no peer would take the message, [`SendError::Full`] when its type
    /// is not to wait, [`SendError::GaveUp`] and [`SendError::Closed`] when the client does not send
    /// any more, [`SendError::NotStored`] when a durable one cannot be kept (a full disk). The
    /// message was not accepted in any of these cases.
    pub async fn send<P: MessagePayload>(&self, payload: P) -> Result<Receipt, SendError> {
        self.send_with(payload, SendOptions::new()).await
    }

    /// As [`send`](Self::send), on disk before this returns.
    ///
    /// # Errors
    /// As [`send`](Self::send), and [`SendError::NoOutbox`].
    pub async fn send_durable<P: MessagePayload>(&self, payload: P) -> Result<Receipt, SendError> {
        self.send_with(payload, SendOptions::new().durable()).await
    }

    /// As [`send`](Self::send), with options for this message.
    ///
    /// # Errors
    /// As [`send`](Self::send), and [`SendError::NoOutbox`].
    pub async fn send_with<P: MessagePayload>(
        &self,
        payload: P,
        options: SendOptions,
    ) -> Result<Receipt, SendError> {
        let policy = self.policy(P::TYPE, &options);
        let (receipt, letter) = self.write(&payload, policy, &options)?;
        drop(payload);
        self.accept(vec![letter], policy).await?;
        Ok(receipt)
    }

    /// Sends many messages of one type: all are accepted, by one sync if they are durable, or none.
    /// They go out one behind the other. At most 8 MiB can be durable together. To a service that
    /// negotiated `batch`, durable ones that are accepted together go out in frames of many; each
    /// receipt resolves when the service has answered its frame.
    ///
    /// # Errors
    /// As [`send_with`](Self::send_with); none was accepted then.
    pub async fn send_batch<P: MessagePayload>(
        &self,
        payloads: impl IntoIterator<Item = P>,
        options: SendOptions,
    ) -> Result<Vec<Receipt>, SendError> {
        let policy = self.policy(P::TYPE, &options);
        let (receipts, letters): (Vec<_>, Letters) = payloads
            .into_iter()
            .map(|payload| self.write(&payload, policy, &options))
            .collect::<Result<Vec<_>, _>>()?
            .into_iter()
            .unzip();
        if !letters.is_empty() {
            self.accept(letters, policy).await?;
        }
        Ok(receipts)
    }

    /// Sends a message that was made before, under its own id and time. What it replied to is not
    /// sent, and its type's [`latest_key`](MessagePayload::latest_key) is not known: under
    /// [`Overflow::KeepLatest`] all of its type have one key. Its payload is taken to be sensitive if
    /// its type is, and the builder was told of that type by its [`MessagePayload`]. One of a type that is not built in is
    /// taken to be not idempotent unless the options say otherwise.
    ///
    /// # Errors
    /// As [`send_with`](Self::send_with).
    pub async fn send_message(
        &self,
        message: IpcMessage,
        options: SendOptions,
    ) -> Result<Receipt, SendError> {
        let policy = self.policy(&message.message_type, &options);
        let (receipt, letter) = self.write_message(&message, policy, &options)?;
        self.accept(vec![letter], policy).await?;
        Ok(receipt)
    }

    /// Sends many messages as [`send_message`](Self::send_message) does: all are accepted, by one
    /// sync if they are durable, or none. They go out one behind the other. At most 8 MiB can be
    /// durable together. If one is of a durable type all are kept on disk; if their types' overflow
    /// differs, they wait for room.
    ///
    /// # Errors
    /// As [`send_with`](Self::send_with); none was accepted then.
    pub async fn send_messages(
        &self,
        messages: Vec<IpcMessage>,
        options: SendOptions,
    ) -> Result<Vec<Receipt>, SendError> {
        let policies = messages
            .iter()
            .map(|message| self.policy(&message.message_type, &options));
        let Some(policy) = policies.reduce(Policy::and) else {
            return Ok(Vec::new());
        };
        let (receipts, letters): (Vec<_>, Letters) = messages
            .iter()
            .map(|message| self.write_message(message, policy, &options))
            .collect::<Result<Vec<_>, _>>()?
            .into_iter()
            .unzip();
        drop(messages);
        self.accept(letters, policy).await?;
        Ok(receipts)
    }

    /// Sends a message that may be longer than a frame (1 MiB), from memory: in pieces, as
    /// [`IpcConnection::send_large`] does. When the connection is lost before all of it was sent, it
    /// goes out with the next one, from where the service says: what has arrived is not sent again if
    /// the service has kept it. It is in no order with other messages. There is no durable one of that
    /// length.
    ///
    /// `Ok` means accepted; the receipt tells the rest, as of every message in memory. What is too
    /// long for the service resolves as [`Fate::NotSent`]. At most 16 such messages, and little more
    /// than 64 MiB of them, wait or are under way at once; this waits for its turn.
    ///
    /// Cancel safe: the message is wholly accepted or wholly absent.
    ///
    /// # Errors
    /// [`SendError::Encode`] when nobody would take the message (it is over 1 GiB),
    /// [`SendError::GaveUp`] and [`SendError::Closed`] when the client does not send any more.
    pub async fn send_large<P: MessagePayload>(&self, payload: P) -> Result<Receipt, SendError> {
        self.shared().sensitive.learn::<P>();
        let (receipt, letter) = large::write(self.shared().clock, &payload)?;
        drop(payload);
        self.shared().accept_large(letter).await?;
        Ok(receipt)
    }

    /// A message as it is kept, and its receipt.
    fn write<P: MessagePayload>(
        &self,
        payload: &P,
        policy: Policy,
        options: &SendOptions,
    ) -> Result<(Receipt, Entry<Vec<u8>>), SendError> {
        self.shared().sensitive.learn::<P>();
        let cover = self.cover(P::TYPE, P::SENSITIVE, policy)?;
        let text = serde_json::value::to_raw_value(payload).map_err(EncodeError::Json)?;
        let (id, timestamp) = factory::stamp(self.shared().clock);
        let head = Head {
            priority: options.priority.unwrap_or(P::PRIORITY),
            sensitive: P::SENSITIVE,
            ..head_of(id, P::TYPE, timestamp, P::IDEMPOTENCE, options)
        };
        let key = match policy.overflow {
            Overflow::KeepLatest => Some(Cow::Owned(payload.latest_key())),
            Overflow::DropOldest => Some(Cow::Borrowed("")),
            Overflow::Wait | Overflow::Reject => None,
        };
        write_down(&Head { key, ..head }, &text, options, cover)
    }

    /// A message that was made before, as it is kept, and its receipt.
    fn write_message(
        &self,
        message: &IpcMessage,
        policy: Policy,
        options: &SendOptions,
    ) -> Result<(Receipt, Entry<Vec<u8>>), SendError> {
        let sensitive = self.shared().policies.of(&message.message_type).sensitive
            || self.shared().sensitive.knows(&message.message_type);
        let cover = self.cover(&message.message_type, sensitive, policy)?;
        let payload = message.payload.as_deref().unwrap_or(RawValue::NULL);
        let head = Head {
            sensitive,
            ..head_of(
                message.id.clone(),
                &message.message_type,
                message.timestamp,
                message_types::idempotence_of(&message.message_type),
                options,
            )
        };
        let key = has_rivals(policy.overflow).then_some(Cow::Borrowed(""));
        write_down(&Head { key, ..head }, payload, options, cover)
    }

    fn cover(
        &self,
        message_type: &str,
        sensitive: bool,
        policy: Policy,
    ) -> Result<Cover<'_>, SendError> {
        self.shared()
            .sealer
            .cover(message_type, sensitive, policy.durability)
            .map_err(SendError::NotStored)
    }

    pub(super) fn policy(&self, message_type: &str, options: &SendOptions) -> Policy {
        let policy = self.shared().policies.of(message_type);
        Policy {
            durability: options.durability.unwrap_or(policy.durability),
            ..policy
        }
    }

    async fn accept(&self, letters: Letters, policy: Policy) -> Result<(), SendError> {
        let Policy {
            durability,
            overflow,
            sensitive: _,
        } = policy;
        match durability {
            Durability::Memory => self.shared().accept_in_memory(letters, overflow).await,
            Durability::Disk => self.shared().accept_on_disk(letters, overflow).await,
        }
    }

    // --- the end -------------------------------------------------------------------------------

    /// Tries to connect again, after the client has given up. Otherwise does nothing.
    pub fn retry(&self) {
        self.shared().request_retry();
    }

    /// Stops the client: it takes no more messages, sends what waits until `timeout` is over, if it
    /// is connected or just connecting, and then closes its connection as [`IpcConnection::close`]
    /// does, which has a time of its own. What is left in memory resolves as [`Fate::NotSent`]; what
    /// is left in the outbox stays there.
    ///
    /// Cancel safe: the client stops all the same.
    pub async fn stop(&self, timeout: Duration) -> Remaining {
        self.shared()
            .request_stop(Instant::now() + timeout.min(MAX_TIMEOUT));
        *self.shared().stopped.wait().await
    }
}

fn stopped() -> SendError {
    SendError::Closed(DisconnectReason::Stopped)
}

// --- writing a message -----------------------------------------------------------------------

fn head_of<'a>(
    id: MessageId,
    message_type: &'a str,
    timestamp: Timestamp,
    idempotence: Idempotence,
    options: &'a SendOptions,
) -> Head<'a> {
    let live = options.time_to_live.map(|time| time.min(MAX_TIMEOUT));
    Head {
        id,
        message_type: Cow::Borrowed(message_type),
        timestamp,
        stream: options.stream.as_ref().map(|stream| stream.as_str().into()),
        expires: live.map(|live| timestamp + live),
        idempotent: stored::is_idempotent(options.idempotence.unwrap_or(idempotence)),
        priority: options.priority.unwrap_or_default(),
        key: None,
        sensitive: false,
        sealed: None,
    }
}

pub(super) fn has_rivals(overflow: Overflow) -> bool {
    match overflow {
        Overflow::DropOldest | Overflow::KeepLatest => true,
        Overflow::Wait | Overflow::Reject => false,
    }
}

fn write_down(
    head: &Head<'_>,
    payload: &RawValue,
    options: &SendOptions,
    cover: Cover<'_>,
) -> Result<(Receipt, Entry<Vec<u8>>), SendError> {
    let record = match cover {
        Cover::None => stored::message(head, payload)?,
        Cover::Sealed(with) => stored::sealed_message(head, payload, with)?,
    };
    let (receipt, resolver) = receipt(head.id.clone());
    let live = options.time_to_live.map(|time| time.min(MAX_TIMEOUT));
    let entry = Entry {
        // A record is little more than a frame, which has a limit.
        bytes: u32::try_from(record.len()).unwrap_or(u32::MAX),
        body: record,
        stream: options.stream.clone(),
        rivals: head
            .key
            .as_deref()
            .map(|key| Box::new((MessageType::new(&head.message_type), key.into()))),
        expires: live.map(|live| Instant::now() + live),
        awaited: Awaited::Receipt(resolver),
        history: History {
            idempotent: head.idempotent,
            confidence: Confidence::of(head.sensitive),
            ..History::default()
        },
        company: None,
    };
    Ok((receipt, entry))
}
