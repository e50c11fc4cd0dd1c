//! Where fuzzing begins: what the golden transcripts have, real logs, and plays that go well.

use std::error::Error;
use std::path::Path;

use migration_ipc_protocol::limits::{MAX_JSON_DEPTH, MAX_JSON_VALUES};
use serde_json::Value;

use crate::input::{IS_WIDE, folded};
use crate::payloads::TYPES;
use crate::{outbox, rig};

type Seeds = Vec<Vec<u8>>;

/// The seeds of every target.
///
/// # Errors
/// When the transcripts cannot be read.
pub fn all(golden: &Path) -> Result<[(&'static str, Seeds); 6], Box<dyn Error>> {
    let read = |name: &str| -> Result<Vec<Value>, Box<dyn Error>> {
        Ok(serde_json::from_slice(&std::fs::read(
            golden.join("codec").join(name),
        )?)?)
    };
    let (decoded, encoded) = (read("decode.json")?, read("encode.json")?);
    let (refused, frames) = (read("refused.json")?, read("frames.json")?);

    let mut bodies: Seeds = Vec::new();
    let mut payloads = Vec::new();
    for case in decoded.iter().chain(&encoded).chain(&refused) {
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
    Ok([
        ("frame", frame(&frames, &bodies)?),
        ("envelope", envelope(bodies)),
        ("payloads", payloads),
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
    let named = value.get("type")?.as_str()?;
    let place = TYPES.iter().position(|(name, _)| *name == named)?;
    let payload = value.get("payload")?.to_string();
    Some([&[u8::try_from(place).ok()?], payload.as_bytes()].concat())
}

fn handshake() -> Seeds {
    const SETTLE: u8 = 15;
    let mut seeds = Vec::new();
    for how in [0, 100, 170, 200, 250] {
        // A new agent, a plain one, and one that says everything in pieces.
        let hello = [0, 0, 0, 0x3f, 10, SETTLE];
        let announced = [1, 0, 1, 0, SETTLE];
        let works = [6, 0, 0, 0, 6, 1, 2, 1, SETTLE, 7, 0, 1, 0, 5, 0, 3, SETTLE];
        let ends = [3, 1, 4, 0, SETTLE];
        let first: &[u8] = if how == 170 { &[how, 3] } else { &[how] };
        seeds.push([first, &hello, &announced, &works, &ends].concat());
        seeds.push([first, &announced, &works, &[2, 0, 0, 0, 14]].concat());
        seeds.push([first, &[12, 5], &hello, &announced, &works].concat());
        seeds.push([first, &announced, &[13, 4, SETTLE, 10, 4]].concat());
    }
    seeds
}

fn router() -> Seeds {
    const SETTLE: [u8; 2] = [16, 0];
    let announce = |who: u8, session: u8| [1, who, session, 1];
    let both = [announce(0, 0), announce(1, 1)].concat();
    let hello = |who: u8| [0, who, 0, 0x1f, 20];
    let operator = [0, 2, 1, 0x1f, 9];
    let plays: [&[&[u8]]; 5] = [
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
