//! A double of the system layer that writes down what is called, with which arguments, in order.

use std::cell::RefCell;

use super::calls::{ClientCalls, Code, OpenAs, PipeCalls};
use crate::identity::{Elevation, LogonId};
use crate::security::{IntegrityLevel, PipeDescriptor, PipeSecurity, Sid};

/// Answers as an agent's token, and a service's pipe, would, unless told otherwise.
pub(super) struct Recorder {
    pub(super) calls: RefCell<Vec<String>>,
    /// The calls that fail, with their codes, and how many times they still do.
    pub(super) failing: RefCell<Vec<(String, Code, u32)>>,
    pub(super) security: PipeSecurity,
    pub(super) level: u32,
    pub(super) account: Sid,
    pub(super) integrity: IntegrityLevel,
    pub(super) groups: Vec<(Sid, u32)>,
    pub(super) app_container: bool,
}

impl Default for Recorder {
    fn default() -> Self {
        Self {
            calls: RefCell::default(),
            failing: RefCell::default(),
            security: PipeDescriptor::authenticated().security().clone(),
            level: 1,
            account: Self::user(),
            integrity: IntegrityLevel::MEDIUM,
            // Enabled; Administrators only for denials; disabled.
            groups: vec![
                (Sid::interactive(), 0x7),
                (Sid::administrators(), 0x10),
                (Sid::users(), 0),
            ],
            app_container: false,
        }
    }
}

impl Recorder {
    pub(super) fn user() -> Sid {
        "S-1-5-21-1-2-3-1001".parse().unwrap()
    }

    pub(super) fn protected_by(security: PipeSecurity) -> Self {
        Self {
            security,
            ..Self::default()
        }
    }

    /// Makes a call fail, always.
    pub(super) fn failing(self, call: &str, code: Code) -> Self {
        self.failing_times(call, code, u32::MAX)
    }

    /// Makes a call fail the first times.
    pub(super) fn failing_times(self, call: &str, code: Code, times: u32) -> Self {
        self.failing
            .borrow_mut()
            .push((call.to_owned(), code, times));
        self
    }

    pub(super) fn trace(&self) -> Vec<String> {
        self.calls.borrow().clone()
    }

    fn call<T>(&self, call: impl Into<String>, answer: T) -> Result<T, Code> {
        let call = call.into();
        let failing = &mut *self.failing.borrow_mut();
        let failure = failing
            .iter_mut()
            .find(|(name, _, times)| *name == call && *times > 0);
        self.calls.borrow_mut().push(call);
        match failure {
            Some((_, code, times)) => {
                *times -= 1;
                Err(*code)
            }
            None => Ok(answer),
        }
    }
}

impl PipeCalls for Recorder {
    type Pipe = ();

    fn create(&self, open_mode: u32, pipe_mode: u32, max_instances: u32) -> Result<(), Code> {
        self.call(
            format!("CreateNamedPipe({open_mode:#x}, {pipe_mode:#x}, {max_instances})"),
            (),
        )
    }

    fn open(&self, access: u32, flags: u32) -> Result<(), Code> {
        self.call(
            format!("CreateFile({access:#x}, OPEN_EXISTING, {flags:#x})"),
            (),
        )
    }

    fn security(&self, _pipe: &()) -> Result<PipeSecurity, Code> {
        self.call("GetSecurityInfo(owner, list, label)", self.security.clone())
    }
}

impl ClientCalls for Recorder {
    type Token = ();

    fn impersonate(&self) -> Result<(), Code> {
        self.call("ImpersonateNamedPipeClient", ())
    }

    fn open_thread_token(&self, checked: OpenAs) -> Result<(), Code> {
        let OpenAs::Process = checked;
        self.call("OpenThreadToken(TOKEN_QUERY, as the process)", ())
    }

    fn revert(&self) -> Result<(), Code> {
        self.call("RevertToSelf", ())
    }

    fn abort(&self, code: Code) -> ! {
        self.calls.borrow_mut().push("abort".to_owned());
        panic!("the process ends: {code}")
    }

    fn level(&self, _token: &()) -> Result<u32, Code> {
        self.call("TokenImpersonationLevel", self.level)
    }

    fn user(&self, _token: &()) -> Result<Sid, Code> {
        self.call("TokenUser", self.account.clone())
    }

    fn session(&self, _token: &()) -> Result<u32, Code> {
        self.call("TokenSessionId", 3)
    }

    fn logon(&self, _token: &()) -> Result<LogonId, Code> {
        self.call("TokenStatistics", LogonId(0x1234))
    }

    fn integrity(&self, _token: &()) -> Result<IntegrityLevel, Code> {
        self.call("TokenIntegrityLevel", self.integrity)
    }

    fn elevation(&self, _token: &()) -> Result<Elevation, Code> {
        self.call("TokenElevationType", Elevation::Limited)
    }

    fn groups(&self, _token: &()) -> Result<Vec<(Sid, u32)>, Code> {
        self.call("TokenGroups", self.groups.clone())
    }

    fn is_app_container(&self, _token: &()) -> Result<bool, Code> {
        self.call("TokenIsAppContainer", self.app_container)
    }

    fn is_restricted(&self, _token: &()) -> Result<bool, Code> {
        self.call("IsTokenRestricted", false)
    }
}
