//! The commands and their flags.

use clap::{Parser, Subcommand};

use super::exit::EXIT_CODES;
use crate::agent::AgentCommand;
use crate::check::CheckCommand;
use crate::demo::{DemoCommand, JanitorCommand};
use crate::key::KeyCommand;
use crate::operator::{
    AuditCommand, DeadLettersCommand, JournalCommand, MailCommand, SendCommand, StatusCommand,
};
use crate::publish::PublishCommand;
use crate::service::ServiceCommand;
use crate::telemetry::LogSettings;

/// The reference service and agent of migration-ipc, and the tools of its operators.
#[derive(Debug, Parser)]
#[command(name = "migration-ipc", version, after_help = EXIT_CODES, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,

    #[command(flatten)]
    pub(crate) logs: LogSettings,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show all of it: a service, agents that back up real files, and a check of every backup.
    Demo(DemoCommand),
    /// Run the service until it is told to stop (SIGTERM, Ctrl-C, end of the console).
    Service(ServiceCommand),
    /// Run the agent of one user until the service or the user ends it.
    Agent(AgentCommand),
    /// Send messages as an agent does: payloads from standard input, one per line.
    Publish(PublishCommand),
    /// Show who is connected, and how every user's backup stands.
    Status(StatusCommand),
    /// Send any message of the service to agents, for example a BACKUP_REQUEST.
    Send(SendCommand),
    /// Show the messages that the service handled, whether it runs or not.
    Journal(JournalCommand),
    /// Show who connected, what was refused, and what operators did, whether the service runs or not.
    Audit(AuditCommand),
    /// Look after messages for users who are absent.
    Mail(MailCommand),
    /// Look after messages that were refused, or have expired.
    DeadLetters(DeadLettersCommand),
    /// Make and check files with keys.
    Key(KeyCommand),
    /// Compare a backup with its source, byte by byte.
    Check(CheckCommand),
    /// Remove the scratch folder of a demonstration.
    #[command(hide = true)]
    DemoJanitor(JanitorCommand),
}

impl Command {
    /// What is logged unless the command line says otherwise.
    pub(crate) fn default_log_level(&self) -> &'static str {
        match self {
            Self::Service(_) | Self::Agent(_) => "info",
            Self::Demo(_)
            | Self::Status(_)
            | Self::Publish(_)
            | Self::Send(_)
            | Self::Journal(_)
            | Self::Audit(_)
            | Self::Mail(_)
            | Self::DeadLetters(_)
            | Self::Key(_)
            | Self::Check(_)
            | Self::DemoJanitor(_) => "warn",
        }
    }

    pub(crate) async fn run(self) -> Result<(), super::Failure> {
        match self {
            Self::Service(service) => service.run().await,
            Self::Agent(agent) => agent.run().await,
            Self::Status(status) => status.run().await,
            Self::Send(send) => send.run().await,
            Self::Journal(journal) => journal.run().await,
            Self::Audit(audit) => audit.run().await,
            Self::Publish(publish) => publish.run().await,
            Self::Mail(mail) => mail.run().await,
            Self::DeadLetters(letters) => letters.run().await,
            Self::Demo(demo) => demo.run().await,
            Self::Key(key) => key.run().await,
            Self::Check(check) => check.run().await,
            Self::DemoJanitor(janitor) => janitor.run().await,
        }
    }
}
