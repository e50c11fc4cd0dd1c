//! What the system itself costs: blocking sockets, bytes of the usual length, no framing, no
//! parsing, no tasks. A round trip is one write and one read on each side, a stream is one write
//! for each message. Of durable messages, it is the log alone.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::Instant;

use anyhow::{Result, bail};

use crate::modes::{Mode, Task, with_latencies};
use crate::report::{Latencies, Meter, Report, as_f64, rounded};

/// Bytes of a message.
const MESSAGE: usize = 336;

/// How many messages share a sync in the log: what a sender with a group commit of a
/// moderate size gets.
const GROUP: u64 = 64;

/// Bytes of one read of a stream.
const READ: usize = 256 * 1024;

/// What a client says first.
const ROUND_TRIPS: u8 = b'A';
const STREAM: u8 = b'B';

/// Serves for ever: one thread for each client.
pub(crate) fn serve(listener: &UnixListener) -> Result<()> {
    loop {
        let (stream, _) = listener.accept()?;
        thread::spawn(move || serve_client(stream));
    }
}

fn serve_client(mut stream: UnixStream) -> Result<()> {
    let mut mode = [0];
    stream.read_exact(&mut mode)?;
    match mode[0] {
        ROUND_TRIPS => {
            let mut message = [0; MESSAGE];
            loop {
                stream.read_exact(&mut message)?;
                stream.write_all(&message)?;
            }
        }
        STREAM => {
            let mut length = [0; 8];
            stream.read_exact(&mut length)?;
            let mut left = u64::from_le_bytes(length);
            let mut buffer = vec![0; READ];
            while left > 0 {
                let read = stream.read(&mut buffer)?;
                if read == 0 {
                    bail!("the client is gone");
                }
                left = left.saturating_sub(u64::try_from(read)?);
            }
            stream.write_all(&[1])?;
            Ok(())
        }
        other => bail!("unexpected {other}"),
    }
}

/// Measures; `None` for modes that blocking sockets have no natural answer to.
pub(crate) fn measure(task: &Task) -> Result<Option<Report>> {
    let stream = UnixStream::connect(&task.endpoint)?;
    match task.mode {
        Mode::RoundTrip => round_trips(stream, task).map(Some),
        Mode::Stream => stream_messages(stream, task).map(Some),
        Mode::Window | Mode::FanIn | Mode::Broadcast => Ok(None),
        Mode::Durable => log(task.count).map(Some),
    }
}

fn round_trips(mut stream: UnixStream, task: &Task) -> Result<Report> {
    stream.write_all(&[ROUND_TRIPS])?;
    let mut message = [7; MESSAGE];
    let mut call = || {
        stream.write_all(&message)?;
        stream.read_exact(&mut message)
    };
    for _ in 0..task.count / 10 {
        call()?;
    }
    let mut latencies = Latencies::with_capacity(task.count);
    let meter = Meter::start(task.server);
    for _ in 0..task.count {
        let start = Instant::now();
        call()?;
        latencies.add(start.elapsed());
    }
    let report = meter.finish(task.count);
    Ok(with_latencies(report, latencies))
}

fn stream_messages(mut stream: UnixStream, task: &Task) -> Result<Report> {
    let length = task.count * u64::try_from(MESSAGE)?;
    stream.write_all(&[STREAM])?;
    stream.write_all(&length.to_le_bytes())?;
    let message = [7; MESSAGE];
    let meter = Meter::start(task.server);
    for _ in 0..task.count {
        stream.write_all(&message)?;
    }
    stream.read_exact(&mut [0])?;
    Ok(meter.finish(task.count))
}

/// Appends as many bytes to a file, [`GROUP`] messages to a sync, and does nothing else.
fn log(count: u64) -> Result<Report> {
    let group = vec![b'x'; MESSAGE * usize::try_from(GROUP)?];
    let mut file = tempfile::tempfile()?;
    let meter = Meter::start(None);
    let groups = count.div_ceil(GROUP);
    for _ in 0..groups {
        file.write_all(&group)?;
        file.sync_data()?;
    }
    Ok(Report {
        syncs: Some(rounded(1.0 / as_f64(GROUP), 4)),
        ..meter.finish(groups * GROUP)
    })
}
