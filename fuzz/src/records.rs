//! What encryption reads: records, messages of the handshake, and files with keys. Nothing is opened
//! that the other end did not seal in this place, however it is cut, changed, left out, repeated or
//! sent back; and nobody has a session who has not the key.

use std::collections::BTreeSet;

use migration_ipc::crypto::{
    Channel, HandshakeMessage, Keyring, MAX_RECORD, MIN_RECORD, OpenError, Protocol,
    RECORD_OVERHEAD, RespondError, Suite,
};
use migration_ipc::keys::{KeyFileText, KeyKind, MAX_KEY_NAME, MAX_KEYS, ParsedKey};

use crate::encrypted::{KEYS, SUITES, of_client, of_service};
use crate::input::Input;

/// Records that one run seals.
const MAX_SEALED: usize = 8;

/// Changes on their way.
const MAX_CHANGES: usize = 12;

/// The longest text that an error may quote. No part of a key that is longer is in any.
const MAX_QUOTED: usize = 16;

/// Both ends of a session, the client first.
fn session(key: &str, suite: Suite) -> (Channel, Channel) {
    let (opening, initiator) = of_client(key).initiate(suite).expect("nothing is missing");
    let answered = of_service().respond(opening.protocol, key, &opening.message);
    let (answer, service) = answered.expect("the same keys");
    (
        initiator.finish(&answer).expect("its own handshake"),
        service,
    )
}

/// What an opener makes of a sequence, by the documentation: the records that are what they should
/// be, and what follows.
struct Expected {
    plain: Vec<u8>,
    error: Option<OpenError>,
    /// Bytes of a record that is not whole.
    behind: usize,
}

fn expected(mut wire: &[u8], sealed: &[(Vec<u8>, Vec<u8>)]) -> Expected {
    let mut plain = Vec::new();
    let mut genuine = sealed.iter();
    let error = loop {
        let Some((length, rest)) = wire.split_first_chunk::<2>() else {
            break None;
        };
        let length = usize::from(u16::from_le_bytes(*length));
        if length < MIN_RECORD {
            break Some(OpenError::TooShort(length));
        }
        let Some((record, rest)) = rest.split_at_checked(length) else {
            break None;
        };
        match genuine.next() {
            Some((text, whole)) if whole[2..] == *record => plain.extend_from_slice(text),
            _ => break Some(OpenError::Forged),
        }
        wire = rest;
    };
    Expected {
        plain,
        error,
        behind: wire.len(),
    }
}

/// Records that are sealed, changed on their way, and opened in pieces.
pub fn records(data: &[u8]) {
    let mut input = Input::new(data);
    let (key, suite) = (*input.choose(&KEYS), *input.choose(&SUITES));
    let (mut client, mut service) = session(key, suite);
    let mut sealed = Vec::new();
    for _ in 0..=input.byte() % (MAX_SEALED as u8) {
        let mut length = usize::from(input.byte());
        if length == 255 {
            // As long as a record can be, and one byte more, which makes two.
            length = MAX_RECORD - 16 + usize::from(input.byte() & 1);
        }
        let plain = vec![b'a' + (sealed.len() as u8); length];
        let mut wire = Vec::new();
        let result = client.sealer.seal(&plain, &mut wire);
        result.expect("there are numbers left");
        let mut rest = (&plain[..], &wire[..]);
        while !rest.1.is_empty() {
            let count = rest.0.len().min(MAX_RECORD - 16);
            let (text, texts) = rest.0.split_at(count);
            let (record, records) = rest.1.split_at(count + RECORD_OVERHEAD);
            sealed.push((text.to_vec(), record.to_vec()));
            rest = (texts, records);
        }
        assert!(rest.0.is_empty());
    }
    let mut reflected = Vec::new();
    let result = service.sealer.seal(b"to the client", &mut reflected);
    result.expect("there are numbers left");

    let mut sent: Vec<_> = sealed.iter().map(|(_, record)| record.clone()).collect();
    for _ in 0..input.byte() as usize % MAX_CHANGES {
        change(&mut sent, &reflected, &mut input);
    }
    let wire = sent.concat();
    let expected = expected(&wire, &sealed);

    let (mut plain, mut rest, mut error) = (Vec::new(), wire.as_slice(), None);
    while !rest.is_empty() && error.is_none() {
        let count = match usize::from(input.byte()) {
            0 => rest.len(),
            count => count.min(rest.len()),
        };
        // With small pieces a long record would take long.
        let count = count.max(rest.len() / 64);
        let (piece, behind) = rest.split_at(count);
        error = service.opener.open(piece, &mut plain).err();
        assert!(service.opener.buffered() < 2 + MAX_RECORD);
        rest = behind;
    }
    assert_eq!(error, expected.error);
    assert!(plain == expected.plain, "what was sealed is what is opened");
    if error.is_none() {
        assert_eq!(service.opener.buffered(), expected.behind);
        return;
    }
    assert_eq!(service.opener.buffered(), 0);
    // Nor is anything opened behind it, not even what would have been good.
    for (_, record) in &sealed {
        let opened = service.opener.open(record, &mut plain);
        assert_eq!(opened, Err(OpenError::Broken));
    }
    assert!(plain == expected.plain);
}

/// Does something to what is sent.
fn change(sent: &mut Vec<Vec<u8>>, reflected: &[u8], input: &mut Input<'_>) {
    let what = input.byte() % 8;
    let at = usize::from(input.byte()) % (sent.len() + 1);
    let Some(record) = sent.get_mut(at) else {
        return sent.push(reflected.to_vec());
    };
    match what {
        0 => drop(sent.remove(at)),
        1 => {
            let again = record.clone();
            sent.insert(at, again);
        }
        2 if at > 0 => sent.swap(at - 1, at),
        3 => sent.insert(at, reflected.to_vec()),
        4 => {
            let length = record.len().max(1);
            if let Some(byte) = record.get_mut(input.number() % length) {
                *byte ^= 1 << (input.byte() % 8);
            }
        }
        5 => {
            let length = record.len().saturating_sub(input.number());
            record.truncate(length);
        }
        6 => {
            let length = usize::from(input.byte() % 64);
            sent.insert(at, input.bytes(length).to_vec());
        }
        _ => {
            // Its length alone.
            if let Some(length) = record.first_chunk_mut::<2>() {
                *length = [input.byte(), input.byte()];
            }
        }
    }
}

/// A message, changed where the input says so.
fn changed(message: &HandshakeMessage, input: &mut Input<'_>) -> HandshakeMessage {
    let mut bytes = *message.as_bytes();
    for (byte, change) in bytes.iter_mut().zip(input.bytes(48)) {
        *byte ^= change;
    }
    HandshakeMessage::new(bytes)
}

/// A service is asked for a session in good ways and others, and answers in good ways and others.
pub fn handshake(data: &[u8]) {
    let mut input = Input::new(data);
    let (key, suite) = (*input.choose(&KEYS), *input.choose(&SUITES));
    let (opening, initiator) = of_client(key).initiate(suite).expect("nothing is missing");
    let asked = *input.choose(&["", KEYS[0], KEYS[1], "other"]);
    let asked = if asked.is_empty() { key } else { asked };
    let claimed = match input.byte() {
        0..128 => opening.protocol,
        other => Protocol::ALL[usize::from(other) % 4],
    };
    let message = match input.byte() {
        0..64 => opening.message,
        _ => changed(&opening.message, &mut input),
    };
    let service: Keyring = of_service();
    let answered = service.respond(claimed, asked, &message);
    let genuine = message == opening.message && claimed == opening.protocol && asked == key;
    let (answer, mut theirs) = match answered {
        Ok(answered) => answered,
        Err(error) => {
            assert!(!genuine, "{error}");
            assert_eq!(error == RespondError::UnknownKey, asked == "other");
            return;
        }
    };
    assert!(genuine, "a session without the key, or for something else");
    let told = changed(&answer, &mut input);
    let Ok(mut ours) = initiator.finish(&told) else {
        assert_ne!(told, answer);
        return;
    };
    assert_eq!(told, answer, "a service that had not the key");
    for (from, to) in [
        (&mut ours.sealer, &mut theirs.opener),
        (&mut theirs.sealer, &mut ours.opener),
    ] {
        let (mut wire, mut plain) = (Vec::new(), Vec::new());
        from.seal(b"text", &mut wire)
            .expect("there are numbers left");
        assert_eq!(to.open(&wire, &mut plain), Ok(()));
        assert_eq!(plain, b"text");
    }
}

/// Texts of a handshake: each that is read is written as it came, but for the case of its digits.
pub fn texts(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(message) = text.parse::<HandshakeMessage>() {
        assert_eq!(message.to_string(), text.to_ascii_lowercase());
        let answered = of_service().respond(Protocol::ALL[0], KEYS[0], &message);
        assert!(answered.is_err(), "nobody has made it with the key");
    }
    if let Ok(protocol) = text.parse::<Protocol>() {
        assert_eq!(protocol.to_string(), text);
    }
    let service = of_service();
    assert_eq!(service.get(&text).is_some(), KEYS.contains(&&*text));
}

fn is_digit(byte: u8) -> bool {
    byte.is_ascii_hexdigit()
}

/// The key of a line, read without the library.
fn simple_key(line: &str) -> Option<(&str, &str, Vec<u8>)> {
    let line = line.split_once('#').map_or(line, |(said, _)| said);
    let mut words = line.split_whitespace();
    let (name, kind, digits) = (words.next()?, words.next()?, words.next()?);
    let good = name
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        && name.len() <= MAX_KEY_NAME
        && KeyKind::ALL.iter().any(|known| known.as_str() == kind)
        && digits.len() == 64
        && digits.bytes().all(is_digit)
        && words.next().is_none();
    let bytes = good.then(|| {
        let pairs = digits.as_bytes().chunks(2);
        let pairs = pairs.map(|pair| std::str::from_utf8(pair).expect("digits"));
        pairs
            .map(|pair| u8::from_str_radix(pair, 16).expect("digits"))
            .collect::<Vec<_>>()
    })?;
    bytes
        .iter()
        .any(|byte| *byte != 0)
        .then_some((name, kind, bytes))
}

/// The text of a file with keys.
pub fn key_file(text: &[u8]) {
    match KeyFileText::parse(text) {
        Ok(file) => {
            let again = file.to_text();
            assert_eq!(KeyFileText::parse(again.expose()).as_ref(), Ok(&file));
            if let KeyFileText::Clear(keys) = &file {
                check_keys(text, keys);
            }
        }
        Err(error) => {
            let lines = text.iter().filter(|byte| **byte == b'\n').count() + 1;
            assert!((1..=lines).contains(&error.line), "{error}");
            let said = error.to_string();
            let mut runs = said.as_bytes().split(|byte| !is_digit(*byte));
            assert!(runs.all(|run| run.len() <= MAX_QUOTED), "{said}");
        }
    }
}

fn check_keys(text: &[u8], keys: &[ParsedKey]) {
    assert!((1..=MAX_KEYS).contains(&keys.len()));
    let text = std::str::from_utf8(text).expect("it was read");
    // All lines but the one that names the format, and those that are for people.
    let read: Vec<_> = text.lines().filter_map(simple_key).collect();
    let keys: Vec<_> = keys
        .iter()
        .map(|key| (&*key.name, key.kind.as_str(), key.bytes.expose().to_vec()))
        .collect();
    assert_eq!(read, keys);
    let names: BTreeSet<_> = keys.iter().map(|(name, kind, _)| (name, kind)).collect();
    assert_eq!(names.len(), keys.len(), "each name once for each kind");
}
