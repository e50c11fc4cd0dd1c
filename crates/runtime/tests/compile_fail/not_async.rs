//! A handler has to be an `async fn`.

use migration_ipc::MessageDispatcher;
use migration_ipc::messages::BackupProgress;

fn on_progress(_progress: BackupProgress) {}

fn main() {
    let _ = MessageDispatcher::builder(()).handle(on_progress);
}
