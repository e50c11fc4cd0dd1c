//! The service that the transcripts in the folder `golden` were written for; see its `README.md`.

use migration_ipc::messages::{
    AgentStarted, BackupCompleted, BackupProgress, BackupRequest, BackupStarted, Category,
    DelayRequest, ErrorReport, Priority,
};
use migration_ipc::{
    DispatcherError, HandlerError, MessageDispatcher, Peer, Reply, State, Timestamp,
};

async fn on_started(
    started: AgentStarted,
    peer: Peer,
    State(deadline): State<Timestamp>,
) -> Option<Reply<BackupRequest>> {
    let categories = [Category::Files, Category::Email];
    (started.agent_version == "reply-please").then(|| {
        let request = BackupRequest::new(peer.account().as_str(), deadline, categories);
        Reply(request.with_priority(Priority::High))
    })
}

async fn on_error(_: ErrorReport) -> Result<(), HandlerError> {
    Err(HandlerError::new("boom"))
}

/// `deadline` is that of the request that `AGENT_STARTED` may be answered with.
pub(crate) fn dispatcher(deadline: Timestamp) -> Result<MessageDispatcher, DispatcherError> {
    MessageDispatcher::builder(deadline)
        .handle(on_started)
        .handle(on_error)
        .handle(|_: BackupStarted| async {})
        .handle(|_: BackupProgress| async {})
        .handle(|_: BackupCompleted| async {})
        .handle(|_: DelayRequest| async {})
        .build()
}
