//! Exit codes, and failures that carry one.

use std::fmt;
use std::process::ExitCode;

/// How a command ended, for scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// It failed.
    Failed,
    /// A flag, a configuration value, an endpoint or a path is wrong.
    Usage,
    /// No service could be reached.
    CannotConnect,
    /// The service, or the operating system, does not let this account do it.
    Refused,
    /// A message was for nobody who is there, and is not kept.
    NoRecipient,
    /// The connection to the service ended.
    Disconnected,
    /// It was asked to end before its work was done.
    Interrupted,
}

/// What `--help` says about exit codes.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    failed
  2    a flag, a configuration value, an endpoint or a path is wrong
  3    no service could be reached
  4    the service does not let this account do that
  5    nobody is there to receive the message, and it is not kept
  6    the connection to the service ended
  130  asked to end before the work was done";

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::CannotConnect => 3,
            Exit::Refused => 4,
            Exit::NoRecipient => 5,
            Exit::Disconnected => 6,
            Exit::Interrupted => 130,
        })
    }
}

/// Why a command did not do what it was asked to.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    pub(crate) error: anyhow::Error,
}

impl Failure {
    pub(crate) fn new(exit: Exit, text: impl fmt::Display) -> Self {
        Self {
            exit,
            error: anyhow::anyhow!("{text}"),
        }
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self {
            exit: Exit::Failed,
            error: error.into(),
        }
    }
}

/// Chooses the exit code of an error.
pub(crate) trait OrExit<T> {
    fn or_exit(self, exit: Exit) -> Result<T, Failure>;
}

impl<T, E: Into<anyhow::Error>> OrExit<T> for Result<T, E> {
    fn or_exit(self, exit: Exit) -> Result<T, Failure> {
        self.map_err(|error| Failure {
            exit,
            error: error.into(),
        })
    }
}
