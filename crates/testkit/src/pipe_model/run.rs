//! Runs a row of the table on a system.

use std::collections::HashMap;
use std::fmt;

use super::system::{Chunk, Code, PipeSystem};
use super::table::{Call, Expect, Row};

/// A step that came out otherwise than the table says.
#[derive(Debug)]
pub struct Mismatch {
    /// The row's name.
    pub row: &'static str,
    /// Which step, from 1.
    pub step: usize,
    /// What was called.
    pub call: Call,
    /// What the table says.
    pub expected: Expect,
    /// What came back.
    pub observed: Observed,
}

/// What a call gave.
#[derive(Debug, PartialEq, Eq)]
pub enum Observed {
    /// Success.
    Done,
    /// What was read.
    Read(Chunk),
    /// How many bytes wait.
    Available(usize),
    /// A failure.
    Code(Code),
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            row,
            step,
            call,
            expected,
            observed,
        } = self;
        write!(
            f,
            "{row}, step {step}: {call:?} gave {observed:?} and not {expected:?}"
        )
    }
}

/// Runs one row under a pipe name that nobody else uses, up to the first step that comes out
/// otherwise. All handles are closed again.
///
/// # Errors
///
/// That step.
///
/// # Panics
///
/// When the row uses a handle that it does not have.
pub fn run<S: PipeSystem>(system: &mut S, row: &Row, name: &str) -> Result<(), Mismatch> {
    let mut handles = HashMap::new();
    let mut outcome = Ok(());
    for (index, step) in row.steps.iter().enumerate() {
        let observed = perform(system, &mut handles, name, step.handle, step.call);
        if !step.expect.is(&observed) {
            let (row, call, expected) = (row.name, step.call, step.expect);
            outcome = Err(Mismatch {
                row,
                step: index + 1,
                call,
                expected,
                observed,
            });
            break;
        }
    }
    for (_, handle) in handles {
        system.close(handle);
    }
    outcome
}

fn perform<S: PipeSystem>(
    system: &mut S,
    handles: &mut HashMap<&'static str, S::Handle>,
    name: &str,
    label: &'static str,
    call: Call,
) -> Observed {
    let result = match call {
        Call::Create(instance) => keep(handles, label, system.create(name, instance)),
        Call::Open(opening) => keep(handles, label, system.open(name, opening)),
        Call::Wait => done(system.wait(name)),
        Call::Listen => done(system.listen(of(handles, label))),
        Call::Disconnect => done(system.disconnect(of(handles, label))),
        Call::Identify => done(system.identify(of(handles, label))),
        Call::ReadMessages => done(system.read_messages(of(handles, label))),
        Call::Read(room) => system.read(of(handles, label), room).map(Observed::Read),
        Call::Write(text) => done(system.write(of(handles, label), text.as_bytes())),
        Call::Fill(count) => done(system.write(of(handles, label), &vec![0; count])),
        Call::Peek => system.peek(of(handles, label)).map(Observed::Available),
        Call::Close => match handles.remove(label) {
            Some(handle) => {
                system.close(handle);
                Ok(Observed::Done)
            }
            None => panic!("the row has no handle {label}"),
        },
    };
    result.unwrap_or_else(Observed::Code)
}

fn of<'a, H>(handles: &'a HashMap<&'static str, H>, label: &str) -> &'a H {
    handles
        .get(label)
        .unwrap_or_else(|| panic!("the row has no handle {label}"))
}

fn done(result: Result<(), Code>) -> Result<Observed, Code> {
    result.map(|()| Observed::Done)
}

fn keep<H>(
    handles: &mut HashMap<&'static str, H>,
    label: &'static str,
    made: Result<H, Code>,
) -> Result<Observed, Code> {
    let replaced = handles.insert(label, made?);
    assert!(replaced.is_none(), "the row has a handle {label} already");
    Ok(Observed::Done)
}
