//! A payload and five more.

use migration_ipc::messages::BackupProgress;
use migration_ipc::{Cancellation, IpcConnection, MessageDispatcher, MessageInfo, Peer, State};

async fn on_progress(
    _progress: BackupProgress,
    _peer: Peer,
    _state: State<()>,
    _message: MessageInfo,
    _cancellation: Cancellation,
    _connection: IpcConnection,
    _again: Peer,
) {
}

fn main() {
    let _ = MessageDispatcher::builder(()).handle(on_progress);
}
