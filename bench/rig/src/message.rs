//! The messages of the measurements, defined as users define theirs.

use std::hint::black_box;

use migration_ipc::messages::{BackupProgress, Category, Percent, UserId};
use migration_ipc::{MessagePayload, Request, Sender};
use serde::{Deserialize, Serialize};

/// The account that the messages name, as a domain's user is named on Windows. The system that
/// measures need not know it: the server of the rig says that it is its clients' own.
pub(crate) const USER: &str = "S-1-5-21-3623811015-3361044348-30300820-1013";

/// The usual message, of about 335 bytes on the wire.
pub(crate) fn progress(number: u64) -> BackupProgress {
    BackupProgress::new(
        USER,
        Category::Files,
        Percent::new(45.5),
        1_073_741_824 + number,
        2_147_483_648,
    )
    .with_current_file(r"C:\Users\jdoe\Documents\Quarterly\Report.docx")
}

/// Keeps the compiler from leaving out what was decoded.
pub(crate) fn consume(progress: &BackupProgress) {
    black_box((
        progress.bytes_transferred,
        progress.user_id.as_str(),
        progress.current_file.as_deref(),
    ));
}

/// The same content under a type that nobody acknowledges: for streams and broadcasts.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Sample(pub(crate) BackupProgress);

impl MessagePayload for Sample {
    // As long as the name of the usual message.
    const TYPE: &'static str = "PROGRESS_SAMPLE";
    const SENDER: Sender = Sender::Any;

    fn user_id_mut(&mut self) -> Option<&mut UserId> {
        Some(&mut self.0.user_id)
    }
}

/// The same content as a question, whose reply is a [`Count`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Question(pub(crate) BackupProgress);

impl MessagePayload for Question {
    // As long as the name of the usual message.
    const TYPE: &'static str = "PROGRESS_CHECKS";
    const SENDER: Sender = Sender::Agent;

    fn user_id_mut(&mut self) -> Option<&mut UserId> {
        Some(&mut self.0.user_id)
    }
}

impl Request for Question {
    type Reply = Count;
}

/// Asks how many messages the server has handled.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct CountRequest {}

impl MessagePayload for CountRequest {
    const TYPE: &'static str = "COUNT_REQUEST";
    const SENDER: Sender = Sender::Agent;
}

/// How many messages the server has handled.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Count {
    pub(crate) handled: u64,
}

impl MessagePayload for Count {
    const TYPE: &'static str = "COUNT";
    const SENDER: Sender = Sender::Service;
}

/// Asks for one broadcast to all clients.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Trigger {}

impl MessagePayload for Trigger {
    const TYPE: &'static str = "TRIGGER";
    const SENDER: Sender = Sender::Agent;
}
