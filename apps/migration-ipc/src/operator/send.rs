//! `send`: any message of the service, to whom it may concern.

use clap::Args;
use serde_json::Value;

use super::connect::{ask, connect};
use super::messages::{Recipient, SendReport, SendRequest};
use crate::address::Address;
use crate::cli::{Exit, Failure, OrExit, print};
use crate::service_message::ServiceMessage;

/// Send a message through the service.
#[derive(Debug, Args)]
pub(crate) struct SendCommand {
    #[command(flatten)]
    address: Address,

    #[command(flatten)]
    to: To,

    /// For how many hours to keep it for a user who is absent [default: until the user is there]
    #[arg(
        long,
        value_name = "HOURS",
        requires = "user",
        conflicts_with = "session"
    )]
    keep_hours: Option<u32>,

    /// The type of the message, for example BACKUP_REQUEST
    #[arg(value_name = "TYPE")]
    message_type: String,

    /// The payload, for example '{"deadline":"2030-01-01T12:00:00Z","categories":["files"]}'
    #[arg(value_name = "JSON", value_parser = parse_json)]
    payload: Value,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
struct To {
    /// The agents of this account: its name, uid or SID; kept as mail if it has none
    #[arg(long, value_name = "U")]
    user: Option<String>,

    /// Those of them that announced this session; without --user, of the account that runs this
    #[arg(long, value_name = "S")]
    session: Option<String>,

    /// Everybody
    #[arg(long, conflicts_with_all = ["user", "session"])]
    all: bool,
}

fn parse_json(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|error| format!("this is not JSON: {error}"))
}

impl To {
    fn into_recipient(self) -> Recipient {
        match (self.user, self.session) {
            (user, Some(session)) => Recipient::Session { user, session },
            (Some(user), None) => Recipient::User(user),
            (None, None) => Recipient::All,
        }
    }
}

impl SendCommand {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        // Said here rather than by the service, so that a typing mistake needs no service.
        ServiceMessage::parse(&self.message_type, &self.payload).or_exit(Exit::Usage)?;
        let request = SendRequest {
            to: self.to.into_recipient(),
            message_type: self.message_type,
            payload: self.payload,
            keep_seconds: self.keep_hours.map(|hours| u64::from(hours) * 3600),
        };
        let client = connect(&self.address).await?;
        let report: SendReport = ask(&client, request).await?;
        client.disconnect().await;
        match outcome(&report) {
            Some(text) => Ok(print(text)?),
            None => Err(Failure::new(
                Exit::NoRecipient,
                "no recipient: no such agent is connected",
            )),
        }
    }
}

/// What became of the message; `None` if nothing did.
fn outcome(report: &SendReport) -> Option<String> {
    let SendReport {
        agents,
        pending_users,
        standing,
        mailed,
    } = *report;
    let mut parts = Vec::new();
    if agents > 0 {
        parts.push(format!("sent to {}", count(agents, "agent")));
    }
    if pending_users > 0 {
        parts.push(format!(
            "pending for {} until the backup is complete",
            count(pending_users, "user")
        ));
    }
    if standing {
        parts.push("kept for users who announce themselves later".to_owned());
    }
    if mailed {
        parts.push("kept as mail until an agent of the user is there".to_owned());
    }
    (!parts.is_empty()).then(|| parts.join("; "))
}

fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_outcome_says_what_became_of_it() {
        let nothing = SendReport::default();
        assert_eq!(outcome(&nothing), None);
        let sent = SendReport {
            agents: 1,
            ..nothing
        };
        assert_eq!(outcome(&sent).unwrap(), "sent to 1 agent");
        let pending = SendReport {
            pending_users: 2,
            ..nothing
        };
        assert_eq!(
            outcome(&pending).unwrap(),
            "pending for 2 users until the backup is complete"
        );
        let all = SendReport {
            agents: 3,
            pending_users: 4,
            standing: true,
            mailed: false,
        };
        assert!(outcome(&all).unwrap().ends_with("later"));
    }
}
