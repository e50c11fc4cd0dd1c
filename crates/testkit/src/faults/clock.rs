//! Time that does what clocks do.

use std::cell::RefCell;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fastrand::Rng;
use tokio::time::Instant;

/// A wall clock that runs with tokio's time and can be set, as users and time servers do. Clones
/// are the same clock.
#[derive(Clone, Debug)]
pub struct SimClock {
    setting: Arc<Mutex<Setting>>,
}

/// The clock showed `shown` at `at`.
#[derive(Debug)]
struct Setting {
    shown: SystemTime,
    at: Instant,
}

impl SimClock {
    /// A clock that shows 1 January 2024, 00:00 UTC.
    ///
    /// # Panics
    /// Outside a tokio runtime with paused time.
    pub fn new() -> Self {
        let shown = UNIX_EPOCH + Duration::from_secs(1_704_067_200);
        let at = Instant::now();
        Self {
            setting: Arc::new(Mutex::new(Setting { shown, at })),
        }
    }

    /// What it shows.
    pub fn now(&self) -> SystemTime {
        let setting = self.lock();
        setting.shown + setting.at.elapsed()
    }

    /// Sets it.
    pub fn set(&self, to: SystemTime) {
        *self.lock() = Setting {
            shown: to,
            at: Instant::now(),
        };
    }

    /// Sets it by up to `most` forward or back.
    pub fn jump(&self, most: Duration, random: &mut Rng) {
        let by = most.mul_f64(random.f64());
        let now = self.now();
        self.set(if random.bool() { now + by } else { now - by });
    }

    /// Makes it the clock that [`thread_time`] reads on this thread.
    pub fn install(&self) {
        CURRENT.set(Some(self.clone()));
    }

    fn lock(&self) -> MutexGuard<'_, Setting> {
        self.setting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for SimClock {
    fn default() -> Self {
        Self::new()
    }
}

thread_local! {
    static CURRENT: RefCell<Option<SimClock>> = const { RefCell::new(None) };
}

/// What the clock shows that was [installed](SimClock::install) on this thread; the operating
/// system's time if none was. A plain function, for configurations that take one.
pub fn thread_time() -> SystemTime {
    CURRENT.with_borrow(|clock| clock.as_ref().map_or_else(SystemTime::now, SimClock::now))
}

/// The machine sleeps for up to `longest`, at least a minute: no task runs meanwhile, and every
/// timer that expired is late when it wakes up. The wall clocks have gone on.
///
/// # Panics
/// When tokio's time is not paused.
pub async fn sleep_gap(longest: Duration, random: &mut Rng) {
    let shortest = Duration::from_secs(60);
    let range = shortest..=longest.max(shortest);
    tokio::time::advance(super::plan::draw(&range, random)).await;
}
