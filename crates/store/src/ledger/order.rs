//! Messages that were put off, and the order that they hold up.
//!
//! A sender answers "put off" by sending again from the lowest unsettled number of the stream on,
//! in order. Until then later numbers of the stream are put off too, else they would overtake.

use std::collections::{BTreeMap, HashMap};

use migration_ipc_protocol::limits::DELIVERY_WINDOW;

use crate::planted::{PlantedBug, is_planted};

/// The most marks of one outbox. A sender has no more numbers than this unsettled.
const MAX_MARKS: u64 = DELIVERY_WINDOW;

/// The numbers of one outbox that were put off, by stream.
#[derive(Debug, Default)]
pub(crate) struct PutOff {
    /// Invariant: no stream is empty.
    streams: HashMap<Box<str>, Marks>,
    /// Invariant: how many marks all streams have, at most [`MAX_MARKS`].
    count: u64,
}

/// Numbers that were put off.
type Marks = BTreeMap<u64, Mark>;

/// What happened to a number, by a count that rises with everything that happens.
#[derive(Clone, Copy, Debug)]
struct Mark {
    /// When it arrived last.
    arrived: u64,
    /// When it was put off after that, and its sender told.
    told: u64,
    /// When it was put off last. Later than `told` when a handler of an older connection ended
    /// since.
    put_off: u64,
}

impl Mark {
    fn new(arrived: u64, put_off: u64) -> Self {
        Self {
            arrived,
            told: put_off,
            put_off,
        }
    }

    fn again(&mut self, arrived: u64, put_off: u64) {
        if arrived >= self.arrived {
            self.arrived = arrived;
            self.told = put_off;
        }
        self.put_off = put_off;
    }

    /// Whether the sender, when it was told of the other number, knew that this one was put off.
    fn was_known_to(self, other: Self) -> bool {
        self.arrived < other.arrived && self.put_off < other.told
    }
}

impl PutOff {
    /// Whether a number that arrives has its turn. If so it is marked no longer.
    ///
    /// A lower number that was put off goes first, unless its sender has given it up. That shows
    /// when a number comes again whose sender should have sent the lower one before it.
    pub(crate) fn arrive(&mut self, stream: &str, seq: u64) -> bool {
        let Some(marks) = self.streams.get_mut(stream) else {
            return true;
        };
        let before = marks.len();
        if let Some(&last) = marks.get(&seq) {
            marks.retain(|lower, mark| *lower >= seq || !mark.was_known_to(last));
        }
        let has_turn = marks.range(..seq).next().is_none();
        if has_turn {
            marks.remove(&seq);
        }
        self.count -= (before - marks.len()) as u64;
        self.drop_if_empty(stream);
        has_turn
    }

    /// Marks a number that arrived at the one time and is put off at the other. Over the bound it is
    /// not marked: only a sender that does not keep to the window gets there, and it loses the
    /// order of its own messages.
    pub(crate) fn mark(&mut self, stream: &str, seq: u64, arrived: u64, now: u64) {
        if is_planted(PlantedBug::PutOffNotHeld) {
            return;
        }
        let known = self.streams.get_mut(stream);
        if let Some(mark) = known.and_then(|marks| marks.get_mut(&seq)) {
            mark.again(arrived, now);
            return;
        }
        if self.count >= MAX_MARKS {
            return;
        }
        self.count += 1;
        let mark = Mark::new(arrived, now);
        match self.streams.get_mut(stream) {
            Some(marks) => {
                marks.insert(seq, mark);
            }
            None => {
                self.streams
                    .insert(stream.into(), Marks::from([(seq, mark)]));
            }
        }
    }

    /// The numbers below this one that are to come first.
    pub(crate) fn before(&self, stream: &str, seq: u64) -> impl Iterator<Item = u64> {
        let marks = self.streams.get(stream).into_iter();
        marks.flat_map(move |marks| marks.range(..seq).map(|(lower, _)| *lower))
    }

    /// Forgets a number that is done.
    pub(crate) fn done(&mut self, stream: &str, seq: u64) {
        if let Some(marks) = self.streams.get_mut(stream) {
            self.count -= u64::from(marks.remove(&seq).is_some());
            self.drop_if_empty(stream);
        }
    }

    /// Forgets the numbers up to this one: they are settled with their sender.
    pub(crate) fn forget_to(&mut self, floor: u64) {
        self.streams.retain(|_, marks| {
            marks.retain(|seq, _| *seq > floor);
            !marks.is_empty()
        });
        self.count = self.streams.values().map(|marks| marks.len() as u64).sum();
    }

    fn drop_if_empty(&mut self, stream: &str) {
        if self.streams.get(stream).is_some_and(BTreeMap::is_empty) {
            self.streams.remove(stream);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each arrived, and was put off, at the time that is its number.
    fn put_off(seqs: &[u64]) -> PutOff {
        let mut order = PutOff::default();
        for seq in seqs {
            order.mark("s", *seq, *seq, *seq);
        }
        order
    }

    #[test]
    fn later_numbers_wait_until_the_one_that_was_put_off_comes_again() {
        let mut order = put_off(&[1]);
        for seq in [2, 3] {
            assert!(!order.arrive("s", seq));
            order.mark("s", seq, seq, seq);
        }
        assert!(order.arrive("s", 1));
        assert!(!order.arrive("s", 4), "2 and 3 have not come again");
        assert!(order.arrive("s", 2));
        assert!(order.arrive("s", 3));
        assert!(order.arrive("s", 4));
        assert!(order.streams.is_empty() && order.count == 0);
    }

    #[test]
    fn other_streams_do_not_wait() {
        let mut order = put_off(&[1]);
        assert!(order.arrive("t", 2));
    }

    #[test]
    fn what_comes_again_behind_one_that_is_put_off_again_waits_again() {
        let mut order = put_off(&[1, 2]);
        assert!(order.arrive("s", 1));
        order.mark("s", 1, 11, 11);
        assert!(!order.arrive("s", 2), "1 has come since 2 came last");
        order.mark("s", 2, 12, 12);
        // A handler of an older connection ends late: the sender is not told.
        order.mark("s", 1, 11, 13);
        order.mark("s", 2, 2, 14);
        assert!(!order.arrive("s", 2));
    }

    #[test]
    fn a_number_whose_sender_does_not_know_yet_was_not_left_out() {
        let mut order = PutOff::default();
        order.mark("s", 2, 2, 2);
        // Its handler ran all the time.
        order.mark("s", 1, 1, 3);
        assert!(!order.arrive("s", 2));
        order.mark("s", 2, 4, 4);
        assert!(order.arrive("s", 2), "now it was left out");
    }

    #[test]
    fn a_number_that_its_sender_left_out_holds_nobody_up() {
        let mut order = put_off(&[1, 2]);
        assert!(order.arrive("s", 2), "2 comes again without 1");
        assert!(order.arrive("s", 3));
        assert_eq!(order.count, 0);
    }

    #[test]
    fn marks_are_bounded_and_forgotten_with_the_window() {
        let mut order = PutOff::default();
        for seq in 1..=2 * MAX_MARKS {
            order.mark("s", seq, seq, seq);
        }
        assert_eq!(order.count, MAX_MARKS);
        order.forget_to(MAX_MARKS - 1);
        assert_eq!(order.count, 1);
        order.done("s", MAX_MARKS);
        assert!(order.streams.is_empty() && order.count == 0);
    }
}
