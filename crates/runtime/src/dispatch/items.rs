//! The items of a streaming reply, at the side of the handler.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use migration_ipc_protocol::{
    EncodeError, EnvelopeHead, MessageId, MessagePayload, MessageSerializer,
};
use thiserror::Error;

use super::asked::Asked;
use super::context::{FromContext, HandlerContext};
use crate::connection::{DisconnectReason, IpcConnection, ItemRefused, with_scratch};
use crate::factory;

/// Sends the items of a streaming reply. What the handler returns is the answer behind them.
///
/// An item waits until the peer takes one: it grants so many as it reads. So a reader that is slow
/// slows its handler down, and nobody holds more than was granted.
///
/// ```
/// use migration_ipc::messages::{Category, Percent, UserId};
/// use migration_ipc::{HandlerError, Items, MessagePayload, Reply, Sender, StreamingRequest};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Debug, Serialize, Deserialize)]
/// struct ListFiles { folder: String }
/// #[derive(Debug, Serialize, Deserialize)]
/// struct FileName { name: String }
/// #[derive(Debug, Serialize, Deserialize)]
/// struct FileCount { files: u32 }
///
/// impl MessagePayload for ListFiles {
///     const TYPE: &'static str = "LIST_FILES";
///     const SENDER: Sender = Sender::Service;
/// }
/// impl MessagePayload for FileName {
///     const TYPE: &'static str = "FILE_NAME";
///     const SENDER: Sender = Sender::Agent;
/// }
/// impl MessagePayload for FileCount {
///     const TYPE: &'static str = "FILE_COUNT";
///     const SENDER: Sender = Sender::Agent;
/// }
/// impl StreamingRequest for ListFiles {
///     type Item = FileName;
///     type Reply = FileCount;
/// }
///
/// async fn on_list(
///     request: ListFiles,
///     mut items: Items<FileName>,
/// ) -> Result<Reply<FileCount>, HandlerError> {
///     let mut files = 0;
///     for name in ["a.pst", "b.pst"] {
///         items.send(FileName { name: format!("{}/{name}", request.folder) }).await?;
///         files += 1;
///     }
///     Ok(Reply(FileCount { files }))
/// }
/// # let _ = migration_ipc::MessageDispatcher::builder(()).handle(on_list).build().unwrap();
/// ```
pub struct Items<I> {
    connection: IpcConnection,
    request: MessageId,
    /// `None` when nobody asked for items, or another argument sends them.
    asked: Option<Arc<Asked>>,
    sent: u64,
    item: PhantomData<fn(I)>,
}

/// Why an item was not sent. Nothing of it was written.
#[derive(Debug, Clone, Error)]
#[non_exhaustive]
pub enum ItemError {
    /// The peer asked for no items, or cannot take any: it did not negotiate requests.
    #[error("the request takes no items")]
    NotAsked,
    /// Nobody waits for the answer any more: the request was cancelled, or its deadline has passed.
    #[error("nobody waits for the items any more")]
    GivenUp,
    /// The handler has ended, and the request is answered.
    #[error("the request is answered already")]
    Answered,
    /// The connection has ended.
    #[error("the connection has ended ({0})")]
    Closed(DisconnectReason),
    /// The item is sensitive, and goes over encrypted connections alone
    /// ([`SensitivePolicy::Encrypted`](crate::SensitivePolicy::Encrypted)).
    #[error("the item is sensitive and the connection is not encrypted")]
    NotEncrypted,
    /// The item cannot be put on the wire.
    #[error("the item cannot be encoded: {0}")]
    Encode(Arc<EncodeError>),
}

impl<I: MessagePayload> Items<I> {
    /// Whether the peer asked for items, and waits for them. A handler that can do without sends
    /// none when it did not.
    #[must_use]
    pub fn are_wanted(&self) -> bool {
        self.asked
            .as_ref()
            .is_some_and(|asked| !asked.given_up().is_cancelled())
    }

    /// Sends an item, waiting until the peer takes one more and there is room for it. `Ok` means
    /// accepted: it is written in its turn, ahead of the final answer, unless the connection ends
    /// before.
    ///
    /// Cancel safe: dropping the future leaves the item wholly accepted or wholly absent.
    ///
    /// # Errors
    /// As [`ItemError`] says. Returned by the handler (it converts into a
    /// [`HandlerError`](super::HandlerError)) it becomes the answer, which nobody may wait for.
    pub async fn send(&mut self, mut item: I) -> Result<(), ItemError> {
        // A sender that never waits would keep the driver, which polls it, from writing.
        tokio::task::coop::consume_budget().await;
        let asked = self.asked.as_ref().ok_or(ItemError::NotAsked)?;
        let grants = asked.grants().ok_or(ItemError::NotAsked)?;
        self.connection.sensitive_types().learn::<I>();
        if self.connection.admit_now(I::TYPE).is_err() {
            return Err(ItemError::NotEncrypted);
        }
        let outbound = self.connection.outbound();
        let accepted = async {
            // Nobody closes it.
            let grant = grants.acquire().await.map_err(|_| ItemError::GivenUp)?;
            self.connection.spell_user(item.user_id_mut());
            let offered = with_scratch(|frame| {
                let (id, timestamp) = factory::stamp(self.connection.config().clock);
                let head = EnvelopeHead {
                    item: Some(self.sent + 1),
                    in_reply_to: Some(&self.request),
                    ..EnvelopeHead::new(&id, I::TYPE, timestamp)
                };
                MessageSerializer::encode(frame, head, &item)
                    .map_err(|error| ItemError::Encode(Arc::new(error)))?;
                match outbound.offer_item(frame, asked) {
                    Ok(()) => Ok((None, frame.len())),
                    Err(ItemRefused::Full) => {
                        Ok((Some(Box::<[u8]>::from(frame.as_slice())), frame.len()))
                    }
                    Err(refused) => Err(ItemError::from(refused)),
                }
            });
            let (waiting, size) = offered?;
            if let Some(frame) = waiting {
                outbound.accept_item(&frame, asked).await?;
            }
            grant.forget();
            Ok(size)
        };
        let size = tokio::select! {
            biased;
            () = asked.given_up().cancelled() => Err(ItemError::GivenUp),
            accepted = accepted => accepted,
            () = self.connection.cancellation().cancelled() => {
                Err(ItemError::Closed(self.connection.closed_for()))
            }
        }?;
        self.sent += 1;
        self.connection.telemetry().sent(I::TYPE, size);
        Ok(())
    }
}

impl From<ItemRefused> for ItemError {
    fn from(refused: ItemRefused) -> Self {
        match refused {
            ItemRefused::Closed(reason) => Self::Closed(reason),
            // A lane that is full is waited for.
            ItemRefused::Answered | ItemRefused::Full => Self::Answered,
        }
    }
}

impl<S, I: MessagePayload> FromContext<S> for Items<I> {
    fn from_context(context: &HandlerContext<S>) -> Self {
        let asked = context.asked.clone();
        Self {
            connection: context.connection.clone(),
            request: context.message.id.clone(),
            asked: asked.filter(|asked| asked.claim_items()),
            sent: 0,
            item: PhantomData,
        }
    }
}

impl<I> fmt::Debug for Items<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Items")
            .field("request", &self.request)
            .field("sent", &self.sent)
            .finish_non_exhaustive()
    }
}
