//! The pipe file system, as small as the transport needs it.

use std::collections::{HashMap, VecDeque};

use migration_ipc_transport::security::{IntegrityLevel, PipeAction, PipeSecurity, Sid, Token};

use super::system::{
    Chunk, Code, Instance, Kind, Opening, Owner, PipeSystem, Place, Rights, WAITS,
};

const ERROR_FILE_NOT_FOUND: Code = 2;
const ERROR_ACCESS_DENIED: Code = 5;
const ERROR_INVALID_PARAMETER: Code = 87;
const ERROR_BROKEN_PIPE: Code = 109;
const ERROR_SEM_TIMEOUT: Code = 121;
const ERROR_BAD_PIPE: Code = 230;
const ERROR_PIPE_BUSY: Code = 231;
const ERROR_NO_DATA: Code = 232;
const ERROR_PIPE_NOT_CONNECTED: Code = 233;
const ERROR_PIPE_CONNECTED: Code = 535;
const ERROR_PIPE_LISTENING: Code = 536;
const ERROR_INVALID_OWNER: Code = 1307;
const ERROR_CANT_OPEN_ANONYMOUS: Code = 1347;
const ERROR_CANNOT_IMPERSONATE: Code = 1368;

/// How many bytes each direction holds before a write waits.
const QUOTA: usize = 65_536;

/// The pipes of a machine. One ordinary account runs everything unless
/// [`act_as`](Model::act_as) says otherwise.
///
/// A name exists from its first instance until the last handle of any of its instances is closed,
/// a client's included. The first creator decides who may do what, and how many instances there
/// are at most.
#[derive(Debug, Default)]
pub struct Model {
    names: HashMap<String, Name>,
    made: u64,
    actor: Actor,
}

/// An account of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Actor {
    /// SYSTEM, as a service.
    System,
    /// An ordinary account that is logged on at the console, with the last part of its SID
    /// (`S-1-5-21-1-2-3-<number>`).
    User(u32),
}

impl Default for Actor {
    fn default() -> Self {
        Self::User(1000)
    }
}

impl Actor {
    fn sid(self) -> Sid {
        match self {
            Self::System => Sid::system(),
            Self::User(number) => format!("S-1-5-21-1-2-3-{number}")
                .parse()
                .unwrap_or_else(|error| panic!("{error}")),
        }
    }

    fn token(self) -> Token {
        let token = Token::new(self.sid())
            .group(Sid::everyone())
            .group(Sid::authenticated_users());
        match self {
            Self::System => token
                .group(Sid::administrators())
                .integrity(IntegrityLevel::SYSTEM)
                .taking_ownership(),
            Self::User(_) => token.group(Sid::users()).group(Sid::interactive()),
        }
    }
}

#[derive(Debug)]
struct Name {
    kind: Kind,
    max_instances: u32,
    /// That of the first creator.
    security: PipeSecurity,
    /// In the order in which clients take them.
    instances: Vec<PipeInstance>,
}

#[derive(Debug)]
struct PipeInstance {
    id: u64,
    state: State,
    /// Whether the server's handle is open; the client's is while `client` is some.
    server: bool,
    /// The client that is connected, and what it tells about itself.
    client: Option<(u64, Opening)>,
    /// Who the server would act as: what a read has brought, or the opening.
    context: Option<Opening>,
    to_server: Queue,
    to_client: Queue,
}

/// The states of the documentation of `GetNamedPipeInfo`'s file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Waits for a client; so is every new instance.
    Listening,
    /// Both ends are there.
    Connected,
    /// One end was closed, the other can still read what it was sent.
    Closing,
    /// The server has thrown its client out.
    Disconnected,
}

#[derive(Debug, Default)]
struct Queue {
    messages: VecDeque<Message>,
    /// Whether the reader wants one message at a time.
    by_message: bool,
}

#[derive(Debug)]
struct Message {
    bytes: VecDeque<u8>,
    /// Who wrote it, if the client's identity goes with its writes.
    writer: Option<Opening>,
}

/// Which end of a pipe a handle is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The one that `create` gave.
    Server,
    /// The one that `open` gave.
    Client,
}

/// One end of a pipe of the model. Close it with [`PipeSystem::close`].
#[derive(Debug)]
pub struct Handle {
    name: String,
    instance: u64,
    end: End,
    /// The client's number; an instance serves one after the other.
    client: u64,
}

impl Model {
    /// A machine without pipes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Says who makes the calls from here on.
    pub fn act_as(&mut self, actor: Actor) {
        self.actor = actor;
    }

    /// As [`PipeSystem::create`], with a security descriptor in the string format in place of the
    /// instance's rights and owner.
    ///
    /// # Errors
    ///
    /// As there.
    ///
    /// # Panics
    ///
    /// When the text is no descriptor.
    pub fn create_protected(
        &mut self,
        name: &str,
        wanted: Instance,
        descriptor: &str,
    ) -> Result<Handle, Code> {
        let security = descriptor
            .parse()
            .unwrap_or_else(|error| panic!("{descriptor}: {error}"));
        self.create_with(name, wanted, security)
    }

    /// `GetSecurityInfo`: the descriptor of the pipe, in the string format.
    ///
    /// # Errors
    ///
    /// 233 for a handle whose name is gone.
    pub fn protection(&self, handle: &Handle) -> Result<String, Code> {
        let name = self.names.get(&handle.name);
        name.map(|name| name.security.to_string())
            .ok_or(ERROR_PIPE_NOT_CONNECTED)
    }

    fn create_with(
        &mut self,
        name: &str,
        wanted: Instance,
        security: PipeSecurity,
    ) -> Result<Handle, Code> {
        let id = self.number();
        let token = self.actor.token();
        match self.names.get_mut(name) {
            Some(existing) => {
                // One end of a duplex pipe needs the right to read and to write, too.
                let allowed = [PipeAction::AddInstance, PipeAction::Connect]
                    .into_iter()
                    .all(|action| existing.security.allows(&token, action));
                if !allowed {
                    return Err(ERROR_ACCESS_DENIED);
                }
                let count = u32::try_from(existing.instances.len()).unwrap_or(u32::MAX);
                if existing.max_instances < 255 && count >= existing.max_instances {
                    return Err(ERROR_PIPE_BUSY);
                }
                if wanted.place == Place::First {
                    return Err(ERROR_ACCESS_DENIED);
                }
                existing.instances.push(PipeInstance::new(id));
            }
            // An owner must be somebody that the creator may name.
            None if security.owner != self.actor.sid() => return Err(ERROR_INVALID_OWNER),
            None => {
                let made = Name {
                    kind: wanted.kind,
                    max_instances: wanted.max_instances,
                    security,
                    instances: vec![PipeInstance::new(id)],
                };
                self.names.insert(name.to_owned(), made);
            }
        }
        Ok(Handle {
            name: name.to_owned(),
            instance: id,
            end: End::Server,
            client: 0,
        })
    }

    fn number(&mut self) -> u64 {
        self.made += 1;
        self.made
    }

    /// The instance behind a handle; `None` for a client that was disconnected.
    fn instance(&mut self, handle: &Handle) -> Option<&mut PipeInstance> {
        let name = self.names.get_mut(&handle.name)?;
        let instance = name
            .instances
            .iter_mut()
            .find(|instance| instance.id == handle.instance)?;
        match handle.end {
            End::Server => Some(instance),
            End::Client => instance
                .client
                .is_some_and(|(id, _)| id == handle.client)
                .then_some(instance),
        }
    }
}

impl PipeInstance {
    fn new(id: u64) -> Self {
        Self {
            id,
            state: State::Listening,
            server: true,
            client: None,
            context: None,
            to_server: Queue::default(),
            to_client: Queue::default(),
        }
    }

    /// What this end reads from.
    fn inbox(&mut self, end: End) -> &mut Queue {
        match end {
            End::Server => &mut self.to_server,
            End::Client => &mut self.to_client,
        }
    }
}

impl Queue {
    fn len(&self) -> usize {
        self.messages
            .iter()
            .map(|message| message.bytes.len())
            .sum()
    }

    /// Takes up to `room` bytes, and says whose writes they were. A reader of bytes gets what is
    /// there, across the borders of messages; an empty message alone gives it zero bytes.
    fn take(&mut self, room: usize) -> (Chunk, Option<Opening>) {
        let mut chunk = Chunk {
            bytes: Vec::new(),
            goes_on: false,
        };
        let mut writer = None;
        while let Some(message) = self.messages.front_mut() {
            let count = message.bytes.len().min(room - chunk.bytes.len());
            chunk.bytes.extend(message.bytes.drain(..count));
            writer = message.writer.take().or(writer);
            let rest = !message.bytes.is_empty();
            if !rest {
                self.messages.pop_front();
            }
            if self.by_message || chunk.bytes.len() == room {
                chunk.goes_on = self.by_message && rest;
                break;
            }
        }
        (chunk, writer)
    }
}

impl PipeSystem for Model {
    type Handle = Handle;

    fn create(&mut self, name: &str, wanted: Instance) -> Result<Handle, Code> {
        let owner = match wanted.owner {
            Owner::Creator => self.actor.sid(),
            Owner::System => Sid::system(),
        };
        let list = match wanted.rights {
            Rights::All => "(A;;FA;;;WD)",
            Rights::Connect => "(A;;0x12019b;;;WD)",
            Rights::None => "(D;;FA;;;WD)",
        };
        self.create_protected(name, wanted, &format!("O:{owner}D:P{list}"))
    }

    fn listen(&mut self, server: &Handle) -> Result<(), Code> {
        let instance = self.instance(server).ok_or(ERROR_PIPE_NOT_CONNECTED)?;
        match instance.state {
            State::Listening | State::Disconnected => {
                instance.state = State::Listening;
                Err(WAITS)
            }
            State::Connected => Err(ERROR_PIPE_CONNECTED),
            State::Closing => Err(ERROR_NO_DATA),
        }
    }

    fn disconnect(&mut self, server: &Handle) -> Result<(), Code> {
        let instance = self.instance(server).ok_or(ERROR_PIPE_NOT_CONNECTED)?;
        if instance.state == State::Disconnected {
            return Err(ERROR_PIPE_NOT_CONNECTED);
        }
        *instance = PipeInstance {
            state: State::Disconnected,
            ..PipeInstance::new(instance.id)
        };
        Ok(())
    }

    fn identify(&mut self, server: &Handle) -> Result<(), Code> {
        let instance = self.instance(server).ok_or(ERROR_PIPE_NOT_CONNECTED)?;
        match instance.context {
            None => Err(ERROR_CANNOT_IMPERSONATE),
            Some(Opening::Anonymous) => Err(ERROR_CANT_OPEN_ANONYMOUS),
            Some(Opening::Unspecified | Opening::Identification) => Ok(()),
        }
    }

    fn open(&mut self, name: &str, opening: Opening) -> Result<Handle, Code> {
        let id = self.number();
        let token = self.actor.token();
        let existing = self.names.get_mut(name).ok_or(ERROR_FILE_NOT_FOUND)?;
        if !existing.instances.iter().any(|instance| instance.server) {
            return Err(ERROR_FILE_NOT_FOUND);
        }
        if !existing.security.allows(&token, PipeAction::Connect) {
            return Err(ERROR_ACCESS_DENIED);
        }
        let free = existing
            .instances
            .iter_mut()
            .find(|one| one.state == State::Listening);
        let instance = free.ok_or(ERROR_PIPE_BUSY)?;
        instance.state = State::Connected;
        instance.client = Some((id, opening));
        instance.context = match opening {
            Opening::Unspecified => None,
            Opening::Identification | Opening::Anonymous => Some(opening),
        };
        let instance = instance.id;
        Ok(Handle {
            name: name.to_owned(),
            instance,
            end: End::Client,
            client: id,
        })
    }

    fn wait(&mut self, name: &str) -> Result<(), Code> {
        let existing = self.names.get(name).ok_or(ERROR_FILE_NOT_FOUND)?;
        let free = existing
            .instances
            .iter()
            .any(|instance| instance.state == State::Listening);
        if free { Ok(()) } else { Err(ERROR_SEM_TIMEOUT) }
    }

    fn read_messages(&mut self, handle: &Handle) -> Result<(), Code> {
        if self
            .names
            .get(&handle.name)
            .is_none_or(|name| name.kind == Kind::Byte)
        {
            return Err(ERROR_INVALID_PARAMETER);
        }
        let instance = self.instance(handle).ok_or(ERROR_PIPE_NOT_CONNECTED)?;
        instance.inbox(handle.end).by_message = true;
        Ok(())
    }

    fn read(&mut self, handle: &Handle, room: usize) -> Result<Chunk, Code> {
        let instance = self.instance(handle).ok_or(ERROR_PIPE_NOT_CONNECTED)?;
        match instance.state {
            State::Listening => return Err(ERROR_PIPE_LISTENING),
            State::Disconnected => return Err(ERROR_PIPE_NOT_CONNECTED),
            State::Connected | State::Closing => {}
        }
        let inbox = instance.inbox(handle.end);
        if inbox.messages.is_empty() {
            let ended = instance.state == State::Closing;
            return Err(if ended { ERROR_BROKEN_PIPE } else { WAITS });
        }
        let (chunk, writer) = inbox.take(room);
        instance.context = writer.or(instance.context);
        Ok(chunk)
    }

    fn write(&mut self, handle: &Handle, bytes: &[u8]) -> Result<(), Code> {
        let kind = self.names.get(&handle.name).map(|name| name.kind);
        let instance = self.instance(handle).ok_or(ERROR_PIPE_NOT_CONNECTED)?;
        match instance.state {
            State::Listening => return Err(ERROR_PIPE_LISTENING),
            State::Disconnected => return Err(ERROR_PIPE_NOT_CONNECTED),
            State::Closing => return Err(ERROR_NO_DATA),
            State::Connected => {}
        }
        if bytes.is_empty() && kind != Some(Kind::Message) {
            return Ok(());
        }
        let (queue, writer) = match (handle.end, instance.client) {
            (End::Client, Some((_, Opening::Unspecified))) => {
                (&mut instance.to_server, Some(Opening::Unspecified))
            }
            (End::Client, _) => (&mut instance.to_server, None),
            (End::Server, _) => (&mut instance.to_client, None),
        };
        if queue.len() + bytes.len() > QUOTA {
            return Err(WAITS);
        }
        queue.messages.push_back(Message {
            bytes: bytes.iter().copied().collect(),
            writer,
        });
        Ok(())
    }

    fn peek(&mut self, handle: &Handle) -> Result<usize, Code> {
        let instance = self.instance(handle).ok_or(ERROR_PIPE_NOT_CONNECTED)?;
        let state = instance.state;
        let inbox = instance.inbox(handle.end);
        match state {
            State::Listening | State::Disconnected => Err(ERROR_BAD_PIPE),
            State::Closing if inbox.messages.is_empty() => Err(ERROR_BROKEN_PIPE),
            State::Connected | State::Closing => Ok(inbox.len()),
        }
    }

    fn close(&mut self, handle: Handle) {
        let Some(instance) = self.instance(&handle) else {
            return;
        };
        instance.inbox(handle.end).messages.clear();
        match handle.end {
            End::Server => instance.server = false,
            End::Client => instance.client = None,
        }
        instance.state = State::Closing;
        let gone = !instance.server && instance.client.is_none();
        let (id, Some(name)) = (instance.id, self.names.get_mut(&handle.name)) else {
            return;
        };
        if gone {
            name.instances.retain(|instance| instance.id != id);
        }
        if name.instances.is_empty() {
            self.names.remove(&handle.name);
        }
    }
}
