//! What operating systems tell about processes. The only place with `cfg` besides
//! [`peers`](crate::peers).

use std::time::Duration;

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
use linux as platform;

#[cfg(not(target_os = "linux"))]
mod other;
#[cfg(not(target_os = "linux"))]
use other as platform;

#[cfg(target_os = "linux")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The processor time of a process since its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CpuTime {
    pub(crate) user: Duration,
    pub(crate) system: Duration,
}

impl CpuTime {
    pub(crate) fn total(&self) -> Duration {
        self.user + self.system
    }

    pub(crate) fn since(&self, before: &Self) -> Self {
        Self {
            user: self.user.saturating_sub(before.user),
            system: self.system.saturating_sub(before.system),
        }
    }
}

/// The processor time of a process, in steps of a clock tick (10 ms); `None` where the system does
/// not tell.
pub(crate) fn cpu_time(process: u32) -> Option<CpuTime> {
    platform::cpu_time(process)
}

/// The most memory that a process ever had resident, in KiB; `None` where the system does not
/// tell.
pub(crate) fn peak_memory(process: u32) -> Option<u64> {
    platform::peak_memory(process)
}

/// Keeps this process on one processor.
///
/// # Errors
///
/// When there is no such processor, or the system does not know how.
pub(crate) fn stay_on(processor: usize) -> anyhow::Result<()> {
    platform::stay_on(processor)
}

/// Lets this process open as many files as it may: a thousand connections are more than the usual
/// limit.
pub(crate) fn raise_file_limit() {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
        let raised = Rlimit {
            current: maximum,
            maximum,
        };
        // Where that is refused, connecting says what is missing.
        let _refused = setrlimit(Resource::Nofile, raised);
    }
}
