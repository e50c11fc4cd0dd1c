//! What becomes of records that are cut, changed, left out, repeated or made up.

mod common;

use common::{keyrings, sealed, session, session_between};
use migration_ipc_crypto::provider::primitives::{
    Cipher, CipherChoice, CryptoResolver, DHChoice, DefaultResolver, Dh, Error, Hash, HashChoice,
    Random,
};
use migration_ipc_crypto::{
    Channel, MAX_RECORD, MIN_RECORD, OpenError, Pattern, Protocol, Provider, RECORD_OVERHEAD,
    REKEY_AFTER, Suite,
};
use proptest::prelude::*;

const PROTOCOL: Protocol = Protocol::new(Pattern::NnPsk0, Suite::ChaChaPoly);

fn open(channel: &mut Channel, wire: &[u8]) -> Result<Vec<u8>, OpenError> {
    let mut plain = Vec::new();
    channel.opener.open(wire, &mut plain)?;
    Ok(plain)
}

#[test]
fn a_record_is_no_longer_than_noise_allows_and_never_empty() {
    let [mut client, mut service] = session(PROTOCOL);
    let longest = MAX_RECORD - 16;
    for (plain, records) in [
        (0, 0),
        (1, 1),
        (longest, 1),
        (longest + 1, 2),
        (1_048_580, 17),
    ] {
        let text = vec![3; plain];
        let wire = sealed(&mut client, &text);
        assert_eq!(wire.len(), plain + records * RECORD_OVERHEAD);
        assert_eq!(open(&mut service, &wire).unwrap(), text);
    }
    assert_eq!(client.sealer.records(), 21);
    assert_eq!(service.opener.records(), 21);
}

#[test]
fn a_length_without_room_for_anything_is_refused_as_soon_as_it_is_there() {
    for length in [0, 1, 15, 16] {
        let [_, mut service] = session(PROTOCOL);
        let bytes = u16::try_from(length).unwrap().to_le_bytes();
        assert_eq!(open(&mut service, &bytes), Err(OpenError::TooShort(length)));
    }
    let [_, mut service] = session(PROTOCOL);
    assert_eq!(open(&mut service, &[0]).unwrap(), b"");
    assert_eq!(open(&mut service, &[0]), Err(OpenError::TooShort(0)));
}

#[test]
fn a_truncated_record_gives_nothing_and_a_longer_one_neither() {
    let [mut client, mut service] = session(PROTOCOL);
    let wire = sealed(&mut client, b"whole");
    for cut in 0..wire.len() {
        let [mut client, mut service] = session(PROTOCOL);
        let wire = sealed(&mut client, b"whole");
        assert_eq!(open(&mut service, &wire[..cut]).unwrap(), b"");
        assert_eq!(service.opener.buffered(), cut);
    }
    // The length is changed to fit what is left: the tag is then that of something else.
    let mut shorter = wire[..wire.len() - 1].to_vec();
    shorter[0] -= 1;
    assert_eq!(open(&mut service, &shorter), Err(OpenError::Forged));
    let [mut client, mut service] = session(PROTOCOL);
    let mut longer = sealed(&mut client, b"whole");
    longer[0] += 1;
    longer.push(0);
    assert_eq!(open(&mut service, &longer), Err(OpenError::Forged));
}

#[test]
fn every_bit_behind_the_length_counts() {
    for protocol in Protocol::ALL {
        let [mut client, _] = session(protocol);
        let bits = 8 * sealed(&mut client, b"hunter2").len();
        for bit in (16..bits).step_by(3) {
            let [mut client, mut service] = session(protocol);
            let mut wire = sealed(&mut client, b"hunter2");
            wire[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(open(&mut service, &wire), Err(OpenError::Forged), "{bit}");
        }
    }
}

#[test]
fn records_are_opened_in_their_order_once_and_all_of_them() {
    let changes: [(&str, &[usize]); 4] = [
        ("reordered", &[1, 0, 2]),
        ("repeated", &[0, 0, 1]),
        ("left out", &[0, 2]),
        ("from the start again", &[0, 1, 0]),
    ];
    for (what, order) in changes {
        let [mut client, mut service] = session(PROTOCOL);
        let records = [b"a", b"b", b"c"].map(|text| sealed(&mut client, text));
        let wire: Vec<u8> = order.iter().flat_map(|at| records[*at].clone()).collect();
        assert_eq!(open(&mut service, &wire), Err(OpenError::Forged), "{what}");
    }
}

#[test]
fn a_record_of_one_session_or_direction_is_nothing_in_another() {
    let [mut client, mut service] = session(PROTOCOL);
    let [mut other, _] = session(PROTOCOL);
    let foreign = sealed(&mut other, b"foreign");
    assert_eq!(open(&mut service, &foreign), Err(OpenError::Forged));
    // What a side said, sent back to it.
    let own = sealed(&mut client, b"own");
    assert_eq!(open(&mut client, &own), Err(OpenError::Forged));
}

#[test]
fn nothing_is_opened_behind_a_record_that_was_not() {
    let [mut client, mut service] = session(PROTOCOL);
    let good = sealed(&mut client, b"good");
    let mut bad = sealed(&mut client, b"bad");
    *bad.last_mut().unwrap() ^= 1;
    let next = sealed(&mut client, b"next");
    let mut plain = Vec::new();
    let wire = [good, bad].concat();
    assert_eq!(
        service.opener.open(&wire, &mut plain),
        Err(OpenError::Forged)
    );
    assert_eq!(plain, b"good", "what was before it was right");
    assert_eq!(open(&mut service, &next), Err(OpenError::Broken));
    assert_eq!(service.opener.buffered(), 0, "and nothing is kept");
}

#[test]
fn an_opener_holds_one_record_at_most() {
    let [_, mut service] = session(PROTOCOL);
    let mut most = 0;
    for byte in [0xff, 0xff]
        .into_iter()
        .chain(std::iter::repeat_n(7, MAX_RECORD))
    {
        let opened = service.opener.open(&[byte], &mut Vec::new());
        most = most.max(service.opener.buffered());
        if let Err(error) = opened {
            assert_eq!(error, OpenError::Forged);
        }
    }
    assert_eq!(most, 2 + MAX_RECORD - 1);
}

#[test]
fn both_ends_change_their_keys_at_the_same_record() {
    for protocol in Protocol::ALL {
        let [mut client, mut service] = session(protocol);
        // Both directions cross the boundary, each by itself.
        for number in 0..2 * REKEY_AFTER + 3 {
            let wire = sealed(&mut client, &number.to_le_bytes());
            let plain = open(&mut service, &wire).unwrap();
            assert_eq!(plain, number.to_le_bytes());
        }
        let wire = sealed(&mut service, b"still the first key here");
        assert_eq!(
            open(&mut client, &wire).unwrap(),
            b"still the first key here"
        );
    }
}

/// A cipher that keeps its first key for good.
struct Stubborn(Box<dyn Cipher>);

impl Cipher for Stubborn {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn set(&mut self, key: &[u8; 32]) {
        self.0.set(key);
    }

    fn encrypt(&self, nonce: u64, with: &[u8], plain: &[u8], out: &mut [u8]) -> usize {
        self.0.encrypt(nonce, with, plain, out)
    }

    fn decrypt(
        &self,
        nonce: u64,
        with: &[u8],
        sealed: &[u8],
        out: &mut [u8],
    ) -> Result<usize, Error> {
        self.0.decrypt(nonce, with, sealed, out)
    }

    fn rekey(&mut self) {}
}

struct NeverRekeys;

impl CryptoResolver for NeverRekeys {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        DefaultResolver.resolve_rng()
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        DefaultResolver.resolve_dh(choice)
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        DefaultResolver.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        Some(Box::new(Stubborn(DefaultResolver.resolve_cipher(choice)?)))
    }
}

#[test]
fn a_record_under_the_key_before_is_not_opened() {
    // The nonce goes on over a change of keys, so an end that keeps its key is heard until then.
    for protocol in Protocol::ALL {
        let [client, service] = keyrings(protocol);
        let client = client.with_provider(Provider::new(NeverRekeys));
        let [mut client, mut service] = session_between([client, service], protocol);
        for _ in 0..REKEY_AFTER {
            let wire = sealed(&mut client, b"x");
            open(&mut service, &wire).unwrap();
        }
        let wire = sealed(&mut client, b"x");
        assert_eq!(open(&mut service, &wire), Err(OpenError::Forged));
        assert_eq!(service.opener.records(), REKEY_AFTER);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn pieces_of_any_size_come_to_the_same(
        texts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..3000), 1..12),
        cuts in prop::collection::vec(1_usize..700, 1..50),
        aes in any::<bool>(),
    ) {
        let suite = if aes { Suite::AesGcm } else { Suite::ChaChaPoly };
        let [mut client, mut service] = session(Protocol::new(Pattern::NnPsk0, suite));
        let wire: Vec<u8> = texts.iter().flat_map(|text| sealed(&mut client, text)).collect();
        let mut plain = Vec::new();
        let mut rest = wire.as_slice();
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, behind) = rest.split_at((*cut).min(rest.len()));
            service.opener.open(piece, &mut plain).unwrap();
            rest = behind;
        }
        prop_assert_eq!(plain, texts.concat());
        prop_assert_eq!(service.opener.buffered(), 0);
    }

    #[test]
    fn bytes_that_nobody_sealed_are_an_error_or_nothing(
        bytes in prop::collection::vec(any::<u8>(), 0..4000),
        cut in 0_usize..4000,
    ) {
        let [_, mut service] = session(PROTOCOL);
        let (first, second) = bytes.split_at(cut.min(bytes.len()));
        let mut plain = Vec::new();
        let opened = service
            .opener
            .open(first, &mut plain)
            .and_then(|()| service.opener.open(second, &mut plain));
        prop_assert!(plain.is_empty());
        if opened.is_ok() {
            prop_assert!(bytes.len() < 2 + MIN_RECORD || service.opener.buffered() == bytes.len());
        }
    }
}
