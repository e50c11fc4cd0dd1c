//! Requests with a deadline, their cancellation, and streaming replies.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::limits::{MAX_DEADLINE_MS, MAX_ITEM_GRANT};
use crate::message_id::MessageId;
use crate::message_type::message_types;
use crate::payload::{MessagePayload, Sender};

/// What a request says of the answer that it wants. Only between peers that negotiated
/// [`Requests`](crate::hello::Capability::Requests).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestHead {
    /// For how long, from when it is read, an answer is of use; in whole milliseconds.
    pub deadline: Option<Duration>,
    /// How many items of a streaming reply its sender takes before it grants more; `None` when it
    /// takes none.
    pub items: Option<u32>,
}

/// The members `deadline` and `items` of an envelope are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestHeadError {
    /// `deadline` is not a whole number from 1 to [`MAX_DEADLINE_MS`].
    #[error("`deadline` is no whole number of milliseconds from 1 to {MAX_DEADLINE_MS}")]
    Deadline,
    /// `items` is not a whole number from 1 to [`MAX_ITEM_GRANT`].
    #[error("`items` is no whole number from 1 to {MAX_ITEM_GRANT}")]
    Items,
}

impl RequestHead {
    /// Nothing.
    pub const NONE: Self = Self {
        deadline: None,
        items: None,
    };

    /// Reads the two members as they were written.
    pub(crate) fn read(
        deadline: Option<&RawValue>,
        items: Option<&RawValue>,
    ) -> Result<Self, RequestHeadError> {
        let deadline = match deadline.map(RawValue::get) {
            None | Some("null") => None,
            Some(text) => Some(parse_deadline(text).ok_or(RequestHeadError::Deadline)?),
        };
        let items = match items.map(RawValue::get) {
            None | Some("null") => None,
            Some(text) => Some(parse_items(text).ok_or(RequestHeadError::Items)?),
        };
        Ok(Self { deadline, items })
    }

    /// Takes the members off the front of a text in the usual form, if they are there.
    pub(crate) fn take_usual(text: &str) -> Option<(Self, &str)> {
        let (deadline, text) = take_number(text, ",\"deadline\":", parse_deadline)?;
        let (items, text) = take_number(text, ",\"items\":", parse_items)?;
        Some((Self { deadline, items }, text))
    }

    /// The deadline as the wire has it: rounded up to a millisecond, and within its limits.
    #[must_use]
    pub fn deadline_ms(self) -> Option<u64> {
        let deadline = self.deadline?;
        let millis = deadline.as_nanos().div_ceil(1_000_000);
        Some(
            u64::try_from(millis)
                .map_or(MAX_DEADLINE_MS, |millis| millis.clamp(1, MAX_DEADLINE_MS)),
        )
    }
}

/// Takes a member with a number off the front of a text; `None` when it is another number.
pub(crate) fn take_number<'a, T>(
    text: &'a str,
    name: &str,
    parse: fn(&str) -> Option<T>,
) -> Option<(Option<T>, &'a str)> {
    let Some(text) = text.strip_prefix(name) else {
        return Some((None, text));
    };
    let (number, text) = text.split_at(text.find(',')?);
    Some((Some(parse(number)?), text))
}

fn parse_deadline(text: &str) -> Option<Duration> {
    parse_from_one(text)
        .filter(|millis| *millis <= MAX_DEADLINE_MS)
        .map(Duration::from_millis)
}

fn parse_items(text: &str) -> Option<u32> {
    let items = u32::try_from(parse_from_one(text)?).ok()?;
    (items <= MAX_ITEM_GRANT).then_some(items)
}

/// A whole number from 1 on, as JSON has it: without a sign, leading zeros, fraction or exponent.
pub(crate) fn parse_from_one(text: &str) -> Option<u64> {
    // `str::parse` would take a leading `+` and leading zeros, which JSON does not have.
    if !text.starts_with(|first: char| matches!(first, '1'..='9')) {
        return None;
    }
    text.parse().ok()
}

/// `CANCEL`: nobody waits for the answer to a request any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cancel {
    /// The request.
    pub request_id: MessageId,
}

impl MessagePayload for Cancel {
    const TYPE: &'static str = message_types::CANCEL;
    const SENDER: Sender = Sender::Any;
}

/// `ITEMS`: how many more items of a streaming reply its reader takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ItemGrant {
    /// The request.
    pub request_id: MessageId,
    /// How many more, 1 to [`MAX_ITEM_GRANT`]; they add up.
    pub items: u32,
}

impl MessagePayload for ItemGrant {
    const TYPE: &'static str = message_types::ITEMS;
    const SENDER: Sender = Sender::Any;
}
