//! A model of the Windows pipe file system, and one table that it and the real thing must both
//! follow.
//!
//! What the transport relies on is written down once, as [`TABLE`]: sequences of calls, each with
//! the code that must come back. A [`PipeSystem`] runs it:
//!
//! * [`Model`], on every operating system;
//! * `Real`, on Windows and under Wine, through the transport's thin system layer.
//!
//! So a rule of the transport that was tested on the model was tested on what Windows does, as far
//! as the table was run there. Where Wine is known to do something else the row says so
//! ([`Wine::Differs`]); such a row must really differ there, or the note is out of date.
//!
//! The sources are the Win32 documentation and, for what it leaves open, the pipe file system of
//! ReactOS, which was written to behave as that of Windows.

mod document;
#[cfg(windows)]
mod enforcement;
mod evidence;
mod model;
#[cfg(windows)]
mod real;
mod run;
mod system;
mod table;
pub mod threat;
mod wine;

pub use document::document;
pub use evidence::{Evidence, Finding, Outcome, collect, read_evidence};
pub use model::{Actor, End, Handle, Model};
#[cfg(windows)]
pub use real::Real;
pub use run::{Mismatch, Observed, run};
pub use system::{Chunk, Code, Instance, Kind, Opening, Owner, PipeSystem, Place, Rights, WAITS};
pub use table::{Call, Expect, Row, Step, TABLE, Wine};
pub use wine::{under_wine, wine_version};
