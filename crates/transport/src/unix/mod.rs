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
//! | an impostor serves a name first | a client checks the server before it sends (`connector`) |
//!
//! Sockets of the abstract name space are never used: they have no mode, so everybody may connect.

pub(crate) mod accounts;
mod claim;
mod connector;
pub(crate) mod endpoint;
mod folder;
mod identity;
mod listener;
mod lock;
mod stream;

pub(crate) use connector::connect;
pub(crate) use listener::bind;
