//! A build may bring its own cryptography.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{NAME, keyrings, sealed};
use migration_ipc_crypto::provider::primitives::{
    Cipher, CipherChoice, CryptoResolver, DHChoice, DefaultResolver, Dh, Error, Hash, HashChoice,
    Random,
};
use migration_ipc_crypto::{
    HandshakeError, Key, Keyring, Pattern, Protocol, Provider, RespondError, SharedKey, Suite,
};

/// What was asked for, and how often its code ran.
#[derive(Default)]
struct Counts {
    random: AtomicUsize,
    dh: AtomicUsize,
    hash: AtomicUsize,
    sealed: AtomicUsize,
    opened: AtomicUsize,
}

/// A provider that may have no ChaCha20-Poly1305, as one made of validated modules.
struct Counting {
    counts: Arc<Counts>,
    only_aes: bool,
}

struct CountingCipher(Box<dyn Cipher>, Arc<Counts>);

impl Cipher for CountingCipher {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn set(&mut self, key: &[u8; 32]) {
        self.0.set(key);
    }

    fn encrypt(&self, nonce: u64, with: &[u8], plain: &[u8], out: &mut [u8]) -> usize {
        self.1.sealed.fetch_add(1, Ordering::Relaxed);
        self.0.encrypt(nonce, with, plain, out)
    }

    fn decrypt(
        &self,
        nonce: u64,
        with: &[u8],
        sealed: &[u8],
        out: &mut [u8],
    ) -> Result<usize, Error> {
        self.1.opened.fetch_add(1, Ordering::Relaxed);
        self.0.decrypt(nonce, with, sealed, out)
    }
}

impl CryptoResolver for Counting {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        self.counts.random.fetch_add(1, Ordering::Relaxed);
        DefaultResolver.resolve_rng()
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        self.counts.dh.fetch_add(1, Ordering::Relaxed);
        DefaultResolver.resolve_dh(choice)
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        self.counts.hash.fetch_add(1, Ordering::Relaxed);
        DefaultResolver.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        if self.only_aes && *choice != CipherChoice::AESGCM {
            return None;
        }
        let cipher = DefaultResolver.resolve_cipher(choice)?;
        Some(Box::new(CountingCipher(cipher, Arc::clone(&self.counts))))
    }
}

#[test]
fn everything_is_computed_by_the_provider_of_the_keyring() {
    let counts = Arc::new(Counts::default());
    let provider = Provider::new(Counting {
        counts: Arc::clone(&counts),
        only_aes: true,
    });
    let protocol = Protocol::new(Pattern::NnPsk0, Suite::AesGcm);
    let [client, service] = keyrings(protocol);
    let client = client.with_provider(provider.clone());
    let (opening, initiator) = client.initiate(protocol.suite).unwrap();
    let (answer, mut theirs) = service.respond(protocol, NAME, &opening.message).unwrap();
    let mut ours = initiator.finish(&answer).unwrap();

    let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
    assert!(count(&counts.random) > 0 && count(&counts.dh) > 0 && count(&counts.hash) > 0);
    let before = [count(&counts.sealed), count(&counts.opened)];
    let mut plain = Vec::new();
    let wire = sealed(&mut ours, b"there");
    theirs.opener.open(&wire, &mut plain).unwrap();
    let wire = sealed(&mut theirs, b" and back");
    ours.opener.open(&wire, &mut plain).unwrap();
    assert_eq!(plain, b"there and back");
    // This end's one record and the other's, and nothing of the other end's own work.
    let after = [count(&counts.sealed), count(&counts.opened)];
    assert_eq!(after, before.map(|count| count + 1));

    let hashes = count(&counts.hash);
    provider.sha256(&[b"x"]).unwrap();
    assert_eq!(count(&counts.hash), hashes + 1);
}

#[test]
fn a_suite_that_the_provider_lacks_is_refused_at_both_ends() {
    let provider = Provider::new(Counting {
        counts: Arc::default(),
        only_aes: true,
    });
    assert!(provider.has(Suite::AesGcm) && !provider.has(Suite::ChaChaPoly));
    let protocol = Protocol::new(Pattern::NnPsk0, Suite::ChaChaPoly);
    let [client, _] = keyrings(protocol);
    let strict = Keyring::new(NAME.parse().unwrap(), Key::Shared(SharedKey::new([7; 32])))
        .with_provider(provider);
    assert_eq!(
        strict.initiate(Suite::ChaChaPoly).unwrap_err(),
        HandshakeError::Unsupported
    );
    let (opening, _) = client.initiate(Suite::ChaChaPoly).unwrap();
    assert_eq!(
        strict
            .respond(protocol, NAME, &opening.message)
            .unwrap_err(),
        RespondError::Handshake(HandshakeError::Unsupported)
    );
}

/// Without randomness: the same bytes each time, to make the transcript of a handshake repeatable.
struct Fixed;

impl Random for Fixed {
    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Error> {
        bytes.fill(0x42);
        Ok(())
    }
}

/// And one whose operating system has none.
struct Dry;

impl Random for Dry {
    fn try_fill_bytes(&mut self, _: &mut [u8]) -> Result<(), Error> {
        Err(Error::Rng)
    }
}

struct With<R>(fn() -> R);

impl<R: Random + 'static> CryptoResolver for With<R> {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(self.0()))
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

#[test]
fn without_randomness_there_is_no_handshake() {
    let dry = Provider::new(With(|| Dry));
    let [client, service] = keyrings(Protocol::new(Pattern::NnPsk0, Suite::ChaChaPoly));
    let (opening, _) = client.initiate(Suite::ChaChaPoly).unwrap();
    assert_eq!(
        client
            .with_provider(dry.clone())
            .initiate(Suite::ChaChaPoly)
            .unwrap_err(),
        HandshakeError::NoRandomness
    );
    let answered =
        service
            .with_provider(dry.clone())
            .respond(opening.protocol, NAME, &opening.message);
    assert_eq!(
        answered.unwrap_err(),
        RespondError::Handshake(HandshakeError::NoRandomness)
    );
    assert!(SharedKey::generate(&dry).is_err());
}

#[test]
fn all_that_is_random_comes_from_the_provider() {
    let openings = [(); 2].map(|()| {
        let [client, _] = keyrings(Protocol::new(Pattern::NnPsk0, Suite::ChaChaPoly));
        let client = client.with_provider(Provider::new(With(|| Fixed)));
        client.initiate(Suite::ChaChaPoly).unwrap().0.message
    });
    assert_eq!(openings[0], openings[1]);
}

#[test]
fn a_digest_is_that_of_fips_180() {
    // FIPS 180-4's example, "abc".
    let digest = Provider::default().sha256(&[b"a", b"", b"bc"]).unwrap();
    let text: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(
        text,
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    );
}
