//! What is known of every message, one JSON object per line.

use std::io::{self, Write};

use migration_ipc::{Fate, MessageId};
use serde::Serialize;

/// A line of the report.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Line<'a> {
    Accepted {
        accepted: &'a MessageId,
    },
    Outcome {
        id: &'a MessageId,
        outcome: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    },
}

/// Writes lines in the order in which things happen.
#[derive(Debug)]
pub(crate) struct Report<W> {
    output: W,
    lines: Vec<u8>,
}

impl<W: Write> Report<W> {
    pub(crate) fn new(output: W) -> Self {
        Self {
            output,
            lines: Vec::new(),
        }
    }

    pub(crate) fn accepted(&mut self, id: &MessageId) -> io::Result<()> {
        self.line(&Line::Accepted { accepted: id })
    }

    pub(crate) fn outcome(&mut self, id: &MessageId, fate: &Fate) -> io::Result<()> {
        self.line(&Line::Outcome {
            id,
            outcome: fate.label(),
            error: error_of(fate),
        })
    }

    /// Shows what was written since the last call.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        let written = self.output.write_all(&self.lines);
        self.lines.clear();
        written.and_then(|()| self.output.flush()).map_err(|error| {
            let text = format!("cannot write to standard output: {error}");
            io::Error::new(error.kind(), text)
        })
    }

    fn line(&mut self, line: &Line<'_>) -> io::Result<()> {
        serde_json::to_writer(&mut self.lines, line)?;
        self.lines.push(b'\n');
        Ok(())
    }
}

fn error_of(fate: &Fate) -> Option<String> {
    match fate {
        Fate::Rejected(rejection) => Some(rejection.error.clone()),
        Fate::NotSent(error) | Fate::Unknown(error) => Some(error.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use migration_ipc::SendError;

    use super::*;

    #[test]
    fn every_line_is_an_object_with_its_id() {
        let mut report = Report::new(Vec::new());
        let id = MessageId::new("m\n1").unwrap();
        report.accepted(&id).unwrap();
        report.outcome(&id, &Fate::Handled).unwrap();
        let unknown = Fate::Unknown(SendError::Unanswered);
        report.outcome(&id, &unknown).unwrap();
        report.flush().unwrap();
        let text = String::from_utf8(report.output).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], r#"{"accepted":"m\n1"}"#);
        assert_eq!(lines[1], r#"{"id":"m\n1","outcome":"handled"}"#);
        assert!(lines[2].starts_with(r#"{"id":"m\n1","outcome":"unknown","error":"no answer"#));
        assert_eq!(lines.len(), 3);
    }
}
