//! What a service makes of a peer from its first byte to its end, whatever the peer says, in whatever
//! order and pieces: nothing is dispatched or sent before the operating system has said who it is,
//! nothing panics, the connection ends for a reason that fits, and the next client is served.

use std::cell::RefCell;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use migration_ipc::messages::EscalationNotice;
use migration_ipc::messages::{AgentStarted, DelayRequest, UserAction};
use migration_ipc::transport::{BoxFuture, ResolveError};
use migration_ipc::{
    AccountId, AccountResolver, ConnectionEvent, DisconnectReason, HandlerError, HandlerOptions,
    IpcServer, MessageDispatcher, Peer as From, Reply, State,
};
use migration_ipc_protocol::messages::EscalationReason;

use migration_ipc_testkit::memory::measured;

use crate::encrypted::{KEYS, Offer, SUITES};
use crate::frame;
use crate::input::Input;
use crate::rig::{self, ENCRYPTION, Identification, Peer, Reading, Rig, user};

/// Steps of one run.
const MAX_STEPS: usize = 48;

/// The most memory that one run may take. A peer writes less than 64 KiB in one, so what it declares
/// and does not send costs nothing.
const MAX_MEMORY: usize = 8 * 1024 * 1024;

/// Pieces in which one step writes.
const MAX_PIECES: usize = 6;

/// Whose messages were dispatched.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<AccountId>>>);

impl Seen {
    fn note(&self, from: &From) {
        self.lock().push(from.account().clone());
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<AccountId>> {
        self.0.lock().expect("nobody panics")
    }
}

/// Knows two names.
#[derive(Debug)]
struct Names;

impl AccountResolver for Names {
    fn resolve(&self, name: &str) -> BoxFuture<'_, Result<Option<AccountId>, ResolveError>> {
        let account = match name {
            "me" | "agent" => Some(AccountId::new("agent")),
            "root" | "0" => Some(AccountId::new("0")),
            _ => None,
        };
        Box::pin(std::future::ready(Ok(account)))
    }
}

async fn on_started(_: AgentStarted, from: From, State(seen): State<Seen>) {
    seen.note(&from);
}

async fn on_action(
    action: UserAction,
    from: From,
    State(seen): State<Seen>,
) -> Result<(), HandlerError> {
    seen.note(&from);
    match &*action.action {
        "fail" => Err(HandlerError::new("failed")),
        "wait" => {
            tokio::time::sleep(Duration::from_secs(40)).await;
            Ok(())
        }
        _ => Ok(()),
    }
}

async fn on_delay(
    _: DelayRequest,
    from: From,
    State(seen): State<Seen>,
) -> Reply<EscalationNotice> {
    seen.note(&from);
    Reply(EscalationNotice::new(EscalationReason::Timeout, "later"))
}

struct Stage {
    rig: Rig,
    seen: Seen,
}

impl Stage {
    fn start() -> Self {
        let seen = Seen::default();
        let dispatcher = MessageDispatcher::builder(seen.clone())
            .handle(on_started)
            .handle(on_action)
            .handle_with(HandlerOptions::new().concurrent(), on_delay)
            .build()
            .expect("each type once");
        let build = || IpcServer::builder(dispatcher).account_resolver(Names);
        Self {
            rig: Rig::start(build),
            seen,
        }
    }
}

thread_local! {
    /// Lives as long as the process: there is no runtime any more when a thread ends.
    static STAGE: RefCell<Option<&'static mut Stage>> = const { RefCell::new(None) };
}

const IDS: [&str; 5] = [
    "a",
    "b",
    "",
    "9e107d9d-372b-4c81-8a5e-0123456789ab",
    "\\u0061",
];
/// What a request may say of its answer, in good forms and others.
const MEMBERS: [&str; 9] = [
    "",
    r#""ack":false,"#,
    r#""deadline":1,"#,
    r#""deadline":31536000000,"items":1024,"#,
    r#""deadline":0,"#,
    r#""items":1,"#,
    r#""items":-1,"#,
    r#""item":1,"#,
    r#""seq":1,"ack":false,"deadline":5,"#,
];

/// Messages that run the connection, in good forms and others.
const CONTROL: [(&str, &str); 20] = [
    ("CANCEL", r#"{"requestId":"a"}"#),
    ("CANCEL", r#"{"requestId":"b"}"#),
    ("CANCEL", r#"{"requestId":1}"#),
    ("ITEMS", r#"{"requestId":"a","items":1}"#),
    ("ITEMS", r#"{"requestId":"a","items":0}"#),
    ("ITEMS", r#"{"requestId":"b","items":4294967295}"#),
    ("ACKNOWLEDGMENTS", "{}"),
    (
        "ACKNOWLEDGMENTS",
        r#"{"handled":[[1,18446744073709551615]]}"#,
    ),
    ("ACKNOWLEDGMENTS", r#"{"handled":[[2,1]]}"#),
    ("ACKNOWLEDGMENTS", "null"),
    ("BATCH_OUTCOMES", r#"{"outcomes":[]}"#),
    ("BATCH_OUTCOMES", r#"{"outcomes":[{"success":true}]}"#),
    (
        "CHUNKS_TAKE",
        r#"{"transfer":1,"from":0,"to":18446744073709551615}"#,
    ),
    ("CHUNKS_TAKE", r#"{"transfer":1,"from":9,"to":3}"#),
    ("CHUNKS_END", r#"{"transfer":1,"code":"abandoned"}"#),
    ("CHUNKS_END", r#"{"transfer":1,"code":"busy"}"#),
    ("CHUNKS_END", r#"{"transfer":0,"code":"hash"}"#),
    ("CHUNKS_BEGIN", r#"{"transfer":-1}"#),
    ("ENCRYPTED", "{}"),
    ("ENCRYPTION_CONFIRM", r#"{"transcript":""}"#),
];

/// What stands in a batch, and what must not.
const BATCHED: [&str; 6] = [
    r#"{"id":"a","type":"USER_ACTION","timestamp":"2024-01-01T12:00:00Z","payload":{"userId":"","action":"work","details":{}}}"#,
    r#"{"id":"b","type":"USER_ACTION","timestamp":"2024-01-01T12:00:00Z","deadline":1,"payload":{"userId":"who","action":"fail","details":{}}}"#,
    r#"{"id":"d","type":"DELAY_REQUEST","timestamp":"2024-01-01T12:00:00Z","payload":{"userId":"","reason":"other","requestedDelay":1,"delaysUsed":1}}"#,
    r#"{"id":"e","type":"BATCH","timestamp":"2024-01-01T12:00:00Z","payload":{"messages":[]}}"#,
    r#"{"id":"f","type":"HEARTBEAT","timestamp":"2024-01-01T12:00:00Z","ack":false,"payload":{}}"#,
    "{}",
];

/// The SHA-256 of `ax`, which is no envelope.
const DIGEST_OF_AX: &str = "5e85370e555e95d27df68f93c0ccaa4edfc1da5e281b47a2ebba2649a13ea5f4";

/// Members of a hello that begin no handshake.
const NO_HANDSHAKES: [&str; 8] = [
    "",
    r#","encryption":null"#,
    r#","encryption":{}"#,
    r#","encryption":{"message":""}"#,
    r#","encryption":{"protocol":"Noise_NNpsk0_25519_ChaChaPoly_SHA256","key":"other","message":"00"}"#,
    r#","encryption":{"protocol":"Noise_KK_25519_AESGCM_SHA256","key":"shared","message":"5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a00000000000000000000000000000000"}"#,
    r#","encryption":{"protocol":"Noise_NNpsk0_25519_ChaChaPoly_SHA256","key":"shared","message":"5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a00000000000000000000000000000000"}"#,
    r#","encryption":{"protocol":"Noise_XX_25519_ChaChaPoly_SHA256","key":"static","message":"5a"}"#,
];

const NAMES: [&str; 5] = ["", "agent", "me", "root", "who"];

fn step(input: &mut Input<'_>, rig: &Rig, peer: &mut Peer, piece: &mut usize) {
    let bytes = match input.byte() % 30 {
        0 => {
            let id = *input.choose(&IDS);
            let role = *input.choose(&["agent", "operator", "king", ""]);
            rig::hello(id, role, input.number(), input.byte().into())
        }
        1 => {
            let (id, name) = (*input.choose(&IDS), *input.choose(&NAMES));
            let payload = format!(
                r#"{{"userId":"{name}","agentVersion":"1","sessionId":"{}"}}"#,
                input.byte() % 3
            );
            rig::message(id, "AGENT_STARTED", None, &payload)
        }
        2 => {
            let (id, original) = (*input.choose(&IDS), *input.choose(&IDS));
            let success = *input.choose(&["true", "false", "null"]);
            let payload = format!(
                r#"{{"originalMessageId":"{original}","success":{success},"timestamp":"2024-01-01T12:00:00Z"}}"#
            );
            rig::message(id, "ACKNOWLEDGMENT", None, &payload)
        }
        3 => {
            let number = *input.choose(&["0", "1", "4294967295", "4294967296", "-1", "\"1\""]);
            let payload = format!(r#"{{"messages":{number}}}"#);
            rig::message("c", "CREDIT", None, &payload)
        }
        4 => {
            let reason = *input.choose(&[r#"{"reason":"done"}"#, r#"{"reason":"x"}"#, "null"]);
            rig::message("g", "GOODBYE", None, reason)
        }
        5 => {
            let oldest = *input.choose(&["null", "0", "99999999", "\"x\""]);
            let payload = format!(
                r#"{{"senderId":"p","timestamp":"2024-01-01T12:00:00Z","sequenceNumber":{},"oldestUnhandledMs":{oldest}}}"#,
                input.byte()
            );
            rig::message("h", "HEARTBEAT", None, &payload)
        }
        6 => {
            let (id, name) = (*input.choose(&IDS), *input.choose(&NAMES));
            let action = *input.choose(&["work", "fail", "wait"]);
            let payload = format!(r#"{{"userId":"{name}","action":"{action}","details":{{}}}}"#);
            rig::message(id, "USER_ACTION", None, &payload)
        }
        7 => {
            let (id, original) = (*input.choose(&IDS), *input.choose(&IDS));
            let payload = format!(
                r#"{{"userId":"","reason":"other","requestedDelay":1,"delaysUsed":{}}}"#,
                input.byte()
            );
            rig::message(id, "DELAY_REQUEST", Some(original), &payload)
        }
        8 => {
            let length = input.byte().into();
            input.bytes(length).to_vec()
        }
        9 => {
            let length = input.byte().into();
            match input.bytes(length) {
                [] => return,
                body => rig::frame(body),
            }
        }
        10 => input
            .choose(&[0_i32, -1, i32::MIN, 1_048_576, 1_048_577, i32::MAX])
            .to_le_bytes()
            .to_vec(),
        11 => {
            let name = *input.choose(&["NOBODY_KNOWS", "HELLO", "CREDIT", "STATUS_UPDATE", ""]);
            let payload = *input.choose(&["{}", "null", "[]", "\"x\"", r#"{"a":{"b":[1,2]}}"#]);
            rig::message("n", name, None, payload)
        }
        12 => {
            *piece = usize::from(input.byte());
            return;
        }
        13 => {
            let seconds = *input.choose(&[1, 20, 31, 61, 200]);
            rig.pass(Duration::from_secs(seconds));
            peer.read();
            return;
        }
        14 => {
            peer.shut_down();
            return;
        }
        15 => {
            rig.settle();
            peer.read();
            return;
        }
        16 => {
            let (id, members) = (*input.choose(&IDS), *input.choose(&MEMBERS));
            let action = *input.choose(&["work", "fail", "wait"]);
            let payload = format!(r#"{{"userId":"","action":"{action}","details":{{}}}}"#);
            rig::message_with(id, "USER_ACTION", members, &payload)
        }
        17 => {
            let (name, payload) = *input.choose(&CONTROL);
            rig::message("x", name, None, payload)
        }
        18 => {
            let (first, last, failed) = (input.byte(), input.byte(), input.byte());
            let payload = format!(
                r#"{{"handled":[[{first},{last}]],"failed":[{{"frame":{failed},"error":"no"}}]}}"#
            );
            rig::message("k", "ACKNOWLEDGMENTS", None, &payload)
        }
        19 => {
            let messages: Vec<_> = (0..input.byte() % 5)
                .map(|_| *input.choose(&BATCHED))
                .collect();
            let payload = format!(r#"{{"messages":[{}]}}"#, messages.join(","));
            rig::message("b", "BATCH", None, &payload)
        }
        20 => {
            let transfer = input.byte() % 3;
            let bytes = *input.choose(&["0", "1", "2", "64", "1000000", "18446744073709551615"]);
            let payload =
                format!(r#"{{"transfer":{transfer},"bytes":{bytes},"sha256":"{DIGEST_OF_AX}"}}"#);
            rig::message("t", "CHUNKS_BEGIN", None, &payload)
        }
        21 => {
            let (transfer, offset) = (input.byte() % 3, input.byte() % 4);
            let data = *input.choose(&[&b"a"[..], b"x", b"ax", b"", &[b'x'; 64]]);
            rig::piece(transfer.into(), offset.into(), data)
        }
        22 => {
            let length = *input.choose(&[0_u32, 1, 2, 8, 1000, 1_048_576, 1_048_577, u32::MAX]);
            let count = usize::from(input.byte() % 32);
            rig::frame(&[&[1], &length.to_le_bytes()[..], input.bytes(count)].concat())
        }
        23 => {
            // Not one byte of a body that is declared is there yet.
            let payload = format!(
                r#"{{"transfer":{},"bytes":1000000,"sha256":"{:064x}"}}"#,
                input.number(),
                input.byte()
            );
            rig::message("t", "CHUNKS_BEGIN", None, &payload)
        }
        24 => {
            let (key, suite) = (*input.choose(&KEYS), *input.choose(&SUITES));
            let (capabilities, credit) = (input.number() | ENCRYPTION, input.byte().into());
            peer.offer(Offer::new(key, suite, |member| {
                rig::hello_with("a", "agent", capabilities, credit, member)
            }))
        }
        25 => {
            let member = *input.choose(&NO_HANDSHAKES);
            let capabilities = input.number() ^ ENCRYPTION;
            rig::hello_with("a", "agent", capabilities, 9, member)
        }
        26 => {
            peer.mark();
            return;
        }
        27 => {
            let good = peer.session.as_ref().map(|session| &*session.transcript);
            let transcript = *input.choose(&[good.unwrap_or("00"), DIGEST_OF_AX]);
            let payload = format!(r#"{{"transcript":"{transcript}"}}"#);
            rig::message("f", "ENCRYPTION_CONFIRM", None, &payload)
        }
        28 => {
            // Whatever is encrypted.
            let length = input.byte().into();
            peer.write_clear(input.bytes(length));
            return;
        }
        _ => {
            peer.compresses = !peer.compresses;
            return;
        }
    };
    let bytes = peer.squeezed(bytes);
    let mut rest = bytes.as_slice();
    if *piece > 0 {
        // More pieces would only cost time.
        for _ in 0..MAX_PIECES {
            let (part, behind) = rest.split_at((*piece).min(rest.len()));
            peer.write(part);
            rig.settle();
            rest = behind;
        }
    }
    peer.write(rest);
}

/// Time passes until the service is done with the connection, its handlers included.
fn wait_for_end(rig: &Rig, peer: &mut Peer) {
    rig.settle();
    peer.read();
    // Every timeout of a connection, and every handler, is over long before.
    for _ in 0..20 {
        if peer.state == Reading::Ended && rig.server.connections().counts().total() == 0 {
            return;
        }
        rig.pass(Duration::from_secs(30));
        peer.read();
    }
    panic!("the connection does not end");
}

/// The reason fits what the peer did.
fn check_reason(reason: &DisconnectReason, peer: &Peer) {
    let sent = frame::read(&peer.sent);
    match reason {
        // Of what is encrypted the service may have read less, or something else.
        DisconnectReason::Framing(_) | DisconnectReason::TruncatedFrame
            if peer.session.is_some() => {}
        DisconnectReason::Framing(error) => assert_eq!(sent.error, Some(*error)),
        DisconnectReason::TruncatedFrame => assert!(sent.partial || sent.error.is_some()),
        DisconnectReason::TooManyMalformed => assert!(sent.bodies.len() > 3),
        DisconnectReason::IdentityMismatch => assert!(sent.bodies.len() > 3),
        DisconnectReason::Goodbye(_)
        | DisconnectReason::Refused(_)
        | DisconnectReason::Violation(_) => {
            assert!(!sent.bodies.is_empty());
        }
        DisconnectReason::ClosedByPeer
        | DisconnectReason::HandshakeTimeout
        | DisconnectReason::FrameTimeout
        | DisconnectReason::Stale
        | DisconnectReason::SlowReader
        | DisconnectReason::SlowPeer => {}
        other => panic!("the peer cannot have caused `{other}`"),
    }
}

/// An agent as it should be.
fn next_client(stage: &mut Stage) {
    let mut peer = stage.rig.connect(user("next"), Identification::Now);
    peer.write(&rig::message(
        "n1",
        "USER_ACTION",
        None,
        r#"{"userId":"","action":"work","details":{}}"#,
    ));
    stage.rig.settle();
    peer.read();
    let mut handled = 0;
    peer.messages(|envelope| {
        let payload = envelope.payload.expect("an acknowledgment").get();
        handled += usize::from(payload.contains(r#""originalMessageId":"n1","success":true"#));
    });
    assert_eq!(handled, 1, "the next client is served");
    drop(peer);
    stage.rig.settle();
    stage.rig.events();
    assert_eq!(*stage.seen.lock(), [AccountId::new("next")]);
    stage.seen.lock().clear();
}

fn play(stage: &mut Stage, input: &mut Input<'_>) {
    let how = match input.byte() {
        0..64 => Identification::Now,
        64..160 => Identification::AfterFirstRead,
        160..192 => Identification::Late(input.byte()),
        192..224 => Identification::Refused,
        224.. => Identification::Never,
    };
    let mut peer = stage.rig.connect(user("agent"), how);
    let mut piece = 0;
    for _ in 0..MAX_STEPS {
        if input.is_empty() {
            break;
        }
        step(input, &stage.rig, &mut peer, &mut piece);
        if !peer.identified() {
            assert!(stage.seen.lock().is_empty(), "dispatched, from nobody");
            peer.read();
            assert!(peer.received.is_empty(), "sent, to nobody");
        }
    }
    peer.shut_down();
    wait_for_end(&stage.rig, &mut peer);
    peer.messages(|_| {});

    let mut reasons = Vec::new();
    let mut connected = 0;
    for event in stage.rig.events() {
        match event {
            ConnectionEvent::Connected { connection } => {
                assert_eq!(connection.peer().account(), &AccountId::new("agent"));
                connected += 1;
            }
            ConnectionEvent::Disconnected { reason, .. } => reasons.push(reason),
            ConnectionEvent::Announced { .. } => assert!(peer.identified()),
            other => panic!("{other:?}"),
        }
    }
    let mut seen = stage.seen.lock();
    if peer.identified() {
        assert!(connected <= 1);
        assert_eq!(reasons.len(), connected, "{reasons:?}");
        assert!(seen.iter().all(|account| account.as_str() == "agent"));
        for reason in &reasons {
            check_reason(reason, &peer);
        }
    } else {
        assert_eq!((connected, reasons.len()), (0, 0), "it was nobody");
        assert!(seen.is_empty() && peer.received.is_empty());
    }
    seen.clear();
}

/// How the peer is identified, and its steps.
pub fn run(data: &[u8]) {
    STAGE.with_borrow_mut(|stage| {
        let stage = stage.get_or_insert_with(|| Box::leak(Box::new(Stage::start())));
        let ((), usage) = measured(|| play(stage, &mut Input::new(data)));
        assert!(usage.peak <= MAX_MEMORY, "{usage:?}");
        next_client(stage);
    });
}
