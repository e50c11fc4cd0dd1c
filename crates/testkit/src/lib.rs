//! Models and harnesses for testing migration-ipc and programs built on it.

pub mod disk;
pub mod faults;
pub mod machine;
pub mod memory;
pub mod pipe_model;
