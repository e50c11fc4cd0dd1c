//! What comes after the payload is taken from the message's context.

use migration_ipc::MessageDispatcher;
use migration_ipc::messages::BackupProgress;

async fn on_progress(_progress: BackupProgress, _when: std::time::Instant) {}

fn main() {
    let _ = MessageDispatcher::builder(()).handle(on_progress);
}
