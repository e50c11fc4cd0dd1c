//! How one message is sent over a connection.

use migration_ipc_protocol::Priority;

/// How one message is sent over a connection; what is not set is as its type has it.
///
/// ```
/// use migration_ipc::{MessageOptions, Priority};
///
/// let options = MessageOptions::new().priority(Priority::Bulk);
/// # let _ = options;
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[must_use]
pub struct MessageOptions {
    pub(crate) priority: Option<Priority>,
}

impl MessageOptions {
    /// As the type has it.
    pub fn new() -> Self {
        Self::default()
    }

    /// How urgent the message is. Those of one priority keep their order; others may overtake them.
    pub fn priority(mut self, priority: Priority) -> Self {
        self.priority = Some(priority);
        self
    }
}
