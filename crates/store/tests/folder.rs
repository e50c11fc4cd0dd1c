//! The real disk: which folders it takes, and what an outbox in it keeps.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::io::ErrorKind;
use std::sync::Arc;

use migration_ipc_protocol::OutboxId;
use migration_ipc_store::disk::{Disk, DiskFile, Folder, FolderError};
use migration_ipc_store::outbox::{Outbox, OutboxOptions};

const ID: OutboxId = OutboxId::from_bytes([7; 16]);

#[test]
fn a_folder_is_made_and_held_by_one_at_a_time() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("of").join("ours");
    let folder = Folder::open(&path).unwrap();
    assert_eq!(folder.path(), path);
    let error = Folder::open(&path).unwrap_err();
    assert!(matches!(error, FolderError::Locked(_)), "{error}");
    let text = error.to_string();
    assert!(text.contains(&path.display().to_string()), "{text}");
    assert!(text.contains("stop that one"), "{text}");
    drop(folder);
    Folder::open(&path).unwrap();
}

#[test]
fn a_file_is_no_folder() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("file");
    fs::write(&path, "text").unwrap();
    let error = Folder::open(&path).unwrap_err();
    assert!(matches!(error, FolderError::NotAFolder(_)), "{error}");
    assert_eq!(fs::read(&path).unwrap(), b"text");
}

/// The lock's file and the folder's own others are nobody else's.
#[test]
fn names_stay_in_the_folder() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = Folder::open(scratch.path().join("folder")).unwrap();
    for name in [
        "",
        ".",
        "..",
        "../other",
        "a/b",
        "/etc/passwd",
        ".lock",
        ".probe",
    ] {
        let error = folder.create(name).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{name}");
        assert!(folder.remove(name).is_err(), "{name}");
        assert!(folder.rename(name, "b").is_err(), "{name}");
    }
    folder.create("file").unwrap();
    fs::create_dir(folder.path().join("subfolder")).unwrap();
    assert_eq!(folder.list().unwrap(), ["file"]);
}

#[test]
fn files_are_what_the_seam_says() {
    let scratch = tempfile::tempdir().unwrap();
    let folder = Folder::open(scratch.path()).unwrap();
    same_as_the_seam_says(&folder);
    same_as_the_seam_says(&migration_ipc_testkit::disk::SimDisk::new(0));
}

fn same_as_the_seam_says(disk: &dyn Disk) {
    assert_eq!(disk.open("a").unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(disk.remove("a").unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(
        disk.rename("a", "b").unwrap_err().kind(),
        ErrorKind::NotFound
    );
    let file = disk.create("a").unwrap();
    assert_eq!(
        disk.create("a").unwrap_err().kind(),
        ErrorKind::AlreadyExists
    );
    assert!(file.is_empty().unwrap());
    file.write_at(3, b"text").unwrap();
    assert_eq!(file.len().unwrap(), 7);
    assert_eq!(read(&*file, 0, 7), b"\0\0\0text");
    file.write_at(5, b"s").unwrap();
    assert_eq!(read(&*file, 3, 4), b"test");
    let error = file.read_at(4, &mut [0; 4]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
    file.set_len(5).unwrap();
    file.set_len(6).unwrap();
    assert_eq!(read(&*file, 0, 6), b"\0\0\0te\0");
    file.sync().unwrap();
    drop(file);

    disk.create("b").unwrap().write_at(0, b"other").unwrap();
    disk.rename("a", "b").unwrap();
    disk.sync().unwrap();
    assert_eq!(disk.list().unwrap(), ["b"]);
    assert_eq!(disk.open("b").unwrap().len().unwrap(), 6);
    disk.remove("b").unwrap();
    disk.sync().unwrap();
    assert!(disk.list().unwrap().is_empty());
}

fn read(file: &dyn DiskFile, offset: u64, length: usize) -> Vec<u8> {
    let mut buffer = vec![0; length];
    file.read_at(offset, &mut buffer).unwrap();
    buffer
}

#[test]
fn an_outbox_in_a_folder_is_found_again() {
    let scratch = tempfile::tempdir().unwrap();
    let open = || {
        let folder = Arc::new(Folder::open(scratch.path()).unwrap());
        Outbox::open(folder, OutboxOptions::default().segment_bytes(1024), ID).unwrap()
    };
    let (mut outbox, _) = open();
    for number in 0..60_u8 {
        let seq = outbox.append(&[number; 100]).unwrap();
        outbox.sync().unwrap();
        if number % 3 != 0 {
            outbox.settle(seq);
        }
    }
    outbox.sync().unwrap();
    let expected: Vec<_> = outbox
        .waiting()
        .map(|seq| (seq, outbox.read(seq).unwrap()))
        .collect();
    assert_eq!(expected.len(), 20);
    drop(outbox);
    let (outbox, report) = open();
    assert_eq!(report.damaged, []);
    let found: Vec<_> = outbox
        .waiting()
        .map(|seq| (seq, outbox.read(seq).unwrap()))
        .collect();
    assert_eq!(found, expected);
}

#[cfg(unix)]
mod unix {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
    use std::path::Path;

    use super::*;

    fn is_root(path: &Path) -> bool {
        fs::metadata(path).unwrap().uid() == 0
    }

    #[test]
    fn what_is_made_is_for_its_owner_alone() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = Folder::open(scratch.path().join("folder")).unwrap();
        folder.create("file").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!(mode(folder.path()), 0o700);
        assert_eq!(mode(&folder.path().join("file")), 0o600);
    }

    /// Whoever owns the folder could exchange every file in it.
    #[test]
    fn a_folder_of_another_account_is_refused() {
        let scratch = tempfile::tempdir().unwrap();
        if !is_root(scratch.path()) {
            eprintln!("skipped: only root can give a folder away");
            return;
        }
        let path = scratch.path().join("theirs");
        fs::create_dir(&path).unwrap();
        chown(&path, Some(12345), None).unwrap();
        let error = Folder::open(&path).unwrap_err();
        assert!(error.to_string().contains("uid 12345"), "{error}");
        assert!(fs::read_dir(&path).unwrap().next().is_none());
    }

    #[test]
    fn a_read_only_folder_is_refused() {
        let scratch = tempfile::tempdir().unwrap();
        if is_root(scratch.path()) {
            eprintln!("skipped: root may write to every real folder");
            return;
        }
        let path = scratch.path().join("read-only");
        // The second time there is a lock file, which can be opened.
        for _ in 0..2 {
            drop(Folder::open(&path).unwrap());
            fs::set_permissions(&path, fs::Permissions::from_mode(0o500)).unwrap();
            let error = Folder::open(&path).unwrap_err();
            assert!(matches!(error, FolderError::ReadOnly { .. }), "{error}");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        }
    }

    /// A dangling one, too: what would be made is where the link's maker wants it.
    #[test]
    fn a_link_to_a_folder_is_refused_however_it_is_written() {
        let scratch = tempfile::tempdir().unwrap();
        let (target, link) = (scratch.path().join("target"), scratch.path().join("link"));
        std::os::unix::fs::symlink(&target, &link).unwrap();
        for there in [false, true] {
            if there {
                fs::create_dir(&target).unwrap();
            }
            for end in ["", "/", "/."] {
                let named = format!("{}{end}", link.display());
                let error = Folder::open(&named).unwrap_err();
                assert!(matches!(error, FolderError::Link(_)), "{named}: {error}");
            }
            assert_eq!(target.exists(), there);
        }
        assert!(fs::read_dir(&target).unwrap().next().is_none());
    }

    /// Where not even root can make a file.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_folder_of_the_kernel_is_refused() {
        let path = Path::new("/sys/kernel");
        if !path.is_dir() {
            eprintln!("skipped: there is no {}", path.display());
            return;
        }
        let error = Folder::open(path).unwrap_err();
        let text = error.to_string();
        let expected = match is_root(path) && is_root(Path::new("/proc/self")) {
            true => "/sys/kernel cannot be written to",
            false => "/sys/kernel belongs to another account",
        };
        assert!(text.starts_with(expected), "{text}");
    }

    #[test]
    fn a_link_in_the_place_of_a_file_is_not_followed() {
        let scratch = tempfile::tempdir().unwrap();
        let target = scratch.path().join("target");
        fs::write(&target, "text").unwrap();
        let folder = Folder::open(scratch.path().join("folder")).unwrap();
        std::os::unix::fs::symlink(&target, folder.path().join("link")).unwrap();
        assert!(folder.open("link").is_err());
        assert!(folder.list().unwrap().is_empty());
    }
}
