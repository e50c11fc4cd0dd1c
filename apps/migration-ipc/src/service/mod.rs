//! The reference service.

mod agents;
mod config;
mod key;
mod lease;
mod overview;
mod policy;
mod record;
mod state;
mod store;
