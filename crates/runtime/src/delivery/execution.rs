//! Where work that waits for the disk is done.

use thiserror::Error;

/// Where work that blocks on the disk is done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Execution {
    /// On the runtime's threads for blocking work, so that no connection waits for the disk.
    #[default]
    Blocking,
    /// At once, by the task that has it to do: for simulations, whose disk is in memory and whose
    /// time is virtual. Tokio does not let its paused clock run while blocking work is under way,
    /// so the order of events would depend on threads.
    Inline,
}

/// The work panicked, or the runtime shut down before it was done; what it owned is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("work on the disk did not come to its end")]
pub(crate) struct WorkFailed;

impl Execution {
    /// Does the work. Once begun it is done to its end, even if the future is dropped.
    pub(crate) async fn run<T: Send + 'static>(
        self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, WorkFailed> {
        match self {
            Self::Inline => Ok(work()),
            Self::Blocking => match tokio::task::spawn_blocking(work).await {
                Ok(done) => Ok(done),
                Err(error) => {
                    tracing::error!(%error, "work on the disk failed");
                    Err(WorkFailed)
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_is_done_where_it_was_asked_for() {
        let here = std::thread::current().id();
        let of = || std::thread::current().id();
        assert_eq!(Execution::Inline.run(of).await, Ok(here));
        assert!(
            Execution::Blocking
                .run(of)
                .await
                .is_ok_and(|there| there != here)
        );
    }

    #[tokio::test]
    async fn a_panic_is_an_error() {
        let panicking = Execution::Blocking.run(|| panic!("a disk on fire"));
        assert_eq!(panicking.await, Err::<(), _>(WorkFailed));
    }
}
