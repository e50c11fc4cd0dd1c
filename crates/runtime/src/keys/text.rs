//! What a key file says: a line that names the format, and one line for each key. Pure.
//!
//! ```text
//! migration-ipc-keys 1
//! # what follows a number sign is for people
//! 2026-11  shared  4d2c...
//! ```

use std::fmt;
use std::str::FromStr;

use migration_ipc_transport::secrets::Secret;
use thiserror::Error;
use zeroize::Zeroizing;

/// The length of every key, in bytes: that of X25519, ChaCha20 and AES-256.
pub const KEY_BYTES: usize = 32;

/// The longest name of a key, in bytes: what a hello can carry.
pub const MAX_KEY_NAME: usize = 64;

/// The most keys of one file. A machine has one or two, and a service one for each agent at most.
pub const MAX_KEYS: usize = 256;

/// The first word of the first line.
const FORMAT: &str = "migration-ipc-keys";

/// The longest text that may be a version, in bytes: it is quoted, and no key is as short.
const MAX_VERSION: usize = 16;

/// Stands behind the version if what follows is protected by the operating system.
const PROTECTED: &str = "dpapi";

/// Bytes in a line of what is protected.
const PROTECTED_LINE: usize = 32;

/// What a key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeyKind {
    /// A secret that both sides of a connection have.
    Shared,
    /// The private half of a static key: of this side.
    StaticPrivate,
    /// The public half of one: of the other side. It is no secret; that nobody changes it matters.
    StaticPublic,
    /// Encrypts the outbox on disk.
    Outbox,
}

impl KeyKind {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::Shared,
        Self::StaticPrivate,
        Self::StaticPublic,
        Self::Outbox,
    ];

    /// Its word in a file.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::StaticPrivate => "static-private",
            Self::StaticPublic => "static-public",
            Self::Outbox => "outbox",
        }
    }
}

impl fmt::Display for KeyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The bytes of a key. They are shown by no `Debug`, and overwritten when they are dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyBytes(Zeroizing<[u8; KEY_BYTES]>);

impl KeyBytes {
    /// Takes the bytes over.
    #[must_use]
    pub fn new(bytes: [u8; KEY_BYTES]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes.
    #[must_use]
    pub fn expose(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }
}

impl fmt::Debug for KeyBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyBytes(..)")
    }
}

/// One key of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParsedKey {
    /// How both sides call it: letters, digits, `.`, `_` and `-`, at most [`MAX_KEY_NAME`].
    pub name: String,
    /// What it is for.
    pub kind: KeyKind,
    /// The key.
    pub bytes: KeyBytes,
}

/// What a file holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyFileText {
    /// Keys in the order of their lines. No two of them have one name and one kind.
    Clear(Vec<ParsedKey>),
    /// The text of such a file, protected by the operating system.
    Protected(Vec<u8>),
}

/// A text is not one of a key file.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("line {line}: {problem}")]
pub struct KeyTextError {
    /// The number of the line, from 1 on.
    pub line: usize,
    /// What is wrong with it.
    pub problem: KeyTextProblem,
}

/// What is wrong with a line. None quotes a key.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum KeyTextProblem {
    /// The file does not say that it is one of keys.
    #[error("a key file begins with `{FORMAT} 1`; is it the right file?")]
    NotAKeyFile,
    /// The file is of a later version.
    #[error("this is version `{0}` of the format, and this program reads version `1`")]
    Version(String),
    /// The text is not UTF-8.
    #[error("this is no text in UTF-8")]
    NotUtf8,
    /// A line has not three words.
    #[error("a line is NAME KIND KEY, and this one has {words} word(s)")]
    Words {
        /// How many it has.
        words: usize,
    },
    /// A name that no hello could carry, or no log show.
    #[error("a name has 1 to {MAX_KEY_NAME} letters (a to z), digits, `.`, `_` and `-`")]
    Name,
    /// A kind that is not known.
    #[error(
        "there is no such kind of key; write `shared`, `static-private`, `static-public` or `outbox`"
    )]
    Kind,
    /// A key of another length.
    #[error("a key has {expected} hexadecimal digits, and this one has {digits}", expected = 2 * KEY_BYTES)]
    Length {
        /// How many characters it has.
        digits: usize,
    },
    /// A character that is no digit.
    #[error("a key has hexadecimal digits (0 to 9, a to f), and character {at} is none")]
    Digit {
        /// Which of its characters, from 1 on.
        at: usize,
    },
    /// A key that anybody could guess.
    #[error("a key of zeros is no key; make one with `migration-ipc key new`")]
    Zeros,
    /// Two keys of one kind have one name.
    #[error("line {before} has a key of this name and kind already; give each a name of its own")]
    Twice {
        /// The line of the first one.
        before: usize,
    },
    /// There are more than a file may have.
    #[error("a file has {MAX_KEYS} keys at most")]
    TooMany,
    /// There is none.
    #[error("the file has no key; make one with `migration-ipc key new`")]
    NoKey,
    /// There is none that encrypts a connection.
    #[error(
        "the file has keys, and none of them is for connections; add a `shared` one, or a \
         `static-private` and a `static-public` one of one name"
    )]
    NoConnectionKey,
    /// A private key has no public one of the same name.
    #[error(
        "this private key needs the public key of the other side: a `static-public` line of the \
         same name"
    )]
    NoPublic,
    /// A public key has no private one of the same name.
    #[error(
        "this public key needs the private key of this side: a `static-private` line of the same \
         name"
    )]
    NoPrivate,
    /// A public key is that of its own private one.
    #[error(
        "this is the public half of the private key in line {private}; write that of the other \
         side here"
    )]
    OwnPublic {
        /// The line of the private key.
        private: usize,
    },
    /// Static keys and a shared one have one name, and peers could not tell which is meant.
    #[error(
        "line {before} has a connection's key of this name already; give each a name of its own"
    )]
    NameTaken {
        /// The line of the other one.
        before: usize,
    },
}

impl KeyFileText {
    /// Reads a text. Lines may end in CR LF, and a byte order mark may be in front, since editors of
    /// Windows write both.
    ///
    /// # Errors
    /// The first line that is wrong, and how.
    pub fn parse(text: &[u8]) -> Result<Self, KeyTextError> {
        Ok(Self::parse_numbered(text)?.0)
    }

    /// The same, and the number of each key's line.
    pub(super) fn parse_numbered(text: &[u8]) -> Result<(Self, Vec<usize>), KeyTextError> {
        let text = str::from_utf8(text).map_err(|error| {
            let before = text.get(..error.valid_up_to()).unwrap_or_default();
            let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
            wrong(line, KeyTextProblem::NotUtf8)
        })?;
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut lines = text.lines().enumerate().filter_map(|(index, line)| {
            let said = line.split('#').next().unwrap_or_default().trim();
            (!said.is_empty()).then_some((index + 1, said))
        });
        let (line, first) = lines.next().ok_or(wrong(1, KeyTextProblem::NotAKeyFile))?;
        let words: Vec<_> = first.split_whitespace().collect();
        match words.as_slice() {
            [FORMAT, "1"] => keys(lines, line),
            [FORMAT, "1", PROTECTED] => Ok((protected(lines, line)?, Vec::new())),
            [FORMAT, version @ ..] if !version.is_empty() => {
                let version = version.join(" ");
                // What is longer is something else that has lost its line: a key, which nothing quotes.
                Err(wrong(
                    line,
                    if version.len() <= MAX_VERSION {
                        KeyTextProblem::Version(version)
                    } else {
                        KeyTextProblem::NotAKeyFile
                    },
                ))
            }
            _ => Err(wrong(line, KeyTextProblem::NotAKeyFile)),
        }
    }

    /// The text, as a person would write it. Nothing of it is left in memory but what is returned.
    #[must_use]
    pub fn to_text(&self) -> Secret {
        let lines = match self {
            Self::Clear(keys) => keys.len() * (MAX_KEY_NAME + 20 + 2 * KEY_BYTES),
            Self::Protected(bytes) => 3 * bytes.len(),
        };
        // With room for all of it: a text that grows leaves copies behind.
        let mut text = String::with_capacity(100 + lines);
        text.push_str(FORMAT);
        text.push_str(" 1");
        match self {
            Self::Clear(keys) => {
                text.push('\n');
                for key in keys {
                    text.push_str(&key.name);
                    text.push(' ');
                    text.push_str(key.kind.as_str());
                    text.push(' ');
                    push_digits(&mut text, key.bytes.expose());
                    text.push('\n');
                }
            }
            Self::Protected(bytes) => {
                text.push(' ');
                text.push_str(PROTECTED);
                text.push('\n');
                for line in bytes.chunks(PROTECTED_LINE) {
                    push_digits(&mut text, line);
                    text.push('\n');
                }
            }
        }
        Secret::new(text.into_bytes())
    }
}

/// Whether a text can be the name of a key.
pub(super) fn is_name(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=MAX_KEY_NAME).contains(&name.len()) && name.bytes().all(fits)
}

fn keys<'a>(
    lines: impl Iterator<Item = (usize, &'a str)>,
    mut last: usize,
) -> Result<(KeyFileText, Vec<usize>), KeyTextError> {
    let mut keys = Vec::<ParsedKey>::new();
    let mut numbers = Vec::new();
    for (line, said) in lines {
        last = line;
        let key: ParsedKey = said.parse().map_err(|problem| wrong(line, problem))?;
        let same = |before: &ParsedKey| before.name == key.name && before.kind == key.kind;
        if let Some(before) = keys.iter().position(same).and_then(|at| numbers.get(at)) {
            return Err(wrong(line, KeyTextProblem::Twice { before: *before }));
        }
        if keys.len() == MAX_KEYS {
            return Err(wrong(line, KeyTextProblem::TooMany));
        }
        keys.push(key);
        numbers.push(line);
    }
    if keys.is_empty() {
        return Err(wrong(last, KeyTextProblem::NoKey));
    }
    Ok((KeyFileText::Clear(keys), numbers))
}

fn protected<'a>(
    lines: impl Iterator<Item = (usize, &'a str)>,
    mut last: usize,
) -> Result<KeyFileText, KeyTextError> {
    let mut bytes = Vec::new();
    for (line, said) in lines {
        last = line;
        let digits = said.len();
        if digits % 2 != 0 {
            return Err(wrong(line, KeyTextProblem::Length { digits }));
        }
        let start = bytes.len();
        bytes.resize(start + digits / 2, 0);
        let room = bytes.get_mut(start..).unwrap_or_default();
        read_digits(said, room).map_err(|problem| wrong(line, problem))?;
    }
    if bytes.is_empty() {
        return Err(wrong(last, KeyTextProblem::NoKey));
    }
    Ok(KeyFileText::Protected(bytes))
}

/// One line of a file.
impl FromStr for ParsedKey {
    type Err = KeyTextProblem;

    fn from_str(line: &str) -> Result<Self, KeyTextProblem> {
        let words: Vec<_> = line.split_whitespace().collect();
        let &[name, kind, digits] = words.as_slice() else {
            return Err(KeyTextProblem::Words { words: words.len() });
        };
        if !is_name(name) {
            return Err(KeyTextProblem::Name);
        }
        let kind = KeyKind::ALL
            .into_iter()
            .find(|known| known.as_str() == kind)
            .ok_or(KeyTextProblem::Kind)?;
        if digits.len() != 2 * KEY_BYTES {
            let digits = digits.chars().count();
            return Err(KeyTextProblem::Length { digits });
        }
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        read_digits(digits, bytes.as_mut_slice())?;
        if *bytes == [0; KEY_BYTES] {
            return Err(KeyTextProblem::Zeros);
        }
        Ok(Self {
            name: name.to_owned(),
            kind,
            bytes: KeyBytes(bytes),
        })
    }
}

/// Reads two digits for each byte; the text has as many.
fn read_digits(text: &str, bytes: &mut [u8]) -> Result<(), KeyTextProblem> {
    let value = |digit: u8| {
        char::from(digit)
            .to_digit(16)
            .and_then(|it| u8::try_from(it).ok())
    };
    let (pairs, _) = text.as_bytes().as_chunks::<2>();
    for (index, (byte, [high, low])) in bytes.iter_mut().zip(pairs).enumerate() {
        let at = 2 * index + 1;
        let high = value(*high).ok_or(KeyTextProblem::Digit { at })?;
        let low = value(*low).ok_or(KeyTextProblem::Digit { at: at + 1 })?;
        *byte = high << 4 | low;
    }
    Ok(())
}

fn push_digits(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        for digit in [byte >> 4, byte & 0xF] {
            text.extend(char::from_digit(u32::from(digit), 16));
        }
    }
}

pub(super) fn wrong(line: usize, problem: KeyTextProblem) -> KeyTextError {
    KeyTextError { line, problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const B: &str = "FEDCBA9876543210FEDCBA9876543210FEDCBA9876543210FEDCBA9876543210";

    fn read(text: &str) -> Result<Vec<ParsedKey>, KeyTextError> {
        match KeyFileText::parse(text.as_bytes())? {
            KeyFileText::Clear(keys) => Ok(keys),
            KeyFileText::Protected(_) => panic!("protected"),
        }
    }

    #[test]
    fn a_file_is_read_as_people_write_it() {
        let text = format!(
            "\u{feff}# keys of the lab\r\nmigration-ipc-keys 1\r\n\r\n  2026-11\tshared {A} # new\r\n\
             2026-11 outbox {B}\nservice static-private {A}\nagent_7.b static-public {B}"
        );
        let keys = read(&text).unwrap();
        let shown: Vec<_> = keys
            .iter()
            .map(|key| (key.name.as_str(), key.kind, key.bytes.expose()[0]))
            .collect();
        let expected = [
            ("2026-11", KeyKind::Shared, 0x01),
            ("2026-11", KeyKind::Outbox, 0xFE),
            ("service", KeyKind::StaticPrivate, 0x01),
            ("agent_7.b", KeyKind::StaticPublic, 0xFE),
        ];
        assert_eq!(shown, expected);
        // What is written says the same, without what was for people.
        let written = KeyFileText::Clear(keys.clone()).to_text();
        assert_eq!(read(str::from_utf8(written.expose()).unwrap()), Ok(keys));
    }

    #[test]
    fn the_form_is_this_one() {
        let keys = KeyFileText::Clear(vec![format!("a shared {A}").parse().unwrap()]);
        let text = keys.to_text();
        let expected = format!("migration-ipc-keys 1\na shared {A}\n");
        assert_eq!(str::from_utf8(text.expose()), Ok(expected.as_str()));
        let protected = KeyFileText::Protected((0..40).collect());
        let text = protected.to_text();
        let expected = "migration-ipc-keys 1 dpapi\n\
            000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f\n2021222324252627\n";
        assert_eq!(str::from_utf8(text.expose()), Ok(expected));
        assert_eq!(KeyFileText::parse(text.expose()), Ok(protected));
    }

    #[test]
    fn each_mistake_has_its_line_and_says_what_would_be_right() {
        let long = "x".repeat(65);
        let cases = [
            (String::new(), 1, "begins with `migration-ipc-keys 1`"),
            (
                format!("a shared {A}"),
                1,
                "begins with `migration-ipc-keys 1`",
            ),
            ("\n\nmigration-ipc-keys".into(), 3, "begins with"),
            ("migration-ipc-keys 2\n".into(), 1, "version `2`"),
            ("migration-ipc-keys 1 tpm\n".into(), 1, "version `1 tpm`"),
            ("migration-ipc-keys 1\n# none\n".into(), 1, "has no key"),
            ("migration-ipc-keys 1 dpapi\n".into(), 1, "has no key"),
            ("migration-ipc-keys 1 dpapi\nabc\n".into(), 2, "digits"),
            (
                "migration-ipc-keys 1 dpapi\nabxy\n".into(),
                2,
                "character 3",
            ),
            (format!("migration-ipc-keys 1\na {A}"), 2, "has 2 word"),
            (
                format!("migration-ipc-keys 1\na shared {A} b"),
                2,
                "has 4 word",
            ),
            (
                format!("migration-ipc-keys 1\nä shared {A}"),
                2,
                "a name has",
            ),
            (
                format!("migration-ipc-keys 1\n{long} shared {A}"),
                2,
                "1 to 64",
            ),
            (
                format!("migration-ipc-keys 1\n\na secret {A}"),
                3,
                "no such kind",
            ),
            (
                format!("migration-ipc-keys 1\na shared {A}0"),
                2,
                "this one has 65",
            ),
            (
                format!("migration-ipc-keys 1\na shared {}", &A[1..]),
                2,
                "has 63",
            ),
            (
                format!("migration-ipc-keys 1\na shared {}g", &A[1..]),
                2,
                "character 64",
            ),
            (
                format!("migration-ipc-keys 1\na shared {}ä", &A[2..]),
                2,
                "character 63",
            ),
            (
                format!("migration-ipc-keys 1\na shared {}", "0".repeat(64)),
                2,
                "zeros",
            ),
            (
                format!("migration-ipc-keys 1\na shared {A}\nb shared {A}\na shared {B}"),
                4,
                "line 2 has a key",
            ),
        ];
        for (text, line, expected) in cases {
            let error = read(&text).unwrap_err();
            let said = error.to_string();
            assert_eq!(error.line, line, "{text:?}: {said}");
            assert!(said.contains(expected), "{text:?}: {said}");
            assert!(
                !said.contains(&A[..8]) && !said.contains(&A[8..16]),
                "{said}"
            );
        }
        let binary = KeyFileText::parse(b"migration-ipc-keys 1\na\xff");
        assert_eq!(binary, Err(wrong(2, KeyTextProblem::NotUtf8)));
    }

    /// A line break that got lost put the key behind the version, and the error quoted the most of it.
    #[test]
    fn a_key_in_the_first_line_is_not_quoted() {
        for text in [
            format!("migration-ipc-keys 1 a shared {A}"),
            format!("migration-ipc-keys {A}"),
        ] {
            let error = read(&text).unwrap_err();
            assert_eq!(error, wrong(1, KeyTextProblem::NotAKeyFile));
            assert!(!error.to_string().contains(&A[..4]), "{error}");
        }
    }

    #[test]
    fn a_file_has_so_many_keys_and_no_more() {
        let lines = |count: usize| {
            let keys = (0..count).map(|number| format!("k{number} shared {A}\n"));
            format!("migration-ipc-keys 1\n{}", keys.collect::<String>())
        };
        assert_eq!(read(&lines(MAX_KEYS)).unwrap().len(), MAX_KEYS);
        let error = read(&lines(MAX_KEYS + 1)).unwrap_err();
        assert_eq!(error, wrong(MAX_KEYS + 2, KeyTextProblem::TooMany));
    }

    #[test]
    fn nothing_shows_a_key() {
        let key: ParsedKey = format!("a shared {A}").parse().unwrap();
        let shown = format!("{key:?} {:?}", KeyFileText::Clear(vec![key.clone()]));
        assert!(shown.contains("KeyBytes(..)"), "{shown}");
        for number in ["35", "0x23", "23", "[1", "1, 35"] {
            assert!(!shown.contains(number), "{shown}");
        }
    }

    /// Whatever is in a file, reading it ends with keys or with an error.
    #[test]
    fn no_text_panics() {
        let whole = format!("migration-ipc-keys 1 \na shared {A}\nb outbox {B}");
        let seed = fastrand::u64(..);
        eprintln!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..20_000 {
            let mut text = whole.clone().into_bytes();
            for _ in 0..random.usize(1..4) {
                let at = random.usize(..text.len());
                match random.u8(..3) {
                    0 => text[at] = random.u8(..),
                    1 => text.insert(at, random.u8(..)),
                    _ => drop(text.remove(at)),
                }
            }
            if let Ok(KeyFileText::Clear(keys)) = KeyFileText::parse(&text) {
                assert!(keys.iter().all(|key| is_name(&key.name)));
            }
        }
    }
}
