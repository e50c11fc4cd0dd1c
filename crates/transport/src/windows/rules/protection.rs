//! What a service's pipe is protected by, as the account that serves and the options say.

use super::client::NetworkLogons;
use crate::seam::ServiceMode;
use crate::security::{PipeDescriptor, PipeDescriptorBuilder, Sid};

/// Who may connect, beside those who own the endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Clients {
    /// These accounts, and the members of these groups.
    Admitted(Vec<Sid>),
    /// Whom this descriptor says.
    Described(PipeDescriptor),
    /// Nobody else: the endpoint of operators.
    None,
}

/// How a pipe is protected: by the operating system at its opening, and by the service when it
/// knows who has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Protection {
    pub(crate) descriptor: PipeDescriptor,
    pub(crate) network: NetworkLogons,
}

/// The protection of the pipe of a service that runs as `account`.
///
/// # Errors
///
/// What is wrong, and what would do.
pub(crate) fn protection(
    account: &Sid,
    mode: ServiceMode,
    clients: Clients,
) -> Result<Protection, String> {
    let production = *account == Sid::system();
    if !production && mode == ServiceMode::Production {
        return Err(format!(
            "this process runs as {account} and not as SYSTEM, whose pipe clients trust; \
             install it as a Windows service, or serve in development mode"
        ));
    }
    let network = if production && clients != Clients::None {
        NetworkLogons::Refused
    } else {
        NetworkLogons::Admitted
    };
    let mut builder = PipeDescriptor::builder(account.clone());
    if network == NetworkLogons::Refused {
        builder = builder.refuse(Sid::network());
    }
    let descriptor = match clients {
        Clients::None => builder.build(),
        Clients::Admitted(sids) => sids
            .into_iter()
            .fold(builder, PipeDescriptorBuilder::admit)
            .build(),
        Clients::Described(descriptor) if descriptor.owner() == account => descriptor,
        Clients::Described(descriptor) => {
            return Err(format!(
                "its security descriptor makes {} the owner, and this process runs as {account}; \
                 name the account that serves (O:SY for a Windows service that runs as SYSTEM)",
                descriptor.owner()
            ));
        }
    };
    Ok(Protection {
        descriptor,
        network,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn developer() -> Sid {
        "S-1-5-21-1-2-3-1009".parse().unwrap()
    }

    fn everybody() -> Clients {
        Clients::Admitted(vec![Sid::authenticated_users()])
    }

    #[test]
    fn a_service_of_the_system_has_the_preset() {
        for (clients, preset, network) in [
            (
                everybody(),
                PipeDescriptor::authenticated(),
                NetworkLogons::Refused,
            ),
            (
                Clients::Admitted(vec![Sid::interactive()]),
                PipeDescriptor::interactive(),
                NetworkLogons::Refused,
            ),
            (
                Clients::Admitted(vec![developer()]),
                PipeDescriptor::user(developer()),
                NetworkLogons::Refused,
            ),
            (
                Clients::None,
                PipeDescriptor::operators(),
                NetworkLogons::Admitted,
            ),
        ] {
            // Development mode gives nothing away to a service that could do without it.
            for mode in [ServiceMode::Production, ServiceMode::Development] {
                let made = protection(&Sid::system(), mode, clients.clone()).unwrap();
                assert_eq!(made.descriptor, preset);
                assert_eq!(made.network, network);
            }
        }
    }

    #[test]
    fn another_owner_than_system_needs_development_mode() {
        let refused = protection(&developer(), ServiceMode::Production, everybody()).unwrap_err();
        assert!(refused.contains("development mode"), "{refused}");
        let made = protection(&developer(), ServiceMode::Development, everybody()).unwrap();
        assert_eq!(made.descriptor, PipeDescriptor::development(developer()));
        assert_eq!(made.network, NetworkLogons::Admitted);
    }

    #[test]
    fn a_descriptor_of_ones_own_must_name_who_serves() {
        let own: PipeDescriptor = "O:SYD:P(A;;FA;;;SY)(A;;0x12019b;;;IU)".parse().unwrap();
        let clients = || Clients::Described(own.clone());
        let made = protection(&Sid::system(), ServiceMode::Production, clients()).unwrap();
        assert_eq!(made.descriptor, own);
        assert_eq!(
            made.network,
            NetworkLogons::Refused,
            "whoever it lets in: agents run on this machine"
        );
        let refused = protection(&developer(), ServiceMode::Development, clients()).unwrap_err();
        assert!(refused.contains("S-1-5-18"), "{refused}");
    }
}
