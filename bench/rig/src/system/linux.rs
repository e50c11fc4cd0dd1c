//! proc(5).

use std::fs;
use std::time::Duration;

use anyhow::Context as _;
use rustix::param::clock_ticks_per_second;
use rustix::thread::{CpuSet, sched_setaffinity};

use super::CpuTime;

pub(super) fn cpu_time(process: u32) -> Option<CpuTime> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The second field is the name in parentheses, which may contain anything; the third follows.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut times = fields.split_ascii_whitespace().skip(11).map(ticks);
    Some(CpuTime {
        user: times.next()??,
        system: times.next()??,
    })
}

fn ticks(field: &str) -> Option<Duration> {
    let ticks: u32 = field.parse().ok()?;
    let rate = u32::try_from(clock_ticks_per_second()).ok()?;
    Some(Duration::from_secs(1) * ticks / rate)
}

pub(super) fn peak_memory(process: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_ascii_whitespace().nth(1)?.parse().ok()
}

pub(super) fn stay_on(processor: usize) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    anyhow::ensure!(processor < CpuSet::MAX_CPU, "no processor {processor}");
    set.set(processor);
    sched_setaffinity(None, &set).with_context(|| format!("staying on processor {processor}"))
}
