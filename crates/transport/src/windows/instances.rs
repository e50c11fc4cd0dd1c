//! The instances of a service's pipe: how the first one takes the name.
//!
//! The rules here see the operating system only as codes, so that they run on its model, on every
//! system.

use std::time::Duration;

use tracing::{info, warn};

use super::backoff::Backoff;
use super::codes::{ERROR_ACCESS_DENIED, ERROR_PIPE_BUSY};

/// Which instance of a name is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// The one that takes the name, and must fail if anybody has it
    /// (`FILE_FLAG_FIRST_PIPE_INSTANCE`).
    First,
    /// One more beside those that the service has.
    Further,
}

/// When a name is held, the service that had it has often just ended.
const FIRST_DELAY: Duration = Duration::from_millis(100);

/// A name that is free again is taken within this time.
const LONGEST_DELAY: Duration = Duration::from_secs(5);

/// Creates the first instance of a name, and waits for it while somebody holds it.
///
/// A name lives for as long as anybody has a handle of it: after a crash of the service, also a
/// client. A service that gave up would let any user keep it from starting. So it waits, reports
/// each try, and never shares a name that it has not made.
///
/// Cancel safe. Other codes than "held" are returned.
pub(super) async fn take_name<T>(
    name: &str,
    mut create: impl FnMut(Place) -> Result<T, u32>,
) -> Result<T, u32> {
    let mut backoff = Backoff::new(FIRST_DELAY, LONGEST_DELAY);
    let mut tries = 1_u32;
    loop {
        match create(Place::First) {
            Err(code) if is_held(code) => {
                let delay = backoff.delay();
                warn!(
                    endpoint = name,
                    code,
                    tries,
                    retry_in = ?delay,
                    "name held: another process has this pipe's name; waiting for it"
                );
                tokio::time::sleep(delay).await;
                tries = tries.saturating_add(1);
            }
            Ok(first) => {
                if tries > 1 {
                    info!(
                        endpoint = name,
                        tries, "the pipe's name is free again and taken"
                    );
                }
                return Ok(first);
            }
            Err(code) => return Err(code),
        }
    }
}

/// Whether creating a first instance failed because the name exists. Code 5 it is; 231 says the
/// same of a name whose number of instances is limited and reached.
fn is_held(code: u32) -> bool {
    matches!(code, ERROR_ACCESS_DENIED | ERROR_PIPE_BUSY)
}
