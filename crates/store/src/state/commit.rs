//! One commit: many messages, one transaction.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use migration_ipc_protocol::messages::ErrorCode;
use redb::{Database, ReadableTable, WriteTransaction};

use super::effects::{Change, Effects, Ending, Origin, Refusal, Work};
use super::error::Fault;
use super::rows::{Rows, Tables};
use super::tables::{JOURNAL, LEDGER, LedgerTable, OUTCOMES, OutcomesTable, TableName};
use super::{dead_letters, journal, mail};
use crate::ledger::{
    Known, LedgerRow, MAX_REPLY, Numbered, OutboxKey, SharedBook, Slot, StoredOutcome, Ticket,
    Window,
};
use crate::planted::{PlantedBug, is_planted};

/// Stores the works and returns their outcomes, in order. On an error nothing has changed in
/// memory, the tickets are put off, and what is on the disk is all of it or nothing.
pub(super) fn commit(
    database: &Database,
    book: &SharedBook,
    journal: Option<u64>,
    works: impl Iterator<Item = Work>,
) -> Result<Vec<StoredOutcome>, Fault> {
    let transaction = begin(database)?;
    let mut batch = Batch::new(book);
    let mut tables = Tables::new(&transaction);
    let mut outcomes = Vec::new();
    for work in works {
        outcomes.push(batch.add(&transaction, &mut tables, work)?);
    }
    drop(tables);
    let forgotten = batch.write(&transaction, journal)?;
    transaction.commit()?;
    batch.settle(forgotten);
    Ok(outcomes)
}

/// Begins a transaction whose commit has two phases: what it wrote is on the disk before it counts.
/// So a commit that counts and cannot be read is damage, and never taken for a torn one.
pub(super) fn begin(database: &Database) -> Result<WriteTransaction, Fault> {
    let mut transaction = database.begin_write()?;
    transaction.set_two_phase_commit(true);
    Ok(transaction)
}

/// What one commit changes beside the effects.
struct Batch<'book> {
    book: &'book SharedBook,
    /// The outboxes of the works, with what this commit adds to them.
    outboxes: BTreeMap<OutboxKey, Touched>,
    journal: Vec<Vec<u8>>,
    /// The tickets of what is done, until it is stored. Dropped before, they put the messages off.
    tickets: Vec<Ticket>,
}

impl<'book> Batch<'book> {
    fn new(book: &'book SharedBook) -> Self {
        Self {
            book,
            outboxes: BTreeMap::new(),
            journal: Vec::new(),
            tickets: Vec::new(),
        }
    }

    fn add(
        &mut self,
        transaction: &WriteTransaction,
        tables: &mut Tables<'_>,
        work: Work,
    ) -> Result<StoredOutcome, Fault> {
        let Work {
            ticket,
            effects,
            origin,
        } = work;
        if let Some(durable) = &ticket
            && let Some(outcome) = self.precluded(transaction, durable)?
        {
            if !outcome.is_put_off() {
                self.tickets.extend(ticket);
            }
            return Ok(outcome);
        }
        let outcome = apply(tables, effects, ticket.as_ref().and(origin.as_ref()))?;
        if outcome.is_put_off() {
            return Ok(outcome);
        }
        if let Some(origin) = &origin {
            self.journal.push(journal::row(origin, &outcome)?);
        }
        if let Some(ticket) = ticket {
            self.note(&ticket, &outcome);
            self.tickets.push(ticket);
        }
        Ok(outcome)
    }

    /// The outcome of a message whose effects must not be stored: it is done, as it turned out when
    /// the database was opened again after a failure; or one of its stream that was put off
    /// meanwhile comes first.
    fn precluded(
        &mut self,
        transaction: &WriteTransaction,
        ticket: &Ticket,
    ) -> Result<Option<StoredOutcome>, Fault> {
        let Numbered { key, stream, seq } = ticket.message();
        let Some(row) = self.outbox(key) else {
            return Ok(Some(put_off("its outbox is forgotten")));
        };
        match row.window.look_up(*seq) {
            Known::Handled => Ok(Some(StoredOutcome::Handled)),
            Known::Kept => {
                let outcomes = transaction.open_table(OUTCOMES)?;
                let json = outcomes.get((row.slot.0, *seq))?;
                let json = json.ok_or_else(|| Fault::row("outcomes", &"an outcome is missing"))?;
                let outcome = serde_json::from_slice(json.value());
                outcome
                    .map(Some)
                    .map_err(|error| Fault::row("outcomes", &error))
            }
            Known::Open => {
                let window = &row.window.clone();
                let has_turn = self.book.lock().has_turn(key, stream, *seq, window);
                Ok((!has_turn).then(|| put_off("an earlier message of its stream was put off")))
            }
        }
    }

    fn outbox(&mut self, key: &OutboxKey) -> Option<&mut Touched> {
        if !self.outboxes.contains_key(key) {
            let row = self.book.lock().row(key)?;
            self.outboxes.insert(key.clone(), Touched::from(row));
        }
        self.outboxes.get_mut(key)
    }

    fn note(&mut self, ticket: &Ticket, outcome: &StoredOutcome) {
        let Numbered { key, seq, .. } = ticket.message();
        let Some(outbox) = self.outbox(key) else {
            return;
        };
        let is_kept = *outcome != StoredOutcome::Handled && !is_planted(PlantedBug::LostReply);
        outbox.window.insert(*seq, is_kept);
        if is_kept {
            outbox.kept.push((*seq, outcome.clone()));
        }
    }

    /// Writes all but the effects. Returns how many forgotten outboxes were removed.
    fn write(&self, transaction: &WriteTransaction, journal: Option<u64>) -> Result<usize, Fault> {
        let forgotten = self.book.lock().forgotten().to_vec();
        if !forgotten.is_empty() || !self.outboxes.is_empty() {
            let mut ledger = transaction.open_table(LEDGER)?;
            let mut outcomes = transaction.open_table(OUTCOMES)?;
            for (key, slot) in &forgotten {
                ledger.remove((&*key.account, *key.outbox.as_bytes()))?;
                outcomes.retain_in((slot.0, 0)..=(slot.0, u64::MAX), |_, _| false)?;
            }
            for (key, outbox) in &self.outboxes {
                outbox.write(key, &mut ledger, &mut outcomes)?;
            }
        }
        if let (Some(newest), false) = (journal, self.journal.is_empty()) {
            journal::append(&mut transaction.open_table(JOURNAL)?, &self.journal, newest)?;
        }
        Ok(forgotten.len())
    }

    /// Everything is stored: so it is done.
    fn settle(self, forgotten: usize) {
        let mut book = self.book.lock();
        book.removed(forgotten);
        for (key, outbox) in self.outboxes {
            book.stored(&key, outbox.window);
        }
        for ticket in self.tickets {
            ticket.done(&mut book);
        }
    }
}

/// An outbox in a commit.
struct Touched {
    slot: Slot,
    used: u64,
    /// The numbers up to this one were settled before.
    floor: u64,
    window: Window,
    /// Outcomes to keep.
    kept: Vec<(u64, StoredOutcome)>,
}

impl From<LedgerRow> for Touched {
    fn from(row: LedgerRow) -> Self {
        Self {
            slot: row.slot,
            used: row.used,
            floor: row.window.floor(),
            window: row.window,
            kept: Vec::new(),
        }
    }
}

impl Touched {
    fn write(
        &self,
        key: &OutboxKey,
        ledger: &mut LedgerTable<'_>,
        outcomes: &mut OutcomesTable<'_>,
    ) -> Result<(), Fault> {
        let slot = self.slot.0;
        for (seq, outcome) in &self.kept {
            let json = serde_json::to_vec(outcome).map_err(Fault::Json)?;
            outcomes.insert((slot, *seq), json.as_slice())?;
        }
        let floor = self.window.floor();
        if floor > self.floor {
            outcomes.retain_in((slot, 0)..=(slot, floor), |_, _| false)?;
        }
        let window = self.window.encode();
        let id = *key.outbox.as_bytes();
        ledger.insert((&*key.account, id), (slot, self.used, window.as_slice()))?;
        Ok(())
    }
}

/// Applies the effects of one work, or none of them; then how it ended is a rejection.
///
/// `durable` is where a durable message came from: rejected, it becomes a dead letter.
fn apply(
    tables: &mut Tables<'_>,
    effects: Effects,
    durable: Option<&Origin>,
) -> Result<StoredOutcome, Fault> {
    let mut rows = Rows::new(tables);
    let result = run(&mut rows, effects);
    let changes = rows.finish()?;
    let outcome = match result {
        Ok(outcome) if outcome.is_put_off() => return Ok(outcome),
        Ok(outcome) => {
            tables.apply(changes)?;
            outcome
        }
        Err(refusal) => StoredOutcome::from(refusal),
    };
    if let StoredOutcome::Rejected { code, text } = &outcome
        && !code.is_retryable()
        && let Some(origin) = durable
    {
        let letter = dead_letters::of_rejected(origin.clone(), code.clone(), text.clone());
        let mut rows = Rows::new(tables);
        // It only fails with the commit.
        let _ = dead_letters::put(&mut rows, &letter);
        let changes = rows.finish()?;
        tables.apply(changes)?;
    }
    Ok(outcome)
}

fn run(rows: &mut Rows<'_>, effects: Effects) -> Result<StoredOutcome, Refusal> {
    for change in effects.changes {
        match change {
            Change::Put { table, key, value } => {
                rows.write(TableName::User(table), key, Some(value))
            }
            Change::Delete { table, key } => rows.write(TableName::User(table), key, None),
            // Its rows are dropped with the refusal, so that nothing half done remains.
            Change::Update(update) => catch_unwind(AssertUnwindSafe(|| update(rows)))
                .unwrap_or_else(|_| {
                    let text = "a change of the store panicked";
                    Err(Refusal::with_code(ErrorCode::HandlerPanicked, text))
                })?,
            Change::Mail { account, mail } => mail::put(rows, &account, &mail)?,
            Change::DropMail(number) => drop(mail::take(rows, number)?),
            Change::DeadLetter(letter) => dead_letters::put(rows, &letter)?,
            Change::TakeDeadLetter(number) => dead_letters::take(rows, number)?,
        }
    }
    match effects.ending {
        Ending::Handled => Ok(StoredOutcome::Handled),
        Ending::Replied { payload, .. } if payload.len() > MAX_REPLY => Err(Refusal::new(format!(
            "a reply of {} bytes is over the limit of {MAX_REPLY}",
            payload.len()
        ))),
        Ending::Replied {
            message_type,
            payload,
        } => Ok(StoredOutcome::Replied {
            message_type,
            payload,
        }),
        Ending::Rejected(refusal) => Ok(StoredOutcome::from(refusal)),
    }
}

fn put_off(why: &str) -> StoredOutcome {
    Refusal::with_code(ErrorCode::Busy, why).into()
}
