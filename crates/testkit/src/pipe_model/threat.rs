//! The threats that Wine does not let anybody show a defence against, by their rows in the threat
//! table of `SECURITY.md`.

use std::fmt;

use super::wine::under_wine;

/// A row of the threat table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Threat {
    /// Its number.
    pub row: u8,
    /// What it says.
    pub text: &'static str,
}

const fn threat(row: u8, text: &'static str) -> Threat {
    Threat { row, text }
}

/// Somebody has the name before the service, or after it.
pub const SQUATTED: Threat = threat(1, "the pipe's name squatted before the service starts");
/// Somebody serves beside the service.
pub const EXTRA_INSTANCE: Threat = threat(2, "an extra instance added to a live pipe");
/// The descriptor is not what counts.
pub const DEFAULT_LIST: Threat = threat(5, "a default or missing access control list");
/// A sandbox connects.
pub const SANDBOX: Threat = threat(6, "a sandbox connects");
/// The server acts as its client.
pub const ROGUE_SERVER: Threat = threat(7, "a rogue server impersonates an agent");
/// The server is not who it seems.
pub const FAKE_SERVER: Threat = threat(8, "an agent obeys a fake server");
/// The client hides.
pub const HIDDEN_CLIENT: Threat = threat(11, "a client hides who it is, or changes it by writing");
/// The client is another one than before.
pub const CHANGED_CLIENT: Threat = threat(13, "the identity changes in the middle of a connection");

impl fmt::Display for Threat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "row {}, {}", self.row, self.text)
    }
}

impl Threat {
    /// Whether a test of a defence against this would show anything here. Under Wine it would not,
    /// and a line says so: `why` is what Wine does instead.
    #[expect(
        clippy::print_stdout,
        reason = "who runs the tests should see what they do not show"
    )]
    pub fn is_enforced_here(&self, why: &str) -> bool {
        if under_wine() {
            println!("SKIPPED under Wine: {self}: {why}");
        }
        !under_wine()
    }
}
