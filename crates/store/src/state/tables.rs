//! The tables of the database.

use std::borrow::Cow;

use redb::TableDefinition;

/// Single values of the store itself, as JSON. The name and the form of this table, and of the
/// schema's number in it, are the same in every version, so that each recognises what a newer one
/// wrote.
pub(super) const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
/// The schema's number.
pub(super) const META_SCHEMA: &str = "schema";
/// The store's own outbox id, that of the mail it sends.
pub(super) const META_OUTBOX: &str = "outbox";

/// Account and outbox to slot, use and window.
pub(super) const LEDGER: TableDefinition<'_, LedgerKey, LedgerValue> =
    TableDefinition::new("ledger");
pub(super) type LedgerTable<'txn> = redb::Table<'txn, LedgerKey, LedgerValue>;
type LedgerKey = (&'static str, [u8; 16]);
type LedgerValue = (u64, u64, &'static [u8]);

/// Slot and number to the outcome, as JSON; plain "handled" is not kept.
pub(super) const OUTCOMES: TableDefinition<'_, (u64, u64), &[u8]> =
    TableDefinition::new("outcomes");

pub(super) type OutcomesTable<'txn> = redb::Table<'txn, (u64, u64), &'static [u8]>;

/// Number to entry, as JSON.
pub(super) const JOURNAL: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("journal");

/// Every table that effects change: bytes to bytes.
pub(super) type ByteTable<'txn> = redb::Table<'txn, &'static [u8], &'static [u8]>;
pub(super) type ByteTableDefinition<'a> = TableDefinition<'a, &'static [u8], &'static [u8]>;

/// The name of a table that effects change.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum TableName {
    /// One of the store's own.
    Own(&'static str),
    /// One of the program's.
    User(Cow<'static, str>),
}

impl TableName {
    /// Its name in the database. The program's tables have a prefix, so they can have any name.
    pub(super) fn in_database(&self) -> Cow<'_, str> {
        match self {
            Self::Own(name) => Cow::Borrowed(name),
            Self::User(name) => Cow::Owned(format!("user/{name}")),
        }
    }
}
