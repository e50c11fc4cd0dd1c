//! Rows within a commit: the changes of one message over what is in the transaction.

use std::collections::BTreeMap;
use std::fmt;

use migration_ipc_protocol::messages::ErrorCode;
use redb::{ReadableTable, WriteTransaction};

use super::effects::Refusal;
use super::error::Fault;
use super::tables::{ByteTable, ByteTableDefinition, TableName};

/// The open tables of a transaction.
pub(super) struct Tables<'txn> {
    transaction: &'txn WriteTransaction,
    open: BTreeMap<TableName, ByteTable<'txn>>,
}

impl<'txn> Tables<'txn> {
    pub(super) fn new(transaction: &'txn WriteTransaction) -> Self {
        Self {
            transaction,
            open: BTreeMap::new(),
        }
    }

    fn table(&mut self, name: &TableName) -> Result<&mut ByteTable<'txn>, Fault> {
        if !self.open.contains_key(name) {
            let in_database = name.in_database();
            let table = self
                .transaction
                .open_table(ByteTableDefinition::new(&in_database))?;
            self.open.insert(name.clone(), table);
        }
        self.open
            .get_mut(name)
            .ok_or_else(|| Fault::row(&name.in_database(), &"the table is gone"))
    }

    /// Applies what one message changed.
    pub(super) fn apply(&mut self, changes: Changes) -> Result<(), Fault> {
        for (name, rows) in changes.0 {
            let table = self.table(&name)?;
            for (key, value) in rows {
                match value {
                    Some(value) => drop(table.insert(key.as_slice(), value.as_slice())?),
                    None => drop(table.remove(key.as_slice())?),
                }
            }
        }
        Ok(())
    }
}

/// Where the rows are that a message did not change.
pub(super) trait Source: fmt::Debug {
    fn get(&mut self, table: &TableName, key: &[u8]) -> Result<Option<Vec<u8>>, Fault>;

    /// The first rows, up to a limit, whose keys begin like this.
    fn with_prefix(
        &mut self,
        table: &TableName,
        prefix: &[u8],
        limit: usize,
    ) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, Fault>;
}

impl Source for Tables<'_> {
    fn get(&mut self, table: &TableName, key: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        let row = self.table(table)?.get(key)?;
        Ok(row.map(|value| value.value().to_vec()))
    }

    fn with_prefix(
        &mut self,
        table: &TableName,
        prefix: &[u8],
        limit: usize,
    ) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, Fault> {
        first_with_prefix(self.table(table)?, prefix, limit)
    }
}

/// The key and the value of a row.
pub type Row = (Vec<u8>, Vec<u8>);

/// Rows that one message changed, and not yet in the transaction. `None` for a removed one.
#[derive(Debug, Default)]
pub(super) struct Changes(BTreeMap<TableName, BTreeMap<Vec<u8>, Option<Vec<u8>>>>);

/// The rows of the store as one message sees them: what was committed, the effects of the messages
/// before it in the same commit, and its own so far.
#[derive(Debug)]
pub struct Rows<'commit> {
    source: &'commit mut (dyn Source + 'commit),
    changes: Changes,
    /// The database's failure, because of which the whole commit is to fail.
    fault: Option<Fault>,
}

impl<'commit> Rows<'commit> {
    pub(super) fn new(source: &'commit mut (dyn Source + 'commit)) -> Self {
        Self {
            source,
            changes: Changes::default(),
            fault: None,
        }
    }

    /// The row of a table of the program's.
    ///
    /// # Errors
    /// When the disk fails. The commit fails then, whatever the caller makes of it.
    pub fn get(&mut self, table: &str, key: impl AsRef<[u8]>) -> Result<Option<Vec<u8>>, Refusal> {
        self.read(&user(table), key.as_ref())
    }

    /// Puts a row into a table of the program's, instead of one with the same key.
    pub fn put(&mut self, table: &str, key: impl AsRef<[u8]>, value: impl Into<Vec<u8>>) {
        self.write(user(table), key.as_ref().to_vec(), Some(value.into()));
    }

    /// Removes a row, if it is there.
    pub fn delete(&mut self, table: &str, key: impl AsRef<[u8]>) {
        self.write(user(table), key.as_ref().to_vec(), None);
    }

    /// The rows of a table of the program's whose keys begin like this, in the order of their keys.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn scan(&mut self, table: &str, prefix: impl AsRef<[u8]>) -> Result<Vec<Row>, Refusal> {
        self.read_prefix(&user(table), prefix.as_ref(), usize::MAX)
    }

    pub(super) fn read(
        &mut self,
        table: &TableName,
        key: &[u8],
    ) -> Result<Option<Vec<u8>>, Refusal> {
        if let Some(changed) = self.changes.0.get(table).and_then(|rows| rows.get(key)) {
            return Ok(changed.clone());
        }
        let stored = self.source.get(table, key);
        self.or_fail(stored)
    }

    pub(super) fn write(&mut self, table: TableName, key: Vec<u8>, value: Option<Vec<u8>>) {
        self.changes.0.entry(table).or_default().insert(key, value);
    }

    /// The first rows, up to a limit, whose keys begin like this.
    pub(super) fn read_prefix(
        &mut self,
        table: &TableName,
        prefix: &[u8],
        limit: usize,
    ) -> Result<Vec<Row>, Refusal> {
        let changed = self.changes.0.get(table);
        let removed = changed.map_or(0, |rows| {
            let rows = rows.range(prefix.to_vec()..);
            rows.filter(|(_, value)| value.is_none()).count()
        });
        let limit_stored = limit.saturating_add(removed);
        let stored = self.source.with_prefix(table, prefix, limit_stored);
        let mut rows = self.or_fail(stored)?;
        let changed = self.changes.0.get(table).into_iter();
        let changed = changed.flat_map(|rows| rows.range(prefix.to_vec()..));
        for (key, value) in changed.take_while(|(key, _)| key.starts_with(prefix)) {
            match value {
                Some(value) => drop(rows.insert(key.clone(), value.clone())),
                None => drop(rows.remove(key)),
            }
        }
        Ok(rows.into_iter().take(limit).collect())
    }

    pub(super) fn fail(&mut self, fault: Fault) -> Refusal {
        self.fault.get_or_insert(fault);
        Refusal::with_code(ErrorCode::Busy, "the store failed")
    }

    /// What is to be applied, or why the commit fails.
    pub(super) fn finish(self) -> Result<Changes, Fault> {
        match self.fault {
            None => Ok(self.changes),
            Some(fault) => Err(fault),
        }
    }

    fn or_fail<T>(&mut self, result: Result<T, Fault>) -> Result<T, Refusal> {
        result.map_err(|fault| self.fail(fault))
    }
}

impl fmt::Debug for Tables<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.open.keys()).finish()
    }
}

fn user(table: &str) -> TableName {
    TableName::User(table.to_owned().into())
}

/// The first rows, up to a limit, whose keys begin like this.
pub(super) fn first_with_prefix(
    table: &impl ReadableTable<&'static [u8], &'static [u8]>,
    prefix: &[u8],
    limit: usize,
) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, Fault> {
    let mut rows = BTreeMap::new();
    for entry in table.range(prefix..)?.take(limit) {
        let (key, value) = entry?;
        if !key.value().starts_with(prefix) {
            break;
        }
        rows.insert(key.value().to_vec(), value.value().to_vec());
    }
    Ok(rows)
}
