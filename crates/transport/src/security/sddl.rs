//! The string format of security descriptors, as far as a pipe needs it.
//!
//! [Security descriptor string format](https://learn.microsoft.com/windows/win32/secauthz/security-descriptor-string-format).
//! Whatever of it is not understood here is refused: a text is a promise of what a pipe is protected
//! by, and it is compared with what the operating system says afterwards.

use std::fmt;
use std::str::FromStr;

use super::descriptor::{Ace, FULL_RIGHTS, IntegrityLevel, Label, PipeSecurity};
use super::pipe::DescriptorError;
use super::sid::Sid;

/// The parts of a descriptor that a text has.
#[derive(Debug, Default)]
pub(super) struct Read {
    pub(super) owner: Option<Sid>,
    pub(super) dacl: Option<Vec<Ace>>,
    pub(super) protected: bool,
    pub(super) label: Option<Label>,
}

/// Reads a descriptor as it is, whatever it lets whom do; see
/// [`PipeDescriptor`](super::PipeDescriptor) for those that a service's pipe may have. Without `D:`
/// there is no list, without `S:` no label.
impl FromStr for PipeSecurity {
    type Err = DescriptorError;

    fn from_str(text: &str) -> Result<Self, DescriptorError> {
        let Read {
            owner,
            dacl,
            protected: _,
            label,
        } = parse(text)?;
        Ok(Self {
            owner: owner.ok_or(DescriptorError::NoOwner)?,
            dacl,
            label,
        })
    }
}

/// The rights that have a name of two letters
/// ([ACE strings](https://learn.microsoft.com/windows/win32/secauthz/ace-strings)). Generic ones
/// are what they mean for a file, as the operating system maps them when it creates a pipe.
const RIGHTS: &[(&str, u32)] = &[
    ("GA", FULL_RIGHTS),
    ("GR", 0x0012_0089),
    ("GW", 0x0012_0116),
    ("GX", 0x0012_00A0),
    ("FA", FULL_RIGHTS),
    ("FR", 0x0012_0089),
    ("FW", 0x0012_0116),
    ("FX", 0x0012_00A0),
    ("RC", 0x0002_0000),
    ("SD", 0x0001_0000),
    ("WD", 0x0004_0000),
    ("WO", 0x0008_0000),
    ("CC", 0x1),
    ("DC", 0x2),
    ("LC", 0x4),
    ("SW", 0x8),
    ("RP", 0x10),
    ("WP", 0x20),
    ("DT", 0x40),
    ("LO", 0x80),
    ("CR", 0x100),
];

/// What a mandatory label forbids.
const POLICIES: &[(&str, u32)] = &[("NW", 1), ("NR", 2), ("NX", 4)];

/// The accounts and groups of two letters that may be of use for a pipe
/// ([SID strings](https://learn.microsoft.com/windows/win32/secauthz/sid-strings)).
fn alias(name: &str) -> Option<Sid> {
    Some(match name {
        "AC" => Sid::all_application_packages(),
        "AN" => Sid::anonymous(),
        "AU" => Sid::authenticated_users(),
        "BA" => Sid::administrators(),
        "BG" => Sid::guests(),
        "BU" => Sid::users(),
        "IU" => Sid::interactive(),
        "NU" => Sid::network(),
        "OW" => Sid::owner_rights(),
        "SU" => Sid::service(),
        "SY" => Sid::system(),
        "WD" => Sid::everyone(),
        "LW" => Sid::integrity(IntegrityLevel::LOW.value()),
        "ME" => Sid::integrity(IntegrityLevel::MEDIUM.value()),
        "HI" => Sid::integrity(IntegrityLevel::HIGH.value()),
        "SI" => Sid::integrity(IntegrityLevel::SYSTEM.value()),
        _ => return None,
    })
}

fn wrong<T>(at: &str, expected: &'static str) -> Result<T, DescriptorError> {
    /// As much of the rest as helps to find the place.
    const SHOWN: usize = 60;
    Err(DescriptorError::Syntax {
        at: at.chars().take(SHOWN).collect(),
        expected,
    })
}

pub(super) fn parse(text: &str) -> Result<Read, DescriptorError> {
    let mut read = Read::default();
    let mut seen = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let (section, body) = section(rest)?;
        if seen.contains(&section) {
            return wrong(rest, "each of O:, G:, D: and S: at most once");
        }
        seen.push(section);
        rest = match section {
            'O' => {
                let (sid, after) = account(body)?;
                read.owner = Some(sid);
                after
            }
            'G' => account(body)?.1,
            'D' => {
                let (flags, after) = body.split_at(body.find('(').unwrap_or(body.len()));
                read.protected = match flags.trim() {
                    "" => false,
                    "P" | "PAI" => true,
                    _ => return wrong(body, "D:P followed by entries in parentheses"),
                };
                let (entries, after) = entries(after)?;
                let entries = entries.into_iter().map(ace).collect::<Result<_, _>>()?;
                read.dacl = Some(entries);
                after
            }
            _ => {
                let (entries, after) = entries(body)?;
                let [entry] = entries.as_slice() else {
                    return wrong(body, "one entry, such as S:(ML;;NWNR;;;ME)");
                };
                read.label = Some(label(entry)?);
                after
            }
        };
    }
    Ok(read)
}

/// The letter of a section, and what follows its colon.
fn section(text: &str) -> Result<(char, &str), DescriptorError> {
    let mut characters = text.chars();
    match (characters.next(), characters.next()) {
        (Some(letter @ ('O' | 'G' | 'D' | 'S')), Some(':')) => Ok((letter, characters.as_str())),
        _ => wrong(text, "one of O:, G:, D: and S:"),
    }
}

/// A SID at the beginning of a text, and what follows.
fn account(text: &str) -> Result<(Sid, &str), DescriptorError> {
    let end = match text.get(..2) {
        // Its text ends where the next section begins, which no SID's can contain.
        Some("S-") => text
            .find(|c: char| !(c.is_ascii_alphanumeric() || c == '-'))
            .map_or(text.len(), |end| {
                let section = usize::from(text[end..].starts_with(':'));
                end.saturating_sub(section)
            }),
        _ => 2,
    };
    match text.get(..end).and_then(|name| sid(name).ok()) {
        Some(sid) => Ok((sid, text.get(end..).unwrap_or_default())),
        None => wrong(text, SID_EXPECTED),
    }
}

const SID_EXPECTED: &str = "a SID such as S-1-5-18, or a name of two letters such as SY or AU";

fn sid(name: &str) -> Result<Sid, DescriptorError> {
    match alias(name).or_else(|| name.parse().ok()) {
        Some(sid) => Ok(sid),
        None => wrong(name, SID_EXPECTED),
    }
}

/// The entries in parentheses at the beginning of a text, and what follows.
fn entries(mut text: &str) -> Result<(Vec<&str>, &str), DescriptorError> {
    let mut entries = Vec::new();
    while let Some(inside) = text.strip_prefix('(') {
        let Some((entry, after)) = inside.split_once(')') else {
            return wrong(text, "a closing parenthesis");
        };
        entries.push(entry);
        text = after;
    }
    Ok((entries, text))
}

/// The type, rights and SID of an entry that has nothing else.
fn fields(entry: &str) -> Result<[&str; 3], DescriptorError> {
    const EXPECTED: &str = "an entry of the form (TYPE;;RIGHTS;;;SID): a pipe passes nothing on and \
                            has no object types";
    match entry.split(';').map(str::trim).collect::<Vec<_>>()[..] {
        [kind, "", rights, "", "", sid] => Ok([kind, rights, sid]),
        _ => wrong(entry, EXPECTED),
    }
}

fn ace(entry: &str) -> Result<Ace, DescriptorError> {
    let [kind, rights, name] = fields(entry)?;
    let (mask, sid) = (mask(rights, RIGHTS)?, sid(name)?);
    match kind {
        "A" => Ok(Ace::Allow(mask, sid)),
        "D" => Ok(Ace::Deny(mask, sid)),
        _ => wrong(entry, "an entry of type A or D"),
    }
}

fn label(entry: &str) -> Result<Label, DescriptorError> {
    const EXPECTED: &str = "a mandatory label such as (ML;;NWNR;;;ME), and no other entry";
    let [kind, policy, name] = fields(entry)?;
    match (kind, sid(name)?.integrity_level()) {
        ("ML", Some(level)) => Ok(Label {
            level: IntegrityLevel::new(level),
            policy: mask(policy, POLICIES)?,
        }),
        _ => wrong(entry, EXPECTED),
    }
}

/// A number, or names of two letters.
fn mask(text: &str, names: &[(&str, u32)]) -> Result<u32, DescriptorError> {
    const EXPECTED: &str = "rights as a number such as 0x12019b, or as names of two letters";
    if text.starts_with(|c: char| c.is_ascii_digit()) {
        let number = match text.strip_prefix("0x").or(text.strip_prefix("0X")) {
            Some(hexadecimal) => u32::from_str_radix(hexadecimal, 16),
            None => text.parse(),
        };
        return number.or_else(|_| wrong(text, EXPECTED));
    }
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else {
        return wrong(text, EXPECTED);
    };
    let mut mask = 0;
    for pair in pairs {
        match names.iter().find(|(name, _)| name.as_bytes() == pair) {
            Some((_, bits)) => mask |= bits,
            None => return wrong(text, EXPECTED),
        }
    }
    Ok(mask)
}

/// In the string format; an entry of an unknown type is an error.
impl fmt::Display for PipeSecurity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "O:{}", self.owner)?;
        if let Some(dacl) = &self.dacl {
            f.write_str("D:P")?;
            for entry in dacl {
                match entry {
                    Ace::Allow(mask, sid) => write!(f, "(A;;{mask:#x};;;{sid})")?,
                    Ace::Deny(mask, sid) => write!(f, "(D;;{mask:#x};;;{sid})")?,
                    Ace::Other(_) => return Err(fmt::Error),
                }
            }
        }
        if let Some(Label { level, policy }) = self.label {
            f.write_str("S:(ML;;")?;
            for (name, _) in POLICIES.iter().filter(|(_, bit)| policy & bit != 0) {
                f.write_str(name)?;
            }
            write!(f, ";;;{})", Sid::integrity(level.value()))?;
        }
        Ok(())
    }
}
