//! Checks of what Windows enforces and Wine only stores, against the transport itself.

use std::os::windows::io::{AsHandle, OwnedHandle};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use migration_ipc_transport::security::{PipeDescriptor, Sid};
use migration_ipc_transport::{
    BindOptions, ConnectOptions, Endpoint, Listener, ServiceMode, Stream, Trust, bind,
    connect_with, win32,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use windows_sys::Win32::Foundation::ERROR_ACCESS_DENIED;

use super::Real;
use super::evidence::{Finding, Outcome};
use super::system::{Opening, PipeSystem};
use super::threat::{self, Threat};

/// Within this a service that is started again serves.
const SERVES_WITHIN: Duration = Duration::from_secs(10);

/// Beyond what anything here waits for.
const PATIENCE: Duration = Duration::from_secs(30);

/// For so long a service must leave a name alone that is not its own. It tries several times.
const LEFT_ALONE: Duration = Duration::from_secs(2);

type Checked = Result<(), String>;

struct Check {
    threat: Threat,
    name: &'static str,
    /// What Wine does instead.
    wine: &'static str,
    run: fn() -> Checked,
}

const CHECKS: &[Check] = &[
    Check {
        threat: threat::SQUATTED,
        name: "after a crash others are served within 10 s although a client holds the name",
        wine: "FILE_FLAG_FIRST_PIPE_INSTANCE is ignored, so nobody can hold a name",
        run: || on_runtime(held_by_a_client()),
    },
    Check {
        threat: threat::SQUATTED,
        name: "a squatter's name is never joined",
        wine: "FILE_FLAG_FIRST_PIPE_INSTANCE is ignored, so nobody can hold a name",
        run: || on_runtime(held_by_a_squatter()),
    },
    Check {
        threat: threat::SANDBOX,
        name: "a process of low integrity cannot open the service's pipe",
        wine: "labels are not checked",
        run: || on_runtime(opened_by_a_sandbox()),
    },
    Check {
        threat: threat::ROGUE_SERVER,
        name: "the server of our client may know it and not act as it",
        wine: "the level that a client names is ignored",
        run: || on_runtime(level_of_our_client()),
    },
    Check {
        threat: threat::DEFAULT_LIST,
        name: "a service that runs as SYSTEM gets the descriptor that it asks for",
        wine: "nobody runs as SYSTEM there",
        run: || on_runtime(served_as_system()),
    },
];

/// Makes all checks. Under Wine each says that it was skipped, and why.
pub(super) fn all() -> Vec<Finding> {
    CHECKS
        .iter()
        .map(|check| {
            let outcome = if check.threat.is_enforced_here(check.wine) {
                match (check.run)() {
                    Ok(()) => Outcome::Shown,
                    Err(why) => match why.strip_prefix(NOT_HERE) {
                        Some(why) => Outcome::NotShown(why.to_owned()),
                        None => Outcome::Failed(why),
                    },
                }
            } else {
                Outcome::NotShown(check.wine.to_owned())
            };
            Finding {
                name: format!("row {}: {}", check.threat.row, check.name),
                outcome,
            }
        })
        .collect()
}

/// Begins the reason of a check that this account cannot make.
const NOT_HERE: &str = "not here: ";

fn on_runtime(check: impl Future<Output = Checked>) -> Checked {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(text)?;
    runtime.block_on(async {
        let checked = timeout(PATIENCE, check).await;
        checked.unwrap_or_else(|_| Err(format!("it took more than {PATIENCE:?}")))
    })
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn code(action: &'static str) -> impl Fn(u32) -> String {
    move |code| format!("{action}: code {code}")
}

fn unused_name() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("migration-ipc-check-{}-{count}", std::process::id())
}

async fn serve(endpoint: &Endpoint) -> Result<Box<dyn Listener>, String> {
    let options = BindOptions::new().mode(ServiceMode::Development);
    bind(endpoint, &options).await.map_err(text)
}

async fn connect(endpoint: &Endpoint) -> Result<Box<dyn Stream>, String> {
    let options = ConnectOptions::new().trust(Trust::OwnAccount);
    let connected = connect_with(endpoint, PATIENCE, &options).await;
    connected.map_err(text)
}

/// Closes all handles of a service, as its death does, while a client keeps its own.
async fn held_by_a_client() -> Checked {
    let endpoint = Endpoint::parse(&unused_name()).map_err(text)?;
    let mut crashed = serve(&endpoint).await?;
    let _kept = connect(&endpoint).await?;
    let stream = crashed.accept().await.map_err(text)?;
    drop((stream, crashed));
    let again = async {
        let mut listener = serve(&endpoint).await?;
        let (client, server) = tokio::join!(connect(&endpoint), listener.accept());
        let (mut client, mut server) = (client?, server.map_err(text)?);
        client.write_all(b"x").await.map_err(text)?;
        server.read_u8().await.map_err(text)?;
        server.identify().await.map_err(text)?;
        Ok(())
    };
    let served = timeout(SERVES_WITHIN, again).await;
    served.unwrap_or_else(|_| Err(format!("nobody was served within {SERVES_WITHIN:?}")))
}

async fn held_by_a_squatter() -> Checked {
    let name = unused_name();
    let endpoint = Endpoint::parse(&name).map_err(text)?;
    let descriptor = win32::descriptor_from_sddl("D:P(A;;FA;;;WD)").map_err(code("descriptor"))?;
    let squatter = create(&endpoint, &descriptor)?;
    let client = Real::new()
        .open(&name, Opening::Identification)
        .map_err(code("opening"))?;
    // The name looks like one that a service has left.
    drop(squatter);
    if timeout(LEFT_ALONE, serve(&endpoint)).await.is_ok() {
        return Err("it served, or gave up".to_owned());
    }
    drop(client);
    serve(&endpoint).await.map(drop)
}

async fn opened_by_a_sandbox() -> Checked {
    let name = unused_name();
    let endpoint = Endpoint::parse(&name).map_err(text)?;
    let _listener = serve(&endpoint).await?;
    // A thread of its own: it ends with whom it acts as.
    let opened = std::thread::spawn(move || {
        act_as_sandbox()?;
        let opened = Real::new().open(&name, Opening::Identification);
        win32::revert_to_self().map_err(code("reverting"))?;
        match opened {
            Err(ERROR_ACCESS_DENIED) => Ok(()),
            Err(other) => Err(format!("refused with code {other}")),
            Ok(_) => Err("it was opened".to_owned()),
        }
    });
    opened
        .join()
        .unwrap_or_else(|_| Err("the thread panicked".to_owned()))
}

/// Makes this thread act as its own account with low integrity.
fn act_as_sandbox() -> Checked {
    let process = win32::open_process_token().map_err(code("opening the token"))?;
    let token = win32::duplicate_token(process.as_handle()).map_err(code("copying the token"))?;
    let low = Sid::integrity(0x1000);
    win32::set_token_integrity(token.as_handle(), &low).map_err(code("lowering the integrity"))?;
    win32::act_with(token.as_handle()).map_err(code("acting as a sandbox"))
}

async fn level_of_our_client() -> Checked {
    let endpoint = Endpoint::parse(&unused_name()).map_err(text)?;
    let token = win32::open_process_token().map_err(code("opening the token"))?;
    let own = win32::token_user(token.as_handle()).map_err(code("reading the token"))?;
    let sddl = PipeDescriptor::development(own).to_string();
    let descriptor = win32::descriptor_from_sddl(&sddl).map_err(code("descriptor"))?;
    let server = create(&endpoint, &descriptor)?;
    let mut client = connect(&endpoint).await?;
    client.write_all(b"x").await.map_err(text)?;
    client.flush().await.map_err(text)?;
    Real::new().read(&server, 1).map_err(code("reading"))?;
    let level = std::thread::spawn(move || {
        win32::impersonate_client(server.as_handle())?;
        let token = win32::open_thread_token();
        win32::revert_to_self()?;
        win32::token_level(token?.as_handle())
    });
    match level.join() {
        Ok(Ok(1)) => Ok(()),
        Ok(Ok(level)) => Err(format!("the level is {level} and not identification, 1")),
        Ok(Err(code)) => Err(format!("code {code}")),
        Err(_) => Err("the thread panicked".to_owned()),
    }
}

async fn served_as_system() -> Checked {
    let token = win32::open_process_token().map_err(code("opening the token"))?;
    let own = win32::token_user(token.as_handle()).map_err(code("reading the token"))?;
    if own != Sid::system() {
        return Err(format!("{NOT_HERE}it was run as {own}"));
    }
    let name = unused_name();
    let endpoint = Endpoint::parse(&name).map_err(text)?;
    let bound = bind(&endpoint, &BindOptions::new()).await;
    let _listener = bound.map_err(text)?;
    let client = Real::new()
        .open(&name, Opening::Identification)
        .map_err(code("opening"))?;
    let actual = win32::pipe_security(client.as_handle()).map_err(code("reading"))?;
    if actual == *PipeDescriptor::authenticated().security() {
        Ok(())
    } else {
        Err(format!("it is {actual:?}"))
    }
}

fn create(endpoint: &Endpoint, descriptor: &win32::Descriptor) -> Result<OwnedHandle, String> {
    let shape = win32::PipeShape {
        open_mode: 0x4000_0003, // PIPE_ACCESS_DUPLEX, FILE_FLAG_OVERLAPPED
        pipe_mode: 0x4,         // PIPE_TYPE_MESSAGE
        max_instances: 255,
        buffer: 65_536,
    };
    let name = win32::wide(&endpoint.to_string());
    win32::create_pipe(&name, shape, descriptor).map_err(code("creating a pipe"))
}
