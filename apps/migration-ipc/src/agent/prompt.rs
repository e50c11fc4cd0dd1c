//! The user's terminal.

use std::io::{self, BufRead as _, IsTerminal as _};

use tokio::sync::mpsc;

/// How many lines may be typed ahead.
const TYPED_AHEAD: usize = 16;

/// Lines that the user types, read on a thread of its own that ends with the process.
#[derive(Debug)]
pub(crate) struct Prompt {
    lines: mpsc::Receiver<String>,
}

impl Prompt {
    /// Whether there is a terminal to ask in.
    pub(crate) fn is_possible() -> bool {
        io::stdin().is_terminal() && io::stdout().is_terminal()
    }

    pub(crate) fn open() -> io::Result<Self> {
        let (typed, lines) = mpsc::channel(TYPED_AHEAD);
        std::thread::Builder::new()
            .name("terminal".to_owned())
            .spawn(move || {
                for line in io::stdin().lock().lines() {
                    if line.is_ok_and(|line| typed.blocking_send(line).is_ok()) {
                        continue;
                    }
                    return;
                }
            })?;
        Ok(Self { lines })
    }

    /// The next line; `None` once the terminal is closed. Cancel safe.
    pub(crate) async fn line(&mut self) -> Option<String> {
        self.lines.recv().await
    }
}
