//! The table of the pipe file system, on its model everywhere and on the real thing on Windows.

use std::collections::HashSet;

use migration_ipc_testkit::pipe_model::{Model, TABLE, run};

/// Where each difference is explained to readers.
const DOCUMENT: &str = include_str!("../../../docs/windows.md");

#[test]
fn the_model_follows_the_table() {
    let mut system = Model::new();
    for row in TABLE {
        if let Err(mismatch) = run(&mut system, row, "name") {
            panic!("{mismatch}");
        }
    }
}

/// Windows must do what the table says. Under Wine, the rows that it is known to break must be
/// exactly those that it breaks, so that the list in the document is neither too short nor too
/// long.
#[cfg(windows)]
#[test]
fn the_real_thing_follows_the_table() {
    use migration_ipc_testkit::pipe_model::{Real, Wine, under_wine};

    let mut system = Real::new();
    let mut wrong = Vec::new();
    for (number, row) in TABLE.iter().enumerate() {
        let name = format!("migration-ipc-conformance-{}-{number}", std::process::id());
        let outcome = run(&mut system, row, &name);
        match (row.wine, outcome) {
            (Wine::Agrees, Ok(())) => {}
            (Wine::Differs(why), Err(_)) if under_wine() => {
                println!("SKIPPED under Wine: {}: {why}", row.name);
            }
            (Wine::Differs(_), Ok(())) if under_wine() => {
                wrong.push(format!("{}: Wine does this after all", row.name));
            }
            (Wine::Differs(_), Ok(())) => {}
            (Wine::Agrees | Wine::Differs(_), Err(mismatch)) => wrong.push(mismatch.to_string()),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_rows_have_names_of_their_own() {
    let names: HashSet<_> = TABLE.iter().map(|row| row.name).collect();
    assert_eq!(names.len(), TABLE.len());
}

#[test]
fn every_difference_is_in_the_document() {
    for row in TABLE {
        let listed = DOCUMENT.contains(&format!("| {} |", row.name));
        assert!(
            listed,
            "docs/windows.md does not list the row `{}`",
            row.name
        );
    }
}
