//! The conformance table.

use super::run::Observed;
use super::system::{Code, Instance, Kind, Opening, Owner, Place, Rights, WAITS};
use super::threat::{self, Threat};

/// A sequence of calls and what must come back.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// What it shows, as a name. `docs/windows.md` cites it.
    pub name: &'static str,
    /// Whether Wine does the same.
    pub wine: Wine,
    /// The calls, in order.
    pub steps: &'static [Step],
}

/// The name of the row that holds for everybody but SYSTEM.
pub(super) const ONLY_SYSTEM: &str = "only SYSTEM makes SYSTEM the owner";

/// Whether a row holds under Wine as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wine {
    /// It does.
    Agrees,
    /// It does not, in the way that is said: a green run there would show nothing of the threat.
    Differs(Threat, &'static str),
}

/// One call on the end of a pipe that the row knows under a label.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// The label; for [`Call::Create`] and [`Call::Open`] the one that the new handle gets.
    pub handle: &'static str,
    /// The call.
    pub call: Call,
    /// What must come back.
    pub expect: Expect,
}

/// A call of [`PipeSystem`](super::PipeSystem).
#[derive(Clone, Copy, Debug)]
pub enum Call {
    /// Creates an instance.
    Create(Instance),
    /// Opens the pipe as a client.
    Open(Opening),
    /// Waits for a free instance.
    Wait,
    /// Waits for a client.
    Listen,
    /// Throws the client out.
    Disconnect,
    /// Asks who the client is.
    Identify,
    /// Switches this end to reading messages.
    ReadMessages,
    /// Reads up to this many bytes.
    Read(usize),
    /// Writes this text.
    Write(&'static str),
    /// Writes this many bytes.
    Fill(usize),
    /// Asks how many bytes wait.
    Peek,
    /// Closes this end.
    Close,
}

/// What a call must give.
#[derive(Clone, Copy, Debug)]
pub enum Expect {
    /// Success.
    Done,
    /// Exactly these bytes.
    Bytes(&'static str),
    /// These bytes, and 234 (`ERROR_MORE_DATA`): the message goes on.
    Part(&'static str),
    /// So many bytes wait.
    Available(usize),
    /// This code.
    Code(Code),
}

impl Row {
    /// The codes that it expects, each once, without [`WAITS`](super::WAITS).
    pub fn codes(&self) -> Vec<Code> {
        let mut codes: Vec<Code> = self
            .steps
            .iter()
            .filter_map(|step| match step.expect {
                Expect::Code(code) => Some(code),
                Expect::Part(_) => Some(ERROR_MORE_DATA),
                Expect::Done | Expect::Bytes(_) | Expect::Available(_) => None,
            })
            .filter(|&code| code != WAITS)
            .collect();
        codes.sort_unstable();
        codes.dedup();
        codes
    }
}

/// What [`Expect::Part`] stands for.
const ERROR_MORE_DATA: Code = 234;

impl Expect {
    /// Whether this was observed.
    pub fn is(self, observed: &Observed) -> bool {
        match (self, observed) {
            (Self::Done, Observed::Done) => true,
            (Self::Bytes(text), Observed::Read(chunk)) => {
                !chunk.goes_on && chunk.bytes == text.as_bytes()
            }
            (Self::Part(text), Observed::Read(chunk)) => {
                chunk.goes_on && chunk.bytes == text.as_bytes()
            }
            (Self::Available(expected), Observed::Available(count)) => expected == *count,
            (Self::Code(expected), Observed::Code(code)) => expected == *code,
            (
                Self::Done | Self::Bytes(_) | Self::Part(_) | Self::Available(_) | Self::Code(_),
                _,
            ) => false,
        }
    }
}

/// The instance that the transport creates first.
const FIRST: Instance = Instance {
    place: Place::First,
    kind: Kind::Message,
    max_instances: 255,
    rights: Rights::All,
    owner: Owner::Creator,
};

/// Those that follow.
const FURTHER: Instance = Instance {
    place: Place::Further,
    ..FIRST
};

/// A client that says nothing of itself, as .NET's.
const OPEN: Call = Call::Open(Opening::Unspecified);

const fn step(handle: &'static str, call: Call, expect: Expect) -> Step {
    Step {
        handle,
        call,
        expect,
    }
}

use Call::{
    Close, Create, Disconnect, Fill, Identify, Listen, Open, Peek, Read, ReadMessages, Wait, Write,
};
use Expect::{Available, Bytes, Done, Part};

const fn code(code: Code) -> Expect {
    Expect::Code(code)
}

/// Everything about the pipe file system that the transport relies on.
pub const TABLE: &[Row] = &[
    // --- connecting ------------------------------------------------------------------------------
    Row {
        name: "a name that nobody created is not found",
        wine: Wine::Agrees,
        steps: &[step("client", OPEN, code(2)), step("", Wait, code(2))],
    },
    Row {
        name: "an instance waits for its client",
        wine: Wine::Agrees,
        steps: &[
            step("server", Create(FIRST), Done),
            step("server", Listen, code(WAITS)),
            step("server", Read(9), code(536)),
            step("client", OPEN, Done),
            step("server", Listen, code(535)),
        ],
    },
    Row {
        name: "a client can come before the server looks",
        wine: Wine::Agrees,
        steps: &[
            step("server", Create(FIRST), Done),
            step("client", OPEN, Done),
            step("server", Listen, code(535)),
            step("server", Listen, code(535)),
        ],
    },
    Row {
        name: "a client that has come and gone leaves its bytes",
        wine: Wine::Agrees,
        steps: &[
            step("server", Create(FIRST), Done),
            step("client", OPEN, Done),
            step("client", Write("last words"), Done),
            step("client", Close, Done),
            step("server", Listen, code(232)),
            step("server", Peek, Available(10)),
            step("server", Read(99), Bytes("last words")),
            step("server", Peek, code(109)),
            step("server", Read(99), code(109)),
            step("server", Write("too late"), code(232)),
        ],
    },
    Row {
        name: "without a free instance the pipe is busy",
        wine: Wine::Agrees,
        steps: &[
            step("server", Create(FIRST), Done),
            step("client", OPEN, Done),
            step("second", OPEN, code(231)),
            step("", Wait, code(121)),
            step("further", Create(FURTHER), Done),
            step("", Wait, Done),
            step("second", OPEN, Done),
        ],
    },
    Row {
        name: "the number of instances can be limited",
        wine: Wine::Agrees,
        steps: &[
            step(
                "server",
                Create(Instance {
                    max_instances: 1,
                    ..FIRST
                }),
                Done,
            ),
            step("further", Create(FURTHER), code(231)),
        ],
    },
    // --- the name --------------------------------------------------------------------------------
    Row {
        name: "a first instance does not share a name",
        wine: Wine::Differs(
            threat::SQUATTED,
            "Wine ignores FILE_FLAG_FIRST_PIPE_INSTANCE",
        ),
        steps: &[
            step("server", Create(FIRST), Done),
            step("squatter", Create(FIRST), code(5)),
            step("server", Close, Done),
            step("squatter", Create(FIRST), Done),
        ],
    },
    Row {
        name: "a client keeps the name of a service that ended",
        wine: Wine::Differs(
            threat::SQUATTED,
            "Wine ignores FILE_FLAG_FIRST_PIPE_INSTANCE",
        ),
        steps: &[
            step("server", Create(FIRST), Done),
            step("client", OPEN, Done),
            step("server", Close, Done),
            step("restarted", Create(FIRST), code(5)),
            step("client", Close, Done),
            step("restarted", Create(FIRST), Done),
        ],
    },
    Row {
        name: "nobody can connect to a service that ended",
        wine: Wine::Agrees,
        steps: &[
            step("server", Create(FIRST), Done),
            step("client", OPEN, Done),
            step("server", Close, Done),
            step("second", OPEN, code(2)),
        ],
    },
    // --- bytes and messages ----------------------------------------------------------------------
    Row {
        name: "a server that reads bytes does not see messages",
        wine: Wine::Agrees,
        steps: &[
            step("server", Create(FIRST), Done),
            step("client", OPEN, Done),
            step("server", Read(9), code(WAITS)),
            step("client", Write("abc"), Done),
            step("client", Write("def"), Done),
            step("server", Peek, Available(6)),
            step("server", Read(2), Bytes("ab")),
            step("server", Read(99), Bytes("cdef")),
            step("server", Read(99), code(WAITS)),
        ],
    },
    Row {
        name: "a client can read messages",
        wine: Wine::Agrees,
        steps: &[
            step("server", Create(FIRST), Done),
            step("client", OPEN, Done),
            step("client", ReadMessages, Done),
            step("server", Write("abc"), Done),
            step("server", Write("defgh"), Done),
            step("client", Read(99), Bytes("abc")),
            step("client", Read(2), Part("de")),
            step("client", Read(99), Bytes("fgh")),
        ],
    },
    Row {
        name: "a pipe of byte type has no messages to read",
        wine: Wine::Agrees,
        steps: &[
            step(
                "server",
                Create(Instance {
                    kind: Kind::Byte,
                    ..FIRST
                }),
                Done,
            ),
            step("client", OPEN, Done),
            step("client", ReadMessages, code(87)),
        ],
    },
    Row {
        name: "an empty message reads as zero bytes and is not the end",
        wine: Wine::Agrees,
        steps: &[
            step("server", Create(FIRST), Done),
            step("client", OPEN, Done),
            step("client", Write(""), Done),
            step("server", Peek, Available(0)),
            step("server", Read(9), Bytes("")),
            step("server", Peek, Available(0)),
            step("client", Write("more"), Done),
            step("server", Read(9), Bytes("more")),
        ],
    },
    Row {
        name: "a write waits for room",
        wine: Wine::Agrees,
        steps: &[
            step("server", Create(FIRST), Done),
            step("client", OPEN, Done),
            step("client", Fill(65_536), Done),
            step("client", Write("more"), code(WAITS)),
            step("server", Peek, Available(65_536)),
        ],
    },
    // --- closing ---------------------------------------------------------------------------------
    Row {
        name: "what a server wrote can be read after it closed",
        wine: Wine::Agrees,
        steps: &[
            step("server", Create(FIRST), Done),
            step("client", OPEN, Done),
            step("server", Write("goodbye"), Done),
            step("server", Close, Done),
            step("client", Write("too late"), code(232)),
            step("client", Peek, Available(7)),
            step("client", Read(99), Bytes("goodbye")),
            step("client", Peek, code(109)),
            step("client", Read(99), code(109)),
        ],
    },
    Row {
        name: "disconnecting destroys what was not read",
        wine: Wine::Agrees,
        steps: &[
            step("server", Create(FIRST), Done),
            step("client", OPEN, Done),
            step("server", Write("goodbye"), Done),
            step("server", Disconnect, Done),
            step("client", Read(99), code(233)),
            step("client", Write("x"), code(233)),
            step("client", Peek, code(233)),
        ],
    },
    Row {
        name: "a disconnected instance serves again when it listens",
        wine: Wine::Agrees,
        steps: &[
            step("server", Create(FIRST), Done),
            step("client", OPEN, Done),
            step("server", Disconnect, Done),
            step("server", Read(9), code(233)),
            step("server", Write("x"), code(233)),
            step("second", OPEN, code(231)),
            step("server", Listen, code(WAITS)),
            step("second", OPEN, Done),
            step("second", Write("again"), Done),
            step("server", Read(99), Bytes("again")),
            step("client", Read(9), code(233)),
        ],
    },
    // --- who may ---------------------------------------------------------------------------------
    Row {
        name: "who has no rights cannot connect",
        wine: Wine::Differs(threat::DEFAULT_LIST, "Wine does not check the descriptor"),
        steps: &[
            step(
                "server",
                Create(Instance {
                    rights: Rights::None,
                    ..FIRST
                }),
                Done,
            ),
            step("client", OPEN, code(5)),
        ],
    },
    Row {
        name: "who may connect cannot add an instance",
        wine: Wine::Differs(threat::EXTRA_INSTANCE, "Wine does not check the descriptor"),
        steps: &[
            step(
                "server",
                Create(Instance {
                    rights: Rights::Connect,
                    ..FIRST
                }),
                Done,
            ),
            step("client", OPEN, Done),
            step("squatter", Create(FURTHER), code(5)),
        ],
    },
    Row {
        name: "the first creator decides for all instances",
        wine: Wine::Agrees,
        steps: &[
            step("server", Create(FIRST), Done),
            step(
                "further",
                Create(Instance {
                    rights: Rights::None,
                    ..FURTHER
                }),
                Done,
            ),
            step("client", OPEN, Done),
            step("second", OPEN, Done),
        ],
    },
    Row {
        name: ONLY_SYSTEM,
        wine: Wine::Differs(threat::FAKE_SERVER, "Wine lets everybody name any owner"),
        steps: &[step(
            "server",
            Create(Instance {
                owner: Owner::System,
                ..FIRST
            }),
            code(1307),
        )],
    },
    // --- who it is -------------------------------------------------------------------------------
    Row {
        name: "a client is unknown before its first write was read",
        wine: Wine::Differs(
            threat::HIDDEN_CLIENT,
            "Wine gives the server's own token at any time",
        ),
        steps: &[
            step("server", Create(FIRST), Done),
            step("client", OPEN, Done),
            step("server", Identify, code(1368)),
            step("client", Write("hello"), Done),
            step("server", Identify, code(1368)),
        ],
    },
    Row {
        name: "a client is known after its first write was read",
        wine: Wine::Agrees,
        steps: &[
            step("server", Create(FIRST), Done),
            step("client", OPEN, Done),
            step("client", Write("hello"), Done),
            step("server", Read(1), Bytes("h")),
            step("server", Identify, Done),
        ],
    },
    Row {
        name: "identification is enough to be known",
        wine: Wine::Agrees,
        steps: &[
            step("server", Create(FIRST), Done),
            step("client", Open(Opening::Identification), Done),
            step("client", Write("hello"), Done),
            step("server", Read(9), Bytes("hello")),
            step("server", Identify, Done),
        ],
    },
    Row {
        name: "an anonymous client stays unknown",
        wine: Wine::Differs(
            threat::HIDDEN_CLIENT,
            "Wine gives the server's own token for every level",
        ),
        steps: &[
            step("server", Create(FIRST), Done),
            step("client", Open(Opening::Anonymous), Done),
            step("client", Write("hello"), Done),
            step("server", Read(9), Bytes("hello")),
            step("server", Identify, code(1347)),
        ],
    },
    Row {
        name: "a client that was disconnected is unknown",
        wine: Wine::Differs(
            threat::CHANGED_CLIENT,
            "Wine gives the server's own token at any time",
        ),
        steps: &[
            step("server", Create(FIRST), Done),
            step("client", OPEN, Done),
            step("client", Write("hello"), Done),
            step("server", Read(9), Bytes("hello")),
            step("server", Disconnect, Done),
            step("server", Identify, code(1368)),
        ],
    },
];
