//! The payloads of the built-in types.
#![expect(clippy::expect_used, reason = "a test that cannot go on has failed")]

use std::fmt::Debug;
use std::time::Duration;

use migration_ipc_protocol::messages::{
    Acknowledgment, AgentStarted, BackupCompleted, BackupProgress, BackupRequest, BackupStarted,
    Category, CategoryResult, ConfigurationScope, ConfigurationUpdate, DelayReason, DelayRequest,
    ErrorCode, ErrorReport, EscalationNotice, EscalationReason, Heartbeat, OverallStatus, Percent,
    Priority, Seconds, SessionId, ShutdownRequest, StatusUpdate, UserAction, UserId,
};
use migration_ipc_protocol::{
    Envelope, IpcMessage, MessageId, MessagePayload, MessageSerializer, MessageType, Sender,
    Timestamp, message_types,
};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use serde_json::{Map, Value, json};

/// Writes a payload into a frame and reads it again.
fn round_trip<T: MessagePayload + Debug + PartialEq>(payload: &T) -> Result<(), TestCaseError> {
    let id = MessageId::new("m")?;
    let message = IpcMessage::new(id, Timestamp::UNIX_EPOCH, payload)?;
    let mut frame = Vec::new();
    MessageSerializer::encode_message(&mut frame, &message)?;
    let envelope = Envelope::parse(&frame[4..])?;
    prop_assert_eq!(&*envelope.message_type, T::TYPE);
    prop_assert!(
        !envelope
            .payload
            .expect("it was written")
            .get()
            .contains(":null")
    );
    prop_assert_eq!(&envelope.payload::<T>()?, payload);
    prop_assert_eq!(&envelope.to_message().payload::<T>()?, payload);
    Ok(())
}

fn user() -> impl Strategy<Value = UserId> {
    ".{0,30}".prop_map(UserId::from)
}

fn time() -> impl Strategy<Value = Timestamp> {
    any::<i64>().prop_map(Timestamp::from_unix_micros)
}

/// A value of an open enumeration: one that is known, or any text.
fn open<T: Clone + Debug + for<'a> From<&'a str>>(known: &'static [T]) -> impl Strategy<Value = T> {
    prop_oneof![
        proptest::sample::select(known),
        ".{0,10}".prop_map(|text| T::from(text.as_str())),
    ]
}

fn categories() -> impl Strategy<Value = Vec<Category>> {
    vec(open(Category::KNOWN), 0..5)
}

fn members() -> impl Strategy<Value = Map<String, Value>> {
    let value = prop_oneof![
        ".{0,9}".prop_map(Value::from),
        any::<i32>().prop_map(Value::from)
    ];
    btree_map(".{0,9}", value, 0..4).prop_map(Map::from_iter)
}

proptest! {
    #[test]
    fn service_types_round_trip(
        user_id in user(),
        users in vec(user(), 0..4),
        text in ".{0,40}",
        optional in option::of(".{0,40}"),
        priority in open(Priority::KNOWN),
        status in open(OverallStatus::KNOWN),
        reason in open(EscalationReason::KNOWN),
        scope in open(ConfigurationScope::KNOWN),
        deadline in time(),
        categories in categories(),
        value in members(),
        number in any::<u32>(),
    ) {
        round_trip(&BackupRequest::new(user_id, deadline, categories).with_priority(priority))?;
        round_trip(&StatusUpdate::new(status, users.clone(), users, number))?;
        let notice = EscalationNotice::new(reason, &text);
        round_trip(&EscalationNotice { ticket_number: optional, ..notice })?;
        let update = ConfigurationUpdate::new(&text, value.into());
        round_trip(&update.with_scope(scope))?;
        round_trip(&ShutdownRequest::new(&text).with_grace_period(Seconds(number.into())))?;
    }

    #[test]
    fn agent_types_round_trip(
        user_id in user(),
        text in ".{0,40}",
        optional in option::of(".{0,40}"),
        categories in categories(),
        category in open(Category::KNOWN),
        results in btree_map(
            open(Category::KNOWN),
            (any::<bool>(), any::<u64>(), option::of(".{0,20}")),
            0..5,
        ),
        reason in open(DelayReason::KNOWN),
        percent in prop_oneof![0.0..=100.0, (0..=100_u8).prop_map(f64::from)],
        number in any::<u32>(),
        bytes in any::<(u64, u64)>(),
        members in members(),
    ) {
        round_trip(&AgentStarted::new(user_id.clone(), &text, text.as_str()))?;
        round_trip(&BackupStarted::new(user_id.clone(), categories, bytes.0))?;
        let progress = Percent::new(percent);
        let progress = BackupProgress::new(user_id.clone(), category, progress, bytes.0, bytes.1);
        round_trip(&BackupProgress { current_file: optional.clone(), ..progress })?;
        let results = results.into_iter().map(|(name, (success, item_count, error))| {
            (name, CategoryResult { success, item_count, error })
        });
        let completed = BackupCompleted::new(user_id.clone(), false, results);
        round_trip(&BackupCompleted { manifest_path: optional.clone(), ..completed })?;
        round_trip(&DelayRequest::new(user_id.clone(), reason, Seconds(bytes.0), number))?;
        let action = UserAction::new(user_id.clone(), &text);
        round_trip(&UserAction { details: members.clone(), ..action })?;
        let report = ErrorReport::new(user_id, &text, &text);
        round_trip(&ErrorReport { stack_trace: optional, context: members, ..report })?;
    }

    #[test]
    fn types_of_both_sides_round_trip(
        id in ".{0,40}",
        text in ".{0,40}",
        time in time(),
        number in any::<u64>(),
        code in option::of(open(ErrorCode::KNOWN)),
    ) {
        let id = MessageId::new(&id)?;
        round_trip(&Heartbeat::new(&text, time, number))?;
        round_trip(&Acknowledgment::success(id.clone(), time))?;
        round_trip(&Acknowledgment { code, ..Acknowledgment::failure(id, time, text) })?;
    }
}

/// Reads a payload from its JSON.
fn read<T: MessagePayload>(payload: &Value) -> Option<T> {
    let message = IpcMessage {
        id: MessageId::new("m").expect("a short id"),
        message_type: MessageType::of::<T>(),
        timestamp: Timestamp::UNIX_EPOCH,
        payload: Some(serde_json::value::to_raw_value(payload).expect("it is JSON")),
        in_reply_to: None,
    };
    message.payload().ok()
}

#[test]
fn null_counts_as_absent_where_absence_is_fine() {
    let started = |json| read::<AgentStarted>(&json).expect("lenient");
    let nothing = AgentStarted::new("", "", "");
    assert_eq!(started(json!({})), nothing);
    let nulls = json!({"userId": null, "agentVersion": null, "sessionId": null});
    assert_eq!(started(nulls), nothing);

    let nulls = json!({"userId": null, "categories": null, "estimatedSizeMB": null});
    assert_eq!(read(&nulls), Some(BackupStarted::new("", [], 0)));
    let nulls = json!({"overallStatus": "ready", "blockingUsers": null, "totalUsers": null});
    assert_eq!(
        read(&nulls),
        Some(StatusUpdate::new(OverallStatus::Ready, vec![], vec![], 0))
    );
    let nulls = json!({"success": true, "manifestPath": null, "categories": null});
    assert_eq!(read(&nulls), Some(BackupCompleted::new("", true, [])));
    let nulls = json!({"errorCode": "E", "stackTrace": null, "context": null});
    assert_eq!(read(&nulls), Some(ErrorReport::new("", "E", "")));
}

#[test]
fn members_that_a_message_means_nothing_without_are_required() {
    fn required<T: MessagePayload>(whole: &Value, names: &[&str]) {
        assert!(read::<T>(whole).is_some(), "{whole}");
        for name in names {
            let mut without = whole.clone();
            without.as_object_mut().expect("an object").remove(*name);
            assert!(read::<T>(&without).is_none(), "{} without {name}", T::TYPE);
        }
    }

    let time = "2024-06-14T09:30:12Z";
    required::<BackupRequest>(&json!({"deadline": time}), &["deadline"]);
    required::<StatusUpdate>(&json!({"overallStatus": "ready"}), &["overallStatus"]);
    required::<EscalationNotice>(&json!({"reason": "timeout"}), &["reason"]);
    required::<ConfigurationUpdate>(&json!({"key": "k"}), &["key"]);
    required::<BackupProgress>(&json!({"category": "files"}), &["category"]);
    required::<BackupCompleted>(&json!({"success": true}), &["success"]);
    required::<DelayRequest>(&json!({"requestedDelay": 1}), &["requestedDelay"]);
    required::<UserAction>(&json!({"action": "a"}), &["action"]);
    required::<ErrorReport>(&json!({"errorCode": "E"}), &["errorCode"]);
    required::<Heartbeat>(&json!({"timestamp": time}), &["timestamp"]);
    required::<Acknowledgment>(
        &json!({"originalMessageId": "m", "success": true, "timestamp": time}),
        &["originalMessageId", "success", "timestamp"],
    );
    let result = |result: Value| json!({"success": true, "categories": {"files": result}});
    assert!(read::<BackupCompleted>(&result(json!({"success": true}))).is_some());
    assert!(read::<BackupCompleted>(&result(json!({"itemCount": 1}))).is_none());
}

#[test]
fn numbers_are_read_as_peers_write_them() {
    let size = |number| {
        read::<BackupStarted>(&json!({"estimatedSizeMB": number}))
            .map(|started| started.estimated_size_mb)
    };
    assert_eq!(size(json!(12)), Some(12));
    assert_eq!(size(json!(12.0)), Some(12));
    assert_eq!(size(json!(12.000_1)), Some(13));
    assert_eq!(size(json!(1e300)), Some(u64::MAX));
    assert_eq!(size(json!(-0.5)), None);
    assert_eq!(size(json!(-1)), None);
    assert_eq!(size(json!("12")), None);

    let progress = |number| {
        read::<BackupProgress>(&json!({"category": "files", "progress": number}))
            .map(|progress| progress.progress.get())
    };
    assert_eq!(progress(json!(45)), Some(45.0));
    assert_eq!(progress(json!(45.5)), Some(45.5));
    assert_eq!(progress(json!(-3)), Some(0.0));
    assert_eq!(progress(json!(1e9)), Some(100.0));
    assert_eq!(progress(json!("45")), None);

    let delay = |number| {
        read::<DelayRequest>(&json!({"requestedDelay": number})).map(|delay| delay.requested_delay)
    };
    assert_eq!(delay(json!(3600)), Some(Seconds(3600)));
    assert_eq!(delay(json!(0.1)), Some(Seconds(1)));
    assert_eq!(delay(json!(-1)), None);

    let session = |value| {
        read::<AgentStarted>(&json!({"sessionId": value})).map(|started| started.session_id)
    };
    assert_eq!(session(json!("3")), Some(SessionId::from("3")));
    assert_eq!(session(json!(3)), Some(SessionId::from("3")));
    assert_eq!(session(json!(-3)), Some(SessionId::from("-3")));
    assert_eq!(session(json!(3.5)), None);
}

#[test]
fn percents_are_shares_and_integers_where_they_can_be() {
    let text = |percent| serde_json::to_string(&percent).expect("a number");
    assert_eq!(text(Percent::new(45.0)), "45");
    assert_eq!(text(Percent::new(45.5)), "45.5");
    assert_eq!(text(Percent::new(-0.0)), "0");
    assert_eq!(text(Percent::new(f64::NAN)), "0");
    assert_eq!(text(Percent::new(f64::INFINITY)), "100");
    assert_eq!(Percent::of(1, 3).get(), 33.0);
    assert_eq!(Percent::of(2, 3).get(), 66.0);
    assert_eq!(Percent::of(0, 0), Percent::COMPLETE);
    assert_eq!(Percent::of(0, 1), Percent::ZERO);
    assert_eq!(Percent::of(5, 3), Percent::COMPLETE);
    assert_eq!(Percent::of(u64::MAX - 1, u64::MAX).get(), 99.0);
}

#[test]
fn seconds_round_up() {
    assert_eq!(Seconds::from(Duration::from_millis(1500)), Seconds(2));
    assert_eq!(Seconds::from(Duration::from_secs(2)), Seconds(2));
    assert_eq!(Seconds::from(Duration::MAX), Seconds(u64::MAX));
    assert_eq!(Duration::from(Seconds(2)), Duration::from_secs(2));
}

#[test]
fn open_enumerations_keep_what_they_do_not_know() {
    for known in Category::KNOWN {
        assert_eq!(&Category::from(known.as_str()), known);
    }
    let other = Category::from("Files");
    assert_eq!(other, Category::Other("Files".into()), "case matters");
    assert_eq!(other.to_string(), "Files");
    assert_eq!(DelayReason::from("other"), DelayReason::Unspecified);
    let codes = ErrorCode::KNOWN.iter().filter(|code| code.is_retryable());
    assert_eq!(
        codes.collect::<Vec<_>>(),
        [&ErrorCode::Busy, &ErrorCode::Stopping]
    );
    assert!(!ErrorCode::from("new_code").is_retryable());
}

#[test]
fn every_type_says_who_may_send_it_and_whose_it_is() {
    fn facts<T: MessagePayload>(example: &Value) -> (&'static str, Sender, bool) {
        let mut payload = read::<T>(example).expect("a good example");
        let names_user = payload.user_id_mut().is_some();
        assert_eq!(
            payload.announcement().is_some(),
            T::TYPE == message_types::AGENT_STARTED
        );
        // What is known by the name alone is the same.
        assert_eq!(message_types::sender_of(T::TYPE), Some(T::SENDER));
        assert_eq!(message_types::idempotence_of(T::TYPE), T::IDEMPOTENCE);
        (T::TYPE, T::SENDER, names_user)
    }

    let time = "2024-06-14T09:30:12Z";
    let acknowledgment = json!({"originalMessageId": "m", "success": true, "timestamp": time});
    assert_eq!(
        [
            facts::<BackupRequest>(&json!({"deadline": time})),
            facts::<StatusUpdate>(&json!({"overallStatus": "ready"})),
            facts::<EscalationNotice>(&json!({"reason": "timeout"})),
            facts::<ConfigurationUpdate>(&json!({"key": "k"})),
            facts::<ShutdownRequest>(&json!({})),
            facts::<AgentStarted>(&json!({})),
            facts::<BackupStarted>(&json!({})),
            facts::<BackupProgress>(&json!({"category": "files"})),
            facts::<BackupCompleted>(&json!({"success": true})),
            facts::<DelayRequest>(&json!({"requestedDelay": 1})),
            facts::<UserAction>(&json!({"action": "a"})),
            facts::<ErrorReport>(&json!({"errorCode": "E"})),
            facts::<Heartbeat>(&json!({"timestamp": time})),
            facts::<Acknowledgment>(&acknowledgment),
        ],
        [
            ("BACKUP_REQUEST", Sender::Service, true),
            ("STATUS_UPDATE", Sender::Service, false),
            ("ESCALATION_NOTICE", Sender::Service, false),
            ("CONFIGURATION_UPDATE", Sender::Service, false),
            ("SHUTDOWN_REQUEST", Sender::Service, false),
            ("AGENT_STARTED", Sender::Agent, true),
            ("BACKUP_STARTED", Sender::Agent, true),
            ("BACKUP_PROGRESS", Sender::Agent, true),
            ("BACKUP_COMPLETED", Sender::Agent, true),
            ("DELAY_REQUEST", Sender::Agent, true),
            ("USER_ACTION", Sender::Agent, true),
            ("ERROR_REPORT", Sender::Agent, true),
            ("HEARTBEAT", Sender::Any, false),
            ("ACKNOWLEDGMENT", Sender::Any, false),
        ]
    );
}
