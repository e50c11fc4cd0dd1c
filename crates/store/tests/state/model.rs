//! Senders that keep to the rules, over connections that break at any time, against a plain list
//! of what must have been stored.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use migration_ipc_protocol::limits::DELIVERY_WINDOW;
use migration_ipc_protocol::messages::ErrorCode;
use migration_ipc_store::{Begin, Effects, OutboxKey, Store, Ticket};
use migration_ipc_testkit::disk::SimDisk;

use crate::support::{key, open, work};

const STREAMS: [&str; 3] = ["", "files", "mail"];

/// Adds the number to the list of its stream.
fn append(stream: &'static str, seq: u64) -> Effects {
    Effects::new().update(move |rows| {
        let mut list = rows.get("log", stream)?.unwrap_or_default();
        list.extend_from_slice(&seq.to_be_bytes());
        rows.put("log", stream, list);
        Ok(())
    })
}

fn log(store: &Store, stream: &str) -> Vec<u64> {
    let list = store
        .reader()
        .get("log", stream)
        .unwrap()
        .unwrap_or_default();
    let (numbers, _) = list.as_chunks::<8>();
    numbers.iter().copied().map(u64::from_be_bytes).collect()
}

/// What a sender sends again when a message was put off.
#[derive(Clone, Copy)]
enum Habit {
    /// Everything of the stream that is unsettled.
    Rewind,
    /// The message, before all higher ones that are to be sent.
    Repeat,
}

struct Sender {
    habit: Habit,
    unsettled: BTreeMap<u64, &'static str>,
    /// What was sent, and is not to be sent again as far as is known.
    sent: BTreeSet<u64>,
    given_up: BTreeSet<u64>,
}

impl Sender {
    fn new(rng: &mut fastrand::Rng) -> Self {
        let habit = match rng.bool() {
            true => Habit::Rewind,
            false => Habit::Repeat,
        };
        let mut seq = 0;
        let unsettled = (0..40).map(|_| {
            seq += rng.u64(1..90);
            (seq, STREAMS[rng.usize(..STREAMS.len())])
        });
        Self {
            habit,
            unsettled: unsettled.collect(),
            sent: BTreeSet::new(),
            given_up: BTreeSet::new(),
        }
    }

    /// The next number of any stream, within the window.
    fn next(&mut self) -> Option<u64> {
        let (lowest, _) = self.unsettled.first_key_value()?;
        let in_window = self
            .unsettled
            .range(..lowest.saturating_add(DELIVERY_WINDOW));
        let next = in_window
            .map(|(seq, _)| *seq)
            .find(|seq| !self.sent.contains(seq))?;
        self.sent.insert(next);
        Some(next)
    }

    fn put_off(&mut self, seq: u64, stream: &str) {
        match self.habit {
            Habit::Rewind => self.rewind(stream),
            Habit::Repeat => drop(self.sent.remove(&seq)),
        }
    }

    fn rewind(&mut self, stream: &str) {
        let unsettled = &self.unsettled;
        self.sent
            .retain(|seq| unsettled.get(seq).is_some_and(|of| *of != stream));
    }

    fn settle(&mut self, seq: u64) {
        self.unsettled.remove(&seq);
        self.sent.remove(&seq);
    }

    fn give_up_lowest(&mut self) {
        if let Some((seq, _)) = self.unsettled.pop_first() {
            self.given_up.insert(seq);
        }
    }
}

/// A connection: numbers on the way there, answers on the way back, and handlers that have ended
/// and wait for their commit, in the order in which they began.
#[derive(Default)]
struct Connection {
    wire: VecDeque<u64>,
    answers: VecDeque<(u64, Answer)>,
    handled: VecDeque<Ticket>,
}

#[derive(Clone, Copy)]
enum Answer {
    Settled,
    PutOff,
}

struct World {
    rng: fastrand::Rng,
    disk: SimDisk,
    store: Store,
    alice: OutboxKey,
    sender: Sender,
    streams: BTreeMap<u64, &'static str>,
    connection: Connection,
    /// Handlers of connections that are gone.
    stale: VecDeque<Ticket>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let disk = SimDisk::new(seed);
        let sender = Sender::new(&mut rng);
        Self {
            store: open(&disk),
            streams: sender.unsettled.clone(),
            rng,
            disk,
            alice: key("1000", 1),
            sender,
            connection: Connection::default(),
            stale: VecDeque::new(),
        }
    }

    fn step(&mut self) {
        match self.rng.u32(..100) {
            0..30 => self.connection.wire.extend(self.sender.next()),
            30..60 => self.receive(),
            60..80 => self.answer(),
            80..92 => self.commit(),
            92..94 => self.fail(),
            94..96 => self.reconnect(),
            96 => self.sender.give_up_lowest(),
            97 => drop(self.stale.pop_front()),
            98 => self.restart(),
            _ => {
                if let Habit::Rewind = self.sender.habit {
                    self.sender.rewind(STREAMS[self.rng.usize(..STREAMS.len())]);
                }
            }
        }
    }

    /// A handler fails for the time being.
    fn fail(&mut self) {
        if let Some(ticket) = self.connection.handled.pop_front() {
            let seq = ticket.seq();
            drop(ticket);
            self.connection.answers.push_back((seq, Answer::PutOff));
        }
    }

    fn receive(&mut self) {
        let Some(seq) = self.connection.wire.pop_front() else {
            return;
        };
        let stream = self.streams[&seq];
        let named = Some(stream).filter(|stream| !stream.is_empty());
        match self.store.ledger().begin(&self.alice, named, seq) {
            Begin::New(ticket) => self.connection.handled.push_back(ticket),
            Begin::Done(_) => self.connection.answers.push_back((seq, Answer::Settled)),
            Begin::Busy => self.connection.answers.push_back((seq, Answer::PutOff)),
        }
    }

    fn answer(&mut self) {
        match self.connection.answers.pop_front() {
            Some((seq, Answer::Settled)) => self.sender.settle(seq),
            Some((seq, Answer::PutOff)) => self.sender.put_off(seq, self.streams[&seq]),
            None => {}
        }
    }

    /// Commits some of what waits, and some of what connections left behind.
    fn commit(&mut self) {
        let mut works = Vec::new();
        let stale = self.rng.usize(..=self.stale.len());
        let fresh = self.rng.usize(..=self.connection.handled.len());
        let tickets = self.stale.drain(..stale).map(|ticket| (ticket, false));
        let fresh = self.connection.handled.drain(..fresh);
        let mut answers = Vec::new();
        for (ticket, is_fresh) in tickets.chain(fresh.map(|ticket| (ticket, true))) {
            let seq = ticket.seq();
            let effects = append(self.streams[&seq], seq);
            let effects = match self.rng.u32(..10) {
                0 => effects.reject(ErrorCode::Busy, "no room"),
                _ => effects,
            };
            answers.push((seq, is_fresh));
            works.push(work(ticket, effects));
        }
        if self.rng.u32(..10) == 0 {
            self.disk.fail_sync(self.rng.u64(..2));
        }
        let outcomes = self.store.commit(&mut works);
        self.disk.cancel_faults();
        for (place, (seq, is_fresh)) in answers.into_iter().enumerate() {
            let answer = match &outcomes {
                Ok(outcomes) if !outcomes[place].is_put_off() => Answer::Settled,
                Ok(_) | Err(_) => Answer::PutOff,
            };
            if is_fresh {
                self.connection.answers.push_back((seq, answer));
            }
        }
    }

    /// The connection is lost; its handlers run on.
    fn reconnect(&mut self) {
        let lost = std::mem::take(&mut self.connection);
        self.stale.extend(lost.handled);
        self.sender.sent.clear();
    }

    fn restart(&mut self) {
        self.reconnect();
        self.stale.clear();
        self.disk = self.disk.restart();
        self.store = open(&self.disk);
    }

    /// Each stream in order, and nothing twice. What the sender gave up while a handler had it may
    /// be anywhere, once.
    fn check(&self, seed: u64) {
        for stream in STREAMS {
            let mut log = log(&self.store, stream);
            assert!(log.iter().all(|seq| self.streams[seq] == stream));
            let distinct: BTreeSet<u64> = log.iter().copied().collect();
            assert_eq!(
                distinct.len(),
                log.len(),
                "seed {seed}, `{stream}`: {log:?}"
            );
            log.retain(|seq| !self.sender.given_up.contains(seq));
            assert!(log.is_sorted(), "seed {seed}, `{stream}`: {log:?}");
        }
    }
}

#[test]
fn every_message_is_stored_once_and_in_the_order_of_its_stream() {
    let mut given_up_and_lost = 0;
    for seed in 0..80 {
        let mut world = World::new(seed);
        let mut steps = 0;
        while !world.sender.unsettled.is_empty() {
            world.step();
            steps += 1;
            assert!(
                steps < 50_000,
                "seed {seed}: no end; {:?} are left",
                world.sender.unsettled
            );
        }
        world.check(seed);
        let stored: BTreeSet<u64> = STREAMS
            .into_iter()
            .flat_map(|stream| log(&world.store, stream))
            .collect();
        for seq in world.streams.keys() {
            let is_given_up = world.sender.given_up.contains(seq);
            assert!(
                stored.contains(seq) || is_given_up,
                "seed {seed}: {seq} is lost"
            );
            given_up_and_lost += u32::from(!stored.contains(seq));
        }
    }
    assert!(given_up_and_lost > 0, "no message was given up in time");
}
