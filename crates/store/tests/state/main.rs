//! The service's store and its ledger: commits, what is read back, crashes and damage.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

mod commit;
mod crash;
mod damage;
mod ledger;
mod mail;
mod model;
mod support;
