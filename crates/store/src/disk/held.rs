//! What another program holds up for a moment.

use std::io;
use std::thread;
use std::time::Duration;

/// How long to wait before each further attempt at what another program holds up: 0.4 s in all. A
/// virus scanner or an indexer looks at a new file for some milliseconds.
const DELAYS: [Duration; 8] = [
    Duration::from_millis(1),
    Duration::from_millis(2),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(60),
    Duration::from_millis(100),
    Duration::from_millis(200),
];

/// Windows: tries again, for 0.4 s in all, what failed because another program has the file open
/// (codes 5 and 32). That is often a virus scanner or an indexer that looks at a new file, or a
/// process that was killed and is not quite gone. Elsewhere nothing holds a file up like that, and the
/// operation is tried once.
///
/// It blocks. The operation must be one that may be begun again.
///
/// # Errors
/// The error of the last attempt.
pub fn retry_held<T>(operation: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    retry(operation, is_held, thread::sleep)
}

fn retry<T>(
    mut operation: impl FnMut() -> io::Result<T>,
    is_held: impl Fn(&io::Error) -> bool,
    mut wait: impl FnMut(Duration),
) -> io::Result<T> {
    for delay in DELAYS {
        match operation() {
            Err(error) if is_held(&error) => wait(delay),
            result => return result,
        }
    }
    operation()
}

/// `ERROR_ACCESS_DENIED` (5) is also what a file gives that was removed and is still open somewhere;
/// `ERROR_SHARING_VIOLATION` is 32.
fn is_held(error: &io::Error) -> bool {
    cfg!(windows) && matches!(error.raw_os_error(), Some(5 | 32))
}

#[cfg(test)]
mod tests {
    use io::ErrorKind::{NotFound, PermissionDenied};

    use super::*;

    fn denied(error: &io::Error) -> bool {
        error.kind() == PermissionDenied
    }

    #[test]
    fn a_file_that_is_held_for_a_moment_is_waited_for() {
        let mut failures = vec![PermissionDenied, PermissionDenied];
        let mut waited = Duration::ZERO;
        let result = retry(
            || failures.pop().map_or(Ok(7), |kind| Err(kind.into())),
            denied,
            |delay| waited += delay,
        );
        assert_eq!(result.unwrap(), 7);
        assert_eq!(waited, DELAYS[0] + DELAYS[1]);
    }

    #[test]
    fn a_file_that_stays_held_is_given_up() {
        let mut attempts = 0;
        let result = retry(
            || {
                attempts += 1;
                Err::<(), _>(PermissionDenied.into())
            },
            denied,
            |_| {},
        );
        assert!(denied(&result.unwrap_err()));
        assert_eq!(attempts, DELAYS.len() + 1);
    }

    #[test]
    fn other_failures_are_not_repeated() {
        let mut attempts = 0;
        let result = retry(
            || {
                attempts += 1;
                Err::<(), _>(NotFound.into())
            },
            denied,
            |_| panic!("waited"),
        );
        assert_eq!(result.unwrap_err().kind(), NotFound);
        assert_eq!(attempts, 1);
    }

    #[test]
    fn codes_5_and_32_of_windows_mean_held() {
        for code in [5, 32] {
            assert_eq!(is_held(&io::Error::from_raw_os_error(code)), cfg!(windows));
        }
        assert!(!is_held(&io::Error::from_raw_os_error(2)));
    }
}
