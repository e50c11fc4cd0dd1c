//! The form of the transcripts, and how one is replayed; `golden/README.md` describes both.

use std::time::Duration;

use migration_ipc::Timestamp;
use migration_ipc::transport::Stream;
use migration_ipc_protocol::FrameDecoder;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc;

use crate::common::frame;

/// How long a step may take.
const STEP: Duration = Duration::from_secs(10);

#[derive(Deserialize)]
pub(crate) struct Case<'a> {
    pub(crate) name: String,
    #[serde(borrow)]
    steps: Vec<Step<'a>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Step<'a> {
    #[serde(borrow)]
    send_json: Option<&'a RawValue>,
    send_text: Option<String>,
    send_hex: Option<String>,
    #[serde(borrow)]
    expect_json: Option<&'a RawValue>,
    expect_close: Option<bool>,
    #[serde(default = "once")]
    repeat: usize,
    #[serde(default)]
    write: Write,
}

fn once() -> usize {
    1
}

#[derive(Default, Deserialize)]
struct Write {
    mode: Mode,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Mode {
    #[default]
    Whole,
    Bytes,
    PrefixThenBody,
    OneWrite,
}

pub(crate) struct Replay {
    user: String,
    /// What is to be written, each in one write.
    writes: mpsc::UnboundedSender<Vec<u8>>,
    reader: ReadHalf<Box<dyn Stream>>,
    decoder: FrameDecoder,
    received: std::collections::VecDeque<String>,
}

impl Replay {
    /// `user` is what `$user` stands for.
    pub(crate) fn new(stream: Box<dyn Stream>, user: &str) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        let (writes, queued) = mpsc::unbounded_channel();
        tokio::spawn(write_all(writer, queued));
        let quoted = serde_json::to_string(user).unwrap();
        Self {
            user: quoted[1..quoted.len() - 1].to_owned(),
            writes,
            reader,
            decoder: FrameDecoder::new(),
            received: Default::default(),
        }
    }

    /// An error says what was not as the transcript says.
    pub(crate) async fn run(mut self, case: &Case<'_>) -> Result<(), String> {
        for (number, step) in case.steps.iter().enumerate() {
            self.play(step)
                .await
                .map_err(|difference| format!("step {}: {difference}", number + 1))?;
        }
        Ok(())
    }

    async fn play(&mut self, step: &Step<'_>) -> Result<(), String> {
        let mut sent = Vec::new();
        for n in 0..step.repeat {
            match step {
                Step {
                    send_json: Some(json),
                    ..
                } => {
                    sent.push(frame(&self.fill_in(&compact(json.get()), n)));
                }
                Step {
                    send_text: Some(text),
                    ..
                } => sent.push(frame(&self.fill_in(text, n))),
                Step {
                    send_hex: Some(hex),
                    ..
                } => sent.push(from_hex(hex)),
                Step {
                    expect_json: Some(json),
                    ..
                } => {
                    let expected = self.fill_in(&compact(json.get()), n);
                    let received = self.receive_for(&expected).await?.ok_or("the end")?;
                    if !matches(&expected, &received) {
                        return Err(format!("expected {expected}, received {received}"));
                    }
                }
                Step {
                    expect_close: Some(true),
                    ..
                } => {
                    if let Some(received) = self.receive_for("").await? {
                        return Err(format!("expected the end, received {received}"));
                    }
                }
                _ => return Err("a step that is not described".to_owned()),
            }
        }
        for bytes in group(sent, step.write.mode) {
            self.writes
                .send(bytes)
                .map_err(|_| "nothing more can be written")?;
        }
        Ok(())
    }

    fn fill_in(&self, text: &str, n: usize) -> String {
        let text = text
            .replace("$user", &self.user)
            .replace("$n", &n.to_string());
        let Some((before, padded)) = text.split_once("$pad:") else {
            return text;
        };
        let digits = padded
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(padded.len());
        let (length, after) = padded.split_at(digits);
        let padding = length.parse::<usize>().unwrap() - before.len() - after.len();
        [before, &"x".repeat(padding), after].concat()
    }

    /// The next message. Skips heartbeats, unless one is expected.
    async fn receive_for(&mut self, expected: &str) -> Result<Option<String>, String> {
        const HEARTBEAT: &str = r#""type":"HEARTBEAT""#;
        loop {
            let received = tokio::time::timeout(STEP, self.receive())
                .await
                .map_err(|_| "nothing was received")?;
            match received {
                Some(text) if text.contains(HEARTBEAT) && !expected.contains(HEARTBEAT) => {}
                other => return Ok(other),
            }
        }
    }

    async fn receive(&mut self) -> Option<String> {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            if let Some(text) = self.received.pop_front() {
                return Some(text);
            }
            // Some systems tell the end of a connection as an error.
            let count = self.reader.read(&mut buffer).await.unwrap_or(0);
            if count == 0 {
                return None;
            }
            let mut input = &buffer[..count];
            while let Some(body) = self.decoder.decode(&mut input).expect("frames") {
                self.received
                    .push_back(String::from_utf8(body.to_vec()).expect("UTF-8"));
            }
        }
    }
}

async fn write_all(
    mut writer: WriteHalf<Box<dyn Stream>>,
    mut queued: mpsc::UnboundedReceiver<Vec<u8>>,
) {
    while let Some(bytes) = queued.recv().await {
        // A service that has closed is what some transcripts expect.
        if writer.write_all(&bytes).await.is_err() || writer.flush().await.is_err() {
            return;
        }
    }
}

fn group(frames: Vec<Vec<u8>>, mode: Mode) -> Vec<Vec<u8>> {
    match mode {
        Mode::Whole => frames,
        Mode::Bytes => frames.concat().into_iter().map(|byte| vec![byte]).collect(),
        Mode::PrefixThenBody => frames
            .into_iter()
            .flat_map(|mut frame| {
                let body = frame.split_off(4);
                [frame, body]
            })
            .collect(),
        Mode::OneWrite => vec![frames.concat()],
    }
}

/// The text without white space outside of strings.
fn compact(json: &str) -> String {
    let (mut in_string, mut escaped) = (false, false);
    json.chars()
        .filter(|&c| {
            let keep = in_string || !c.is_whitespace();
            if c == '"' && !escaped {
                in_string = !in_string;
            }
            escaped = c == '\\' && !escaped;
            keep
        })
        .collect()
}

/// What it is called, and what it stands for.
type Placeholder = (&'static str, fn(&str) -> bool);

/// A placeholder reaches to the end of its string.
fn matches(expected: &str, received: &str) -> bool {
    const PLACEHOLDERS: [Placeholder; 3] =
        [("$id", is_id), ("$time", is_time), ("$text", |_| true)];
    let first = PLACEHOLDERS
        .into_iter()
        .filter_map(|(name, accepts)| Some((expected.find(name)?, name, accepts)))
        .min_by_key(|(at, ..)| *at);
    let Some((at, name, accepts)) = first else {
        return expected == received;
    };
    let (literal, expected) = (&expected[..at], &expected[at + name.len()..]);
    let Some(received) = received.strip_prefix(literal) else {
        return false;
    };
    let end = end_of_string(received);
    accepts(&received[..end]) && matches(expected, &received[end..])
}

fn end_of_string(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        if c == '"' && !escaped {
            return at;
        }
        escaped = c == '\\' && !escaped;
    }
    text.len()
}

fn is_id(text: &str) -> bool {
    text.len() == 36
        && text.char_indices().all(|(at, c)| match at {
            8 | 13 | 18 | 23 => c == '-',
            _ => c.is_ascii_digit() || ('a'..='f').contains(&c),
        })
}

fn is_time(text: &str) -> bool {
    let (seconds, fraction) = text.split_at_checked(19).unwrap_or((text, ""));
    let fraction = match fraction.strip_suffix('Z') {
        Some("") => Some(""),
        Some(fraction) => fraction
            .strip_prefix('.')
            .filter(|digits| (1..=7).contains(&digits.len())),
        None => None,
    };
    seconds.as_bytes().get(10) == Some(&b'T')
        && fraction.is_some_and(|digits| digits.bytes().all(|digit| digit.is_ascii_digit()))
        && text.parse::<Timestamp>().is_ok()
}

fn from_hex(text: &str) -> Vec<u8> {
    let digit = |c: u8| u8::try_from(char::from(c).to_digit(16).expect("hex")).unwrap();
    text.as_bytes()
        .chunks(2)
        .map(|pair| digit(pair[0]) * 16 + digit(pair[1]))
        .collect()
}

#[test]
fn differences_are_seen() {
    let expected = r#"{"id":"$id","at":"$time","error":"no: $text","n":1}"#;
    let id = "0190b0f2-7f00-7000-8000-0123456789ab";
    let received = |id: &str, at: &str, error: &str, n: u8| {
        format!(r#"{{"id":"{id}","at":"{at}","error":"{error}","n":{n}}}"#)
    };
    assert!(matches(
        expected,
        &received(id, "2024-01-01T00:00:00.1234567Z", r#"no: \"x\""#, 1)
    ));
    assert!(matches(
        expected,
        &received(id, "2024-01-01T00:00:00Z", "no: ", 1)
    ));
    for (id, at, error, n) in [
        (
            "0190B0F2-7F00-7000-8000-0123456789AB",
            "2024-01-01T00:00:00Z",
            "no: x",
            1,
        ),
        (id, "2024-01-01T00:00:00+00:00", "no: x", 1),
        (id, "2024-01-01T00:00:00.12345678Z", "no: x", 1),
        (id, "2024-01-01T00:00:00Z", "yes: x", 1),
        (id, "2024-01-01T00:00:00Z", "no: x", 2),
    ] {
        assert!(
            !matches(expected, &received(id, at, error, n)),
            "{id} {at} {error} {n}"
        );
    }
}
