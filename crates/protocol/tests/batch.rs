//! Batches as they are written, and as hostile or careless peers write them.
#![expect(clippy::expect_used, reason = "a test that cannot go on has failed")]

use migration_ipc_protocol::extensions::{
    Batch, BatchError, BatchOutcomes, BatchWriter, MalformedBatch, Outcome,
};
use migration_ipc_protocol::limits::{
    LENGTH_PREFIX, MAX_BATCH, MAX_BODY, MAX_ERROR_TEXT, MAX_JSON_DEPTH, MAX_JSON_VALUES,
    MAX_MESSAGE_ID,
};
use migration_ipc_protocol::messages::ErrorCode;
use migration_ipc_protocol::{
    DeliveryHead, Envelope, EnvelopeHead, JsonLimits, MessageId, MessagePayload, MessageSerializer,
    RawValue, Timestamp,
};

fn id(text: &str) -> MessageId {
    MessageId::new(text).expect("a short id")
}

fn noon() -> Timestamp {
    "2024-01-01T12:00:00Z".parse().expect("a time")
}

fn raw(json: &str) -> Box<RawValue> {
    RawValue::from_string(json.to_owned()).expect("JSON")
}

fn push(batch: &mut BatchWriter, number: usize, payload: &str) -> Result<(), BatchError> {
    let id = id(&format!("m{number}"));
    batch.push(EnvelopeHead::new(&id, "T", noon()), Some(&*raw(payload)))
}

fn frame(batch: &BatchWriter) -> Vec<u8> {
    let mut frame = Vec::new();
    let longest = id("0190163d-8694-739b-aea5-966c26f8ad91");
    batch
        .encode(&mut frame, &longest, noon())
        .expect("what was pushed fits");
    frame
}

/// Reads a batch with these envelopes, and says what came of it.
fn read(messages: &str) -> Result<Vec<String>, MalformedBatch> {
    let body = format!(
        r#"{{"id":"b","type":"BATCH","timestamp":"2024-01-01T12:00:00Z","payload":{{"messages":{messages}}}}}"#
    );
    let envelope = Envelope::parse(body.as_bytes()).expect("an envelope");
    let messages = Batch::read(&envelope, JsonLimits::WIRE)?;
    Ok(messages
        .iter()
        .map(|message| message.envelope.id.to_string())
        .collect())
}

fn envelope_with(id: &str, members: &str) -> String {
    format!(r#"{{"id":"{id}","type":"T","timestamp":"2024-01-01T12:00:00Z"{members}}}"#)
}

#[test]
fn a_batch_is_written_as_its_messages_would_be_alone() {
    let mut batch = BatchWriter::new();
    push(&mut batch, 1, "{\"a\":[1]}").expect("there is room");
    let (second, empty) = (id("m2"), id("m3"));
    let numbered = EnvelopeHead {
        delivery: Some(DeliveryHead {
            seq: 7,
            stream: Some("s"),
        }),
        ..EnvelopeHead::new(&second, "T", noon())
    };
    batch.push(numbered, Some(&*raw("{}"))).expect("the same");
    let nothing = EnvelopeHead::new(&empty, "T", noon());
    batch.push::<RawValue>(nothing, None).expect("the same");
    let mut frame = Vec::new();
    batch.encode(&mut frame, &id("b"), noon()).expect("it fits");
    let time = r#""timestamp":"2024-01-01T12:00:00Z""#;
    let expected = format!(
        r#"{{"id":"b","type":"BATCH",{time},"payload":{{"messages":[{{"id":"m1","type":"T",{time},"payload":{{"a":[1]}}}},{{"id":"m2","type":"T",{time},"seq":7,"stream":"s","payload":{{}}}},{{"id":"m3","type":"T",{time}}}]}}}}"#
    );
    assert_eq!(
        std::str::from_utf8(&frame[LENGTH_PREFIX..]).expect("text"),
        expected
    );
    let envelope = Envelope::parse(&frame[LENGTH_PREFIX..]).expect("an envelope");
    let read = Batch::read(&envelope, JsonLimits::WIRE).expect("a batch");
    let sizes: Vec<_> = read.iter().map(|message| message.bytes).collect();
    let written: Vec<_> = batch.messages().map(str::len).collect();
    assert_eq!(sizes, written);
    assert_eq!(
        read[1]
            .envelope
            .delivery()
            .expect("a number")
            .expect("one")
            .seq,
        7
    );
}

#[test]
fn a_full_batch_refuses_one_more_and_stays_as_it_was() {
    let mut batch = BatchWriter::new();
    for number in 0..MAX_BATCH {
        push(&mut batch, number, "{}").expect("there is room");
    }
    let before = frame(&batch);
    assert!(matches!(
        push(&mut batch, MAX_BATCH, "{}"),
        Err(BatchError::TooMany)
    ));
    assert_eq!(frame(&batch), before);
}

/// Whatever was taken can be sent, to the last byte, bracket and comma.
#[test]
fn what_is_pushed_fits_a_frame() {
    let text = |bytes: usize| format!("{{\"a\":\"{}\"}}", "x".repeat(bytes));
    let mut batch = BatchWriter::new();
    let mut number = 0;
    let mut size = 400_000;
    while size > 0 {
        match push(&mut batch, number, &text(size)) {
            Ok(()) => number += 1,
            Err(BatchError::NoRoom { .. }) => size /= 2,
            Err(error) => panic!("{error}"),
        }
    }
    let full = frame(&batch).len() - LENGTH_PREFIX;
    assert!(full <= MAX_BODY, "{full}");
    assert!(full > MAX_BODY - 512, "{full} leaves nothing unused");

    let list = |values: usize| format!("{{\"a\":[{}0]}}", "0,".repeat(values));
    let mut batch = BatchWriter::new();
    let (mut number, mut values) = (0, 20_000);
    while values > 0 {
        match push(&mut batch, number, &list(values)) {
            Ok(()) => number += 1,
            Err(BatchError::NoRoom { .. }) => values /= 2,
            Err(error) => panic!("{error}"),
        }
    }
    frame(&batch);
    let nested = |levels: usize| {
        format!(
            "{}{}",
            "{\"a\":".repeat(levels),
            "0".to_owned() + &"}".repeat(levels)
        )
    };
    let mut batch = BatchWriter::new();
    // The envelope of the message is a level too.
    push(&mut batch, 0, &nested(MAX_JSON_DEPTH - 4)).expect("as deep as it can be");
    frame(&batch);
    assert!(matches!(
        push(&mut batch, 1, &nested(MAX_JSON_DEPTH - 3)),
        Err(BatchError::Alone)
    ));
    assert!(matches!(
        push(&mut batch, 1, &nested(MAX_JSON_DEPTH)),
        Err(BatchError::Encode(_))
    ));
    assert_eq!(batch.len(), 1);
}

#[test]
fn a_message_that_fits_a_frame_alone_and_no_batch_is_told_so() {
    let mut batch = BatchWriter::new();
    let payload = format!("{{\"a\":\"{}\"}}", "x".repeat(MAX_BODY - 200));
    let alone = id("m1");
    let head = EnvelopeHead::new(&alone, "T", noon());
    MessageSerializer::encode(&mut Vec::new(), head, &*raw(&payload)).expect("it fits alone");
    assert!(matches!(
        push(&mut batch, 1, &payload),
        Err(BatchError::Alone)
    ));
    let values = format!("{{\"a\":[{}0]}}", "0,".repeat(MAX_JSON_VALUES - 10));
    assert!(matches!(
        push(&mut batch, 1, &values),
        Err(BatchError::Alone)
    ));
    assert!(batch.is_empty());
}

#[test]
fn what_must_not_be_in_a_batch_is_not_taken() {
    let (one, other) = (id("m1"), id("m0"));
    let head = EnvelopeHead::new(&one, "T", noon());
    let mut request = head;
    request.request.items = Some(1);
    let heads = [
        EnvelopeHead::new(&one, "HEARTBEAT", noon()),
        EnvelopeHead::new(&one, "BATCH", noon()),
        EnvelopeHead::new(&one, "BATCH_OUTCOMES", noon()),
        EnvelopeHead {
            wants_acknowledgment: false,
            ..head
        },
        EnvelopeHead {
            item: Some(1),
            ..head
        },
        EnvelopeHead {
            in_reply_to: Some(&other),
            ..head
        },
        request,
    ];
    let mut batch = BatchWriter::new();
    for head in heads {
        let pushed = batch.push(head, Some(&*raw("{}")));
        assert!(matches!(pushed, Err(BatchError::Forbidden(_))), "{head:?}");
    }
    assert!(batch.is_empty());
}

#[test]
fn a_batch_is_read_whole_or_not_at_all() {
    let good = envelope_with("m1", ",\"payload\":{}");
    assert_eq!(read(&format!("[{good}]")).expect("a batch"), ["m1"]);
    // Members that nobody knows are ignored, as ever; so is one without a value.
    let lenient = envelope_with("m2", ",\"new\":[1],\"ack\":null,\"seq\":3");
    assert_eq!(
        read(&format!("[{good},{lenient}]")).expect("a batch"),
        ["m1", "m2"]
    );
    let no_messages = [
        "[]".to_owned(),
        "{}".to_owned(),
        "null".to_owned(),
        "\"secret\"".to_owned(),
        format!("[],\"messages\":[{good}]"),
        format!("[{}]", vec![good.as_str(); MAX_BATCH + 1].join(",")),
        format!("[{}0]", "0,".repeat(60_000)),
    ];
    for messages in no_messages {
        let error = read(&messages).expect_err("no batch");
        assert!(matches!(error, MalformedBatch::NoMessages), "{error}");
        assert!(!error.to_string().contains("secret"));
    }
    for bad in [
        "0",
        "null",
        "[]",
        "{}",
        "\"m\"",
        "{\"id\":\"x\",\"type\":\"T\"}",
    ] {
        let error = read(&format!("[{good},{bad}]")).expect_err("no batch");
        assert!(
            matches!(error, MalformedBatch::NotAnEnvelope { place: 2, .. }),
            "{error}"
        );
    }
    let forbidden = [
        envelope_with("m2", ",\"ack\":false"),
        envelope_with("m2", ",\"ack\":true"),
        envelope_with("m2", ",\"items\":1"),
        envelope_with("m2", ",\"item\":\"x\""),
        envelope_with("m2", ",\"inReplyTo\":\"m0\""),
    ];
    let types = [
        "BATCH",
        "HEARTBEAT",
        "CREDIT",
        "HELLO",
        "GOODBYE",
        "BATCH_OUTCOMES",
    ];
    let types = types.map(|name| envelope_with("m2", "").replace("\"T\"", &format!("\"{name}\"")));
    for bad in forbidden.iter().chain(&types) {
        let error = read(&format!("[{good},{bad}]")).expect_err("no batch");
        assert!(
            matches!(error, MalformedBatch::Forbidden { place: 2 }),
            "{bad}: {error}"
        );
    }
    for twin in ["m1", "b"] {
        let twin = envelope_with(twin, "");
        let error = read(&format!("[{good},{twin}]")).expect_err("no batch");
        assert!(matches!(error, MalformedBatch::SameId), "{error}");
    }
}

/// However many fail, with whatever texts.
#[test]
fn the_outcomes_of_any_batch_fit_a_frame() {
    for messages in [1, 2, 40, MAX_BATCH] {
        let worst = "\u{0}".repeat(MAX_ERROR_TEXT);
        let code = ErrorCode::from("\u{1}".repeat(64).as_str());
        let outcome = Outcome::failure(&worst, Some(code), messages);
        let outcomes = BatchOutcomes {
            outcomes: vec![outcome; messages],
        };
        let longest = id(&"\u{2}".repeat(MAX_MESSAGE_ID));
        let head = EnvelopeHead {
            in_reply_to: Some(&longest),
            ..EnvelopeHead::new(&longest, BatchOutcomes::TYPE, noon())
        };
        let mut frame = Vec::new();
        MessageSerializer::encode(&mut frame, head, &outcomes).expect("it fits");
    }
    let whole = Outcome::failure(&"x".repeat(4096), None, 10);
    assert_eq!(
        whole.error.map(|text| text.len()),
        Some(4096),
        "few are not cut"
    );
    let cut = Outcome::failure(&"\u{fc}".repeat(4096), None, MAX_BATCH);
    assert!(
        cut.error
            .is_some_and(|text| text.len() < 600 && text.len() > 400)
    );
    let code = ErrorCode::from("x".repeat(65).as_str());
    assert_eq!(Outcome::failure("x", Some(code), 1).code, None);
}

#[test]
fn what_is_collected_is_not_shown() {
    let mut batch = BatchWriter::new();
    push(&mut batch, 1, "{\"password\":\"open sesame\"}").expect("there is room");
    assert!(!format!("{batch:?}").contains("sesame"));
}
