//! How long reading and writing one message takes here.
//!
//! `cargo run --release -p migration-ipc-protocol --example codec_speed`
//!
//! Each line is the fastest of many batches, so what else the machine does matters little. The
//! message is a `BACKUP_PROGRESS` of about 330 bytes.
#![expect(clippy::print_stdout, reason = "the table is what this program is for")]

use std::error::Error;
use std::hint::black_box;
use std::time::{Duration, Instant};

use migration_ipc_protocol::messages::{BackupProgress, Category, Percent};
use migration_ipc_protocol::{
    Envelope, EnvelopeHead, FrameDecoder, MessageId, MessagePayload, MessageSerializer, Timestamp,
};

const BATCHES: u32 = 200;
const CALLS: u32 = 5_000;

fn main() -> Result<(), Box<dyn Error>> {
    let id = MessageId::new("0190163d-8694-739b-aea5-966c26f8ad91")?;
    let time: Timestamp = "2024-06-14T09:30:12.3456789Z".parse()?;
    let head = EnvelopeHead::new(&id, BackupProgress::TYPE, time);
    let progress = BackupProgress::new(
        "S-1-5-21-3623811015-3361044348-30300820-1013",
        Category::Files,
        Percent::of(1, 3),
        123_456_789,
        370_370_367,
    )
    .with_current_file(r"C:\Users\alice\Documents\Projects\2024\report-final.docx");

    let mut frame = Vec::new();
    MessageSerializer::encode(&mut frame, head, &progress)?;
    let body = &frame[4..];
    println!("body of {} bytes", body.len());

    measure("frame: decode in place", || {
        let mut decoder = FrameDecoder::new();
        decoder
            .decode(&mut black_box(frame.as_slice()))
            .map(|body| body.map(<[u8]>::len))
    });
    measure("envelope: parse", || {
        Envelope::parse(black_box(body)).map(|envelope| envelope.id)
    });
    measure("envelope and payload: decode", || {
        let envelope = Envelope::parse(black_box(body)).ok()?;
        envelope.payload::<BackupProgress>().ok()
    });
    let mut out = Vec::with_capacity(1024);
    measure("message: encode into a reused vector", || {
        out.clear();
        MessageSerializer::encode(&mut out, black_box(head), black_box(&progress)).is_ok()
    });
    measure("id: read", || {
        MessageId::new(black_box("0190163d-8694-739b-aea5-966c26f8ad91"))
    });
    measure("time: read", || {
        black_box("2024-06-14T09:30:12.3456789Z").parse::<Timestamp>()
    });
    let mut text = String::with_capacity(64);
    measure("time: write", || {
        use std::fmt::Write;
        text.clear();
        write!(text, "{}", black_box(time))
    });
    Ok(())
}

/// Prints the nanoseconds per call of the fastest batch.
fn measure<R>(name: &str, mut call: impl FnMut() -> R) {
    let mut batch = || {
        let start = Instant::now();
        for _ in 0..CALLS {
            black_box(call());
        }
        start.elapsed()
    };
    let fastest = (0..BATCHES)
        .map(|_| batch())
        .min()
        .unwrap_or(Duration::ZERO);
    println!(
        "{:>8.1} ns  {name}",
        fastest.as_secs_f64() * 1e9 / f64::from(CALLS)
    );
}
