//! The table of the pipe file system, on its model everywhere and on the real thing on Windows.

use std::collections::HashSet;
use std::path::Path;

#[cfg(windows)]
use migration_ipc_testkit::pipe_model::wine_version;
use migration_ipc_testkit::pipe_model::{
    Model, Outcome, TABLE, Wine, collect, document, read_evidence, run,
};

/// Where each difference is explained to readers, and what people wrote of it.
const DOCUMENT: &str = include_str!("../../../docs/windows.md");
const PROSE: &str = include_str!("../../../docs/evidence/windows.md");

#[test]
fn the_model_follows_the_table() {
    let mut system = Model::new();
    for row in TABLE {
        if let Err(mismatch) = run(&mut system, row, "name") {
            panic!("{mismatch}");
        }
    }
}

/// Windows must do what the table says, and enforce what is checked. Under Wine, the rows that it is
/// known to break must be exactly those that it breaks, so that the list in the document is neither
/// too short nor too long.
#[test]
fn the_real_thing_follows_the_table_and_enforces_what_is_checked() {
    let evidence = collect();
    for row in TABLE {
        if let Wine::Differs(threat, why) = row.wine
            && !threat.is_enforced_here(why)
        {
            println!("    so nothing was shown by the row: {}", row.name);
        }
    }
    let failed: Vec<_> = evidence
        .rows
        .iter()
        .chain(&evidence.checks)
        .filter(|finding| matches!(finding.outcome, Outcome::Failed(_)))
        .collect();
    assert!(failed.is_empty(), "{}: {failed:#?}", evidence.system);
}

#[test]
fn the_rows_have_names_of_their_own() {
    let names: HashSet<_> = TABLE.iter().map(|row| row.name).collect();
    assert_eq!(names.len(), TABLE.len());
}

#[test]
fn the_document_is_what_its_prose_and_the_evidence_say() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    let evidence = read_evidence(&docs.join("evidence")).unwrap();
    let made = document(PROSE, &evidence).unwrap();
    assert!(
        made.replace('\r', "") == DOCUMENT.replace('\r', ""),
        "docs/windows.md is out of date; \
         run `cargo run -p migration-ipc-testkit --example windows_document`"
    );
}

/// What Wine showed when the evidence was collected, it must show still.
#[cfg(windows)]
#[test]
fn wine_shows_what_its_evidence_says() {
    let Some(version) = wine_version() else {
        println!("SKIPPED: this is not Wine");
        return;
    };
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    let system = format!("Wine {version}");
    let recorded = read_evidence(&docs.join("evidence")).unwrap();
    match recorded.into_iter().find(|one| one.system == system) {
        Some(recorded) => assert_eq!(collect(), recorded),
        None => println!("SKIPPED: there is no evidence of {system} to compare with"),
    }
}
