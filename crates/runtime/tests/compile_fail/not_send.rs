//! Handlers move between threads: nothing that must not may live across an await.

use std::rc::Rc;

use migration_ipc::MessageDispatcher;
use migration_ipc::messages::BackupProgress;

async fn on_progress(progress: BackupProgress) {
    let progress = Rc::new(progress);
    tokio::task::yield_now().await;
    drop(progress);
}

fn main() {
    let _ = MessageDispatcher::builder(()).handle(on_progress);
}
