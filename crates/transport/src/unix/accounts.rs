//! The account database (passwd(5), and whatever else nsswitch.conf(5) names).

use std::io;

use nix::unistd::{Uid, User};

use super::identity;
use crate::identity::AccountId;

/// The id of a user id in digits, or of a login name. Blocks.
pub(crate) fn resolve(name: &str) -> io::Result<Option<AccountId>> {
    if name.is_empty() || name.contains('\0') {
        return Ok(None);
    }
    if name.bytes().all(|byte| byte.is_ascii_digit()) {
        // The highest number is no user: chown(2) and setreuid(2) take it for "unchanged".
        let uid = name.parse().ok().filter(|&uid| uid != u32::MAX);
        return Ok(uid.map(identity::account));
    }
    let user = User::from_name(name)?;
    Ok(user.map(|user| identity::account(user.uid.as_raw())))
}

/// The login name of an account. Blocks.
pub(crate) fn name(account: &AccountId) -> io::Result<Option<String>> {
    let Some(uid) = identity::uid(account) else {
        return Ok(None);
    };
    Ok(User::from_uid(Uid::from_raw(uid))?.map(|user| user.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_a_user_id_whether_it_exists_or_not() {
        assert_eq!(resolve("0").unwrap(), Some(AccountId::new("0")));
        assert_eq!(
            resolve("4294967294").unwrap(),
            Some(AccountId::new("4294967294"))
        );
        assert_eq!(resolve("0001000").unwrap(), Some(AccountId::new("1000")));
    }

    #[test]
    fn what_names_no_account_is_none() {
        for name in [
            "",
            "4294967295",
            "99999999999",
            "-1",
            "no such user",
            "a\0b",
        ] {
            assert_eq!(resolve(name).unwrap(), None, "{name:?}");
        }
        assert_eq!(self::name(&AccountId::new("S-1-5-18")).unwrap(), None);
    }

    #[test]
    fn a_login_name_and_its_id_lead_to_each_other() {
        let root = resolve("root").unwrap().expect("every Unix has root");
        assert_eq!(root.as_str(), "0");
        assert_eq!(self::name(&root).unwrap().as_deref(), Some("root"));
    }
}
