//! What the documents promise is shown by tests that exist.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Adds the names of all functions in the Rust files of a folder.
fn collect_functions(folder: &Path, names: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect_functions(&path, names);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let after_fn = text.split("fn ").skip(1);
            names.extend(after_fn.filter_map(|rest| {
                let (name, _) = rest.split_once(['(', '<'])?;
                Some(name.to_owned())
            }));
        }
    }
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

#[test]
fn each_promise_of_delivery_names_a_test_that_exists() {
    let document = fs::read_to_string(workspace().join("docs/delivery.md")).unwrap();
    let mut functions = BTreeSet::new();
    for folder in ["crates", "apps"] {
        collect_functions(&workspace().join(folder), &mut functions);
    }
    let mut promises = 0;
    for statement in statements(&document) {
        let Some((_, tests)) = statement.split_once('→') else {
            continue;
        };
        promises += 1;
        let named: Vec<&str> = quoted(tests).collect();
        assert!(!named.is_empty(), "no test is named: {statement}");
        for name in named {
            assert!(functions.contains(name), "there is no test `{name}`");
        }
    }
    assert!(promises > 50, "the document was not understood");
}
