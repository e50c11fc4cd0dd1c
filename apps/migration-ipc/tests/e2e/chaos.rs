//! Kills of both sides while messages flow, and what must be left of it.
//!
//! The witnesses are what the publishers printed, the log that the service appends to when a
//! handler begins, outside of its store, and the journal, which is in the store. `CONTRIBUTING.md`
//! has the command for a long run.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::PathBuf;
use std::process::{ChildStdin, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::{Running, Sandbox, report, seed, until, until_seen};

/// How many publishers there are, each an agent in a session of its own.
const PUBLISHERS: usize = 3;

/// From how many kills on the run has to have been a busy one; under Wine a short one may not be.
const LONG: usize = 100;

fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable).map_or(default, |value| value.parse().unwrap())
}

/// A file that others append lines to.
struct Tail {
    path: PathBuf,
    read: u64,
}

impl Tail {
    fn new(path: PathBuf) -> Self {
        Self { path, read: 0 }
    }

    /// The whole lines since the last call.
    fn lines(&mut self) -> Vec<String> {
        let Ok(mut file) = File::open(&self.path) else {
            return Vec::new();
        };
        file.seek(SeekFrom::Start(self.read)).unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        self.read += whole as u64;
        text[..whole].lines().map(str::to_owned).collect()
    }
}

/// The place of a message in the order of its sender: the run that accepted it, and the number of
/// its line.
type Rank = (usize, usize);

/// What is known of a message.
#[derive(Default)]
struct Story {
    publisher: usize,
    /// `None` if the run that accepted it was killed before it could say so.
    rank: Option<Rank>,
    /// How many kills there had been when its outcome was printed.
    settled: Option<usize>,
    /// How many kills there had been when its handler began, each time.
    entered: Vec<usize>,
}

/// When somebody is killed: once so many messages have come so far.
#[derive(Clone, Copy)]
enum Moment {
    Accepted(usize),
    Settled(usize),
}

/// One publisher, over all of its runs.
struct Publisher {
    index: usize,
    run: usize,
    process: Running,
    stdin: Option<ChildStdin>,
    output: Tail,
    accepted: usize,
}

impl Publisher {
    fn start(sandbox: &Sandbox, index: usize, run: usize) -> Self {
        let (endpoint, session) = (sandbox.endpoint(), format!("p{index}"));
        let data = sandbox.text(&session);
        let name = format!("{session}-{run}");
        let key = sandbox.text("p0.key");
        let mut arguments = vec![
            "publish",
            "--endpoint",
            &endpoint,
            "--data-dir",
            &data,
            "--session",
            &session,
            "--max-pause",
            "0.05",
            "--durable",
            "USER_ACTION",
        ];
        // The first one's outbox is encrypted.
        if index == 0 {
            arguments.extend(["--outbox-key", &key]);
        }
        let mut command = sandbox.command(&arguments);
        command.stdin(Stdio::piped());
        let mut process = Running::start(sandbox, &name, command);
        Self {
            index,
            run,
            stdin: process.stdin(),
            process,
            output: Tail::new(sandbox.path(&format!("{name}.out"))),
            accepted: 0,
        }
    }

    fn feed(&mut self, count: usize) {
        let lines: String = (0..count)
            .map(|line| format!("{{\"action\":\"{}-{}-{line}\"}}\n", self.index, self.run))
            .collect();
        self.stdin
            .as_mut()
            .unwrap()
            .write_all(lines.as_bytes())
            .unwrap();
    }
}

/// The whole of it.
struct Chaos {
    sandbox: Sandbox,
    service: Running,
    publishers: Vec<Publisher>,
    entries: Tail,
    stories: HashMap<String, Story>,
    settled: usize,
    kills: usize,
    kills_of_the_service: usize,
    in_flight: Vec<usize>,
}

impl Chaos {
    fn start() -> Self {
        let sandbox = Sandbox::new();
        let service = start_service(&sandbox);
        let publishers = (0..PUBLISHERS)
            .map(|index| Publisher::start(&sandbox, index, 0))
            .collect();
        Self {
            entries: Tail::new(sandbox.path("entries")),
            sandbox,
            service,
            publishers,
            stories: HashMap::new(),
            settled: 0,
            kills: 0,
            kills_of_the_service: 0,
            in_flight: Vec::new(),
        }
    }

    /// Reads what the publishers printed.
    fn listen(&mut self) {
        for publisher in &mut self.publishers {
            for line in publisher.output.lines() {
                let line: Value = serde_json::from_str(&line).unwrap();
                if let Some(id) = line["accepted"].as_str() {
                    let rank = Some((publisher.run, publisher.accepted));
                    publisher.accepted += 1;
                    let index = publisher.index;
                    let story = Story {
                        publisher: index,
                        rank,
                        ..Story::default()
                    };
                    let twice = self.stories.insert(id.to_owned(), story);
                    assert!(twice.is_none(), "{id} was accepted twice");
                    continue;
                }
                let id = line["id"].as_str().unwrap();
                assert_eq!(line["outcome"], "handled", "{line}");
                let story = self.stories.entry(id.to_owned()).or_default();
                // A publisher may be killed before its disk knows what it printed; the next run
                // asks again, and prints it again.
                if story.settled.is_none() {
                    story.settled = Some(self.kills);
                    self.settled += 1;
                }
            }
        }
    }

    /// Reads which handlers began. After `listen`, so that what is settled has begun.
    fn read_entries(&mut self) -> Vec<(String, usize)> {
        let lines = self.entries.lines();
        let actions = lines
            .iter()
            .filter_map(|line| line.strip_suffix(" USER_ACTION"));
        actions.map(|id| (id.to_owned(), self.kills)).collect()
    }

    /// Kills somebody at a moment, and starts it again.
    fn kill(&mut self, victim: usize, moment: Moment, entered: &mut Vec<(String, usize)>) {
        until_seen(
            "the moment of a kill comes",
            Duration::from_millis(1),
            || {
                self.listen();
                match moment {
                    Moment::Accepted(goal) => self.stories.len() >= goal,
                    Moment::Settled(goal) => self.settled >= goal,
                }
            },
        );
        match self.publishers.get_mut(victim) {
            Some(publisher) => publisher.process.kill_now(),
            None => self.service.kill_now(),
        }
        self.listen();
        entered.extend(self.read_entries());
        self.in_flight.push(self.stories.len() - self.settled);
        self.kills += 1;
        match self.publishers.get_mut(victim) {
            Some(publisher) => {
                let run = publisher.run + 1;
                *publisher = Publisher::start(&self.sandbox, victim, run);
            }
            None => {
                self.kills_of_the_service += 1;
                self.service = start_service(&self.sandbox);
            }
        }
    }

    /// Lets everything come to its end.
    fn finish(&mut self, entered: &mut Vec<(String, usize)>) {
        for publisher in &mut self.publishers {
            publisher.stdin = None;
        }
        for index in 0..PUBLISHERS {
            let publisher = &mut self.publishers[index];
            until("a publisher has finished", || publisher.process.has_ended());
            assert_eq!(publisher.process.log(), "");
        }
        self.listen();
        entered.extend(self.read_entries());
    }
}

fn start_service(sandbox: &Sandbox) -> Running {
    let (endpoint, data) = (sandbox.endpoint(), sandbox.text("service-data"));
    let entries = sandbox.text("entries");
    let mut command = sandbox.command(&[
        "service",
        "--development",
        "--endpoint",
        &endpoint,
        "--data-dir",
        &data,
        "--entry-log",
        &entries,
        "--log-level",
        "warn",
        "--until-stdin-ends",
    ]);
    command.stdin(Stdio::piped());
    Running::start(sandbox, "service", command)
}

#[test]
fn nothing_is_lost_and_nothing_happens_twice_whoever_is_killed_when() {
    let kills = number("MIGRATION_IPC_CHAOS_KILLS", 10);
    let messages = number("MIGRATION_IPC_CHAOS_MESSAGES", 3000);
    let seed = seed();
    report(format_args!("chaos of the seed {seed}"));
    let mut random = fastrand::Rng::with_seed(seed);
    let begun = Instant::now();

    let mut chaos = Chaos::start();
    let mut entered = Vec::new();
    let burst = messages.div_ceil(kills);
    for _ in 0..kills {
        let outstanding = chaos.stories.len() - chaos.settled + burst;
        let moment = if random.bool() {
            Moment::Accepted(chaos.stories.len() + random.usize(..burst * 9 / 10))
        } else {
            Moment::Settled(chaos.settled + random.usize(..outstanding * 2 / 3))
        };
        for publisher in &mut chaos.publishers {
            publisher.feed(burst.div_ceil(PUBLISHERS));
        }
        // As often the service as any of the publishers.
        let victim = if random.bool() {
            PUBLISHERS
        } else {
            random.usize(..PUBLISHERS)
        };
        chaos.kill(victim, moment, &mut entered);
    }
    let missing = messages.saturating_sub(chaos.stories.len());
    chaos.publishers[0].feed(missing);
    chaos.finish(&mut entered);
    let repeated = judge(&mut chaos, entered);
    chaos.in_flight.sort_unstable();
    report(format_args!(
        "{kills} kills ({} of the service), {} messages, in flight at a kill: median {}, from {} to {}; \
         0 lost, 0 twice; {repeated} handlers entered again after a kill; {:.1?}",
        chaos.kills_of_the_service,
        chaos.stories.len(),
        chaos.in_flight[kills / 2],
        chaos.in_flight[0],
        chaos.in_flight[kills - 1],
        begun.elapsed(),
    ));
    if kills >= LONG {
        assert!(
            chaos.in_flight[kills / 2] >= 50,
            "too few in flight to mean much"
        );
    }
}

/// Compares the witnesses. Returns how many handlers were entered again.
fn judge(chaos: &mut Chaos, entered: Vec<(String, usize)>) -> usize {
    let data = chaos.sandbox.text("service-data");
    let journal = chaos
        .sandbox
        .run(&["journal", "--json", "--data-dir", &data]);
    assert_eq!(journal.code, Some(0), "{}", journal.errors);
    let mut handled = HashSet::new();
    let mut last: [Rank; PUBLISHERS] = [(0, 0); PUBLISHERS];
    for line in journal.output.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        if line["type"] != "USER_ACTION" {
            continue;
        }
        let id = line["id"].as_str().unwrap().to_owned();
        // Without a story it was accepted, handled and settled without a chance to say so.
        let story = chaos.stories.get(&id);
        if let Some((publisher, rank)) = story.and_then(|it| Some((it.publisher, it.rank?))) {
            assert!(rank >= last[publisher], "{id} was overtaken");
            last[publisher] = rank;
        }
        assert!(handled.insert(id), "an effect happened twice");
    }
    let lost: Vec<_> = chaos
        .stories
        .keys()
        .filter(|id| !handled.contains(*id))
        .collect();
    assert!(lost.is_empty(), "{} lost: {lost:?}", lost.len());

    for (id, kill) in entered {
        chaos.stories.entry(id).or_default().entered.push(kill);
    }
    for (id, story) in &chaos.stories {
        assert!(!story.entered.is_empty(), "{id} was handled unseen");
        for pair in story.entered.windows(2) {
            assert!(pair[0] < pair[1], "{id} was entered twice without a kill");
        }
        let last_entry = *story.entered.last().unwrap();
        assert!(
            story.settled.is_none_or(|settled| last_entry <= settled),
            "{id} was entered again though it was settled before the kill"
        );
    }
    let again = |story: &&Story| story.entered.len() > 1;
    chaos.stories.values().filter(again).count()
}
