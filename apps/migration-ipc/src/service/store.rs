//! The service's state on disk: tables of the runtime's store, in which the ledger, the mail and the
//! journal are too, so that what a message changed and that it is done are one commit.
//!
//! Every decision that changes a row has a number, and is stored only right after the one before
//! it. So a decision that was made on a state that never reached the disk does not reach it either:
//! the keeper goes back to what is stored.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use migration_ipc::protocol::OutboxId;
use migration_ipc::storage::disk::{Folder, FolderError};
use migration_ipc::storage::{Journal, OpenReport, Reader, Rows, Store, StoreError, StoreOptions};
use migration_ipc::{Effects, ErrorCode, Refusal};

use super::record::{Terms, UserRecord};

/// The name of the file in the data folder.
pub(crate) const FILE: &str = "state.redb";

/// Users by the text of their key, as JSON.
const USERS: &str = "users";

/// Single values, as JSON.
const META: &str = "service";
const STANDING_REQUEST: &str = "standing_request";
/// The number of the last decision.
const DECISION: &str = "decision";

/// Why the state cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    #[error(transparent)]
    Folder(#[from] FolderError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("there is no state of a service in `{}`", .0.display())]
    None(PathBuf),
    #[error("the state was not read to its end: {0}")]
    Interrupted(io::Error),
    #[error("the stored state has a row that this version cannot read: {0}")]
    Row(#[from] serde_json::Error),
}

impl StateError {
    /// The thread that read it failed.
    pub(crate) fn failed(error: tokio::task::JoinError) -> Self {
        Self::Interrupted(io::Error::other(error))
    }
}

impl From<io::Error> for StateError {
    fn from(error: io::Error) -> Self {
        Self::Interrupted(error)
    }
}

/// What was stored.
#[derive(Debug, Default)]
pub(crate) struct Stored {
    pub(crate) users: Vec<UserRecord>,
    pub(crate) standing_request: Option<Terms>,
    /// The number of the last decision.
    pub(crate) decision: u64,
}

/// What a decision changed.
#[derive(Debug, Default)]
pub(crate) struct Update {
    pub(crate) users: Vec<UserRecord>,
    /// The new standing request, if that changed.
    pub(crate) standing_request: Option<Option<Terms>>,
}

impl Update {
    pub(crate) fn is_empty(&self) -> bool {
        self.users.is_empty() && self.standing_request.is_none()
    }

    /// The rows of the decision of this number.
    pub(crate) fn into_effects(self, decision: u64) -> Result<Effects, serde_json::Error> {
        let mut effects = Effects::new().update(move |rows| follow(rows, decision));
        for user in &self.users {
            let row = serde_json::to_vec(user)?;
            effects = effects.put(USERS, user.key.to_string(), row);
        }
        if let Some(terms) = &self.standing_request {
            effects = effects.put(META, STANDING_REQUEST, serde_json::to_vec(terms)?);
        }
        Ok(effects)
    }
}

/// Refuses a decision, for now, unless it follows the last one that was stored.
fn follow(rows: &mut Rows<'_>, decision: u64) -> Result<(), Refusal> {
    let later = || Refusal::with_code(ErrorCode::Busy, "an earlier decision was not stored");
    let last = match rows.get(META, DECISION)? {
        None => 0,
        Some(row) => serde_json::from_slice(&row).map_err(|_| later())?,
    };
    if decision != last + 1 {
        return Err(later());
    }
    rows.put(META, DECISION, decision.to_string());
    Ok(())
}

/// Opens the store in a folder, which this process holds from now on. Blocks.
pub(crate) fn open(folder: &Path) -> Result<(Store, OpenReport), StateError> {
    let disk = Arc::new(Folder::open(folder)?);
    let options = StoreOptions {
        journal: Journal::newest(),
    };
    let fresh = OutboxId::from_bytes(fastrand::u128(..).to_be_bytes());
    Ok(Store::open(disk, FILE, options, fresh)?)
}

/// Opens a store that is there; it is not made. Blocks.
pub(crate) fn open_existing(folder: &Path) -> Result<Store, StateError> {
    if folder.join(FILE).is_file() {
        Ok(open(folder)?.0)
    } else {
        Err(StateError::None(folder.to_owned()))
    }
}

/// Reads what is stored. Blocks.
pub(crate) fn load(reader: &Reader) -> Result<Stored, StateError> {
    let mut stored = Stored::default();
    if let Some(row) = reader.get(META, STANDING_REQUEST)? {
        stored.standing_request = serde_json::from_slice(&row)?;
    }
    if let Some(row) = reader.get(META, DECISION)? {
        stored.decision = serde_json::from_slice(&row)?;
    }
    for (_, row) in reader.scan(USERS, "")? {
        stored.users.push(serde_json::from_slice(&row)?);
    }
    Ok(stored)
}

#[cfg(test)]
mod tests {
    use migration_ipc::AccountId;
    use migration_ipc::StoredOutcome;
    use migration_ipc::messages::{Category, Priority};
    use migration_ipc::storage::Work;

    use super::super::key::UserKey;
    use super::*;

    fn alice() -> UserRecord {
        let mut alice =
            UserRecord::new(UserKey::of_account(&AccountId::new("1000")), "alice".into());
        alice.request(terms());
        alice
    }

    fn terms() -> Terms {
        Terms {
            priority: Priority::High,
            deadline: "2024-01-01T12:00:00Z".parse().unwrap(),
            categories: vec![Category::Files],
        }
    }

    fn save(store: &mut Store, decision: u64, update: Update) -> StoredOutcome {
        let effects = update.into_effects(decision).unwrap();
        store
            .commit(&mut vec![Work::of(effects)])
            .unwrap()
            .remove(0)
    }

    fn of_user(user: UserRecord) -> Update {
        Update {
            users: vec![user],
            ..Update::default()
        }
    }

    #[test]
    fn what_was_saved_is_there_when_opened_again() {
        let folder = tempfile::tempdir().unwrap();
        let (mut store, _) = open(folder.path()).unwrap();
        let stored = load(&store.reader()).unwrap();
        assert!(stored.users.is_empty() && stored.standing_request.is_none());
        let update = Update {
            users: vec![alice()],
            standing_request: Some(Some(terms())),
        };
        assert_eq!(save(&mut store, 1, update), StoredOutcome::Handled);
        drop(store);
        let (store, _) = open(folder.path()).unwrap();
        let stored = load(&store.reader()).unwrap();
        assert_eq!(stored.users, [alice()]);
        assert_eq!(stored.standing_request, Some(terms()));
        assert_eq!(stored.decision, 1);
    }

    #[test]
    fn a_decision_on_top_of_one_that_was_not_stored_is_not_stored_either() {
        let folder = tempfile::tempdir().unwrap();
        let (mut store, _) = open(folder.path()).unwrap();
        save(&mut store, 1, of_user(alice()));
        let delayed = UserRecord {
            delays_used: 2,
            ..alice()
        };
        for decision in [3, 1, 0] {
            let outcome = save(&mut store, decision, of_user(delayed.clone()));
            assert!(outcome.is_put_off(), "{decision}: {outcome:?}");
        }
        assert_eq!(load(&store.reader()).unwrap().users, [alice()]);
        save(&mut store, 2, of_user(delayed.clone()));
        assert_eq!(load(&store.reader()).unwrap().users, [delayed]);
    }

    #[test]
    fn two_services_do_not_share_a_state() {
        let folder = tempfile::tempdir().unwrap();
        let _first = open(folder.path()).unwrap();
        assert!(matches!(
            open(folder.path()),
            Err(StateError::Folder(FolderError::Locked(_)))
        ));
    }

    #[test]
    fn a_file_that_is_no_state_is_an_error_that_says_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(FILE), "something else entirely").unwrap();
        let error = open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("move it"), "{error}");
    }
}
