//! Sending a message that may be longer than a frame: its body goes out in pieces, behind everything
//! else, as far as the peer takes it.

use std::fmt;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use migration_ipc_protocol::extensions::{Chunk, ChunksBegin, ChunksEnd, ChunksEndCode, Sha256};
use migration_ipc_protocol::limits::{LENGTH_PREFIX, MAX_BODY, MAX_CHUNK_FRAME, MAX_CHUNKED_BODY};
use migration_ipc_protocol::{
    EncodeError, EnvelopeHead, MessageId, MessagePayload, MessageSerializer, Priority,
};
use sha2::Digest as _;
use tokio::sync::{OnceCell, watch};
use tokio::time::{Instant, sleep, timeout};

use super::error::SendError;
use super::handle::IpcConnection;
use super::in_flight::AnswerResult;
use super::outbound::{Last, Manner, Tracking};
use super::reason::DisconnectReason;
use super::sending::with_scratch;
use super::transfers::Step;
use crate::clock::Clock;
use crate::config::MAX_TIMEOUT;
use crate::factory;

/// Data of one piece. Two pieces make a write, so that one finds room beside other messages.
const PIECE: usize = MAX_CHUNK_FRAME / 2 - PIECE_OVERHEAD;

/// What a piece's frame has beside its data.
const PIECE_OVERHEAD: usize = MAX_CHUNK_FRAME - Chunk::MAX_DATA;

/// A body up to this length gains nothing from being cut.
const SHORT: usize = MAX_CHUNK_FRAME - LENGTH_PREFIX;

/// How much of a body is hashed before others have their turn: a few milliseconds' worth.
const HASH_STEP: usize = 1024 * 1024;

/// For how long a peer without room is asked again, unless set otherwise.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long the first pause between two tries is; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The longest pause between two tries.
const LAST_PAUSE: Duration = Duration::from_secs(5);

const _: () = assert!(PIECE <= Chunk::MAX_DATA);

/// A message as it is sent, whole or in pieces.
pub(crate) struct LargeBody {
    id: MessageId,
    message_type: &'static str,
    /// Longer, perhaps, than a frame may be.
    frame: Vec<u8>,
    digest: OnceCell<Sha256>,
}

impl fmt::Debug for LargeBody {
    /// How long it is, and not what it says.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LargeBody")
            .field("id", &self.id)
            .field("message_type", &self.message_type)
            .field("bytes", &self.len())
            .finish_non_exhaustive()
    }
}

impl LargeBody {
    /// With a fresh id and the present time.
    pub(crate) fn encode<P: MessagePayload>(
        clock: Clock,
        payload: &P,
        limit: usize,
    ) -> Result<Self, EncodeError> {
        let (id, timestamp) = factory::stamp(clock);
        let mut frame = Vec::new();
        let head = EnvelopeHead::new(&id, P::TYPE, timestamp);
        MessageSerializer::encode_within(&mut frame, head, payload, limit)?;
        Ok(Self::of_frame(id, P::TYPE, frame))
    }

    /// Of a message that was encoded as a frame.
    pub(crate) fn of_frame(id: MessageId, message_type: &'static str, mut frame: Vec<u8>) -> Self {
        frame.shrink_to_fit();
        Self {
            id,
            message_type,
            frame,
            digest: OnceCell::new(),
        }
    }

    pub(crate) fn id(&self) -> &MessageId {
        &self.id
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes().len()
    }

    fn bytes(&self) -> &[u8] {
        self.frame.get(LENGTH_PREFIX..).unwrap_or_default()
    }

    /// Its digest, which is computed once.
    async fn digest(&self) -> Sha256 {
        let compute = || async {
            let mut hasher = sha2::Sha256::new();
            for step in self.bytes().chunks(HASH_STEP) {
                hasher.update(step);
                tokio::task::yield_now().await;
            }
            Sha256(hasher.finalize().into())
        };
        *self.digest.get_or_init(compute).await
    }
}

/// How a message goes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    InAFrame,
    InPieces,
}

/// A message on its way in pieces, as a future: it has to be polled to come on, and resolves to the
/// peer's answer.
///
/// Dropping it abandons the message: the peer handles nothing of it, unless all of it was sent.
#[must_use = "a message is sent while its future is polled"]
pub struct LargeSend {
    connection: IpcConnection,
    body: Arc<LargeBody>,
    patience: Duration,
    progress: watch::Sender<u64>,
    sending: Option<Pin<Box<dyn Future<Output = AnswerResult> + Send>>>,
}

/// How far a message has come that is sent in pieces.
#[derive(Debug, Clone)]
pub struct TransferProgress {
    sent: watch::Receiver<u64>,
    total: u64,
}

impl TransferProgress {
    /// Bytes of it that the peer has taken, or that are on their way to it. After a lost connection
    /// it begins where the peer says.
    #[must_use]
    pub fn sent(&self) -> u64 {
        *self.sent.borrow()
    }

    /// Its length in bytes, with the envelope.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Waits until [`sent`](Self::sent) has changed since this was last called; `false` when it will
    /// not change any more. Cancel safe.
    pub async fn changed(&mut self) -> bool {
        self.sent.changed().await.is_ok()
    }
}

impl IpcConnection {
    /// Sends a message that may be longer than a frame (1 MiB), and tells the peer's answer as
    /// [`send_acknowledged`](Self::send_acknowledged) does. What others send passes between its
    /// pieces. Nothing is sent before the future is polled.
    ///
    /// A message that fits a frame goes to any peer; a longer one to those that negotiated
    /// [`Chunks`](crate::Capability::Chunks), up to what they
    /// [take](crate::ConnectionLimits::chunked_bytes). A peer without room is asked again for
    /// [a while](LargeSend::patience). The time for the answer begins when all of it was written.
    ///
    /// # Errors
    /// [`SendError::NoChunks`] and [`SendError::TooLarge`] when the peer does not take it, which say
    /// how long it is and what would be taken; [`SendError::Encode`] when it cannot be encoded. The
    /// future's errors are those of [`send_acknowledged`](Self::send_acknowledged), and
    /// [`SendError::NotTaken`]; [`SendError::Closed`] says that not all of it was sent, so that it
    /// was not handled.
    pub fn send_large<P: MessagePayload>(&self, mut payload: P) -> Result<LargeSend, SendError> {
        self.sensitive_types().learn::<P>();
        self.spell_user(payload.user_id_mut());
        let body = match LargeBody::encode(self.config().clock, &payload, self.longest_body()) {
            Ok(body) => body,
            Err(EncodeError::TooLarge { size, .. }) => return Err(self.too_large(size)),
            Err(error) => return Err(error.into()),
        };
        Ok(self.send_body(Arc::new(body)))
    }

    /// Sends a reply that is longer than a frame; what is said of it afterwards comes behind it.
    /// `None` when it was given up before all of it was on its way.
    pub(super) async fn send_reply_in_pieces(
        &self,
        body: LargeBody,
        given_up: impl Future<Output = ()>,
    ) -> Option<Result<(), SendError>> {
        let sending = Sending {
            connection: self.clone(),
            body: Arc::new(body),
            progress: watch::Sender::new(0),
            is_reply: true,
            all_sent: AtomicBool::new(false),
            came_on: AtomicBool::new(false),
        };
        let mut sent = pin!(sending.send_in_pieces(PATIENCE));
        let answer = tokio::select! {
            biased;
            answer = &mut sent => answer,
            () = given_up => {
                // Nothing takes back what the peer is about to have: it is the answer.
                if !sending.all_sent.load(Ordering::Relaxed) {
                    return None;
                }
                sent.await
            }
        };
        match answer {
            Ok(_) | Err(SendError::Unanswered) => Some(Ok(())),
            Err(error) => Some(Err(error)),
        }
    }

    /// The longest body that the peer takes in some way.
    pub(super) fn longest_body(&self) -> usize {
        let in_chunks = self.peer_chunked_bytes().unwrap_or_default();
        usize::try_from(in_chunks)
            .unwrap_or(usize::MAX)
            .clamp(MAX_BODY, MAX_CHUNKED_BODY)
    }

    fn too_large(&self, size: usize) -> SendError {
        match self.peer_chunked_bytes() {
            Some(_) => SendError::TooLarge {
                size,
                limit: self.longest_body(),
            },
            None => SendError::NoChunks {
                size,
                limit: MAX_BODY,
            },
        }
    }

    /// Sends a body that was encoded before.
    pub(crate) fn send_body(&self, body: Arc<LargeBody>) -> LargeSend {
        LargeSend {
            connection: self.clone(),
            body,
            patience: PATIENCE,
            progress: watch::Sender::new(0),
            sending: None,
        }
    }

    /// Whether a body of this length may go in pieces, and they save others some waiting.
    pub(super) fn gains_from_pieces(&self, size: usize) -> bool {
        let takes = |limit| size as u64 <= limit;
        size > SHORT && self.peer_chunked_bytes().is_some_and(takes)
    }

    /// How a body goes to the peer.
    fn way_of(&self, body: &LargeBody) -> Result<Way, SendError> {
        let size = body.len();
        if self.gains_from_pieces(size) {
            Ok(Way::InPieces)
        } else if size <= MAX_BODY {
            Ok(Way::InAFrame)
        } else {
            Err(self.too_large(size))
        }
    }
}

impl LargeSend {
    /// For how long a peer without room for the message is asked again; 60 s unless set.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience.min(MAX_TIMEOUT);
        self
    }

    /// The same message over another connection of the same peer, under its id, after this one was
    /// lost: it goes on from where the peer says, which keeps for some minutes what has arrived. Only
    /// after [`SendError::Closed`] is it certain that the peer did not handle it before.
    pub fn again_over(&self, connection: &IpcConnection) -> Self {
        connection
            .send_body(Arc::clone(&self.body))
            .patience(self.patience)
    }

    /// Resolves when all of it is accepted: it is written in its turn, unless the connection ends
    /// before.
    pub(super) async fn accepted(mut self) -> Result<(), SendError> {
        let mut progress = self.progress();
        loop {
            tokio::select! {
                biased;
                answer = &mut self => return answer.map(drop),
                _ = progress.changed() => {
                    if progress.sent() == progress.total() {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// The id of the message.
    #[must_use]
    pub fn id(&self) -> &MessageId {
        self.body.id()
    }

    /// How far the message has come, from now on.
    #[must_use]
    pub fn progress(&self) -> TransferProgress {
        TransferProgress {
            sent: self.progress.subscribe(),
            total: self.body.len() as u64,
        }
    }
}

impl Future for LargeSend {
    type Output = AnswerResult;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<AnswerResult> {
        let this = &mut *self;
        let sending = this.sending.get_or_insert_with(|| {
            let sending = Sending {
                connection: this.connection.clone(),
                body: Arc::clone(&this.body),
                progress: this.progress.clone(),
                is_reply: false,
                all_sent: AtomicBool::new(false),
                came_on: AtomicBool::new(false),
            };
            Box::pin(sending.run(this.patience))
        });
        sending.as_mut().poll(cx)
    }
}

impl fmt::Debug for LargeSend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LargeSend")
            .field("connection", &self.connection.id())
            .field("body", &self.body)
            .field("sent", &*self.progress.borrow())
            .finish_non_exhaustive()
    }
}

/// Why a try came to nothing. The peer handled nothing of it.
enum Trouble {
    Ended(ChunksEnd),
    /// The peer let nothing more be sent.
    Stalled,
    Closed(DisconnectReason),
}

struct Sending {
    connection: IpcConnection,
    body: Arc<LargeBody>,
    progress: watch::Sender<u64>,
    /// Whether it is an answer itself: it counts as unanswered once it is written.
    is_reply: bool,
    /// Whether its last piece was accepted. Only the one task looks at these.
    all_sent: AtomicBool,
    /// Whether the peer has taken a good part of it since the last trouble.
    came_on: AtomicBool,
}

impl Sending {
    async fn run(self, patience: Duration) -> AnswerResult {
        self.connection.admit_named(self.body.message_type).await?;
        match self.connection.way_of(&self.body)? {
            Way::InAFrame => self.send_in_a_frame().await,
            Way::InPieces => self.send_in_pieces(patience).await,
        }
    }

    async fn send_in_a_frame(&self) -> AnswerResult {
        let body = &self.body;
        let manner = Manner {
            tracking: Tracking::AnswerOnceWritten,
            priority: Priority::Bulk,
        };
        let outbound = self.connection.outbound();
        let answer = outbound
            .accept(&body.frame, &body.id, body.message_type, manner)
            .await
            .map_err(SendError::Closed)?;
        self.note_sent(body.len());
        match answer {
            Some(answer) => answer.await.unwrap_or(Err(lost())),
            None => Err(SendError::Unanswered),
        }
    }

    fn note_sent(&self, bytes: usize) {
        self.progress.send_replace(bytes as u64);
        if bytes == self.body.len() {
            let telemetry = self.connection.telemetry();
            telemetry.sent(self.body.message_type, bytes);
        }
    }

    /// Tries until the peer has taken it, or for as long as it is worth while.
    async fn send_in_pieces(&self, patience: Duration) -> AnswerResult {
        let digest = self.body.digest().await;
        let mut first_refused = None;
        let mut pause = FIRST_PAUSE;
        let mut garbled = false;
        loop {
            let end = match self.try_in_pieces(digest).await {
                Ok(answer) => return answer,
                Err(Trouble::Closed(reason)) => return Err(SendError::Closed(reason)),
                Err(Trouble::Stalled) => {
                    let end = ChunksEnd {
                        transfer: 0,
                        code: ChunksEndCode::Busy,
                        error: "it let nothing more be sent".to_owned(),
                    };
                    if self.is_reply {
                        return Err(not_taken(end));
                    }
                    end
                }
                Err(Trouble::Ended(end)) => end,
            };
            if self.came_on.swap(false, Ordering::Relaxed) {
                (first_refused, pause) = (None, FIRST_PAUSE);
            }
            let waited = first_refused.get_or_insert_with(Instant::now).elapsed();
            match end.code {
                ChunksEndCode::Busy if waited < patience => {}
                // What arrived before, on another connection perhaps, was of another body. It is
                // forgotten now, and all of it is sent anew. No reply was ever sent before.
                ChunksEndCode::Hash if !garbled && !self.is_reply => {
                    first_refused = None;
                    garbled = true;
                    continue;
                }
                ChunksEndCode::Busy
                | ChunksEndCode::Hash
                | ChunksEndCode::TooLarge
                | ChunksEndCode::Abandoned
                | ChunksEndCode::Other(_) => return Err(not_taken(end)),
            }
            let this_time = pause.min(patience - waited);
            tokio::select! {
                biased;
                () = self.connection.outbound().transfers().ended() => {}
                () = sleep(this_time) => {}
            }
            pause = (2 * pause).min(LAST_PAUSE);
        }
    }

    async fn try_in_pieces(&self, digest: Sha256) -> Result<AnswerResult, Trouble> {
        let outbound = self.connection.outbound();
        let transfers = outbound.transfers();
        let _turn = transfers.turn().await.map_err(Trouble::Closed)?;
        let size = self.body.len();
        let (number, mut steps) = transfers
            .begin(size as u64, |transfer| {
                self.say(&ChunksBegin {
                    transfer,
                    bytes: size as u64,
                    sha256: digest,
                });
            })
            .map_err(Trouble::Closed)?;
        self.all_sent.store(false, Ordering::Relaxed);
        let _under_way = UnderWay {
            sending: self,
            number,
        };
        let stall = self.connection.config().timeouts.chunk_stall;
        // For how long the peer may still let it wait, and from where on it has to come on until then.
        let (mut wait, mut came_to) = (stall, None);
        // Where the next piece begins, once the peer has said where it wants the first.
        let mut next = None;
        loop {
            let window = within(&steps.borrow_and_update(), size)?;
            let begins = next.or(window.map(|(from, _)| from));
            let (Some(begins), Some((_, to))) =
                (begins, window.filter(|(_, to)| begins < Some(*to)))
            else {
                let began = Instant::now();
                match timeout(wait, steps.changed()).await {
                    Ok(Ok(())) => {
                        wait = wait.saturating_sub(began.elapsed());
                        continue;
                    }
                    Ok(Err(_)) => return Err(Trouble::Closed(DisconnectReason::Aborted)),
                    Err(_) => return Err(Trouble::Stalled),
                }
            };
            let ends = to.min(begins + PIECE);
            let is_last = ends == size;
            let piece = Chunk {
                transfer: number,
                offset: begins as u64,
                data: &self.body.bytes()[begins..ends],
            };
            let last = match (is_last, self.is_reply) {
                (false, _) => Last::No,
                (true, false) => Last::OfMessage(&self.body.id, self.body.message_type),
                (true, true) => Last::OfReply,
            };
            let accepted = tokio::select! {
                biased;
                // The peer may want no more of it.
                changed = steps.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return Err(Trouble::Closed(DisconnectReason::Aborted)),
                },
                accepted = outbound.accept_piece(piece, last) => accepted,
            };
            let answer = accepted.map_err(Trouble::Closed)?;
            next = Some(ends);
            let since = *came_to.get_or_insert_with(|| {
                wait = stall;
                begins
            });
            if ends - since >= Chunk::MAX_DATA {
                (wait, came_to) = (stall, Some(ends));
                self.came_on.store(true, Ordering::Relaxed);
            }
            self.note_sent(ends);
            if let Some(answer) = answer {
                self.all_sent.store(true, Ordering::Relaxed);
                return self.answer_or_end(answer, steps).await;
            }
        }
    }

    /// All of it is on its way: the answer comes, or the peer finds that it is not what was declared.
    async fn answer_or_end(
        &self,
        mut answer: tokio::sync::oneshot::Receiver<AnswerResult>,
        mut steps: watch::Receiver<Step>,
    ) -> Result<AnswerResult, Trouble> {
        loop {
            if let Step::Ended(end) = &*steps.borrow_and_update() {
                let end = end.clone();
                let outbound = self.connection.outbound();
                outbound.resolve(&self.body.id, Err(SendError::Unanswered));
                return Err(Trouble::Ended(end));
            }
            // Where the connection ends, what is known of the last piece is the answer.
            tokio::select! {
                biased;
                answer = &mut answer => return Ok(answer.unwrap_or(Err(lost()))),
                Ok(()) = steps.changed() => {}
            }
        }
    }

    /// Puts something about transfers into the control lane.
    fn say<P: MessagePayload>(&self, payload: &P) {
        let (id, timestamp) = factory::stamp(self.connection.config().clock);
        let head = EnvelopeHead::new(&id, P::TYPE, timestamp);
        with_scratch(
            |frame| match MessageSerializer::encode(frame, head, payload) {
                Ok(()) => {
                    self.connection.outbound().push_of_transfer(frame);
                    self.connection.telemetry().sent(P::TYPE, frame.len());
                }
                Err(error) => {
                    tracing::error!(%error, message_type = P::TYPE, "a control message cannot be encoded");
                }
            },
        );
    }
}

/// What the peer takes, from where to where; `None` when it has not answered yet.
fn within(step: &Step, size: usize) -> Result<Option<(usize, usize)>, Trouble> {
    // Both were checked to be within the body.
    let place = |offset: u64| usize::try_from(offset).unwrap_or(size).min(size);
    match step {
        Step::Begun => Ok(None),
        Step::Taking { from, to } => Ok(Some((place(*from), place(*to)))),
        Step::Ended(end) => Err(Trouble::Ended(end.clone())),
        Step::Closed(reason) => Err(Trouble::Closed(reason.clone())),
    }
}

fn not_taken(ChunksEnd { code, error, .. }: ChunksEnd) -> SendError {
    SendError::NotTaken { code, error }
}

fn lost() -> SendError {
    SendError::Lost(DisconnectReason::Aborted)
}

/// A transfer that the peer knows of. Dropped before all of it is sent, it is abandoned.
struct UnderWay<'a> {
    sending: &'a Sending,
    number: u32,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let outbound = self.sending.connection.outbound();
        let is_expected = outbound.transfers().forget(self.number);
        if is_expected && !self.sending.all_sent.load(Ordering::Relaxed) {
            self.sending.say(&ChunksEnd {
                transfer: self.number,
                code: ChunksEndCode::Abandoned,
                error: String::new(),
            });
        }
    }
}
