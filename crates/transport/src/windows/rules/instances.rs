//! The instances of a service's pipe: how the first one takes the name, and what is checked of each.

use std::time::Duration;

use tracing::{error, info, warn};

use super::backoff::Backoff;
use super::calls::{
    Code, ERROR_ACCESS_DENIED, ERROR_FILE_NOT_FOUND, ERROR_INVALID_SECURITY_DESCR, ERROR_PIPE_BUSY,
    FILE_FLAG_FIRST_PIPE_INSTANCE, FILE_FLAG_OVERLAPPED, GENERIC_READ_WRITE, PIPE_ACCESS_DUPLEX,
    PIPE_READMODE_BYTE, PIPE_REJECT_REMOTE_CLIENTS, PIPE_TYPE_MESSAGE, PIPE_UNLIMITED_INSTANCES,
    PIPE_WAIT, PipeCalls, SECURITY_ANONYMOUS, SECURITY_SQOS_PRESENT,
};
use crate::security::PipeDescriptor;

/// Which instance of a name is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The one that takes the name, and must fail if anybody has it
    /// (`FILE_FLAG_FIRST_PIPE_INSTANCE`).
    First,
    /// One more beside those that the service has, or in a name that a service before it has left.
    Further,
}

/// When a name is held, the service that had it has often just ended.
const FIRST_DELAY: Duration = Duration::from_millis(100);

/// A name that is free again is taken within this time.
const LONGEST_DELAY: Duration = Duration::from_secs(5);

/// Creates an instance, and reads back what protects it. Anything but what was asked for means that
/// it joined somebody else's pipe: the first creator of a name decides for all instances of it. Such
/// an instance is closed again, before anybody is served.
///
/// # Errors
///
/// The code of a call; [`ERROR_INVALID_SECURITY_DESCR`] for an instance that is not protected as
/// asked.
pub(crate) fn create<C: PipeCalls>(
    calls: &C,
    expected: &PipeDescriptor,
    place: Place,
) -> Result<C::Pipe, Code> {
    let first = match place {
        Place::First => FILE_FLAG_FIRST_PIPE_INSTANCE,
        Place::Further => 0,
    };
    let pipe = calls.create(
        PIPE_ACCESS_DUPLEX | FILE_FLAG_OVERLAPPED | first,
        // The type is what .NET agents need to switch their end to message mode; this end reads
        // bytes.
        PIPE_TYPE_MESSAGE | PIPE_READMODE_BYTE | PIPE_WAIT | PIPE_REJECT_REMOTE_CLIENTS,
        PIPE_UNLIMITED_INSTANCES,
    )?;
    let actual = calls.security(&pipe)?;
    if *expected.security() == actual {
        return Ok(pipe);
    }
    error!(%expected, ?actual, "the pipe is not protected as it must be");
    Err(ERROR_INVALID_SECURITY_DESCR)
}

/// Creates the first instance of a name, and waits for it while somebody holds it.
///
/// A name lives for as long as anybody has a handle of it: after a crash of the service, also a
/// client. A service that gave up, or waited for that client, would let any user keep it from
/// starting. So a name that nobody serves is joined, provided that it is protected by exactly what
/// this service asks for: then only one that runs as the same account can have made it. For any
/// other holder the service waits, and reports each try.
///
/// Cancel safe. Other codes than "held" are returned.
pub(crate) async fn take_name<C: PipeCalls>(
    name: &str,
    calls: &C,
    expected: &PipeDescriptor,
) -> Result<C::Pipe, Code> {
    let mut backoff = Backoff::new(FIRST_DELAY, LONGEST_DELAY);
    let mut tries = 1_u32;
    loop {
        let code = match create(calls, expected, Place::First) {
            Ok(first) => {
                if tries > 1 {
                    info!(
                        endpoint = name,
                        tries, "the pipe's name is free again and taken"
                    );
                }
                return Ok(first);
            }
            Err(code) if is_held(code) => code,
            Err(code) => return Err(code),
        };
        if is_abandoned(calls)
            && let Ok(joined) = create(calls, expected, Place::Further)
        {
            warn!(
                endpoint = name,
                tries, "name held by clients of a service that has ended: serving beside them"
            );
            return Ok(joined);
        }
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
}

/// Whether creating a first instance failed because the name exists, or because it exists with as
/// many instances as its creator allowed.
fn is_held(code: Code) -> bool {
    matches!(code, ERROR_ACCESS_DENIED | ERROR_PIPE_BUSY)
}

/// Whether nobody serves a name that exists: only clients have it still. Another service that lives
/// must not be joined, although it has the same descriptor.
///
/// Opening it as a client tells. Whoever serves there learns nothing of this process, not even its
/// account, and sees a client that leaves at once.
fn is_abandoned<C: PipeCalls>(calls: &C) -> bool {
    let flags = FILE_FLAG_OVERLAPPED | SECURITY_SQOS_PRESENT | SECURITY_ANONYMOUS;
    matches!(
        calls.open(GENERIC_READ_WRITE, flags),
        Err(ERROR_FILE_NOT_FOUND)
    )
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use migration_ipc_testkit::pipe_model::{
        self, Actor, Handle, Instance, Model, Opening, PipeSystem,
    };
    use tokio::time::{Instant, sleep, timeout};

    use super::super::trace::Recorder;
    use super::*;
    use crate::security::PipeSecurity;

    const NAME: &str = "MigrationService_PC1";
    const ALICE: Actor = Actor::User(1001);
    const BOB: Actor = Actor::User(1002);

    /// What a process calls on one name of the modelled machine.
    struct Process<'a> {
        machine: &'a RefCell<Model>,
        account: Actor,
        descriptor: String,
        tries: RefCell<Vec<Place>>,
    }

    impl<'a> Process<'a> {
        fn new(machine: &'a RefCell<Model>, account: Actor, descriptor: &str) -> Self {
            Self {
                machine,
                account,
                descriptor: descriptor.to_owned(),
                tries: RefCell::default(),
            }
        }

        fn service(machine: &'a RefCell<Model>) -> Self {
            Self::new(machine, Actor::System, &service().to_string())
        }

        fn act<T>(&self, act: impl FnOnce(&mut Model) -> T) -> T {
            let mut machine = self.machine.borrow_mut();
            machine.act_as(self.account);
            act(&mut machine)
        }

        /// Opens the pipe as an agent does, and keeps its end.
        fn connect(&self) -> Result<Handle, Code> {
            self.act(|machine| machine.open(NAME, Opening::Identification))
        }
    }

    /// Closes its end when it is dropped, as a handle does.
    struct End<'a> {
        machine: &'a RefCell<Model>,
        handle: Option<Handle>,
    }

    impl Drop for End<'_> {
        fn drop(&mut self) {
            if let Some(handle) = self.handle.take() {
                self.machine.borrow_mut().close(handle);
            }
        }
    }

    impl<'a> PipeCalls for Process<'a> {
        type Pipe = End<'a>;

        fn create(&self, open_mode: u32, _: u32, max_instances: u32) -> Result<End<'a>, Code> {
            let first = open_mode & FILE_FLAG_FIRST_PIPE_INSTANCE != 0;
            let (place, tried) = if first {
                (pipe_model::Place::First, Place::First)
            } else {
                (pipe_model::Place::Further, Place::Further)
            };
            self.tries.borrow_mut().push(tried);
            let handle = self.act(|machine| {
                machine.create_protected(
                    NAME,
                    Instance {
                        place,
                        max_instances,
                        ..Instance::default()
                    },
                    &self.descriptor,
                )
            })?;
            Ok(End {
                machine: self.machine,
                handle: Some(handle),
            })
        }

        fn open(&self, _: u32, flags: u32) -> Result<End<'a>, Code> {
            assert_eq!(flags, FILE_FLAG_OVERLAPPED | SECURITY_SQOS_PRESENT);
            let handle = self.act(|machine| machine.open(NAME, Opening::Anonymous))?;
            Ok(End {
                machine: self.machine,
                handle: Some(handle),
            })
        }

        fn security(&self, pipe: &End<'a>) -> Result<PipeSecurity, Code> {
            let handle = pipe.handle.as_ref().unwrap();
            let text = self.machine.borrow().protection(handle)?;
            Ok(text.parse().unwrap())
        }
    }

    fn service() -> PipeDescriptor {
        PipeDescriptor::authenticated()
    }

    async fn take<'a>(process: &Process<'a>) -> Result<End<'a>, Code> {
        take_name(NAME, process, &process.descriptor.parse().unwrap()).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_that_nobody_has_is_taken_at_once() {
        let machine = RefCell::default();
        let process = Process::service(&machine);
        let began = Instant::now();
        let _first = take(&process).await.unwrap();
        assert_eq!(began.elapsed(), Duration::ZERO);
        assert_eq!(*process.tries.borrow(), [Place::First]);
    }

    /// A client that outlives its service must not keep the next one from serving everybody else.
    #[tokio::test(start_paused = true)]
    async fn after_a_crash_others_are_served_within_10_s_although_a_client_holds_the_name() {
        let machine = RefCell::default();
        let crashed = take(&Process::service(&machine)).await.unwrap();
        let (alice, bob) = (
            Process::new(&machine, ALICE, ""),
            Process::new(&machine, BOB, ""),
        );
        let _kept_for_ever = alice.connect().unwrap();
        drop(crashed);
        assert_eq!(bob.connect().unwrap_err(), 2, "nobody serves");

        let began = Instant::now();
        let restarted = Process::service(&machine);
        let first = timeout(Duration::from_secs(10), take(&restarted))
            .await
            .expect("in time")
            .unwrap();
        assert_eq!(*restarted.tries.borrow(), [Place::First, Place::Further]);
        let server = first.handle.as_ref().unwrap();
        let client = bob.connect().unwrap();
        machine.borrow_mut().write(&client, b"hello").unwrap();
        let read = machine.borrow_mut().read(server, 9).unwrap();
        assert_eq!(read.bytes, b"hello");
        machine.borrow_mut().identify(server).unwrap();
        let _spare = create(&restarted, &service(), Place::Further).unwrap();
        let _back = alice.connect().unwrap();
        assert!(began.elapsed() <= Duration::from_secs(10));
    }

    /// Waits for as long as somebody else has the name, and takes it then.
    async fn is_never_joined(holder: &Process<'_>, machine: &RefCell<Model>) {
        let first = create_as_is(holder);
        let process = Process::service(machine);
        let began = Instant::now();
        let leave = async {
            sleep(Duration::from_secs(60)).await;
            drop(first);
        };
        let (taken, ()) = tokio::join!(take(&process), leave);
        let taken = taken.unwrap();
        let owner = process.security(&taken).unwrap();
        assert_eq!(owner, *service().security());
        let noticed = began.elapsed() - Duration::from_secs(60);
        assert!(noticed <= LONGEST_DELAY, "free for {noticed:?}");
        let tries = process.tries.borrow();
        assert!(tries.len() < 30, "{} tries in a minute", tries.len());
        assert!(
            tries.iter().all(|&place| place == Place::First),
            "it never shared the name: {tries:?}"
        );
    }

    fn create_as_is<'a>(holder: &Process<'a>) -> End<'a> {
        holder
            .create(FILE_FLAG_FIRST_PIPE_INSTANCE, 0, 255)
            .unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn the_name_of_a_squatter_who_serves_is_never_joined() {
        let machine = RefCell::default();
        let open_to_all = "O:S-1-5-21-1-2-3-1001D:P(A;;FA;;;WD)";
        is_never_joined(&Process::new(&machine, ALICE, open_to_all), &machine).await;
    }

    #[tokio::test(start_paused = true)]
    async fn another_service_that_lives_is_never_joined() {
        let machine = RefCell::default();
        is_never_joined(&Process::service(&machine), &machine).await;
    }

    /// The squatter closes the end that serves and keeps one that does not, so that the name looks
    /// like one that a service has left.
    #[tokio::test(start_paused = true)]
    async fn a_name_that_a_squatter_has_left_is_never_served() {
        let like_ours = service()
            .to_string()
            .replacen("O:S-1-5-18", "O:S-1-5-21-1-2-3-1001", 1);
        for (maker, descriptor) in [
            // Another owner; the list admits SYSTEM, who can so add an instance.
            (ALICE, like_ours.as_str()),
            (ALICE, "O:S-1-5-21-1-2-3-1001D:P(A;;FA;;;WD)"),
            // The right owner, but another list, or another label: an older service, say.
            (
                Actor::System,
                "O:SYD:P(A;;FA;;;SY)(A;;FA;;;WD)S:(ML;;NWNR;;;ME)",
            ),
            (
                Actor::System,
                &service().to_string().replacen("NWNR", "NW", 1),
            ),
        ] {
            let machine = RefCell::default();
            let squatter = Process::new(&machine, maker, descriptor);
            let serving = create_as_is(&squatter);
            let held = squatter.connect().unwrap();
            drop(serving);
            let process = Process::service(&machine);
            let waiting = timeout(Duration::from_secs(60), take(&process)).await;
            assert!(waiting.is_err(), "{descriptor}: it served");
            assert!(
                process.tries.borrow().contains(&Place::Further),
                "it looked"
            );
            assert_eq!(
                squatter.connect().unwrap_err(),
                2,
                "{descriptor}: it left nothing that could be taken for the service"
            );
            // Nor was the wait in vain.
            machine.borrow_mut().close(held);
            timeout(LONGEST_DELAY, take(&process))
                .await
                .unwrap()
                .unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_with_as_many_instances_as_it_may_have_is_held_too() {
        let machine = RefCell::default();
        let everybody = Process::new(&machine, Actor::System, "O:SYD:P(A;;FA;;;WD)");
        let only = everybody
            .create(FILE_FLAG_FIRST_PIPE_INSTANCE, 0, 1)
            .unwrap();
        let leave = async {
            sleep(Duration::from_secs(1)).await;
            drop(only);
        };
        let process = Process::service(&machine);
        let (taken, ()) = tokio::join!(take(&process), leave);
        taken.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn another_error_is_returned_at_once() {
        let machine = RefCell::default();
        let ordinary = Process::new(&machine, ALICE, &service().to_string());
        let began = Instant::now();
        let code = take(&ordinary).await.map(|_| ()).unwrap_err();
        assert_eq!(code, 1307, "ERROR_INVALID_OWNER");
        assert_eq!(began.elapsed(), Duration::ZERO);
    }

    // PIPE_ACCESS_DUPLEX, FILE_FLAG_OVERLAPPED, FILE_FLAG_FIRST_PIPE_INSTANCE; PIPE_TYPE_MESSAGE,
    // PIPE_REJECT_REMOTE_CLIENTS; no limit.
    const FIRST: &str = "CreateNamedPipe(0x40080003, 0xc, 255)";
    const FURTHER: &str = "CreateNamedPipe(0x40000003, 0xc, 255)";
    const READ_BACK: &str = "GetSecurityInfo(owner, list, label)";
    // SECURITY_SQOS_PRESENT with SECURITY_ANONYMOUS.
    const PROBE: &str = "CreateFile(0xc0000000, OPEN_EXISTING, 0x40100000)";

    #[tokio::test(start_paused = true)]
    async fn each_instance_is_read_back_before_it_is_served() {
        let calls = Recorder::default();
        take_name(NAME, &calls, &service()).await.unwrap();
        create(&calls, &service(), Place::Further).unwrap();
        assert_eq!(calls.trace(), [FIRST, READ_BACK, FURTHER, READ_BACK]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_is_joined_only_when_nobody_serves_it_and_its_protection_was_read() {
        let calls = Recorder::default().failing(FIRST, 5).failing(PROBE, 2);
        let joining = timeout(LONGEST_DELAY, take_name(NAME, &calls, &service())).await;
        joining.expect("at once").unwrap();
        assert_eq!(calls.trace(), [FIRST, PROBE, FURTHER, READ_BACK]);

        let served = Recorder::default().failing_times(FIRST, 5, 1);
        take_name(NAME, &served, &service()).await.unwrap();
        assert_eq!(served.trace(), [FIRST, PROBE, FIRST, READ_BACK]);

        let foreign = PipeDescriptor::operators();
        let calls = Recorder::protected_by(foreign.security().clone())
            .failing_times(FIRST, 5, 2)
            .failing(PROBE, 2);
        let code = take_name(NAME, &calls, &service()).await.unwrap_err();
        assert_eq!(code, ERROR_INVALID_SECURITY_DESCR);
        let joins = [FIRST, PROBE, FURTHER, READ_BACK];
        assert_eq!(
            calls.trace(),
            [&joins[..], &joins, &[FIRST, READ_BACK]].concat()
        );
    }

    #[test]
    fn an_instance_whose_protection_cannot_be_read_is_not_served() {
        let calls = Recorder::default().failing(READ_BACK, 5);
        assert_eq!(create(&calls, &service(), Place::First), Err(5));
    }
}
