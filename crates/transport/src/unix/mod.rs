//! Unix stream sockets.
//!
//! ```text
//! bind -> folder: make, check -> claim: lock, clear a stale socket -> listener -> stream
//! connect -> connector: retry while the queue is full, check the server -> stream
//! ```
//!
//! | what could happen | what is done |
//! |---|---|
//! | somebody replaces the socket | its folder is writable for root and the service alone, or sticky; links are refused (`folder`) |
//! | two services on one path | a lock file, held by the kernel for as long as its holder lives (`lock`) |
//! | a socket of a service that was killed | recognised by connecting to it, removed under the lock (`claim`) |
//! | somebody connects before the mode is right | the mode is set between `bind` and `listen`; the umask is left alone (`listener`) |
//! | no descriptors, no memory | waiting and trying again, without end (`listener`) |
//! | a peer names another account | the kernel's credentials of the socket count (`identity`) |
//! | one of none of the admitted groups connects | one group is the kernel's affair, of several it tells at accept (`admission`) |
//! | the service manager has made the socket already | it is checked, served, and left in its place (`passed`) |
//! | an impostor serves a name first | a client checks the server and the folder before it sends (`connector`) |
//!
//! Files with secrets (`secrets`) are opened and made under the same rules for their folder.
//!
//! Sockets of the abstract name space are never used: they have no mode, so everybody may connect.

pub(crate) mod accounts;
mod admission;
mod claim;
mod connector;
#[cfg(not(target_os = "linux"))]
mod elsewhere;
pub(crate) mod endpoint;
mod folder;
mod identity;
#[cfg(target_os = "linux")]
mod linux;
mod listener;
mod lock;
#[cfg(target_os = "linux")]
mod passed;
pub(crate) mod secrets;
mod stream;

#[cfg(not(target_os = "linux"))]
use elsewhere as kernel;
#[cfg(not(target_os = "linux"))]
use elsewhere as passed;
#[cfg(target_os = "linux")]
use linux as kernel;

pub(crate) use connector::connect;
pub(crate) use listener::bind;
