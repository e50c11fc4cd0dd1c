//! What the books of the store say of one message: whether its handler is to run, what it changed,
//! and how it ended.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use migration_ipc_protocol::messages::ErrorCode;
use migration_ipc_protocol::{IpcMessage, RawValue};
use migration_ipc_store::{Begin, Effects, Origin, StoredOutcome, Ticket, Work};

use super::commit::{Commit, CommitError};
use super::handle::StoreHandle;
use super::speaker::Speaker;
use crate::connection::IpcConnection;
use crate::dispatch::{HandlerError, OutcomeKind, ReplyPayload, panicked};

/// The place of a durable message in the order of its outbox.
#[derive(Debug)]
pub(crate) struct Numbered {
    pub(crate) speaker: Arc<Speaker>,
    pub(crate) stream: Option<Box<str>>,
    pub(crate) seq: u64,
}

/// What the sender of a message is told.
#[derive(Debug)]
pub(crate) enum Conclusion {
    Handled,
    Replied(Box<dyn ReplyPayload>),
    Failed(HandlerError),
    Stored(StoredOutcome),
}

/// What is known at the end of a handler.
#[derive(Debug)]
pub(crate) enum Ending {
    Known(Conclusion),
    /// It is told once it is stored.
    Committing(Commit),
    /// The journal is so far behind that this is told once it has caught up.
    Journaling(Conclusion, Commit),
}

/// Whether the handler of a message is to run.
#[derive(Debug)]
pub(crate) enum EntryStart {
    Run,
    Skip(Conclusion),
}

/// One message at a side that has a store.
#[derive(Debug)]
pub(crate) struct Entry {
    store: StoreHandle,
    connection: IpcConnection,
    kind: Kind,
    state: Mutex<State>,
}

/// Why books are kept of a message.
#[derive(Debug)]
enum Kind {
    /// It is durable.
    Durable(Numbered),
    /// It was a dead letter, which is no more when it is handled.
    DeadLetter(u64),
    /// Neither. There may be a journal, or effects.
    Plain,
}

#[derive(Debug)]
enum State {
    Waiting(Option<IpcMessage>),
    Begun {
        /// What the store is told of it; `None` when it is to know nothing.
        message: Option<IpcMessage>,
        /// There is one for a durable message.
        ticket: Option<Ticket>,
    },
    Committed(Commit),
    Over,
}

impl Entry {
    pub(crate) fn of_numbered(
        store: StoreHandle,
        connection: IpcConnection,
        numbered: Numbered,
        message: IpcMessage,
    ) -> Self {
        Self {
            store,
            connection,
            kind: Kind::Durable(numbered),
            state: Mutex::new(State::Waiting(Some(message))),
        }
    }

    /// `journaled` is what the journal, if there is one, is to say of it.
    pub(crate) fn of_plain(
        store: StoreHandle,
        connection: IpcConnection,
        journaled: Option<IpcMessage>,
    ) -> Self {
        Self {
            store,
            connection,
            kind: Kind::Plain,
            state: Mutex::new(State::Waiting(journaled)),
        }
    }

    /// Of a message that was rejected once, and is given to its handler again.
    pub(crate) fn of_dead_letter(
        store: StoreHandle,
        connection: IpcConnection,
        message: IpcMessage,
        number: u64,
    ) -> Self {
        Self {
            store,
            connection,
            kind: Kind::DeadLetter(number),
            state: Mutex::new(State::Waiting(Some(message))),
        }
    }

    pub(crate) fn is_durable(&self) -> bool {
        matches!(self.kind, Kind::Durable(_))
    }

    /// The handler could start now.
    pub(crate) fn begin(&self) -> EntryStart {
        let mut state = self.lock();
        let State::Waiting(message) = std::mem::replace(&mut *state, State::Over) else {
            return EntryStart::Run;
        };
        let ticket = match &self.kind {
            Kind::Plain | Kind::DeadLetter(_) => None,
            Kind::Durable(numbered) => {
                let Numbered {
                    speaker,
                    stream,
                    seq,
                } = numbered;
                if !speaker.is_newest() {
                    let later = put_off("another connection speaks for its outbox");
                    return EntryStart::Skip(Conclusion::Failed(later));
                }
                let ledger = self.store.ledger();
                match ledger.begin(speaker.key(), stream.as_deref(), *seq) {
                    Begin::New(ticket) => Some(ticket),
                    Begin::Done(outcome) => return EntryStart::Skip(Conclusion::Stored(outcome)),
                    Begin::Busy => {
                        let later = put_off("an earlier message has to come first");
                        return EntryStart::Skip(Conclusion::Failed(later));
                    }
                }
            }
        };
        *state = State::Begun { message, ticket };
        EntryStart::Run
    }

    /// Commits what the message changed, and how it ended. The first commit of a message counts.
    pub(crate) fn commit(&self, effects: Effects) -> Commit {
        let mut state = self.lock();
        match std::mem::replace(&mut *state, State::Over) {
            State::Begun { message, ticket } => {
                let commit = self.submit(message, ticket, effects);
                *state = State::Committed(commit.clone());
                commit
            }
            before @ (State::Waiting(_) | State::Committed(_) | State::Over) => {
                *state = before;
                Commit::failed(CommitError::Again)
            }
        }
    }

    /// The handler has ended, or was never asked.
    pub(crate) fn conclude(&self, outcome: OutcomeKind) -> Ending {
        let state = std::mem::replace(&mut *self.lock(), State::Over);
        match state {
            // What was committed counts, whatever happened after.
            State::Committed(commit) => Ending::Committing(commit),
            State::Begun { message, ticket } => self.conclude_begun(message, ticket, outcome),
            State::Waiting(_) | State::Over => end_unbooked(outcome, Some(&self.store)),
        }
    }

    fn conclude_begun(
        &self,
        message: Option<IpcMessage>,
        ticket: Option<Ticket>,
        outcome: OutcomeKind,
    ) -> Ending {
        let is_kept = message.is_some();
        let commit = |effects| self.submit(message, ticket, effects);
        let told = match outcome {
            OutcomeKind::Effects(effects) => return Ending::Committing(commit(*effects)),
            // Of a `Delivery` that came from elsewhere: not this message's end.
            OutcomeKind::Committing(_) => {
                Conclusion::Failed(HandlerError::new("not the commit of this message"))
            }
            OutcomeKind::Failed(error) if error.code.is_retryable() => {
                return Ending::Known(Conclusion::Failed(error));
            }
            OutcomeKind::Handled => Conclusion::Handled,
            OutcomeKind::Replied(reply) => Conclusion::Replied(reply),
            OutcomeKind::Failed(error) => Conclusion::Failed(error),
        };
        let effects = match &told {
            Conclusion::Handled | Conclusion::Stored(_) => Effects::new(),
            Conclusion::Replied(reply) => self.effects_of_reply(&**reply),
            Conclusion::Failed(error) => refusal(error.clone()),
        };
        match (&self.kind, told) {
            (Kind::Durable(_), _) => Ending::Committing(commit(effects)),
            // It stays what it is.
            (Kind::DeadLetter(_), told @ Conclusion::Failed(_)) => Ending::Known(told),
            (Kind::DeadLetter(_), _) => Ending::Committing(commit(effects)),
            (Kind::Plain, told) if !is_kept => Ending::Known(told),
            (Kind::Plain, told) => {
                let commit = commit(effects);
                // Nobody's answer waits for the journal. But who fills the store's queue waits, so
                // that there is room for others.
                match self.store.is_behind() {
                    false => Ending::Known(told),
                    true => Ending::Journaling(told, commit),
                }
            }
        }
    }

    /// A durable message's reply is kept, to be given again.
    fn effects_of_reply(&self, reply: &dyn ReplyPayload) -> Effects {
        if !self.is_durable() {
            return Effects::new().reply(reply.message_type(), RawValue::NULL.to_owned());
        }
        // The reply's `Serialize` is code of the user's, and may panic like a handler.
        let payload = catch_unwind(AssertUnwindSafe(|| reply.to_json()));
        match payload {
            Ok(Ok(payload)) => Effects::new().reply(reply.message_type(), payload),
            Ok(Err(error)) => refusal(HandlerError::new(format_args!(
                "the reply cannot be sent: {error}"
            ))),
            Err(panic) => refusal(panicked(panic.as_ref())),
        }
    }

    fn submit(
        &self,
        message: Option<IpcMessage>,
        ticket: Option<Ticket>,
        effects: Effects,
    ) -> Commit {
        let effects = match self.kind {
            Kind::DeadLetter(number) if !effects.rejects() => effects.take_dead_letter(number),
            Kind::DeadLetter(_) | Kind::Durable(_) | Kind::Plain => effects,
        };
        let session = self
            .connection
            .announcement()
            .map(|announcement| announcement.session_id.as_str().into());
        self.store.submit(Work {
            ticket,
            effects,
            origin: message.map(|message| Origin {
                account: self.connection.account().as_str().into(),
                session,
                message,
                at: self.connection.config().clock.now(),
            }),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code of a user runs under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The end of a message of which no books are kept.
pub(crate) fn end_unbooked(outcome: OutcomeKind, store: Option<&StoreHandle>) -> Ending {
    let conclusion = match outcome {
        OutcomeKind::Effects(effects) => {
            return Ending::Committing(match store {
                Some(store) => store.submit(Work::of(*effects)),
                None => Commit::failed(CommitError::NoStore),
            });
        }
        OutcomeKind::Committing(commit) => return Ending::Committing(commit),
        OutcomeKind::Handled => Conclusion::Handled,
        OutcomeKind::Replied(reply) => Conclusion::Replied(reply),
        OutcomeKind::Failed(error) => Conclusion::Failed(error),
    };
    Ending::Known(conclusion)
}

impl Conclusion {
    /// What a commit came to. One that failed is to be tried again, unless that were of no use.
    pub(crate) fn of(result: Result<StoredOutcome, CommitError>) -> Self {
        match result {
            Ok(outcome) => Self::Stored(outcome),
            Err(error @ (CommitError::NoStore | CommitError::Again)) => {
                Self::Failed(HandlerError::new(error))
            }
            Err(error) => Self::Failed(put_off(error)),
        }
    }
}

fn put_off(why: impl std::fmt::Display) -> HandlerError {
    HandlerError::new(why).with_code(ErrorCode::Busy)
}

fn refusal(error: HandlerError) -> Effects {
    Effects::new().reject(error.code, error.text)
}
