use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;

use migration_ipc::{AuditEvent, AuditRecord, AuditSink, AuditText, Timestamp};
use serde_json::Value;
use tokio::sync::oneshot;

use super::file::{AuditFiles, FILES};
use super::sink::{QUEUE, connect};
use super::*;

/// No file is so long in these tests.
const NO_LIMIT: u64 = u64::MAX;

fn refused(message_type: &str) -> AuditRecord {
    AuditRecord {
        time: Timestamp::UNIX_EPOCH,
        subject: None,
        event: AuditEvent::TypeRefused {
            message_type: AuditText::new(message_type),
        },
    }
}

/// What is told of each line: its type, or its event.
fn lines(folder: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let found = read(folder, |line| {
        lines.push(match line {
            AuditLine::Torn => "torn".to_owned(),
            AuditLine::Record(record) => match (&record["event"], record.get("records")) {
                (Value::String(event), Some(records)) => format!("{event} {records}"),
                _ => record["type"].as_str().unwrap().to_owned(),
            },
        });
        Ok(())
    });
    assert!(found.unwrap().is_some());
    lines
}

/// Writes records as the service does, from its start to its end.
async fn write(folder: &Path, limit: u64, types: &[&str]) {
    let (sink, writer) = connect(AuditFiles::open(folder, limit).unwrap());
    let (stop, stopped) = oneshot::channel();
    let writing = tokio::spawn(writer.run(stopped));
    for message_type in types {
        sink.record(&refused(message_type));
    }
    stop.send(()).unwrap();
    writing.await.unwrap();
    // A sink may outlive its writer.
    sink.record(&refused("late"));
}

#[tokio::test]
async fn what_is_recorded_is_there_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(read(folder.path(), |_| Ok(())).unwrap(), None);
    write(folder.path(), NO_LIMIT, &["A", "B"]).await;
    write(folder.path(), NO_LIMIT, &["C"]).await;
    assert_eq!(lines(folder.path()), ["A", "B", "C"]);
}

/// A kill in the middle of a write leaves a part of a line.
#[tokio::test]
async fn a_torn_last_line_is_recognised_and_spoils_no_other() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), NO_LIMIT, &["A"]).await;
    let path = folder.path().join("audit.jsonl");
    let mut file = OpenOptions::new().append(true).open(&path).unwrap();
    file.write_all(b"{\"time\":\"2024-01-01T12:00:00Z\",\"ev")
        .unwrap();
    assert_eq!(lines(folder.path()), ["A", "torn"]);
    write(folder.path(), NO_LIMIT, &["B"]).await;
    assert_eq!(lines(folder.path()), ["A", "torn", "B"]);
}

#[tokio::test]
async fn the_files_take_turns_and_never_exceed_their_bound() {
    const LIMIT: u64 = 1000;
    let folder = tempfile::tempdir().unwrap();
    let types: Vec<String> = (0..200).map(|number| format!("T{number}")).collect();
    let types: Vec<&str> = types.iter().map(String::as_str).collect();
    write(folder.path(), LIMIT, &types).await;
    let files: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(files.len(), FILES);
    for file in files {
        let length = file.unwrap().metadata().unwrap().len();
        assert!(length <= LIMIT, "{length}");
    }
    let kept = lines(folder.path());
    assert!(kept.len() > 20, "{}", kept.len());
    assert_eq!(
        kept,
        types[types.len() - kept.len()..],
        "the newest, in order"
    );
}

#[cfg(unix)]
#[tokio::test]
async fn the_files_are_private() {
    use std::os::unix::fs::PermissionsExt as _;

    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), 300, &["A", "B", "C", "D", "E"]).await;
    for file in std::fs::read_dir(folder.path()).unwrap() {
        let mode = file.unwrap().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}

#[cfg(unix)]
#[tokio::test]
async fn a_link_in_the_way_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::NamedTempFile::new().unwrap();
    let path = folder.path().join("audit.jsonl");
    std::os::unix::fs::symlink(elsewhere.path(), path).unwrap();
    let error = open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("not a regular file"), "{error}");
}

/// Nobody waits for the disk, and nothing is lost in silence.
#[tokio::test]
async fn what_a_full_queue_does_not_take_is_counted_in_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let (sink, writer) = connect(AuditFiles::open(folder.path(), NO_LIMIT).unwrap());
    for _ in 0..QUEUE + 10 {
        sink.record(&refused("A"));
    }
    let (stop, stopped) = oneshot::channel();
    stop.send(()).unwrap();
    writer.run(stopped).await;
    let lines = lines(folder.path());
    assert_eq!(lines.iter().filter(|line| *line == "A").count(), QUEUE);
    assert_eq!(lines.iter().filter(|line| *line == "lost 10").count(), 1);
}

/// A disk that fails loses records, and the log says how many once it works again.
#[cfg(unix)]
#[tokio::test]
async fn what_the_disk_does_not_take_is_counted_in_the_log() {
    let outer = tempfile::tempdir().unwrap();
    let folder = outer.path().join("data");
    std::fs::create_dir(&folder).unwrap();
    // Every record wants a file of its own.
    let (_sink, writer) = connect(AuditFiles::open(&folder, 1).unwrap());
    let line = |message_type: &str| vec![serde_json::to_string(&refused(message_type)).unwrap()];
    let writer = writer.write(line("A")).await.unwrap();
    assert_eq!(lines(&folder), ["A"]);
    std::fs::remove_dir_all(&folder).unwrap();
    let writer = writer.write(line("B")).await.unwrap();
    let writer = writer.write(line("C")).await.unwrap();
    std::fs::create_dir(&folder).unwrap();
    let _writer = writer.write(line("D")).await.unwrap();
    // The records, and the line that said that the first of them was lost.
    assert_eq!(lines(&folder), ["D", "lost 2"]);
}

/// Threat: a peer writes records of its own.
#[tokio::test]
async fn a_hostile_text_is_one_record_in_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let hostile = "x\r\n{\"event\":\"forged\"}\u{1b}[2J\u{9b}\u{202e}\u{2028}\0";
    write(folder.path(), NO_LIMIT, &[hostile, "B"]).await;
    let bytes = std::fs::read(folder.path().join("audit.jsonl")).unwrap();
    let text = String::from_utf8(bytes).unwrap();
    assert_eq!(text.lines().count(), 2);
    let is_plain = |c: char| c == '\n' || (!c.is_control() && !"\u{202e}\u{2028}".contains(c));
    assert!(text.chars().all(is_plain), "{text:?}");
    let kept = lines(folder.path());
    assert_eq!(kept[1], "B");
    assert!(kept[0].starts_with("x\\r\\n{") && kept[0].chars().all(is_plain));
}
