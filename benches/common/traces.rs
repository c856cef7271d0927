//! The traces at `../shared/traces`, which aren't part of the project.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
};

use flate2::read::GzDecoder;

/// The requests of a trace: numbers of keys, each with its bytes if the trace tells them. `None` if the
/// trace isn't there.
pub fn read(name: &str) -> Option<Vec<(u64, Option<u32>)>> {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../shared/traces/{name}.txt.gz"));
    let lines = BufReader::new(GzDecoder::new(File::open(path).ok()?)).lines();
    let parse = |line: String| {
        let mut words = line.split(' ');
        let key = words.next()?.parse().ok()?;
        Some((key, words.next().and_then(|size| size.parse().ok())))
    };
    lines.map_while(Result::ok).map(parse).collect()
}
