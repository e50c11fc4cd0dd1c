//! How a message is kept: in memory while it waits, and in the outbox.
//!
//! A record is a version (`1`), a kind, a head in JSON, and for a message a line feed and its
//! payload as it goes on the wire. Members of a head that are not known are ignored, so that a later
//! version can add some and an older one still send what it finds.
//!
//! A message whose payload is sealed has the version `2`: a program that knows only `1` must not send
//! it, and says that it does not know it.

use std::borrow::Cow;

use migration_ipc_protocol::{
    DeliveryHead, EncodeError, EnvelopeHead, Idempotence, MessageId, MessageSerializer,
    MessageType, Priority, RawValue, StreamName, Timestamp,
};
use serde::de::IntoDeserializer;
use serde::{Deserialize, Deserializer, Serialize};
use thiserror::Error;

use super::log::OutboxFailure;
use super::sealing::{self, OutboxKey, OutboxKeyId, Sealed};
use crate::connection::{SendError, with_scratch};

const VERSION: u8 = b'1';
const SEALED: u8 = b'2';
const MESSAGE: u8 = b'M';
const MARK: u8 = b'A';

/// What a record says of its message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Head<'a> {
    pub(crate) id: MessageId,
    #[serde(rename = "type", borrow)]
    pub(crate) message_type: Cow<'a, str>,
    pub(crate) timestamp: Timestamp,
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub(crate) stream: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) expires: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) idempotent: bool,
    #[serde(
        default,
        deserialize_with = "known_priority",
        skip_serializing_if = "is_normal"
    )]
    pub(crate) priority: Priority,
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub(crate) key: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) sensitive: bool,
    /// The name of the key that its payload is sealed with, if it is.
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub(crate) sealed: Option<Cow<'a, str>>,
}

/// A record, read in place.
#[derive(Debug)]
pub(crate) enum Stored<'a> {
    Message(Head<'a>, &'a RawValue),
    /// A message with a payload that only a key opens.
    Sealed(Head<'a>, Sealed<'a>),
    /// The message with this number is about to be sent to a service that does not recognise
    /// repetitions.
    Mark(u64),
}

/// A record is not one that this version can read.
#[derive(Debug, Error)]
pub(crate) enum StoredError {
    #[error("a record of version {0:?}, which this program does not know")]
    Version(Option<char>),
    #[error("a record of an unknown kind")]
    Kind,
    #[error("a record that is not whole: {0}")]
    Json(#[from] serde_json::Error),
    #[error("a record without a payload")]
    NoPayload,
    #[error("a sealed record that does not name its key")]
    NoKey,
}

impl<'a> Stored<'a> {
    pub(crate) fn read(record: &'a [u8]) -> Result<Self, StoredError> {
        let (kind, rest) = match record {
            [VERSION, kind, rest @ ..] => (*kind, rest),
            [SEALED, MESSAGE, rest @ ..] => return Self::read_sealed(record, rest),
            [SEALED, ..] => return Err(StoredError::Kind),
            _ => {
                let version = record.first().map(|byte| char::from(*byte));
                return Err(StoredError::Version(version));
            }
        };
        match kind {
            MARK => Ok(Self::Mark(serde_json::from_slice(rest)?)),
            MESSAGE => {
                let end = rest
                    .iter()
                    .position(|byte| *byte == b'\n')
                    .ok_or(StoredError::NoPayload)?;
                let head = serde_json::from_slice(&rest[..end])?;
                Ok(Self::Message(
                    head,
                    serde_json::from_slice(&rest[end + 1..])?,
                ))
            }
            _ => Err(StoredError::Kind),
        }
    }

    fn read_sealed(record: &'a [u8], rest: &'a [u8]) -> Result<Self, StoredError> {
        let end = rest
            .iter()
            .position(|byte| *byte == b'\n')
            .ok_or(StoredError::NoPayload)?;
        let (head, bytes) = (&rest[..end], &rest[end + 1..]);
        let head: Head<'_> = serde_json::from_slice(head)?;
        let with = head.sealed.as_deref().and_then(OutboxKeyId::parse);
        let sealed = Sealed {
            with: with.ok_or(StoredError::NoKey)?,
            associated: &record[..record.len() - bytes.len()],
            bytes,
        };
        Ok(Self::Sealed(head, sealed))
    }
}

/// Whether a record has a payload that only a key opens.
pub(crate) fn is_sealed(record: &[u8]) -> bool {
    record.first() == Some(&SEALED)
}

/// Checks that a message is one that a peer takes.
fn check(head: &Head<'_>, payload: &RawValue) -> Result<(), EncodeError> {
    let envelope = EnvelopeHead {
        // The longest there is: what fits with it fits with every other.
        delivery: Some(DeliveryHead {
            seq: u64::MAX,
            stream: head.stream.as_deref(),
        }),
        ..EnvelopeHead::new(&head.id, &head.message_type, head.timestamp)
    };
    with_scratch(|frame| MessageSerializer::encode(frame, envelope, payload))?;
    Ok(())
}

/// The record of a message that can be sent: it is checked to be one that a peer takes.
pub(crate) fn message(head: &Head<'_>, payload: &RawValue) -> Result<Vec<u8>, EncodeError> {
    check(head, payload)?;
    let mut record = Vec::with_capacity(192 + payload.get().len());
    record.extend([VERSION, MESSAGE]);
    serde_json::to_writer(&mut record, head).map_err(EncodeError::Json)?;
    record.push(b'\n');
    record.extend_from_slice(payload.get().as_bytes());
    Ok(record)
}

/// The same with a payload that only this key opens.
pub(crate) fn sealed_message(
    head: &Head<'_>,
    payload: &RawValue,
    with: &OutboxKey,
) -> Result<Vec<u8>, SendError> {
    check(head, payload)?;
    let shown = Head {
        id: head.id.clone(),
        message_type: Cow::Borrowed(&head.message_type),
        timestamp: head.timestamp,
        stream: head.stream.as_deref().map(Cow::Borrowed),
        expires: head.expires,
        idempotent: head.idempotent,
        priority: head.priority,
        key: None,
        sensitive: head.sensitive,
        sealed: Some(with.id().to_string().into()),
    };
    let mut record = Vec::with_capacity(224 + sealing::OVERHEAD + payload.get().len());
    record.extend([SEALED, MESSAGE]);
    serde_json::to_writer(&mut record, &shown).map_err(EncodeError::Json)?;
    record.push(b'\n');
    sealing::seal(&mut record, with, head.key.as_deref(), payload)
        .map_err(|error: OutboxFailure| SendError::NotStored(error.into()))?;
    Ok(record)
}

pub(crate) fn mark(number: u64) -> Vec<u8> {
    let mut record = vec![VERSION, MARK];
    record.extend_from_slice(number.to_string().as_bytes());
    record
}

impl Head<'_> {
    pub(crate) fn into_owned(self) -> Head<'static> {
        let own = |text: Option<Cow<'_, str>>| text.map(|text| Cow::Owned(text.into_owned()));
        Head {
            id: self.id,
            message_type: Cow::Owned(self.message_type.into_owned()),
            timestamp: self.timestamp,
            stream: own(self.stream),
            expires: self.expires,
            idempotent: self.idempotent,
            priority: self.priority,
            key: own(self.key),
            sensitive: self.sensitive,
            sealed: own(self.sealed),
        }
    }

    pub(crate) fn message_type(&self) -> MessageType {
        MessageType::new(&self.message_type)
    }

    pub(crate) fn stream(&self) -> Option<StreamName> {
        // What is no name was never written by `message`.
        self.stream
            .as_deref()
            .and_then(|name| StreamName::new(name).ok())
    }
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde asks for a reference"
)]
fn is_normal(priority: &Priority) -> bool {
    *priority == Priority::Normal
}

/// One of a later version is no reason not to send a message.
fn known_priority<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Priority, D::Error> {
    let name = Cow::<'de, str>::deserialize(deserializer)?;
    let name = name.as_ref().into_deserializer();
    let known: Result<_, serde::de::value::Error> = Priority::deserialize(name);
    Ok(known.unwrap_or(Priority::Normal))
}

pub(crate) fn is_idempotent(idempotence: Idempotence) -> bool {
    match idempotence {
        Idempotence::Idempotent => true,
        Idempotence::Unknown => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> Head<'static> {
        Head {
            id: MessageId::new("m\n1").unwrap(),
            message_type: "USER_ACTION".into(),
            timestamp: "2024-01-01T12:00:00.1234567Z".parse().unwrap(),
            stream: Some("backup".into()),
            expires: Some("2024-01-02T12:00:00Z".parse().unwrap()),
            idempotent: true,
            priority: Priority::Normal,
            key: Some("two\nlines".into()),
            sensitive: true,
            sealed: None,
        }
    }

    fn payload(text: &str) -> Box<RawValue> {
        RawValue::from_string(text.to_owned()).unwrap()
    }

    #[test]
    fn a_message_comes_back_as_it_was() {
        let payload = payload("{\"a\": \"line\\nfeed\",\n\"b\": 1}");
        let plain = Head {
            stream: None,
            expires: None,
            idempotent: false,
            key: None,
            sensitive: false,
            ..head()
        };
        for head in [head(), plain] {
            let record = message(&head, &payload).unwrap();
            match Stored::read(&record).unwrap() {
                Stored::Message(read, text) => {
                    assert_eq!(read, head);
                    assert_eq!(text.get(), payload.get());
                }
                Stored::Sealed(..) | Stored::Mark(_) => panic!("{record:?}"),
            }
        }
    }

    fn key() -> OutboxKey {
        OutboxKey::new(&crate::keys::KeyBytes::new([7; 32]))
    }

    #[test]
    fn a_sealed_message_shows_its_head_and_neither_payload_nor_key() {
        let payload = payload("{\"password\":\"hunter2\"}");
        let secret = Head {
            key: Some("hunter2".into()),
            ..head()
        };
        let record = sealed_message(&secret, &payload, &key()).unwrap();
        assert!(!String::from_utf8_lossy(&record).contains("hunter"));
        match Stored::read(&record).unwrap() {
            Stored::Sealed(read, sealed) => {
                assert_eq!(read.key, None);
                assert_eq!(read.sealed, Some(key().id().to_string().into()));
                assert_eq!((read.id, read.stream), (head().id, head().stream));
                assert_eq!(sealed.with, key().id());
                assert_eq!(sealed.associated.last(), Some(&b'\n'));
                assert!(record.starts_with(sealed.associated));
            }
            Stored::Message(..) | Stored::Mark(_) => panic!("{record:?}"),
        }
    }

    /// A program before this one knows `1` alone, and leaves everything else as it is: it must not
    /// take what is sealed for a payload.
    #[test]
    fn an_earlier_version_does_not_know_what_is_sealed() {
        let record = sealed_message(&head(), &payload("{}"), &key()).unwrap();
        assert_eq!(record.first(), Some(&b'2'));
        assert_eq!(mark(1).first(), Some(&b'1'), "and everything else as ever");
    }

    #[test]
    fn a_mark_comes_back_as_it_was() {
        let record = mark(u64::MAX);
        assert!(matches!(Stored::read(&record), Ok(Stored::Mark(u64::MAX))));
    }

    /// The form on disk outlives the program: a change needs a new version.
    #[test]
    fn the_form_is_this_one() {
        let record = message(&head(), &payload("{}")).unwrap();
        let expected = "1M{\"id\":\"m\\n1\",\"type\":\"USER_ACTION\",\
            \"timestamp\":\"2024-01-01T12:00:00.1234567Z\",\"stream\":\"backup\",\
            \"expires\":\"2024-01-02T12:00:00Z\",\"idempotent\":true,\"key\":\"two\\nlines\",\"sensitive\":true}\n{}";
        assert_eq!(str::from_utf8(&record).unwrap(), expected);
        assert_eq!(mark(7), b"1A7");
    }

    #[test]
    fn members_of_a_later_version_are_ignored() {
        let record = b"1M{\"id\":\"a\",\"type\":\"T\",\"timestamp\":\"2024-01-01T12:00:00Z\",\"new\":[1]}\n{}";
        assert!(matches!(Stored::read(record), Ok(Stored::Message(..))));
    }

    #[test]
    fn a_priority_comes_back_and_an_unknown_one_is_normal() {
        let urgent = Head {
            priority: Priority::High,
            ..head()
        };
        let record = message(&urgent, &payload("{}")).unwrap();
        let text = str::from_utf8(&record).unwrap();
        for (name, expected) in [("high", Priority::High), ("soon", Priority::Normal)] {
            let record = text.replace("\"high\"", &format!("\"{name}\""));
            match Stored::read(record.as_bytes()).unwrap() {
                Stored::Message(read, _) => assert_eq!(read.priority, expected),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn what_is_no_record_is_refused() {
        for bad in [
            &b""[..],
            b"2M{}\n{}",
            b"1X{}\n{}",
            b"1M{}",
            b"1M{}\n{}",
            b"2A7",
            b"2M{}",
            b"2M{\"id\":\"a\",\"type\":\"T\",\"timestamp\":\"2024-01-01T12:00:00Z\"}\nx",
            b"2M{\"id\":\"a\",\"type\":\"T\",\"timestamp\":\"2024-01-01T12:00:00Z\",\"sealed\":\"x\"}\nx",
            b"3M{}\n{}",
            b"1A-1",
            b"1A",
        ] {
            assert!(Stored::read(bad).is_err(), "{:?}", str::from_utf8(bad));
        }
        let whole = message(&head(), &payload("{\"a\":1}")).unwrap();
        for end in 0..whole.len() {
            assert!(Stored::read(&whole[..end]).is_err(), "cut at {end}");
        }
    }

    #[test]
    fn what_no_peer_would_take_is_refused_at_once() {
        let long = payload(&format!("{{\"a\":\"{}\"}}", "x".repeat(1_048_576)));
        assert!(matches!(
            message(&head(), &long),
            Err(EncodeError::TooLarge { .. })
        ));
    }
}
