//! Two users' agents and an operator, and everything that a service sends: no byte that is meant for
//! one reaches another. Every text that is meant for somebody says so, and the raw bytes that each
//! receives are searched for those of the others.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use migration_ipc::messages::{
    AgentStarted, BackupRequest, ConfigurationUpdate, DelayRequest, EscalationNotice, UserAction,
};
use migration_ipc::storage::{Store, StoreOptions};
use migration_ipc::transport::{BoxFuture, ResolveError};
use migration_ipc::{
    AccountId, AccountResolver, Answer, ConnectionTimeouts, Effects, Execution, HandlerError,
    HandlerOptions, IpcServer, MailOptions, MessageDispatcher, MessagePayload, OutboxId,
    Peer as From, PeerIdentity, Reply, Sender, SessionId, State, StoreHandle, StoreOwner,
    Timestamp,
};
use migration_ipc_protocol::extensions::{BodyKind, ChunksTake};
use migration_ipc_protocol::messages::EscalationReason;
use migration_ipc_testkit::disk::SimDisk;
use serde::{Deserialize, Serialize};

use crate::encrypted::{KEYS, Offer, SUITES};
use crate::input::Input;
use crate::rig::{self, ENCRYPTION, Identification, Peer, Rig, administrator, user};

/// Steps of one run.
const MAX_STEPS: usize = 64;

/// The bit of a hello's capabilities with which the others say what it encrypts with.
const OFFERS: usize = 1 << 13;

/// Who takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    Alice,
    Bob,
    Operator,
}

impl Who {
    const ALL: [Self; 3] = [Self::Alice, Self::Bob, Self::Operator];

    const fn name(self) -> &'static str {
        match self {
            Self::Alice => "alice",
            Self::Bob => "bob",
            Self::Operator => "0",
        }
    }

    /// How it spells its own name; nobody else gets to see that.
    const fn spelling(self) -> &'static str {
        match self {
            Self::Alice => "<of:alice>",
            Self::Bob => "<of:bob>",
            Self::Operator => "<of:0>",
        }
    }

    fn identity(self) -> PeerIdentity {
        match self {
            Self::Alice | Self::Bob => user(self.name()),
            Self::Operator => administrator(),
        }
    }

    /// A message of its own, and the SHA-256 of it.
    fn body(self) -> (String, &'static str) {
        let digest = match self {
            Self::Alice => "d0a57b9f3299b209c95450c45dee6bc48a8eb9fb6cf77da4304a0b606a52f4fb",
            Self::Bob => "fb56ff2adb13a040b2b96571394bdc12f193a3a5792c8d51ad7eee9469ce5b69",
            Self::Operator => "7679d76e45f279a09a605b539c20a9e6e8bd93ff4c94f3c46823f0a443a84c12",
        };
        let body = format!(
            r#"{{"id":"c","type":"USER_ACTION","timestamp":"2024-01-01T12:00:00Z","payload":{{"userId":"","action":"work","details":{{"text":"{}"}}}}}}"#,
            self.spelling()
        );
        (body, digest)
    }

    fn account(self) -> AccountId {
        AccountId::new(self.name())
    }
}

/// A text for one user alone.
fn for_user(name: &str) -> String {
    format!("<for:{name}>")
}

/// A text for a session of one user. Others may announce one of the same name.
fn for_session(who: Who, session: u8) -> String {
    format!("<for-session:{}:{session}>", who.name())
}

/// A text of one user, for the service alone.
fn of_user(who: Who) -> String {
    who.spelling().to_owned()
}

mod subject {
    use super::{AccountId, MessagePayload};
    use migration_ipc::ServerSender;

    #[cfg(not(feature = "planted"))]
    pub(super) fn send_to_user<P: MessagePayload>(
        sender: &ServerSender,
        user: &AccountId,
        payload: P,
    ) {
        let _ = sender.send_to_user(user, payload);
    }

    /// Sends to everybody's agents, whoever was meant.
    #[cfg(feature = "planted")]
    pub(super) fn send_to_user<P: MessagePayload>(
        sender: &ServerSender,
        _: &AccountId,
        payload: P,
    ) {
        let _ = sender.broadcast(&payload);
    }
}

// --- the service ---------------------------------------------------------------------------------

/// An operator's message for a user.
#[derive(Debug, Serialize, Deserialize)]
struct Relay {
    to: String,
}

impl MessagePayload for Relay {
    const TYPE: &'static str = "RELAY";
    const SENDER: Sender = Sender::Operator;
}

/// Knows everybody, and how they spell themselves.
#[derive(Debug)]
struct Names;

impl AccountResolver for Names {
    fn resolve(&self, name: &str) -> BoxFuture<'_, Result<Option<AccountId>, ResolveError>> {
        let known = Who::ALL
            .into_iter()
            .find(|who| name == who.name() || name == who.spelling());
        Box::pin(std::future::ready(Ok(known.map(Who::account))))
    }
}

/// What handlers use.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Option<migration_ipc::ServerSender>>>);

impl Shared {
    fn sender(&self) -> migration_ipc::ServerSender {
        let sender = self.0.lock().expect("nobody panics");
        sender.clone().expect("the service has started")
    }
}

async fn on_started(_: AgentStarted, from: From) -> Option<Reply<BackupRequest>> {
    // The service's own spelling; the agent gets its own one.
    (from.account().as_str() == "alice").then(|| {
        Reply(BackupRequest::new(
            from.account().as_str(),
            Timestamp::UNIX_EPOCH,
            [],
        ))
    })
}

async fn on_action(action: UserAction, from: From) -> Result<(), HandlerError> {
    assert_eq!(action.user_id, from.account().as_str());
    match &*action.action {
        "fail" => Err(HandlerError::new(for_user(from.account().as_str()))),
        "slow" => {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Ok(())
        }
        _ => Ok(()),
    }
}

async fn on_delay(_: DelayRequest, from: From) -> Reply<EscalationNotice> {
    Reply(notice(for_user(from.account().as_str())))
}

async fn on_relay(
    relay: Relay,
    from: From,
    State(shared): State<Shared>,
) -> Result<(), HandlerError> {
    assert!(from.identity().is_operator(), "{} operates", from.account());
    let text = notice(for_user(&relay.to));
    subject::send_to_user(&shared.sender(), &AccountId::new(relay.to), text);
    Ok(())
}

fn notice(text: impl fmt::Display) -> EscalationNotice {
    EscalationNotice::new(EscalationReason::Timeout, text.to_string())
}

fn start() -> Stage {
    let shared = Shared::default();
    let dispatcher = MessageDispatcher::builder(shared.clone())
        .handle(on_started)
        .handle(on_action)
        .handle_with(HandlerOptions::new().concurrent(), on_delay)
        .handle(on_relay)
        .build()
        .expect("each type once");
    let mut store = None;
    let rig = Rig::start(|| {
        let disk = Arc::new(SimDisk::new(0));
        let fresh = OutboxId::from_bytes([9; 16]);
        let options = StoreOptions::default();
        let (opened, _) = Store::open(disk, "store", options, fresh).expect("an empty disk");
        let owner = StoreOwner::start(opened, Execution::Inline);
        let handle = owner.handle();
        store = Some(handle.clone());
        // It lives as long as the process.
        std::mem::forget(owner);
        IpcServer::builder(dispatcher)
            .account_resolver(Names)
            .store(handle)
    });
    let store = store.expect("it was started");
    let sender = rig.server.sender();
    *shared.0.lock().expect("nobody panics") = Some(sender);
    Stage { rig, store }
}

/// The service, and where it keeps mail.
struct Stage {
    rig: Rig,
    store: StoreHandle,
}

impl Stage {
    /// Throws away the mail that nobody has fetched, so that a run is not about that of others.
    fn empty_mailboxes(&self) {
        self.rig.wait_for(async {
            let waiting = self.store.read(|reader| reader.mail(0, 1000)).await;
            for kept in waiting.expect("a good disk") {
                let dropped = Effects::new().drop_mail(kept.number);
                self.store.commit(dropped).await.expect("a good disk");
            }
        });
    }
}

thread_local! {
    /// Lives as long as the process: there is no runtime any more when a thread ends.
    static STAGE: RefCell<Option<&'static mut Stage>> = const { RefCell::new(None) };
}

// --- the peers -----------------------------------------------------------------------------------

struct Scene<'a> {
    rig: &'a mut Rig,
    peers: Vec<(Who, Peer)>,
    /// Who has announced which session, or tried to by a name of its own.
    sessions: BTreeSet<(Who, u8)>,
    /// Ids that anybody has seen, for others to guess.
    ids: Vec<String>,
    ids_of: usize,
    has_mail: bool,
    /// Who has sent pieces, and of whose body.
    has_sent: BTreeSet<(Who, Who)>,
}

impl Scene<'_> {
    fn peer(&mut self, who: Who) -> &mut Peer {
        let peer = self.peers.iter_mut().rfind(|(one, _)| *one == who);
        &mut peer.expect("everybody is connected").1
    }

    fn connect(&mut self, who: Who, how: Identification) {
        let peer = self.rig.connect(who.identity(), how);
        self.peers.push((who, peer));
    }

    fn settle(&mut self) {
        self.rig.settle();
        for (_, peer) in &mut self.peers {
            peer.read();
            peer.encrypt();
        }
    }

    /// Everything that each has received is its own.
    fn check(&self) {
        for (who, peer) in &self.peers {
            let mut found = marks(&peer.received);
            peer.bodies(|kind, original| {
                if kind == BodyKind::Compressed {
                    found.extend(marks(original));
                }
            });
            for mark in found {
                let foreign = Who::ALL.into_iter().any(|other| {
                    other != *who && [for_user(other.name()), of_user(other)].contains(&mark)
                });
                let uninvited = mark.starts_with("<for-session:")
                    && !self
                        .sessions
                        .iter()
                        .any(|(one, session)| one == who && mark == for_session(*one, *session));
                assert!(!foreign && !uninvited, "{who:?} has received {mark}");
            }
            let has_sent = self.has_sent.iter().any(|(sender, _)| sender == who);
            peer.messages(|envelope| {
                if let Ok(take) = envelope.payload::<ChunksTake>()
                    && envelope.message_type == ChunksTake::TYPE
                {
                    assert!(
                        take.from == 0 || has_sent,
                        "{who:?} is told what another account has sent"
                    );
                }
            });
        }
    }

    fn learn_ids(&mut self) {
        let from = self.ids_of % self.peers.len();
        self.ids_of += 1;
        let ids = &mut self.ids;
        self.peers[from].1.messages(|envelope| {
            let id = envelope.id.to_string();
            if ids.len() < 16 && !ids.contains(&id) {
                ids.push(id);
            }
        });
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let what = input.byte() % 21;
        let who = *input.choose(&Who::ALL);
        match what {
            0 => {
                let role = *input.choose(&["agent", "operator"]);
                let (bits, credit) = (input.number(), input.byte().into());
                let hello = if bits & OFFERS == 0 {
                    rig::hello("h", role, bits, credit)
                } else {
                    let key = KEYS[bits >> 14 & 1];
                    let suite = SUITES[bits >> 15 & 1];
                    self.peer(who).offer(Offer::new(key, suite, |member| {
                        rig::hello_with("h", role, bits | ENCRYPTION, credit, member)
                    }))
                };
                self.peer(who).send(hello);
            }
            1 | 2 => self.announce(who, input),
            3 => {
                let action = *input.choose(&["work", "fail", "slow"]);
                let payload = format!(
                    r#"{{"userId":"","action":"{action}","details":{{"text":"{}"}}}}"#,
                    of_user(who)
                );
                let action = rig::message("a", "USER_ACTION", None, &payload);
                self.peer(who).send(action);
            }
            4 => {
                let payload = r#"{"userId":"","reason":"other","requestedDelay":1,"delaysUsed":1}"#;
                let delay = rig::message("d", "DELAY_REQUEST", None, payload);
                self.peer(who).send(delay);
            }
            5 => {
                let to = *input.choose(&["alice", "bob", "0", "nobody"]);
                let relay = rig::message("r", "RELAY", None, &format!(r#"{{"to":"{to}"}}"#));
                self.peer(who).send(relay);
            }
            6 | 7 => {
                let text = notice(for_user(who.name()));
                subject::send_to_user(&self.rig.server.sender(), &who.account(), text);
            }
            8 => {
                let session = input.byte() % 3;
                let payload = notice(for_session(who, session));
                let named = SessionId::from(session.to_string());
                let sender = &self.rig.server;
                let _ = sender.send_to_session(&who.account(), &named, payload);
            }
            9 => self.mail(who),
            10 => {
                let update = ConfigurationUpdate::new("for everybody", true.into());
                let _ = self.rig.server.broadcast(&update);
            }
            11 => self.ask(who),
            12 => self.guess(who, input),
            13 => {
                let length = input.byte().into();
                let bytes = input.bytes(length);
                self.peer(who).write(bytes);
            }
            14 => {
                let how = *input.choose(&[
                    Identification::Now,
                    Identification::AfterFirstRead,
                    Identification::Late(2),
                    Identification::Refused,
                ]);
                if self.peers.len() < 12 {
                    self.peer(who).shut_down();
                    self.connect(who, how);
                }
            }
            15 => {
                let seconds = *input.choose(&[1, 3, 31]);
                self.rig.pass(Duration::from_secs(seconds));
            }
            16 => self.settle(),
            17 => self.control(who, input),
            18 => self.batch(who, input),
            19 => self.chunked(who, input),
            _ => {
                let peer = self.peer(who);
                peer.compresses = !peer.compresses;
            }
        }
    }

    /// An id that somebody has seen, or that is in use all the time.
    fn guessed_id(&mut self, input: &mut Input<'_>) -> String {
        self.learn_ids();
        match self.ids.len() {
            0 => (*input.choose(&["a", "d", "k"])).to_owned(),
            count => self.ids[usize::from(input.byte()) % count].clone(),
        }
    }

    /// Runs the connection in ways that are about the messages of others, perhaps.
    fn control(&mut self, who: Who, input: &mut Input<'_>) {
        let original = self.guessed_id(input);
        let number = input.byte();
        let bytes = match input.byte() % 5 {
            0 => rig::message(
                "x",
                "CANCEL",
                None,
                &format!(r#"{{"requestId":"{original}"}}"#),
            ),
            1 => rig::message(
                "x",
                "ITEMS",
                None,
                &format!(r#"{{"requestId":"{original}","items":{number}}}"#),
            ),
            2 => rig::message(
                "x",
                "ACKNOWLEDGMENTS",
                None,
                &format!(
                    r#"{{"handled":[[1,{number}]],"failed":[{{"frame":{number},"error":"{}"}}]}}"#,
                    of_user(who)
                ),
            ),
            3 => rig::message(
                "x",
                "BATCH_OUTCOMES",
                Some(&original),
                &format!(
                    r#"{{"outcomes":[{{"success":false,"error":"{}"}}]}}"#,
                    of_user(who)
                ),
            ),
            _ => rig::message(
                "x",
                "CHUNKS_END",
                None,
                &format!(r#"{{"transfer":{number},"code":"abandoned"}}"#),
            ),
        };
        self.peer(who).send(bytes);
    }

    /// Several messages in one, of which one may have the id of somebody else's.
    fn batch(&mut self, who: Who, input: &mut Input<'_>) {
        let guessed = self.guessed_id(input);
        let messages: Vec<_> = (0..=input.byte() % 3)
            .map(|_| {
                let id = *input.choose(&["a", "d", &*guessed]);
                let action = *input.choose(&["work", "fail", "slow"]);
                format!(
                    r#"{{"id":"{id}","type":"USER_ACTION","timestamp":"2024-01-01T12:00:00Z","payload":{{"userId":"","action":"{action}","details":{{"text":"{}"}}}}}}"#,
                    of_user(who)
                )
            })
            .collect();
        let payload = format!(r#"{{"messages":[{}]}}"#, messages.join(","));
        self.peer(who)
            .send(rig::message("b", "BATCH", None, &payload));
    }

    /// A body in pieces, or some of it: its own, or with the length and the hash of somebody else's.
    fn chunked(&mut self, who: Who, input: &mut Input<'_>) {
        let whose = *input.choose(&Who::ALL);
        let (body, digest) = whose.body();
        let transfer = u32::from(input.byte() % 4) + 1;
        let begin = rig::message(
            "t",
            "CHUNKS_BEGIN",
            None,
            &format!(
                r#"{{"transfer":{transfer},"bytes":{},"sha256":"{digest}"}}"#,
                body.len()
            ),
        );
        self.peer(who).send(begin);
        self.settle();
        let goal = usize::from(input.byte()).min(body.len());
        if goal > 0 {
            self.has_sent.insert((who, whose));
        }
        let mut offset = 0;
        for data in body.as_bytes()[..goal].chunks(50) {
            let piece = rig::piece(transfer, offset, data);
            self.peer(who).send(piece);
            offset += data.len() as u64;
        }
    }

    /// Says who it is, by a name of its own or by another.
    fn announce(&mut self, who: Who, input: &mut Input<'_>) {
        let session = input.byte() % 3;
        let name = match input.byte() % 6 {
            0 => "",
            1 | 2 => who.spelling(),
            3 => "nobody",
            4 => Who::Alice.name(),
            _ => Who::Bob.name(),
        };
        if !Who::ALL
            .into_iter()
            .any(|other| other != who && other.name() == name)
        {
            self.sessions.insert((who, session));
        }
        let payload =
            format!(r#"{{"userId":"{name}","agentVersion":"1","sessionId":"{session}"}}"#);
        let started = rig::message("s", "AGENT_STARTED", None, &payload);
        self.peer(who).send(started);
    }

    /// Answers what may have been asked of somebody else, or takes that one's id.
    fn guess(&mut self, who: Who, input: &mut Input<'_>) {
        self.learn_ids();
        let original = match self.ids.len() {
            0 => "guess".to_owned(),
            count => self.ids[usize::from(input.byte()) % count].clone(),
        };
        let text = of_user(who);
        let bytes = match input.byte() % 3 {
            0 => rig::message(
                "k",
                "ACKNOWLEDGMENT",
                None,
                &format!(
                    r#"{{"originalMessageId":"{original}","success":false,"error":"{text}","timestamp":"2024-01-01T12:00:00Z"}}"#
                ),
            ),
            1 => rig::message(
                "k",
                "ERROR_REPORT",
                Some(&original),
                &format!(r#"{{"userId":"","errorCode":"x","message":"{text}","context":{{}}}}"#),
            ),
            _ => rig::message(
                &original,
                "USER_ACTION",
                None,
                &format!(r#"{{"userId":"","action":"{text}","details":{{}}}}"#),
            ),
        };
        self.peer(who).send(bytes);
    }

    /// Keeps something for a user, who may be there or not.
    fn mail(&mut self, who: Who) {
        self.has_mail = true;
        let sender = self.rig.server.sender();
        tokio::spawn(async move {
            let text = notice(for_user(who.name()));
            let options = MailOptions::new();
            let _ = sender.send_to(&who.account(), &text, options).await;
        });
    }

    /// Asks a user's agents something, and whoever answers must be that user.
    fn ask(&mut self, who: Who) {
        for connection in self.rig.server.connections().by_user(&who.account()) {
            assert_eq!(connection.peer().account(), &who.account());
            let asked = notice(for_user(who.name()));
            tokio::spawn(async move {
                let text = match connection.send_acknowledged(asked).await {
                    Ok(Answer::Replied(reply)) => reply
                        .payload
                        .map_or_else(String::new, |json| json.get().to_owned()),
                    Ok(_) => String::new(),
                    Err(error) => error.to_string(),
                };
                for other in Who::ALL.into_iter().filter(|other| *other != who) {
                    assert!(
                        !text.contains(&of_user(other)),
                        "{other:?} has answered for {who:?}"
                    );
                }
            });
        }
    }
}

/// The longest text that says whom something is for.
const MAX_MARK: usize = 20;

/// Every text that says whom something is for, or from whom: `<` to `>`.
fn marks(bytes: &[u8]) -> BTreeSet<String> {
    let behind = bytes.split(|byte| *byte == b'<').skip(1);
    let marks = behind.filter_map(|behind| {
        let end = behind
            .iter()
            .take(MAX_MARK)
            .position(|byte| *byte == b'>')?;
        Some(format!("<{}>", std::str::from_utf8(&behind[..end]).ok()?))
    });
    marks.collect()
}

/// Steps, and between them what each has received.
pub fn run(data: &[u8]) {
    STAGE.with_borrow_mut(|stage| {
        let stage = stage.get_or_insert_with(|| Box::leak(Box::new(start())));
        let mut scene = Scene {
            rig: &mut stage.rig,
            peers: Vec::new(),
            sessions: BTreeSet::new(),
            ids: Vec::new(),
            ids_of: 0,
            has_mail: false,
            has_sent: BTreeSet::new(),
        };
        for who in Who::ALL {
            scene.connect(who, Identification::Now);
            scene.rig.settle();
        }
        let mut input = Input::new(data);
        for _ in 0..MAX_STEPS {
            if input.is_empty() {
                break;
            }
            scene.step(&mut input);
        }
        scene.settle();
        scene.check();
        let Scene {
            peers,
            rig,
            has_mail,
            has_sent,
            ..
        } = scene;
        drop(peers);
        // Every question that is still open has its answer, and every connection its end.
        for _ in 0..4 {
            rig.settle();
            rig.events();
            if rig.server.connections().counts().total() == 0 {
                break;
            }
            rig.pass(Duration::from_secs(30));
        }
        assert_eq!(rig.server.connections().counts().total(), 0);
        if !has_sent.is_empty() {
            // What came of a body in pieces is kept for its account: a run is not about that of others.
            let kept = ConnectionTimeouts::default().chunks_kept;
            rig.pass(kept + Duration::from_secs(1));
        }
        if has_mail {
            stage.empty_mailboxes();
        }
    });
}
