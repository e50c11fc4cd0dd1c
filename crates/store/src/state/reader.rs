//! Reading what is stored.

use std::sync::Arc;

use redb::{ReadOnlyTable, ReadTransaction, ReadableDatabase, TableError};

use super::dead_letters::{self, KeptDeadLetter};
use super::error::{Fault, StoreError};
use super::journal::{self, JournalEntry};
use super::mail::{self, KeptMail};
use super::rows::{Row, first_with_prefix};
use super::shared::Shared;
use super::shelf::{self, Shelf, own};
use super::tables::{ByteTableDefinition, JOURNAL, TableName};

/// Reads what is stored, each time as the last commit left it; a commit under way neither waits
/// nor is waited for. A cheap handle. Its methods block on the disk.
#[derive(Clone, Debug)]
pub struct Reader {
    shared: Arc<Shared>,
}

type Bytes = ReadOnlyTable<&'static [u8], &'static [u8]>;

impl Reader {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// A row of a table of the program's.
    ///
    /// # Errors
    /// When the database fails, or is damaged.
    pub fn get(&self, table: &str, key: impl AsRef<[u8]>) -> Result<Option<Vec<u8>>, StoreError> {
        self.read(|transaction| {
            let Some(table) = bytes(transaction, &user(table))? else {
                return Ok(None);
            };
            let row = table.get(key.as_ref())?;
            Ok(row.map(|value| value.value().to_vec()))
        })
    }

    /// The rows of a table of the program's whose keys begin like this, in the order of their keys.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn scan(&self, table: &str, prefix: impl AsRef<[u8]>) -> Result<Vec<Row>, StoreError> {
        self.read(|transaction| {
            let Some(table) = bytes(transaction, &user(table))? else {
                return Ok(Vec::new());
            };
            let rows = first_with_prefix(&table, prefix.as_ref(), usize::MAX)?;
            Ok(rows.into_iter().collect())
        })
    }

    /// The mail of an account with higher numbers than this one, in order, at most so many.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn mail_of(
        &self,
        account: &str,
        after: u64,
        limit: usize,
    ) -> Result<Vec<KeptMail>, StoreError> {
        self.read(|transaction| {
            let numbers = numbers_of(transaction, &mail::SHELF, account, after, limit)?;
            shelved(transaction, &mail::SHELF, &numbers, mail::decode)
        })
    }

    /// The mail of all accounts with higher numbers than this one, in order, at most so many.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn mail(&self, after: u64, limit: usize) -> Result<Vec<KeptMail>, StoreError> {
        self.read(|transaction| page(transaction, &mail::SHELF, after, limit, mail::decode))
    }

    /// The mail of this number.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn mail_numbered(&self, number: u64) -> Result<Option<KeptMail>, StoreError> {
        self.read(|transaction| {
            Ok(shelved(transaction, &mail::SHELF, &[number], mail::decode)?.pop())
        })
    }

    /// The dead letters with higher numbers than this one, in order, at most so many.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn dead_letters(
        &self,
        after: u64,
        limit: usize,
    ) -> Result<Vec<KeptDeadLetter>, StoreError> {
        let shelf = &dead_letters::SHELF;
        self.read(|transaction| page(transaction, shelf, after, limit, dead_letters::decode))
    }

    /// The dead letter of this number.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn dead_letter(&self, number: u64) -> Result<Option<KeptDeadLetter>, StoreError> {
        let shelf = &dead_letters::SHELF;
        self.read(|transaction| {
            Ok(shelved(transaction, shelf, &[number], dead_letters::decode)?.pop())
        })
    }

    /// The entries of the journal with higher numbers than this one, in order, at most so many.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn journal(&self, after: u64, limit: usize) -> Result<Vec<JournalEntry>, StoreError> {
        self.read(|transaction| {
            let table = transaction.open_table(JOURNAL)?;
            let rows = table.range(after.saturating_add(1)..)?.take(limit);
            rows.map(|entry| {
                let (number, row) = entry?;
                journal::decode(number.value(), row.value())
            })
            .collect()
        })
    }

    fn read<T>(
        &self,
        read: impl FnOnce(&ReadTransaction) -> Result<T, Fault>,
    ) -> Result<T, StoreError> {
        let database = self.shared.database()?;
        let result = database
            .begin_read()
            .map_err(Fault::from)
            .and_then(|transaction| read(&transaction));
        result.map_err(|fault| fault.in_file(&self.shared.name))
    }
}

fn user(table: &str) -> TableName {
    TableName::User(table.to_owned().into())
}

/// A table; `None` before its first row.
fn bytes(transaction: &ReadTransaction, name: &TableName) -> Result<Option<Bytes>, Fault> {
    match transaction.open_table(ByteTableDefinition::new(&name.in_database())) {
        Ok(table) => Ok(Some(table)),
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn numbers_of(
    transaction: &ReadTransaction,
    shelf: &Shelf,
    account: &str,
    after: u64,
    limit: usize,
) -> Result<Vec<u64>, Fault> {
    let Some(table) = bytes(transaction, &own(shelf.of_account))? else {
        return Ok(Vec::new());
    };
    let from = shelf::of_account(account, after.saturating_add(1));
    let to = shelf::of_account(account, u64::MAX);
    let keys = table.range(from.as_slice()..=to.as_slice())?.take(limit);
    keys.map(|entry| shelf::number_at_end(shelf.of_account, entry?.0.value()))
        .collect()
}

type Decode<T> = fn(u64, Box<str>, &[u8]) -> Result<T, Fault>;

fn shelved<T>(
    transaction: &ReadTransaction,
    shelf: &Shelf,
    numbers: &[u64],
    decode: Decode<T>,
) -> Result<Vec<T>, Fault> {
    let Some(table) = bytes(transaction, &own(shelf.rows))? else {
        return Ok(Vec::new());
    };
    let mut found = Vec::with_capacity(numbers.len());
    for number in numbers {
        if let Some(row) = table.get(number.to_be_bytes().as_slice())? {
            let shelved = shelf::decode(shelf.rows, row.value())?;
            found.push(decode(*number, shelved.account, &shelved.content)?);
        }
    }
    Ok(found)
}

fn page<T>(
    transaction: &ReadTransaction,
    shelf: &Shelf,
    after: u64,
    limit: usize,
    decode: Decode<T>,
) -> Result<Vec<T>, Fault> {
    let Some(table) = bytes(transaction, &own(shelf.rows))? else {
        return Ok(Vec::new());
    };
    let from = after.saturating_add(1).to_be_bytes();
    let rows = table.range(from.as_slice()..)?.take(limit);
    rows.map(|entry| {
        let (key, row) = entry?;
        let number = shelf::number_at_end(shelf.rows, key.value())?;
        let shelved = shelf::decode(shelf.rows, row.value())?;
        decode(number, shelved.account, &shelved.content)
    })
    .collect()
}
