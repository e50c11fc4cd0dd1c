//! A backup whose agent is killed again and again.

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde_json::Value;

use crate::harness::{Sandbox, report, seed, until_seen};

/// How often the agent is killed in the middle of its one backup.
const KILLS: u64 = 20;

const LARGEST: usize = 2 * 1024 * 1024;

/// Writes many small files and some large ones, all of them old, and returns how many bytes.
fn fill(sandbox: &Sandbox, random: &mut fastrand::Rng) -> u64 {
    let old = SystemTime::now() - Duration::from_secs(3600);
    let mut total = 0;
    for index in 0..300 {
        let size = if index % 15 == 7 {
            LARGEST
        } else {
            random.usize(..64 * 1024)
        };
        let mut content = vec![0; size];
        random.fill(&mut content);
        let path = sandbox.write(&format!("docs/{}/{index}.bin", index % 9), content);
        let file = File::options().write(true).open(path).unwrap();
        file.set_modified(old).unwrap();
        total += size as u64;
    }
    total
}

/// How many bytes are in a folder, those of unfinished copies included.
fn bytes_in(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else {
        return 0;
    };
    // What goes away while it is looked at does not count.
    let size = |path: &Path| match path.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => bytes_in(path),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    };
    entries.flatten().map(|entry| size(&entry.path())).sum()
}

#[test]
fn a_backup_killed_at_random_points_ends_complete_and_identical() {
    let seed = seed();
    let mut random = fastrand::Rng::with_seed(seed);
    let sandbox = Sandbox::new();
    let total = fill(&sandbox, &mut random);
    let config = sandbox.write("service.toml", "[backup]\nrequest = \"on_announce\"\n");
    let _service = sandbox.service(&["--config", config.to_str().unwrap()]);
    let backup = sandbox.path("backups/s1");

    let mut points: Vec<u64> = (0..KILLS)
        // Far enough from the end that the backup is not through before the kill.
        .map(|_| random.u64(total / 100..total * 6 / 10))
        .collect();
    points.sort_unstable();
    for point in &points {
        let mut agent = sandbox.agent("s1", &["--consent", "auto"]);
        let point_comes = "the backup comes to the point of the kill";
        until_seen(point_comes, Duration::from_millis(1), || {
            // A backup that has failed comes to no point any more.
            let said = agent.output();
            let is_at_work = !agent.has_ended() && !said.contains("not complete");
            assert!(is_at_work, "seed {seed}: {said}{}", agent.log());
            bytes_in(&backup) > *point
        });
        agent.kill();
        let manifest: Value = read_manifest(&backup);
        assert_eq!(manifest["state"], "unfinished", "seed {seed}");
    }
    let agent = sandbox.agent("s1", &["--consent", "auto"]);
    agent.until_output("The backup is complete: 300 files");
    sandbox.until_state("s1", "completed");
    agent.until_output("copied twice");

    let check = sandbox.run(&["check", backup.to_str().unwrap()]);
    assert_eq!(check.code, Some(0), "seed {seed}: {}", check.output);
    let resumed = &read_manifest(&backup)["categories"]["files"]["resumed"];
    let number = |name: &str| resumed[name].as_u64().unwrap();
    report(format_args!(
        "seed {seed}: {KILLS} kills, {total} bytes, of which {} copied twice; \
         the last run took over {} files, {} bytes",
        number("bytesAgain"),
        number("files"),
        number("bytes"),
    ));
    assert!(
        check
            .output
            .contains(&format!("{} bytes copied twice", number("bytesAgain")))
    );
    assert!(number("files") > 0, "seed {seed}");
    let one_file_each = KILLS * LARGEST as u64;
    assert!(number("bytesAgain") <= one_file_each, "seed {seed}");
    assert!(!backup.join("manifest.work").exists());
}

fn read_manifest(backup: &Path) -> Value {
    serde_json::from_slice(&fs::read(backup.join("manifest.json")).unwrap()).unwrap()
}
