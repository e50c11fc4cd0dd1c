//! The files of an outbox, made up or damaged: opening never panics, keeps everything that is intact,
//! takes nothing for a message that was none, and reports what adds up; opened again it is the same.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use migration_ipc_protocol::OutboxId;
use migration_ipc_store::disk::Disk;
use migration_ipc_store::outbox::{MAX_SEQ, OpenReport, Outbox, OutboxError, OutboxOptions};
use migration_ipc_testkit::disk::SimDisk;

use crate::input::Input;

const ID: OutboxId = OutboxId::from_bytes([7; 16]);

/// Bytes of both headers of a segment, and of a record's header.
const HEADERS: usize = 128;
const RECORD_HEADER: usize = 24;

/// The most changes of one run. To forge a record takes nine bytes at the right places, its two
/// checksums among them; with fewer, what is not as it was written is damage.
const MAX_CHANGES: usize = 6;

mod subject {
    use super::{Arc, Disk, ID, OpenReport, Outbox, OutboxError, OutboxOptions, SimDisk};

    #[cfg(not(feature = "planted"))]
    pub(super) fn open(disk: &SimDisk) -> Result<(Outbox, OpenReport), OutboxError> {
        open_here(disk)
    }

    /// Trusts each record, whatever its checksums say.
    #[cfg(feature = "planted")]
    pub(super) fn open(disk: &SimDisk) -> Result<(Outbox, OpenReport), OutboxError> {
        use super::{HEADERS, RECORD_HEADER};

        for (name, _) in disk.files() {
            let (Some(number), Some(mut bytes)) = (segment(&name), disk.content(&name)) else {
                continue;
            };
            let mut at = HEADERS;
            while let Some(header) = bytes.get(at..at + RECORD_HEADER) {
                let length = u32::from_le_bytes(header[8..12].try_into().expect("4 bytes"));
                let end = at + RECORD_HEADER + length as usize;
                let Some(body) = bytes.get(at + RECORD_HEADER..end) else {
                    break;
                };
                let body = crc32fast::hash(body).to_le_bytes();
                bytes[at + 4..at + 8].copy_from_slice(&body);
                let mut place = number.to_le_bytes().to_vec();
                place.extend_from_slice(&(at as u64).to_le_bytes());
                place.extend_from_slice(&bytes[at + 4..at + RECORD_HEADER]);
                let place = crc32fast::hash(&place).to_le_bytes();
                bytes[at..at + 4].copy_from_slice(&place);
                at = end;
            }
            disk.put(&name, &bytes);
        }
        open_here(disk)
    }

    #[cfg(feature = "planted")]
    fn segment(name: &str) -> Option<u64> {
        let digits = name.strip_prefix("outbox-")?.strip_suffix(".log")?;
        u64::from_str_radix(digits, 16).ok()
    }

    fn open_here(disk: &SimDisk) -> Result<(Outbox, OpenReport), OutboxError> {
        let options = OutboxOptions::default().segment_bytes(1024);
        let disk: Arc<dyn Disk> = Arc::new(disk.clone());
        Outbox::open(disk, options, ID)
    }
}

/// The body of a message, which tells its number.
fn body(seq: u64) -> Vec<u8> {
    let length = 8 + usize::try_from(seq * 7 % 60).expect("a small number");
    let mut body = seq.to_le_bytes().to_vec();
    body.resize(
        length,
        b'a' + u8::try_from(seq % 26).expect("a small number"),
    );
    body
}

/// A log of several segments, as its owner left it.
struct Log {
    disk: SimDisk,
    waiting: Vec<u64>,
    highest: u64,
}

impl Log {
    /// Messages in batches of three, every second one a group, of which some are settled.
    fn new(batches: u64) -> Self {
        let disk = SimDisk::new(0);
        let (mut outbox, _) = subject::open(&disk).expect("an empty disk");
        for batch in 0..batches {
            let next = outbox.next_seq();
            let bodies = [next, next + 1, next + 2].map(body);
            if batch % 2 == 0 {
                outbox.append_all(&bodies).expect("room");
            } else {
                for body in &bodies {
                    outbox.append(body).expect("room");
                }
            }
            assert!(outbox.next_seq() <= 3 * batches + 1);
            if batch % 3 == 2 {
                let third = outbox.waiting().nth(2).expect("several wait");
                outbox.settle(third);
            }
            outbox.sync().expect("a good disk");
        }
        Self {
            waiting: outbox.waiting().collect(),
            highest: outbox.next_seq() - 1,
            disk,
        }
    }
}

thread_local! {
    static LOGS: [OnceCell<Log>; 3] = const { [OnceCell::new(), OnceCell::new(), OnceCell::new()] };
}

fn contents(outbox: &Outbox) -> BTreeMap<u64, Vec<u8>> {
    outbox
        .waiting()
        .map(|seq| (seq, outbox.read(seq).expect("what waits was checked")))
        .collect()
}

/// Checks what was found against itself.
fn check_report(disk: &SimDisk, outbox: &Outbox, report: &OpenReport) {
    let found = contents(outbox);
    assert_eq!(report.waiting, found.len());
    assert_eq!(outbox.waiting_messages(), found.len());
    let bytes: usize = found.values().map(Vec::len).sum();
    assert_eq!(outbox.waiting_bytes(), bytes as u64);
    assert!(found.keys().all(|seq| (1..=MAX_SEQ).contains(seq)));
    if let Some((highest, _)) = found.last_key_value() {
        assert!(outbox.next_seq() > *highest);
    }
    for damage in &report.damaged {
        assert!(damage.bytes > 0, "{damage:?}");
        if let Some(file) = &damage.kept_in {
            assert!(disk.content(file).is_some(), "{damage:?}");
        }
    }
    for set_aside in &report.set_aside {
        assert!(!set_aside.files.is_empty());
        for file in &set_aside.files {
            assert!(disk.content(file).is_some(), "{set_aside:?}");
        }
    }
}

/// Opens what there is, and once more after a power failure; gives what it holds.
fn open(disk: &SimDisk) -> BTreeMap<u64, Vec<u8>> {
    let (outbox, report) = match subject::open(disk) {
        Ok(opened) => opened,
        Err(error) => panic!("a disk without faults: {error}"),
    };
    check_report(disk, &outbox, &report);
    let (found, id) = (contents(&outbox), outbox.id());
    drop(outbox);

    disk.crash();
    let disk = disk.restart();
    let (mut outbox, report) = subject::open(&disk).expect("it was opened before");
    check_report(&disk, &outbox, &report);
    assert_eq!(contents(&outbox), found);
    assert_eq!(outbox.id(), id);
    assert!(report.set_aside.is_empty(), "{report:?}");
    match outbox.append(b"next") {
        Ok(seq) => {
            assert!(found.keys().all(|known| *known < seq));
            outbox.sync().expect("a good disk");
            assert_eq!(outbox.read(seq).expect("it is durable"), b"next");
        }
        Err(OutboxError::Exhausted) => {}
        Err(error) => panic!("{error}"),
    }
    found
}

/// Files of any content.
fn made_up(input: &mut Input<'_>) {
    let disk = SimDisk::new(0);
    for _ in 0..4 {
        if input.is_empty() {
            break;
        }
        let number = input.byte();
        let length = input.number();
        let name = format!("outbox-{number:016x}.log");
        disk.put(&name, input.bytes(length));
    }
    open(&disk);
}

/// Changes a file of a good log.
fn change(disk: &SimDisk, input: &mut Input<'_>) {
    let mut files = disk.files();
    files.retain(|(_, length)| *length > 0);
    if files.is_empty() {
        return;
    }
    let (name, length) = input.choose(&files);
    let mut bytes = disk.content(name).expect("it is there");
    let what = input.byte() % 8;
    let at = input.number() % length;
    let count = usize::from(input.byte()) + 1;
    let end = (at + count).min(*length);
    match what {
        0..4 => bytes[at] ^= input.byte().max(1),
        4 => bytes[at..end].fill(0),
        5 => {
            let to = input.number() % length;
            let stretch = bytes[at..end].to_vec();
            let end = (to + stretch.len()).min(*length);
            bytes[to..end].copy_from_slice(&stretch[..end - to]);
        }
        6 => bytes.truncate(at),
        _ => {
            disk.remove(name).expect("it is there");
            disk.sync().expect("a good disk");
            return;
        }
    }
    disk.put(name, &bytes);
}

/// What a record is of a group: alone, or the last message of one.
const ENDS: [u8; 2] = [0, 3];

/// The records of a segment as it was written, those of a group together: where they begin and end, and
/// which messages they are.
fn records(bytes: &[u8]) -> Vec<(usize, usize, Vec<u64>)> {
    let mut records: Vec<(usize, usize, Vec<u64>)> = Vec::new();
    let mut is_open = false;
    let mut at = HEADERS;
    while let Some(header) = bytes.get(at..at + RECORD_HEADER) {
        let length = u32::from_le_bytes(header[8..12].try_into().expect("4 bytes"));
        let seq = u64::from_le_bytes(header[16..24].try_into().expect("8 bytes"));
        let end = at + RECORD_HEADER + length as usize;
        match records.last_mut() {
            Some((_, ends, seqs)) if is_open => {
                *ends = end;
                seqs.push(seq);
            }
            _ => records.push((at, end, vec![seq])),
        }
        is_open = !ENDS.contains(&header[13]);
        at = end;
    }
    records
}

/// Messages whose records, those of their whole groups, and the headers of all segments are as they were
/// written.
fn intact(log: &Log, damaged: &SimDisk) -> Vec<u64> {
    let mut intact = Vec::new();
    for (name, _) in log.disk.files() {
        let before = log.disk.content(&name).expect("it is there");
        let Some(after) = damaged.content(&name) else {
            // Without the middle of a log nothing is promised of what follows.
            return Vec::new();
        };
        if after.get(..HEADERS) != before.get(..HEADERS) {
            return Vec::new();
        }
        let kept = |(start, end, _): &(usize, usize, Vec<u64>)| {
            after.get(*start..*end) == before.get(*start..*end)
        };
        let records = records(&before).into_iter().filter(kept);
        intact.extend(records.flat_map(|(_, _, seqs)| seqs));
    }
    intact.retain(|seq| log.waiting.contains(seq));
    intact
}

/// A good log with a few changes.
fn damaged(log: &Log, input: &mut Input<'_>) {
    let disk = log.disk.fork();
    for _ in 0..MAX_CHANGES {
        if input.is_empty() {
            break;
        }
        change(&disk, input);
    }
    let intact = intact(log, &disk);
    let found = open(&disk);
    for (seq, found) in &found {
        assert!(*seq <= log.highest, "message {seq} was never there");
        assert_eq!(*found, body(*seq), "message {seq} is wrong");
    }
    for seq in intact {
        assert!(found.contains_key(&seq), "message {seq} was intact");
    }
}

/// Which log, and what happens to it.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    match input.byte() % 8 {
        0 | 1 => made_up(&mut input),
        which => LOGS.with(|logs| {
            let which = usize::from(which % 3);
            let log = logs[which].get_or_init(|| Log::new([1, 6, 12][which]));
            damaged(log, &mut input);
        }),
    }
}

/// A few changes of each log, and the files of the smallest one.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for which in 2..5 {
        for what in 0..8 {
            let at = 150 + 60 * u16::from(what);
            let [low, high] = at.to_le_bytes();
            seeds.push(vec![
                which, 0, what, low, high, 40, 3, 1, what, 200, 0, 10, 7,
            ]);
        }
    }
    let log = Log::new(1);
    let mut files = vec![0];
    for (number, (name, _)) in (1..).zip(log.disk.files()) {
        let bytes = log.disk.content(&name).expect("it is there");
        let length = u16::try_from(bytes.len()).expect("a small file");
        files.push(number);
        files.extend_from_slice(&length.to_le_bytes());
        files.extend_from_slice(&bytes);
    }
    seeds.push(files);
    seeds
}
