//! Unix stream sockets.

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
