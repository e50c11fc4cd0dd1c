//! Bodies that this side sends in pieces: which are under way, and how much of them the peer takes.

use std::sync::{Mutex, MutexGuard, PoisonError};

use migration_ipc_protocol::extensions::{ChunksEnd, ChunksTake};
use migration_ipc_protocol::limits::MAX_TRANSFERS;
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio_util::sync::CancellationToken;

use super::reason::DisconnectReason;

/// How far the peer has come with a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// It has not answered yet.
    Begun,
    /// It takes the bytes from `from` on, up to `to` for now.
    Taking { from: u64, to: u64 },
    /// It wants no more of it.
    Ended(ChunksEnd),
    /// The connection takes nothing more.
    Closed(DisconnectReason),
}

#[derive(Debug)]
struct UnderWay {
    number: u32,
    bytes: u64,
    step: watch::Sender<Step>,
}

#[derive(Debug, Default)]
struct State {
    /// The highest number that was used.
    last: u32,
    under_way: Vec<UnderWay>,
    closed: Option<DisconnectReason>,
}

/// The transfers of one connection, in the direction in which this side sends.
#[derive(Debug)]
pub(crate) struct Transfers {
    state: Mutex<State>,
    /// One for each transfer that may be under way.
    turns: Semaphore,
    ended: CancellationToken,
}

impl Transfers {
    pub(crate) fn new() -> Self {
        Self {
            state: Mutex::default(),
            turns: Semaphore::new(MAX_TRANSFERS),
            ended: CancellationToken::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every section leaves the table whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn closed(&self) -> DisconnectReason {
        let closed = self.lock().closed.clone();
        closed.unwrap_or(DisconnectReason::Aborted)
    }

    /// Waits until one more transfer may be under way. Cancel safe.
    pub(crate) async fn turn(&self) -> Result<SemaphorePermit<'_>, DisconnectReason> {
        self.turns.acquire().await.map_err(|_| self.closed())
    }

    /// Waits until the connection takes nothing more. Cancel safe.
    pub(crate) async fn ended(&self) {
        self.ended.cancelled().await;
    }

    /// Gives a transfer its number, and says so to the peer: `say` puts that into a lane, while no
    /// other transfer can get a number, so that the peer sees them grow.
    pub(crate) fn begin(
        &self,
        bytes: u64,
        say: impl FnOnce(u32),
    ) -> Result<(u32, watch::Receiver<Step>), DisconnectReason> {
        let mut state = self.lock();
        if let Some(reason) = &state.closed {
            return Err(reason.clone());
        }
        // No connection lives through four thousand million transfers.
        let number = state
            .last
            .checked_add(1)
            .ok_or(DisconnectReason::ClosedLocally)?;
        state.last = number;
        let (step, steps) = watch::channel(Step::Begun);
        state.under_way.push(UnderWay {
            number,
            bytes,
            step,
        });
        say(number);
        Ok((number, steps))
    }

    /// A transfer is of no interest any more. Says whether the peer still believes in it.
    pub(crate) fn forget(&self, number: u32) -> bool {
        let mut state = self.lock();
        let found = state
            .under_way
            .iter()
            .position(|under_way| under_way.number == number);
        let Some(found) = found else { return false };
        let under_way = state.under_way.swap_remove(found);
        let step = under_way.step.borrow();
        matches!(*step, Step::Begun | Step::Taking { .. })
    }

    /// The peer says how much of a body it takes.
    pub(crate) fn handle_take(&self, take: ChunksTake) -> Result<(), DisconnectReason> {
        let ChunksTake { transfer, from, to } = take;
        let state = self.lock();
        let Some(under_way) = state.find(transfer)? else {
            return Ok(());
        };
        let before = under_way.step.borrow().clone();
        let fits = from < to && to <= under_way.bytes;
        let fits = match before {
            Step::Begun => fits,
            Step::Taking {
                from: from_before,
                to: to_before,
            } => fits && from == from_before && to > to_before,
            Step::Ended(_) | Step::Closed(_) => return Ok(()),
        };
        if !fits {
            return Err(violation("it takes of a body in chunks what cannot be"));
        }
        under_way.step.send_replace(Step::Taking { from, to });
        Ok(())
    }

    /// The peer wants no more of a body.
    pub(crate) fn handle_end(&self, end: ChunksEnd) -> Result<(), DisconnectReason> {
        let state = self.lock();
        if let Some(under_way) = state.find(end.transfer)? {
            under_way.step.send_replace(Step::Ended(end));
        }
        Ok(())
    }

    /// The connection takes nothing more.
    pub(crate) fn close(&self, reason: &DisconnectReason) {
        let mut state = self.lock();
        state.closed.get_or_insert_with(|| reason.clone());
        for under_way in &state.under_way {
            under_way.step.send_if_modified(|step| match step {
                Step::Begun | Step::Taking { .. } => {
                    *step = Step::Closed(reason.clone());
                    true
                }
                Step::Ended(_) | Step::Closed(_) => false,
            });
        }
        drop(state);
        self.turns.close();
        self.ended.cancel();
    }
}

impl State {
    /// `None` for one that is over.
    fn find(&self, number: u32) -> Result<Option<&UnderWay>, DisconnectReason> {
        if number == 0 || number > self.last {
            return Err(violation("it speaks of a transfer that was never begun"));
        }
        let mut under_way = self.under_way.iter();
        Ok(under_way.find(|under_way| under_way.number == number))
    }
}

pub(crate) fn violation(text: &str) -> DisconnectReason {
    DisconnectReason::Violation(text.to_owned())
}

#[cfg(test)]
mod tests {
    use migration_ipc_protocol::extensions::ChunksEndCode;

    use super::*;

    fn take(transfer: u32, from: u64, to: u64) -> ChunksTake {
        ChunksTake { transfer, from, to }
    }

    fn end(transfer: u32) -> ChunksEnd {
        ChunksEnd {
            transfer,
            code: ChunksEndCode::Busy,
            error: String::new(),
        }
    }

    fn begun(transfers: &Transfers) -> (u32, watch::Receiver<Step>) {
        transfers.begin(1000, |_| {}).unwrap()
    }

    #[test]
    fn what_cannot_be_taken_is_a_violation() {
        for takes in [
            vec![take(1, 0, 1001)],
            vec![take(1, 1000, 1000)],
            vec![take(1, 10, 10)],
            vec![take(1, 500, 400)],
            vec![take(1, u64::MAX, u64::MAX)],
            vec![take(1, 0, 500), take(1, 0, 500)],
            vec![take(1, 0, 500), take(1, 0, 400)],
            vec![take(1, 0, 500), take(1, 1, 600)],
            vec![take(0, 0, 500)],
            vec![take(2, 0, 500)],
        ] {
            let transfers = Transfers::new();
            begun(&transfers);
            let taken = takes.iter().map(|take| transfers.handle_take(*take));
            let last = taken.last();
            assert!(
                matches!(last, Some(Err(DisconnectReason::Violation(_)))),
                "{takes:?}"
            );
        }
    }

    #[test]
    fn what_comes_late_for_a_transfer_that_is_over_means_nothing() {
        let transfers = Transfers::new();
        let (first, steps) = begun(&transfers);
        let (second, _steps) = begun(&transfers);
        transfers.handle_take(take(first, 0, 500)).unwrap();
        transfers.handle_end(end(first)).unwrap();
        transfers.handle_take(take(first, 7, 5)).unwrap();
        assert!(matches!(*steps.borrow(), Step::Ended(_)));
        assert!(!transfers.forget(first), "the peer ended it");
        assert!(transfers.forget(second), "the peer believes in it");
        for number in [first, second] {
            transfers.handle_take(take(number, 0, 5)).unwrap();
            transfers.handle_end(end(number)).unwrap();
            assert!(!transfers.forget(number));
        }
    }

    #[tokio::test]
    async fn the_end_of_the_connection_ends_what_is_under_way_and_what_waits() {
        let transfers = Transfers::new();
        let (_, steps) = begun(&transfers);
        let reason = DisconnectReason::ClosedByPeer;
        transfers.close(&reason);
        assert_eq!(*steps.borrow(), Step::Closed(reason.clone()));
        assert_eq!(transfers.begin(1, |_| {}).unwrap_err(), reason);
        assert_eq!(transfers.turn().await.unwrap_err(), reason);
    }
}
