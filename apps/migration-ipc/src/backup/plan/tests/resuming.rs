//! Backups that go on where an interrupted one was.

use super::*;

const MIB: usize = 1024 * 1024;

const FILES: [(&str, &str); 1] = [("files", "docs")];

impl Scratch {
    /// Four files, of which the third, `c`, is copied in several blocks.
    fn with_a_large_file() -> Self {
        let scratch = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        scratch.write("docs/a", "alpha");
        scratch.write("docs/b", "beta");
        scratch.write("docs/c", vec![7; 4 * MIB]);
        scratch.write("docs/d", "delta");
        scratch
    }

    /// A backup that ends in the middle of `docs/c`, as when the agent is killed there. Returns how
    /// much of that was copied.
    fn interrupt(&self) -> u64 {
        let cancel = Cancel::default();
        let plan = BackupPlan::scan(self.job(Layout::Flat, &FILES), &cancel).unwrap();
        let mut stop = |progress: &Progress| {
            if progress.current_file.as_deref() == Some("c") {
                cancel.cancel();
            }
        };
        plan.execute(&cancel, &mut stop).unwrap_err();
        assert!(!self.path("backup/c").exists());
        let left = fs::read_dir(self.path("backup/manifest.work")).unwrap();
        let partial = left.map(Result::unwrap).find(|entry| {
            Path::new(&entry.file_name())
                .extension()
                .is_some_and(|it| it == "partial")
        });
        let copied = partial.unwrap().metadata().unwrap().len();
        assert!(copied > 0 && copied < 4 * MIB as u64, "{copied}");
        copied
    }

    fn record(&self) -> PathBuf {
        self.path("backup/manifest.work/files.record")
    }

    /// Backs up, checks that the result is the source, and says what was taken over.
    #[track_caller]
    fn resume(&self) -> Resumed {
        let report = self.back_up(Layout::Flat, &FILES);
        assert_eq!(self.differences(&report), []);
        let resumed = report.categories[&FolderName::from_any("files")].resumed;
        assert_eq!(self.check(&report).resumed, resumed);
        report.settle().unwrap();
        assert!(!report.manifest_path.with_extension("work").exists());
        resumed
    }
}

fn taken_over(files: u64, bytes: u64) -> Resumed {
    Resumed {
        files,
        bytes,
        bytes_again: 0,
    }
}

#[test]
fn what_was_copied_is_not_copied_again() {
    let scratch = Scratch::with_a_large_file();
    let interrupted = scratch.interrupt();
    let copied = |name: &str| File::open(scratch.path(name)).unwrap();
    let before = copied("backup/a").metadata().unwrap();
    let resumed = scratch.resume();
    assert_eq!((resumed.files, resumed.bytes), (2, 9));
    assert_eq!(resumed.bytes_again, interrupted);
    let after = copied("backup/a").metadata().unwrap();
    assert_eq!(before.created().ok(), after.created().ok());
}

#[test]
fn bytes_of_every_interrupted_run_are_counted() {
    let scratch = Scratch::with_a_large_file();
    let interrupted: u64 = (0..3).map(|_| scratch.interrupt()).sum();
    let resumed = scratch.resume();
    assert_eq!((resumed.files, resumed.bytes), (2, 9));
    assert_eq!(resumed.bytes_again, interrupted);
}

#[test]
fn a_file_that_changed_since_is_copied_again() {
    let scratch = Scratch::with_a_large_file();
    scratch.back_up(Layout::Flat, &FILES);
    scratch.write("docs/a", "ALPHA");
    scratch.set_age("docs/a", Duration::from_secs(1800));
    scratch.write("docs/b", "longer");
    let resumed = scratch.resume();
    assert_eq!((resumed.files, resumed.bytes_again), (2, 9));
    assert_eq!(fs::read(scratch.path("backup/a")).unwrap(), b"ALPHA");
}

#[test]
fn a_file_that_may_have_changed_unseen_is_copied_again() {
    let scratch = Scratch::with_a_large_file();
    scratch.set_age("docs/a", Duration::ZERO);
    scratch.back_up(Layout::Flat, &FILES);
    let resumed = scratch.resume();
    assert_eq!((resumed.files, resumed.bytes_again), (3, 5));
}

#[test]
fn a_copy_that_is_not_what_was_written_is_made_again() {
    let scratch = Scratch::with_a_large_file();
    scratch.back_up(Layout::Flat, &FILES);
    scratch.write("backup/a", "alphA");
    scratch.write("backup/b", "");
    fs::remove_file(scratch.path("backup/d")).unwrap();
    fs::create_dir(scratch.path("backup/d")).unwrap();
    let resumed = scratch.resume();
    assert_eq!((resumed.files, resumed.bytes_again), (1, 14));
}

#[test]
fn a_damaged_record_costs_work_and_nothing_else() {
    for damaged in [&b""[..], b"nonsense\n", &[0; 4096]] {
        let scratch = Scratch::with_a_large_file();
        scratch.back_up(Layout::Flat, &FILES);
        fs::write(scratch.record(), damaged).unwrap();
        assert_eq!(scratch.resume(), Resumed::default());
    }
}

#[test]
fn a_record_that_lies_about_a_copy_is_not_believed() {
    let scratch = Scratch::with_a_large_file();
    scratch.back_up(Layout::Flat, &FILES);
    // As after a power cut that the record survived and the copy did not.
    scratch.write("backup/c", vec![0; 4 * MIB]);
    let resumed = scratch.resume();
    assert_eq!((resumed.files, resumed.bytes_again), (3, 4 * MIB as u64));
}

#[test]
fn a_backup_that_was_settled_is_made_anew() {
    let scratch = Scratch::with_a_large_file();
    scratch.back_up(Layout::Flat, &FILES).settle().unwrap();
    assert_eq!(scratch.resume(), Resumed::default());
}

#[test]
fn a_backup_that_was_not_settled_is_taken_over_whole() {
    let scratch = Scratch::with_a_large_file();
    let report = scratch.back_up(Layout::Flat, &FILES);
    assert_eq!(
        scratch.differences(&report),
        [],
        "the work folder is no extra"
    );
    assert_eq!(scratch.resume(), taken_over(4, 14 + 4 * MIB as u64));
}

#[test]
fn categories_are_taken_over_by_themselves() {
    let scratch = Scratch::with_a_large_file();
    scratch.write("mail/a", "omega");
    let both = [("files", "docs"), ("email", "mail")];
    scratch.back_up(Layout::PerCategory, &both);
    fs::remove_file(scratch.path("backup/manifest.work/email.record")).unwrap();
    let report = scratch.back_up(Layout::PerCategory, &both);
    assert_eq!(scratch.differences(&report), []);
    let of = |name| report.categories[&FolderName::from_any(name)].resumed;
    assert_eq!((of("files").files, of("email").files), (4, 0));
}

#[test]
fn another_source_takes_nothing_over() {
    let scratch = Scratch::with_a_large_file();
    scratch.back_up(Layout::Flat, &FILES);
    fs::rename(scratch.path("docs"), scratch.path("moved")).unwrap();
    let report = scratch.back_up(Layout::Flat, &[("files", "moved")]);
    assert_eq!(scratch.differences(&report), []);
    let resumed = report.categories[&FolderName::from_any("files")].resumed;
    assert_eq!(resumed, Resumed::default());
}

#[test]
fn the_work_folder_gives_way_to_a_folder_of_the_source() {
    let scratch = Scratch::with_a_large_file();
    scratch.interrupt();
    scratch.write("docs/manifest.work/files.record", "of another program");
    assert_eq!(scratch.resume(), Resumed::default());
    let kept = fs::read(scratch.path("backup/manifest.work/files.record"));
    assert_eq!(kept.unwrap(), b"of another program");
}
