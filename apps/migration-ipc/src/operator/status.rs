//! `status`: who is connected, and how every user's backup stands.

use clap::Args;
use migration_ipc::IpcClient;

use super::connect::{ask, connect};
use super::messages::{ServiceStatus, StatusRequest, UserStatus};
use super::table::{bytes, table};
use crate::address::Address;
use crate::cli::{Failure, print, visible};
use crate::telemetry::Quantiles;

/// Show the status of the service.
#[derive(Debug, Args)]
pub(crate) struct StatusCommand {
    #[command(flatten)]
    address: Address,

    /// Print everything, as JSON
    #[arg(long)]
    json: bool,
}

impl StatusCommand {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let client = connect(&self.address).await?;
        let status = full_status(&client).await?;
        client.disconnect().await;
        if self.json {
            print(serde_json::to_string_pretty(&status)?)?;
        } else {
            print(for_people(&status))?;
        }
        Ok(())
    }
}

/// The status with the users of all pages.
pub(crate) async fn full_status(client: &IpcClient) -> Result<ServiceStatus, Failure> {
    let mut status: ServiceStatus = ask(client, StatusRequest::default()).await?;
    while let Some(after) = status.next.take() {
        let page: ServiceStatus = ask(client, StatusRequest { after: Some(after) }).await?;
        status.users.extend(page.users);
        status.next = page.next;
    }
    Ok(status)
}

fn for_people(status: &ServiceStatus) -> String {
    let connections = status.connections;
    let mut text = format!(
        "migration {}, {} users; service {} since {}\n\
         connections: {} agents, {} others, {} pending, {} closing\n\
         messages: {:.1}/s; handling {}; round trips {}\n",
        status.overall_status,
        status.total_users,
        status.version,
        status.started,
        connections.announced,
        connections.identified,
        connections.pending,
        connections.closing,
        status.traffic.messages_per_second,
        latency(status.traffic.handling),
        latency(status.traffic.round_trips),
    );
    if !status.users.is_empty() {
        let heading = [
            "USER", "NAME", "AGENTS", "STATE", "PROGRESS", "BYTES", "DEADLINE", "DELAYS",
        ];
        let heading = heading.map(str::to_owned).to_vec();
        let rows: Vec<_> = std::iter::once(heading)
            .chain(status.users.iter().map(row))
            .collect();
        text.push('\n');
        text.push_str(&table(&rows));
    }
    text.trim_end().to_owned()
}

fn latency(quantiles: Option<Quantiles>) -> String {
    match quantiles {
        Some(Quantiles { p50_ms, p99_ms, .. }) => format!("p50 {p50_ms:.3} ms, p99 {p99_ms:.3} ms"),
        None => "none yet".to_owned(),
    }
}

fn row(user: &UserStatus) -> Vec<String> {
    let state = if user.escalated {
        format!("{}, escalated", user.state)
    } else {
        user.state.to_string()
    };
    vec![
        visible(&user.user).into_owned(),
        visible(&user.name).into_owned(),
        user.agents.len().to_string(),
        state,
        format!("{:.0}%", user.progress),
        format!(
            "{} of {}",
            bytes(user.bytes_transferred),
            bytes(user.bytes_total)
        ),
        user.deadline
            .map_or("-".to_owned(), |deadline| deadline.to_string()),
        user.delays_used.to_string(),
    ]
}
