//! What operators do: see the status, send messages.

mod connect;
mod messages;
mod send;
mod status;
mod table;

pub(crate) use connect::{connect, failure};
pub(crate) use messages::{
    AgentStatus, Connections, Recipient, SendReport, SendRequest, ServiceStatus, StatusRequest,
    UserStatus,
};
pub(crate) use send::SendCommand;
pub(crate) use status::{StatusCommand, full_status};
pub(crate) use table::{bytes, table};
