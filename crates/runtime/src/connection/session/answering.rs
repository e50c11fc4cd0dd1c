//! From a handler's end to the answer, by way of the store where there is something to store.

use std::borrow::Cow;
use std::fmt::Display;
use std::future::pending;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::{Context, Poll};

use migration_ipc_protocol::hello::{Capability, Credit};
use migration_ipc_protocol::limits::{LENGTH_PREFIX, MAX_BODY};
use migration_ipc_protocol::messages::{Acknowledgment, ErrorCode};
use migration_ipc_protocol::{EncodeError, EnvelopeHead, MessageId, MessageSerializer, RawValue};
use migration_ipc_store::StoredOutcome;

use super::{Directive, PeerKind, Session};
use crate::access::RoleId;
use crate::connection::chunk_room::Hold;
use crate::connection::handle::{IpcConnection, Side};
use crate::connection::inbox::{CreditUse, Finished, HandlerEnd, Job, Named, Starting};
use crate::connection::large::LargeBody;
use crate::connection::reason::DisconnectReason;
use crate::connection::sending::with_scratch;
use crate::dispatch::{Asked, HandlerError, OnSuccess, ReplyPayload, panicked};
use crate::store::{Conclusion, Ending, end_unbooked};

/// What the sender of a message that was handled has been told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    Nothing,
    /// A reply, which takes the place of the acknowledgment.
    Reply,
}

/// What was said of a message that was handled, or is to be.
enum Said {
    Nothing,
    Reply,
    /// Nothing yet: this reply does not fit a frame.
    InPieces(Box<LongReply>),
}

/// A reply that does not fit a frame, and the account's room for it.
pub(super) struct LongReply {
    body: LargeBody,
    room: Option<Hold>,
}

impl Session {
    /// Runs handlers and answers what they have finished. `Ready` when at least one has.
    ///
    /// While the peer leaves its answers untaken no handler is begun, so that somebody who only
    /// asks and never reads is held to the bound of the control lane.
    pub(crate) fn poll_handlers(&mut self, cx: &mut Context<'_>) -> Poll<Directive> {
        // Some may have waited until the peer took its answers.
        let mut any = self.decide_transfers();
        loop {
            if let Poll::Ready((job, sent)) = self.inbox.poll_replied(cx) {
                any = true;
                self.conclude_reply(&job, sent);
                continue;
            }
            let waits = self.waits_for_replies();
            if !waits && let Poll::Ready((job, conclusion)) = self.inbox.poll_answer(cx) {
                any = true;
                self.answer(job, conclusion);
                continue;
            }
            let starting = if self.connection.outbound().control_is_full() {
                Starting::Held
            } else {
                any |= self.answer_given_up();
                match waits {
                    true => Starting::Held,
                    false => Starting::Allowed,
                }
            };
            let Poll::Ready(finished) = self.inbox.poll_finished(cx, starting) else {
                break;
            };
            any = true;
            self.conclude(finished);
        }
        if !any {
            return Poll::Pending;
        }
        if self.connection.foreign_claims() > self.connection.config().limits.foreign_accounts {
            self.refuse_waiting();
            return Poll::Ready(Directive::Finish(DisconnectReason::IdentityMismatch));
        }
        Poll::Ready(Directive::Continue)
    }

    /// Whether nothing is begun or answered because of what is on its way in pieces. What the peer
    /// takes of that is behind what it has sent before: where that could not be read any more, handlers
    /// go on.
    fn waits_for_replies(&self) -> bool {
        self.inbox.replies_are_full()
            && !self.is_full(false)
            && !self.connection.shared_account().is_out_of_memory()
    }

    /// A handler has ended: the message is answered at once, unless something has to be stored
    /// before, or one before it is not answered yet.
    fn conclude(&mut self, finished: Finished) {
        let Finished { job, end } = finished;
        job.metrics.handled(job.received.elapsed());
        let ending = match (end, &job.entry) {
            (HandlerEnd::Skipped(conclusion), _) => Ending::Known(conclusion),
            (HandlerEnd::Ran(outcome), Some(entry)) => entry.conclude(outcome),
            (HandlerEnd::Ran(outcome), None) => end_unbooked(outcome, self.connection.store()),
        };
        match ending {
            Ending::Known(conclusion) if self.inbox.all_answered() && !self.waits_for_replies() => {
                self.answer(job, conclusion);
            }
            ending => self.inbox.answer_later(job, ending),
        }
    }

    /// Tells the sender of a message what it came to.
    fn answer(&mut self, job: Job, conclusion: Conclusion) {
        let in_pieces = match &job.asked {
            Some(asked) => self.answer_request(&job, asked, conclusion),
            None => self.tell(&job, conclusion),
        };
        match in_pieces {
            None => self.conclude_job(&job),
            Some(reply) => {
                let bytes = reply.body.len();
                let sending = send_in_pieces(self.connection.clone(), reply, job.asked.clone());
                self.inbox.reply_in_pieces(job, bytes, sending);
            }
        }
    }

    /// Tells the sender of a message that no handler has begun why not.
    pub(super) fn refuse(&mut self, job: Job, why: HandlerError) {
        self.answer(job, Conclusion::Failed(why));
    }

    /// A reply in pieces is written, or will not be.
    fn conclude_reply(&mut self, job: &Job, sent: Result<(), HandlerError>) {
        if job.asked.is_some() {
            self.requests.remove(&job.id);
        }
        self.note_told(job, sent.map(|()| Told::Reply));
        self.conclude_job(job);
    }

    /// A message is answered.
    fn conclude_job(&mut self, job: &Job) {
        self.inbox.done(job);
        if job.credit == CreditUse::Used {
            self.return_credit();
        }
    }

    /// Tells the sender what a message came to: with a reply, with the outcomes of its batch, or with
    /// an acknowledgment. Gives back a reply that has to go out in pieces before.
    pub(super) fn tell(&mut self, job: &Job, conclusion: Conclusion) -> Option<Box<LongReply>> {
        let told = match self.reply_if_any(job, conclusion) {
            Ok(Said::InPieces(reply)) => return Some(reply),
            Ok(Said::Reply) => Ok(Told::Reply),
            Ok(Said::Nothing) => Ok(Told::Nothing),
            Err(error) => Err(error),
        };
        self.note_told(job, told);
        None
    }

    /// Says what is left to say beside a reply.
    fn note_told(&mut self, job: &Job, told: Result<Told, HandlerError>) {
        if let Err(error) = &told {
            tracing::debug!(
                connection = %self.connection.id(),
                error = %error.to_string().escape_debug(),
                "a message was refused",
            );
        }
        match (told, job.success, job.named) {
            (told, _, Named::Seat(seat)) => self.note_outcome(seat, told),
            (Ok(Told::Nothing), OnSuccess::Acknowledge, _) => self.acknowledge_job(job, Ok(())),
            (Ok(Told::Nothing), OnSuccess::Silent, Named::Frame(frame)) => {
                self.acknowledging.settle_silently(frame);
            }
            (Ok(Told::Reply), _, Named::Frame(frame))
            | (Ok(Told::Nothing), OnSuccess::Declined, Named::Frame(frame)) => {
                self.acknowledging.settle(frame);
            }
            (Ok(_), _, Named::Id) => {}
            (Err(error), ..) => self.acknowledge_job(job, Err(&error)),
        }
    }

    /// Sends the reply that a message came to, if it came to one; the rest is for an acknowledgment
    /// to say.
    fn reply_if_any(&mut self, job: &Job, conclusion: Conclusion) -> Result<Said, HandlerError> {
        match conclusion {
            Conclusion::Handled | Conclusion::Stored(StoredOutcome::Handled) => {
                self.accept_announcement(job);
                Ok(Said::Nothing)
            }
            Conclusion::Replied(reply) => {
                self.accept_announcement(job);
                self.reply(job, reply)
            }
            Conclusion::Stored(StoredOutcome::Replied {
                message_type,
                payload,
            }) => {
                self.accept_announcement(job);
                self.reply_stored(job, &message_type, &payload)
            }
            Conclusion::Failed(error) => Err(error),
            Conclusion::Stored(StoredOutcome::Rejected { code, text }) => {
                Err(HandlerError::new(text).with_code(code))
            }
        }
    }

    fn accept_announcement(&self, job: &Job) {
        // Whoever is no agent is not addressed, whatever it announces.
        if let Some(announcement) = &job.announcement
            && self.connection.side() == Side::Server
            && self.role == RoleId::AGENT
        {
            self.observer
                .announced(&self.connection, (**announcement).clone());
        }
    }

    /// Grants anew what was handled, half an inbox at a time.
    fn return_credit(&mut self) {
        self.to_grant += 1;
        let inbox = self.connection.config().limits.inbox_messages;
        if (self.to_grant as usize) < inbox.div_ceil(2) {
            return;
        }
        let grant = std::mem::take(&mut self.to_grant);
        self.say(None, &Credit::new(grant));
    }

    // --- answers ---------------------------------------------------------------------------------

    /// Says what came of a message: with others if it can be named by its frame, at once otherwise.
    fn acknowledge_job(&mut self, job: &Job, outcome: Result<(), &HandlerError>) {
        match job.named {
            Named::Frame(frame) => self.acknowledge_frame(frame, outcome),
            Named::Id | Named::Seat(_) => self.acknowledge(&job.id, outcome),
        }
    }

    pub(super) fn acknowledge(&self, original: &MessageId, outcome: Result<(), &HandlerError>) {
        // Deployed agents acknowledge nothing, and neither do ours to deployed services.
        let to_plain_service =
            self.connection.side() == Side::Client && !matches!(self.peer, PeerKind::New(_));
        if to_plain_service {
            return;
        }
        let (id, timestamp) = self.stamp();
        let mut acknowledgment = match outcome {
            Ok(()) => Acknowledgment::success(original.clone(), timestamp),
            Err(error) => Acknowledgment::failure(original.clone(), timestamp, error.text.as_str()),
        };
        if let Err(error) = outcome
            && self.has(Capability::ErrorCodes)
        {
            acknowledgment.code = Some(error.code.clone());
        }
        self.say_as(&id, timestamp, None, &acknowledgment);
    }

    fn reply(&mut self, job: &Job, mut reply: Box<dyn ReplyPayload>) -> Result<Said, HandlerError> {
        self.connection.spell_user(reply.user_id_mut());
        let message_type = reply.message_type();
        reply.teach(self.connection.sensitive_types());
        self.send_reply(job, message_type, message_type, |frame, head, limit| {
            reply.encode(frame, head, limit)
        })
    }

    /// Gives a reply that was kept with the outcome of its message.
    fn reply_stored(
        &mut self,
        job: &Job,
        message_type: &str,
        payload: &str,
    ) -> Result<Said, HandlerError> {
        let payload = match serde_json::from_str::<&RawValue>(payload) {
            Ok(payload) => payload,
            Err(error) => {
                tracing::error!(%error, message_type, "a reply that was stored is damaged");
                return Ok(Said::Nothing);
            }
        };
        let payload = match self.connection.spell_user_in(payload) {
            Some(spelled) => Cow::Owned(spelled),
            None => Cow::Borrowed(payload),
        };
        let label = self.connection.telemetry().known_type(message_type);
        self.send_reply(job, message_type, label, |frame, head, limit| {
            MessageSerializer::encode_within(frame, head, &*payload, limit)
        })
    }

    /// Room for a reply in pieces, of the account if that has a limit.
    fn room_for_reply(&self, bytes: usize) -> Result<Option<Hold>, HandlerError> {
        let too_much = || not_replied(&"too much is on its way already");
        if self.inbox.replies_are_full() {
            return Err(too_much());
        }
        match self.connection.shared_account().reply_room() {
            Some(room) => room.take(bytes).map(Some).ok_or_else(too_much),
            None => Ok(None),
        }
    }

    /// Replies share the lane of acknowledgments, so that answers keep the order of their
    /// messages' ends; all but those that do not fit a frame. The last reply to a request for items
    /// has to, since it goes behind the items.
    fn send_reply(
        &mut self,
        job: &Job,
        message_type: &str,
        label: &'static str,
        encode: impl FnOnce(&mut Vec<u8>, EnvelopeHead<'_>, usize) -> Result<(), EncodeError>,
    ) -> Result<Said, HandlerError> {
        self.flush_acknowledgments();
        if let Err(error) = self.connection.admit_now(message_type) {
            tracing::warn!(connection = %self.connection.id(), %error, message_type, "a reply was not sent");
            let withheld = HandlerError::new(
                "handled, but the reply is sensitive and goes over encrypted connections alone",
            );
            return Err(withheld.with_code(ErrorCode::NotPermitted));
        }
        let (id, timestamp) = self.stamp();
        let head = EnvelopeHead {
            in_reply_to: self.has(Capability::InReplyTo).then_some(&job.id),
            ..EnvelopeHead::new(&id, message_type, timestamp)
        };
        let takes_items = job.asked.as_ref().is_some_and(|it| it.grants().is_some());
        let limit = match takes_items {
            true => MAX_BODY,
            // No more than this side would take itself.
            false => self
                .connection
                .longest_body()
                .min(self.chunk_limit().max(MAX_BODY)),
        };
        // The reply's `Serialize` is code of the user's, and may panic like a handler.
        with_scratch(|frame| {
            catch_unwind(AssertUnwindSafe(|| encode(frame, head, limit)))
                .map_err(|panic| panicked(panic.as_ref()))?
                .map_err(|error| {
                    HandlerError::new(format_args!("the reply cannot be sent: {error}"))
                })?;
            if frame.len() > LENGTH_PREFIX + MAX_BODY {
                let room = self.room_for_reply(frame.len())?;
                let body = LargeBody::of_frame(id.clone(), label, std::mem::take(frame));
                return Ok(Said::InPieces(Box::new(LongReply { body, room })));
            }
            self.connection.push_control_frame(label, frame);
            Ok(Said::Reply)
        })
    }
}

/// Why a handled message has no reply. Its code is none that says that it was not handled.
fn not_replied(why: &dyn Display) -> HandlerError {
    HandlerError::new(format_args!("handled, but the reply was not sent: {why}"))
}

/// Sends a reply that does not fit a frame, for as long as somebody waits for it.
async fn send_in_pieces(
    connection: IpcConnection,
    reply: Box<LongReply>,
    asked: Option<Arc<Asked>>,
) -> Result<(), HandlerError> {
    let LongReply { body, room: _room } = *reply;
    let given_up = async {
        match &asked {
            Some(asked) => asked.given_up().cancelled().await,
            None => pending().await,
        }
    };
    match connection.send_reply_in_pieces(body, given_up).await {
        Some(sent) => sent.map_err(|error| not_replied(&error)),
        None => Err(not_replied(&"nobody waits for it any more")),
    }
}
