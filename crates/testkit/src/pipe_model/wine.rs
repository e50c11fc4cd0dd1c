//! Whether "Windows" is Wine, which stores but does not enforce much of what protects a pipe.

/// The version of Wine that this program runs under; `None` on any other system.
#[cfg(windows)]
pub fn wine_version() -> Option<String> {
    #![expect(unsafe_code, reason = "only Wine's own library tells")]
    use std::ffi::{CStr, c_char};

    use windows_sys::Win32::System::LibraryLoader::{GetModuleHandleA, GetProcAddress};

    // SAFETY: both names end with a zero, and every process has the library, for as long as it
    // lives.
    let function = unsafe {
        let library = GetModuleHandleA(c"ntdll.dll".as_ptr().cast());
        if library.is_null() {
            return None;
        }
        GetProcAddress(library, c"wine_get_version".as_ptr().cast())?
    };
    // SAFETY: Wine's function of this name has this type (include/winternl.h), takes nothing, and
    // gives a text that lives as long as the library.
    let version = unsafe {
        let function: unsafe extern "C" fn() -> *const c_char = std::mem::transmute(function);
        CStr::from_ptr(function())
    };
    Some(version.to_string_lossy().into_owned())
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
