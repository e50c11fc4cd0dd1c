//! Mail: messages kept for the agents of accounts.

use std::collections::HashSet;

use migration_ipc_protocol::{IpcMessage, Timestamp};
use serde::{Deserialize, Serialize};

use super::dead_letters::{self, DeadLetter, Direction};
use super::effects::Refusal;
use super::error::Fault;
use super::record::MessageRecord;
use super::rows::Rows;
use super::shelf::{Shelf, own};

/// The most messages that are kept for one account, so that a user who never comes back costs a
/// known amount.
pub const MAX_MAIL_PER_ACCOUNT: u64 = 1000;

/// The most bytes that are kept for one account, with what the store writes around each message.
pub const MAX_MAIL_BYTES_PER_ACCOUNT: u64 = 16 * 1024 * 1024;

/// How many messages expire in one commit.
const EXPIRED_AT_ONCE: usize = 256;

pub(super) const SHELF: Shelf = Shelf {
    rows: "mail",
    of_account: "mail_of_account",
    meters: "mail_meters",
};

/// Time and number of the mail that expires, to nothing.
const EXPIRY: &str = "mail_expiry";

/// A message to be kept for the agent of an account.
#[derive(Clone, Debug)]
pub struct Mail {
    /// The message.
    pub message: IpcMessage,
    /// From when on it is not to be delivered any more.
    pub expires: Option<Timestamp>,
}

/// A message that is kept for the agent of an account.
#[derive(Clone, Debug)]
pub struct KeptMail {
    /// Its number, higher than that of all mail before it, and its `seq` when it is sent.
    pub number: u64,
    /// Whose agent it is for.
    pub account: Box<str>,
    /// What is kept.
    pub mail: Mail,
}

#[derive(Debug, Serialize, Deserialize)]
struct MailRecord<'a> {
    message: MessageRecord<'a>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires: Option<Timestamp>,
}

pub(super) fn put(rows: &mut Rows<'_>, account: &str, mail: &Mail) -> Result<(), Refusal> {
    let record = MailRecord {
        message: MessageRecord::from(&mail.message),
        expires: mail.expires,
    };
    let content = serde_json::to_vec(&record).map_err(|error| rows.fail(Fault::Json(error)))?;
    let load = SHELF.load(rows, account)?;
    if load.rows >= MAX_MAIL_PER_ACCOUNT {
        return Err(Refusal::new(format!(
            "the mailbox of `{account}` is full: it has {MAX_MAIL_PER_ACCOUNT} messages"
        )));
    }
    if load.bytes.saturating_add(content.len() as u64) > MAX_MAIL_BYTES_PER_ACCOUNT {
        return Err(Refusal::new(format!(
            "the mailbox of `{account}` is full: {} more bytes are over its limit of \
             {MAX_MAIL_BYTES_PER_ACCOUNT}",
            content.len()
        )));
    }
    let number = SHELF.put(rows, account, &content)?;
    if let Some(expires) = mail.expires {
        rows.write(own(EXPIRY), expiry_key(expires, number), Some(Vec::new()));
    }
    Ok(())
}

pub(super) fn take(rows: &mut Rows<'_>, number: u64) -> Result<Option<KeptMail>, Refusal> {
    let Some(shelved) = SHELF.take(rows, number)? else {
        return Ok(None);
    };
    let mail = decode(number, shelved.account, &shelved.content);
    let kept = mail.map_err(|fault| rows.fail(fault))?;
    if let Some(expires) = kept.mail.expires {
        rows.write(own(EXPIRY), expiry_key(expires, number), None);
    }
    Ok(Some(kept))
}

/// Turns mail whose time is over into dead letters, a bounded number of them at a time, the
/// longest expired ones first, but not these.
pub(super) fn expire(
    rows: &mut Rows<'_>,
    now: Timestamp,
    except: &HashSet<u64>,
) -> Result<Vec<KeptMail>, Refusal> {
    let mut expired = Vec::new();
    let at_once = EXPIRED_AT_ONCE + except.len();
    for (key, _) in rows.read_prefix(&own(EXPIRY), &[], at_once)? {
        if key.get(..8) > Some(&micros(now).to_be_bytes()) {
            break;
        }
        let number = super::shelf::number_at_end(EXPIRY, &key);
        let number = number.map_err(|fault| rows.fail(fault))?;
        if except.contains(&number) {
            continue;
        }
        let Some(kept) = take(rows, number)? else {
            return Err(rows.fail(Fault::row(EXPIRY, &"its mail is gone")));
        };
        let letter = DeadLetter {
            direction: Direction::ToAgent,
            account: kept.account.clone(),
            session: None,
            message: kept.mail.message.clone(),
            code: None,
            text: "it expired before it was delivered".into(),
            at: now,
        };
        dead_letters::put(rows, &letter)?;
        expired.push(kept);
    }
    Ok(expired)
}

pub(super) fn decode(number: u64, account: Box<str>, content: &[u8]) -> Result<KeptMail, Fault> {
    let record: MailRecord<'_> =
        serde_json::from_slice(content).map_err(|error| Fault::row(SHELF.rows, &error))?;
    Ok(KeptMail {
        number,
        account,
        mail: Mail {
            message: record.message.into(),
            expires: record.expires,
        },
    })
}

fn expiry_key(expires: Timestamp, number: u64) -> Vec<u8> {
    [micros(expires), number].map(u64::to_be_bytes).concat()
}

/// Microseconds since 1970, in the order of time.
fn micros(time: Timestamp) -> u64 {
    let since = time.saturating_duration_since(Timestamp::from_unix_micros(0));
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
