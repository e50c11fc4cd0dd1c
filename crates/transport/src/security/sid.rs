//! Security identifiers: the operating system's ids of accounts and groups.

use std::fmt;
use std::str::FromStr;

/// The most sub-authorities that a SID has (`SID_MAX_SUB_AUTHORITIES`).
const MAX_SUB_AUTHORITIES: usize = 15;

/// A security identifier.
///
/// Its text is the usual one, `S-1-<authority>-<sub-authority>...`
/// ([SID components](https://learn.microsoft.com/windows/win32/secauthz/sid-components)); an
/// authority that needs more than 32 bits is written in hexadecimal, as `ConvertSidToStringSid`
/// does.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Sid {
    authority: u64,
    sub_authorities: Vec<u32>,
}

impl Sid {
    /// `NT AUTHORITY\SYSTEM`.
    pub fn system() -> Self {
        Self::nt_authority(&[18])
    }

    /// The group `BUILTIN\Administrators`.
    pub fn administrators() -> Self {
        Self::nt_authority(&[32, 544])
    }

    /// The group `BUILTIN\Guests`.
    pub fn guests() -> Self {
        Self::nt_authority(&[32, 546])
    }

    /// `NT AUTHORITY\ANONYMOUS LOGON`.
    pub fn anonymous() -> Self {
        Self::nt_authority(&[7])
    }

    /// `NT AUTHORITY\NETWORK`: whoever logged on over the network.
    pub fn network() -> Self {
        Self::nt_authority(&[2])
    }

    /// `NT AUTHORITY\Authenticated Users`.
    pub fn authenticated_users() -> Self {
        Self::nt_authority(&[11])
    }

    /// `NT AUTHORITY\INTERACTIVE`: whoever logged on at the console or over remote desktop.
    pub fn interactive() -> Self {
        Self::nt_authority(&[4])
    }

    /// `NT AUTHORITY\SERVICE`: whoever the service manager logged on.
    pub fn service() -> Self {
        Self::nt_authority(&[6])
    }

    /// `NT AUTHORITY\BATCH`: whoever the task scheduler logged on.
    pub fn batch() -> Self {
        Self::nt_authority(&[3])
    }

    /// The group `BUILTIN\Users`.
    pub fn users() -> Self {
        Self::nt_authority(&[32, 545])
    }

    /// `Everyone`: the anonymous are not in it unless a policy puts them there.
    pub fn everyone() -> Self {
        Self::of(1, &[0])
    }

    /// `OWNER RIGHTS`: an entry for it takes the place of what an owner may do without being told.
    pub fn owner_rights() -> Self {
        Self::of(3, &[4])
    }

    /// `CREATOR OWNER`: whoever makes something in a folder. Nobody is that for what is there already.
    pub fn creator_owner() -> Self {
        Self::of(3, &[0])
    }

    /// `CREATOR GROUP`, likewise.
    pub fn creator_group() -> Self {
        Self::of(3, &[1])
    }

    /// `ALL APPLICATION PACKAGES`: every app container.
    pub fn all_application_packages() -> Self {
        Self::of(15, &[2, 1])
    }

    /// An integrity level as a mandatory label has it: `S-1-16-<level>`.
    pub fn integrity(level: u32) -> Self {
        Self::of(16, &[level])
    }

    /// The level, if this is an integrity level.
    pub fn integrity_level(&self) -> Option<u32> {
        match (self.authority, self.sub_authorities.as_slice()) {
            (16, &[level]) => Some(level),
            _ => None,
        }
    }

    fn of(authority: u64, sub_authorities: &[u32]) -> Self {
        Self {
            authority,
            sub_authorities: sub_authorities.to_vec(),
        }
    }

    fn nt_authority(sub_authorities: &[u32]) -> Self {
        Self::of(5, sub_authorities)
    }

    /// Reads the binary form (`SID`): revision, count, six bytes of authority with the highest
    /// first, and the sub-authorities as the machine stores them. `None` if it is not a whole SID
    /// of revision 1.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (&[1, count, ref authority @ ..], rest) = bytes.split_first_chunk::<8>()? else {
            return None;
        };
        let count = usize::from(count);
        if count > MAX_SUB_AUTHORITIES || rest.len() != count * 4 {
            return None;
        }
        let authority = authority
            .iter()
            .fold(0, |high, &low| (high << 8) | u64::from(low));
        let sub_authorities = rest
            .as_chunks::<4>()
            .0
            .iter()
            .map(|chunk| u32::from_ne_bytes(*chunk))
            .collect();
        Some(Self {
            authority,
            sub_authorities,
        })
    }

    /// The binary form; see [`Sid::from_bytes`].
    pub fn to_bytes(&self) -> Vec<u8> {
        // No SID with more than fifteen sub-authorities can be made.
        let count = u8::try_from(self.sub_authorities.len()).unwrap_or(u8::MAX);
        let mut bytes = vec![1, count];
        bytes.extend_from_slice(&self.authority.to_be_bytes()[2..]);
        bytes.extend(
            self.sub_authorities
                .iter()
                .flat_map(|part| part.to_ne_bytes()),
        );
        bytes
    }
}

impl fmt::Display for Sid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if u32::try_from(self.authority).is_ok() {
            write!(f, "S-1-{}", self.authority)?;
        } else {
            write!(f, "S-1-0x{:X}", self.authority)?;
        }
        self.sub_authorities
            .iter()
            .try_for_each(|part| write!(f, "-{part}"))
    }
}

/// A text that is no SID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is no security identifier; give one such as S-1-5-21-1-2-3-1001")]
pub struct NotASid;

impl FromStr for Sid {
    type Err = NotASid;

    fn from_str(text: &str) -> Result<Self, NotASid> {
        let mut parts = text.split('-');
        if !parts.next().is_some_and(|s| s.eq_ignore_ascii_case("s")) || parts.next() != Some("1") {
            return Err(NotASid);
        }
        let authority = parts.next().ok_or(NotASid)?;
        let authority = match authority
            .strip_prefix("0x")
            .or(authority.strip_prefix("0X"))
        {
            Some(hexadecimal) => u64::from_str_radix(hexadecimal, 16),
            None => authority.parse(),
        };
        let authority = authority
            .ok()
            .filter(|&value| value < 1 << 48)
            .ok_or(NotASid)?;
        let sub_authorities = parts
            .map(str::parse)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| NotASid)?;
        if sub_authorities.is_empty() || sub_authorities.len() > MAX_SUB_AUTHORITIES {
            return Err(NotASid);
        }
        Ok(Self {
            authority,
            sub_authorities,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_bytes_round_trip() {
        for text in [
            "S-1-5-18",
            "S-1-5-32-544",
            "S-1-5-21-1-4294967295-3-1001",
            "S-1-0x100000000-1",
        ] {
            let sid: Sid = text.parse().unwrap();
            assert_eq!(sid.to_string(), text);
            assert_eq!(Sid::from_bytes(&sid.to_bytes()), Some(sid));
        }
        assert_eq!("s-1-5-18".parse(), Ok(Sid::system()));
        assert_eq!(
            Sid::system().to_bytes(),
            [1, 1, 0, 0, 0, 0, 0, 5, 18, 0, 0, 0]
        );
    }

    #[test]
    fn what_is_no_sid_is_refused() {
        let too_many = format!("S-1-5{}", "-1".repeat(MAX_SUB_AUTHORITIES + 1));
        for text in [
            "",
            "S",
            "S-1",
            "S-1-5",
            "S-2-5-18",
            "S-1-5-",
            "S-1-5-x",
            "S-1-5-4294967296",
            "SY",
            &too_many,
        ] {
            assert_eq!(text.parse::<Sid>(), Err(NotASid), "{text}");
        }
        assert_eq!(
            Sid::from_bytes(&[1, 1, 0, 0, 0, 0, 0, 5]),
            None,
            "cut short"
        );
        assert_eq!(
            Sid::from_bytes(&[2, 0, 0, 0, 0, 0, 0, 5]),
            None,
            "another revision"
        );
    }
}
