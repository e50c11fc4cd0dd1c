//! The sender's outbox: messages that are on disk before `send` returns, until the peer has
//! answered for them.
//!
//! An [`Outbox`] is a log of opaque messages, each with a sequence number, and of what became of
//! them. It holds an index in memory and nothing of the messages themselves.
//!
//! # The format
//!
//! Numbers are little-endian; a checksum is the CRC-32 of IEEE 802.3 (as in zlib and gzip).
//!
//! The log is the files `outbox-<number>.log`, the **segments**, in the order of their numbers,
//! which are written as 16 lower-case hexadecimal digits and begin at 1. A segment is its header
//! twice, then records one after the other.
//!
//! ## Header: 64 bytes, at 0 and again at 64
//!
//! | at | bytes | what |
//! |---|---|---|
//! | 0 | 8 | `mipc-obx` |
//! | 8 | 4 | version of the format: 1 |
//! | 12 | 4 | checksum of bytes 0 to 11 |
//! | 16 | 16 | the outbox's id |
//! | 32 | 8 | the segment's number |
//! | 40 | 8 | the next sequence number when the segment was begun |
//! | 48 | 8 | the segment that this one follows, 0 for none |
//! | 56 | 4 | how long that one was |
//! | 60 | 4 | checksum of bytes 0 to 59 |
//!
//! The first 16 bytes are the same in every version, at both places. A segment whose version is not
//! this one makes the whole log one of another program: it is set aside and left as it is.
//!
//! *Follows* says where the log stood when the segment was begun. What the named segment has
//! beyond that length, and every segment numbered between the two, is void: it is what a failed
//! sync may have left behind. Conversely, a named segment that is shorter has lost something.
//!
//! ## Record: 24 bytes and a body
//!
//! | at | bytes | what |
//! |---|---|---|
//! | 0 | 4 | checksum of the segment's number (8 bytes), the record's offset in the segment (8 bytes) and bytes 4 to 23 |
//! | 4 | 4 | checksum of the body |
//! | 8 | 4 | length of the body |
//! | 12 | 1 | kind |
//! | 13 | 1 | what it is of a group: 0 no part of one, 1 its first message, 2 one between, 3 its last |
//! | 14 | 2 | the number of the write that put it there, counted in its segment, modulo 65536; zero in a filler |
//! | 16 | 8 | sequence number, zero but for messages |
//!
//! | kind | body |
//! |---|---|
//! | 1, message | the message; at most [`MAX_RECORD_BODY`] bytes. Of two with one sequence number the later one counts |
//! | 2, settled | pairs of the first and the last (8 bytes each) of a range of sequence numbers that are settled; they were all given before |
//! | 3, filler | anything; takes the place of damaged bytes |
//!
//! The messages of a group were appended together: they follow one another in one write, and count
//! together or not at all until that write is known to have been durable. It is when a record of
//! another write is behind it in its segment, or a later segment has a header. From then on each
//! message stands for itself, so that later damage costs no others.
//! What of the newest segment does not count is settled in the next one by records that are durable
//! before its header is written.
//!
//! # Writing
//!
//! [`Outbox::sync`] puts everything since the last one at the end of the newest segment with one
//! write and one data sync, or into a new segment when that one has reached its size; a new
//! segment's name is synced too. When that fails, nobody can tell what is on the disk, and a later
//! sync that succeeds proves nothing (fsync(2)). So the log goes on in a new segment, which says that
//! it follows what was durable before. If that fails too, every further sync tries it again.
//!
//! Segments are removed from the oldest on, when all of their messages are settled; each removal
//! is durable before the next one. So a record of kind 2 is never gone before the messages that it
//! settles. When the garbage outweighs the messages, those of the oldest segment are written again
//! at the end of the log.
//!
//! # Opening
//!
//! Every record is checked. Where one is damaged, reading goes on with the next place where a record
//! (header and place) is right; behind a record of which only the body is damaged, that is its end.
//! The damaged bytes are copied into a file `outbox-<number>.damaged`, reported, and taken out of
//! the log: a filler or a new header is written over them, and when they are at the end of the
//! newest segment, the next segment follows what is before them. What is left of a group that does not
//! count is treated likewise. New sequence numbers skip as many
//! as damage in the newest segment can have held, since the peer may have seen those; a new
//! segment, whose header says so, is begun before the damage is taken out.
//!
//! The newest segment is written and synced once more as it was read: what can be read after
//! another process failed may never have reached the disk.

mod chain;
mod damage;
mod error;
mod files;
mod format;
mod groups;
mod index;
mod limits;
mod log;
mod open;
mod report;
mod salvage;
mod scan;
mod sync;

pub use error::OutboxError;
pub use limits::{MAX_BATCH_BYTES, MAX_KEPT_DAMAGE_FILES, MAX_RECORD_BODY, MAX_SEQ, SEGMENT_BYTES};
pub use log::{Outbox, OutboxOptions};
pub use report::{Damage, OpenReport, OutboxIdentity, SetAside, SetAsideReason};
