//! Ids, names of types, and times.

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use migration_ipc_protocol::limits::MAX_MESSAGE_ID;
use migration_ipc_protocol::{MessageId, MessageIdTooLong, MessageType, Timestamp, message_types};
use proptest::prelude::*;

const OURS: &str = "0190163d-8694-739b-aea5-966c26f8ad91";

#[test]
fn ids_keep_their_text() {
    for text in [
        OURS,
        &OURS.to_uppercase(),
        &OURS.replace('-', ""),
        &format!("{{{OURS}}}"),
        &format!("urn:uuid:{OURS}"),
        &OURS.replacen('0', "g", 1),
        "00000000-0000-0000-0000-000000000000",
        "",
        " ",
        "é",
    ] {
        let id = MessageId::new(text).expect("short enough");
        assert_eq!(id.to_string(), text);
        assert_eq!(id, *text);
        assert_eq!(format!("{id:?}"), format!("{text:?}"));
        let json = serde_json::to_string(&id).expect("a text");
        assert_eq!(serde_json::from_str::<MessageId>(&json).expect("an id"), id);
    }
}

#[test]
fn ids_are_equal_exactly_when_their_texts_are() {
    let texts = [
        OURS.to_owned(),
        OURS.to_uppercase(),
        OURS.replace('-', ""),
        "m".to_owned(),
    ];
    let id = |text: &String| MessageId::new(text).expect("short enough");
    let ids: HashSet<_> = texts.iter().chain(&texts).map(id).collect();
    assert_eq!(ids.len(), texts.len());
    let uuid: uuid::Uuid = OURS.parse().expect("a UUID");
    assert!(ids.contains(&MessageId::from(uuid)));
}

#[test]
fn ids_have_a_longest_form() {
    assert!(MessageId::new(&"x".repeat(MAX_MESSAGE_ID)).is_ok());
    let length = MAX_MESSAGE_ID + 1;
    assert_eq!(
        MessageId::new(&"x".repeat(length)),
        Err(MessageIdTooLong { length })
    );
}

#[test]
fn names_of_types_are_texts() {
    let known = MessageType::new("HEARTBEAT");
    assert_eq!(known, MessageType::from_static(message_types::HEARTBEAT));
    assert_eq!(MessageType::new("MADE_UP"), "MADE_UP");
    assert_ne!(MessageType::new("heartbeat"), known);
    let set = HashSet::from([known]);
    assert!(
        set.contains("HEARTBEAT"),
        "sets of types can be asked for a text"
    );
}

#[test]
fn times_convert_to_those_of_the_system() {
    let time: Timestamp = "2024-06-14T09:30:12.3456789Z".parse().expect("a time");
    let since_epoch = Duration::new(1_718_357_412, 345_678_900);
    assert_eq!(
        time.to_system_time(),
        SystemTime::UNIX_EPOCH.checked_add(since_epoch)
    );
    assert_eq!(Timestamp::UNIX_EPOCH + since_epoch, time);
    assert_eq!(time.unix_micros(), 1_718_357_412_345_678);

    let before = SystemTime::UNIX_EPOCH - Duration::from_nanos(100);
    assert_eq!(
        Timestamp::from(before).to_string(),
        "1969-12-31T23:59:59.9999999Z"
    );
    assert_eq!(Timestamp::from(before).to_system_time(), Some(before));
}

#[test]
fn times_stop_at_the_ends_of_the_calendar() {
    assert_eq!(Timestamp::MAX + Duration::from_nanos(100), Timestamp::MAX);
    assert_eq!(Timestamp::MAX + Duration::MAX, Timestamp::MAX);
    assert_eq!(Timestamp::MIN - Duration::from_nanos(1), Timestamp::MIN);
    assert_eq!(Timestamp::UNIX_EPOCH - Duration::MAX, Timestamp::MIN);
    assert_eq!(Timestamp::from_unix_micros(i64::MAX), Timestamp::MAX);
    assert_eq!(Timestamp::from_unix_micros(i64::MIN), Timestamp::MIN);
    assert_eq!(
        Timestamp::MIN.saturating_duration_since(Timestamp::MAX),
        Duration::ZERO
    );
    let all = Timestamp::MAX.saturating_duration_since(Timestamp::MIN);
    assert_eq!(Timestamp::MIN + all, Timestamp::MAX);
    assert_eq!(Timestamp::MAX - all, Timestamp::MIN);
    for end in [Timestamp::MIN, Timestamp::MAX] {
        assert_eq!(end.to_string().parse(), Ok(end));
        assert_eq!(
            Timestamp::from_unix_micros(end.unix_micros()).unix_micros(),
            end.unix_micros()
        );
    }
}

#[test]
fn what_is_smaller_than_a_step_is_dropped() {
    let one = Timestamp::UNIX_EPOCH + Duration::from_nanos(199);
    assert_eq!(one.to_string(), "1970-01-01T00:00:00.0000001Z");
    let minus_one = Timestamp::UNIX_EPOCH - Duration::from_nanos(1);
    assert_eq!(minus_one.to_string(), "1969-12-31T23:59:59.9999999Z");
}

/// The whole range that times have.
fn micros() -> impl Strategy<Value = i64> {
    Timestamp::MIN.unix_micros()..=Timestamp::MAX.unix_micros()
}

proptest! {
    /// An independent implementation reads what is written as the same moment, and the other way.
    #[test]
    fn jiff_agrees(micros in Timestamp::MIN.unix_micros()..=253_402_207_200_000_000, ticks in 0..10_u64) {
        let time = Timestamp::from_unix_micros(micros) + Duration::from_nanos(ticks * 100);
        let other: jiff::Timestamp = time.to_string().parse()?;
        let nanos = i128::from(micros) * 1000 + i128::from(ticks) * 100;
        prop_assert_eq!(other.as_nanosecond(), nanos);
        prop_assert_eq!(time.unix_micros(), micros);
        prop_assert_eq!(other.to_string().parse::<Timestamp>(), Ok(time));
    }

    #[test]
    fn times_round_trip_and_keep_their_order(a in micros(), b in micros()) {
        let [early, late] = [a.min(b), a.max(b)].map(Timestamp::from_unix_micros);
        prop_assert_eq!(early.unix_micros(), a.min(b));
        prop_assert_eq!(late.to_string().parse(), Ok(late));
        prop_assert_eq!(early < late, a != b);
        let between = late.saturating_duration_since(early);
        prop_assert_eq!(between, Duration::from_micros(a.abs_diff(b)));
        prop_assert_eq!(early + between, late);
        prop_assert_eq!(late - between, early);
    }

    #[test]
    fn any_text_is_a_time_or_an_error(text in "[0-9TZ:.+-]{0,30}|.{0,30}") {
        if let Ok(time) = text.parse::<Timestamp>() {
            prop_assert_eq!(time.to_string().parse(), Ok(time));
        }
    }
}
