//! Who may read or change a file that holds a secret, as its owner and access control list say.

use std::fmt;

use super::descriptor::{Ace, PipeSecurity, WRITE_DAC, WRITE_OWNER};
use super::sid::Sid;

/// `DELETE`.
const DELETE: u32 = 0x0001_0000;

/// `GENERIC_ALL`, `GENERIC_WRITE` and `GENERIC_READ`, in an entry that was never mapped.
const GENERIC_ALL: u32 = 0x1000_0000;
const GENERIC_WRITE: u32 = 0x4000_0000;
const GENERIC_READ: u32 = 0x8000_0000;

/// What lets its holder read a secret in a file, exchange it, or take the right to do so: to read,
/// write and append data, delete the file, change its access control list and its owner.
pub const READING_RIGHTS: u32 =
    0x1 | 0x2 | 0x4 | DELETE | WRITE_DAC | WRITE_OWNER | GENERIC_ALL | GENERIC_WRITE | GENERIC_READ;

/// What lets its holder replace a file in a folder, or take the right to do so: to delete what is in
/// it (`FILE_DELETE_CHILD`), to rename or delete the folder itself, to change its access control list
/// and its owner. To add files is not among them, which `%ProgramData%` lets everybody do: a file of
/// somebody else is known by its owner.
pub const REPLACING_RIGHTS: u32 = 0x40 | DELETE | WRITE_DAC | WRITE_OWNER | GENERIC_ALL;

impl PipeSecurity {
    /// Who beside `masters` and the owner is given any of these rights: the first entry that does.
    /// `None` means nobody is.
    ///
    /// As in [`other_master`](Self::other_master) every entry that grants counts, whatever denies
    /// before it, and so does one of an unknown type. An entry for `OWNER RIGHTS` means the owner, and one for `CREATOR
    /// OWNER` or `CREATOR GROUP` nobody.
    #[must_use]
    pub fn other_reader(&self, masters: &[&Sid], rights: u32) -> Option<OtherReader> {
        let Some(dacl) = &self.dacl else {
            return Some(OtherReader::Everybody);
        };
        // No token has the last two: entries for them are there to be inherited, which those of
        // most folders are.
        let nobody_else = [
            Sid::owner_rights(),
            Sid::creator_owner(),
            Sid::creator_group(),
        ];
        let is_known =
            |sid: &Sid| masters.contains(&sid) || *sid == self.owner || nobody_else.contains(sid);
        dacl.iter().find_map(|entry| match entry {
            Ace::Allow(mask, sid) if mask & rights != 0 && !is_known(sid) => {
                Some(OtherReader::Account {
                    account: sid.clone(),
                    rights: mask & rights,
                })
            }
            Ace::Allow(..) | Ace::Deny(..) => None,
            Ace::Other(kind) => Some(OtherReader::Unknown(*kind)),
        })
    }
}

/// Who has rights to a file or folder that nobody but its owner should have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OtherReader {
    /// There is no list.
    Everybody,
    /// This account or group.
    Account {
        /// Its SID.
        account: Sid,
        /// Which of the rights it is given.
        rights: u32,
    },
    /// An entry of this type, which is not evaluated here.
    Unknown(u8),
}

impl fmt::Display for OtherReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Everybody => f.write_str("it has no access control list"),
            Self::Account { account, rights } => write!(f, "{account} has the rights {rights:#x}"),
            Self::Unknown(kind) => {
                write!(f, "whom its entry of type {kind} gives what is not known")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "S-1-5-21-1-2-3-1009";

    fn judged(sddl: &str, rights: u32) -> Option<OtherReader> {
        let security: PipeSecurity = sddl.parse().unwrap();
        let (system, administrators) = (Sid::system(), Sid::administrators());
        security.other_reader(&[&system, &administrators], rights)
    }

    #[test]
    fn a_file_of_the_own_account_and_the_systems_is_closed() {
        for sddl in [
            format!("O:{OWN}D:P(A;;FA;;;SY)(A;;FA;;;BA)(A;;FA;;;{OWN})"),
            format!("O:{OWN}D:P(A;;FA;;;SY)(A;;FR;;;OW)"),
            "O:SYD:P(A;;FA;;;SY)".to_owned(),
            // To see that a file is there, and its attributes, is nothing that matters.
            format!("O:{OWN}D:P(A;;FA;;;SY)(A;;0x120080;;;WD)"),
            format!("O:{OWN}D:P(D;;FA;;;WD)"),
            // An empty list.
            format!("O:{OWN}D:P"),
        ] {
            assert_eq!(judged(&sddl, READING_RIGHTS), None, "{sddl}");
        }
    }

    #[test]
    fn whoever_may_read_write_or_take_a_file_is_found() {
        for rights in [
            "FA",
            "GA",
            "FR",
            "FW",
            "0x1",
            "0x2",
            "0x4",
            "SD",
            "WD",
            "WO",
            "0x10000000",
            "0x40000000",
            "0x80000000",
        ] {
            for who in ["WD", "AU", "BU", "IU", "S-1-5-21-1-2-3-1010"] {
                // What denies before it does not count: the order may be anything.
                let sddl = format!("O:{OWN}D:P(D;;FA;;;{who})(A;;FA;;;SY)(A;;{rights};;;{who})");
                let found = judged(&sddl, READING_RIGHTS);
                assert!(
                    matches!(found, Some(OtherReader::Account { .. })),
                    "{sddl}: {found:?}"
                );
            }
        }
        assert_eq!(
            judged(&format!("O:{OWN}"), READING_RIGHTS),
            Some(OtherReader::Everybody)
        );
    }

    #[test]
    fn another_owner_is_no_master_of_a_list_that_names_the_own_account() {
        let sddl = format!("O:S-1-5-21-1-2-3-1010D:P(A;;FA;;;{OWN})");
        assert!(judged(&sddl, READING_RIGHTS).is_some());
    }

    #[test]
    fn an_entry_of_an_unknown_type_counts() {
        let security = PipeSecurity {
            owner: Sid::system(),
            dacl: Some(vec![Ace::Other(9)]),
            label: None,
        };
        let found = security.other_reader(&[], READING_RIGHTS);
        assert_eq!(found, Some(OtherReader::Unknown(9)));
    }

    /// What Windows gives `%ProgramData%` and everything that is made in it.
    #[test]
    fn a_folder_to_which_others_may_add_is_one_where_they_cannot_replace() {
        let program_data = "O:SYD:P(A;;FA;;;SY)(A;;FA;;;BA)(A;;0x10000000;;;S-1-3-0)\
            (A;;0x1200a9;;;BU)(A;;0x116;;;BU)";
        assert_eq!(judged(program_data, REPLACING_RIGHTS), None);
        for rights in ["FA", "0x40", "SD", "WD", "WO"] {
            let sddl = format!("O:SYD:P(A;;FA;;;SY)(A;;{rights};;;BU)");
            assert!(judged(&sddl, REPLACING_RIGHTS).is_some(), "{sddl}");
        }
    }
}
