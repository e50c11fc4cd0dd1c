//! A network in memory and in virtual time that misbehaves as a seed tells it to.
//!
//! [`SimNetwork`] stands in for the operating system's sockets and pipes: it gives a service a
//! [`Listener`](migration_ipc_transport::Listener) and clients their
//! [`Stream`](migration_ipc_transport::Stream)s, with identities of the test's choice and bounded
//! buffers. A [`FaultPlan`] says how likely each [`FaultKind`] is; everything that is drawn comes
//! from one [`Seed`], split by purpose, so that a run replays from its seed, and one more draw in
//! one place does not change what happens in the others. Each fault that fires is counted.
//!
//! A program that crashes is a [`SimHost`] that does: its connections are gone at that moment, and
//! whatever of it still runs reaches nobody any more.
//!
//! Made for tokio's paused time; a delay of an hour costs nothing.
//!
//! ```
//! use std::time::Duration;
//! use migration_ipc_testkit::faults::{FaultKind, FaultPlan, Seed, SimNetwork};
//! use migration_ipc_transport::{AccountId, Listener, PeerIdentity, Privilege, Stream};
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let plan = FaultPlan::calm().with(FaultKind::Split, 1.0);
//! let network = SimNetwork::new(Seed::new(7), plan);
//! let service = network.host(PeerIdentity::new(AccountId::new("0"), Privilege::Administrator));
//! let agent = network.host(PeerIdentity::new(AccountId::new("1000"), Privilege::Ordinary));
//!
//! let mut listener = service.listen();
//! let mut at_agent = agent.connect(Duration::from_secs(1)).await?;
//! let mut at_service = listener.accept().await?;
//! at_agent.write_all(b"in pieces").await?;
//! let mut bytes = [0; 9];
//! at_service.read_exact(&mut bytes).await?;
//! assert_eq!(&bytes, b"in pieces");
//! assert_eq!(at_service.identify().await?.account().as_str(), "1000");
//! println!("{}", network.counts());
//! # Ok(())
//! # }
//! ```

mod clock;
mod counts;
mod network;
mod plan;
mod seed;
mod stream;
mod trace;
mod wire;

pub use clock::{SimClock, sleep_gap, thread_time};
pub use counts::{FaultCounts, FaultKind};
pub use network::{SimHost, SimListener, SimNetwork};
pub use plan::{Cut, FaultPlan, Learns};
pub use seed::Seed;
pub use stream::SimStream;
pub use trace::Trace;
pub use wire::End;
