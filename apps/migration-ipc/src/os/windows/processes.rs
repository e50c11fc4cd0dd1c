//! Console events, parents and children.

use std::future;
use std::io;
use std::os::windows::io::AsHandle as _;

use migration_ipc::transport::win32;
use tokio::process::Command;
use tokio::signal::windows::{
    CtrlBreak, CtrlC, CtrlClose, CtrlLogoff, CtrlShutdown, ctrl_break, ctrl_c, ctrl_close,
    ctrl_logoff, ctrl_shutdown,
};
use tokio::sync::oneshot;

use super::os_error;

/// `CREATE_NEW_PROCESS_GROUP`: Ctrl-C of the console does not reach the child.
const NEW_PROCESS_GROUP: u32 = 0x200;

/// The console's events that ask a process to end in an orderly way.
#[derive(Debug)]
pub(crate) struct StopSignals {
    c: CtrlC,
    break_: CtrlBreak,
    close: CtrlClose,
    logoff: CtrlLogoff,
    shutdown: CtrlShutdown,
}

impl StopSignals {
    pub(crate) fn register() -> io::Result<Self> {
        Ok(Self {
            c: ctrl_c()?,
            break_: ctrl_break()?,
            close: ctrl_close()?,
            logoff: ctrl_logoff()?,
            shutdown: ctrl_shutdown()?,
        })
    }

    /// Waits for the next event and names it. Cancel safe.
    pub(crate) async fn recv(&mut self) -> &'static str {
        tokio::select! {
            Some(()) = self.c.recv() => "Ctrl-C",
            Some(()) = self.break_.recv() => "Ctrl-Break",
            Some(()) = self.close.recv() => "the console was closed",
            Some(()) = self.logoff.recv() => "the user logs off",
            Some(()) = self.shutdown.recv() => "the system shuts down",
            else => future::pending().await,
        }
    }
}

/// Tells when the process that started this one is gone, by a handle to it: unlike its id, a
/// handle is never another process's.
#[derive(Debug)]
pub(crate) struct ParentWatch {
    parent: Option<win32::Process>,
}

impl ParentWatch {
    /// To be called early: a parent that is gone by now is not noticed.
    pub(crate) fn new() -> Self {
        Self {
            parent: win32::parent_process()
                .map_err(os_error)
                .inspect_err(log)
                .ok(),
        }
    }

    /// Waits for the parent's end. Cancel safe.
    pub(crate) async fn gone(&self) {
        let Some(parent) = self
            .parent
            .as_ref()
            .and_then(|parent| parent.try_clone().ok())
        else {
            return future::pending().await;
        };
        let (alive, end) = oneshot::channel::<()>();
        std::thread::spawn(move || {
            let _until_the_end = alive;
            parent.wait();
        });
        // The sender is dropped at the end, which is the message.
        let _ended = end.await;
    }
}

fn log(error: &io::Error) {
    tracing::warn!(%error, "this process would not notice the end of the one that started it");
}

/// Keeps a child away from the console's Ctrl-C, so that its parent decides about its end.
pub(crate) fn own_process_group(command: &mut Command) {
    command.creation_flags(NEW_PROCESS_GROUP);
}

/// The name of the session that this process runs in, such as `Console` or `RDP-Tcp#0`.
pub(crate) fn session_name() -> Option<String> {
    std::env::var("SESSIONNAME")
        .ok()
        .filter(|session| !session.is_empty())
}

/// The id of the account that this process runs as: its SID.
pub(crate) fn own_account() -> io::Result<String> {
    let token = win32::open_process_token().map_err(os_error)?;
    Ok(win32::token_user(token.as_handle())
        .map_err(os_error)?
        .to_string())
}
