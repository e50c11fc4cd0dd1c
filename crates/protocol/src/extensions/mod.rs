//! What each capability adds to the wire: control messages, members of the envelope, kinds of
//! bodies. The hello that negotiates them is in [`hello`](crate::hello).

mod acknowledgments;
mod batch;
mod bodies;
mod chunks;
mod compression;
mod encryption;
mod requests;

pub use acknowledgments::{Acknowledgments, FailedFrame, FrameRange};
pub use batch::{Batch, BatchError, BatchOutcomes, BatchWriter, Enclosed, MalformedBatch, Outcome};
pub use bodies::{BodyKind, CHUNK_TAG, COMPRESSED_TAG};
pub use chunks::{Chunk, ChunkError, ChunksBegin, ChunksEnd, ChunksEndCode, ChunksTake, Sha256};
pub use compression::{
    COMPRESSED_START, CompressionError, Decompressor, compress_frame, promised_length,
};
pub use encryption::{Encrypted, EncryptionConfirm};
pub use requests::{Cancel, ItemGrant, RequestHead, RequestHeadError};

pub(crate) use requests::{parse_from_one, take_number};
