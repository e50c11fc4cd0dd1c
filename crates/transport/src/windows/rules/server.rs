//! Whom a client obeys: who serves a pipe, and who else could.

use super::calls::{
    Code, FILE_FLAG_OVERLAPPED, GENERIC_READ_WRITE, PipeCalls, SECURITY_IDENTIFICATION,
    SECURITY_SQOS_PRESENT,
};
use crate::security::{OtherMaster, PipeSecurity, Sid};

/// A pipe that was not opened, or whose server is not to be trusted with a single byte.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refused<P> {
    /// It could not be opened.
    Open(Code),
    /// What protects it could not be read.
    Security(Code),
    /// Its server is not trusted.
    Distrusted {
        /// The pipe, to say more of its server.
        pipe: P,
        /// Who owns it.
        owner: Sid,
        /// Why that is not enough.
        why: Distrust,
    },
}

/// Why a server is not trusted.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Distrust {
    /// The pipe's owner is not one to trust.
    Owner,
    /// Somebody else could make themselves a second master of the pipe.
    OtherMaster(OtherMaster),
}

/// Opens a pipe so that its server may know who we are and no more, and makes sure that the server
/// is one to trust before anything is written. Gives the pipe and its owner.
///
/// `also` is an account that is trusted beside SYSTEM and Administrators.
pub(crate) fn open<C: PipeCalls>(
    calls: &C,
    also: Option<&Sid>,
) -> Result<(C::Pipe, Sid), Refused<C::Pipe>> {
    let flags = FILE_FLAG_OVERLAPPED | SECURITY_SQOS_PRESENT | SECURITY_IDENTIFICATION;
    let pipe = calls
        .open(GENERIC_READ_WRITE, flags)
        .map_err(Refused::Open)?;
    let security = calls.security(&pipe).map_err(Refused::Security)?;
    match distrust(&security, also) {
        None => Ok((pipe, security.owner)),
        Some(why) => Err(Refused::Distrusted {
            pipe,
            owner: security.owner,
            why,
        }),
    }
}

/// The owner of a pipe tells who created its name first, and nothing of who has added the instance
/// that was opened. So the list matters as much: the trusted alone may add instances, and change who
/// may.
fn distrust(security: &PipeSecurity, also: Option<&Sid>) -> Option<Distrust> {
    let (system, administrators) = (Sid::system(), Sid::administrators());
    let trusted: Vec<&Sid> = [&system, &administrators].into_iter().chain(also).collect();
    if !trusted.contains(&&security.owner) {
        return Some(Distrust::Owner);
    }
    security.other_master(&trusted).map(Distrust::OtherMaster)
}

#[cfg(test)]
mod tests {
    use super::super::trace::Recorder;
    use super::*;
    use crate::security::{Ace, PipeDescriptor};

    const OPENED: &[&str] = &[
        // GENERIC_READ | GENERIC_WRITE; overlapped, SECURITY_SQOS_PRESENT | SECURITY_IDENTIFICATION.
        "CreateFile(0xc0000000, OPEN_EXISTING, 0x40110000)",
        "GetSecurityInfo(owner, list, label)",
    ];

    fn developer() -> Sid {
        "S-1-5-21-1-2-3-1009".parse().unwrap()
    }

    fn opened(security: &str, also: Option<&Sid>) -> Result<Sid, Refused<()>> {
        let calls = Recorder::protected_by(security.parse().unwrap());
        let opened = open(&calls, also).map(|(_pipe, owner)| owner);
        assert_eq!(calls.trace(), OPENED, "and not a byte was written");
        opened
    }

    #[test]
    fn a_client_reads_who_serves_before_anything_is_written() {
        let service = PipeDescriptor::authenticated().to_string();
        assert_eq!(opened(&service, None), Ok(Sid::system()));
        // What .NET gives a pipe of SYSTEM whose maker names no descriptor.
        let dotnet = "O:SYD:(A;;FA;;;SY)(A;;FA;;;BA)(A;;FR;;;WD)(A;;FR;;;AN)";
        assert_eq!(opened(dotnet, None), Ok(Sid::system()));
        // An elevated administrator's.
        let administrators = "O:BAD:P(A;;FA;;;SY)(A;;FA;;;BA)(A;;0x12019b;;;AU)";
        assert_eq!(opened(administrators, None), Ok(Sid::administrators()));
    }

    #[test]
    fn a_pipe_of_somebody_else_is_distrusted_unless_that_account_was_named() {
        let development = PipeDescriptor::development(developer()).to_string();
        let refused = |also| match opened(&development, also) {
            Err(Refused::Distrusted { owner, why, .. }) => (owner, why),
            other => panic!("{other:?}"),
        };
        assert_eq!(refused(None), (developer(), Distrust::Owner));
        let other = "S-1-5-21-1-2-3-1001".parse().unwrap();
        assert_eq!(refused(Some(&other)), (developer(), Distrust::Owner));
        assert_eq!(opened(&development, Some(&developer())), Ok(developer()));
    }

    #[test]
    fn a_pipe_of_system_to_which_others_can_add_instances_is_distrusted() {
        for entry in [
            "(A;;FA;;;WD)",
            "(A;;GRGW;;;AU)",
            "(A;;LC;;;IU)",
            "(A;;WD;;;BU)",
            "(A;;WO;;;BU)",
        ] {
            let security = format!("O:SYD:P(D;;FA;;;NU)(A;;FA;;;SY){entry}");
            let refused = opened(&security, Some(&developer())).unwrap_err();
            assert!(
                matches!(
                    refused,
                    Refused::Distrusted {
                        why: Distrust::OtherMaster(OtherMaster::Account { .. }),
                        ..
                    }
                ),
                "{entry}: {refused:?}"
            );
        }
        let without_list = opened("O:SY", None).unwrap_err();
        assert!(
            matches!(
                without_list,
                Refused::Distrusted {
                    why: Distrust::OtherMaster(OtherMaster::Everybody),
                    ..
                }
            ),
            "{without_list:?}"
        );
        let unknown = PipeSecurity {
            owner: Sid::system(),
            dacl: Some(vec![Ace::Other(9)]),
            label: None,
        };
        let other = Distrust::OtherMaster(OtherMaster::Unknown(9));
        assert_eq!(distrust(&unknown, None), Some(other));
    }

    #[test]
    fn a_pipe_whose_protection_cannot_be_read_is_left() {
        let calls = Recorder::default().failing("GetSecurityInfo(owner, list, label)", 5);
        assert_eq!(open(&calls, None).unwrap_err(), Refused::Security(5));
        assert_eq!(calls.trace(), OPENED);
        let calls = Recorder::default().failing(OPENED[0], 231);
        assert_eq!(open(&calls, None).unwrap_err(), Refused::Open(231));
        assert_eq!(calls.trace(), OPENED[..1]);
    }
}
