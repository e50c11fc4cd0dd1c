//! The service that `golden/peer.py` converses with; see `golden/README.md`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::try_join_all;
use migration_ipc::messages::AgentStarted;
use migration_ipc::{
    Answer, Cancellation, ConnectionId, DispatcherError, HandlerError, MessageDispatcher,
    MessagePayload, Peer, Reply, Sender, State,
};
use serde::{Deserialize, Serialize};

/// Defines payloads that either side may send.
macro_rules! payloads {
    ($( $name:ident = $text:literal { $( $member:ident: $of:ty ),* } )+) => { $(
        #[derive(Clone, Debug, Serialize, Deserialize)]
        struct $name { $( $member: $of, )* }

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
    Waited = "TEST_WAITED" { stopped: bool }
    Store = "TEST_STORE" { data: String }
    Stored = "TEST_STORED" { bytes: usize, crc32: u32 }
    Fetch = "TEST_FETCH" { bytes: usize }
    Fetched = "TEST_FETCHED" { data: String }
    AskMe = "TEST_ASK_ME" { text: String }
    Question = "TEST_QUESTION" { text: String }
    QuestionAnswer = "TEST_ANSWER" { text: String }
    Asked = "TEST_ASKED" { answer: String }
    Notify = "TEST_NOTIFY" { count: usize }
    Notified = "TEST_NOTIFIED" { handled: usize }
}

/// The most that is fetched, or notified, at once: a peer asks for it.
const MAX_FETCHED: usize = 8 * 1024 * 1024;
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

async fn on_slow(slow: Slow, nobody_waits: Cancellation) -> Reply<Waited> {
    let wait = nobody_waits.cancelled();
    let stopped = tokio::time::timeout(Duration::from_millis(slow.milliseconds), wait).await;
    Reply(Waited {
        stopped: stopped.is_ok(),
    })
}

async fn on_store(Store { data }: Store) -> Reply<Stored> {
    Reply(Stored {
        bytes: data.len(),
        crc32: crc32(data.as_bytes()),
    })
}

async fn on_fetch(Fetch { bytes }: Fetch) -> Result<Reply<Fetched>, HandlerError> {
    if bytes > MAX_FETCHED {
        return Err(HandlerError::new("so much is not there"));
    }
    Ok(Reply(Fetched {
        data: text_of(bytes),
    }))
}

async fn on_ask_me(AskMe { text }: AskMe, peer: Peer) -> Result<Reply<Asked>, HandlerError> {
    match peer
        .connection()
        .send_acknowledged(Question { text })
        .await?
    {
        Answer::Replied(reply) => {
            let QuestionAnswer { text: answer } = reply.payload()?;
            Ok(Reply(Asked { answer }))
        }
        Answer::Handled => Err(HandlerError::new("the question was not answered")),
    }
}

async fn on_notify(Notify { count }: Notify, peer: Peer) -> Result<Reply<Notified>, HandlerError> {
    let notes = (0..count.min(MAX_NOTIFIED)).map(|_| peer.connection().send_acknowledged(Note {}));
    let answers = try_join_all(notes).await?;
    let handled = answers
        .iter()
        .filter(|answer| matches!(answer, Answer::Handled))
        .count();
    Ok(Reply(Notified { handled }))
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
        .handle(on_store)
        .handle(on_fetch)
        .handle(on_ask_me)
        .handle(on_notify)
        .build()
}
