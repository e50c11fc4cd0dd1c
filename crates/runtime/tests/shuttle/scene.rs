//! What happens in the tests, and what has to be true in the end.

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

use migration_ipc::{
    Answer, ConnectionConfig, ConnectionLimits, DisconnectReason, MessageId, Priority, SendError,
};
use migration_ipc_protocol::extensions::FrameRange;
use shuttle::future::block_on;
use shuttle::rand::{Rng, thread_rng};
use shuttle::thread;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::connection::account::Account;
use crate::connection::in_flight::AnswerResult;
use crate::connection::lanes::SendCredit;
use crate::connection::outbound::{CloseRequest, Manner, Outbound, Tracking, Wanted};

/// A message on the wire: who sent it, and its number among those of its sender.
type Message = (u8, u8);

const REASON: DisconnectReason = DisconnectReason::ClosedLocally;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Scene {
    pub(crate) senders: u8,
    /// Of each sender.
    pub(crate) messages: u8,
    pub(crate) outbound_messages: usize,
    pub(crate) in_flight: usize,
    /// What the peer grants at first, and again for each message that it got.
    pub(crate) credit: Option<u32>,
    pub(crate) end: End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    WhenAllIsSent,
    AtAnyTime,
}

/// What came of a message whose sender was told that it was accepted.
#[derive(Debug)]
struct Accepted {
    message: Message,
    answer: Option<oneshot::Receiver<AnswerResult>>,
}

/// What the peer and the driver saw.
#[derive(Debug, Default)]
struct Seen {
    /// In the order in which it was written.
    written: Vec<Message>,
    answered: Vec<Message>,
    unsent: usize,
}

impl Scene {
    pub(crate) fn play(self) {
        let limits = ConnectionLimits {
            outbound_messages: self.outbound_messages,
            in_flight: self.in_flight,
            ..ConnectionLimits::default()
        };
        let config = ConnectionConfig {
            limits,
            ..ConnectionConfig::default()
        };
        let outbound = Arc::new(Outbound::new(Arc::new(config), Arc::new(Account)));
        let driver = {
            let outbound = Arc::clone(&outbound);
            thread::spawn(move || self.drive(&outbound))
        };
        let senders: Vec<_> = (0..self.senders)
            .map(|sender| {
                let outbound = Arc::clone(&outbound);
                thread::spawn(move || self.send(&outbound, sender))
            })
            .collect();
        if self.end == End::AtAnyTime {
            close(&outbound);
        }
        let accepted: Vec<Accepted> = senders
            .into_iter()
            .flat_map(|sender| sender.join().unwrap())
            .collect();
        if self.end == End::WhenAllIsSent {
            assert_eq!(
                accepted.len(),
                usize::from(self.senders) * usize::from(self.messages)
            );
            close(&outbound);
        }
        let seen = driver.join().unwrap();
        self.check(accepted, &seen);
        assert_eq!(outbound.queued_messages(), 0);
    }

    /// Sends one after the other; every second message is one whose answer is awaited. Ends early
    /// when the connection does.
    fn send(self, outbound: &Outbound, sender: u8) -> Vec<Accepted> {
        let manner = |number: u8| Manner {
            tracking: if number.is_multiple_of(2) {
                Tracking::Answer
            } else {
                Tracking::None
            },
            priority: priority_of(sender),
        };
        let mut accepted = Vec::new();
        for number in 0..self.messages {
            let message = (sender, number);
            let frame = [sender, number];
            let id = id_of(message);
            let accepting = outbound.accept(&frame, &id, "TEST", manner(number));
            match block_on(accepting) {
                Ok(answer) => accepted.push(Accepted { message, answer }),
                Err(reason) => {
                    assert_eq!(reason, REASON);
                    assert_eq!(self.end, End::AtAnyTime);
                    break;
                }
            }
        }
        accepted
    }

    /// As the driver of a connection does: writes what there is, takes answers, and winds up when
    /// that is asked for.
    fn drive(self, outbound: &Outbound) -> Seen {
        let mut seen = Seen::default();
        outbound.set_credit(match self.credit {
            None => SendCredit::Unlimited,
            Some(credit) => SendCredit::Messages(credit),
        });
        let mut frames = 0;
        let mut closing = false;
        let mut under_way: Option<Vec<u8>> = None;
        let mut written = false;
        block_on(poll_fn(|cx: &mut Context<'_>| {
            outbound.register(cx.waker());
            loop {
                if under_way.is_some() && thread_rng().gen_bool(0.5) {
                    self.deliver(outbound, &under_way.take().unwrap(), &mut frames, &mut seen);
                    written = true;
                }
                if !std::mem::take(&mut written) && !outbound.has_news() {
                    if under_way.is_some() {
                        cx.waker().wake_by_ref();
                    }
                    return Poll::Pending;
                }
                let mut write = Vec::new();
                let work = outbound.take_work(match under_way {
                    None => Wanted::Write(&mut write),
                    Some(_) => Wanted::Nothing,
                });
                if !write.is_empty() {
                    under_way = Some(write);
                }
                if work.close_request.is_some() {
                    closing = true;
                    if self.end == End::AtAnyTime {
                        // The peer is gone: it may have got this, and says nothing any more.
                        seen.written
                            .extend(messages(under_way.as_deref().unwrap_or_default()));
                        return Poll::Ready(());
                    }
                    outbound.close(&REASON);
                }
                if under_way.is_none() && closing && work.lanes_are_empty {
                    return Poll::Ready(());
                }
            }
        }));
        seen.unsent = outbound.finish(&REASON);
        seen
    }

    /// The peer gets a write, and answers: some by their ids, the rest by their frames.
    fn deliver(self, outbound: &Outbound, write: &[u8], frames: &mut u64, seen: &mut Seen) {
        let first = *frames + 1;
        let mut by_id = Vec::new();
        for message in messages(write) {
            *frames += 1;
            seen.written.push(message);
            seen.answered.push(message);
            if thread_rng().gen_bool(0.25) {
                by_id.push(message);
            }
        }
        if *frames < first {
            return;
        }
        for message in by_id {
            outbound.resolve(&id_of(message), Ok(Answer::Handled));
        }
        let range = FrameRange::new(first, *frames).unwrap();
        outbound
            .resolve_frames(Vec::new(), &[range], &mut Vec::new())
            .unwrap();
        if self.credit.is_some() {
            outbound.grant(u32::try_from(write.len() / 2).unwrap());
        }
    }

    fn check(self, accepted: Vec<Accepted>, seen: &Seen) {
        let mut times: HashMap<Message, usize> = HashMap::new();
        for message in &seen.written {
            *times.entry(*message).or_default() += 1;
        }
        let unwritten = accepted
            .iter()
            .filter(|accepted| !times.contains_key(&accepted.message))
            .count();
        assert_eq!(unwritten, seen.unsent, "accepted, and not written");
        assert_eq!(
            seen.written.len() + unwritten,
            accepted.len(),
            "written, and accepted"
        );
        assert!(times.values().all(|times| *times == 1), "written twice");
        for sender in 0..self.senders {
            let numbers: Vec<_> = (seen.written.iter())
                .filter(|(by, _)| *by == sender)
                .map(|(_, number)| *number)
                .collect();
            assert!(numbers.is_sorted(), "out of order: {numbers:?}");
        }
        for Accepted { message, answer } in accepted {
            let Some(mut answer) = answer else { continue };
            let answer = answer.try_recv().expect("resolved");
            match answer {
                Ok(Answer::Handled) => assert!(seen.answered.contains(&message)),
                Err(SendError::Closed(REASON)) => assert!(!times.contains_key(&message)),
                Err(SendError::Lost(REASON)) => {
                    assert!(times.contains_key(&message) && !seen.answered.contains(&message));
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

/// What is in a write.
fn messages(write: &[u8]) -> impl Iterator<Item = Message> {
    assert!(write.len().is_multiple_of(2), "half a frame");
    write.chunks(2).filter_map(|frame| match frame {
        [sender, number] => Some((*sender, *number)),
        _ => None,
    })
}

fn close(outbound: &Outbound) {
    outbound.request_close(CloseRequest {
        reason: REASON,
        deadline: Instant::now(),
    });
}

/// Two share a lane.
fn priority_of(sender: u8) -> Priority {
    match sender {
        0 => Priority::High,
        _ => Priority::Bulk,
    }
}

fn id_of((sender, number): Message) -> MessageId {
    MessageId::new(&format!("{sender}.{number}")).unwrap()
}
