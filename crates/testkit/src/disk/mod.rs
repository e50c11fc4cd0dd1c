//! A simulated disk for [`migration_ipc_store`], which keeps no promise that was not made.
//!
//! What was written is there to be read at once; what survives a crash is only what was synced,
//! and of the rest whatever a seed chooses: nothing, everything, what came first, or any mix of
//! sectors. The same holds for the names of the files. Every fault that a test asks for is
//! counted, so that a test can show that it fired.

mod content;
mod names;
mod sim;
mod state;

pub use sim::{SimDisk, SimFile};
pub use state::SimCounts;
