//! Files to back up: a few hundred of mixed sizes, with the names and shapes that go wrong.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write as _};
use std::path::Path;

/// The largest file.
const LARGE: usize = 10 * 1024 * 1024;

/// How many ordinary files there are.
const ORDINARY: usize = 300;

/// Names that not every program copes with.
const NAMES: [&str; 6] = [
    "grüße aus köln.txt",
    "日本語.md",
    "🎒 school.txt",
    "e\u{301}.txt",
    "two  spaces",
    "no-extension",
];

/// Sizes around the edges of buffers and blocks.
const SIZES: [usize; 9] = [0, 1, 4095, 4096, 4097, 65_535, 65_536, 65_537, 1024 * 1024];

/// Fills an empty folder.
pub(super) fn fill(folder: &Path) -> io::Result<()> {
    let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
    for index in 0..ORDINARY {
        let place = folder.join(format!("project-{}/part-{}", index % 12, index % 5));
        fs::create_dir_all(&place)?;
        let size = noise.below(64 * 1024);
        write(
            &place.join(format!("file-{index:03}.dat")),
            size,
            &mut noise,
        )?;
    }
    let odd = folder.join("odd names");
    fs::create_dir_all(&odd)?;
    for name in NAMES {
        write(&odd.join(name), name.len(), &mut noise)?;
    }
    let edges = folder.join("sizes");
    fs::create_dir_all(edges.join("an empty folder"))?;
    for size in SIZES {
        write(&edges.join(format!("{size}.bin")), size, &mut noise)?;
    }
    let deep = (0..6).fold(folder.join("deep"), |path, level| {
        path.join(format!("{level}").repeat(50))
    });
    fs::create_dir_all(&deep)?;
    write(&deep.join("bottom.txt"), 17, &mut noise)?;
    write(&folder.join("large.bin"), LARGE, &mut noise)
}

fn write(path: &Path, size: usize, noise: &mut Noise) -> io::Result<()> {
    let mut file = BufWriter::new(File::create_new(path)?);
    let mut left = size;
    while left > 0 {
        let bytes = noise.next().to_le_bytes();
        let part = &bytes[..left.min(bytes.len())];
        file.write_all(part)?;
        left -= part.len();
    }
    file.flush()
}

/// Numbers without a pattern, the same in every run (Marsaglia's xorshift64).
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        let limit = u64::try_from(limit).unwrap_or(u64::MAX);
        usize::try_from(self.next() % limit).unwrap_or(0)
    }
}
