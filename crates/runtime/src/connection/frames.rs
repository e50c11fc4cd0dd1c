//! In which frames the messages are that wait for an answer, for a peer that names frames by their
//! numbers.
//!
//! A message gets its number when it leaves its lane. Only those that wait are listed, so the list
//! is bounded as they are, whatever else goes out; and a range, however long, costs as much as there
//! is of them in it.

use std::collections::VecDeque;

use migration_ipc_protocol::MessageId;

use super::lane_kind::{LaneKind, Place};
use super::lanes::Departure;
use super::rewind::rewind;

/// Messages that are answered already may be this many, and as many more as wait, before the list is
/// looked through for them.
const SLACK: usize = 64;

/// A message that waited when it was listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) id: MessageId,
    /// Tells it from another one of its id.
    pub(crate) number: u64,
}

/// By ordinal or by number, ascending.
type Ordered = VecDeque<(u64, Listed)>;

#[derive(Debug, Default)]
pub(crate) struct Frames {
    /// Those in the lanes, with their ordinals, ascending. Invariant: at most as many as frames are
    /// in the lane. `None` where none has been listed.
    queued: [Option<Box<Ordered>>; LaneKind::COUNT],
    /// Those that have left, with the numbers of their frames, ascending.
    left: Ordered,
}

impl Frames {
    /// Lists the message of the frame that enters a lane last.
    pub(crate) fn list(&mut self, place: Place, message: Listed) {
        let queued = self.queued[place.lane.index()].get_or_insert_default();
        queued.push_back((place.ordinal, message));
    }

    /// Frames have left their lane. `waiting` messages wait at all, and `waits` knows which.
    pub(crate) fn note_left(
        &mut self,
        departure: Departure,
        waiting: usize,
        waits: impl Fn(&Listed) -> bool,
    ) {
        let Departure {
            place,
            frames,
            number,
        } = departure;
        let Some(queued) = &mut self.queued[place.lane.index()] else {
            return;
        };
        let end = place.ordinal + frames;
        while let Some((ordinal, message)) = queued.pop_front_if(|(ordinal, _)| *ordinal < end) {
            self.left
                .push_back((number + (ordinal - place.ordinal), message));
        }
        rewind(queued);
        if self.left.len() > 2 * waiting + SLACK {
            self.left.retain(|(_, message)| waits(message));
        }
    }

    /// Takes the messages in these frames off the list, in their order.
    pub(crate) fn take(&mut self, first: u64, last: u64) -> impl Iterator<Item = Listed> {
        rewind(&mut self.left);
        let from = self.left.partition_point(|(frame, _)| *frame < first);
        let to = self.left.partition_point(|(frame, _)| *frame <= last);
        self.left.drain(from..to).map(|(_, message)| message)
    }

    /// Nobody waits: gives back what a burst made it allocate.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// The message in this frame.
    pub(crate) fn get(&self, frame: u64) -> Option<&Listed> {
        let found = self
            .left
            .binary_search_by_key(&frame, |(frame, _)| *frame)
            .ok()?;
        self.left.get(found).map(|(_, message)| message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(number: u64) -> Listed {
        Listed {
            id: MessageId::new(&number.to_string()).unwrap(),
            number,
        }
    }

    fn place(lane: LaneKind, ordinal: u64) -> Place {
        Place { lane, ordinal }
    }

    fn depart(frames: &mut Frames, lane: LaneKind, ordinal: u64, count: u64, number: u64) {
        let departure = Departure {
            place: place(lane, ordinal),
            frames: count,
            number,
        };
        frames.note_left(departure, 1000, |_| true);
    }

    fn taken(frames: &mut Frames, first: u64, last: u64) -> Vec<u64> {
        frames
            .take(first, last)
            .map(|listed| listed.number)
            .collect()
    }

    #[test]
    fn a_message_is_found_by_the_number_that_its_frame_got_when_it_left() {
        let mut frames = Frames::default();
        // Nobody waits for the frames 0 and 2 of the lane.
        frames.list(place(LaneKind::Normal, 1), listed(10));
        frames.list(place(LaneKind::Normal, 3), listed(11));
        frames.list(place(LaneKind::High, 0), listed(12));
        assert!(taken(&mut frames, 0, u64::MAX).is_empty(), "none has left");
        depart(&mut frames, LaneKind::High, 0, 1, 5);
        depart(&mut frames, LaneKind::Normal, 0, 3, 6);
        assert_eq!(frames.get(5), Some(&listed(12)));
        assert_eq!(frames.get(6), None);
        assert_eq!(frames.get(7), Some(&listed(10)));
        depart(&mut frames, LaneKind::Normal, 3, 1, 9);
        assert_eq!(taken(&mut frames, 6, 9), [10, 11]);
        assert_eq!(taken(&mut frames, 1, u64::MAX), [12]);
        assert!(taken(&mut frames, 1, u64::MAX).is_empty());
    }

    /// A range costs as much as there is in it, and not as much as it is long.
    #[test]
    fn a_range_may_be_as_long_as_there_are_numbers() {
        let mut frames = Frames::default();
        for (ordinal, number) in [(0, 1), (1, u64::MAX / 2), (2, u64::MAX)] {
            frames.list(place(LaneKind::Bulk, ordinal), listed(ordinal));
            depart(&mut frames, LaneKind::Bulk, ordinal, 1, number);
        }
        for _ in 0..1000 {
            assert!(taken(&mut frames, 2, u64::MAX / 2 - 1).is_empty());
        }
        assert_eq!(taken(&mut frames, 1, u64::MAX), [0, 1, 2]);
    }

    #[test]
    fn what_was_answered_by_its_id_does_not_pile_up_behind_one_that_is_not() {
        let mut frames = Frames::default();
        for number in 0..100_000 {
            frames.list(place(LaneKind::Normal, number), listed(number));
            let departure = Departure {
                place: place(LaneKind::Normal, number),
                frames: 1,
                number: number + 1,
            };
            // Only the first one still waits.
            frames.note_left(departure, 1, |listed| listed.number == 0);
            assert!(frames.left.len() <= 3 + SLACK);
        }
        assert_eq!(frames.get(1), Some(&listed(0)));
    }
}
