//! Who may send what to the service. What is not here is refused.

use migration_ipc::messages::{
    AgentStarted, BackupCompleted, BackupProgress, BackupStarted, DelayRequest, ErrorReport,
    UserAction,
};
use migration_ipc::{MessagePayload, Policy, Role};

use crate::operator::{JournalRequest, KeptChangeRequest, KeptRequest, SendRequest, StatusRequest};

/// What agents say.
pub(super) const OF_AGENTS: [&str; 7] = [
    AgentStarted::TYPE,
    BackupStarted::TYPE,
    BackupProgress::TYPE,
    BackupCompleted::TYPE,
    DelayRequest::TYPE,
    UserAction::TYPE,
    ErrorReport::TYPE,
];

/// What operators ask.
pub(super) const OF_OPERATORS: [&str; 5] = [
    StatusRequest::TYPE,
    SendRequest::TYPE,
    JournalRequest::TYPE,
    KeptRequest::TYPE,
    KeptChangeRequest::TYPE,
];

/// The policy, with every type by its name: a handler that is added later is nobody's until it is
/// listed here.
pub(crate) fn policy() -> Policy {
    let mut policy = Policy::strict();
    for message_type in OF_AGENTS {
        policy = policy.allow(Role::Agent, message_type);
    }
    for message_type in OF_OPERATORS {
        policy = policy.allow(Role::Operator, message_type);
    }
    policy
}

#[cfg(test)]
mod tests;
