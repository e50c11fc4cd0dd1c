//! A struct is registered with `handler`, and implements `MessageHandler`.

use migration_ipc::MessageDispatcher;

struct Tickets;

fn main() {
    let _ = MessageDispatcher::builder(()).handler(Tickets);
}
