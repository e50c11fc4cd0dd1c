//! How agents reach the service, again and again.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use migration_ipc::storage::disk::{Folder, FolderError};
use migration_ipc::storage::outbox::OutboxOptions;
use migration_ipc::transport::ConnectError as TransportError;
use migration_ipc::{
    AtRest, Backoff, ConnectError, ConnectionTrouble, DisconnectReason, ReconnectState,
    ReconnectingIpcClient, ReconnectingIpcClientBuilder,
};
use tokio::sync::watch;
use tokio::time::{Instant, interval};

use crate::address::Address;
use crate::cli::{Exit, Failure, OrExit};
use crate::encrypting::connection_config;

/// How long another process may hold the folder of an outbox, and how often that is looked at.
const HELD: Duration = Duration::from_secs(3);
const HELD_INTERVAL: Duration = Duration::from_millis(50);

/// Where the service is, and how hard it is tried to reach it.
#[derive(Debug, Args)]
pub(crate) struct Reconnect {
    #[command(flatten)]
    address: Address,

    /// The longest pause between two tries to connect
    #[arg(long, value_name = "SECONDS", default_value = "300", value_parser = parse_seconds)]
    max_pause: Duration,

    /// Encrypt what is kept on disk until it is sent, with the key of the kind `outbox` in this
    /// file; one that is not there is made
    #[arg(long, value_name = "FILE")]
    outbox_key: Option<PathBuf>,
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text
        .parse()
        .map_err(|_| "this is no number of seconds".to_owned())?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(pause) if (Duration::from_millis(1)..=Duration::from_secs(86_400)).contains(&pause) => {
            Ok(pause)
        }
        _ => Err("a pause is from 0.001 to 86400 seconds".to_owned()),
    }
}

impl Reconnect {
    /// Never gives up.
    pub(crate) async fn configure(
        &self,
        builder: ReconnectingIpcClientBuilder,
    ) -> Result<ReconnectingIpcClientBuilder, Failure> {
        let endpoint = self.address.endpoint()?;
        let trust = self.address.owner.trust().await?;
        let usual = Backoff::default().unlimited();
        let backoff = Backoff {
            base: usual.base.min(self.max_pause),
            cap: self.max_pause,
            first: usual.first.min(self.max_pause),
            ..usual
        };
        let mut builder = builder.endpoint(endpoint).trust(trust).backoff(backoff);
        if let Some(encryption) = self.address.encrypting.load().await? {
            builder = builder
                .connection_config(connection_config(&encryption))
                .encryption(encryption);
        }
        Ok(match &self.outbox_key {
            Some(file) => builder.outbox_key_file(file).at_rest(AtRest::All),
            None => builder,
        })
    }
}

/// Starts a client whose outbox is in this folder.
pub(crate) async fn start(
    builder: ReconnectingIpcClientBuilder,
    outbox: PathBuf,
) -> Result<ReconnectingIpcClient, Failure> {
    let folder = hold(outbox).await?;
    let client = builder
        .outbox(Arc::new(folder), OutboxOptions::default())
        .start();
    client.await.or_exit(Exit::Failed)
}

/// Takes the folder of an outbox. A process that has just been killed may still hold it.
async fn hold(outbox: PathBuf) -> Result<Folder, Failure> {
    let deadline = Instant::now() + HELD;
    let mut interval = interval(HELD_INTERVAL);
    loop {
        interval.tick().await;
        let outbox = outbox.clone();
        match tokio::task::spawn_blocking(move || Folder::open(outbox)).await? {
            Err(FolderError::Locked(_)) if Instant::now() < deadline => {}
            opened => return opened.or_exit(Exit::Usage),
        }
    }
}

/// Waits until the service refuses this agent, which trying again does not change.
pub(crate) async fn refusal(state: &mut watch::Receiver<ReconnectState>) -> Failure {
    let refused = state
        .wait_for(|state| trouble_of(state).is_some_and(is_refusal))
        .await;
    let text = match &refused {
        Ok(state) => trouble_of(state).map(ToString::to_string),
        Err(_) => None,
    };
    Failure::new(
        Exit::Refused,
        text.unwrap_or_else(|| "the client has stopped".to_owned()),
    )
}

/// Why there is no connection now.
pub(crate) fn trouble_of(state: &ReconnectState) -> Option<&ConnectionTrouble> {
    match state {
        ReconnectState::Waiting { error, .. } | ReconnectState::GaveUp { error } => Some(error),
        _ => None,
    }
}

/// Whether the service is there and does not encrypt, which this side demands. It may some day.
pub(crate) fn is_for_want_of_encryption(trouble: &ConnectionTrouble) -> bool {
    match trouble {
        ConnectionTrouble::Lost(reason) => matches!(reason, DisconnectReason::NotEncrypted(_)),
        ConnectionTrouble::Failed(error) => matches!(
            **error,
            ConnectError::Ended(DisconnectReason::NotEncrypted(_))
        ),
        _ => false,
    }
}

fn is_refusal(trouble: &ConnectionTrouble) -> bool {
    match trouble {
        ConnectionTrouble::AnnouncementRefused(_) => true,
        ConnectionTrouble::Lost(reason) => matches!(reason, DisconnectReason::Refused(_)),
        ConnectionTrouble::Failed(error) => matches!(
            **error,
            ConnectError::Transport(TransportError::Denied { .. })
                | ConnectError::Ended(DisconnectReason::Refused(_))
        ),
        _ => false,
    }
}
