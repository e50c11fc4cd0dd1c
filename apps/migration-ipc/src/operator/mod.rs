//! What operators do: see the status and the journal, send messages.

mod connect;
mod journal;
mod messages;
mod send;
mod status;
mod table;

pub(crate) use connect::connect;
pub(crate) use journal::JournalCommand;
pub(crate) use messages::{
    AgentStatus, Connections, JournalLine, JournalPage, JournalRequest, Recipient, SendReport,
    SendRequest, ServiceStatus, StatusRequest, UserStatus,
};
pub(crate) use send::SendCommand;
pub(crate) use status::{StatusCommand, full_status};
pub(crate) use table::{bytes, table};
