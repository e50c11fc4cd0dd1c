//! No byte that is meant for one reaches another: two users' agents and an operator at one service,
//! in virtual time.
//!
//! Every payload says for whom it is, and everything that a client's stream receives is searched
//! for such marks, as bytes. A failure prints its seed; `MIGRATION_IPC_SEED` runs that one again.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::*;
use fastrand::Rng;
use migration_ipc::messages::{AgentStarted, ConfigurationUpdate, SessionId, UserAction};
use migration_ipc::storage::{Journal, Store, StoreOptions};
use migration_ipc::transport::memory::MemoryConnector;
use migration_ipc::{
    AccountId, Execution, HandlerError, IpcServer, MailOptions, MessageDispatcher, MessagePayload,
    PeerIdentity, Reply, Sender, StoreOwner,
};
use migration_ipc_protocol::{FrameDecoder, OutboxId};
use migration_ipc_testkit::disk::SimDisk;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, WriteHalf};
use tokio::task::JoinSet;

const ALICE: &str = "1000";
const BOB: &str = "1001";
const ROOT: &str = "0";

/// Both users announce these.
const SESSIONS: [&str; 2] = ["1", "2"];

const RUNS: u64 = 300;
const STEPS: usize = 80;

/// What only operators ask.
#[derive(Debug, Serialize, Deserialize)]
struct Question {
    mark: String,
}

impl MessagePayload for Question {
    const TYPE: &'static str = "QUESTION";
    const SENDER: Sender = Sender::Operator;
}

fn update(mark: &str) -> ConfigurationUpdate {
    ConfigurationUpdate::new(mark, json!(1))
}

async fn on_action(action: UserAction) -> Result<Reply<ConfigurationUpdate>, HandlerError> {
    Ok(Reply(update(&action.action)))
}

async fn on_question(question: Question) -> Result<Reply<ConfigurationUpdate>, HandlerError> {
    Ok(Reply(update(&question.mark)))
}

fn identity(account: &str) -> PeerIdentity {
    match account {
        ROOT => administrator(),
        account => user(account),
    }
}

// --- a client ------------------------------------------------------------------------------------

/// A client that keeps every byte that it received.
struct Client {
    index: usize,
    account: &'static str,
    writing: Option<WriteHalf<Box<dyn migration_ipc::transport::Stream>>>,
    received: Arc<Mutex<Vec<u8>>>,
    parsed: usize,
    decoder: FrameDecoder,
    /// What it announced and was not answered yet: id and session.
    announcing: BTreeMap<String, &'static str>,
    announced: BTreeSet<&'static str>,
    unanswered: Vec<Value>,
    next_id: u32,
}

impl Client {
    async fn connect(
        index: usize,
        account: &'static str,
        connector: &MemoryConnector,
        readers: &mut JoinSet<()>,
    ) -> Self {
        let stream = connector.connect(identity(account)).await.unwrap();
        let stream: Box<dyn migration_ipc::transport::Stream> = Box::new(stream);
        let (mut reading, writing) = tokio::io::split(stream);
        let received = Arc::new(Mutex::new(Vec::new()));
        let place = Arc::clone(&received);
        readers.spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = reading.read(&mut buffer).await {
                place.lock().unwrap().extend_from_slice(&buffer[..count]);
            }
        });
        Self {
            index,
            account,
            writing: Some(writing),
            received,
            parsed: 0,
            decoder: FrameDecoder::new(),
            announcing: BTreeMap::new(),
            announced: BTreeSet::new(),
            unanswered: Vec::new(),
            next_id: 0,
        }
    }

    /// Sends a message; the service may have closed the connection.
    async fn send(
        &mut self,
        message_type: &str,
        payload: Value,
        in_reply_to: Option<&str>,
    ) -> String {
        self.next_id += 1;
        let id = format!("c{}-{}", self.index, self.next_id);
        let mut message = envelope(&id, message_type, payload);
        if let Some(original) = in_reply_to {
            message["inReplyTo"] = original.into();
        }
        if let Some(writing) = &mut self.writing {
            let bytes = frame(&message.to_string());
            let written = within(writing.write_all(&bytes)).await;
            if written.is_err() {
                self.writing = None;
            }
        }
        id
    }

    async fn announce(&mut self, name: &str, session: &'static str) {
        let payload = agent_started(name, session);
        let id = self.send("AGENT_STARTED", payload, None).await;
        self.announcing.insert(id, session);
    }

    async fn acknowledge(&mut self, id: &str, success: bool) {
        let mut answer = acknowledgment(&json!({"id": id}));
        answer["success"] = success.into();
        self.send("ACKNOWLEDGMENT", answer, None).await;
    }

    /// Takes note of the frames that have arrived. Returns their ids, which others may guess.
    fn read(&mut self) -> Vec<String> {
        let received = self.received.lock().unwrap();
        let mut input = &received[self.parsed..];
        self.parsed = received.len();
        let mut ids = Vec::new();
        while let Some(body) = self.decoder.decode(&mut input).unwrap() {
            let message: Value = serde_json::from_slice(body).unwrap();
            ids.push(message["id"].as_str().unwrap().to_owned());
            let payload = &message["payload"];
            match message["type"].as_str().unwrap() {
                "ACKNOWLEDGMENT" => {
                    let original = payload["originalMessageId"].as_str().unwrap();
                    if let Some(session) = self.announcing.remove(original)
                        && payload["success"] == true
                    {
                        self.announced.insert(session);
                    }
                }
                "CONFIGURATION_UPDATE" => self.unanswered.push(message),
                _ => {}
            }
        }
        ids
    }

    /// Whether what is marked so may be seen here.
    fn may_see(&self, recipient: &str) -> bool {
        match recipient.split_at(1) {
            ("u", account) => account == self.account,
            // Others may have announced a session of the same name.
            ("s", of_user) => of_user.split_once('/').is_some_and(|(user, session)| {
                user == self.account && self.announced.contains(session)
            }),
            ("c", index) => index == self.index.to_string(),
            ("a", "") => !self.announced.is_empty(),
            _ => panic!("no recipient: {recipient}"),
        }
    }

    /// The marks in everything that it received.
    fn marks(&self) -> Vec<String> {
        let received = self.received.lock().unwrap();
        let text = String::from_utf8_lossy(&received);
        let marks = text.split("MARK:").skip(1);
        marks
            .map(|rest| rest.split_once(':').expect("a whole mark").0.to_owned())
            .collect()
    }
}

// --- a run ---------------------------------------------------------------------------------------

/// How many marks of each kind were received.
type Seen = BTreeMap<char, usize>;

struct World {
    rng: Rng,
    server: IpcServer,
    connector: MemoryConnector,
    clients: Vec<Client>,
    readers: JoinSet<()>,
    /// Every message id that anybody has seen.
    ids: Vec<String>,
    marks: u32,
}

impl World {
    fn mark(&mut self, recipient: &str) -> String {
        self.marks += 1;
        format!("MARK:{recipient}:{}", self.marks)
    }

    fn user(&mut self) -> &'static str {
        if self.rng.bool() { ALICE } else { BOB }
    }

    fn session(&mut self) -> &'static str {
        SESSIONS[self.rng.usize(..SESSIONS.len())]
    }

    /// An id that somebody saw, as one who guesses well would name it.
    fn guess(&mut self) -> String {
        match self.ids.len() {
            0 => "m1".to_owned(),
            count => self.ids[self.rng.usize(..count)].clone(),
        }
    }

    async fn connect(&mut self) {
        let account = match self.rng.u8(..5) {
            0 => ROOT,
            1 | 2 => ALICE,
            _ => BOB,
        };
        let index = self.clients.len();
        let mut client = Client::connect(index, account, &self.connector, &mut self.readers).await;
        let speaks_new = account == ROOT || self.rng.bool();
        if speaks_new {
            // An ordinary user who wants to be an operator is turned away.
            let role = match account {
                ROOT => "operator",
                _ if self.rng.u8(..8) == 0 => "operator",
                _ => "agent",
            };
            client.send("HELLO", hello(role, 100), None).await;
        }
        if account != ROOT && self.rng.u8(..8) > 0 {
            let session = self.session();
            client.announce("", session).await;
        }
        self.clients.push(client);
    }

    /// The service sends.
    async fn serve(&mut self) {
        let user = self.user();
        let account = AccountId::new(user);
        match self.rng.u8(..5) {
            0 | 1 => {
                let mark = self.mark(&format!("u{user}"));
                self.server.send_to_user(&account, update(&mark)).unwrap();
            }
            2 => {
                let session = self.session();
                let mark = self.mark(&format!("s{user}/{session}"));
                let session = SessionId::from(session);
                self.server
                    .send_to_session(&account, &session, update(&mark))
                    .unwrap();
            }
            3 => {
                let mark = self.mark("a");
                self.server.broadcast(&update(&mark)).unwrap();
            }
            _ => {
                let mark = self.mark(&format!("u{user}"));
                let sender = self.server.sender();
                let options = MailOptions::new();
                let sent = sender.send_to(&account, &update(&mark), options).await;
                sent.unwrap();
            }
        }
    }

    /// A client does what it may, or what it may not.
    async fn act(&mut self, at: usize) {
        let (other, session, guess) = (self.user(), self.session(), self.guess());
        let name = ["", other][self.rng.usize(..2)];
        let success = self.rng.bool();
        let choice = self.rng.u8(..9);
        let mark = self.mark(&format!("c{at}"));
        let client = &mut self.clients[at];
        match choice {
            0 | 1 => {
                let action = json!({"userId": name, "action": mark, "details": {}});
                client.send("USER_ACTION", action, None).await;
            }
            2 => {
                client.send("QUESTION", json!({"mark": mark}), None).await;
            }
            3 => client.announce(name, session).await,
            4 => client.acknowledge(&guess, success).await,
            5 => {
                // A reply to what may be another's message.
                let payload = json!({"userId": "", "action": mark, "details": {}});
                client.send("USER_ACTION", payload, Some(&guess)).await;
            }
            6 => {
                let mut beat = heartbeat(1);
                beat["senderId"] = other.into();
                client.send("HEARTBEAT", beat, None).await;
            }
            _ => {
                for message in std::mem::take(&mut client.unanswered) {
                    let id = message["id"].as_str().unwrap();
                    client.acknowledge(id, success).await;
                }
            }
        }
    }

    async fn step(&mut self) {
        let open = self
            .clients
            .iter()
            .filter(|client| client.writing.is_some());
        let open: Vec<_> = open.map(|client| client.index).collect();
        match self.rng.u8(..10) {
            _ if open.is_empty() => self.connect().await,
            0 if open.len() < 8 => self.connect().await,
            1 if open.len() > 3 => {
                let at = open[self.rng.usize(..open.len())];
                // What was sent is still received.
                if let Some(mut writing) = self.clients[at].writing.take() {
                    let _closed_already = writing.shutdown().await;
                }
            }
            2..=5 => self.serve().await,
            _ => {
                let at = open[self.rng.usize(..open.len())];
                self.act(at).await;
            }
        }
        if self.rng.u8(..3) > 0 {
            settle().await;
        }
        for client in &mut self.clients {
            self.ids.extend(client.read());
        }
    }
}

async fn run(seed: u64, seen: &mut Seen) {
    let options = StoreOptions {
        journal: Journal::Newest(100.try_into().unwrap()),
    };
    let disk = Arc::new(SimDisk::new(seed));
    let fresh = OutboxId::from_bytes([9; 16]);
    let (store, _) = Store::open(disk, "store", options, fresh).unwrap();
    let owner = StoreOwner::start(store, Execution::Inline);
    let handle = owner.handle();
    let dispatcher = MessageDispatcher::builder(())
        .handle(|_: AgentStarted| async {})
        .handle(on_action)
        .handle(on_question)
        .build()
        .unwrap();
    let (server, connector) = serve_with(dispatcher, |server| server.store(handle)).await;
    let mut world = World {
        rng: Rng::with_seed(seed),
        server,
        connector,
        clients: Vec::new(),
        readers: JoinSet::new(),
        ids: Vec::new(),
        marks: 0,
    };
    for _ in 0..STEPS {
        world.step().await;
    }
    world.server.stop(Duration::from_secs(5)).await;
    drop(owner.close().await);
    for client in &mut world.clients {
        client.writing = None;
    }
    world.readers.shutdown().await;
    for client in &mut world.clients {
        client.read();
    }
    for client in &world.clients {
        for recipient in client.marks() {
            let (index, account) = (client.index, client.account);
            assert!(
                client.may_see(&recipient),
                "MIGRATION_IPC_SEED={seed}: connection {index} of {account} received what is \
                 meant for {recipient}"
            );
            *seen.entry(recipient.chars().next().unwrap()).or_default() += 1;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn no_byte_that_is_meant_for_one_reaches_another() {
    let mut seen = Seen::new();
    if let Ok(seed) = std::env::var("MIGRATION_IPC_SEED") {
        return run(seed.parse().unwrap(), &mut seen).await;
    }
    let first = fastrand::u64(..u64::MAX - RUNS);
    println!("seeds from {first}");
    for seed in first..first + RUNS {
        run(seed, &mut seen).await;
    }
    println!("marks received: {seen:?}");
    // It would be nothing to be proud of if nobody received anything.
    for kind in ['u', 's', 'c', 'a'] {
        assert!(
            seen.get(&kind).is_some_and(|&count| count > 100),
            "{seen:?}"
        );
    }
}

// --- what one can try against the other ----------------------------------------------------------

async fn agent(connector: &MemoryConnector, account: &str) -> WirePeer {
    let mut peer = WirePeer::connect(connector, user(account)).await;
    peer.hello("agent", 100).await;
    peer.send("AGENT_STARTED", agent_started("", "1")).await;
    assert_eq!(peer.receive_acknowledgment().await["success"], true);
    peer
}

async fn two_agents() -> (IpcServer, WirePeer, WirePeer) {
    let dispatcher = MessageDispatcher::builder(())
        .handle(|_: AgentStarted| async {})
        .handle(on_action)
        .build()
        .unwrap();
    let (server, connector) = serve(dispatcher).await;
    let alice = agent(&connector, ALICE).await;
    let bob = agent(&connector, BOB).await;
    (server, alice, bob)
}

/// Ids count within one connection.
#[tokio::test(start_paused = true)]
async fn an_answer_to_a_message_of_another_connection_settles_nothing() {
    let (server, mut alice, mut bob) = two_agents().await;
    let of_alice = server
        .connections()
        .by_user(&AccountId::new(ALICE))
        .remove(0);
    let asking = tokio::spawn(async move { of_alice.send_acknowledged(update("x")).await });
    let message = alice.receive_type("CONFIGURATION_UPDATE").await;
    // Bob knows the id, and answers in every way that there is.
    bob.acknowledge(&message).await;
    bob.reply(&message, "USER_ACTION", action("mine")).await;
    let mut refusal = acknowledgment(&message);
    refusal["success"] = false.into();
    bob.send("ACKNOWLEDGMENT", refusal).await;
    settle().await;
    assert!(!asking.is_finished(), "it waits for Alice");
    alice.acknowledge(&message).await;
    assert!(within(asking).await.unwrap().is_ok());
}

/// Whoever a heartbeat says it is from, it is from its connection.
#[tokio::test(start_paused = true)]
async fn a_heartbeat_that_names_another_keeps_only_its_own_connection() {
    let (server, _alice, mut bob) = two_agents().await;
    let users = |account: &str| server.connections().by_user(&AccountId::new(account)).len();
    // Six minutes, in which Alice says nothing and Bob says that he is Alice.
    for number in 0..18 {
        let mut beat = heartbeat(number);
        beat["senderId"] = ALICE.into();
        bob.send("HEARTBEAT", beat).await;
        tokio::time::sleep(Duration::from_secs(20)).await;
    }
    assert_eq!((users(ALICE), users(BOB)), (0, 1));
}
