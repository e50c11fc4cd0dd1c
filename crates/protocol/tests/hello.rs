//! What peers that negotiate add to the wire.
#![expect(clippy::expect_used, reason = "a test that cannot go on has failed")]

use migration_ipc_protocol::hello::{
    Capability, CapabilitySet, Credit, Goodbye, GoodbyeReason, Hello, HelloAnswer, ProtocolRange,
    Refusal, RefusalCode, Role, uses_credit,
};
use migration_ipc_protocol::limits::MAX_HELLO_BODY;
use migration_ipc_protocol::{
    IpcMessage, MessageId, MessagePayload, MessageSerializer, OutboxId, Timestamp, message_types,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

fn written(value: &impl Serialize) -> Value {
    serde_json::to_value(value).expect("it is JSON")
}

fn read<T: DeserializeOwned>(value: Value) -> Option<T> {
    serde_json::from_value(value).ok()
}

#[test]
fn a_hello_has_the_documented_form_and_a_small_size() {
    let hello = Hello::new(Role::Agent, 64);
    assert_eq!(
        written(&hello),
        json!({
            "protocol": {"min": 1, "max": 1},
            "role": "agent",
            "capabilities": [
                "inReplyTo", "credit", "errorCodes", "goodbye", "backlog", "requests", "noAck",
                "ackRanges", "batch", "lz4", "chunks",
            ],
            "credit": 64,
        })
    );
    assert_eq!(read(written(&hello)), Some(hello.clone()));

    let id = MessageId::new("0190163d-8694-739b-aea5-966c26f8ad91").expect("a short id");
    let message = IpcMessage::new(id, Timestamp::MAX, &hello).expect("it is JSON");
    let mut frame = Vec::new();
    MessageSerializer::encode_message(&mut frame, &message).expect("it is small");
    assert!(frame.len() < MAX_HELLO_BODY / 4);
}

#[test]
fn a_client_with_an_outbox_names_it() {
    let outbox: OutboxId = "00112233445566778899aabbccddeeff".parse().expect("an id");
    let hello = Hello::new(Role::Agent, 64).with_outbox(outbox);
    let form = written(&hello);
    assert_eq!(form["outbox"], json!("00112233445566778899aabbccddeeff"));
    assert_eq!(form["capabilities"][5], json!("durable"));
    assert_eq!(read(form), Some(hello.clone()));

    let HelloAnswer::Accepted(agreed) = hello.answer(CapabilitySet::all(), 1) else {
        panic!("both speak version 1")
    };
    let answer = HelloAnswer::Accepted(Hello {
        outbox: Some(OutboxId::from_bytes([7; 16])),
        seen: Some(41),
        ..agreed
    });
    assert_eq!(written(&answer)["seen"], json!(41));
    assert_eq!(read(written(&answer)), Some(answer));
}

#[test]
fn the_id_of_an_outbox_has_one_form() {
    for text in [
        "",
        "00112233445566778899AABBCCDDEEFF",
        "00112233445566778899aabbccddeef",
        "00112233445566778899aabbccddeeff0",
        "00112233-4455-6677-8899-aabbccddeeff",
        "{0112233445566778899aabbccddeeff}",
        "g0112233445566778899aabbccddeeff",
    ] {
        assert!(text.parse::<OutboxId>().is_err(), "{text}");
    }
}

#[test]
fn capabilities_of_later_versions_are_ignored() {
    let set: CapabilitySet = read(json!(["zstd", "credit", "goodbye", "credit"])).expect("a list");
    assert_eq!(
        set,
        [Capability::Credit, Capability::Goodbye]
            .into_iter()
            .collect()
    );
    assert_eq!(written(&set), json!(["credit", "goodbye"]));
    assert_eq!(read::<CapabilitySet>(json!("credit")), None);
}

#[test]
fn sets_are_sets() {
    let all = CapabilitySet::all();
    assert_eq!(all.iter().collect::<Vec<_>>(), Capability::ALL);
    for capability in Capability::ALL {
        let without = all.without(capability);
        assert!(!without.contains(capability) && all.contains(capability));
        assert_eq!(without.with(capability), all);
        assert_eq!(without.intersection(all), without);
    }
    assert_eq!(CapabilitySet::EMPTY, CapabilitySet::default());
}

#[test]
fn the_answer_says_what_both_can_do() {
    let mut hello = Hello::new(Role::Operator, 8);
    hello.protocol = ProtocolRange { min: 1, max: 7 };
    hello.capabilities = hello.capabilities.without(Capability::Credit);
    let answer = hello.answer(CapabilitySet::all().without(Capability::Goodbye), 32);
    assert_eq!(
        written(&answer),
        json!({
            "protocol": {"min": 1, "max": 1},
            "role": "operator",
            "capabilities": [
                "inReplyTo", "errorCodes", "backlog", "requests", "noAck", "ackRanges", "batch",
                "lz4", "chunks",
            ],
            "credit": 32,
        })
    );
    assert_eq!(read(written(&answer)), Some(answer));
}

#[test]
fn without_a_common_version_the_answer_is_a_refusal() {
    for protocol in [
        ProtocolRange { min: 2, max: 9 },
        ProtocolRange { min: 0, max: 0 },
        ProtocolRange { min: 2, max: 1 },
    ] {
        let hello = Hello {
            protocol,
            ..Hello::new(Role::Agent, 1)
        };
        let answer = hello.answer(CapabilitySet::all(), 1);
        let HelloAnswer::Refused(refusal) = &answer else {
            panic!("{answer:?}")
        };
        assert_eq!(refusal.code, RefusalCode::Version);
        assert_eq!(
            written(&answer),
            json!({"refused": {"code": "version", "message": refusal.message}})
        );
        assert_eq!(read(written(&answer)), Some(answer));
    }
}

#[test]
fn answers_have_to_be_one_thing_or_the_other() {
    let refused = HelloAnswer::Refused(Refusal::new(RefusalCode::Role, ""));
    assert_eq!(read(json!({"refused": {"code": "role"}})), Some(refused));
    assert_eq!(read::<HelloAnswer>(json!({})), None);
    assert_eq!(read::<HelloAnswer>(json!({"role": "agent"})), None);
    let bare = json!({"protocol": {"min": 1, "max": 1}, "role": "agent"});
    let Some(HelloAnswer::Accepted(hello)) = read(bare) else {
        panic!("it is an answer")
    };
    assert_eq!(
        (hello.capabilities, hello.credit),
        (CapabilitySet::EMPTY, 0)
    );
}

#[test]
fn credit_and_goodbye_have_the_documented_form() {
    assert_eq!(written(&Credit::new(5)), json!({"messages": 5}));
    assert_eq!(
        written(&Goodbye::new(GoodbyeReason::Stopping)),
        json!({"reason": "stopping"})
    );
    assert_eq!(read::<Credit>(json!({"messages": -1})), None);
    let types = [Hello::TYPE, Credit::TYPE, Goodbye::TYPE];
    assert_eq!(types, message_types::NEGOTIATED[..3]);
    assert_eq!(HelloAnswer::TYPE, Hello::TYPE);
}

#[test]
fn control_messages_and_replies_use_no_credit() {
    let free: Vec<_> = message_types::PLAIN
        .into_iter()
        .chain(message_types::NEGOTIATED)
        .filter(|name| !uses_credit(name, false))
        .collect();
    let mut control: Vec<_> = message_types::NEGOTIATED.into();
    control.retain(|name| *name != "BATCH");
    assert_eq!(free[..2], ["HEARTBEAT", "ACKNOWLEDGMENT"]);
    assert_eq!(free[2..], control);
    assert!(uses_credit("MADE_UP", false));
    assert!(!uses_credit("MADE_UP", true));
}

#[test]
fn a_capability_without_what_it_needs_is_not_agreed_on() {
    for capability in Capability::ALL {
        for needed in capability.needs() {
            let mut hello = Hello::new(Role::Agent, 1);
            hello.capabilities = CapabilitySet::all().without(*needed);
            let HelloAnswer::Accepted(agreed) = hello.answer(CapabilitySet::all(), 1) else {
                panic!("both speak version 1")
            };
            assert!(!agreed.capabilities.contains(capability), "{capability:?}");
        }
    }
    assert_eq!(CapabilitySet::all().complete(), CapabilitySet::all());
}
