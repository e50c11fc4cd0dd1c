//! A message that is returned has to be wrapped in `Reply`.

use migration_ipc::MessageDispatcher;
use migration_ipc::messages::{BackupProgress, StatusUpdate};

async fn on_progress(_progress: BackupProgress) -> Result<StatusUpdate, std::io::Error> {
    Err(std::io::Error::other("nothing to say"))
}

fn main() {
    let _ = MessageDispatcher::builder(()).handle(on_progress);
}
