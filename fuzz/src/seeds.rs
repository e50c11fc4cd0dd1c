//! Where fuzzing begins: what the golden transcripts have, real logs, and plays that go well.

use std::error::Error;
use std::path::Path;

use migration_ipc_protocol::limits::{MAX_JSON_DEPTH, MAX_JSON_VALUES};
use serde_json::Value;

use crate::extensions as layers;
use crate::input::{IS_WIDE, folded};
use crate::payloads::TYPES;
use crate::{outbox, rig};

type Seeds = Vec<Vec<u8>>;

/// The seeds of every target.
///
/// # Errors
/// When the transcripts cannot be read.
pub fn all(golden: &Path) -> Result<[(&'static str, Seeds); 7], Box<dyn Error>> {
    let read = |name: &str| -> Result<Vec<Value>, Box<dyn Error>> {
        Ok(serde_json::from_slice(&std::fs::read(golden.join(name))?)?)
    };
    let (decoded, encoded) = (read("codec/decode.json")?, read("codec/encode.json")?);
    let (refused, frames) = (read("codec/refused.json")?, read("codec/frames.json")?);

    let mut bodies: Seeds = Vec::new();
    let mut payloads = Vec::new();
    let members = read("extensions/members.json")?;
    for case in decoded
        .iter()
        .chain(&encoded)
        .chain(&refused)
        .chain(&members)
    {
        let body = match (case.get("body"), case.get("body_hex")) {
            (Some(Value::String(body)), _) => body.clone().into_bytes(),
            (Some(body), _) => body.to_string().into_bytes(),
            (None, Some(Value::String(hex))) => bytes_of(hex)?,
            (None, _) => continue,
        };
        payloads.extend(payload_of(&body));
        // Longer ones are found again by what is folded below.
        if body.len() <= 2048 {
            bodies.push(body);
        }
    }
    let (controls, pieces) = (
        read("extensions/payloads.json")?,
        read("extensions/chunks.json")?,
    );
    for case in &controls {
        payloads.extend(seed_of(
            &case["type"],
            case["payload"].as_str().unwrap_or_default(),
        ));
    }
    for case in read("extensions/hello.json")? {
        let text = case["payload"].as_str().unwrap_or_default();
        payloads.extend(seed_of(&Value::from("HELLO"), text));
    }
    let (bodies_of_lz4, noise) = (read("extensions/lz4.json")?, read("extensions/noise.json")?);
    Ok([
        ("frame", frame(&frames, &bodies)?),
        ("envelope", envelope(bodies)),
        ("payloads", payloads),
        (
            "extensions",
            [
                extensions(&controls, &pieces)?,
                compressed(&bodies_of_lz4)?,
                encrypted(&noise)?,
                key_files(),
            ]
            .concat(),
        ),
        ("handshake", handshake()),
        ("outbox", outbox::seeds()),
        ("router", router()),
    ])
}

fn bytes_of(hex: &str) -> Result<Vec<u8>, Box<dyn Error>> {
    let digits: Vec<u8> = hex.bytes().filter(|byte| *byte != b' ').collect();
    let pair = |pair: &[u8]| -> Result<u8, Box<dyn Error>> {
        Ok(u8::from_str_radix(std::str::from_utf8(pair)?, 16)?)
    };
    digits.chunks(2).map(pair).collect()
}

fn frame(cases: &[Value], bodies: &[Vec<u8>]) -> Result<Seeds, Box<dyn Error>> {
    let mut seeds = Vec::new();
    for case in cases {
        let stream = bytes_of(case["stream_hex"].as_str().unwrap_or_default())?;
        // Whole, byte by byte, and kept before.
        for pieces in [&[0][..], &[1, 0], &[2, 3, 0x82]] {
            seeds.push([pieces, &stream].concat());
        }
    }
    let several: Vec<u8> = bodies
        .iter()
        .take(4)
        .flat_map(|body| rig::frame(body))
        .collect();
    seeds.push([&[3, 9, 0x90, 60][..], &several].concat());
    Ok(seeds)
}

fn envelope(mut bodies: Seeds) -> Seeds {
    let around = |payload: &[u8]| {
        let mut body =
            br#"{"id":"m","type":"X","timestamp":"2024-06-14T09:30:12Z","payload":"#.to_vec();
        body.extend_from_slice(payload);
        body.push(b'}');
        body
    };
    let number = |number: usize| u16::try_from(number).unwrap_or(u16::MAX);
    for depth in [MAX_JSON_DEPTH - 1, MAX_JSON_DEPTH, 200] {
        let nested = [folded(b"[", number(depth)), folded(b"]", number(depth))].concat();
        bodies.push(around(&nested));
    }
    for values in [MAX_JSON_VALUES - 4, MAX_JSON_VALUES] {
        let wide = [b"[1", &*folded(b",1", number(values)), b",1]"].concat();
        bodies.push([&[IS_WIDE], &*around(&wide)].concat());
    }
    for numbering in [
        r#""seq":7,"stream":"photos","#,
        r#""seq":0,"#,
        r#""seq":1,"stream":"a b","#,
        r#""stream":"a","#,
        r#""seq":18446744073709551615,"#,
        r#""inReplyTo":"m-0","#,
    ] {
        bodies.push(
            format!(
                r#"{{"id":"m","type":"HEARTBEAT","timestamp":"2024-06-14T09:30:12Z",{numbering}"payload":{{"timestamp":"2024-06-14T09:30:12Z"}}}}"#
            )
            .into(),
        );
    }
    bodies
}

/// A body's payload, as a seed for its type.
fn payload_of(body: &[u8]) -> Option<Vec<u8>> {
    let value: Value = serde_json::from_slice(body).ok()?;
    seed_of(value.get("type")?, &value.get("payload")?.to_string())
}

fn seed_of(named: &Value, payload: &str) -> Option<Vec<u8>> {
    let place = TYPES.iter().position(|(name, _)| named == name)?;
    Some([&[u8::try_from(place).ok()?], payload.as_bytes()].concat())
}

/// Which layer, and what it reads.
fn extensions(controls: &[Value], pieces: &[Value]) -> Result<Seeds, Box<dyn Error>> {
    let mut seeds = Vec::new();
    for case in pieces.iter().filter(|case| case.get("zeros").is_none()) {
        let body = bytes_of(case["body_hex"].as_str().unwrap_or_default())?;
        seeds.push([&[layers::PIECE], &*body].concat());
    }
    for case in controls {
        let layer = match case["type"].as_str() {
            Some("ACKNOWLEDGMENTS") => layers::ACKNOWLEDGMENTS,
            Some("BATCH") => layers::BATCH,
            _ => continue,
        };
        let payload = case["payload"].as_str().unwrap_or_default();
        if payload.len() <= 2048 {
            seeds.push([&[layer], payload.as_bytes()].concat());
        }
    }
    Ok(seeds)
}

fn compressed(cases: &[Value]) -> Result<Seeds, Box<dyn Error>> {
    let mut seeds = Vec::new();
    for case in cases {
        let body = bytes_of(case["body_hex"].as_str().unwrap_or_default())?;
        if body.len() <= 2048 {
            seeds.push([&[layers::COMPRESSED], &*body].concat());
        }
        let original = case["original"].as_str().unwrap_or_default().as_bytes();
        let original = match case["times"].as_u64() {
            Some(times) => folded(original, u16::try_from(times).unwrap_or(u16::MAX)),
            None => original.to_vec(),
        };
        if original.len() <= 2048 {
            seeds.push([&[layers::TO_COMPRESS], &*original].concat());
        }
    }
    Ok(seeds)
}

/// Records, handshakes and the texts of them.
fn encrypted(cases: &[Value]) -> Result<Seeds, Box<dyn Error>> {
    let mut seeds: Seeds = Vec::new();
    for case in cases {
        for text in case["messages_hex"].as_array().into_iter().flatten() {
            let text = text.as_str().unwrap_or_default();
            bytes_of(text)?;
            seeds.push([&[layers::HANDSHAKE_TEXTS], text.as_bytes()].concat());
        }
        let protocol = case["protocol"].as_str().unwrap_or_default();
        seeds.push([&[layers::HANDSHAKE_TEXTS], protocol.as_bytes()].concat());
    }
    seeds.push([&[layers::HANDSHAKE_TEXTS], &b"static"[..]].concat());
    for (key, suite) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        // Good ones; then one that is changed, for another key, and for another protocol.
        for handshake in [
            &[0, 0, 0][..],
            &[0, 0, 64, 1],
            &[3, 0, 0],
            &[1, 128, 0],
            &[2, 131, 0],
            &[0, 0, 0, 0, 4],
        ] {
            seeds.push([&[layers::HANDSHAKE, key, suite], handshake].concat());
        }
        // Four records, and what is done to them: nothing, left out, repeated, exchanged, sent back,
        // changed, cut, put between, lengthened.
        let lengths = [3, 10, 0, 100, 1];
        for changes in [
            &[0, 7, 0][..],
            &[1, 0, 1, 1, 0],
            &[1, 1, 1, 0],
            &[1, 2, 1, 5, 200],
            &[1, 3, 1, 0],
            &[1, 4, 0, 9, 0, 3, 0],
            &[1, 5, 2, 1, 0, 0],
            &[1, 6, 1, 5, 16, 0, 1, 2, 3],
            &[1, 7, 0, 255, 255, 0],
        ] {
            seeds.push([&[layers::RECORDS, key, suite], &lengths[..], changes].concat());
        }
        // As long as one can be, and a byte more.
        let long = [1, 255, 0, 255, 1, 0, 0];
        seeds.push([&[layers::RECORDS, key, suite], &long[..]].concat());
    }
    Ok(seeds)
}

fn key_files() -> Seeds {
    let key = "0123456789abcdef".repeat(4);
    [
        format!("migration-ipc-keys 1\na shared {key}\n"),
        format!("\u{feff}# a\r\nmigration-ipc-keys 1\r\n\r\na\tstatic-private {key} # b\r\na static-public {key}\n"),
        format!("migration-ipc-keys 1\na outbox {key}\nb outbox {key}\na outbox {key}"),
        "migration-ipc-keys 1 dpapi\n0001\n02".to_owned(),
        format!("migration-ipc-keys 2\na shared {key}"),
        format!("migration-ipc-keys {key}"),
    ]
    .map(|text| [&[layers::KEY_FILE], text.as_bytes()].concat())
    .into()
}

fn handshake() -> Seeds {
    const SETTLE: u8 = 15;
    let mut seeds = Vec::new();
    for how in [0, 100, 170, 200, 250] {
        // A new agent, a plain one, and one that says everything in pieces.
        let hello = [0, 0, 0, 0x3f, 0, 10, SETTLE];
        // With all extensions but encryption.
        let extended = [0, 0, 0, 0xff, 0x0f, 10, SETTLE];
        let announced = [1, 0, 1, 0, SETTLE];
        let works = [6, 0, 0, 0, 6, 1, 2, 1, SETTLE, 7, 0, 1, 0, 5, 0, 3, SETTLE];
        let ends = [3, 1, 4, 0, SETTLE];
        let first: &[u8] = if how == 170 { &[how, 3] } else { &[how] };
        seeds.push([first, &hello, &announced, &works, &ends].concat());
        seeds.push([first, &announced, &works, &[2, 0, 0, 0, 14]].concat());
        seeds.push([first, &[12, 5], &hello, &announced, &works].concat());
        seeds.push([first, &announced, &[13, 4, SETTLE, 10, 4]].concat());
        // Requests that are cancelled, streamed and late; a batch; a body in pieces.
        let requests = [
            16, 0, 3, 2, 17, 0, 17, 3, 16, 1, 2, 0, SETTLE, 16, 0, 4, 0, SETTLE,
        ];
        let batch = [19, 3, 0, 1, 2, SETTLE, 18, 1, 2, 1, SETTLE];
        let pieces = [
            20, 1, 2, SETTLE, 21, 1, 0, 0, 21, 1, 1, 1, SETTLE, 23, 2, 0, 7, SETTLE,
        ];
        let compressed = [22, 2, 5, 0x20, b'{', b'}', 0, 0, SETTLE];
        seeds.push([first, &extended, &requests, &batch, &pieces, &compressed].concat());
        // Encrypted and compressed, with each key; then with the wrong transcript, and with bytes that
        // are no record.
        for key in [0, 1] {
            let offer = [24, key, key, 0xff, 0x0f, 10, SETTLE];
            let confirmed = [26, 27, 0, SETTLE];
            let talks = [&announced[..], &[29], &requests, &batch, &pieces, &works].concat();
            seeds.push([first, &offer, &confirmed, &talks, &ends].concat());
            seeds.push([first, &offer, &announced, &[26, 27, 1, SETTLE]].concat());
            let forged = [
                28, 20, 18, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16,
            ];
            seeds.push([first, &offer, &confirmed, &forged, &[17, 18, SETTLE]].concat());
        }
        for member in 0..8 {
            seeds.push([first, &[25, member, 0xff, 0x0f, SETTLE], &announced[..]].concat());
        }
        for part in [&requests[..], &batch, &pieces, &compressed] {
            seeds.push([first, &extended, &announced, part, &ends].concat());
        }
    }
    seeds
}

fn router() -> Seeds {
    const SETTLE: [u8; 2] = [16, 0];
    let announce = |who: u8, session: u8| [1, who, session, 1];
    let both = [announce(0, 0), announce(1, 1)].concat();
    let hello = |who: u8| [0, who, 0, 0x1f, 0, 20];
    let extended = |who: u8| [0, who, 0, 0xdf, 0x0f, 200];
    let operator = [0, 2, 1, 0x1f, 0, 9];
    let encrypted = |who: u8, with: u8| [0, who, 0, 0xdf, 0x2f | with << 6, 200];
    let plays: [&[&[u8]]; 9] = [
        // Encrypted, and compressed both ways.
        &[
            &encrypted(0, 0),
            &encrypted(1, 3),
            &SETTLE,
            &both,
            &SETTLE,
            &[20, 0, 3, 0, 1, 3, 1, 0, 4, 0, 6, 0, 6, 1, 8, 0, 0, 10, 0],
            &SETTLE,
            &[11, 0, 11, 1],
            &SETTLE,
            &[12, 1, 0, 1, 18, 0, 0, 2, 0, 1, 2],
            &SETTLE,
        ],
        // Compressed without being encrypted.
        &[
            &extended(0),
            &both,
            &SETTLE,
            &[20, 0, 20, 1, 3, 0, 1, 3, 1, 1, 4, 0, 6, 0, 6, 1, 9, 0],
            &SETTLE,
            &[19, 0, 0, 0, 255, 14, 0, 0],
            &SETTLE,
        ],
        // With all extensions: asked, acknowledged by range, cancelled for somebody else.
        &[
            &extended(0),
            &extended(1),
            &both,
            &SETTLE,
            &[11, 0, 11, 1],
            &SETTLE,
            &[
                17, 0, 0, 4, 2, 17, 1, 0, 1, 0, 18, 0, 0, 2, 0, 1, 2, 18, 1, 0, 0, 1, 1,
            ],
            &SETTLE,
        ],
        // A body in pieces, and the same one begun by somebody else.
        &[
            &extended(0),
            &extended(1),
            &both,
            &SETTLE,
            &[19, 0, 0, 0, 60, 19, 1, 0, 0, 0],
            &SETTLE,
            &[14, 0, 0, 16, 0, 0, 0, 0, 0xdf, 0x0f, 200, 19, 0, 0, 0, 255],
            &SETTLE,
            &[19, 1, 0, 1, 255],
            &SETTLE,
        ],
        // Sent to each, to a session, to all.
        &[&both, &SETTLE, &[6, 0, 6, 1, 8, 0, 0, 10, 0], &SETTLE],
        // Asked, and answered by the wrong one.
        &[
            &hello(0),
            &hello(1),
            &both,
            &SETTLE,
            &[11, 0, 11, 1],
            &SETTLE,
            &[12, 1, 0, 1, 12, 0, 1, 0],
        ],
        // Relayed for the operator, and for somebody who is none.
        &[
            &operator,
            &both,
            &SETTLE,
            &[5, 2, 0, 5, 2, 1, 5, 1, 0],
            &SETTLE,
        ],
        // Errors and replies, and a connection after another.
        &[
            &both,
            &SETTLE,
            &[3, 0, 1, 3, 1, 2, 4, 0, 4, 1],
            &SETTLE,
            &[14, 0, 0, 6, 0],
            &SETTLE,
        ],
        // Mail for one who is there, and for one who comes later.
        &[
            &announce(0, 0),
            &SETTLE,
            &[9, 0, 9, 1],
            &SETTLE,
            &announce(1, 1),
            &SETTLE,
            &SETTLE,
        ],
    ];
    plays.map(|play| play.concat()).into()
}
