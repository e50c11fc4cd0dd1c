//! What an agent says over the connection that there is, without anything that keeps it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use migration_ipc::{IpcConnection, MessageOptions, ReconnectingIpcClient, RequestError};
use migration_ipc_testkit::machine::SimProcess;
use tokio::time::{sleep, timeout};

use crate::model::{Kind, Line, Model, Name, Request};
use crate::payloads::{Ask, Item, Told, action};

/// How often a connection that can be asked is looked for.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(500);

/// Sends the line, and waits for what it comes to.
pub(crate) async fn ask(
    process: SimProcess,
    model: Arc<Mutex<Model>>,
    client: ReconnectingIpcClient,
    name: Name,
    line: Line,
) {
    let mut tries = TRIES;
    let mut connection = loop {
        match client.connection() {
            Some(connection) => break connection,
            None if tries == 0 => return model.lock().unwrap().refuse(name),
            None => tries -= 1,
        }
        sleep(PAUSE).await;
    };
    let Kind::Request(request) = line.kind else {
        let options = line.priority.into_iter();
        let options = options.fold(MessageOptions::new(), MessageOptions::priority);
        let sent = connection.send_with(action(name, line.task), options).await;
        if sent.is_err() && process.is_running() {
            model.lock().unwrap().refuse(name);
        }
        return;
    };
    let asked = Ask {
        name,
        task: line.task,
        items: request.items.map_or(0, |(items, _)| items),
    };
    let asking = async {
        loop {
            let end = match request.items {
                None => connection.request(asked).within(request.within).await,
                Some(_) => read(&model, &connection, asked, request).await,
            };
            // Nothing was sent, and perhaps the service has only not shown yet what it is.
            if !matches!(end, Err(RequestError::NotNegotiated)) || tries == 0 {
                return end;
            }
            tries -= 1;
            sleep(PAUSE).await;
            connection = client.connection().unwrap_or(connection);
        }
    };
    let end = match request.given_up {
        None => asking.await,
        Some(after) => match timeout(after, asking).await {
            Ok(end) => end,
            // Dropped, which gives it up.
            Err(_elapsed) => return,
        },
    };
    if process.is_running() {
        model.lock().unwrap().end(name, end);
    }
}

/// Reads the items, which come one after the other, and then the reply.
async fn read(
    model: &Mutex<Model>,
    connection: &IpcConnection,
    asked: Ask,
    request: Request,
) -> Result<Told, RequestError> {
    let window = request.items.map_or(1, |(_, window)| window);
    let pending = connection.request_stream(asked).within(request.within);
    let mut stream = pending.window(window).await?;
    let mut read = 0;
    while let Some(item) = stream.next().await {
        read += 1;
        let expected = Item {
            name: asked.name,
            place: read,
        };
        if !matches!(&item, Ok(item) if *item == expected) {
            let what = format!("{item:?} came in place of {expected:?}");
            model.lock().unwrap().object(what);
        }
    }
    let told = stream.finish().await;
    if let Ok(told) = &told
        && (told.items, told.items) != (read, asked.items)
    {
        let what = format!("{told:?} came behind {read} items, to {asked:?}");
        model.lock().unwrap().object(what);
    }
    told
}
