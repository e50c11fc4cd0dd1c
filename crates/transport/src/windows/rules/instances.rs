//! The instances of a service's pipe: how the first one takes the name.
//!
//! The rules here see the operating system only as codes, so that they run on its model, on every
//! system.

use std::time::Duration;

use tracing::{info, warn};

use super::backoff::Backoff;

/// Which instance of a name is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
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
pub(crate) async fn take_name<T>(
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

/// Whether creating a first instance failed because the name exists.
fn is_held(code: u32) -> bool {
    /// The name exists.
    const ERROR_ACCESS_DENIED: u32 = 5;
    /// It exists, with as many instances as its creator allowed.
    const ERROR_PIPE_BUSY: u32 = 231;
    matches!(code, ERROR_ACCESS_DENIED | ERROR_PIPE_BUSY)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use migration_ipc_testkit::pipe_model::{self, Instance, Model, Opening, PipeSystem};
    use tokio::time::{Instant, sleep};

    use super::*;

    const NAME: &str = "MigrationService_PC1";

    /// An instance as the transport creates it, on the model.
    fn instance(place: Place) -> Instance {
        Instance {
            place: match place {
                Place::First => pipe_model::Place::First,
                Place::Further => pipe_model::Place::Further,
            },
            kind: pipe_model::Kind::Message,
            max_instances: 255,
            rights: pipe_model::Rights::All,
            owner: pipe_model::Owner::Creator,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_that_nobody_has_is_taken_at_once() {
        let mut system = Model::new();
        let began = Instant::now();
        take_name(NAME, |place| system.create(NAME, instance(place)))
            .await
            .unwrap();
        assert_eq!(began.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_crash_the_service_waits_for_the_last_client() {
        let system = RefCell::new(Model::new());
        let crashed = system
            .borrow_mut()
            .create(NAME, instance(Place::First))
            .unwrap();
        let client = system
            .borrow_mut()
            .open(NAME, Opening::Unspecified)
            .unwrap();
        system.borrow_mut().close(crashed);

        let mut tries = Vec::new();
        let began = Instant::now();
        let restart = take_name(NAME, |place| {
            tries.push((place, began.elapsed().as_millis()));
            system.borrow_mut().create(NAME, instance(place))
        });
        let leave = async {
            sleep(Duration::from_secs(60)).await;
            system.borrow_mut().close(client);
        };
        let (restarted, ()) = tokio::join!(restart, leave);
        assert!(
            system.borrow_mut().open(NAME, Opening::Unspecified).is_ok(),
            "it serves"
        );
        system
            .borrow_mut()
            .create(NAME, instance(Place::Further))
            .unwrap();
        drop(restarted.unwrap());

        assert!(
            tries.iter().all(|&(place, _at)| place == Place::First),
            "it shares with nobody"
        );
        let times: Vec<_> = tries.iter().map(|&(_place, at)| at).collect();
        assert_eq!(times[..5], [0, 100, 300, 700, 1500], "growing delays");
        assert!(times.len() < 30, "{} tries in a minute", times.len());
        let noticed = began.elapsed() - Duration::from_secs(60);
        assert!(
            noticed <= LONGEST_DELAY,
            "the name was free for {noticed:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_with_as_many_instances_as_it_may_have_is_held_too() {
        let system = RefCell::new(Model::new());
        let only = Instance {
            max_instances: 1,
            ..instance(Place::First)
        };
        let squatter = system.borrow_mut().create(NAME, only).unwrap();
        let take = take_name(NAME, |place| {
            system.borrow_mut().create(NAME, instance(place))
        });
        let leave = async {
            sleep(Duration::from_secs(1)).await;
            system.borrow_mut().close(squatter);
        };
        tokio::join!(take, leave).0.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn another_error_is_returned_at_once() {
        let mut system = Model::new();
        let began = Instant::now();
        let code = take_name(NAME, |place| {
            system.create(
                NAME,
                Instance {
                    owner: pipe_model::Owner::System,
                    ..instance(place)
                },
            )
        });
        assert_eq!(code.await.unwrap_err(), 1307, "ERROR_INVALID_OWNER");
        assert_eq!(began.elapsed(), Duration::ZERO);
    }
}
