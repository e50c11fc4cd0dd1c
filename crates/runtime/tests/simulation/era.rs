//! What the ends of a run can do: everything, or what older versions could, or some of both.

use std::fmt;

use fastrand::Rng;
use migration_ipc::crypto::provider::primitives::{
    Cipher, CipherChoice, CryptoResolver, DHChoice, DefaultResolver, Dh, Error, Hash, HashChoice,
    Random,
};
use migration_ipc::crypto::{Key, Keyring, Provider, SharedKey};
use migration_ipc::{Capability, CapabilitySet, Clock, Compression, ConnectionConfig, Encryption};
use migration_ipc_testkit::faults::thread_time;

/// What was added to the versions that know the base.
const EXTENSIONS: [Capability; 7] = [
    Capability::Requests,
    Capability::NoAck,
    Capability::AckRanges,
    Capability::Batch,
    Capability::Lz4,
    Capability::Chunks,
    Capability::Encryption,
];

/// How old the programs of a run are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Age {
    /// All of them know everything.
    Present,
    /// Each life lacks some of the extensions.
    Mixed,
    /// Each life lacks some of whatever there is, but a ledger at both ends.
    Old,
    /// The same without a ledger, and some agents say no hello.
    Forgetful,
}

/// What the programs of a run are, whichever life they are in.
#[derive(Clone, Debug)]
pub(crate) struct Era {
    age: Age,
    encryption: Option<Encryption>,
    compresses: bool,
}

/// What a program can do in one life.
#[derive(Clone, Debug)]
pub(crate) struct Abilities {
    pub(crate) config: ConnectionConfig,
    pub(crate) encryption: Option<Encryption>,
    /// It says no hello, if it is an agent.
    pub(crate) is_plain: bool,
}

impl Era {
    pub(crate) fn draw(random: &mut Rng) -> Self {
        let age = match random.u8(..16) {
            0..8 => Age::Present,
            8..13 => Age::Mixed,
            13 | 14 => Age::Old,
            _ => Age::Forgetful,
        };
        let encrypts = random.u8(..4) == 0;
        let demands = random.bool() && age == Age::Present;
        let encryption = encrypts.then(|| {
            let key = Key::Shared(SharedKey::new([7; 32]));
            let name = "simulated".parse().unwrap();
            let keyring = Keyring::new(name, key).with_provider(Provider::new(Seeded));
            match demands {
                true => Encryption::required(keyring),
                false => Encryption::offered(keyring),
            }
        });
        Self {
            age,
            encryption,
            compresses: random.bool(),
        }
    }

    /// Whether a service recognises a durable message that it had before. Replies say what they answer
    /// then, and refusals why.
    pub(crate) fn has_ledger(&self) -> bool {
        self.age != Age::Forgetful
    }

    /// What a program that starts now can do. Drawn from the thread's generator.
    pub(crate) fn abilities(&self) -> Abilities {
        let some_of = |these: &[Capability]| {
            let all = CapabilitySet::all();
            let lacks = these.iter().filter(|_| fastrand::u8(..3) == 0);
            lacks.fold(all, |left, lacks| left.without(*lacks))
        };
        let capabilities = match self.age {
            Age::Present => CapabilitySet::all(),
            Age::Mixed => some_of(&EXTENSIONS),
            Age::Old => {
                let needed = Capability::Durable.needs().iter();
                let left = some_of(&Capability::ALL).with(Capability::Durable);
                needed.fold(left, |left, needed| left.with(*needed))
            }
            Age::Forgetful => some_of(&Capability::ALL).without(Capability::Durable),
        };
        let threshold = [Compression::MIN_THRESHOLD, 1024][fastrand::usize(..2)];
        Abilities {
            config: ConnectionConfig {
                clock: Clock::from_fn(thread_time),
                capabilities,
                compression: match self.compresses {
                    true => Compression::From(threshold),
                    false => Compression::Off,
                },
                ..ConnectionConfig::default()
            },
            encryption: self.encryption.clone(),
            is_plain: self.age == Age::Forgetful && fastrand::u8(..3) == 0,
        }
    }
}

impl fmt::Display for Era {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let demand = self.encryption.as_ref().map(|encryption| encryption.demand);
        write!(f, "the age: {:?}, encryption: {demand:?}", self.age)
    }
}

/// Computes as ever, with randomness from the thread's generator: a run is the same again to the
/// last byte.
#[derive(Debug)]
struct Seeded;

impl CryptoResolver for Seeded {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(Self))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        DefaultResolver.resolve_dh(choice)
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        DefaultResolver.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        DefaultResolver.resolve_cipher(choice)
    }
}

impl Random for Seeded {
    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Error> {
        fastrand::fill(bytes);
        Ok(())
    }
}
