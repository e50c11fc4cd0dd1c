//! Which messages of groups count that are read from a segment.

use std::ops::{Range, RangeInclusive};

use super::format::{Part, RECORD_HEADER_LEN};
use super::index::Place;

/// A message that was read, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) seq: u64,
    pub(super) place: Place,
}

impl Member {
    /// Its record, in its segment.
    pub(super) fn range(&self) -> Range<usize> {
        let start = self.place.offset as usize;
        start..start + RECORD_HEADER_LEN + self.place.length as usize
    }
}

/// Puts groups together from the records of one segment in their order.
#[derive(Debug, Default)]
pub(super) struct Groups {
    /// The write of the last record.
    write: Option<u16>,
    /// The group that is being read.
    open: Vec<Member>,
    /// What there is of groups of this write of which something is missing.
    broken: Vec<Member>,
}

impl Groups {
    /// The write of the last record that was read.
    pub(super) fn last_write(&self) -> Option<u16> {
        self.write
    }

    /// A record of this write comes next. Gives the messages of which that shows that they were
    /// durable.
    pub(super) fn enter_write(&mut self, write: u16) -> Vec<Member> {
        if self.write.replace(write) == Some(write) {
            return Vec::new();
        }
        self.take_broken()
    }

    /// Takes the next message. Gives those that count now.
    pub(super) fn take(&mut self, part: Part, member: Member) -> Vec<Member> {
        match part {
            Part::Alone | Part::First => self.break_off(),
            Part::Between | Part::Last => {}
        }
        let begins = matches!(part, Part::Alone | Part::First);
        let is_missing_some = self.open.is_empty() && !begins;
        self.open.push(member);
        if is_missing_some {
            self.break_off();
        }
        match part {
            Part::Alone | Part::Last => std::mem::take(&mut self.open),
            Part::First | Part::Between => Vec::new(),
        }
    }

    /// These were settled, whether they count or not.
    pub(super) fn settle(&mut self, numbers: RangeInclusive<u64>) {
        self.broken.retain(|member| !numbers.contains(&member.seq));
    }

    /// Whatever comes next does not belong to the group that is being read.
    pub(super) fn break_off(&mut self) {
        self.broken.append(&mut self.open);
    }

    /// What there is of groups of the last write that are not whole.
    pub(super) fn take_broken(&mut self) -> Vec<Member> {
        self.break_off();
        std::mem::take(&mut self.broken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(seq: u64) -> Member {
        let place = Place {
            segment: 1,
            offset: 0,
            length: 0,
        };
        Member { seq, place }
    }

    fn numbers(members: &[Member]) -> Vec<u64> {
        members.iter().map(|member| member.seq).collect()
    }

    fn take(groups: &mut Groups, part: Part, seq: u64) -> Vec<u64> {
        numbers(&groups.take(part, member(seq)))
    }

    #[test]
    fn a_group_counts_once_it_is_whole() {
        let mut groups = Groups::default();
        assert_eq!(take(&mut groups, Part::Alone, 1), [1]);
        assert_eq!(take(&mut groups, Part::First, 2), [0; 0]);
        assert_eq!(take(&mut groups, Part::Between, 3), [0; 0]);
        assert_eq!(take(&mut groups, Part::Last, 4), [2, 3, 4]);
        assert_eq!(groups.take_broken(), []);
    }

    #[test]
    fn what_misses_a_message_is_broken_and_what_stands_beside_it_is_not() {
        let cases = [
            (vec![(Part::First, 1)], vec![1]),
            (vec![(Part::Last, 1)], vec![1]),
            (vec![(Part::Between, 1), (Part::Last, 2)], vec![1, 2]),
            (vec![(Part::First, 1), (Part::Alone, 9)], vec![1]),
            (
                vec![(Part::First, 1), (Part::First, 8), (Part::Last, 9)],
                vec![1],
            ),
        ];
        for (read, broken) in cases {
            let mut groups = Groups::default();
            groups.enter_write(1);
            for (part, seq) in &read {
                groups.take(*part, member(*seq));
            }
            assert_eq!(numbers(&groups.enter_write(1)), [0; 0], "{read:?}");
            assert_eq!(numbers(&groups.take_broken()), broken, "{read:?}");
        }
    }

    #[test]
    fn damage_within_a_group_breaks_it() {
        let mut groups = Groups::default();
        take(&mut groups, Part::First, 1);
        groups.break_off();
        assert_eq!(take(&mut groups, Part::Last, 3), [0; 0]);
        assert_eq!(numbers(&groups.take_broken()), [1, 3]);
    }

    #[test]
    fn a_later_write_shows_that_what_is_left_was_durable() {
        let mut groups = Groups::default();
        assert_eq!(groups.enter_write(u16::MAX), []);
        take(&mut groups, Part::First, 1);
        assert_eq!(groups.enter_write(u16::MAX), []);
        assert_eq!(numbers(&groups.enter_write(0)), [1]);
        assert_eq!(groups.last_write(), Some(0));
        assert_eq!(groups.take_broken(), []);
    }
}
