//! `publish` as a command.

use std::future;
use std::io::{self, Stdout};
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use clap::Args;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use migration_ipc::messages::AgentStarted;
use migration_ipc::protocol::{DeliveryHead, EnvelopeHead, Idempotence};
use migration_ipc::{
    Durability, EncodeError, Fate, IpcMessage, MessageDispatcher, MessageFactory, MessageId,
    MessageSerializer, MessageType, RawValue, Receipt, ReconnectingIpcClient, Restored,
    RestoredFates, SendError, SendOptions, Sender, limits, message_types,
};

use super::lines::{Chunk, Line, read_stdin};
use super::report::Report;
use crate::cli::{Exit, Failure, complain};
use crate::os;
use crate::reconnect::{Reconnect, refusal};
use crate::shutdown::{Lifeline, Shutdown};

/// How long the end may take when everything is told, or when it was asked for.
const GOODBYE: Duration = Duration::from_secs(5);

/// What an envelope takes beside type and payload, generously.
const ENVELOPE: usize = 512;

/// Send messages as an agent does.
///
/// Reads one JSON payload per line from standard input, sends each, and prints a JSON line
/// {"accepted":ID} once it is accepted, and {"id":ID,"outcome":OUTCOME} once it is known what became
/// of it: handled, replied, rejected, sent, not_sent, unknown, expired or superseded.
#[derive(Debug, Args)]
pub(crate) struct PublishCommand {
    #[command(flatten)]
    reconnect: Reconnect,

    /// Where accepted messages are kept until they are settled; what an earlier run left there is
    /// sent first
    #[arg(long, value_name = "D")]
    data_dir: PathBuf,

    /// Keep each message on disk before it counts as accepted
    #[arg(long)]
    durable: bool,

    /// The name under which the agent announces its user [default: the account's id]
    #[arg(long, value_name = "U")]
    user: Option<String>,

    /// The session that the agent announces [default: the log-on session's name, or `default`]
    #[arg(long, value_name = "S")]
    session: Option<String>,

    /// The type of the messages, for example USER_ACTION; any text
    #[arg(value_name = "TYPE", value_parser = parse_type)]
    message_type: MessageType,
}

fn parse_type(text: &str) -> Result<MessageType, String> {
    if text.is_empty() || text.len() > limits::MAX_MESSAGE_TYPE {
        return Err(format!(
            "a type has from 1 to {} bytes",
            limits::MAX_MESSAGE_TYPE
        ));
    }
    if message_types::sender_of(text) == Some(Sender::Any) {
        return Err("peers run their connection with this type".to_owned());
    }
    Ok(MessageType::new(text))
}

impl PublishCommand {
    pub(crate) async fn run(self) -> Result<(), Failure> {
        let lifeline = Lifeline {
            until_stdin_ends: false,
        };
        let mut shutdown = Shutdown::listen(lifeline)?;
        let client = self.start().await?;
        let mut state = client.state();
        let publisher = Publisher {
            restored: client.restored(),
            client: client.clone(),
            message_type: self.message_type.clone(),
            options: self.options(),
            fates: FuturesUnordered::new(),
            report: Report::new(io::stdout()),
            problems: 0,
        };
        let published = tokio::select! {
            published = publisher.run() => published,
            failure = refusal(&mut state) => Err(failure),
            cause = shutdown.requested() => {
                Err(Failure::new(Exit::Interrupted, format!("ended early: {cause}")))
            }
        };
        client.stop(GOODBYE).await;
        published
    }

    async fn start(&self) -> Result<ReconnectingIpcClient, Failure> {
        let user = match &self.user {
            Some(user) => user.clone(),
            None => os::own_account()?,
        };
        let session = self.session.clone().or_else(os::session_name);
        let session = session.unwrap_or_else(|| "default".to_owned());
        let announcement =
            move || AgentStarted::new(user.as_str(), env!("CARGO_PKG_VERSION"), session.as_str());
        let folder = self.data_dir.join("outbox");
        let builder = ReconnectingIpcClient::builder(MessageDispatcher::empty());
        let builder = self.reconnect.configure(builder).await?;
        let builder = builder.announce_with(announcement);
        crate::reconnect::start(builder, folder).await
    }

    fn options(&self) -> SendOptions {
        let durability = if self.durable {
            Durability::Disk
        } else {
            Durability::Memory
        };
        SendOptions::new()
            .durability(durability)
            .idempotence(idempotence_of(&self.message_type))
    }
}

/// Whether a service that does not recognise repetitions may get a message of a type twice.
fn idempotence_of(message_type: &MessageType) -> Idempotence {
    match message_type.as_str() {
        message_types::BACKUP_STARTED
        | message_types::BACKUP_PROGRESS
        | message_types::BACKUP_COMPLETED
        | message_types::ERROR_REPORT => Idempotence::Idempotent,
        _ => Idempotence::Unknown,
    }
}

type Settled = Pin<Box<dyn Future<Output = (MessageId, Fate)> + Send>>;

/// Messages that go out together, and their numbers as lines.
type Sending = Pin<Box<dyn Future<Output = (Vec<u64>, Result<Vec<Receipt>, SendError>)> + Send>>;

/// Sends line after line, and tells what becomes of them.
struct Publisher {
    client: ReconnectingIpcClient,
    message_type: MessageType,
    options: SendOptions,
    restored: Option<RestoredFates>,
    /// What is accepted and not settled.
    fates: FuturesUnordered<Settled>,
    report: Report<Stdout>,
    /// Lines that were not sent.
    problems: u64,
}

impl Publisher {
    async fn run(mut self) -> Result<(), Failure> {
        let mut input = Some(read_stdin()?);
        let mut sending: Option<Sending> = None;
        loop {
            let mut is_done = input.is_none() && sending.is_none();
            is_done &= self.fates.is_empty() && self.restored.is_none();
            if is_done {
                break;
            }
            tokio::select! {
                biased;
                restored = next_restored(&mut self.restored) => self.handle_restored(restored)?,
                Some((id, fate)) = self.fates.next() => self.handle_settled(&id, &fate)?,
                (numbers, sent) = next_sent(&mut sending) => {
                    sending = None;
                    self.handle_sent(&numbers, sent)?;
                }
                chunk = next_chunk(&mut input), if sending.is_none() => match chunk {
                    Some(chunk) => sending = self.send(chunk?),
                    None => input = None,
                },
            }
            self.report.flush()?;
        }
        match self.problems {
            0 => Ok(()),
            1 => Err(Failure::new(Exit::Failed, "1 line was not sent")),
            more => Err(Failure::new(
                Exit::Failed,
                format!("{more} lines were not sent"),
            )),
        }
    }

    /// Begins to send the good ones of some lines.
    fn send(&mut self, chunk: Vec<Line>) -> Option<Sending> {
        let mut numbers = Vec::with_capacity(chunk.len());
        let mut messages = Vec::with_capacity(chunk.len());
        for Line { number, payload } in chunk {
            let message = payload
                .map(|payload| MessageFactory::create_raw(self.message_type.clone(), payload));
            match message {
                Err(error) => self.complain(number, &error),
                Ok(message) => match check_size(&message) {
                    Err(error) => self.complain(number, &error),
                    Ok(()) => {
                        numbers.push(number);
                        messages.push(message);
                    }
                },
            }
        }
        if messages.is_empty() {
            return None;
        }
        let (client, options) = (self.client.clone(), self.options.clone());
        let sending = async move { (numbers, client.send_messages(messages, options).await) };
        Some(Box::pin(sending))
    }

    fn handle_sent(
        &mut self,
        numbers: &[u64],
        sent: Result<Vec<Receipt>, SendError>,
    ) -> Result<(), Failure> {
        match sent {
            Ok(receipts) => {
                for receipt in receipts {
                    self.report.accepted(receipt.id())?;
                    let settled = async move {
                        let fate = receipt.fate().await.clone();
                        (receipt.id().clone(), fate)
                    };
                    self.fates.push(Box::pin(settled));
                }
            }
            Err(error) => numbers
                .iter()
                .for_each(|number| self.complain(*number, &error)),
        }
        Ok(())
    }

    fn handle_settled(&mut self, id: &MessageId, fate: &Fate) -> io::Result<()> {
        self.report.outcome(id, fate)?;
        // Those that are settled as well share the write.
        while let Some(Some((id, fate))) = self.fates.next().now_or_never() {
            self.report.outcome(&id, &fate)?;
        }
        Ok(())
    }

    fn handle_restored(&mut self, restored: Option<Restored>) -> io::Result<()> {
        match restored {
            Some(Restored { id, fate, .. }) => self.report.outcome(&id, &fate),
            None => {
                self.restored = None;
                Ok(())
            }
        }
    }

    fn complain(&mut self, number: u64, error: &dyn std::error::Error) {
        self.problems += 1;
        complain(format_args!("line {number}: {error}"));
    }
}

/// Fails if no peer would take the message, because it is too large.
fn check_size(message: &IpcMessage) -> Result<(), EncodeError> {
    let payload = message.payload.as_deref().unwrap_or(RawValue::NULL);
    let surely = limits::MAX_BODY - ENVELOPE - limits::MAX_MESSAGE_TYPE;
    if payload.get().len() < surely {
        return Ok(());
    }
    let head = EnvelopeHead {
        delivery: Some(DeliveryHead {
            seq: u64::MAX,
            stream: None,
        }),
        ..EnvelopeHead::new(
            &message.id,
            message.message_type.as_str(),
            message.timestamp,
        )
    };
    MessageSerializer::encode(&mut Vec::new(), head, payload)
}

async fn next_restored(restored: &mut Option<RestoredFates>) -> Option<Restored> {
    match restored {
        Some(restored) => restored.recv().await,
        None => future::pending().await,
    }
}

async fn next_sent(sending: &mut Option<Sending>) -> (Vec<u64>, Result<Vec<Receipt>, SendError>) {
    match sending {
        Some(sending) => sending.await,
        None => future::pending().await,
    }
}

async fn next_chunk(input: &mut Option<tokio::sync::mpsc::Receiver<Chunk>>) -> Option<Chunk> {
    match input {
        Some(input) => input.recv().await,
        None => future::pending().await,
    }
}
