//! Whom a service serves: who the client of a pipe is, and whether it is one for this endpoint.

use std::io;

use super::calls::{
    ClientCalls, Code, ERROR_CANNOT_IMPERSONATE, ERROR_CANT_OPEN_ANONYMOUS, LEVEL_IDENTIFICATION,
    OpenAs,
};
use crate::error::{ClientRefusal, IdentifyError};
use crate::identity::{AccountId, Confinement, TokenFacts};
use crate::security::{IntegrityLevel, Sid};

/// `SE_GROUP_ENABLED`.
const ENABLED: u32 = 0x4;
/// `SE_GROUP_USE_FOR_DENY_ONLY`.
const DENY_ONLY: u32 = 0x10;

/// Whether an endpoint is for clients that logged on over the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NetworkLogons {
    /// It is not: that of agents, who run on this machine.
    Refused,
    /// It is: operators come through WinRM and SSH, and developers too.
    Admitted,
}

/// Asks who the client is: impersonates it, takes its token, and is itself again before anything
/// else. The token's questions are asked as the process.
///
/// Any question that is not answered means that the client is refused.
pub(crate) fn ask<C: ClientCalls>(
    calls: &C,
    network: NetworkLogons,
) -> Result<TokenFacts, IdentifyError> {
    let token = client_token(calls)?;
    // A client that allows less than identification hides who it is. Its token cannot even be
    // opened; this is the rule itself.
    let level = calls
        .level(&token)
        .map_err(failed("reading the client's level"))?;
    let user = calls
        .user(&token)
        .map_err(failed("reading the client's account"))?;
    if level < LEVEL_IDENTIFICATION || user == Sid::anonymous() {
        return Err(IdentifyError::Anonymous);
    }
    let session = calls
        .session(&token)
        .map_err(failed("reading the client's session"))?;
    let logon = calls
        .logon(&token)
        .map_err(failed("reading the client's log-on"))?;
    let integrity = calls
        .integrity(&token)
        .map_err(failed("reading the client's integrity level"))?;
    let elevation = calls
        .elevation(&token)
        .map_err(failed("reading the client's elevation"))?;
    let groups = calls
        .groups(&token)
        .map_err(failed("reading the client's groups"))?;
    let is_app_container = calls
        .is_app_container(&token)
        .map_err(failed("asking for an app container"))?;
    let is_restricted = calls
        .is_restricted(&token)
        .map_err(failed("asking for restrictions"))?;

    let refused = |reason| {
        let account = AccountId::new(user.to_string());
        Err(IdentifyError::Refused { account, reason })
    };
    if is_app_container {
        return refused(ClientRefusal::AppContainer);
    }
    if integrity < IntegrityLevel::MEDIUM {
        return refused(ClientRefusal::LowIntegrity(integrity));
    }
    // However it counts: what matters is how the client came here.
    let came_over_network = groups.iter().any(|(group, _)| *group == Sid::network());
    if network == NetworkLogons::Refused && came_over_network {
        return refused(ClientRefusal::NetworkLogon);
    }
    let mut facts = TokenFacts::new(user);
    facts.session = session;
    facts.logon = logon;
    facts.integrity = integrity;
    facts.elevation = elevation;
    facts.groups = enabled(groups);
    facts.confinement = if is_restricted {
        Confinement::Restricted
    } else {
        Confinement::Free
    };
    Ok(facts)
}

/// The groups that count for what grants: they are enabled, and not kept only for denials, as
/// Administrators is in the everyday token of an administrator (UAC).
fn enabled(groups: Vec<(Sid, u32)>) -> Vec<Sid> {
    groups
        .into_iter()
        .filter(|(_, attributes)| attributes & (ENABLED | DENY_ONLY) == ENABLED)
        .map(|(group, _)| group)
        .collect()
}

/// The client's token. On return this thread acts as the process again, or the process is gone.
fn client_token<C: ClientCalls>(calls: &C) -> Result<C::Token, IdentifyError> {
    calls.impersonate().map_err(|code| match code {
        ERROR_CANNOT_IMPERSONATE => IdentifyError::TooEarly,
        code => failed("impersonating the client")(code),
    })?;
    let token = calls.open_thread_token(OpenAs::Process);
    if let Err(code) = calls.revert() {
        // "Your process should shut down" (RevertToSelf, remarks).
        calls.abort(code);
    }
    token.map_err(|code| match code {
        ERROR_CANT_OPEN_ANONYMOUS => IdentifyError::Anonymous,
        code => failed("opening the client's token")(code),
    })
}

fn failed(action: &'static str) -> impl Fn(Code) -> IdentifyError {
    move |code| IdentifyError::Io {
        action,
        source: io::Error::from_raw_os_error(code.cast_signed()),
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::super::trace::Recorder;
    use super::*;
    use crate::identity::{Elevation, LogonId};

    const IDENTIFIED: &[&str] = &[
        "ImpersonateNamedPipeClient",
        "OpenThreadToken(TOKEN_QUERY, as the process)",
        "RevertToSelf",
        "TokenImpersonationLevel",
        "TokenUser",
        "TokenSessionId",
        "TokenStatistics",
        "TokenIntegrityLevel",
        "TokenElevationType",
        "TokenGroups",
        "TokenIsAppContainer",
        "IsTokenRestricted",
    ];

    #[test]
    fn a_client_is_impersonated_for_no_longer_than_its_token_takes_to_open() {
        let calls = Recorder::default();
        let facts = ask(&calls, NetworkLogons::Refused).unwrap();
        assert_eq!(calls.trace(), IDENTIFIED);
        assert_eq!(facts.user, Recorder::user());
        assert_eq!((facts.session, facts.logon), (3, LogonId(0x1234)));
        assert_eq!(facts.integrity, IntegrityLevel::MEDIUM);
        assert_eq!(facts.elevation, Elevation::Limited);
        assert_eq!(facts.confinement, Confinement::Free);
        assert_eq!(
            facts.groups,
            [Sid::interactive()],
            "neither what only denies nor what is disabled"
        );
    }

    #[test]
    fn any_question_without_an_answer_is_a_refusal() {
        for (failing, call) in IDENTIFIED.iter().enumerate() {
            if *call == "RevertToSelf" {
                continue;
            }
            let calls = Recorder::default().failing(call, 31);
            let error = ask(&calls, NetworkLogons::Admitted).unwrap_err();
            assert!(matches!(error, IdentifyError::Io { .. }), "{call}: {error}");
            let trace = calls.trace();
            if failing == 0 {
                assert_eq!(trace, IDENTIFIED[..1], "nothing to revert");
            } else {
                assert!(trace.contains(&"RevertToSelf".to_owned()), "{call}");
                assert_eq!(trace.len(), 1 + failing.max(2), "{call}: nothing more");
            }
        }
    }

    #[test]
    fn a_thread_that_cannot_stop_acting_as_a_client_ends_the_process() {
        let calls = Recorder::default().failing("RevertToSelf", 5);
        let asked = catch_unwind(AssertUnwindSafe(|| ask(&calls, NetworkLogons::Admitted)));
        assert!(asked.is_err(), "it did not come back");
        assert_eq!(calls.trace().last().map(String::as_str), Some("abort"));
    }

    #[test]
    fn the_anonymous_are_refused_however_they_hide() {
        let hidden =
            Recorder::default().failing("OpenThreadToken(TOKEN_QUERY, as the process)", 1347);
        let by_level = Recorder {
            level: 0,
            ..Recorder::default()
        };
        let by_account = Recorder {
            account: Sid::anonymous(),
            ..Recorder::default()
        };
        for calls in [hidden, by_level, by_account] {
            let error = ask(&calls, NetworkLogons::Admitted).unwrap_err();
            assert!(matches!(error, IdentifyError::Anonymous), "{error}");
        }
    }

    #[test]
    fn before_the_first_read_it_is_too_early() {
        let calls = Recorder::default().failing("ImpersonateNamedPipeClient", 1368);
        let error = ask(&calls, NetworkLogons::Admitted).unwrap_err();
        assert!(matches!(error, IdentifyError::TooEarly), "{error}");
    }

    #[test]
    fn network_logons_sandboxes_and_app_containers_are_refused() {
        let over_network = || Recorder {
            groups: vec![(Sid::network(), ENABLED)],
            ..Recorder::default()
        };
        let denying = Recorder {
            groups: vec![(Sid::network(), DENY_ONLY)],
            ..Recorder::default()
        };
        let sandbox = || Recorder {
            integrity: IntegrityLevel::LOW,
            ..Recorder::default()
        };
        let container = || Recorder {
            app_container: true,
            ..Recorder::default()
        };
        let low = ClientRefusal::LowIntegrity(IntegrityLevel::LOW);
        for (calls, network, expected) in [
            (
                over_network(),
                NetworkLogons::Refused,
                Some(ClientRefusal::NetworkLogon),
            ),
            (
                denying,
                NetworkLogons::Refused,
                Some(ClientRefusal::NetworkLogon),
            ),
            (over_network(), NetworkLogons::Admitted, None),
            (sandbox(), NetworkLogons::Refused, Some(low)),
            (sandbox(), NetworkLogons::Admitted, Some(low)),
            (
                container(),
                NetworkLogons::Refused,
                Some(ClientRefusal::AppContainer),
            ),
            (
                container(),
                NetworkLogons::Admitted,
                Some(ClientRefusal::AppContainer),
            ),
        ] {
            match ask(&calls, network) {
                Ok(_) => assert_eq!(expected, None),
                Err(IdentifyError::Refused { account, reason }) => {
                    assert_eq!(Some(reason), expected);
                    assert_eq!(account.as_str(), Recorder::user().to_string());
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
}
