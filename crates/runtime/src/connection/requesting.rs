//! Requests: a message, and the reply to it by its type.

use std::fmt;
use std::future::{Future, IntoFuture};
use std::marker::PhantomData;
use std::pin::{Pin, pin};
use std::time::Duration;

use migration_ipc_protocol::extensions::{Cancel, ItemGrant, RequestHead};
use migration_ipc_protocol::hello::Capability;
use migration_ipc_protocol::limits::MAX_ITEM_GRANT;
use migration_ipc_protocol::{
    EncodeError, EnvelopeHead, IpcMessage, MessageId, MessagePayload, MessageSerializer, Request,
    StreamingRequest,
};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, Sleep, sleep_until};

use super::asking::Item;
use super::claims::Claim;
use super::error::{Answer, SendError};
use super::handle::IpcConnection;
use super::in_flight::AnswerResult;
use super::options::MessageOptions;
use super::outbound::{Manner, Tracking};
use super::request_error::RequestError;
use super::sending::with_scratch;
use crate::config::MAX_TIMEOUT;
use crate::dispatch::{Cancellation, Deadline};
use crate::factory;

/// Items of a streaming reply that are under way or unread at any time, unless the request says
/// otherwise. Too few make the sender wait for each; of items as large as a message may be, these
/// are 16 MiB.
pub const DEFAULT_ITEM_WINDOW: u32 = 16;

impl IpcConnection {
    /// Sends a message and waits for the reply to it, by its type. Nothing happens before the
    /// result is awaited.
    ///
    /// ```
    /// use std::time::Duration;
    /// use migration_ipc::{IpcConnection, Request, RequestError};
    ///
    /// async fn ask<P: Request>(agent: &IpcConnection, question: P) -> Result<P::Reply, RequestError> {
    ///     agent.request(question).within(Duration::from_secs(5)).await
    /// }
    /// ```
    ///
    /// It waits for room in the outbound lane and then for the reply, together until its deadline:
    /// [`ConnectionTimeouts::request`](crate::ConnectionTimeouts::request), unless it says so
    /// itself. A peer that negotiated requests is told the deadline, and that nobody waits any more
    /// when it passes or the future is dropped; its handler's
    /// [`Cancellation`](crate::Cancellation) fires then. Replies come in whatever order the peer's
    /// handlers end, and many requests may be under way at once.
    ///
    /// What the reply says is the peer's word, but for the account in it, which is checked as in any
    /// message.
    ///
    /// A handler may await a request on the connection that its own message came over. Two ends
    /// whose handlers wait for each other should register the types of these requests as
    /// [concurrent](crate::HandlerOptions::concurrent), or only a deadline parts them.
    ///
    /// Cancel safe: dropping the future leaves the request wholly accepted or wholly absent, and
    /// gives it up.
    ///
    /// # Errors
    /// [`RequestError`]: what is known of its fate.
    pub fn request<P: Request>(&self, payload: P) -> PendingRequest<P> {
        PendingRequest {
            connection: self.clone(),
            payload,
            terms: Terms::usual(self),
        }
    }

    /// Sends a message that is answered with items, and then with a reply. Nothing happens before
    /// the result is awaited, which resolves once the request is accepted for sending.
    ///
    /// ```
    /// use migration_ipc::{IpcConnection, RequestError, StreamingRequest};
    ///
    /// async fn read_all<P: StreamingRequest>(
    ///     agent: &IpcConnection,
    ///     question: P,
    /// ) -> Result<(Vec<P::Item>, P::Reply), RequestError> {
    ///     let mut stream = agent.request_stream(question).window(32).await?;
    ///     let mut items = Vec::new();
    ///     while let Some(item) = stream.next().await {
    ///         items.push(item?);
    ///     }
    ///     Ok((items, stream.finish().await?))
    /// }
    /// ```
    ///
    /// The peer sends so many items as were granted; more are granted as items are read. So a slow
    /// reader slows the peer's handler down, and other messages go on. Everything else is as with
    /// [`request`](Self::request).
    ///
    /// # Errors
    /// [`RequestError`]; [`RequestError::NotNegotiated`] too when the peer cannot stream replies.
    pub fn request_stream<P: StreamingRequest>(&self, payload: P) -> PendingStream<P> {
        PendingStream {
            connection: self.clone(),
            payload,
            terms: Terms::usual(self),
            window: DEFAULT_ITEM_WINDOW,
        }
    }

    /// Sends a request, waiting for room.
    async fn ask<P: MessagePayload>(
        &self,
        mut payload: P,
        head: RequestHead,
        ticket: &mut Ticket,
    ) -> Result<Option<mpsc::Receiver<Item>>, RequestError> {
        // A sender that never waits would keep the driver, on the same worker, from writing.
        tokio::task::coop::consume_budget().await;
        self.admit::<P>().await?;
        self.spell_user(payload.user_id_mut());
        let mut items = None;
        let manner = Manner {
            // The deadline ends the wait.
            tracking: Tracking::SureAnswer,
            priority: self.priority_of::<P>(MessageOptions::new()),
        };
        let offered = with_scratch(|frame| {
            let (id, timestamp) = factory::stamp(self.config().clock);
            let envelope = EnvelopeHead {
                request: head,
                ..EnvelopeHead::new(&id, P::TYPE, timestamp)
            };
            MessageSerializer::encode(frame, envelope, &payload).map_err(SendError::from)?;
            if let Some(window) = head.items {
                items = Some(self.outbound().begin_stream(&id, window));
            }
            let id = ticket.id.insert(id);
            self.offer(P::TYPE, id, frame, manner)
        })?;
        drop(payload);
        if let Some(id) = &ticket.id {
            ticket.answer = self.finish_post(P::TYPE, id, manner, offered).await?;
        }
        Ok(items)
    }

    /// Reads a reply or an item, and checks the account in it.
    async fn read_reply<P: MessagePayload>(&self, message: &IpcMessage) -> Result<P, RequestError> {
        if message.message_type != P::TYPE {
            return Err(RequestError::UnexpectedType {
                expected: P::TYPE,
                found: message.message_type.clone(),
            });
        }
        let mut payload: P = message.payload().map_err(RequestError::BadReply)?;
        if let Some(user) = payload.user_id_mut()
            && self.check_claim(user) == Claim::Unresolved
        {
            let settled = self.settle_claim(user).await;
            settled.map_err(|_| RequestError::IdentityMismatch)?;
        }
        Ok(payload)
    }

    /// A control message of ours as a frame; it is small, and always valid JSON.
    fn control_frame<P: MessagePayload>(&self, payload: &P) -> Result<Box<[u8]>, EncodeError> {
        with_scratch(|frame| {
            factory::encode(self.config().clock, frame, payload)?;
            self.telemetry().sent(P::TYPE, frame.len());
            Ok(Box::from(frame.as_slice()))
        })
    }
}

/// A request that is sent when it is awaited; see [`IpcConnection::request`].
#[must_use = "a request is sent when it is awaited"]
pub struct PendingRequest<P> {
    connection: IpcConnection,
    payload: P,
    terms: Terms,
}

/// A request for a streaming reply that is sent when it is awaited; see
/// [`IpcConnection::request_stream`].
#[must_use = "a request is sent when it is awaited"]
pub struct PendingStream<P> {
    connection: IpcConnection,
    payload: P,
    terms: Terms,
    window: u32,
}

macro_rules! impl_terms {
    ($pending:ident) => {
        impl<P> $pending<P> {
            /// Waits no longer than this, from when it is awaited; at most a year. The last call of
            /// this counts.
            pub fn within(mut self, limit: Duration) -> Self {
                self.terms.within = limit.min(MAX_TIMEOUT);
                self
            }

            /// Waits no longer than this deadline either: that of the message that a handler
            /// answers with the help of this request.
            pub fn before(mut self, deadline: Deadline) -> Self {
                self.terms.before = deadline;
                self
            }

            /// Gives up when this fires.
            pub fn unless(mut self, cancellation: Cancellation) -> Self {
                self.terms.unless = Some(cancellation);
                self
            }
        }

        impl<P: MessagePayload> fmt::Debug for $pending<P> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($pending))
                    .field("connection", &self.connection.id())
                    .field("type", &P::TYPE)
                    .field("terms", &self.terms)
                    .finish_non_exhaustive()
            }
        }
    };
}

impl_terms!(PendingRequest);
impl_terms!(PendingStream);

impl<P> PendingStream<P> {
    /// How many items may be under way or unread at any time, from 1 to
    /// [`MAX_ITEM_GRANT`]; what is beyond counts as the nearer of them. Too few make the sender
    /// wait for each; many large ones take as much memory here.
    pub fn window(mut self, items: u32) -> Self {
        self.window = items.clamp(1, MAX_ITEM_GRANT);
        self
    }
}

impl<P: Request> IntoFuture for PendingRequest<P> {
    type Output = Result<P::Reply, RequestError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let Self {
                connection,
                payload,
                terms,
            } = self;
            if !connection.has(Capability::InReplyTo) {
                return Err(RequestError::NotNegotiated);
            }
            let (deadline, left) = terms.begin()?;
            let head = RequestHead {
                deadline: connection.has(Capability::Requests).then_some(left),
                items: None,
            };
            let mut ticket = Ticket::new(&connection);
            let mut timer = pin!(sleep_until(deadline));
            let asking = async {
                connection.ask(payload, head, &mut ticket).await?;
                ticket.answer().await
            };
            let answer = terms.bound(timer.as_mut(), asking).await;
            match answer {
                Ok(answer) => connection.read_reply(&answer?).await,
                Err(stopped) => Err(ticket.fate(stopped)),
            }
        })
    }
}

impl<P: StreamingRequest> IntoFuture for PendingStream<P> {
    type Output = Result<ReplyStream<P>, RequestError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let Self {
                connection,
                payload,
                terms,
                window,
            } = self;
            if !connection.has(Capability::Requests) {
                return Err(RequestError::NotNegotiated);
            }
            let (deadline, left) = terms.begin()?;
            let head = RequestHead {
                deadline: Some(left),
                items: Some(window),
            };
            let mut ticket = Ticket::new(&connection);
            let mut timer = Box::pin(sleep_until(deadline));
            let asking = connection.ask(payload, head, &mut ticket);
            let items = match terms.bound(timer.as_mut(), asking).await {
                Ok(items) => items?.ok_or(RequestError::NotNegotiated)?,
                Err(stopped) => return Err(ticket.fate(stopped)),
            };
            Ok(ReplyStream {
                ticket,
                items,
                unread: None,
                window,
                to_grant: 0,
                terms,
                timer,
                stopped: None,
                request: PhantomData,
            })
        })
    }
}

/// The streaming reply to a request: its items in order, and then the reply.
///
/// Dropping it gives the request up; the peer is told so.
pub struct ReplyStream<P> {
    ticket: Ticket,
    items: mpsc::Receiver<Item>,
    /// An item that was taken and not handed out yet.
    unread: Option<Item>,
    window: u32,
    /// Items read and not granted anew.
    to_grant: u32,
    terms: Terms,
    timer: Pin<Box<Sleep>>,
    /// Why nothing more is waited for.
    stopped: Option<RequestError>,
    request: PhantomData<fn(P)>,
}

impl<P: StreamingRequest> ReplyStream<P> {
    /// The next item; `None` when there are no more, and [`finish`](Self::finish) says why. An item
    /// that cannot be read is an error of its own, and others may follow it.
    ///
    /// Cancel safe: the item is there for the next call.
    pub async fn next(&mut self) -> Option<Result<P::Item, RequestError>> {
        if self.unread.is_none() {
            self.unread = Some(self.take_item().await?);
        }
        let message = &self.unread.as_ref()?.message;
        let item = self.ticket.connection.read_reply(message).await;
        self.unread = None;
        Some(item)
    }

    /// The reply behind the items. Items that were not read are dropped.
    ///
    /// Cancel safe as dropping the stream: it gives the request up.
    ///
    /// # Errors
    /// [`RequestError`]: what is known of the fate of the request.
    pub async fn finish(mut self) -> Result<P::Reply, RequestError> {
        self.unread = None;
        while self.take_item().await.is_some() {}
        if let Some(stopped) = self.stopped.take() {
            return Err(stopped);
        }
        // It was there before the items ended.
        let answer = self.ticket.answer().await?;
        self.ticket.connection.read_reply(&answer).await
    }

    async fn take_item(&mut self) -> Option<Item> {
        if self.stopped.is_some() {
            return None;
        }
        let received = self.terms.bound(self.timer.as_mut(), self.items.recv());
        match received.await {
            Ok(item) => {
                let item = item?;
                self.grant_anew();
                Some(item)
            }
            Err(stopped) => {
                self.stopped = Some(self.ticket.fate(stopped));
                None
            }
        }
    }

    /// Lets the peer send more for what was read, half a window at a time.
    fn grant_anew(&mut self) {
        self.to_grant += 1;
        if self.to_grant < self.window.div_ceil(2) {
            return;
        }
        let Some(id) = &self.ticket.id else { return };
        let grant = ItemGrant {
            request_id: id.clone(),
            items: std::mem::take(&mut self.to_grant),
        };
        let connection = &self.ticket.connection;
        if let Ok(frame) = connection.control_frame(&grant) {
            connection.outbound().grant_items(id, grant.items, &frame);
        }
    }
}

impl<P: StreamingRequest> fmt::Debug for ReplyStream<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplyStream")
            .field("type", &P::TYPE)
            .field("request", &self.ticket.id)
            .field("window", &self.window)
            .finish_non_exhaustive()
    }
}

/// Until when a request is waited for.
#[derive(Debug)]
struct Terms {
    within: Duration,
    before: Deadline,
    unless: Option<Cancellation>,
}

/// Why a request is not waited for any more.
#[derive(Debug, Clone, Copy)]
enum Stopped {
    Deadline,
    Cancelled,
}

impl Terms {
    fn usual(connection: &IpcConnection) -> Self {
        Self {
            within: connection.config().timeouts.request,
            before: Deadline::NONE,
            unless: None,
        }
    }

    /// When the wait ends, and how long that is from now.
    fn begin(&self) -> Result<(Instant, Duration), RequestError> {
        let now = Instant::now();
        let cancelled = self.unless.as_ref().is_some_and(Cancellation::is_cancelled);
        let latest = now + self.within;
        let deadline = self.before.at().map_or(latest, |before| before.min(latest));
        let left = deadline.saturating_duration_since(now);
        if cancelled || left.is_zero() {
            return Err(RequestError::TooLate);
        }
        Ok((deadline, left))
    }

    async fn bound<T>(
        &self,
        timer: Pin<&mut Sleep>,
        work: impl Future<Output = T>,
    ) -> Result<T, Stopped> {
        let cancelled = async {
            match &self.unless {
                Some(cancellation) => cancellation.cancelled().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            result = work => Ok(result),
            () = timer => Err(Stopped::Deadline),
            () = cancelled => Err(Stopped::Cancelled),
        }
    }
}

/// A request that may be under way. Dropped before its answer, it is given up.
#[derive(Debug)]
struct Ticket {
    connection: IpcConnection,
    /// Set when it was encoded.
    id: Option<MessageId>,
    /// There once the request was accepted, and until its answer was taken.
    answer: Option<oneshot::Receiver<AnswerResult>>,
    settled: bool,
}

impl Ticket {
    fn new(connection: &IpcConnection) -> Self {
        Self {
            connection: connection.clone(),
            id: None,
            answer: None,
            settled: false,
        }
    }

    /// Waits for the final answer.
    async fn answer(&mut self) -> Result<IpcMessage, RequestError> {
        let answer = match &mut self.answer {
            Some(answer) => answer.await,
            None => return Err(RequestError::aborted()),
        };
        self.settled = true;
        match answer {
            Ok(Ok(Answer::Replied(message))) => Ok(message),
            Ok(Ok(Answer::Handled)) => Err(RequestError::NoReply),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(RequestError::aborted()),
        }
    }

    /// Gives the request up; says what that comes to.
    fn fate(&mut self, stopped: Stopped) -> RequestError {
        let accepted = self.answer.is_some();
        self.give_up();
        match stopped {
            _ if !accepted => RequestError::TooLate,
            Stopped::Deadline => RequestError::Deadline,
            Stopped::Cancelled => RequestError::Cancelled,
        }
    }

    fn give_up(&mut self) {
        if std::mem::replace(&mut self.settled, true) {
            return;
        }
        let Some(id) = &self.id else { return };
        let cancel = Cancel {
            request_id: id.clone(),
        };
        let tells = self.answer.is_some() && self.connection.has(Capability::Requests);
        let frame = tells.then(|| self.connection.control_frame(&cancel).ok());
        self.connection.outbound().give_up(id, frame.flatten());
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.give_up();
    }
}
