//! Writes the seeds of every target, made from the golden transcripts and from stores: `seeds FOLDER`.

use libfuzzer_sys as _;
use std::path::Path;

use migration_ipc_fuzz::seeds;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let to = std::env::args().nth(1).ok_or("usage: seeds FOLDER")?;
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../golden");
    for (target, seeds) in seeds::all(&golden)? {
        let folder = Path::new(&to).join(target);
        std::fs::create_dir_all(&folder)?;
        for (number, seed) in seeds.iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{number:03}")), seed)?;
        }
        println!("{target}: {} seeds", seeds.len());
    }
    Ok(())
}
