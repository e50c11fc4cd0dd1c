//! Whether "Windows" is Wine, which stores but does not enforce much of what protects a pipe.

/// The version of Wine that this program runs under; `None` on any other system.
#[cfg(windows)]
pub fn wine_version() -> Option<String> {
    migration_ipc_transport::win32::wine_version()
}

/// The version of Wine that this program runs under; `None` on any other system.
#[cfg(not(windows))]
pub fn wine_version() -> Option<String> {
    None
}

/// Whether this program runs under Wine. Never so on other systems than Windows.
pub fn under_wine() -> bool {
    wine_version().is_some()
}
