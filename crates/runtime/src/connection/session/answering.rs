//! From a handler's end to the answer, by way of the store where there is something to store.

use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::{Context, Poll};

use migration_ipc_protocol::hello::{Capability, Credit};
use migration_ipc_protocol::messages::Acknowledgment;
use migration_ipc_protocol::{EncodeError, EnvelopeHead, MessageId, MessageSerializer, RawValue};
use migration_ipc_store::StoredOutcome;

use super::{Directive, PeerKind, Session};
use crate::access::RoleId;
use crate::connection::handle::Side;
use crate::connection::inbox::{CreditUse, Finished, HandlerEnd, Job, Starting};
use crate::connection::reason::DisconnectReason;
use crate::connection::sending::with_scratch;
use crate::dispatch::{HandlerError, OnSuccess, ReplyPayload, panicked};
use crate::store::{Conclusion, Ending, end_unbooked};

impl Session {
    /// Runs handlers and answers what they have finished. `Ready` when at least one has.
    ///
    /// While the peer leaves its answers untaken no handler is begun, so that somebody who only
    /// asks and never reads is held to the bound of the control lane.
    pub(crate) fn poll_handlers(&mut self, cx: &mut Context<'_>) -> Poll<Directive> {
        // Some may have waited until the peer took its answers.
        self.decide_transfers();
        let mut any = false;
        loop {
            if let Poll::Ready((job, conclusion)) = self.inbox.poll_answer(cx) {
                any = true;
                self.answer(&job, conclusion);
                continue;
            }
            let starting = if self.connection.outbound().control_is_full() {
                Starting::Held
            } else {
                Starting::Allowed
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
            Ending::Known(conclusion) if self.inbox.all_answered() => self.answer(&job, conclusion),
            ending => self.inbox.answer_later(job, ending),
        }
    }

    /// Tells the sender of a message what it came to.
    pub(super) fn answer(&mut self, job: &Job, conclusion: Conclusion) {
        self.inbox.done(job);
        self.tell(job, conclusion);
        if job.credit == CreditUse::Used {
            self.return_credit();
        }
    }

    fn tell(&self, job: &Job, conclusion: Conclusion) {
        match conclusion {
            Conclusion::Handled | Conclusion::Stored(StoredOutcome::Handled) => {
                self.accept_announcement(job);
                if job.success == OnSuccess::Acknowledge {
                    self.acknowledge(&job.id, Ok(()));
                }
            }
            Conclusion::Replied(reply) => {
                self.accept_announcement(job);
                self.reply(&job.id, reply);
            }
            Conclusion::Stored(StoredOutcome::Replied {
                message_type,
                payload,
            }) => {
                self.accept_announcement(job);
                self.reply_stored(&job.id, &message_type, &payload);
            }
            Conclusion::Failed(error) => self.refuse(job, &error),
            Conclusion::Stored(StoredOutcome::Rejected { code, text }) => {
                self.refuse(job, &HandlerError::new(text).with_code(code));
            }
        }
    }

    fn refuse(&self, job: &Job, error: &HandlerError) {
        tracing::debug!(
            connection = %self.connection.id(),
            error = %error.to_string().escape_debug(),
            "a message was refused",
        );
        self.acknowledge(&job.id, Err(error));
    }

    fn accept_announcement(&self, job: &Job) {
        // Whoever is no agent is not addressed, whatever it announces.
        if let Some(announcement) = &job.announcement
            && self.connection.side() == Side::Server
            && self.role == RoleId::AGENT
        {
            self.observer
                .announced(&self.connection, announcement.clone());
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

    fn reply(&self, original: &MessageId, mut reply: Box<dyn ReplyPayload>) {
        self.connection.spell_user(reply.user_id_mut());
        let message_type = reply.message_type();
        self.send_reply(original, message_type, message_type, |frame, head| {
            reply.encode(frame, head)
        });
    }

    /// Gives a reply that was kept with the outcome of its message.
    fn reply_stored(&self, original: &MessageId, message_type: &str, payload: &str) {
        let payload = match serde_json::from_str::<&RawValue>(payload) {
            Ok(payload) => payload,
            Err(error) => {
                tracing::error!(%error, message_type, "a reply that was stored is damaged");
                return self.acknowledge(original, Ok(()));
            }
        };
        let payload = match self.connection.spell_user_in(payload) {
            Some(spelled) => Cow::Owned(spelled),
            None => Cow::Borrowed(payload),
        };
        let label = self.connection.telemetry().known_type(message_type);
        self.send_reply(original, message_type, label, |frame, head| {
            MessageSerializer::encode(frame, head, &*payload)
        });
    }

    /// Replies share the lane of acknowledgments, so that answers keep the order of their
    /// messages' ends.
    fn send_reply(
        &self,
        original: &MessageId,
        message_type: &str,
        label: &'static str,
        encode: impl FnOnce(&mut Vec<u8>, EnvelopeHead<'_>) -> Result<(), EncodeError>,
    ) {
        let (id, timestamp) = self.stamp();
        let head = EnvelopeHead {
            in_reply_to: self.has(Capability::InReplyTo).then_some(original),
            ..EnvelopeHead::new(&id, message_type, timestamp)
        };
        // The reply's `Serialize` is code of the user's, and may panic like a handler.
        let encoded = with_scratch(|frame| {
            catch_unwind(AssertUnwindSafe(|| encode(frame, head)))
                .map_err(|panic| panicked(panic.as_ref()))?
                .map_err(|error| {
                    HandlerError::new(format_args!("the reply cannot be sent: {error}"))
                })?;
            self.connection.push_control_frame(label, frame);
            Ok::<_, HandlerError>(())
        });
        if let Err(error) = encoded {
            self.acknowledge(original, Err(&error));
        }
    }
}
