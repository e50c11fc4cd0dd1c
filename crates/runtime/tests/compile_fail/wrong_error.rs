//! An error has to convert into `HandlerError`.

use migration_ipc::MessageDispatcher;
use migration_ipc::messages::BackupProgress;

struct Refused;

async fn on_progress(_progress: BackupProgress) -> Result<(), Refused> {
    Err(Refused)
}

fn main() {
    let _ = MessageDispatcher::builder(()).handle(on_progress);
}
