//! What the project is compared with, written here so that one command prints ratios. Both speak
//! over Unix sockets.

pub(crate) mod idiom;
pub(crate) mod raw;
