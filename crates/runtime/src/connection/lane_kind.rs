//! Which lanes there are, and what sets them apart.

use std::iter;

use migration_ipc_protocol::Priority;

/// What a byte costs its lane, in a measure that those that share have in common: while all of them
/// have something to send, they get 16, 4 and 1 part of it. A large step, because who asks for
/// another priority means it, and small enough for bulk to get its twentieth part.
const HIGH_COST: u64 = 1;
const NORMAL_COST: u64 = 4;
const BULK_COST: u64 = 16;

/// Which lane a frame waits in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LaneKind {
    /// Acknowledgments, replies, heartbeats, hello, credit and goodbye: exempt from credit, and
    /// ahead of everything else.
    Control,
    /// Messages, by their priority.
    High,
    Normal,
    /// Items of streaming replies, and the answers behind them: exempt from credit, since their
    /// reader has granted them.
    Items,
    Bulk,
    /// Pieces of bodies that are sent in chunks: exempt from credit, since their receiver says how
    /// far they may go.
    Pieces,
}

impl LaneKind {
    pub(crate) const COUNT: usize = 6;

    /// In the order in which they are looked at.
    pub(crate) const ALL: [Self; Self::COUNT] = [
        Self::Control,
        Self::High,
        Self::Normal,
        Self::Items,
        Self::Bulk,
        Self::Pieces,
    ];

    /// The lane of messages of this priority.
    pub(crate) const fn of(priority: Priority) -> Self {
        match priority {
            Priority::High => Self::High,
            Priority::Normal => Self::Normal,
            Priority::Bulk => Self::Bulk,
        }
    }

    pub(crate) const fn index(self) -> usize {
        self as usize
    }

    /// What a byte costs it. Control goes first with all that it has, and pays nothing.
    pub(crate) const fn byte_cost(self) -> u64 {
        match self {
            Self::Control => 0,
            Self::High => HIGH_COST,
            Self::Normal | Self::Items => NORMAL_COST,
            Self::Bulk | Self::Pieces => BULK_COST,
        }
    }

    /// Whether what waits in it are messages of senders, which use up credit, and not what the
    /// connection itself has to say.
    pub(crate) const fn holds_messages(self) -> bool {
        LaneSet::MESSAGES.contains(self)
    }
}

/// Some of the lanes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct LaneSet(u8);

impl LaneSet {
    /// Those that take turns.
    pub(crate) const SHARING: Self = Self::of(&[
        LaneKind::High,
        LaneKind::Normal,
        LaneKind::Items,
        LaneKind::Bulk,
        LaneKind::Pieces,
    ]);

    /// Those of messages.
    pub(crate) const MESSAGES: Self = Self::of(&[LaneKind::High, LaneKind::Normal, LaneKind::Bulk]);

    const fn of(lanes: &[LaneKind]) -> Self {
        let mut set = Self(0);
        let mut rest = lanes;
        while let Some((lane, others)) = rest.split_first() {
            set.0 |= 1 << lane.index();
            rest = others;
        }
        set
    }

    pub(crate) const fn contains(self, lane: LaneKind) -> bool {
        self.0 & 1 << lane.index() != 0
    }

    pub(crate) const fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(crate) fn insert(&mut self, lane: LaneKind) {
        self.0 |= 1 << lane.index();
    }

    pub(crate) fn remove(&mut self, lane: LaneKind) {
        self.0 &= !(1 << lane.index());
    }

    pub(crate) const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    pub(crate) const fn difference(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// In the order in which they are looked at.
    pub(crate) fn iter(self) -> impl Iterator<Item = LaneKind> {
        let mut rest = self.0;
        iter::from_fn(move || {
            let next = LaneKind::ALL.get(rest.trailing_zeros() as usize)?;
            rest &= rest - 1;
            Some(*next)
        })
    }
}

/// A frame's place in the order of its lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) lane: LaneKind,
    pub(crate) ordinal: u64,
}

impl Place {
    /// That of a frame which is in no lane yet.
    pub(crate) const NOWHERE: Self = Self {
        lane: LaneKind::Control,
        ordinal: u64::MAX,
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_has_what_was_put_in_and_not_taken_out_in_the_order_of_all() {
        let mut set = LaneSet::default();
        assert!(set.is_empty());
        for lane in LaneKind::ALL.into_iter().rev() {
            set.insert(lane);
            assert!(set.contains(lane));
        }
        assert!(set.iter().eq(LaneKind::ALL));
        set.remove(LaneKind::High);
        set.remove(LaneKind::High);
        assert!(!set.contains(LaneKind::High));
        let rest = set.difference(LaneSet::MESSAGES);
        assert!(
            rest.iter()
                .eq([LaneKind::Control, LaneKind::Items, LaneKind::Pieces])
        );
        assert_eq!(set.intersection(LaneSet::MESSAGES), set.difference(rest));
    }

    #[test]
    fn all_but_control_share_and_pay_for_it() {
        for lane in LaneKind::ALL {
            assert_eq!(LaneSet::SHARING.contains(lane), lane.byte_cost() > 0);
        }
    }
}
