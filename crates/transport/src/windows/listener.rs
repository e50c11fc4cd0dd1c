//! The service's side.

use std::collections::VecDeque;
use std::future::pending;
use std::io;
use std::os::windows::io::OwnedHandle;
use std::pin::pin;
use std::time::Duration;

use futures_util::future::{Either, select, select_all};
use tokio::net::windows::named_pipe::NamedPipeServer;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, warn};

use super::calls::ServiceName;
use super::identity::own_account;
use super::rules::backoff::Backoff;
use super::rules::client::NetworkLogons;
use super::rules::instances::{self, Place, take_name};
use super::rules::protection::{Clients, protection};
use super::stream::PipeStream;
use super::sys::{self, Code, Sid};
use super::{accounts, os_error};
use crate::endpoint::Endpoint;
use crate::error::BindError;
use crate::seam::{Access, Audience, BindOptions, BoxFuture, Listener, Stream};
use crate::security::PipeDescriptor;

/// How many instances wait for clients at a time. As many clients can connect between two turns of
/// the task that accepts; the next one finds the pipe busy and tries again.
const ARMED: usize = 8;

/// After a failure that is no client's doing, the first wait before another try.
const FIRST_DELAY: Duration = Duration::from_millis(5);

/// The longest such wait.
const LONGEST_DELAY: Duration = Duration::from_secs(1);

/// Takes the pipe's name and arms its instances.
pub(crate) async fn bind(
    endpoint: &Endpoint,
    options: &BindOptions,
) -> Result<Box<dyn Listener>, BindError> {
    let source = PipeName::new(endpoint, options).await?;
    let first = take_name(&endpoint.to_string(), &source.calls, &source.expected)
        .await
        .map_err(|code| io_error(endpoint, "creating the pipe", os_error(code)))?;
    let listener = PipeListener::new(endpoint.clone(), source, first)
        .map_err(|source| io_error(endpoint, "registering the pipe", source))?;
    Ok(Box::new(listener))
}

/// Where new instances come from. The tests have one that fails when they want it to.
trait CreateInstance: std::fmt::Debug + Send {
    fn create(&mut self) -> Result<OwnedHandle, Code>;

    /// Whether its clients may have logged on over the network.
    fn network(&self) -> NetworkLogons;
}

/// A name and what every instance of it is made with.
#[derive(Debug)]
struct PipeName {
    calls: ServiceName,
    expected: PipeDescriptor,
    network: NetworkLogons,
}

impl PipeName {
    async fn new(endpoint: &Endpoint, options: &BindOptions) -> Result<Self, BindError> {
        let failed = |action| move |code| io_error(endpoint, action, os_error(code));
        let account = own_account().map_err(failed("reading this process's account"))?;
        let clients = clients(endpoint, options).await?;
        let protection = protection(&account, options.mode, clients)
            .map_err(|problem| unsupported(endpoint, problem))?;
        let descriptor = sys::descriptor_from_sddl(&protection.descriptor.to_string())
            .map_err(failed("making the security descriptor"))?;
        let name = sys::wide(&endpoint.to_string());
        Ok(Self {
            calls: ServiceName { name, descriptor },
            expected: protection.descriptor,
            network: protection.network,
        })
    }
}

impl CreateInstance for PipeName {
    fn create(&mut self) -> Result<OwnedHandle, Code> {
        instances::create(&self.calls, &self.expected, Place::Further)
    }

    fn network(&self) -> NetworkLogons {
        self.network
    }
}

/// Who may connect beside the owner and administrators.
async fn clients(endpoint: &Endpoint, options: &BindOptions) -> Result<Clients, BindError> {
    let names = match (options.audience, &options.access) {
        (Audience::Operators, _) => return Ok(Clients::None),
        (Audience::Agents, Access::AnyLocalUser) => {
            return Ok(Clients::Admitted(vec![Sid::authenticated_users()]));
        }
        (Audience::Agents, Access::InteractiveUsers) => {
            return Ok(Clients::Admitted(vec![Sid::interactive()]));
        }
        (Audience::Agents, Access::User(account)) => {
            return account
                .as_str()
                .parse()
                .map(|sid| Clients::Admitted(vec![sid]))
                .map_err(|_| {
                    let problem = format!("the account {account} is no SID");
                    unsupported(endpoint, problem)
                });
        }
        (Audience::Agents, Access::Descriptor(descriptor)) => {
            return Ok(Clients::Described(descriptor.clone()));
        }
        (Audience::Agents, Access::Groups(names)) => names,
    };
    if names.is_empty() {
        let problem = "no group is named; name at least one, or admit any local user";
        return Err(unsupported(endpoint, problem.to_owned()));
    }
    let mut groups = Vec::new();
    for name in names {
        let asked = name.clone();
        // A domain controller may be asked.
        let found = tokio::task::spawn_blocking(move || accounts::group(&asked))
            .await
            .map_err(io::Error::other)
            .flatten()
            .map_err(|source| io_error(endpoint, "looking up the group", source))?;
        groups.push(found.ok_or_else(|| {
            let problem = format!("there is no group {name:?}; give the name or the SID of one");
            unsupported(endpoint, problem)
        })?);
    }
    Ok(Clients::Admitted(groups))
}

#[derive(Debug)]
struct PipeListener<C> {
    endpoint: Endpoint,
    source: C,
    /// The instances that wait for clients, those that were made first in front. A client takes
    /// the one that has waited longest.
    armed: VecDeque<NamedPipeServer>,
    backoff: Backoff,
    /// After a failure: when to try again. Here and not in the future that `accept` returns, so
    /// that dropping the future does not shorten the delay. Always some while nothing is armed.
    retry_at: Option<Instant>,
}

impl<C: CreateInstance> PipeListener<C> {
    fn new(endpoint: Endpoint, source: C, first: OwnedHandle) -> io::Result<Self> {
        let mut listener = Self {
            endpoint,
            source,
            armed: VecDeque::from([sys::adopt_server(first)?]),
            backoff: Backoff::new(FIRST_DELAY, LONGEST_DELAY),
            retry_at: None,
        };
        listener.arm();
        Ok(listener)
    }

    /// Makes up the number of armed instances, unless that has just failed.
    fn arm(&mut self) {
        if self.retry_at.is_some_and(|at| Instant::now() < at) {
            return;
        }
        while self.armed.len() < ARMED {
            let made = self
                .source
                .create()
                .map_err(os_error)
                .and_then(sys::adopt_server);
            match made {
                Ok(instance) => self.armed.push_back(instance),
                Err(error) => return self.failed("cannot add a pipe instance", &error),
            }
        }
        self.retry_at = None;
        self.backoff.reset();
    }

    fn failed(&mut self, what: &'static str, error: &io::Error) {
        let delay = self.backoff.delay();
        self.retry_at = Some(Instant::now() + delay);
        let armed = self.armed.len();
        warn!(endpoint = %self.endpoint, %error, armed, retry_in = ?delay, "{what}");
    }

    /// The next client. Its instance is replaced before it is returned, so that other clients
    /// always find one.
    ///
    /// Cancel safe: what `connect` began goes on in the instance, and nothing else is changed
    /// before an await.
    async fn next_client(&mut self) -> NamedPipeServer {
        loop {
            self.arm();
            let retry_at = self.retry_at;
            let retry = pin!(async {
                match retry_at {
                    Some(at) => sleep_until(at).await,
                    None => pending().await,
                }
            });
            if self.armed.is_empty() {
                retry.await;
                continue;
            }
            let connects = self.armed.iter().map(|one| Box::pin(one.connect()));
            let connected = match select(select_all(connects), retry).await {
                Either::Left(((outcome, index, _others), _retry)) => (index, outcome),
                Either::Right(((), _connects)) => continue,
            };
            let (index, outcome) = connected;
            let instance = self.armed.remove(index);
            match (outcome, instance) {
                (Ok(()), Some(instance)) => {
                    self.arm();
                    return instance;
                }
                (Err(error), _dropped) => self.failed("a pipe instance is broken", &error),
                (Ok(()), None) => {}
            }
        }
    }
}

impl<C: CreateInstance> Listener for PipeListener<C> {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<Box<dyn Stream>>> {
        Box::pin(async {
            let pipe = self.next_client().await;
            debug!(endpoint = %self.endpoint, "a client has connected");
            Ok(Box::new(PipeStream::accepted(pipe, self.source.network())) as Box<dyn Stream>)
        })
    }

    fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }
}

fn unsupported(endpoint: &Endpoint, problem: String) -> BindError {
    BindError::Unsupported {
        endpoint: endpoint.clone(),
        problem,
    }
}

fn io_error(endpoint: &Endpoint, action: &'static str, source: io::Error) -> BindError {
    BindError::Io {
        endpoint: endpoint.clone(),
        action,
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::time::timeout;
    use windows_sys::Win32::Foundation::{ERROR_INVALID_SECURITY_DESCR, ERROR_NO_SYSTEM_RESOURCES};

    use super::*;
    use crate::error::ConnectError;
    use crate::seam::{ConnectOptions, ServiceMode, Trust, connect_with};

    const PATIENCE: Duration = Duration::from_secs(30);

    async fn connect(
        endpoint: &Endpoint,
        limit: Duration,
    ) -> Result<Box<dyn Stream>, ConnectError> {
        let options = ConnectOptions::new().trust(Trust::OwnAccount);
        connect_with(endpoint, limit, &options).await
    }

    /// Creates instances unless the test says that there are no resources.
    #[derive(Debug)]
    struct Faulty {
        source: PipeName,
        exhausted: Arc<AtomicBool>,
    }

    impl CreateInstance for Faulty {
        fn create(&mut self) -> Result<OwnedHandle, Code> {
            if self.exhausted.load(Ordering::Relaxed) {
                return Err(ERROR_NO_SYSTEM_RESOURCES);
            }
            self.source.create()
        }

        fn network(&self) -> NetworkLogons {
            self.source.network()
        }
    }

    async fn listener(name: &str) -> (PipeListener<Faulty>, Arc<AtomicBool>) {
        let name = format!("migration-ipc-listener-{name}-{}", std::process::id());
        let endpoint = Endpoint::parse(&name).unwrap();
        let options = BindOptions::new().mode(ServiceMode::Development);
        let source = PipeName::new(&endpoint, &options).await.unwrap();
        let exhausted = Arc::new(AtomicBool::new(false));
        let mut source = Faulty {
            source,
            exhausted: exhausted.clone(),
        };
        let first = source.create().unwrap();
        (
            PipeListener::new(endpoint, source, first).unwrap(),
            exhausted,
        )
    }

    #[tokio::test]
    async fn while_no_instance_can_be_added_those_that_there_are_serve() {
        let (mut listener, exhausted) = listener("short").await;
        let endpoint = listener.endpoint.clone();
        assert_eq!(listener.armed.len(), ARMED);
        let mut clients = Vec::new();
        exhausted.store(true, Ordering::Relaxed);
        for left in (1..ARMED).rev() {
            clients.push(connect(&endpoint, PATIENCE).await.unwrap());
            timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
            assert_eq!(listener.armed.len(), left);
        }
        exhausted.store(false, Ordering::Relaxed);
        // The first takes what is left, the second what is added again.
        let connect_two = async {
            let first = connect(&endpoint, PATIENCE).await.unwrap();
            (first, connect(&endpoint, PATIENCE).await.unwrap())
        };
        let accept_two = async {
            let first = listener.accept().await.unwrap();
            (first, listener.accept().await.unwrap())
        };
        let both = async { tokio::join!(connect_two, accept_two) };
        timeout(PATIENCE, both).await.unwrap();
        assert_eq!(listener.armed.len(), ARMED, "made good");
    }

    #[tokio::test]
    async fn a_listener_without_any_instance_recovers() {
        let (mut listener, exhausted) = listener("none").await;
        let endpoint = listener.endpoint.clone();
        exhausted.store(true, Ordering::Relaxed);
        let mut streams = Vec::new();
        for _ in 0..ARMED {
            streams.push(connect(&endpoint, PATIENCE).await.unwrap());
            streams.push(timeout(PATIENCE, listener.accept()).await.unwrap().unwrap());
        }
        assert_eq!(listener.armed.len(), 0);
        let accept = async { timeout(PATIENCE, listener.accept()).await.unwrap().unwrap() };
        let recover = async {
            let early = connect(&endpoint, Duration::from_millis(200)).await;
            assert!(early.is_err(), "nothing listens");
            exhausted.store(false, Ordering::Relaxed);
            connect(&endpoint, PATIENCE).await.unwrap()
        };
        tokio::join!(accept, recover);
    }

    #[tokio::test]
    async fn an_instance_that_is_not_protected_as_asked_is_not_served() {
        let (mut listener, _) = listener("foreign").await;
        let source = &mut listener.source.source;
        // The list as it must be, without the label; and another list.
        let expected = source.expected.to_string();
        let unlabelled = expected.split("S:(ML").next().unwrap().to_owned();
        for (number, other) in [unlabelled.as_str(), "D:P(A;;FA;;;WD)"].iter().enumerate() {
            source.calls.descriptor = sys::descriptor_from_sddl(other).unwrap();
            source.calls.name = sys::wide(&format!("{}-{number}", listener.endpoint));
            let code = source.create().unwrap_err();
            assert_eq!(code, ERROR_INVALID_SECURITY_DESCR, "{other}");
        }
    }
}
