//! What the documents promise is shown by tests that exist.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Calls `look` with each Rust file of a folder.
fn each_file(folder: &Path, look: &mut impl FnMut(&Path, &str)) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            // What is built there is not ours.
            if path.file_name().is_none_or(|name| name != "target") {
                each_file(&path, look);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            look(&path, &fs::read_to_string(&path).unwrap());
        }
    }
}

/// The names of the tests: functions right behind an attribute that says so.
fn tests() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for folder in ["crates", "apps"] {
        each_file(&workspace().join(folder), &mut |_, text| {
            let mut is_test = false;
            for line in text.lines().map(str::trim_start) {
                if line.starts_with("#[") {
                    is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
                    continue;
                }
                let function = line.strip_prefix("async ").unwrap_or(line);
                if is_test
                    && let Some((name, _)) = function
                        .strip_prefix("fn ")
                        .and_then(|rest| rest.split_once('('))
                {
                    names.insert(name.to_owned());
                }
                is_test = false;
            }
        });
    }
    names
}

/// The texts in backquotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The items and rows of a document of Markdown, each in one piece.
fn statements(document: &str) -> Vec<String> {
    let mut statements: Vec<String> = Vec::new();
    let mut inside = false;
    for line in document.lines() {
        if line.starts_with("- ") || line.starts_with("| ") {
            statements.push(line.to_owned());
            inside = true;
        } else if inside && line.starts_with("  ") {
            let statement = statements.last_mut().unwrap();
            statement.push_str(line);
        } else {
            inside = false;
        }
    }
    statements
}

/// Checks that each statement with an arrow names tests behind it, and returns how many there are.
fn promises(document: &str) -> usize {
    let text = fs::read_to_string(workspace().join(document)).unwrap();
    let tests = tests();
    let mut promises = 0;
    for statement in statements(&text) {
        let Some((_, shown_by)) = statement.split_once('→') else {
            continue;
        };
        promises += 1;
        let named: Vec<&str> = quoted(shown_by).collect();
        assert!(!named.is_empty(), "no test is named: {statement}");
        for name in named {
            assert!(
                tests.contains(name),
                "{document}: there is no test `{name}`"
            );
        }
    }
    promises
}

#[test]
fn each_promise_of_delivery_names_a_test_that_exists() {
    assert!(promises("docs/delivery.md") > 50, "it was not understood");
}

#[test]
fn each_promise_of_requests_names_a_test_that_exists() {
    assert!(promises("docs/requests.md") > 25, "it was not understood");
}

#[test]
fn each_promise_of_keys_names_a_test_that_exists() {
    assert!(promises("docs/keys.md") > 20, "it was not understood");
}

#[test]
fn each_threat_names_a_test_that_exists_or_says_that_it_is_not_shown() {
    const ROWS: usize = 37;
    let text = fs::read_to_string(workspace().join("SECURITY.md")).unwrap();
    let rows: Vec<String> = statements(&text)
        .into_iter()
        .filter(|row| row.starts_with("| ") && row.as_bytes()[2].is_ascii_digit())
        .collect();
    assert_eq!(rows.len(), ROWS);
    for (index, row) in rows.iter().enumerate() {
        assert!(row.starts_with(&format!("| {} |", index + 1)), "{row}");
        let shown = row.contains('→') || row.contains("Not shown here");
        assert!(shown, "{row}");
    }
    assert!(promises("SECURITY.md") >= ROWS - 1);
}

/// The only exception is an allocator that counts, which tests need and no program has.
#[test]
fn unsafe_code_is_where_the_operating_systems_are() {
    let mut found = Vec::new();
    for folder in ["crates", "apps", "bench", "fuzz"] {
        each_file(&workspace().join(folder), &mut |path, text| {
            // `unsafe_code` is denied in the manifest; these are the files that are excepted.
            let lint = concat!("unsafe", "_code");
            if text.contains(&format!("{lint},")) || text.contains(&format!("({lint}")) {
                let path = path.strip_prefix(workspace()).unwrap();
                found.push(path.to_str().unwrap().replace('\\', "/"));
            }
        });
    }
    found.sort();
    assert_eq!(
        found,
        [
            "crates/testkit/src/memory.rs",
            "crates/transport/src/unix/linux.rs",
            "crates/transport/src/windows/sys.rs",
        ]
    );
}
