//! The plain list that says what must have been handled.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::time::Duration;

use fastrand::Rng;
use migration_ipc::messages::ConfigurationUpdate;
use migration_ipc::{
    ErrorCode, Fate, MessageId, Overflow, Priority, RequestError, SendOptions, StreamName,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::payloads::Told;

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
    /// How many bytes the message carries that mean nothing.
    pub(crate) ballast: usize,
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

/// How a message is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Durable,
    Memory,
    /// From memory, in pieces if the service takes them.
    Large,
    /// Over the connection that there is, and nobody waits for an answer.
    Unasked,
    /// A request, over the connection that there is.
    Request(Request),
}

impl Kind {
    fn label(self) -> &'static str {
        match self {
            Self::Durable => "durable",
            Self::Memory => "memory",
            Self::Large => "large",
            Self::Unasked => "unasked",
            Self::Request(Request { items: None, .. }) => "request",
            Self::Request(Request { items: Some(_), .. }) => "stream",
        }
    }
}

/// What its sender wants of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    /// How many items it is answered with, and how many of them may be under way.
    pub(crate) items: Option<(u32, u32)>,
    /// How long its sender waits.
    pub(crate) within: Duration,
    /// When it is given up, if it is not over by then.
    pub(crate) given_up: Option<Duration>,
}

impl Request {
    fn draw(random: &mut Rng) -> Self {
        let mut time = || {
            let longest = 1 << [8, 13, 16][random.usize(..3)];
            Duration::from_millis(random.u64(1..longest))
        };
        let (within, given_up) = (time(), time());
        Self {
            items: random.bool().then(|| (random.u32(..80), random.u32(1..20))),
            within,
            given_up: (random.u8(..3) == 0).then_some(given_up),
        }
    }
}

/// One line of an agent's part: after a pause it sends a message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Line {
    pub(crate) pause: Duration,
    /// It is accepted together with the line before, if both are durable and of one stream.
    pub(crate) joins: bool,
    pub(crate) stream: Option<&'static str>,
    pub(crate) kind: Kind,
    pub(crate) priority: Option<Priority>,
    pub(crate) task: Task,
}

impl Line {
    /// One of very many.
    pub(crate) fn quick(random: &mut Rng) -> Self {
        Self {
            pause: Duration::ZERO,
            joins: random.u8(..40) > 0,
            stream: None,
            kind: Kind::Durable,
            priority: None,
            task: Task {
                millis: 0,
                busy: 0,
                ending: Ending::Handled,
                ballast: 0,
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
        let kind = match random.u8(..30) {
            0..5 => Kind::Memory,
            5 => Kind::Large,
            6 => Kind::Unasked,
            7..11 => Kind::Request(Request::draw(random)),
            _ => Kind::Durable,
        };
        let ballast = match (kind, random.u8(..8)) {
            (Kind::Large, _) => 1 << random.u32(14..18),
            (_, 0) => random.usize(1..4_000),
            (_, _) => 0,
        };
        Self {
            pause: Duration::from_millis(pause),
            joins: random.u8(..3) == 0,
            stream: [None, None, Some("a"), Some("b")][random.usize(..4)],
            kind,
            priority: random
                .choice([
                    None,
                    Some(Priority::High),
                    Some(Priority::Normal),
                    Some(Priority::Bulk),
                ])
                .flatten(),
            task: Task {
                ballast,
                millis,
                busy: match kind {
                    // Nobody asks again.
                    Kind::Request(_) => 0,
                    _ => [0, 0, 0, 0, 0, 1, 2][random.usize(..7)],
                },
                ending: match (random.u8(..10), kind) {
                    (8, _) => Ending::Rejected,
                    (9, _) => Ending::Refused,
                    (6 | 7, _) | (0..4, Kind::Request(_)) => Ending::Replied,
                    (_, _) => Ending::Handled,
                },
            },
        }
    }

    /// How it is sent by what connects again.
    pub(crate) fn options(&self) -> SendOptions {
        let mut options = SendOptions::new();
        if let Kind::Durable = self.kind {
            options = options.durable();
        }
        if let Some(stream) = self.stream {
            options = options.stream(StreamName::new(stream).unwrap());
        }
        if let Some(priority) = self.priority {
            options = options.priority(priority);
        }
        options
    }

    /// Whether it is accepted together with this one, which stands before it.
    pub(crate) fn goes_with(&self, before: &Self) -> bool {
        let durable = self.kind == Kind::Durable && before.kind == Kind::Durable;
        self.joins && durable && self.stream == before.stream
    }
}

/// What is known of a message.
#[derive(Clone, Debug)]
struct Sent {
    line: Line,
    /// The number of the first message that it was to be accepted together with; its own if alone.
    with: usize,
    state: State,
    /// What its receipt said, if its process lived to see it.
    fate: Option<Fate>,
    /// What the request came to, if its process lived to see it and had not given it up.
    end: Option<Result<Told, RequestError>>,
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
    /// Whether services recognise the durable messages that they had before.
    has_ledger: bool,
    /// What was seen to be wrong before the end.
    objection: Option<String>,
}

impl Model {
    /// Of agents with these rules for too many messages.
    pub(crate) fn new(overflows: impl Iterator<Item = Overflow>, has_ledger: bool) -> Self {
        let overflows: Vec<Overflow> = overflows.collect();
        Self {
            agents: vec![Vec::new(); overflows.len()],
            overflows,
            ids: HashMap::new(),
            has_ledger,
            objection: None,
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

    /// Lines whose messages are accepted together or not at all.
    pub(crate) fn offer(&mut self, agent: usize, lines: &[Line]) -> Vec<Name> {
        let all = &mut self.agents[agent];
        let with = all.len();
        all.extend(lines.iter().map(|line| Sent {
            line: *line,
            with,
            state: State::Offered,
            fate: None,
            end: None,
        }));
        let name = |number| Name { agent, number };
        (with..all.len()).map(name).collect()
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

    /// The request is over.
    pub(crate) fn end(&mut self, name: Name, end: Result<Told, RequestError>) {
        if self.sent_mut(name).end.replace(end).is_some() {
            self.object(format!("{name} ended twice"));
        }
    }

    /// Something is wrong with what was just seen.
    pub(crate) fn object(&mut self, what: String) {
        self.objection.get_or_insert(what);
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
        all.map(|sent| match (&sent.fate, &sent.end) {
            (Some(fate), _) => fate.label(),
            (None, Some(end)) => label(end),
            (None, None) => "unseen",
        })
    }

    /// What was sent how, and what it came to.
    pub(crate) fn ends(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let kinds = self
            .agents
            .iter()
            .flatten()
            .map(|sent| sent.line.kind.label());
        kinds.zip(self.labels())
    }

    /// Compares the service's log, in its order, and its dead letters with what was sent.
    pub(crate) fn check(&self, log: &[Name], dead: &[Name]) -> Result<(), String> {
        if let Some(objection) = &self.objection {
            return Err(objection.clone());
        }
        let (logged, dead) = (count(log), count(dead));
        for name in logged.keys().chain(dead.keys()) {
            if self.get(*name).is_none() {
                return Err(format!("{name} was handled and never sent"));
            }
        }
        for (agent, messages) in self.agents.iter().enumerate() {
            let overflow = self.overflows[agent];
            let seen = |number| {
                let times = |counts: &BTreeMap<Name, usize>| {
                    let name = Name { agent, number };
                    counts.get(&name).copied().unwrap_or(0)
                };
                Seen {
                    logged: times(&logged),
                    dead: times(&dead),
                }
            };
            let is_there = |number| seen(number).logged + seen(number).dead > 0;
            if self.has_ledger && overflow != Overflow::DropOldest {
                check_wholeness(messages, is_there)
                    .map_err(|wrong| format!("{wrong} of agent {agent}: {}", list(log)))?;
            }
            for (number, sent) in messages.iter().enumerate() {
                let name = Name { agent, number };
                let seen = seen(number);
                sent.check(name, seen, overflow, self.has_ledger)
                    .map_err(|wrong| {
                        format!("{name} {wrong}: {seen:?}, {sent:?}\nthe log: {}", list(log))
                    })?;
            }
        }
        self.check_order(log)
    }

    /// Of one sender and stream, the durable messages were handled in the order of their sends. Without
    /// a ledger, nobody holds back what was sent already behind one whose answer was lost, or that was
    /// put off.
    fn check_order(&self, log: &[Name]) -> Result<(), String> {
        let mut last = BTreeMap::new();
        for name in log {
            let Some(sent) = self.get(*name) else {
                continue;
            };
            let is_told = sent.fate.as_ref().is_some_and(Fate::is_handled);
            let in_order = self.has_ledger || is_told && sent.line.task.busy == 0;
            if sent.line.kind == Kind::Durable && in_order {
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

/// What was to be accepted together, and was not said to be, came whole or not at all.
fn check_wholeness(messages: &[Sent], is_there: impl Fn(usize) -> bool) -> Result<(), String> {
    for together in messages.chunk_by(|one, next| one.with == next.with) {
        let first = together[0].with;
        let numbers = first..first + together.len();
        let there = numbers.clone().filter(|number| is_there(*number)).count();
        let is_durable = together[0].line.kind == Kind::Durable;
        if is_durable && there != 0 && there != together.len() {
            return Err(format!("only {there} of the messages {numbers:?} came"));
        }
    }
    Ok(())
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
    fn check(
        &self,
        name: Name,
        seen: Seen,
        overflow: Overflow,
        has_ledger: bool,
    ) -> Result<(), &'static str> {
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
            Kind::Durable if has_ledger => self.check_durable(name, wanted),
            Kind::Request(_) => self.check_request(name, wanted),
            Kind::Unasked => self.check_unasked(wanted),
            Kind::Durable | Kind::Memory | Kind::Large if refusing => {
                self.check_fate(name, has_ledger)
            }
            Kind::Durable | Kind::Memory | Kind::Large => {
                self.check_memory(name, wanted, has_ledger)
            }
        }
    }

    fn check_durable(&self, name: Name, times: usize) -> Result<(), &'static str> {
        match (self.state, times) {
            (State::Accepted, 1) => self.check_fate(name, true),
            (State::Accepted, 0) => Err("was accepted and is lost"),
            (State::Offered | State::Refused, 0 | 1) => Ok(()),
            (_, _) => Err("was handled more than once"),
        }
    }

    /// Of a message that nobody recognises when it comes again, what its receipt said is true.
    fn check_memory(&self, name: Name, times: usize, has_ledger: bool) -> Result<(), &'static str> {
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
            _ => self.check_fate(name, has_ledger),
        }
    }

    fn check_unasked(&self, times: usize) -> Result<(), &'static str> {
        match (self.state, times) {
            (_, 0) | (State::Offered | State::Accepted, 1) => Ok(()),
            (State::Refused, 1) => Err("was handled, and its sender told otherwise"),
            (_, _) => Err("was handled more than once"),
        }
    }

    /// What is said of a request in the end is true.
    fn check_request(&self, name: Name, times: usize) -> Result<(), &'static str> {
        if times > 1 {
            return Err("was handled more than once");
        }
        let Some(end) = &self.end else {
            return Ok(());
        };
        let late = |code: Option<&ErrorCode>| {
            matches!(code, Some(ErrorCode::Deadline | ErrorCode::Cancelled))
        };
        let as_wanted = match (end, self.line.task.ending) {
            (Ok(told), Ending::Replied) => told.name == name && times == 1,
            (Err(RequestError::NoReply), Ending::Handled) => times == 1,
            (Err(RequestError::Rejected(rejection)), _) if late(rejection.code.as_ref()) => {
                times == 0
            }
            (Err(RequestError::Rejected(_) | RequestError::Unknown(_)), _)
            | (Err(RequestError::Deadline | RequestError::Cancelled), _) => true,
            (
                Err(RequestError::NotNegotiated | RequestError::NotSent(_) | RequestError::TooLate),
                _,
            ) => times == 0,
            (_, _) => false,
        };
        as_wanted.then_some(()).ok_or("has the wrong end")
    }

    /// The fate, if it is known, is the one that the message was made for.
    fn check_fate(&self, name: Name, has_ledger: bool) -> Result<(), &'static str> {
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
            // The reply came, and did not say what it answers.
            (Ending::Replied, Fate::Handled) => !has_ledger,
            (_, Fate::NotSent(_) | Fate::Sent | Fate::Unknown(_) | Fate::Rejected(_)) => {
                self.line.kind != Kind::Durable || !has_ledger
            }
            (_, _) => false,
        };
        as_wanted.then_some(()).ok_or("has the wrong fate")
    }
}

/// A short name of what a request came to.
fn label(end: &Result<Told, RequestError>) -> &'static str {
    match end {
        Ok(_) => "told",
        Err(RequestError::NoReply) => "no reply",
        Err(RequestError::Rejected(rejection)) => match rejection.code {
            Some(ErrorCode::Deadline) => "too late",
            Some(ErrorCode::Cancelled) => "given up",
            _ => "refused",
        },
        Err(RequestError::Deadline) => "deadline",
        Err(RequestError::NotNegotiated) => "not negotiated",
        Err(RequestError::Unknown(_)) => "not known",
        Err(_) => "other",
    }
}
