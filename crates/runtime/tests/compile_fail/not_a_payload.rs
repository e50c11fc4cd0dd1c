//! A type of one's own has to implement `MessagePayload`.

use migration_ipc::MessageDispatcher;

struct Report {
    _text: String,
}

async fn on_report(_report: Report) {}

fn main() {
    let _ = MessageDispatcher::builder(()).handle(on_report);
}
