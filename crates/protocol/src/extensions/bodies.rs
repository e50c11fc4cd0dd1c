//! The kinds of bodies, told by their first byte.

/// The first byte of a compressed body.
pub const COMPRESSED_TAG: u8 = 1;

/// The first byte of a piece of a chunked body.
pub const CHUNK_TAG: u8 = 2;

/// What the body of a frame is. JSON begins with none of the tags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyKind {
    /// An envelope, or what should be one.
    Json,
    /// A compressed body: of use with [`Lz4`](crate::hello::Capability::Lz4) alone.
    Compressed,
    /// A piece of a body: of use with [`Chunks`](crate::hello::Capability::Chunks) alone.
    Chunk,
}

impl BodyKind {
    /// What a body is.
    #[must_use]
    pub fn of(body: &[u8]) -> Self {
        match body.first() {
            Some(&COMPRESSED_TAG) => Self::Compressed,
            Some(&CHUNK_TAG) => Self::Chunk,
            Some(_) | None => Self::Json,
        }
    }
}
