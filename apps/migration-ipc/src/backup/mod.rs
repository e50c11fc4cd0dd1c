//! A backup that really copies: scan, copy, verify, describe.
//!
//! [`BackupPlan::scan`] walks the source of each category and says how much there is to do;
//! [`BackupPlan::execute`] copies it and writes the manifest; [`check::check`] walks the *source*
//! again and compares every byte. All of it blocks and belongs on a blocking thread.
//!
//! What a backup promises:
//! - No symbolic link and no reparse point is followed, except the source folder itself, which the
//!   user named. Placeholders of a cloud provider are not fetched unless that is asked for.
//! - A file is in the backup under its own name only when its size and modification time were the
//!   same before and after the copy. Everything else is in the manifest with the cause.
//! - Source and destination never lie inside each other.
//! - Only what the manifest of a finished backup describes is left in the destination.
//! - A backup that was interrupted, however hard, goes on where it was: copies that are whole, of
//!   files that did not change since, are not made again. What tells them lies in a folder beside
//!   the manifest until [`BackupReport::settle`]; it is never believed without a look at the copy.

mod copy;
mod destination;
mod manifest;
mod names;
mod plan;
mod progress;
mod record;
mod relative_path;
mod run;
mod skipped;
mod walk;
mod work;

pub(crate) mod check;

pub(crate) use manifest::Resumed;
pub(crate) use names::{Category, FolderName};
pub(crate) use plan::{BackupError, BackupJob, BackupPlan, BackupReport, CategoryReport, Layout};
pub(crate) use progress::{Cancel, Progress};
pub(crate) use walk::Placeholders;
