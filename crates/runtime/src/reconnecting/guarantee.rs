//! What an answer, or the want of one, means for a durable message. Pure.

use super::queue::History;
use crate::connection::{AnswerResult, SendError};
use crate::delivery::Fate;

/// How often an idempotent message is sent to a service that is connected and does not answer it,
/// and cannot tell a repetition. Deployed services answer some types with a message that does not
/// say what it answers, so silence need not mean that the message was not handled.
pub(crate) const MAX_UNANSWERED: u8 = 3;

/// Whether the service recognises a message that it had before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Receiver {
    /// It keeps a ledger: everything may be sent again until it is answered.
    Recognising,
    /// It does not.
    Plain,
}

#[derive(Debug)]
pub(crate) enum Verdict {
    /// This is what became of it.
    Settle(Fate),
    /// It goes out again with the next connection.
    PutBack,
    /// It, and what is behind it in its stream, goes out again a little later.
    PutOff,
}

/// Whether a message may go out.
#[derive(Debug)]
pub(crate) enum Clearance {
    Send,
    /// Only once the disk knows that it was tried.
    Mark,
    Settle(Fate),
}

impl Receiver {
    pub(crate) fn clear(self, history: History) -> Clearance {
        match self {
            Self::Recognising => Clearance::Send,
            Self::Plain if history.idempotent => Clearance::Send,
            // An earlier service may have handled it; this one would handle it again.
            Self::Plain if history.attempted => {
                Clearance::Settle(Fate::Unknown(SendError::Unanswered))
            }
            Self::Plain if history.mark.is_none() => Clearance::Mark,
            Self::Plain => Clearance::Send,
        }
    }

    pub(crate) fn judge(self, history: &mut History, answer: AnswerResult) -> Verdict {
        match answer {
            Err(SendError::Rejected(rejection)) if rejection.is_retryable() => Verdict::PutOff,
            Err(error @ (SendError::Lost(_) | SendError::Unanswered)) => {
                self.judge_unknown(history, error)
            }
            Err(SendError::BatchRejected(rejection)) if rejection.is_retryable() => Verdict::PutOff,
            // Of a batch, it goes out again alone.
            Err(SendError::Closed(_) | SendError::NotEncrypted | SendError::BatchRejected(_)) => {
                Verdict::PutBack
            }
            answer => Verdict::Settle(Fate::of(answer)),
        }
    }

    fn judge_unknown(self, history: &mut History, error: SendError) -> Verdict {
        let silent = matches!(error, SendError::Unanswered);
        history.attempted = true;
        match self {
            Self::Recognising if silent => Verdict::PutOff,
            Self::Recognising => Verdict::PutBack,
            Self::Plain if !history.idempotent => Verdict::Settle(Fate::of(Err(error))),
            Self::Plain if !silent => Verdict::PutBack,
            Self::Plain => {
                history.unanswered += 1;
                if history.unanswered < MAX_UNANSWERED {
                    Verdict::PutOff
                } else {
                    Verdict::Settle(Fate::of(Err(error)))
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use migration_ipc_protocol::messages::ErrorCode;

    use super::*;
    use crate::connection::{Answer, DisconnectReason, Rejection};
    use crate::reconnecting::queue::Confidence;

    const IDEMPOTENT: History = History {
        idempotent: true,
        confidence: Confidence::Open,
        attempted: false,
        unanswered: 0,
        mark: None,
    };
    const OTHER: History = History {
        idempotent: false,
        ..IDEMPOTENT
    };

    fn rejected(code: ErrorCode) -> AnswerResult {
        Err(SendError::Rejected(Rejection {
            error: String::new(),
            code: Some(code),
        }))
    }

    fn batch_rejected(code: ErrorCode) -> AnswerResult {
        Err(SendError::BatchRejected(Rejection {
            error: String::new(),
            code: Some(code),
        }))
    }

    fn lost() -> AnswerResult {
        Err(SendError::Lost(DisconnectReason::ClosedByPeer))
    }

    fn verdict(receiver: Receiver, mut history: History, answer: AnswerResult) -> &'static str {
        match receiver.judge(&mut history, answer) {
            Verdict::Settle(fate) => fate.label(),
            Verdict::PutBack => "put back",
            Verdict::PutOff => "put off",
        }
    }

    /// The guarantee for each pair of peers.
    #[test]
    fn the_table() {
        let closed = || Err(SendError::Closed(DisconnectReason::ClosedByPeer));
        let table = [
            // answer, recognising, plain and idempotent, plain and not
            (Ok(Answer::Handled), ["handled"; 3]),
            (rejected(ErrorCode::BadPayload), ["rejected"; 3]),
            (rejected(ErrorCode::Busy), ["put off"; 3]),
            (rejected(ErrorCode::Stopping), ["put off"; 3]),
            (closed(), ["put back"; 3]),
            (Err(SendError::NotEncrypted), ["put back"; 3]),
            (batch_rejected(ErrorCode::Malformed), ["put back"; 3]),
            (batch_rejected(ErrorCode::Busy), ["put off"; 3]),
            (lost(), ["put back", "put back", "unknown"]),
            (Err(SendError::Unanswered), ["put off", "put off", "sent"]),
        ];
        for (answer, expected) in table {
            let found = [
                verdict(Receiver::Recognising, OTHER, answer.clone()),
                verdict(Receiver::Plain, IDEMPOTENT, answer.clone()),
                verdict(Receiver::Plain, OTHER, answer.clone()),
            ];
            assert_eq!(found, expected, "{answer:?}");
        }
    }

    #[test]
    fn silence_is_endured_a_few_times() {
        let mut history = IDEMPOTENT;
        for tries in 1..=MAX_UNANSWERED {
            let verdict = Receiver::Plain.judge(&mut history, Err(SendError::Unanswered));
            let settled = matches!(verdict, Verdict::Settle(Fate::Sent));
            assert_eq!(settled, tries == MAX_UNANSWERED, "{verdict:?}");
        }
    }

    #[test]
    fn what_a_new_service_may_have_handled_is_not_sent_to_a_plain_one() {
        let mut history = OTHER;
        assert!(matches!(
            Receiver::Recognising.judge(&mut history, lost()),
            Verdict::PutBack
        ));
        assert!(matches!(
            Receiver::Recognising.clear(history),
            Clearance::Send
        ));
        assert!(matches!(
            Receiver::Plain.clear(history),
            Clearance::Settle(Fate::Unknown(_))
        ));
    }

    #[test]
    fn a_plain_service_gets_what_is_not_idempotent_only_once_that_is_on_disk() {
        let mut history = OTHER;
        assert!(matches!(Receiver::Plain.clear(history), Clearance::Mark));
        history.mark = Some(9);
        assert!(matches!(Receiver::Plain.clear(history), Clearance::Send));
        assert!(matches!(Receiver::Plain.clear(IDEMPOTENT), Clearance::Send));
    }
}
