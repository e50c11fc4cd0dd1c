//! What the table needs of a system with named pipes.

/// A code of the operating system (`ERROR_*`).
pub type Code = u32;

/// What a call answers that would have to wait (`ERROR_IO_PENDING`). It is withdrawn then, so that
/// nothing is left behind: a table of single steps has nobody who could wait.
pub const WAITS: Code = 997;

/// Which instance of a name is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// With `FILE_FLAG_FIRST_PIPE_INSTANCE`.
    First,
    /// Without.
    Further,
}

/// Whether a pipe keeps the borders between writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `PIPE_TYPE_MESSAGE`; the server reads bytes all the same.
    Message,
    /// `PIPE_TYPE_BYTE`.
    Byte,
}

/// What the security descriptor of a pipe grants to everybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    /// To connect and to create instances.
    All,
    /// To connect only.
    Connect,
    /// Nothing.
    None,
}

/// Whom the security descriptor names as the owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Nobody: the account that creates it.
    Creator,
    /// SYSTEM, which only SYSTEM itself may do.
    System,
}

/// The arguments of `CreateNamedPipeW`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Whether it must be the first one.
    pub place: Place,
    /// The type.
    pub kind: Kind,
    /// The most instances that the name may have, 255 for no limit.
    pub max_instances: u32,
    /// What everybody may do.
    pub rights: Rights,
    /// The owner.
    pub owner: Owner,
}

/// The first instance as the transport creates it, for everybody.
impl Default for Instance {
    fn default() -> Self {
        Self {
            place: Place::First,
            kind: Kind::Message,
            max_instances: 255,
            rights: Rights::All,
            owner: Owner::Creator,
        }
    }
}

/// What a client tells about itself when it opens a pipe (`SECURITY_SQOS_PRESENT`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// Nothing: each write carries who wrote it, and the server may act as that account.
    Unspecified,
    /// The server may know who opened the pipe, but not act as that account
    /// (`SECURITY_IDENTIFICATION`).
    Identification,
    /// The server may know nothing (`SECURITY_ANONYMOUS`).
    Anonymous,
}

/// What one read gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// Whether the message goes on: the read ended with 234 (`ERROR_MORE_DATA`).
    pub goes_on: bool,
}

/// Named pipes, as the operating system's calls show them.
pub trait PipeSystem {
    /// One end of a pipe.
    type Handle;

    /// `CreateNamedPipeW`.
    ///
    /// # Errors
    ///
    /// The code of the call, as for every function of this trait.
    fn create(&mut self, name: &str, instance: Instance) -> Result<Self::Handle, Code>;

    /// `ConnectNamedPipe`.
    ///
    /// # Errors
    ///
    /// [`WAITS`] while there is no client; 535 when one has connected before the call; 232 when it
    /// has gone as well.
    fn listen(&mut self, server: &Self::Handle) -> Result<(), Code>;

    /// `DisconnectNamedPipe`.
    ///
    /// # Errors
    ///
    /// See [`PipeSystem::create`].
    fn disconnect(&mut self, server: &Self::Handle) -> Result<(), Code>;

    /// `ImpersonateNamedPipeClient`, opening the thread's token, and `RevertToSelf`.
    ///
    /// # Errors
    ///
    /// 1368 while nobody is known, 1347 for an anonymous client.
    fn identify(&mut self, server: &Self::Handle) -> Result<(), Code>;

    /// `CreateFileW` for reading and writing.
    ///
    /// # Errors
    ///
    /// See [`PipeSystem::create`].
    fn open(&mut self, name: &str, opening: Opening) -> Result<Self::Handle, Code>;

    /// `WaitNamedPipeW` for a few milliseconds.
    ///
    /// # Errors
    ///
    /// 121 when no instance became free.
    fn wait(&mut self, name: &str) -> Result<(), Code>;

    /// `SetNamedPipeHandleState(PIPE_READMODE_MESSAGE)`.
    ///
    /// # Errors
    ///
    /// 87 for a pipe of byte type.
    fn read_messages(&mut self, handle: &Self::Handle) -> Result<(), Code>;

    /// `ReadFile` of up to `room` bytes.
    ///
    /// # Errors
    ///
    /// [`WAITS`] when there is nothing to read yet.
    fn read(&mut self, handle: &Self::Handle, room: usize) -> Result<Chunk, Code>;

    /// `WriteFile`.
    ///
    /// # Errors
    ///
    /// [`WAITS`] when the peer has to read first; nothing is written then.
    fn write(&mut self, handle: &Self::Handle, bytes: &[u8]) -> Result<(), Code>;

    /// `PeekNamedPipe`: how many bytes wait.
    ///
    /// # Errors
    ///
    /// See [`PipeSystem::create`].
    fn peek(&mut self, handle: &Self::Handle) -> Result<usize, Code>;

    /// `CloseHandle`.
    fn close(&mut self, handle: Self::Handle);
}
