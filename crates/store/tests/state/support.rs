//! What the tests of the ledger and of the store have in common.

use std::sync::Arc;

use migration_ipc_protocol::{IpcMessage, MessageType, OutboxId, RawValue, Timestamp};
use migration_ipc_store::{
    Begin, Effects, Journal, Ledger, OpenReport, Origin, OutboxKey, Store, StoreError,
    StoreOptions, StoredOutcome, Ticket, Work,
};
use migration_ipc_testkit::disk::SimDisk;

pub(crate) const FILE: &str = "state.redb";

pub(crate) fn options() -> StoreOptions {
    StoreOptions {
        journal: Journal::newest(),
    }
}

pub(crate) fn try_open(disk: &SimDisk) -> Result<(Store, OpenReport), StoreError> {
    let disk = Arc::new(disk.clone());
    Store::open(disk, FILE, options(), OutboxId::from_bytes([7; 16]))
}

pub(crate) fn open(disk: &SimDisk) -> Store {
    try_open(disk).unwrap().0
}

pub(crate) fn key(account: &str, outbox: u8) -> OutboxKey {
    OutboxKey::new(account, OutboxId::from_bytes([outbox; 16]))
}

pub(crate) fn time(seconds: i64) -> Timestamp {
    Timestamp::from_unix_micros(seconds * 1_000_000)
}

pub(crate) fn message(id: &str) -> IpcMessage {
    IpcMessage {
        id: id.parse().unwrap(),
        message_type: MessageType::from_static("BACKUP_PROGRESS"),
        timestamp: time(1),
        payload: Some(json(r#"{"progress":45}"#)),
        in_reply_to: None,
    }
}

pub(crate) fn json(text: &str) -> Box<RawValue> {
    RawValue::from_string(text.to_owned()).unwrap()
}

pub(crate) fn origin(account: &str, id: &str) -> Origin {
    Origin {
        account: account.into(),
        session: Some("console".into()),
        message: message(id),
        at: time(2),
    }
}

/// The ticket of a message that is new.
pub(crate) fn begin(ledger: &Ledger, key: &OutboxKey, seq: u64) -> Ticket {
    begin_in(ledger, key, None, seq)
}

pub(crate) fn begin_in(ledger: &Ledger, key: &OutboxKey, stream: Option<&str>, seq: u64) -> Ticket {
    match ledger.begin(key, stream, seq) {
        Begin::New(ticket) => ticket,
        other => panic!("{seq} is not new: {other:?}"),
    }
}

/// The outcome of a message that is done.
pub(crate) fn done(ledger: &Ledger, key: &OutboxKey, seq: u64) -> StoredOutcome {
    match ledger.begin(key, None, seq) {
        Begin::Done(outcome) => outcome,
        other => panic!("{seq} is not done: {other:?}"),
    }
}

/// The work of a durable message.
pub(crate) fn work(ticket: Ticket, effects: Effects) -> Work {
    let id = format!("{}-{}", ticket.key().outbox, ticket.seq());
    let account = ticket.key().account.clone();
    Work {
        ticket: Some(ticket),
        effects,
        origin: Some(origin(&account, &id)),
    }
}

pub(crate) fn number(row: Option<Vec<u8>>) -> u64 {
    row.map_or(0, |bytes| u64::from_be_bytes(bytes.try_into().unwrap()))
}

/// Adds one to a counter: shows when an effect is stored twice.
pub(crate) fn count(name: &'static str) -> Effects {
    Effects::new().update(move |rows| {
        let counted = number(rows.get("counters", name)?);
        rows.put("counters", name, (counted + 1).to_be_bytes());
        Ok(())
    })
}

pub(crate) fn counted(store: &Store, name: &str) -> u64 {
    number(store.reader().get("counters", name).unwrap())
}
