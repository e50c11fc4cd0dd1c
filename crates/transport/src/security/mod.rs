//! Who may do what with a Windows pipe, as values: security identifiers, descriptors, and what a
//! descriptor lets a token do.
//!
//! Nothing here calls the operating system. So a descriptor can be built, read, checked and
//! evaluated on every system, in the tests of programs on top too:
//!
//! ```
//! use migration_ipc_transport::security::{PipeAction, PipeDescriptor, Sid, Token};
//!
//! let descriptor = PipeDescriptor::authenticated();
//! let alice = Token::new("S-1-5-21-1-2-3-1001".parse()?)
//!     .group(Sid::authenticated_users())
//!     .group(Sid::interactive());
//! assert!(descriptor.security().allows(&alice, PipeAction::Connect));
//! assert!(!descriptor.security().allows(&alice, PipeAction::AddInstance));
//! # Ok::<(), migration_ipc_transport::security::NotASid>(())
//! ```

mod access;
mod descriptor;
mod pipe;
mod sddl;
mod secret;
mod sid;
#[cfg(test)]
mod tests;

pub use access::{GroupUse, PipeAction, Token};
pub use descriptor::{
    Ace, CLIENT_RIGHTS, CONTROL_RIGHTS, CREATE_PIPE_INSTANCE, FULL_RIGHTS, IntegrityLevel, Label,
    OtherMaster, PipeSecurity, WRITE_DAC, WRITE_OWNER,
};
pub use pipe::{DescriptorError, PipeDescriptor, PipeDescriptorBuilder};
pub use secret::{OtherReader, READING_RIGHTS, REPLACING_RIGHTS};
pub use sid::{NotASid, Sid};
