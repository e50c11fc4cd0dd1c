//! The command line: what can be said, and how a command ends.

mod arguments;
mod exit;
mod output;

pub(crate) use arguments::{Cli, Command};
pub(crate) use exit::{EXIT_CODES, Exit, Failure, OrExit};
pub(crate) use output::print;
