//! Whole backups, and what the checker says about them.

mod resuming;

use std::fs::{self, File};
use std::time::{Duration, SystemTime};

use super::super::check::{self, CheckReport, Kind};
use super::super::manifest::State;
use super::super::skipped::Cause;
use super::*;

impl BackupReport {
    fn success(&self) -> bool {
        self.categories
            .values()
            .all(|category| category.error.is_none())
    }
}

/// A scratch place with a source and room for a backup.
struct Scratch {
    folder: tempfile::TempDir,
}

impl Scratch {
    fn new() -> Self {
        let scratch = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        scratch.write("docs/a.txt", "alpha");
        scratch.write("docs/deep/er/b.txt", "beta");
        scratch.write("docs/empty", "");
        scratch.write("docs/grüße 🎒.txt", "unicode");
        fs::create_dir_all(scratch.path("docs/hollow")).unwrap();
        scratch
    }

    fn path(&self, relative: &str) -> PathBuf {
        self.folder.path().join(relative)
    }

    fn write(&self, relative: &str, content: impl AsRef<[u8]>) {
        let path = self.path(relative);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        self.set_age(relative, Duration::from_secs(3600));
    }

    /// Makes a file as if it had been modified this long ago.
    fn set_age(&self, relative: &str, age: Duration) {
        let file = File::options().write(true).open(self.path(relative));
        let modified = SystemTime::now() - age;
        file.unwrap().set_modified(modified).unwrap();
    }

    fn job(&self, layout: Layout, categories: &[(&str, &str)]) -> BackupJob {
        let category = |(name, source): &(&str, &str)| Category {
            name: FolderName::from_any(name),
            source: self.path(source),
        };
        BackupJob {
            user: "alice".to_owned(),
            categories: categories.iter().map(category).collect(),
            destination: self.path("backup"),
            layout,
            placeholders: Placeholders::Skip,
        }
    }

    fn back_up(&self, layout: Layout, categories: &[(&str, &str)]) -> BackupReport {
        let cancel = Cancel::default();
        let plan = BackupPlan::scan(self.job(layout, categories), &cancel).unwrap();
        plan.execute(&cancel, &mut |_| ()).unwrap()
    }

    fn back_up_docs(&self) -> BackupReport {
        self.back_up(Layout::Flat, &[("files", "docs")])
    }

    fn check(&self, report: &BackupReport) -> CheckReport {
        check::check(&report.manifest_path, &BTreeMap::new(), &Cancel::default()).unwrap()
    }

    fn differences(&self, report: &BackupReport) -> Vec<(String, Kind)> {
        let differences = self.check(report).differences;
        differences
            .into_iter()
            .map(|found| (found.path, found.kind))
            .collect()
    }
}

#[test]
fn a_backup_is_its_source() {
    let scratch = Scratch::new();
    let report = scratch.back_up_docs();
    assert!(report.success());
    assert_eq!(
        fs::read(scratch.path("backup/deep/er/b.txt")).unwrap(),
        b"beta"
    );
    assert!(scratch.path("backup/hollow").is_dir());
    assert!(scratch.path("backup/manifest.json").is_file());
    let checked = scratch.check(&report);
    assert_eq!(checked.differences, []);
    assert_eq!((checked.files, checked.bytes), (4, 16));
    let category = &report.categories[&FolderName::from_any("files")];
    assert_eq!((category.files, category.bytes), (4, 16));
}

#[test]
fn the_checker_finds_a_flipped_byte() {
    let scratch = Scratch::new();
    let report = scratch.back_up_docs();
    scratch.write("backup/deep/er/b.txt", "bexa");
    let expected = ("files: deep/er/b.txt".to_owned(), Kind::ByteDiffers(2));
    assert_eq!(scratch.differences(&report), [expected]);
}

#[test]
fn the_checker_finds_a_missing_byte_and_a_missing_file() {
    let scratch = Scratch::new();
    let report = scratch.back_up_docs();
    scratch.write("backup/a.txt", "alph");
    fs::remove_file(scratch.path("backup/empty")).unwrap();
    let found = scratch.differences(&report);
    let shorter = Kind::LengthDiffers {
        source: 5,
        backup: 4,
    };
    assert!(
        found.contains(&("files: a.txt".to_owned(), shorter)),
        "{found:?}"
    );
    assert!(
        found.contains(&("files: empty".to_owned(), Kind::Missing)),
        "{found:?}"
    );
    assert_eq!(found.len(), 2);
}

#[test]
fn the_checker_finds_extra_bytes_files_and_folders() {
    let scratch = Scratch::new();
    let report = scratch.back_up_docs();
    scratch.write("backup/empty", "not");
    scratch.write("backup/new/file", "");
    let found = scratch.differences(&report);
    let longer = Kind::LengthDiffers {
        source: 0,
        backup: 3,
    };
    let expected = [
        ("files: empty", longer),
        ("files: new", Kind::Extra),
        ("files: new/file", Kind::Extra),
    ];
    assert_eq!(found, expected.map(|(path, kind)| (path.to_owned(), kind)));
}

#[test]
fn the_checker_finds_a_source_that_moved_on() {
    let scratch = Scratch::new();
    let report = scratch.back_up_docs();
    scratch.write("docs/later", "");
    fs::remove_file(scratch.path("docs/a.txt")).unwrap();
    let found = scratch.differences(&report);
    let expected = [
        ("files: later", Kind::Missing),
        ("files: a.txt", Kind::OnlyInManifest),
        ("files: a.txt", Kind::Extra),
    ];
    assert_eq!(found, expected.map(|(path, kind)| (path.to_owned(), kind)));
}

#[test]
fn the_checker_does_not_believe_the_manifest() {
    let scratch = Scratch::new();
    let report = scratch.back_up_docs();
    let text = fs::read_to_string(&report.manifest_path).unwrap();
    let mut manifest: serde_json::Value = serde_json::from_str(&text).unwrap();
    let files = manifest["categories"]["files"]["files"]
        .as_array_mut()
        .unwrap();
    files[0]["sha256"] = "00".repeat(32).into();
    files[1]["size"] = 99.into();
    files.pop();
    fs::write(&report.manifest_path, manifest.to_string()).unwrap();
    let found = scratch.differences(&report);
    assert!(
        found.iter().any(|(_, kind)| *kind == Kind::ManifestHash),
        "{found:?}"
    );
    assert!(
        found
            .iter()
            .any(|(_, kind)| matches!(kind, Kind::ManifestSize { .. })),
        "{found:?}"
    );
    assert!(
        found.iter().any(|(_, kind)| *kind == Kind::NotInManifest),
        "{found:?}"
    );
}

#[test]
fn a_second_backup_replaces_the_first_and_keeps_nothing_else() {
    let scratch = Scratch::new();
    scratch.back_up_docs();
    scratch.write("docs/a.txt", "alpha 2");
    fs::remove_dir_all(scratch.path("docs/deep")).unwrap();
    scratch.write("docs/deep", "a file now");
    fs::remove_file(scratch.path("docs/empty")).unwrap();
    scratch.write("docs/empty/not", "a folder now");
    let report = scratch.back_up_docs();
    assert_eq!(scratch.differences(&report), []);
}

#[test]
fn a_source_with_a_manifest_of_its_own_keeps_it() {
    let scratch = Scratch::new();
    scratch.write("docs/Manifest.json", "of a web page");
    let report = scratch.back_up_docs();
    assert!(report.manifest_path.ends_with("manifest-1.json"));
    assert_eq!(
        fs::read(scratch.path("backup/Manifest.json")).unwrap(),
        b"of a web page"
    );
    assert_eq!(scratch.differences(&report), []);
    assert_eq!(scratch.differences(&scratch.back_up_docs()), []);
}

#[test]
fn a_backup_of_one_category_leaves_the_others() {
    let scratch = Scratch::new();
    scratch.write("mail/inbox", "letters");
    scratch.back_up(Layout::PerCategory, &[("files", "docs"), ("email", "mail")]);
    scratch.write("docs/a.txt", "alpha 2");
    let report = scratch.back_up(Layout::PerCategory, &[("files", "docs")]);
    assert_eq!(
        fs::read(scratch.path("backup/email/inbox")).unwrap(),
        b"letters"
    );
    assert_eq!(report.categories.len(), 1);
    assert_eq!(scratch.differences(&report), []);
}

#[test]
fn a_missing_source_fails_its_category_and_no_other() {
    let scratch = Scratch::new();
    let report = scratch.back_up(
        Layout::PerCategory,
        &[("files", "docs"), ("email", "nowhere")],
    );
    assert!(!report.success());
    assert_eq!(
        report.categories[&FolderName::from_any("files")].error,
        None
    );
    let error = report.categories[&FolderName::from_any("email")]
        .error
        .as_deref()
        .unwrap();
    assert!(error.contains("nowhere"), "{error}");
    assert_eq!(
        Manifest::read(&report.manifest_path).unwrap().state,
        State::Incomplete
    );
}

#[test]
fn an_interrupted_backup_says_so_and_the_next_one_completes_it() {
    let scratch = Scratch::new();
    let cancel = Cancel::default();
    let plan = BackupPlan::scan(scratch.job(Layout::Flat, &[("files", "docs")]), &cancel).unwrap();
    let error = plan.execute(&cancel, &mut |_| cancel.cancel()).unwrap_err();
    assert!(matches!(error, BackupError::Cancelled(_)), "{error}");
    let manifest = Manifest::read(&scratch.path("backup/manifest.json")).unwrap();
    assert_eq!(manifest.state, State::Unfinished);
    assert_eq!(scratch.differences(&scratch.back_up_docs()), []);
}

#[test]
fn a_file_that_keeps_changing_makes_the_backup_incomplete() {
    let scratch = Scratch::new();
    let cancel = Cancel::default();
    let plan = BackupPlan::scan(scratch.job(Layout::Flat, &[("files", "docs")]), &cancel).unwrap();
    // Longer than planned, so that there is a report, and with it a change, during each attempt.
    fs::write(scratch.path("docs/a.txt"), vec![0; 4 * 1024 * 1024]).unwrap();
    let log = scratch.path("docs/a.txt");
    let mut grow = |progress: &Progress| {
        if progress.current_file.as_deref() == Some("a.txt") {
            let mut log = fs::OpenOptions::new().append(true).open(&log).unwrap();
            std::io::Write::write_all(&mut log, b"more").unwrap();
        }
    };
    let report = plan.execute(&cancel, &mut grow).unwrap();
    assert!(!report.success());
    let manifest = Manifest::read(&report.manifest_path).unwrap();
    let category = &manifest.categories[&FolderName::from_any("files")];
    assert_eq!(category.skipped[0].why.cause, Cause::Changed);
    assert_eq!(category.files.len(), 3);
}

#[cfg(unix)]
#[test]
fn a_name_of_any_bytes_is_backed_up_and_checked() {
    use std::os::unix::ffi::OsStrExt;
    let scratch = Scratch::new();
    let name = std::ffi::OsStr::from_bytes(b"latin-\xe9.txt");
    fs::write(scratch.path("docs").join(name), "é").unwrap();
    let report = scratch.back_up_docs();
    assert!(scratch.path("backup").join(name).is_file());
    assert_eq!(scratch.differences(&report), []);
    let manifest = fs::read_to_string(&report.manifest_path).unwrap();
    assert!(manifest.contains("6c6174696e2de92e747874"));
}

#[cfg(unix)]
#[test]
fn a_link_planted_in_the_backup_folder_is_replaced_not_followed() {
    let scratch = Scratch::new();
    scratch.back_up_docs();
    scratch.write("elsewhere/b.txt", "not ours");
    fs::remove_dir_all(scratch.path("backup/deep/er")).unwrap();
    std::os::unix::fs::symlink(scratch.path("elsewhere"), scratch.path("backup/deep/er")).unwrap();
    let report = scratch.back_up_docs();
    assert_eq!(
        fs::read(scratch.path("elsewhere/b.txt")).unwrap(),
        b"not ours"
    );
    assert_eq!(scratch.differences(&report), []);
}

#[cfg(windows)]
#[test]
fn a_path_over_260_characters_is_backed_up_and_checked() {
    let scratch = Scratch::new();
    let deep = "a".repeat(100);
    scratch.write(&format!("docs/{deep}/{deep}/{deep}/file.txt"), "deep");
    assert_eq!(scratch.differences(&scratch.back_up_docs()), []);
}
