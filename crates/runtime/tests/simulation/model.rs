//! The plain list that says what must have been handled.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::time::Duration;

use fastrand::Rng;
use migration_ipc::messages::ConfigurationUpdate;
use migration_ipc::{Fate, MessageId, Overflow, StreamName};
use serde::{Deserialize, Serialize};
use serde_json::json;

/// The number of a message of an agent, from 0 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Name {
    pub(crate) agent: usize,
    pub(crate) number: usize,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.agent, self.number)
    }
}

/// What the service's handler does with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Task {
    /// How long it takes first, in milliseconds.
    pub(crate) millis: u64,
    /// How often, in one life of the service, it says "busy" before it does its work.
    pub(crate) busy: u8,
    pub(crate) ending: Ending,
}

/// How a message is to end. All but the refusals write the message into the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Ending {
    Handled,
    Replied,
    /// The handler fails.
    Rejected,
    /// The handler succeeds, and its effects are refused when they are to be stored.
    Refused,
}

/// What a message survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Durable,
    Memory,
}

/// One line of an agent's part: after a pause it sends a message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Line {
    pub(crate) pause: Duration,
    pub(crate) stream: Option<&'static str>,
    pub(crate) kind: Kind,
    pub(crate) task: Task,
}

impl Line {
    /// One of very many.
    pub(crate) fn quick() -> Self {
        Self {
            pause: Duration::ZERO,
            stream: None,
            kind: Kind::Durable,
            task: Task {
                millis: 0,
                busy: 0,
                ending: Ending::Handled,
            },
        }
    }

    pub(crate) fn draw(random: &mut Rng) -> Self {
        let millis = match random.u8(..8) {
            0..5 => 0,
            5..7 => random.u64(1..500),
            _ => random.u64(1_000..20_000),
        };
        let pause = match random.u8(..4) {
            0 | 1 => 0,
            2 => random.u64(1..300),
            _ => random.u64(300..20_000),
        };
        Self {
            pause: Duration::from_millis(pause),
            stream: [None, None, Some("a"), Some("b")][random.usize(..4)],
            kind: match random.u8(..5) {
                0 => Kind::Memory,
                _ => Kind::Durable,
            },
            task: Task {
                millis,
                busy: [0, 0, 0, 0, 0, 1, 2][random.usize(..7)],
                ending: match random.u8(..10) {
                    0..6 => Ending::Handled,
                    6 | 7 => Ending::Replied,
                    8 => Ending::Rejected,
                    _ => Ending::Refused,
                },
            },
        }
    }

    pub(crate) fn stream_name(&self) -> Option<StreamName> {
        self.stream.map(|name| StreamName::new(name).unwrap())
    }
}

/// What is known of a message.
#[derive(Clone, Debug)]
struct Sent {
    line: Line,
    state: State,
    /// What its receipt said, if its process lived to see it.
    fate: Option<Fate>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// `send` was called and has not returned; perhaps it never did.
    Offered,
    /// `send` returned a receipt.
    Accepted,
    /// `send` failed.
    Refused,
}

/// Everything that agents sent, and what they know of it.
#[derive(Debug, Default)]
pub(crate) struct Model {
    agents: Vec<Vec<Sent>>,
    /// What happens to messages of an agent when too many wait.
    overflows: Vec<Overflow>,
    ids: HashMap<MessageId, Name>,
}

impl Model {
    /// Of agents with these rules for too many messages.
    pub(crate) fn new(overflows: impl Iterator<Item = Overflow>) -> Self {
        let overflows: Vec<Overflow> = overflows.collect();
        Self {
            agents: vec![Vec::new(); overflows.len()],
            overflows,
            ids: HashMap::new(),
        }
    }

    /// How many messages there are.
    pub(crate) fn len(&self) -> usize {
        self.agents.iter().map(Vec::len).sum()
    }

    /// How many messages the agent has offered so far.
    pub(crate) fn offered(&self, agent: usize) -> usize {
        self.agents[agent].len()
    }

    pub(crate) fn offer(&mut self, agent: usize, line: Line) -> Name {
        let number = self.agents[agent].len();
        self.agents[agent].push(Sent {
            line,
            state: State::Offered,
            fate: None,
        });
        Name { agent, number }
    }

    pub(crate) fn accept(&mut self, name: Name, id: &MessageId) {
        self.sent_mut(name).state = State::Accepted;
        self.ids.insert(id.clone(), name);
    }

    pub(crate) fn refuse(&mut self, name: Name) {
        self.sent_mut(name).state = State::Refused;
    }

    /// The fate of a message is known. An earlier life may have learned the same.
    pub(crate) fn learn(&mut self, id: &MessageId, fate: Fate) {
        // A message whose `send` did not return may have been kept, under an id that nobody knows.
        if let Some(name) = self.ids.get(id).copied() {
            self.sent_mut(name).fate = Some(fate);
        }
    }

    fn sent_mut(&mut self, name: Name) -> &mut Sent {
        &mut self.agents[name.agent][name.number]
    }

    fn get(&self, name: Name) -> Option<&Sent> {
        self.agents.get(name.agent)?.get(name.number)
    }

    /// What the fates say, for the trace of the run.
    pub(crate) fn labels(&self) -> impl Iterator<Item = &'static str> {
        let all = self.agents.iter().flatten();
        all.map(|sent| sent.fate.as_ref().map_or("", Fate::label))
    }

    /// Compares the service's log, in its order, and its dead letters with what was sent.
    pub(crate) fn check(&self, log: &[Name], dead: &[Name]) -> Result<(), String> {
        let (logged, dead) = (count(log), count(dead));
        for name in logged.keys().chain(dead.keys()) {
            if self.get(*name).is_none() {
                return Err(format!("{name} was handled and never sent"));
            }
        }
        for (agent, messages) in self.agents.iter().enumerate() {
            for (number, sent) in messages.iter().enumerate() {
                let name = Name { agent, number };
                let times =
                    |counts: &BTreeMap<Name, usize>| counts.get(&name).copied().unwrap_or(0);
                let seen = Seen {
                    logged: times(&logged),
                    dead: times(&dead),
                };
                let overflow = self.overflows[agent];
                sent.check(name, seen, overflow).map_err(|wrong| {
                    format!("{name} {wrong}: {seen:?}, {sent:?}\nthe log: {}", list(log))
                })?;
            }
        }
        self.check_order(log)
    }

    /// Of one sender and stream, the durable messages were handled in the order of their sends.
    fn check_order(&self, log: &[Name]) -> Result<(), String> {
        let mut last = BTreeMap::new();
        for name in log {
            let Some(sent) = self.get(*name) else {
                continue;
            };
            if sent.line.kind == Kind::Durable {
                let before = last.insert((name.agent, sent.line.stream), *name);
                if let Some(before) = before.filter(|before| before.number > name.number) {
                    let log = list(log);
                    return Err(format!("{name} was handled after {before}\nthe log: {log}"));
                }
            }
        }
        Ok(())
    }
}

fn count(names: &[Name]) -> BTreeMap<Name, usize> {
    let mut counts = BTreeMap::new();
    for name in names {
        *counts.entry(*name).or_default() += 1;
    }
    counts
}

fn list(names: &[Name]) -> String {
    names.iter().map(|name| format!(" {name}")).collect()
}

/// How often a message is in the service's store.
#[derive(Clone, Copy, Debug)]
struct Seen {
    logged: usize,
    dead: usize,
}

impl Sent {
    fn check(&self, name: Name, seen: Seen, overflow: Overflow) -> Result<(), &'static str> {
        let superseded = matches!(self.fate, Some(Fate::Superseded));
        let may_be_dropped = superseded || self.fate.is_none();
        if superseded && overflow != Overflow::DropOldest {
            return Err("was dropped");
        }

        let refusing = matches!(self.line.task.ending, Ending::Rejected | Ending::Refused);
        let (wanted, unwanted) = match refusing {
            true => (seen.dead, seen.logged),
            false => (seen.logged, seen.dead),
        };
        if unwanted > 0 {
            return Err("ended otherwise than its handler wanted");
        }
        if overflow == Overflow::DropOldest && may_be_dropped {
            // Perhaps it was dropped, and perhaps handled before that.
            return match wanted {
                0 | 1 => Ok(()),
                _ => Err("was handled more than once"),
            };
        }
        match self.line.kind {
            Kind::Durable => self.check_durable(name, wanted),
            Kind::Memory if refusing => self.check_fate(name),
            Kind::Memory => self.check_memory(name, wanted),
        }
    }

    fn check_durable(&self, name: Name, times: usize) -> Result<(), &'static str> {
        match (self.state, times) {
            (State::Accepted, 1) => self.check_fate(name),
            (State::Accepted, 0) => Err("was accepted and is lost"),
            (State::Offered | State::Refused, 0 | 1) => Ok(()),
            (_, _) => Err("was handled more than once"),
        }
    }

    /// Of a message that is not durable, what its receipt said is true.
    fn check_memory(&self, name: Name, times: usize) -> Result<(), &'static str> {
        if times > 1 {
            return Err("was handled more than once");
        }
        match &self.fate {
            Some(Fate::NotSent(_)) if times > 0 => {
                Err("was handled, and its sender told otherwise")
            }
            Some(Fate::Handled | Fate::Replied(_)) if times == 0 => {
                Err("was not handled, and its sender told otherwise")
            }
            _ => self.check_fate(name),
        }
    }

    /// The fate, if it is known, is the one that the message was made for.
    fn check_fate(&self, name: Name) -> Result<(), &'static str> {
        let Some(fate) = &self.fate else {
            return Ok(());
        };
        let as_wanted = match (self.line.task.ending, fate) {
            (Ending::Replied, Fate::Replied(reply)) => {
                let reply = reply.payload::<ConfigurationUpdate>();
                reply.is_ok_and(|reply| reply.value == json!(name))
            }
            (Ending::Handled, Fate::Handled)
            | (Ending::Rejected | Ending::Refused, Fate::Rejected(_)) => true,
            (_, Fate::NotSent(_) | Fate::Sent | Fate::Unknown(_) | Fate::Rejected(_)) => {
                self.line.kind == Kind::Memory
            }
            (_, _) => false,
        };
        as_wanted.then_some(()).ok_or("has the wrong fate")
    }
}
