//! Runs a target on files: `replay TARGET FOLDER...`. With `--variants=ERROR` first it prints how often
//! each variant of the decoder's errors whose name begins like this was reached, and fails when one
//! was not; the option may be given several times.

use libfuzzer_sys as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use migration_ipc_fuzz::{TARGETS, variants};

fn files(of: &Path) -> std::io::Result<Vec<PathBuf>> {
    if of.is_file() {
        return Ok(vec![of.to_owned()]);
    }
    let mut files = std::fs::read_dir(of)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()?;
    files.sort();
    Ok(files)
}

fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1).peekable();
    let mut wanted = Vec::new();
    while let Some(option) = arguments.next_if(|argument| argument.starts_with("--variants=")) {
        wanted.push(option.replace("--variants=", ""));
    }
    let mut run = 0;
    let mut target = None;
    for argument in arguments {
        if let Some((_, found)) = TARGETS.iter().find(|(name, _)| *name == argument) {
            target = Some(*found);
            continue;
        }
        let target = target.ok_or("usage: replay [--variants=ERROR] TARGET FOLDER...")?;
        for file in files(Path::new(&argument))? {
            target(&std::fs::read(file)?);
            run += 1;
        }
    }
    println!("{run} inputs");
    let mut missed = false;
    for (name, reached) in variants::counts() {
        if wanted.iter().any(|begin| name.starts_with(&**begin)) {
            println!("{reached:>10}  {name}");
            missed |= reached == 0;
        }
    }
    if missed {
        println!("a variant was not reached");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}
