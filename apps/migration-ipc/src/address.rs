//! Where a command looks for the service, and whom it takes for it.

use std::convert::Infallible;
use std::str::FromStr;

use clap::Args;
use migration_ipc::transport::resolve_account;
use migration_ipc::{Endpoint, Trust};

use crate::cli::{Exit, Failure, OrExit};
use crate::encrypting::Encrypting;

/// Where the service is.
#[derive(Debug, Args)]
pub(crate) struct Address {
    /// Where the service is: a pipe name on Windows, a socket path elsewhere
    #[arg(long, value_name = "E")]
    pub(crate) endpoint: Option<Endpoint>,

    #[command(flatten)]
    pub(crate) owner: TrustedOwner,

    #[command(flatten)]
    pub(crate) encrypting: Encrypting,
}

impl Address {
    /// The endpoint that was given, or where clients look.
    pub(crate) fn endpoint(&self) -> Result<Endpoint, Failure> {
        match &self.endpoint {
            Some(endpoint) => Ok(endpoint.clone()),
            None => Endpoint::client_default().or_exit(Exit::Usage),
        }
    }
}

/// Whom to take for the service.
#[derive(Debug, Args)]
pub(crate) struct TrustedOwner {
    /// Obey a service that runs as this account, and not as the system: a name, a uid or SID, or
    /// `self` for a service in development mode that runs as this account
    #[arg(long, value_name = "ACCOUNT")]
    trust_owner: Option<Owner>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Owner {
    Own,
    Named(String),
}

impl FromStr for Owner {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text {
            "self" => Self::Own,
            name => Self::Named(name.to_owned()),
        })
    }
}

impl TrustedOwner {
    pub(crate) async fn trust(&self) -> Result<Trust, Failure> {
        match &self.trust_owner {
            None => Ok(Trust::System),
            Some(Owner::Own) => Ok(Trust::OwnAccount),
            Some(Owner::Named(name)) => match resolve_account(name).await.or_exit(Exit::Usage)? {
                Some(account) => Ok(Trust::Account(account)),
                None => Err(Failure::new(
                    Exit::Usage,
                    format!("--trust-owner: there is no account {name:?} on this machine"),
                )),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn trust(owner: Option<&str>) -> Result<Trust, Failure> {
        let trust_owner = owner.map(|text| text.parse().unwrap());
        TrustedOwner { trust_owner }.trust().await
    }

    #[tokio::test]
    async fn only_an_account_that_was_named_is_trusted() {
        assert_eq!(trust(None).await.unwrap(), Trust::System);
        assert_eq!(trust(Some("self")).await.unwrap(), Trust::OwnAccount);
        let system = if cfg!(windows) { "S-1-5-18" } else { "0" };
        let named = trust(Some(system)).await.unwrap();
        assert!(matches!(named, Trust::Account(account) if account.as_str() == system));
        let unknown = trust(Some("no such account")).await.unwrap_err();
        assert_eq!(unknown.exit, Exit::Usage);
    }
}
