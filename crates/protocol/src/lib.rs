//! The wire of migration-ipc, as pure code: no I/O, no runtime, no clock and no randomness. Bytes,
//! times and ids are arguments, so everything here can be tested, and used, anywhere.
//!
//! The modules follow a message from the bytes to its typed payload:
//!
//! 1. [`limits`]: every limit, each with its reason;
//! 2. [`FrameDecoder`] and [`encode_frame`]: bytes to bodies and back;
//! 3. [`Envelope`]: a body read in place, its payload left as text until its type is known, and
//!    [`PresumedEnvelope`], a shorter way for bodies in the usual form;
//! 4. [`IpcMessage`]: the same, owned;
//! 5. [`MessagePayload`] and [`messages`]: what the payloads of the fourteen types mean;
//! 6. [`Sensitive`]: members that are on the wire and in no log;
//! 7. [`hello`]: how peers negotiate, and [`extensions`]: what each capability adds to the wire;
//! 8. [`MessageSerializer`]: an envelope back to a frame.
//!
//! `docs/protocol.md` describes the same wire in words.
//!
//! ```
//! use migration_ipc_protocol::messages::{BackupProgress, Category, Percent};
//! use migration_ipc_protocol::{
//!     Envelope, EnvelopeHead, FrameDecoder, MessageId, MessagePayload, MessageSerializer,
//! };
//!
//! let share = Percent::of(1024, 4096);
//! let progress = BackupProgress::new("S-1-5-21-1", Category::Files, share, 1024, 4096);
//! let id = MessageId::new("a-1")?;
//! let mut wire = Vec::new();
//! MessageSerializer::encode(
//!     &mut wire,
//!     EnvelopeHead::new(&id, BackupProgress::TYPE, "2024-01-01T12:00:00Z".parse()?),
//!     &progress,
//! )?;
//!
//! let mut decoder = FrameDecoder::new();
//! let mut input = wire.as_slice();
//! let body = decoder.decode(&mut input)?.expect("the frame is whole");
//! let envelope = Envelope::parse(body)?;
//! assert_eq!(envelope.id, id);
//! assert_eq!(envelope.payload::<BackupProgress>()?, progress);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod limits;

mod frame;
mod json;
mod message_id;
mod message_type;
mod timestamp;

mod delivery;
mod envelope;
mod payload;
mod presumed;
mod schema;
mod sensitive;
mod serializer;

pub mod extensions;
pub mod hello;
pub mod messages;

pub use delivery::{
    DeliveryHead, DeliveryHeadError, InvalidStreamName, OutboxId, ParseOutboxIdError, StreamName,
};
pub use envelope::{
    AckMemberError, Envelope, EnvelopeError, EnvelopeErrorKind, IpcMessage, ItemMemberError,
};
pub use frame::{BodyTooLarge, BodyWriter, FrameDecoder, FrameError, encode_frame};
pub use json::JsonLimits;
pub use message_id::{MessageId, MessageIdTooLong};
pub use message_type::{MessageType, message_types};
pub use payload::{
    Announcement, Idempotence, MessagePayload, PayloadError, Priority, Request, Sender,
    StreamingRequest, no_handler_text,
};
pub use presumed::PresumedEnvelope;
pub use schema::{Schema, SchemaFingerprint, SchemaTooLong};
pub use sensitive::Sensitive;
pub use serde_json::value::RawValue;
pub use serializer::{EncodeError, EnvelopeHead, MessageSerializer};
pub use timestamp::{ParseTimestampError, Timestamp};
