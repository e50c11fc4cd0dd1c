//! What migration-ipc keeps on disk, so that nothing is lost with a process.
//!
//! Everything here blocks on the disk, and knows neither connections nor tasks. All of it goes
//! through the small seam of [`disk`], so that tests can crash the disk at every step.

pub mod disk;
