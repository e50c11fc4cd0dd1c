//! The payloads on standard input.

use std::io::{self, BufRead, BufReader, Read};

use migration_ipc::{RawValue, limits};
use tokio::sync::mpsc;

/// How much is read at a time. What it holds of whole lines is sent together.
const BUFFER: usize = 256 * 1024;

/// How many lines are sent together at most.
const CHUNK_LINES: usize = 1024;

/// How many chunks are read ahead.
const READ_AHEAD: usize = 2;

/// One line of the input, counted from 1.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) number: u64,
    pub(crate) payload: Result<Box<RawValue>, LineError>,
}

/// Why a line is not a payload.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LineError {
    #[error(
        "it is longer than a message may be, which is {} bytes",
        limits::MAX_BODY
    )]
    TooLong,
    #[error("it is no JSON object")]
    NotAnObject,
    #[error("it is no JSON: {0}")]
    NotJson(serde_json::Error),
    #[error("it is no UTF-8")]
    NotText,
}

/// What is read together: lines that were there at one time.
pub(crate) type Chunk = io::Result<Vec<Line>>;

/// Reads standard input on a thread of its own, which ends with the process.
pub(crate) fn read_stdin() -> io::Result<mpsc::Receiver<Chunk>> {
    let (sender, chunks) = mpsc::channel(READ_AHEAD);
    std::thread::Builder::new()
        .name("stdin".to_owned())
        .spawn(move || {
            let mut lines = Lines::new(io::stdin().lock());
            while let Some(chunk) = lines.next_chunk().transpose() {
                let failed = chunk.is_err();
                if sender.blocking_send(chunk).is_err() || failed {
                    return;
                }
            }
        })?;
    Ok(chunks)
}

/// Splits input into lines.
struct Lines<R> {
    input: BufReader<R>,
    number: u64,
}

impl<R: Read> Lines<R> {
    fn new(input: R) -> Self {
        Self {
            input: BufReader::with_capacity(BUFFER, input),
            number: 0,
        }
    }

    /// Waits for a line, and returns it with those that are there too; `None` at the end.
    fn next_chunk(&mut self) -> io::Result<Option<Vec<Line>>> {
        let mut chunk = Vec::new();
        while let Some(line) = self.next_line()? {
            chunk.push(line);
            if chunk.len() == CHUNK_LINES || !self.input.buffer().contains(&b'\n') {
                break;
            }
        }
        Ok((!chunk.is_empty()).then_some(chunk))
    }

    fn next_line(&mut self) -> io::Result<Option<Line>> {
        let mut text = Vec::new();
        let limit = limits::MAX_BODY as u64 + 1;
        let read = (&mut self.input).take(limit).read_until(b'\n', &mut text)?;
        if read == 0 {
            return Ok(None);
        }
        self.number += 1;
        let payload = if text.ends_with(b"\n") || read <= limits::MAX_BODY {
            parse(&text)
        } else {
            self.input.skip_until(b'\n')?;
            Err(LineError::TooLong)
        };
        Ok(Some(Line {
            number: self.number,
            payload,
        }))
    }
}

fn parse(line: &[u8]) -> Result<Box<RawValue>, LineError> {
    let text = std::str::from_utf8(line).map_err(|_| LineError::NotText)?;
    let text = text.trim();
    let value = RawValue::from_string(text.to_owned()).map_err(LineError::NotJson)?;
    if text.starts_with('{') {
        Ok(value)
    } else {
        Err(LineError::NotAnObject)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(input: &[u8]) -> Vec<(u64, Result<String, String>)> {
        let mut lines = Lines::new(input);
        let mut all = Vec::new();
        while let Some(chunk) = lines.next_chunk().unwrap() {
            all.extend(chunk.into_iter().map(|line| {
                let payload = line.payload.map(|payload| payload.get().to_owned());
                (line.number, payload.map_err(|error| error.to_string()))
            }));
        }
        all
    }

    #[test]
    fn every_line_is_a_payload_or_says_why_not() {
        let all = all(b"{\"a\": 1}\r\n[]\n\n{\n\"\xff\"\n 7 \n{}");
        let (numbers, payloads): (Vec<u64>, Vec<_>) = all.into_iter().unzip();
        assert_eq!(numbers, [1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(payloads[0].as_deref(), Ok("{\"a\": 1}"));
        let problems = [
            "no JSON object",
            "no JSON:",
            "no JSON:",
            "no UTF-8",
            "no JSON object",
        ];
        for (payload, problem) in payloads[1..6].iter().zip(problems) {
            let error = payload.as_ref().unwrap_err();
            assert!(error.contains(problem), "{error}");
        }
        assert_eq!(payloads[6].as_deref(), Ok("{}"), "without an end of line");
    }

    #[test]
    fn a_line_that_is_too_long_is_skipped_and_the_next_is_read() {
        let mut input = vec![b'x'; 3 * limits::MAX_BODY];
        input.extend(b"\n{}\n");
        let all = all(&input);
        assert!(all[0].1.as_ref().unwrap_err().contains("longer"));
        assert_eq!(all[1], (2, Ok("{}".to_owned())));
    }

    #[test]
    fn lines_that_are_there_come_together() {
        let mut lines = Lines::new(&b"{}\n{}\n{}\n{"[..]);
        assert_eq!(lines.next_chunk().unwrap().unwrap().len(), 3);
        assert_eq!(lines.next_chunk().unwrap().unwrap().len(), 1);
        assert!(lines.next_chunk().unwrap().is_none());
    }
}
