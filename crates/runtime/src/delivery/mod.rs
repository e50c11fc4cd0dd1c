//! What becomes of a message that somebody waits for, and where the disk's work is done.

mod execution;
mod fate;
mod receipt;

pub use execution::Execution;
pub(crate) use execution::WorkFailed;
pub use fate::Fate;
pub use receipt::Receipt;
pub(crate) use receipt::{Resolver, receipt};
