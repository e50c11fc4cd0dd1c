//! The reference service.
//!
//! ```text
//! handlers ──job──> keeper ──> desk ──> state (pure) ──> effects ──> agents
//!                     └──> store (redb)
//! ```

mod agents;
mod clock;
mod config;
mod desk;
mod handlers;
mod keeper;
mod key;
mod lease;
mod overview;
mod policy;
mod record;
mod run;
mod snapshot;
mod state;
mod store;

pub(crate) use key::UserKey;
pub(crate) use record::{CategoryState, Escalation, Note, Phase};
pub(crate) use run::ServiceCommand;
