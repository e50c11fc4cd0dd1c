//! Serves the conversation of `golden/peer.py` at an endpoint:
//!
//! ```sh
//! cargo run -p migration-ipc --example extension_service -- ENDPOINT
//! ```
//!
//! Writes the line `ready` when clients can connect, and stops when its standard input ends.

use std::error::Error;
use std::io::{self, Write};
use std::time::Duration;

use migration_ipc::{BindOptions, Endpoint, IpcServer, ServiceMode};

#[path = "../tests/golden/extension_service.rs"]
mod service;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let endpoint = std::env::args()
        .nth(1)
        .ok_or("usage: extension_service ENDPOINT")?;
    let options = BindOptions::new().mode(ServiceMode::Development);
    let server = IpcServer::builder(service::dispatcher()?)
        .connection_config(service::config())
        .encryption(service::encryption()?)
        .endpoint_with(Endpoint::parse(&endpoint)?, options)
        .start()
        .await?;
    writeln!(io::stdout(), "ready")?;
    tokio::task::spawn_blocking(|| io::copy(&mut io::stdin(), &mut io::sink())).await??;
    server.stop(Duration::from_secs(1)).await;
    Ok(())
}
