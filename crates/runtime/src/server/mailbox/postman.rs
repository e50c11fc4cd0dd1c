//! The one task that delivers mail: a round for each user with mail and an announced agent.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use migration_ipc_protocol::{DeliveryHead, Priority, RawValue};
use migration_ipc_store::{DeadLetter, Direction, Effects, KeptMail};
use migration_ipc_transport::{AccountId, BoxFuture};
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use super::Receipts;
use crate::clock::Clock;
use crate::connection::{AnswerResult, ConnectionId, IpcConnection, Parcel, Rejection, SendError};
use crate::delivery::Fate;
use crate::server::events::{ConnectionEvent, Observed};
use crate::server::manager::ConnectionManager;
use crate::store::{CommitError, StoreHandle};

/// How often expired mail is looked for, and mail that could not be read before.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);

/// How long to wait before trying again what an agent, or the disk, could not do.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Delivers what is kept in the store.
pub(in crate::server) struct Postman {
    pub(in crate::server) store: StoreHandle,
    pub(in crate::server) manager: ConnectionManager,
    pub(in crate::server) receipts: Receipts,
    pub(in crate::server) clock: Clock,
    pub(in crate::server) stopping: CancellationToken,
}

/// Whether there may be more mail than a round has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Again {
    Yes,
    No,
}

/// The rounds that are under way: one for each user, so that the order is kept.
#[derive(Default)]
struct Rounds<'a> {
    under_way: FuturesUnordered<BoxFuture<'a, AccountId>>,
    accounts: HashMap<AccountId, Again>,
}

/// What to do after one piece of mail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// It is settled: the next one.
    Mail,
    /// The same again, a little later.
    Retry,
    /// The same again, to another agent.
    OtherAgent,
}

impl Postman {
    /// Delivers until the server stops and its connections have ended.
    pub(in crate::server) async fn run(self: Arc<Self>) {
        let mut events = self.manager.events();
        let mut posted = self.store.posted();
        let mut look = interval(LOOK_INTERVAL);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut rounds = Rounds::default();
        loop {
            tokio::select! {
                biased;
                () = self.stopping.cancelled() => break,
                Some(account) = rounds.under_way.next() => {
                    if rounds.accounts.remove(&account) == Some(Again::Yes) {
                        self.begin(&mut rounds, account);
                    }
                }
                event = events.recv() => match event {
                    Some(Observed::Item(ConnectionEvent::Announced { connection, .. })) => {
                        self.begin(&mut rounds, connection.account().clone());
                    }
                    Some(Observed::Item(_)) => {}
                    Some(Observed::Missed(_)) => self.begin_all(&mut rounds),
                    None => break,
                },
                account = posted.recv() => match account {
                    Ok(account) => self.begin(&mut rounds, AccountId::new(&*account)),
                    Err(RecvError::Lagged(_)) => self.begin_all(&mut rounds),
                    Err(RecvError::Closed) => break,
                },
                _ = look.tick() => {
                    // A failure is logged, and the next look finds what this one missed.
                    drop(self.expire().await);
                    self.begin_all(&mut rounds);
                }
            }
        }
        // What is under way ends with its connection, if not before.
        while rounds.under_way.next().await.is_some() {}
    }

    fn begin_all<'a>(&'a self, rounds: &mut Rounds<'a>) {
        let mut agents = self.manager.announced();
        agents.sort_unstable_by_key(IpcConnection::id);
        for agent in agents {
            self.begin(rounds, agent.account().clone());
        }
    }

    fn begin<'a>(&'a self, rounds: &mut Rounds<'a>, account: AccountId) {
        if let Some(again) = rounds.accounts.get_mut(&account) {
            *again = Again::Yes;
            return;
        }
        if self.manager.by_user(&account).is_empty() {
            return;
        }
        rounds.accounts.insert(account.clone(), Again::No);
        rounds.under_way.push(Box::pin(async move {
            self.round(&account).await;
            account
        }));
    }

    /// Delivers the mail of one user, one after the other, until there is none, or nobody.
    async fn round(&self, account: &AccountId) {
        let mut failed: HashSet<ConnectionId> = HashSet::new();
        while !self.stopping.is_cancelled() {
            let mut agents = self.manager.by_user(account).into_iter();
            let Some(agent) = agents.find(|agent| !failed.contains(&agent.id())) else {
                return;
            };
            let owner = account.clone();
            let first = self
                .store
                .read(move |reader| reader.mail_of(owner.as_str(), 0, 1));
            let kept = match first.await {
                Ok(mut mail) => mail.pop(),
                Err(error) => {
                    tracing::error!(%error, %account, "the mail of a user cannot be read");
                    return;
                }
            };
            let Some(kept) = kept else { return };
            let next = if kept.mail.expires.is_some_and(|at| at <= self.clock.now()) {
                match self.expire().await {
                    Ok(()) => Next::Mail,
                    Err(_) => Next::Retry,
                }
            } else {
                self.deliver(&agent, kept).await
            };
            match next {
                Next::Mail => {}
                Next::Retry => self.pause().await,
                Next::OtherAgent => {
                    failed.insert(agent.id());
                }
            }
        }
    }

    /// Gives a piece of mail to an agent. Until that has answered, nobody but an operator takes it
    /// away: it may have been handled.
    async fn deliver(&self, agent: &IpcConnection, kept: KeptMail) -> Next {
        let id = kept.mail.message.id.clone();
        let under_way = self.receipts.set_out(kept.number);
        let next = tokio::select! {
            biased;
            answer = post(agent, &kept) => self.settle(agent, kept, answer).await,
            () = under_way.recalled() => {
                self.receipts.note_lost(&id, SendError::Unanswered);
                Next::Retry
            }
        };
        let is_dropped = under_way.end() && next != Next::Mail;
        if is_dropped {
            let fate = Fate::NotSent(SendError::Dropped);
            self.receipts.resolve_undelivered(&id, fate);
            return Next::Mail;
        }
        next
    }

    async fn settle(&self, agent: &IpcConnection, kept: KeptMail, answer: AnswerResult) -> Next {
        let (letter, fate) = match answer {
            Err(SendError::Rejected(rejection)) if rejection.is_retryable() => return Next::Retry,
            Err(SendError::Rejected(rejection)) => {
                let letter = self.dead_letter(agent, &kept, rejection.clone());
                (Some(letter), Fate::Rejected(rejection))
            }
            Err(SendError::Encode(error)) => {
                let rejection = Rejection {
                    error: error.to_string(),
                    code: None,
                };
                let letter = self.dead_letter(agent, &kept, rejection);
                (Some(letter), Fate::NotSent(SendError::Encode(error)))
            }
            // It was written, to an agent that need not answer.
            Err(SendError::Unanswered) => (None, Fate::Sent),
            Err(error) => {
                if !error.is_certainly_unhandled() {
                    self.receipts.note_lost(&kept.mail.message.id, error);
                }
                return Next::OtherAgent;
            }
            Ok(answer) => (None, Fate::of(Ok(answer))),
        };
        self.remove(kept.number, letter).await;
        self.receipts.resolve(&kept.mail.message.id, fate);
        Next::Mail
    }

    /// Removes what is delivered. While the disk fails it waits: sent again, it would come twice.
    async fn remove(&self, number: u64, letter: Option<DeadLetter>) {
        loop {
            let mut effects = Effects::new().drop_mail(number);
            if let Some(letter) = &letter {
                effects = effects.dead_letter(letter.clone());
            }
            let removed = self.store.commit(effects).await;
            if removed.is_ok() || self.stopping.is_cancelled() {
                return;
            }
            self.pause().await;
        }
    }

    fn dead_letter(
        &self,
        agent: &IpcConnection,
        kept: &KeptMail,
        rejection: Rejection,
    ) -> DeadLetter {
        let announced = agent.announcement();
        DeadLetter {
            direction: Direction::ToAgent,
            account: kept.account.clone(),
            session: announced.map(|announced| announced.session_id.as_str().into()),
            message: kept.mail.message.clone(),
            code: rejection.code,
            text: rejection.error.into(),
            at: self.clock.now(),
        }
    }

    async fn expire(&self) -> Result<(), CommitError> {
        loop {
            let under_way = self.receipts.under_way();
            let expired = self.store.expire_mail(self.clock.now(), under_way).await?;
            if expired.is_empty() {
                return Ok(());
            }
            for kept in expired {
                let id = &kept.mail.message.id;
                self.receipts.resolve_undelivered(id, Fate::Expired);
            }
        }
    }

    async fn pause(&self) {
        tokio::select! {
            () = sleep(RETRY_INTERVAL) => {}
            () = self.stopping.cancelled() => {}
        }
    }
}

/// Sends a piece of mail and waits for what comes of it.
async fn post(agent: &IpcConnection, kept: &KeptMail) -> AnswerResult {
    let message = &kept.mail.message;
    let payload = message.payload.as_deref().unwrap_or(RawValue::NULL);
    let spelled = agent.spell_user_in(payload);
    let parcel = Parcel {
        id: &message.id,
        message_type: message.message_type.as_str(),
        timestamp: message.timestamp,
        payload: spelled.as_deref().unwrap_or(payload),
        delivery: Some(DeliveryHead {
            seq: kept.number,
            stream: None,
        }),
        priority: Priority::Normal,
    };
    let answer = agent.post_parcel(parcel).await?;
    let gone = SendError::Lost(crate::connection::DisconnectReason::Aborted);
    answer.await.unwrap_or(Err(gone))
}
