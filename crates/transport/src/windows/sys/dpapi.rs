//! The data protection of Windows (DPAPI).

use std::ptr::{null, null_mut};
use std::slice;

use windows_sys::Win32::Foundation::{ERROR_INVALID_DATA, LocalFree};
use windows_sys::Win32::Security::Cryptography::{
    CRYPT_INTEGER_BLOB, CRYPTPROTECT_LOCAL_MACHINE, CRYPTPROTECT_UI_FORBIDDEN, CryptProtectData,
    CryptUnprotectData,
};
use zeroize::Zeroize as _;

use super::{Code, check, length};
use crate::secrets::ProtectScope;

/// `CryptProtectData`, without asking the user anything. What comes out is opened by
/// [`unprotect_data`] with the same entropy alone.
///
/// # Errors
///
/// The code of the call, for example when the account has no profile.
pub fn protect_data(data: &[u8], entropy: &[u8], scope: ProtectScope) -> Result<Vec<u8>, Code> {
    let flags = CRYPTPROTECT_UI_FORBIDDEN
        | match scope {
            ProtectScope::Machine => CRYPTPROTECT_LOCAL_MACHINE,
            ProtectScope::User => 0,
        };
    let (data, entropy) = (blob(data)?, blob(entropy)?);
    let mut protected = Output::new();
    // SAFETY: both blobs are as long as they say, outlive the call and are not written to; there is
    // no description and no prompt; the output outlives the call.
    check(unsafe {
        CryptProtectData(
            &raw const data,
            null(),
            &raw const entropy,
            null(),
            null(),
            flags,
            &raw mut protected.0,
        )
    })?;
    Ok(protected.copy())
}

/// `CryptUnprotectData`, without asking the user anything.
///
/// # Errors
///
/// The code of the call: 13 (`ERROR_INVALID_DATA`) or `NTE_BAD_*` when it was protected elsewhere,
/// with another entropy, or was changed.
pub fn unprotect_data(protected: &[u8], entropy: &[u8]) -> Result<Vec<u8>, Code> {
    let (protected, entropy) = (blob(protected)?, blob(entropy)?);
    let mut data = Output::new();
    // SAFETY: as above; the description is not asked for.
    check(unsafe {
        CryptUnprotectData(
            &raw const protected,
            null_mut(),
            &raw const entropy,
            null(),
            null(),
            CRYPTPROTECT_UI_FORBIDDEN,
            &raw mut data.0,
        )
    })?;
    Ok(data.copy())
}

fn blob(bytes: &[u8]) -> Result<CRYPT_INTEGER_BLOB, Code> {
    Ok(CRYPT_INTEGER_BLOB {
        cbData: u32::try_from(bytes.len()).map_err(|_| ERROR_INVALID_DATA)?,
        // The calls take it as something to write to, and only read.
        pbData: bytes.as_ptr().cast_mut(),
    })
}

/// Memory that a call allocates: overwritten and freed at its end, since it may hold a secret.
struct Output(CRYPT_INTEGER_BLOB);

impl Output {
    fn new() -> Self {
        Self(CRYPT_INTEGER_BLOB {
            cbData: 0,
            pbData: null_mut(),
        })
    }

    fn copy(&self) -> Vec<u8> {
        if self.0.pbData.is_null() {
            return Vec::new();
        }
        // SAFETY: a call that succeeded put that many bytes there, and they are freed with `self`.
        unsafe { slice::from_raw_parts(self.0.pbData, length(self.0.cbData)) }.to_vec()
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if self.0.pbData.is_null() {
            return;
        }
        // SAFETY: as in `copy`; nobody else has the memory.
        unsafe { slice::from_raw_parts_mut(self.0.pbData, length(self.0.cbData)) }.zeroize();
        // SAFETY: the call that put the pointer there asks for `LocalFree`; it is freed once.
        unsafe { LocalFree(self.0.pbData.cast()) };
    }
}
