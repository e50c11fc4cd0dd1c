//! The command line: what can be said, and how a command ends.

mod arguments;
mod exit;
mod output;

pub(crate) use arguments::Cli;
pub(crate) use exit::{Exit, Failure, OrExit};
pub(crate) use output::{complain, print, visible};
