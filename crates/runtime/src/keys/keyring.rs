//! Keys of a file as what encrypts connections. Pure.

use std::collections::BTreeMap;

use migration_ipc_crypto::{
    Key, KeyName, Keyring, PrivateKey, Provider, PublicKey, SharedKey, StaticKeys,
};

use super::text::{KeyKind, KeyTextError, KeyTextProblem, ParsedKey, wrong};

/// What lines say of the keys of one name.
#[derive(Default)]
struct Named<'a> {
    shared: Option<(usize, &'a ParsedKey)>,
    private: Option<(usize, &'a ParsedKey)>,
    public: Option<(usize, &'a ParsedKey)>,
}

/// Makes a keyring of the keys that are for connections. The one whose line is first is the default.
pub(super) fn keyring_of(keys: &[ParsedKey], lines: &[usize]) -> Result<Keyring, KeyTextError> {
    let mut names = Vec::new();
    let mut named = BTreeMap::<&str, Named<'_>>::new();
    for (key, &line) in keys.iter().zip(lines) {
        if key.kind == KeyKind::Outbox {
            continue;
        }
        if !named.contains_key(key.name.as_str()) {
            names.push(key.name.as_str());
        }
        let entry = named.entry(&key.name).or_default();
        match key.kind {
            KeyKind::Shared => entry.shared = Some((line, key)),
            KeyKind::StaticPrivate => entry.private = Some((line, key)),
            KeyKind::StaticPublic => entry.public = Some((line, key)),
            KeyKind::Outbox => {}
        }
    }
    let mut keyring = None::<Keyring>;
    for name in names {
        let Some(entry) = named.remove(name) else {
            continue;
        };
        let (line, key) = entry.key()?;
        let name: KeyName = name
            .parse()
            .map_err(|_| wrong(line, KeyTextProblem::Name))?;
        keyring = Some(match keyring {
            None => Keyring::new(name, key),
            // Each name occurs once.
            Some(others) => others
                .with(name, key)
                .map_err(|_| wrong(line, KeyTextProblem::NameTaken { before: line }))?,
        });
    }
    let last = lines.last().copied().unwrap_or(1);
    keyring.ok_or(wrong(last, KeyTextProblem::NoConnectionKey))
}

impl Named<'_> {
    /// The key, and a line of it.
    fn key(self) -> Result<(usize, Key), KeyTextError> {
        match (self.shared, self.private, self.public) {
            (Some((line, key)), None, None) => {
                let shared = SharedKey::new(*key.bytes.expose());
                Ok((line, Key::Shared(shared)))
            }
            (Some((shared, _)), Some((other, _)), _)
            | (Some((shared, _)), None, Some((other, _))) => {
                let before = shared.min(other);
                Err(wrong(
                    shared.max(other),
                    KeyTextProblem::NameTaken { before },
                ))
            }
            (None, Some((private, own)), Some((line, peer))) => {
                let keys = StaticKeys {
                    private: PrivateKey::new(*own.bytes.expose()),
                    peer: PublicKey::new(*peer.bytes.expose()),
                };
                // The likeliest mistake with two pairs of halves.
                let own = keys.private.public(&Provider::default());
                if own.is_ok_and(|own| own == keys.peer) {
                    return Err(wrong(line, KeyTextProblem::OwnPublic { private }));
                }
                Ok((private, Key::Static(keys)))
            }
            (None, Some((line, _)), None) => Err(wrong(line, KeyTextProblem::NoPublic)),
            (None, None, Some((line, _))) => Err(wrong(line, KeyTextProblem::NoPrivate)),
            (None, None, None) => Err(wrong(1, KeyTextProblem::NoConnectionKey)),
        }
    }
}

#[cfg(test)]
mod tests {
    use migration_ipc_crypto::{Pattern, Suite};

    use super::*;
    use crate::keys::{KeyFileText, generate_static_keys};

    const A: &str = "1111111111111111111111111111111111111111111111111111111111111111";

    fn keyring(lines: &[&str]) -> Result<Keyring, KeyTextError> {
        let text = format!("migration-ipc-keys 1\n{}", lines.join("\n")).replace("KEY", A);
        match KeyFileText::parse_numbered(text.as_bytes()).unwrap() {
            (KeyFileText::Clear(keys), lines) => keyring_of(&keys, &lines),
            (KeyFileText::Protected(_), _) => panic!("nothing is protected here"),
        }
    }

    #[test]
    fn the_first_key_for_connections_is_the_one_that_clients_use() {
        let lines = [
            "disk outbox KEY",
            "new static-public KEY",
            "old shared KEY",
            "new static-private KEY",
        ];
        let keyring = keyring(&lines).unwrap();
        assert_eq!(keyring.default_name().as_str(), "new");
        assert_eq!(keyring.names().count(), 2);
        let pattern = |name| keyring.get(name).map(|key| key.pattern());
        assert_eq!(pattern("new"), Some(Pattern::Kk));
        assert_eq!(pattern("old"), Some(Pattern::NnPsk0));
        assert_eq!(pattern("disk"), None);
    }

    #[test]
    fn each_mistake_of_a_keyring_has_its_line() {
        let cases: [(&[&str], usize, KeyTextProblem); 6] = [
            (&["a outbox KEY"], 2, KeyTextProblem::NoConnectionKey),
            (
                &["a shared KEY", "b static-private KEY"],
                3,
                KeyTextProblem::NoPublic,
            ),
            (
                &["", "a static-public KEY", "b static-private KEY"],
                3,
                KeyTextProblem::NoPrivate,
            ),
            (
                &["a static-private KEY", "b static-public KEY"],
                2,
                KeyTextProblem::NoPublic,
            ),
            (
                &[
                    "a static-private KEY",
                    "a static-public KEY",
                    "a shared KEY",
                ],
                4,
                KeyTextProblem::NameTaken { before: 2 },
            ),
            (
                &["a shared KEY", "a static-public KEY"],
                3,
                KeyTextProblem::NameTaken { before: 2 },
            ),
        ];
        for (lines, line, problem) in cases {
            assert_eq!(
                keyring(lines).unwrap_err(),
                wrong(line, problem),
                "{lines:?}"
            );
        }
    }

    #[test]
    fn the_static_keys_of_two_ends_open_a_session() {
        let [a, b] = generate_static_keys("agent-7").unwrap();
        let (client, service) = (
            keyring_of(&a, &[2, 3]).unwrap(),
            keyring_of(&b, &[2, 3]).unwrap(),
        );
        let (opening, initiator) = client.initiate(Suite::default()).unwrap();
        let answer = service.respond(opening.protocol, opening.key.as_str(), &opening.message);
        let (answer, _) = answer.unwrap();
        initiator.finish(&answer).unwrap();
    }

    #[test]
    fn the_own_public_half_is_not_taken_for_the_other_sides() {
        let [mut a, b] = generate_static_keys("k").unwrap();
        // What b was given as the peer's is a's own.
        a[1].bytes = b[1].bytes.clone();
        let error = keyring_of(&a, &[2, 3]).unwrap_err();
        assert_eq!(error, wrong(3, KeyTextProblem::OwnPublic { private: 2 }));
    }
}
