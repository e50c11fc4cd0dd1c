//! Durable messages that were accepted together, and go out together to a service that negotiated
//! `batch`.
//!
//! Others go out alone, though more frames would hold many: the messages of a frame are answered
//! together, so a receipt would wait for messages that its sender knows nothing about.

use migration_ipc_protocol::extensions::BatchWriter;
use migration_ipc_protocol::hello::Capability;
use migration_ipc_protocol::limits::{DELIVERY_WINDOW, MAX_BATCH};
use migration_ipc_protocol::{EnvelopeHead, MessageId};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::guarantee::Receiver;
use super::sealing::Sealer;
use super::sending::Job;
use super::shared::Core;
use crate::connection::{AnswerResult, IpcConnection, SendError, Tracking};

/// Bytes of the messages that go out together, unless one has more: what one write holds. More
/// saves nothing, and would let others wait.
const MAX_LOAD: usize = 64 * 1024;

/// Whether messages may go out together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Company {
    Together,
    Alone,
}

type Posted = Result<oneshot::Receiver<AnswerResult>, SendError>;

/// What a connection allows.
pub(super) fn of(connection: &IpcConnection) -> Company {
    let both = connection.has(Capability::Batch) && connection.has(Capability::Durable);
    if both {
        Company::Together
    } else {
        Company::Alone
    }
}

impl Core {
    /// The next message to send, and those behind it that were accepted with it.
    pub(super) fn next_load(
        &mut self,
        receiver: Option<Receiver>,
        company: Company,
        now: Instant,
    ) -> Vec<Job> {
        let Some(first) = self.next_job(receiver, now) else {
            return Vec::new();
        };
        let together = match company {
            Company::Together => first.company(),
            Company::Alone => None,
        };
        let mut size = first.size();
        let mut load = vec![first];
        while together.is_some()
            && load.len() < MAX_BATCH
            && self.next_is_of(together, MAX_LOAD.saturating_sub(size))
            && let Some(next) = self.next_on_disk(receiver, now)
        {
            size += next.size();
            load.push(next);
        }
        load
    }

    /// Whether the next durable message is of this company, and no larger than this.
    fn next_is_of(&self, company: Option<u64>, room: usize) -> bool {
        let Some(disk) = &self.disk else { return false };
        let below = disk.desk.floor().saturating_add(DELIVERY_WINDOW);
        disk.next_sendable(below).is_some_and(|(_, entry)| {
            entry.company == company && usize::try_from(entry.bytes).is_ok_and(|size| size <= room)
        })
    }
}

/// Sends messages, in one frame if they are several.
pub(super) async fn post(
    load: Vec<Job>,
    connection: &IpcConnection,
    sealer: &Sealer,
) -> Vec<(Job, Posted)> {
    if load.len() > 1
        && let Some((writer, messages)) = write(&load, connection)
    {
        let posted = connection.post_batch(&writer, &messages, Tracking::SureAnswer);
        return match posted.await {
            Ok(answers) => load.into_iter().zip(answers.into_iter().map(Ok)).collect(),
            Err(error) => {
                let failed = |job| (job, Err(error.clone()));
                load.into_iter().map(failed).collect()
            }
        };
    }
    let mut posted = Vec::with_capacity(load.len());
    for job in load {
        let answer = job.post(connection, sealer).await;
        posted.push((job, answer));
    }
    posted
}

/// Writes messages as a batch; `None` when one of them cannot be in it.
fn write(
    load: &[Job],
    connection: &IpcConnection,
) -> Option<(BatchWriter, Vec<(MessageId, &'static str)>)> {
    let mut writer = BatchWriter::new();
    let mut messages: Vec<(MessageId, &'static str)> = Vec::with_capacity(load.len());
    for job in load {
        let parcel = job.parcel().ok()?;
        let parcel = parcel.get();
        connection.admit_now(parcel.message_type).ok()?;
        // Sent twice under one id, they wait for each other's answers.
        if messages.iter().any(|(id, _)| id == parcel.id) {
            return None;
        }
        let head = EnvelopeHead {
            delivery: parcel.delivery,
            ..EnvelopeHead::new(parcel.id, parcel.message_type, parcel.timestamp)
        };
        writer.push(head, Some(parcel.payload)).ok()?;
        let label = connection.telemetry().known_type(parcel.message_type);
        messages.push((parcel.id.clone(), label));
    }
    Some((writer, messages))
}
