//! Makes `docs/windows.md` from its prose and the evidence, all in `docs/evidence`.
//!
//! ```sh
//! cargo run -p migration-ipc-testkit --example windows_document
//! ```

use std::error::Error;
use std::fs;
use std::path::Path;

use migration_ipc_testkit::pipe_model::{document, read_evidence};

fn main() -> Result<(), Box<dyn Error>> {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    let prose = fs::read_to_string(docs.join("evidence/windows.md"))?;
    let document = document(&prose, &read_evidence(&docs.join("evidence"))?)?;
    fs::write(docs.join("windows.md"), document)?;
    Ok(())
}
