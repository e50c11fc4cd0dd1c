//! Acknowledgments of many messages: what has come to its end is put together until the next write
//! is filled, and told in one message. So a load makes long runs, and an idle connection answers at
//! once.

use std::cell::Cell;
use std::collections::VecDeque;

use migration_ipc_protocol::extensions::{Acknowledgments, FailedFrame, FrameRange};
use migration_ipc_protocol::hello::Capability;
use migration_ipc_protocol::limits::{MAX_ACK_RANGES, MAX_ERROR_TEXT};
use migration_ipc_store::planted::{PlantedBug, is_planted};
use tokio::time::Instant;

use super::Session;
use crate::connection::error::{Rejection, SendError};
use crate::connection::in_flight::Sent;
use crate::connection::inbox::Named;
use crate::connection::reason::DisconnectReason;
use crate::connection::rewind::rewind;
use crate::dispatch::{Asked, HandlerError};

/// Bytes of error texts that are put together. They are held while a peer does not read, and six
/// times as much, should all of it have to be escaped, is far from the limit of a frame.
const MAX_FAILED_TEXT: usize = 16 * 1024;

/// Whether more can be put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Room {
    Left,
    /// It has to be told before anything is added.
    Full,
}

/// The frames of the peer, and what is not told yet of those that were answered.
#[derive(Debug, Default)]
pub(super) struct Acknowledging {
    /// Frames that were received: the number of the last one.
    received: u64,
    /// Frames whose messages are not answered yet, ascending: at most as many as the inbox has.
    unanswered: VecDeque<u64>,
    /// The range of what was handled that grows at present.
    growing: Option<(u64, u64)>,
    /// Those before it. A later one may have lower numbers.
    handled: Vec<(u64, u64)>,
    failed: Vec<FailedFrame>,
    failed_text: usize,
    /// The last frame whose message was not handled, or of which it is not known here how it is
    /// answered: no range grows over it.
    barrier: u64,
    /// Whether nobody has said yet what the frame that was received last waits for.
    is_unknown: bool,
}

impl Acknowledging {
    /// One more frame has been received.
    pub(super) fn count_frame(&mut self) {
        if self.is_unknown {
            self.barrier = self.barrier.max(self.received);
        }
        self.received += 1;
        self.is_unknown = true;
    }

    /// The sender of the frame that was received last expects no acknowledgment of it.
    pub(super) fn waits_for_nothing(&mut self) {
        self.is_unknown = false;
    }

    /// The message of the frame that was received last waits for its answer from now on. Returns the
    /// number of the frame.
    pub(super) fn expect(&mut self) -> u64 {
        self.is_unknown = false;
        self.unanswered.push_back(self.received);
        self.received
    }

    /// The message of a frame has come to its end. Whether those of all frames before it have.
    pub(super) fn settle(&mut self, frame: u64) -> bool {
        if self.unanswered.front() == Some(&frame) {
            self.unanswered.pop_front();
            rewind(&mut self.unanswered);
            if self.unanswered.is_empty() {
                self.unanswered.shrink_to(64);
            }
            return true;
        }
        if let Ok(index) = self.unanswered.binary_search(&frame) {
            self.unanswered.remove(index);
        }
        false
    }

    /// The sender of a message is not told that it was handled, and may be waiting for that.
    pub(super) fn settle_silently(&mut self, frame: u64) {
        self.settle(frame);
        self.barrier = self.barrier.max(frame);
    }

    /// A message was handled.
    fn handled(&mut self, frame: u64) {
        let is_oldest = self.settle(frame);
        if let Some((_, last)) = &mut self.growing {
            // In between are control, answers that were given, and whoever wants none.
            let nobody_between = is_oldest && *last < frame && self.barrier <= *last;
            let careless = is_planted(PlantedBug::RangeOverUnanswered) && *last < frame;
            if nobody_between || *last + 1 == frame || careless {
                *last = frame;
                return;
            }
        }
        self.handled.extend(self.growing.replace((frame, frame)));
    }

    fn failed(&mut self, failed: FailedFrame) {
        self.settle_silently(failed.frame);
        self.failed_text += failed.error.len();
        self.failed.push(failed);
    }

    fn room(&self) -> Room {
        let ranges = self.handled.len() + usize::from(self.growing.is_some());
        let full = ranges >= MAX_ACK_RANGES
            || self.failed.len() >= MAX_ACK_RANGES
            || self.failed_text >= MAX_FAILED_TEXT;
        if full { Room::Full } else { Room::Left }
    }

    /// What there is to tell.
    fn take(&mut self) -> Option<Acknowledgments> {
        if self.growing.is_none() && self.failed.is_empty() {
            return None;
        }
        self.failed_text = 0;
        let ranges = self.handled.drain(..).chain(self.growing.take());
        Some(Acknowledgments {
            handled: ranges
                .filter_map(|(first, last)| FrameRange::new(first, last))
                .collect(),
            failed: std::mem::take(&mut self.failed),
        })
    }
}

impl Session {
    /// How the message in the frame that was received last is answered: by the number of its frame
    /// where that was negotiated. Not so a request with a streaming reply, whose answer goes behind its
    /// items, and no message that came in many frames.
    pub(super) fn expect_answer(&mut self, asked: Option<&Asked>) -> Named {
        let streams = asked.is_some_and(|asked| asked.grants().is_some());
        if !streams && self.carriage.is_one_frame() && self.has(Capability::AckRanges) {
            Named::Frame(self.acknowledging.expect())
        } else {
            Named::Id
        }
    }

    /// Notes what came of a message, to be told with others.
    pub(super) fn acknowledge_frame(&mut self, frame: u64, outcome: Result<(), &HandlerError>) {
        match outcome {
            Ok(()) => self.acknowledging.handled(frame),
            Err(error) => {
                let mut text = error.text.clone();
                text.truncate(text.floor_char_boundary(MAX_ERROR_TEXT));
                let codes = self.has(Capability::ErrorCodes);
                self.acknowledging.failed(FailedFrame {
                    frame,
                    error: text,
                    code: codes.then(|| error.code.clone()),
                });
            }
        }
        if self.acknowledging.room() == Room::Full {
            self.flush_acknowledgments();
        }
    }

    /// Tells what is not told yet: before each write, and before whatever has to come behind it.
    pub(crate) fn flush_acknowledgments(&mut self) {
        if let Some(acknowledgments) = self.acknowledging.take() {
            self.say(None, &acknowledgments);
        }
    }

    /// The peer tells what came of many messages.
    pub(super) fn handle_acknowledgments(
        &mut self,
        acknowledgments: Acknowledgments,
        now: Instant,
    ) -> Result<(), DisconnectReason> {
        let Acknowledgments { handled, failed } = acknowledgments;
        let failed = failed.into_iter().map(|failed| {
            let rejection = Rejection {
                error: failed.error,
                code: failed.code,
            };
            (failed.frame, SendError::Rejected(rejection))
        });
        let mut resolved = RESOLVED.take();
        let known =
            self.connection
                .outbound()
                .resolve_frames(failed.collect(), &handled, &mut resolved);
        let telemetry = self.connection.telemetry();
        for run in resolved.chunk_by(|one, next| one.message_type == next.message_type) {
            let metrics = run.first().map(|sent| telemetry.type_of(sent.message_type));
            for (sent, metrics) in run.iter().zip(metrics.iter().cycle()) {
                metrics.answered(now.saturating_duration_since(sent.at));
            }
        }
        resolved.clear();
        // What a burst made it allocate is given back.
        resolved.shrink_to(64);
        RESOLVED.set(resolved);
        known.map_err(|_| {
            DisconnectReason::Violation("an acknowledgment of frames that were not sent".to_owned())
        })
    }
}

thread_local! {
    /// What was resolved, kept for its memory.
    static RESOLVED: Cell<Vec<Sent>> = const { Cell::new(Vec::new()) };
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An account of the peer's frames, of which this many are messages that wait.
    fn received(messages: u64) -> Acknowledging {
        let mut acknowledging = Acknowledging::default();
        for _ in 0..messages {
            acknowledging.count_frame();
            acknowledging.expect();
        }
        acknowledging
    }

    fn fail(acknowledging: &mut Acknowledging, frame: u64) {
        acknowledging.failed(FailedFrame {
            frame,
            error: "x".to_owned(),
            code: None,
        });
    }

    fn ranges(acknowledging: &mut Acknowledging) -> Vec<(u64, u64)> {
        let taken = acknowledging.take();
        let handled = taken.into_iter().flat_map(|taken| taken.handled);
        handled.map(Into::into).collect()
    }

    #[test]
    fn what_is_handled_in_order_is_one_range() {
        let mut acknowledging = received(9);
        for frame in 1..=9 {
            acknowledging.handled(frame);
        }
        assert_eq!(ranges(&mut acknowledging), [(1, 9)]);
        assert_eq!(ranges(&mut acknowledging), []);
    }

    #[test]
    fn a_range_covers_frames_that_wait_for_nothing() {
        let mut acknowledging = Acknowledging::default();
        for frame in 1..=9 {
            acknowledging.count_frame();
            if frame % 2 == 0 {
                acknowledging.expect();
            } else {
                acknowledging.waits_for_nothing();
            }
        }
        for frame in [2, 4, 6, 8] {
            acknowledging.handled(frame);
        }
        assert_eq!(ranges(&mut acknowledging), [(2, 8)]);
    }

    /// A body without an id, for example: its sender may be waiting.
    #[test]
    fn no_range_covers_a_frame_of_which_nobody_knows_what_it_waits_for() {
        let mut acknowledging = received(2);
        acknowledging.count_frame();
        for frame in [4, 5] {
            acknowledging.count_frame();
            assert_eq!(acknowledging.expect(), frame);
        }
        for frame in [1, 2, 4, 5] {
            acknowledging.handled(frame);
        }
        assert_eq!(ranges(&mut acknowledging), [(1, 2), (4, 5)]);
    }

    /// Handlers that run concurrently end in any order.
    #[test]
    fn no_range_covers_a_frame_that_is_not_answered() {
        let mut acknowledging = received(6);
        acknowledging.handled(2);
        acknowledging.handled(3);
        acknowledging.handled(5);
        assert_eq!(ranges(&mut acknowledging), [(2, 3), (5, 5)]);
        acknowledging.handled(1);
        acknowledging.handled(6);
        assert_eq!(ranges(&mut acknowledging), [(1, 1), (6, 6)]);
        acknowledging.handled(4);
        assert_eq!(ranges(&mut acknowledging), [(4, 4)]);
    }

    #[test]
    fn no_range_covers_a_frame_that_failed_or_is_answered_by_silence() {
        let mut acknowledging = received(8);
        acknowledging.handled(1);
        fail(&mut acknowledging, 2);
        acknowledging.handled(3);
        // Higher ones first.
        fail(&mut acknowledging, 6);
        acknowledging.handled(4);
        acknowledging.handled(5);
        acknowledging.handled(7);
        acknowledging.settle_silently(8);
        let taken = acknowledging.take().unwrap();
        let failed: Vec<_> = taken.failed.iter().map(|failed| failed.frame).collect();
        let handled: Vec<(u64, u64)> = taken.handled.into_iter().map(Into::into).collect();
        assert_eq!(handled, [(1, 1), (3, 5), (7, 7)]);
        assert_eq!(failed, [2, 6]);
    }

    #[test]
    fn what_is_put_together_is_bounded() {
        let mut acknowledging = received(2000);
        // Every other one, so that no two are neighbours.
        for frame in (2..=2000).step_by(2).take(MAX_ACK_RANGES) {
            assert_eq!(acknowledging.room(), Room::Left);
            acknowledging.handled(frame);
        }
        assert_eq!(acknowledging.room(), Room::Full);
        acknowledging.take();
        for frame in (1..2000).step_by(2).take(MAX_FAILED_TEXT / MAX_ERROR_TEXT) {
            assert_eq!(acknowledging.room(), Room::Left);
            acknowledging.failed(FailedFrame {
                frame,
                error: "x".repeat(MAX_ERROR_TEXT),
                code: None,
            });
        }
        assert_eq!(acknowledging.room(), Room::Full);
    }
}
