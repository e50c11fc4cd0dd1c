//! Models and harnesses for testing migration-ipc and programs built on it.

pub mod faults;
pub mod pipe_model;
