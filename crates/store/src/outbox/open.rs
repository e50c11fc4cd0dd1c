//! Opens a log.

use std::collections::BTreeSet;
use std::sync::Arc;

use migration_ipc_protocol::OutboxId;
use tracing::warn;

use crate::disk::Disk;
use crate::planted::{PlantedBug, is_planted};

use super::chain::{Chain, find, set_aside_unusable};
use super::damage;
use super::error::OutboxError;
use super::format::RECORD_HEADER_LEN;
use super::limits::MAX_SEQ;
use super::log::{Outbox, OutboxOptions};
use super::report::{OpenReport, OutboxIdentity};
use super::salvage::{Salvage, write_back};
use super::sync::{Batch, Tail};

pub(super) fn open(
    disk: Arc<dyn Disk>,
    options: OutboxOptions,
    fresh: OutboxId,
) -> Result<(Outbox, OpenReport), OutboxError> {
    let mut candidates = find(&*disk)?;
    let last_segment = candidates.last().map_or(0, |candidate| candidate.number);
    let set_aside = set_aside_unusable(&*disk, &mut candidates)?;
    let known = candidates.iter().rev().find_map(|one| one.header.good());
    let identity = match known {
        Some(_) => OutboxIdentity::Found,
        None if candidates.iter().all(|one| one.len == 0) => OutboxIdentity::New,
        None => OutboxIdentity::Lost,
    };
    let id = known.map_or(fresh, |header| header.id);

    let chain = Chain::follow(candidates);
    let mut salvage = Salvage::new(&*disk, id, chain.missing);
    let newest = chain.valid.len().saturating_sub(1);
    for (place, link) in chain.valid.into_iter().enumerate() {
        salvage.take(link, place == newest)?;
    }
    let report = OpenReport {
        identity,
        waiting: salvage.index.len(),
        damaged: salvage.damaged,
        set_aside,
    };
    let skipped = salvage.lost_bytes.div_ceil(RECORD_HEADER_LEN as u64);
    let unfinished = salvage.unfinished;
    let mut outbox = Outbox {
        id,
        options,
        index: salvage.index,
        settling: BTreeSet::new(),
        void: salvage.void,
        batch: Batch::default(),
        next: salvage.next.saturating_add(skipped).min(MAX_SEQ + 1),
        durable_next: salvage.next,
        tail: salvage.tail,
        last_segment,
        doomed: chain.void,
        disk,
    };
    if is_planted(PlantedBug::NumbersReused) {
        outbox.next = outbox.waiting().last().unwrap_or(0) + 1;
        outbox.durable_next = outbox.next;
    }
    // The names, too, may be such as only this machine's memory knows so far.
    outbox
        .disk
        .sync()
        .map_err(OutboxError::disk("sync the names of", "the outbox"))?;
    outbox.remove_doomed();
    go_on(&mut outbox, unfinished)?;
    if !report.damaged.is_empty() {
        damage::forget_oldest(&*outbox.disk);
    }
    Ok((outbox, report))
}

/// Begins a segment when there is none, because the id has to last from now on; and when the newest
/// is damaged, because nothing else tells the numbers to skip, and what is void, once the damage is
/// gone. Only then is it mended.
fn go_on(outbox: &mut Outbox, unfinished: Vec<(u64, Vec<u8>)>) -> Result<(), OutboxError> {
    let is_new = outbox.index.newest().is_none();
    if outbox.tail == Tail::Sound && !is_new {
        return Ok(());
    }
    match outbox.begin_segment(&[]) {
        Ok(()) => {}
        Err(error) if error.is_full() && !is_new => {
            warn!(%error, "the outbox can be read, and not written to");
            return Ok(());
        }
        Err(error) => return Err(error),
    }
    for (number, bytes) in unfinished {
        match write_back(&outbox.index, number, &bytes) {
            Err(error) if error.is_full() => warn!(%error, "the outbox stays damaged"),
            result => result?,
        }
    }
    Ok(())
}
