//! Who may send what to a server.
//!
//! A [`Policy`] is what a program says; at the start of a server it becomes a `Table` that is asked
//! for every message. Whatever is not in the table is refused, and any error while deciding is a no.

mod policy;
mod role;
mod table;

pub use policy::{MAX_ROLE_NAME, MAX_ROLES, Policy, PolicyError};
pub use role::Verdict;
pub(crate) use table::{RoleDenied, RoleId, Table};
