//! What operators do: see the status, the journal and the audit log, send messages, look after those that wait.

mod audit;
mod connect;
mod journal;
mod kept;
mod kept_messages;
mod messages;
mod send;
mod status;
mod table;

pub(crate) use audit::AuditCommand;
pub(crate) use connect::connect_to;
pub(crate) use journal::JournalCommand;
pub(crate) use kept::{DeadLettersCommand, MailCommand};
pub(crate) use kept_messages::{
    Change, KeptChange, KeptChangeRequest, KeptLine, KeptOutcome, KeptPage, KeptRequest, Shelf,
};
pub(crate) use messages::{
    AgentStatus, Connections, JournalLine, JournalPage, JournalRequest, Recipient, SendReport,
    SendRequest, ServiceStatus, StatusRequest, UserStatus,
};
pub(crate) use send::SendCommand;
pub(crate) use status::{StatusCommand, full_status};
pub(crate) use table::{bytes, table};
