//! The service that `golden/peer.py` converses with; see `golden/README.md`.

use std::collections::HashMap;
use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::try_join_all;
use migration_ipc::crypto::{Key, Keyring, PrivateKey, Provider, SharedKey, StaticKeys};
use migration_ipc::messages::AgentStarted;
use migration_ipc::{
    Answer, Batch, Cancellation, Compression, ConnectionConfig, ConnectionId, Deadline,
    DispatcherError, Encryption, HandlerError, ItemError, Items, MessageDispatcher, MessagePayload,
    Peer, Reply, Request, Sender, State, StreamingRequest, limits,
};
use serde::{Deserialize, Serialize};

/// Defines payloads that either side may send.
macro_rules! payloads {
    ($( $name:ident = $text:literal { $( $(#[$how:meta])* $member:ident: $of:ty ),* } )+) => { $(
        #[derive(Clone, Debug, Serialize, Deserialize)]
        struct $name { $( $(#[$how])* $member: $of, )* }

        impl MessagePayload for $name {
            const TYPE: &'static str = $text;
            const SENDER: Sender = Sender::Any;
        }
    )+ };
}

payloads! {
    Echo = "TEST_ECHO" { text: String }
    Echoed = "TEST_ECHOED" { text: String }
    Note = "TEST_NOTE" {}
    Notes = "TEST_NOTES" {}
    Noted = "TEST_NOTED" { notes: u32 }
    Fail = "TEST_FAIL" {}
    Slow = "TEST_SLOW" { milliseconds: u64 }
    Begun = "TEST_BEGUN" {}
    Waited = "TEST_WAITED" { stopped: bool }
    Count = "TEST_COUNT" { to: u32 }
    Counted = "TEST_COUNTED" { number: u32 }
    Sum = "TEST_SUM" { sum: u64 }
    Store = "TEST_STORE" { data: String }
    Stored = "TEST_STORED" { bytes: usize, crc32: u32 }
    Fetch = "TEST_FETCH" { bytes: usize }
    Fetched = "TEST_FETCHED" { data: String }
    Push = "TEST_PUSH" { bytes: usize }
    AskMe = "TEST_ASK_ME" { text: String }
    Question = "TEST_QUESTION" { text: String }
    QuestionAnswer = "TEST_ANSWER" { text: String }
    Asked = "TEST_ASKED" { answer: String }
    Notify = "TEST_NOTIFY" { count: usize, #[serde(default)] batch: bool }
    Notified = "TEST_NOTIFIED" { handled: usize }
}

impl Request for Question {
    type Reply = QuestionAnswer;
}

impl StreamingRequest for Slow {
    type Item = Begun;
    type Reply = Waited;
}

impl StreamingRequest for Count {
    type Item = Counted;
    type Reply = Sum;
}

/// The most that is fetched, pushed or notified at once: a peer asks for it.
const MAX_TEXT: usize = 16 * 1024 * 1024;
const MAX_NOTIFIED: usize = 1000;

/// How many notes came over each connection. It lives as long as a test does, and forgets nobody.
type NotesByConnection = Arc<Mutex<HashMap<ConnectionId, u32>>>;

async fn on_note(_: Note, peer: Peer, State(notes): State<NotesByConnection>) {
    let mut notes = notes.lock().unwrap_or_else(PoisonError::into_inner);
    *notes.entry(peer.connection_id()).or_default() += 1;
}

async fn on_notes(_: Notes, peer: Peer, State(notes): State<NotesByConnection>) -> Reply<Noted> {
    let notes = notes.lock().unwrap_or_else(PoisonError::into_inner);
    let notes = notes.get(&peer.connection_id()).copied();
    Reply(Noted {
        notes: notes.unwrap_or_default(),
    })
}

async fn on_slow(
    slow: Slow,
    mut items: Items<Begun>,
    nobody_waits: Cancellation,
) -> Result<Reply<Waited>, HandlerError> {
    match items.send(Begun {}).await {
        Ok(()) | Err(ItemError::NotAsked | ItemError::GivenUp) => {}
        Err(error) => return Err(error.into()),
    }
    let wait = nobody_waits.cancelled();
    let stopped = tokio::time::timeout(Duration::from_millis(slow.milliseconds), wait).await;
    Ok(Reply(Waited {
        stopped: stopped.is_ok(),
    }))
}

async fn on_count(
    Count { to }: Count,
    mut items: Items<Counted>,
    nobody_waits: Cancellation,
) -> Result<Reply<Sum>, HandlerError> {
    let mut sum = 0;
    for number in 1..=to {
        if nobody_waits.is_cancelled() {
            break;
        }
        match items.send(Counted { number }).await {
            Ok(()) | Err(ItemError::NotAsked) => sum += u64::from(number),
            Err(ItemError::GivenUp) => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Reply(Sum { sum }))
}

async fn on_store(Store { data }: Store) -> Reply<Stored> {
    Reply(Stored {
        bytes: data.len(),
        crc32: crc32(data.as_bytes()),
    })
}

async fn on_fetch(Fetch { bytes }: Fetch) -> Result<Reply<Fetched>, HandlerError> {
    if bytes > MAX_TEXT {
        return Err(HandlerError::new("so much is not there"));
    }
    Ok(Reply(Fetched {
        data: text_of(bytes),
    }))
}

async fn on_push(Push { bytes }: Push, peer: Peer) -> Result<Reply<Stored>, HandlerError> {
    if bytes > MAX_TEXT {
        return Err(HandlerError::new("so much is not there"));
    }
    let data = text_of(bytes);
    match peer.connection().send_large(Store { data })?.await? {
        Answer::Replied(reply) => Ok(Reply(reply.payload::<Stored>()?)),
        Answer::Handled => Err(HandlerError::new("what was pushed was not answered")),
    }
}

async fn on_ask_me(
    AskMe { text }: AskMe,
    peer: Peer,
    deadline: Deadline,
    nobody_waits: Cancellation,
) -> Result<Reply<Asked>, HandlerError> {
    let asked = peer.connection().request(Question { text });
    let QuestionAnswer { text: answer } = asked.before(deadline).unless(nobody_waits).await?;
    Ok(Reply(Asked { answer }))
}

async fn on_notify(
    Notify { count, batch }: Notify,
    peer: Peer,
) -> Result<Reply<Notified>, HandlerError> {
    let count = count.min(MAX_NOTIFIED);
    let answers = if batch {
        notify_in_batches(count, &peer).await?
    } else {
        let notes = (0..count).map(|_| peer.connection().send_acknowledged(Note {}));
        try_join_all(notes).await?
    };
    let handled = answers
        .iter()
        .filter(|answer| matches!(answer, Answer::Handled))
        .count();
    Ok(Reply(Notified { handled }))
}

async fn notify_in_batches(count: usize, peer: &Peer) -> Result<Vec<Answer>, HandlerError> {
    let mut answers = Vec::new();
    while answers.len() < count {
        let mut batch = Batch::new();
        for _ in answers.len()..count.min(answers.len() + limits::MAX_BATCH) {
            batch.push(Note {})?;
        }
        for answer in peer.connection().send_batch(batch).await? {
            answers.push(answer?);
        }
    }
    Ok(answers)
}

/// `0 1 2 3 …`, cut to this length.
fn text_of(length: usize) -> String {
    let mut text = String::with_capacity(length + 8);
    for number in 0_u32.. {
        if text.len() >= length {
            break;
        }
        text.push_str(&number.to_string());
        text.push(' ');
    }
    text.truncate(length);
    text
}

/// CRC-32 as in zlib.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xEDB8_8320 & 0_u32.wrapping_sub(crc & 1))
        })
    })
}

pub(crate) fn dispatcher() -> Result<MessageDispatcher, DispatcherError> {
    MessageDispatcher::builder(NotesByConnection::default())
        .handle(|_: AgentStarted| async {})
        .handle(|Echo { text }: Echo| async { Reply(Echoed { text }) })
        .handle(|_: Fail| async { Err::<(), _>(HandlerError::new("boom")) })
        .handle(on_note)
        .handle(on_notes)
        .handle(on_slow)
        .handle(on_count)
        .handle(on_store)
        .handle(on_fetch)
        .handle(on_push)
        .handle(on_ask_me)
        .handle(on_notify)
        .build()
}

/// Compression on; everything else as it is by default.
pub(crate) fn config() -> ConnectionConfig {
    ConnectionConfig {
        compression: Compression::From(Compression::USUAL_THRESHOLD),
        ..ConnectionConfig::default()
    }
}

/// The keys of `golden/extensions/noise.json`.
pub(crate) fn encryption() -> Result<Encryption, Box<dyn Error>> {
    let client = PrivateKey::new(count_from(0x21));
    let keys = StaticKeys {
        private: PrivateKey::new(count_from(0x41)),
        peer: client.public(&Provider::default())?,
    };
    let psk = Key::Shared(SharedKey::new(count_from(0x01)));
    let keyring =
        Keyring::new("golden-psk".parse()?, psk).with("golden-kk".parse()?, Key::Static(keys))?;
    Ok(Encryption::offered(keyring))
}

/// The bytes of a key that counts from `first` on.
fn count_from(first: u8) -> [u8; 32] {
    let mut next = first;
    [(); 32].map(|()| {
        let byte = next;
        next = next.wrapping_add(1);
        byte
    })
}
