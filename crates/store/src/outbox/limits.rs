//! The limits of the outbox, each with its reason.

use migration_ipc_protocol::limits::MAX_BODY;

use super::format::{HEADERS_LEN, RECORD_HEADER_LEN};

/// The largest body of a message: a whole envelope, and room for what a sender keeps beside it.
pub const MAX_RECORD_BODY: usize = MAX_BODY + 65_536;

/// The length from which a segment gets no more records. Smaller ones give their room back
/// earlier; bigger ones mean fewer files and fewer syncs of names.
pub const SEGMENT_BYTES: u32 = 4 * 1024 * 1024;

/// The smallest length that options can ask for; what tests use.
pub(super) const MIN_SEGMENT_BYTES: u32 = 1024;

/// How much can wait for one sync: it is held in memory, and one write takes it.
pub const MAX_BATCH_BYTES: usize = 8 * 1024 * 1024;

/// The largest sequence number; what databases and other languages hold in a signed number.
pub const MAX_SEQ: u64 = i64::MAX.unsigned_abs();

/// How many files of damaged bytes are kept; the oldest ones go. Most are the torn end of a log
/// after a power failure.
pub const MAX_KEPT_DAMAGE_FILES: usize = 16;

/// Ranges in one record of kind *settled*, so that a damaged one costs little.
pub(super) const MAX_RANGES: usize = 4096;

/// Ranges in one sync; more of them wait for the next one.
pub(super) const MAX_RANGES_PER_SYNC: usize = 16 * MAX_RANGES;

/// The bytes of a range.
pub(super) const RANGE_LEN: usize = 16;

/// How long a segment can get: just short of full, then the largest batch, what one step of
/// cleaning copies (a segment's worth and one record more), and the settled ranges. What a file
/// has beyond was not written by this program; it is neither read nor removed before its segment.
pub(super) const MAX_SEGMENT_BYTES: usize = 24 * 1024 * 1024;

const _: () = {
    let largest_record = RECORD_HEADER_LEN + MAX_RECORD_BODY;
    let settled =
        MAX_RANGES_PER_SYNC * RANGE_LEN + (MAX_RANGES_PER_SYNC / MAX_RANGES) * RECORD_HEADER_LEN;
    let segment = SEGMENT_BYTES as usize;
    assert!(MAX_RANGES * RANGE_LEN <= MAX_RECORD_BODY);
    assert!(largest_record <= MAX_BATCH_BYTES);
    assert!(HEADERS_LEN < MIN_SEGMENT_BYTES as usize);
    assert!(segment + MAX_BATCH_BYTES + segment + largest_record + settled <= MAX_SEGMENT_BYTES);
    assert!(MAX_SEGMENT_BYTES < u32::MAX as usize);
};
