//! Numbered rows that belong to accounts, counted and bounded for each: mail and dead letters.

use super::effects::Refusal;
use super::error::Fault;
use super::rows::Rows;
use super::tables::TableName;

/// The tables of one kind of rows. Numbers rise over all accounts and are never used again.
#[derive(Debug)]
pub(super) struct Shelf {
    /// Number to account and content.
    pub(super) rows: &'static str,
    /// Account and number to nothing.
    pub(super) of_account: &'static str,
    /// Account to [`Load`]; the empty key to the last number that was used.
    pub(super) meters: &'static str,
}

/// How much of an account there is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Load {
    pub(super) rows: u64,
    pub(super) bytes: u64,
}

/// A row of an account.
#[derive(Debug)]
pub(super) struct Shelved {
    pub(super) account: Box<str>,
    pub(super) content: Vec<u8>,
}

impl Shelf {
    pub(super) fn put(
        &self,
        rows: &mut Rows<'_>,
        account: &str,
        content: &[u8],
    ) -> Result<u64, Refusal> {
        let last = self.meter(rows, "")?.rows;
        let number = last + 1;
        self.set_meter(
            rows,
            "",
            Load {
                rows: number,
                bytes: 0,
            },
        );
        let row = encode(account, content);
        let load = self.load(rows, account)?;
        let load = Load {
            rows: load.rows + 1,
            bytes: load.bytes + row.len() as u64,
        };
        self.set_meter(rows, account, load);
        rows.write(own(self.rows), number.to_be_bytes().into(), Some(row));
        rows.write(
            own(self.of_account),
            of_account(account, number),
            Some(Vec::new()),
        );
        Ok(number)
    }

    pub(super) fn take(
        &self,
        rows: &mut Rows<'_>,
        number: u64,
    ) -> Result<Option<Shelved>, Refusal> {
        let key = number.to_be_bytes();
        let Some(row) = rows.read(&own(self.rows), &key)? else {
            return Ok(None);
        };
        let shelved = decode(self.rows, &row).map_err(|fault| rows.fail(fault))?;
        let load = self.load(rows, &shelved.account)?;
        let load = Load {
            rows: load.rows.saturating_sub(1),
            bytes: load.bytes.saturating_sub(row.len() as u64),
        };
        self.set_meter(rows, &shelved.account, load);
        rows.write(own(self.rows), key.into(), None);
        rows.write(
            own(self.of_account),
            of_account(&shelved.account, number),
            None,
        );
        Ok(Some(shelved))
    }

    /// How much of an account there is.
    pub(super) fn load(&self, rows: &mut Rows<'_>, account: &str) -> Result<Load, Refusal> {
        self.meter(rows, account)
    }

    /// The lowest number of an account.
    pub(super) fn oldest(
        &self,
        rows: &mut Rows<'_>,
        account: &str,
    ) -> Result<Option<u64>, Refusal> {
        let first = rows.read_prefix(&own(self.of_account), &account_prefix(account), 1)?;
        let number = first
            .first()
            .map(|(key, _)| number_at_end(self.of_account, key));
        number.transpose().map_err(|fault| rows.fail(fault))
    }

    fn meter(&self, rows: &mut Rows<'_>, account: &str) -> Result<Load, Refusal> {
        let Some(bytes) = rows.read(&own(self.meters), account.as_bytes())? else {
            return Ok(Load::default());
        };
        let words = match bytes.as_chunks::<8>() {
            ([rows, bytes], []) => [*rows, *bytes].map(u64::from_be_bytes),
            _ => return Err(rows.fail(Fault::row(self.meters, &"no two numbers"))),
        };
        let [rows, bytes] = words;
        Ok(Load { rows, bytes })
    }

    fn set_meter(&self, rows: &mut Rows<'_>, account: &str, load: Load) {
        let words = [load.rows, load.bytes].map(u64::to_be_bytes);
        let value = (load.rows > 0).then(|| words.concat());
        rows.write(own(self.meters), account.as_bytes().to_vec(), value);
    }
}

/// The content of a row, and whose it is.
pub(super) fn decode(table: &str, row: &[u8]) -> Result<Shelved, Fault> {
    let parts = row
        .split_first_chunk::<2>()
        .and_then(|(length, rest)| rest.split_at_checked(usize::from(u16::from_be_bytes(*length))));
    let account = parts.and_then(|(account, _)| str::from_utf8(account).ok());
    match (account, parts) {
        (Some(account), Some((_, content))) => Ok(Shelved {
            account: account.into(),
            content: content.to_vec(),
        }),
        _ => Err(Fault::row(table, &"no account")),
    }
}

fn encode(account: &str, content: &[u8]) -> Vec<u8> {
    let mut row = account_prefix(account);
    row.extend_from_slice(content);
    row
}

/// What the keys of an account begin with. Its length comes first, so that no account's keys lie
/// between those of another.
pub(super) fn account_prefix(account: &str) -> Vec<u8> {
    let length = u16::try_from(account.len()).unwrap_or(u16::MAX);
    [&length.to_be_bytes(), account.as_bytes()].concat()
}

pub(super) fn of_account(account: &str, number: u64) -> Vec<u8> {
    let mut key = account_prefix(account);
    key.extend_from_slice(&number.to_be_bytes());
    key
}

pub(super) fn number_at_end(table: &str, key: &[u8]) -> Result<u64, Fault> {
    let number = key.last_chunk::<8>().copied().map(u64::from_be_bytes);
    number.ok_or_else(|| Fault::row(table, &"no number"))
}

pub(super) fn own(name: &'static str) -> TableName {
    TableName::Own(name)
}
