//! Whether "Windows" is Wine, which stores but does not enforce much of what protects a pipe.

/// Whether this program runs under Wine. Never so on other systems than Windows.
#[cfg(windows)]
pub fn under_wine() -> bool {
    #![expect(unsafe_code, reason = "only Wine's own library tells")]
    use windows_sys::Win32::System::LibraryLoader::{GetModuleHandleA, GetProcAddress};

    // SAFETY: both names end with a zero, and every process has the library, for as long as it
    // lives.
    unsafe {
        let library = GetModuleHandleA(c"ntdll.dll".as_ptr().cast());
        !library.is_null() && GetProcAddress(library, c"wine_get_version".as_ptr().cast()).is_some()
    }
}

/// Whether this program runs under Wine. Never so on other systems than Windows.
#[cfg(not(windows))]
pub fn under_wine() -> bool {
    false
}
