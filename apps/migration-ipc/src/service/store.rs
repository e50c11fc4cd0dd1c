//! The service's state on disk.
//!
//! An embedded database rather than files of our own: a commit is atomic and durable, and a crash
//! at any moment leaves the last commit. redb rather than SQLite because it is Rust alone: it
//! builds for every target of the workspace without a C compiler, and the few records here need no
//! SQL.
//!
//! The table `meta` holds the schema's version; a store that a newer version wrote is renamed, not
//! touched, so that going back to this version and forth again loses nothing.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition};

use super::record::{Terms, UserRecord};

/// The name of the file in the data folder.
pub(crate) const FILE: &str = "state.redb";

/// The version of the schema below.
const SCHEMA: u64 = 1;

/// Single values, as JSON.
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const SCHEMA_KEY: &str = "schema";
const STANDING_REQUEST_KEY: &str = "standing_request";

/// Users by the text of their key, as JSON.
const USERS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("users");

/// Why the state cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("another service is using the state in `{}`", .0.display())]
    InUse(PathBuf),
    #[error("cannot set aside the state of a newer version, `{}`: {error}", path.display())]
    SetAside { path: PathBuf, error: io::Error },
    #[error(
        "cannot read the state in `{}`: {problem}; to start with none, move that file away",
        path.display()
    )]
    Unreadable { path: PathBuf, problem: String },
    #[error("cannot store the state: {0}")]
    Database(#[from] redb::Error),
    #[error("cannot store the state: {0}")]
    Json(#[from] serde_json::Error),
}

/// What was stored.
#[derive(Debug, Default)]
pub(crate) struct Stored {
    pub(crate) users: Vec<UserRecord>,
    pub(crate) standing_request: Option<Terms>,
}

/// What is to be stored, in one commit.
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
}

/// The open state. Its methods block on the disk.
#[derive(Debug)]
pub(crate) struct Store {
    database: Database,
}

impl Store {
    /// Opens the state in a folder; a new one is empty.
    pub(crate) fn open(folder: &Path) -> Result<(Self, Stored), StoreError> {
        let path = folder.join(FILE);
        let store = Self {
            database: open_database(&path)?,
        };
        let unreadable = |problem: String| StoreError::Unreadable {
            path: path.clone(),
            problem,
        };
        let schema = store
            .schema()
            .map_err(|error| unreadable(error.to_string()))?;
        match schema {
            None => store.begin()?,
            Some(SCHEMA) => {}
            Some(newer) if newer > SCHEMA => {
                drop(store);
                set_aside(&path, newer)?;
                return Self::open(folder);
            }
            Some(other) => return Err(unreadable(format!("its schema is {other}"))),
        }
        let stored = store
            .read()
            .map_err(|error| unreadable(error.to_string()))?;
        Ok((store, stored))
    }

    /// Stores everything or nothing; on return it is durable.
    pub(crate) fn save(&self, update: &Update) -> Result<(), StoreError> {
        self.write(|meta, users| {
            for user in &update.users {
                let json = serde_json::to_vec(user)?;
                users
                    .insert(user.key.to_string().as_str(), json.as_slice())
                    .map_err(redb::Error::from)?;
            }
            if let Some(terms) = &update.standing_request {
                let json = serde_json::to_vec(terms)?;
                meta.insert(STANDING_REQUEST_KEY, json.as_slice())
                    .map_err(redb::Error::from)?;
            }
            Ok(())
        })
    }

    fn begin(&self) -> Result<(), StoreError> {
        self.write(|meta, _users| {
            let json = serde_json::to_vec(&SCHEMA)?;
            meta.insert(SCHEMA_KEY, json.as_slice())
                .map_err(redb::Error::from)?;
            Ok(())
        })
    }

    fn write(
        &self,
        fill: impl FnOnce(&mut JsonTable<'_>, &mut JsonTable<'_>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let transaction = self.database.begin_write().map_err(redb::Error::from)?;
        {
            let mut meta = transaction.open_table(META).map_err(redb::Error::from)?;
            let mut users = transaction.open_table(USERS).map_err(redb::Error::from)?;
            fill(&mut meta, &mut users)?;
        }
        transaction.commit().map_err(redb::Error::from)?;
        Ok(())
    }

    /// The version of the schema; `None` in a new database.
    fn schema(&self) -> Result<Option<u64>, StoreError> {
        let transaction = self.database.begin_read().map_err(redb::Error::from)?;
        let meta = match transaction.open_table(META) {
            Ok(meta) => meta,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
            Err(error) => return Err(redb::Error::from(error).into()),
        };
        let schema = meta.get(SCHEMA_KEY).map_err(redb::Error::from)?;
        schema
            .map(|json| Ok(serde_json::from_slice(json.value())?))
            .transpose()
    }

    fn read(&self) -> Result<Stored, StoreError> {
        let transaction = self.database.begin_read().map_err(redb::Error::from)?;
        let meta = transaction.open_table(META).map_err(redb::Error::from)?;
        let users = transaction.open_table(USERS).map_err(redb::Error::from)?;
        let mut stored = Stored::default();
        if let Some(json) = meta.get(STANDING_REQUEST_KEY).map_err(redb::Error::from)? {
            stored.standing_request = serde_json::from_slice(json.value())?;
        }
        for entry in users.iter().map_err(redb::Error::from)? {
            let (_, json) = entry.map_err(redb::Error::from)?;
            stored.users.push(serde_json::from_slice(json.value())?);
        }
        Ok(stored)
    }
}

type JsonTable<'a> = redb::Table<'a, &'static str, &'static [u8]>;

fn open_database(path: &Path) -> Result<Database, StoreError> {
    Database::create(path).map_err(|error| match error {
        DatabaseError::DatabaseAlreadyOpen => StoreError::InUse(path.to_owned()),
        other => StoreError::Unreadable {
            path: path.to_owned(),
            problem: other.to_string(),
        },
    })
}

/// Renames the state of a newer version to a name that is free.
fn set_aside(path: &Path, schema: u64) -> Result<(), StoreError> {
    let failed = |error| StoreError::SetAside {
        path: path.to_owned(),
        error,
    };
    let candidates = (0_u32..).map(|number| match number {
        0 => path.with_file_name(format!("{FILE}.schema-{schema}")),
        more => path.with_file_name(format!("{FILE}.schema-{schema}.{more}")),
    });
    for kept in candidates {
        if !kept.try_exists().map_err(failed)? {
            fs::rename(path, &kept).map_err(failed)?;
            tracing::warn!(kept = %kept.display(), schema, "the state of a newer version was set aside");
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use migration_ipc::AccountId;
    use migration_ipc::messages::{Category, Priority};

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

    #[test]
    fn what_was_saved_is_there_when_opened_again() {
        let folder = tempfile::tempdir().unwrap();
        let (store, stored) = Store::open(folder.path()).unwrap();
        assert!(stored.users.is_empty() && stored.standing_request.is_none());
        let update = Update {
            users: vec![alice()],
            standing_request: Some(Some(terms())),
        };
        store.save(&update).unwrap();
        drop(store);
        let (_, stored) = Store::open(folder.path()).unwrap();
        assert_eq!(stored.users, [alice()]);
        assert_eq!(stored.standing_request, Some(terms()));
    }

    #[test]
    fn a_later_save_replaces_an_earlier_one() {
        let folder = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(folder.path()).unwrap();
        store
            .save(&Update {
                users: vec![alice()],
                ..Update::default()
            })
            .unwrap();
        let delayed = UserRecord {
            delays_used: 2,
            ..alice()
        };
        store
            .save(&Update {
                users: vec![delayed.clone()],
                ..Update::default()
            })
            .unwrap();
        drop(store);
        assert_eq!(Store::open(folder.path()).unwrap().1.users, [delayed]);
    }

    #[test]
    fn two_services_do_not_share_a_state() {
        let folder = tempfile::tempdir().unwrap();
        let _first = Store::open(folder.path()).unwrap();
        assert!(matches!(
            Store::open(folder.path()),
            Err(StoreError::InUse(_))
        ));
    }

    #[test]
    fn the_state_of_a_newer_version_is_set_aside_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        for expected in 1..=2 {
            let (store, stored) = Store::open(folder.path()).unwrap();
            assert!(stored.users.is_empty());
            store
                .write(|meta, users| {
                    let newer = serde_json::to_vec(&(SCHEMA + 1))?;
                    meta.insert(SCHEMA_KEY, newer.as_slice())
                        .map_err(redb::Error::from)?;
                    users
                        .insert("1000", b"in a form of the future".as_slice())
                        .map_err(redb::Error::from)?;
                    Ok(())
                })
                .unwrap();
            drop(store);
            let (store, stored) = Store::open(folder.path()).unwrap();
            assert!(stored.users.is_empty());
            drop(store);
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1 + expected);
        }
    }

    #[test]
    fn a_file_that_is_no_state_is_an_error_that_says_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(FILE), "something else entirely").unwrap();
        let error = Store::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("move that file away"), "{error}");
    }
}
