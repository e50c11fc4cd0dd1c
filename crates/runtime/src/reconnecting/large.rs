//! Messages that may be longer than a frame, on their way from memory to one connection after the
//! other, until one has taken them whole.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use migration_ipc_protocol::EncodeError;
use migration_ipc_protocol::MessagePayload;
use migration_ipc_protocol::limits::{MAX_CHUNKED_BODY, MAX_TRANSFERS};
use migration_ipc_protocol::messages::ErrorCode;
use tokio::sync::Notify;

use super::queue::Awaited;
use super::sending::ended;
use super::shared::{Core, Doors, Shared};
use crate::clock::Clock;
use crate::config::MAX_TIMEOUT;
use crate::connection::{
    AnswerResult, DisconnectReason, IpcConnection, LargeBody, Rejection, SendError,
};
use crate::delivery::{Fate, Receipt, Resolver, receipt};

/// Large messages that are accepted and not settled, at most: two for each that is under way.
const MAX_LARGE: usize = 2 * MAX_TRANSFERS;

/// Their bytes, which are held in memory. One more is accepted whenever they are fewer.
const MAX_LARGE_BYTES: usize = 64 * 1024 * 1024;

#[derive(Debug)]
pub(super) struct Letter {
    body: Arc<LargeBody>,
    resolver: Resolver,
}

/// A message as it is kept, and its receipt. What the service takes is known once there is a
/// connection.
pub(super) fn write<P: MessagePayload>(
    clock: Clock,
    payload: &P,
) -> Result<(Receipt, Letter), EncodeError> {
    let body = Arc::new(LargeBody::encode(clock, payload, MAX_CHUNKED_BODY)?);
    let (receipt, resolver) = receipt(body.id().clone());
    Ok((receipt, Letter { body, resolver }))
}

/// The large messages of a client.
#[derive(Debug, Default)]
pub(super) struct Large {
    /// By their numbers, in the order in which they were accepted.
    waiting: BTreeMap<u64, Letter>,
    /// Those that go out with the next connection, because the service of this one stops.
    put_off: Vec<(u64, Letter)>,
    next_number: u64,
    /// Those that wait, and those that are under way.
    messages: usize,
    bytes: usize,
}

impl Large {
    pub(super) fn messages(&self) -> usize {
        self.messages
    }

    fn has_room(&self) -> bool {
        self.messages < MAX_LARGE && self.bytes < MAX_LARGE_BYTES
    }

    fn push(&mut self, letter: Letter) {
        self.messages += 1;
        self.bytes += letter.body.len();
        self.waiting.insert(self.next_number, letter);
        self.next_number += 1;
    }

    /// What the service of the last connection put off need not wait any longer.
    fn resume(&mut self) {
        self.waiting.extend(self.put_off.drain(..));
    }

    fn release(&mut self, letter: &Letter) {
        self.messages -= 1;
        self.bytes -= letter.body.len();
    }
}

impl Core {
    fn settle_large(&mut self, letter: Letter, fate: Fate) {
        self.large.release(&letter);
        self.resolve(Awaited::Receipt(letter.resolver), fate);
    }

    /// Ends all large messages that are not under way.
    pub(super) fn drain_large(&mut self, error: &SendError) -> usize {
        self.large.resume();
        let mut drained = 0;
        while let Some((_, letter)) = self.large.waiting.pop_first() {
            drained += 1;
            self.settle_large(letter, Fate::NotSent(error.clone()));
        }
        drained
    }

    fn answer_large(&mut self, number: u64, letter: Letter, answer: AnswerResult) {
        match answer {
            // It goes out with the next connection, in its old place, from where the service says.
            Err(SendError::Closed(reason)) => match self.doors {
                Doors::Closed => {
                    self.remaining.dropped += 1;
                    self.settle_large(letter, Fate::NotSent(SendError::Closed(reason)));
                }
                Doors::Open | Doors::GaveUp(_) | Doors::Stopping(_) => {
                    self.large.waiting.insert(number, letter);
                }
            },
            Err(SendError::Rejected(Rejection {
                code: Some(ErrorCode::Stopping),
                ..
            })) => self.large.put_off.push((number, letter)),
            // Another connection may be encrypted.
            Err(SendError::NotEncrypted) => self.large.put_off.push((number, letter)),
            answer => self.settle_large(letter, Fate::of(answer)),
        }
    }
}

impl Shared {
    /// Takes a large message into memory, waiting for room. Cancel safe: it is taken in the last
    /// step.
    pub(super) async fn accept_large(&self, letter: Letter) -> Result<(), SendError> {
        loop {
            let mut room = std::pin::pin!(self.room.notified());
            room.as_mut().enable();
            {
                let mut core = self.lock();
                match &core.doors {
                    Doors::Open => {}
                    Doors::GaveUp(trouble) => return Err(SendError::GaveUp(trouble.clone())),
                    Doors::Stopping(_) | Doors::Closed => {
                        return Err(SendError::Closed(DisconnectReason::Stopped));
                    }
                }
                if core.large.has_room() {
                    core.large.push(letter);
                    drop(core);
                    self.large_work.notify_one();
                    return Ok(());
                }
            }
            room.await;
        }
    }

    /// Waits for the next one. Cancel safe: it is taken in the last step.
    async fn next_large(&self) -> (u64, Letter) {
        loop {
            let next = self.lock().large.waiting.pop_first();
            match next {
                Some(next) => return next,
                None => Notify::notified(&self.large_work).await,
            }
        }
    }
}

/// Sends large messages over this connection until it has ended, and every one of them is accounted
/// for.
pub(super) async fn serve(shared: &Shared, connection: &IpcConnection) {
    shared.lock().large.resume();
    let mut ended = std::pin::pin!(ended(connection));
    // Whether the service takes them is only known once it has shown what it is.
    tokio::select! {
        biased;
        () = &mut ended => return,
        () = connection.shown().cancelled() => {}
    }
    let send = async |number: u64, letter: Letter| {
        let sending = connection.send_body(Arc::clone(&letter.body));
        (number, letter, sending.patience(MAX_TIMEOUT).await)
    };
    let mut under_way = FuturesUnordered::new();
    let mut is_over = false;
    loop {
        let has_turn = !is_over && under_way.len() < MAX_TRANSFERS;
        tokio::select! {
            biased;
            Some((number, letter, answer)) = under_way.next() => {
                shared.lock().answer_large(number, letter, answer);
                shared.note_settled();
            }
            () = &mut ended, if !is_over => is_over = true,
            (number, letter) = shared.next_large(), if has_turn => {
                under_way.push(send(number, letter));
            }
            else => return,
        }
    }
}
