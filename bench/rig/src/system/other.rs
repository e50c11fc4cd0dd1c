//! Systems that tell less.

use super::CpuTime;

pub(super) fn cpu_time(_process: u32) -> Option<CpuTime> {
    None
}

pub(super) fn peak_memory(_process: u32) -> Option<u64> {
    None
}

pub(super) fn stay_on(_processor: usize) -> anyhow::Result<()> {
    anyhow::bail!("only on Linux a process can be kept on one processor")
}
