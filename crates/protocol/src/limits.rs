//! Every limit of the wire, each with its reason. Relations between them are checked when this
//! crate is compiled.

/// Bytes of the length that precedes each body.
pub const LENGTH_PREFIX: usize = 4;

/// The longest body in bytes. Deployed peers drop the connection on anything longer.
pub const MAX_BODY: usize = 1_048_576;

/// The longest frame in bytes: a length and the longest body.
pub const MAX_FRAME: usize = LENGTH_PREFIX + MAX_BODY;

/// The longest body of a hello in bytes: it arrives before anything is known about its sender, and
/// a real one takes a few hundred bytes.
pub const MAX_HELLO_BODY: usize = 4096;

/// How deep objects and arrays may be nested in a body. Deployed .NET readers stop at the same
/// depth.
pub const MAX_JSON_DEPTH: usize = 64;

/// How many values a body may hold, counted as the commas and opening brackets outside of its
/// strings. It bounds the memory that reading a body takes: an array of a million small numbers
/// would otherwise take thirty times its own size.
pub const MAX_JSON_VALUES: usize = 65_536;

/// The least that a receiver may lower the depth to ([`JsonLimits`](crate::JsonLimits)): what the
/// messages of the protocol itself need is an envelope, a payload, a list in it and an object in
/// that, each with another around it in versions to come.
pub const MIN_JSON_DEPTH: usize = 8;

/// The least that a receiver may lower the number of values to: a hello that names each capability,
/// and whatever later versions add to it, stays below.
pub const MIN_JSON_VALUES: usize = 64;

/// The longest message id in bytes. Ids are echoed in acknowledgments and kept until these arrive,
/// so they are bounded; the ids in use are GUIDs of 36 bytes.
pub const MAX_MESSAGE_ID: usize = 1024;

/// The longest name of a user or session in bytes. A service keeps them for as long as an agent is
/// connected. A user principal name has at most 1,024 characters.
pub const MAX_NAME: usize = 1024;

/// The longest name of a message type in bytes. Names are echoed in error texts.
pub const MAX_MESSAGE_TYPE: usize = 256;

/// The longest error text in bytes that this side puts in an acknowledgment, so that a text which
/// quotes what a peer sent cannot outgrow a frame.
pub const MAX_ERROR_TEXT: usize = 4096;

/// The longest name of a stream in bytes. A receiver keeps the names of the streams that it put off.
pub const MAX_STREAM_NAME: usize = 64;

/// How far the numbers of an outbox's unsettled messages may be apart: a sender sends number `n`
/// only when every number up to `n - DELIVERY_WINDOW` is settled for good. So a receiver remembers
/// the outcomes of this many numbers and forgets nothing that could be asked for again. It is more
/// than a connection has under way at once, so nobody waits for it.
pub const DELIVERY_WINDOW: u64 = 1024;

/// The longest fingerprint of a schema in bytes: a digest of 32 bytes in hexadecimal digits.
pub const MAX_SCHEMA: usize = 64;

/// The longest name of a key in bytes.
pub const MAX_KEY_NAME: usize = 64;

/// The longest deadline of a request in milliseconds: a year, far beyond use, and far from where
/// adding it to a time could overflow.
pub const MAX_DEADLINE_MS: u64 = 365 * 24 * 3600 * 1000;

/// How many items of a streaming reply a request grants at once, at most: its sender has to have
/// room for all of them.
pub const MAX_ITEM_GRANT: u32 = 1024;

/// Ranges, and failures, in one acknowledgment of many messages.
pub const MAX_ACK_RANGES: usize = 256;

/// Messages in a batch. More save nothing: what a frame costs is spread over enough by then.
pub const MAX_BATCH: usize = 256;

/// The longest frame of a piece of a chunked body in bytes. A control message waits at most for
/// one write, and this is the size of one.
pub const MAX_CHUNK_FRAME: usize = 65_536;

/// How many bytes each byte of an LZ4 block becomes at most: one that lengthens a match adds 255, and
/// every other kind adds less. So a length beyond that is a lie before anything is decompressed.
pub const MAX_LZ4_GAIN: usize = 255;

/// Transfers of chunked bodies in one direction of a connection at once.
pub const MAX_TRANSFERS: usize = 8;

/// The longest body in bytes that anybody may let be sent in chunks: it is held whole by either side
/// while it travels, and by its receiver while it is handled.
pub const MAX_CHUNKED_BODY: usize = 1 << 30;

/// Bytes that a decoder may hold above what has arrived: the step in which its buffer grows.
pub const DECODER_SLACK: usize = 4096;

/// JSON writes one byte as six at worst (`\u0000`).
const WORST_ESCAPE: usize = 6;

const _: () = {
    // A valid prefix is a positive i32.
    assert!(MAX_BODY <= i32::MAX as usize);
    assert!(MAX_HELLO_BODY < MAX_BODY);
    // And so is the length of a body in chunks, on every machine.
    assert!(MAX_BODY < MAX_CHUNKED_BODY && MAX_CHUNKED_BODY <= i32::MAX as usize);
    // An error acknowledgment can always be sent: its id, the id that it answers, and its text,
    // fully escaped, with room for the member names.
    assert!(WORST_ESCAPE * (2 * MAX_MESSAGE_ID + MAX_ERROR_TEXT) + 1024 < MAX_BODY);
    // The text for a type without a handler is never cut.
    assert!(MAX_MESSAGE_TYPE + 64 < MAX_ERROR_TEXT);
    // A GUID fits.
    assert!(MAX_MESSAGE_ID >= 36);
    // serde_json gives up at 128 levels by itself; this limit must be the stricter one.
    assert!(MAX_JSON_DEPTH < 128);
    // Limits can only be lowered.
    assert!(MIN_JSON_DEPTH < MAX_JSON_DEPTH);
    assert!(MIN_JSON_VALUES < MAX_JSON_VALUES);
};
