//! The store as connections see it: effects go in without waiting, and are committed many at a
//! time; what a message came to is known when its commit is.

mod commit;
mod committer;
mod entry;
mod handle;
mod speaker;

pub use commit::{Commit, CommitError, ProgramCommit};
pub use committer::StoreOwner;
pub(crate) use entry::{Conclusion, Ending, Entry, EntryStart, Numbered, end_unbooked};
pub use handle::StoreHandle;
pub(crate) use speaker::Speaker;
