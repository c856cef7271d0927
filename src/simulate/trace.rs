//! Traces: one request a line, a key and perhaps the bytes of its value.
//!
//! ```text
//! user:17 340
//! user:18
//! ```
//!
//! Words are divided by spaces or tabs; empty lines are passed over. A trace may be compressed by gzip or
//! xz, several parts one behind the other: its first bytes tell. It is read as it is replayed, a line at
//! a time, and a line has a bound.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Cursor, Read},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use flate2::bufread::MultiGzDecoder;
use liblzma::{
    bufread::XzDecoder,
    stream::{CONCATENATED, Stream},
};

use crate::error::Error;

/// The longest line, its end included.
pub const LONGEST_LINE: usize = 64 << 10;
/// The longest value, in bytes: Redis's longest string.
pub const LONGEST_VALUE: u64 = 512 << 20;
/// Memory that unpacking xz may take: `xz -9` needs 65 MiB.
const XZ_MEMORY: u64 = 256 << 20;
const GZIP: &[u8] = &[0x1f, 0x8b];
const XZ: &[u8] = &[0xfd, b'7', b'z', b'X', b'Z', 0];

/// A request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// The key.
    pub key: &'a [u8],
    /// Bytes of its value.
    pub size: usize,
}

/// A trace that is being read.
pub struct Trace {
    name: String,
    lines: Box<dyn BufRead>,
    line: Vec<u8>,
    /// The number of that line.
    number: u64,
    /// The size where a line has none.
    value_size: usize,
    /// Bytes of the file that were read, and all that there are, if that is known.
    read: Arc<AtomicU64>,
    len: Option<u64>,
}

/// A reader that says how far it has come.
struct Counted<R>(R, Arc<AtomicU64>);

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.0.read(buf)?;
        self.1.fetch_add(count as u64, Relaxed);
        Ok(count)
    }
}

/// The trace's words of a line: `None` if it is empty.
fn parse(line: &[u8], value_size: usize) -> Result<Option<Request<'_>>, &'static str> {
    let is_space = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\r' | b'\n');
    let mut words = line.split(is_space).filter(|word| !word.is_empty());
    let Some(key) = words.next() else { return Ok(None) };
    let size = match words.next() {
        None => value_size,
        Some(word) => parse_size(word)?,
    };
    match words.next() {
        None => Ok(Some(Request { key, size })),
        Some(_) => Err("a third word; a line is `key` or `key size`"),
    }
}

fn parse_size(word: &[u8]) -> Result<usize, &'static str> {
    let size = std::str::from_utf8(word).ok().filter(|word| !word.starts_with('+'));
    let size = size.and_then(|word| word.parse::<u64>().ok());
    let size = size.ok_or("the second word is no size in bytes")?;
    if size > LONGEST_VALUE { Err("a value of more than 512 MiB") } else { Ok(size as usize) }
}

impl Trace {
    /// Opens a trace, `-` being the standard input; a line without a size has this one.
    pub fn open(path: &Path, value_size: usize) -> Result<Self, Error> {
        let name = path.to_string_lossy().into_owned();
        if name == "-" {
            return Self::read("standard input".into(), io::stdin(), None, value_size);
        }
        let explain = |why: io::Error| Error::Config(format!("{name}: {why}"));
        let file = File::open(path).map_err(explain)?;
        let data = file.metadata().map_err(explain)?;
        if data.is_dir() {
            return Err(explain(io::ErrorKind::IsADirectory.into()));
        }
        let len = data.is_file().then_some(data.len());
        Self::read(name, file, len, value_size)
    }

    /// Reads a trace from wherever it comes.
    pub fn read(
        name: String,
        source: impl Read + 'static,
        len: Option<u64>,
        value_size: usize,
    ) -> Result<Self, Error> {
        let read = Arc::new(AtomicU64::new(0));
        let mut source = Counted(source, read.clone());
        let mut head = Vec::new();
        let explain = |why: io::Error| Error::Config(format!("{name}: {why}"));
        source.by_ref().take(XZ.len() as u64).read_to_end(&mut head).map_err(explain)?;
        let (is_gzip, is_xz) = (head.starts_with(GZIP), head.starts_with(XZ));
        let all = BufReader::with_capacity(64 << 10, Cursor::new(head).chain(source));
        let lines: Box<dyn BufRead> = if is_gzip {
            Box::new(BufReader::new(MultiGzDecoder::new(all)))
        } else if is_xz {
            let stream = Stream::new_stream_decoder(XZ_MEMORY, CONCATENATED)
                .map_err(|why| explain(why.into()))?;
            Box::new(BufReader::new(XzDecoder::new_stream(all, stream)))
        } else {
            Box::new(all)
        };
        Ok(Self { name, lines, line: Vec::new(), number: 0, value_size, read, len })
    }

    /// The next request; `None` at the end.
    pub fn request(&mut self) -> Result<Option<Request<'_>>, Error> {
        loop {
            self.line.clear();
            self.number += 1;
            let mut lines = (&mut self.lines).take(LONGEST_LINE as u64 + 1);
            match lines.read_until(b'\n', &mut self.line) {
                Ok(0) => return Ok(None),
                Ok(count) if count > LONGEST_LINE => {
                    return Err(self.mistake("longer than 64 KiB"));
                }
                Ok(_) => {}
                Err(why) => return Err(self.mistake(&why.to_string())),
            }
            // Looked at twice, since what is returned from within a loop is borrowed for all of it.
            match parse(&self.line, self.value_size) {
                Ok(None) => {}
                Ok(Some(_)) => break,
                Err(why) => return Err(self.mistake(why)),
            }
        }
        parse(&self.line, self.value_size).map_err(|why| self.mistake(why))
    }

    fn mistake(&self, what: &str) -> Error {
        Error::Config(format!("{}:{}: {what}", self.name, self.number))
    }

    /// The line that was read last, from 1 on.
    pub fn line(&self) -> u64 {
        self.number
    }

    /// Bytes of the file that were read, and all that there are, if that is known.
    pub fn progress(&self) -> (u64, Option<u64>) {
        (self.read.load(Relaxed), self.len)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{Compression, write::GzEncoder};
    use liblzma::write::XzEncoder;
    use proptest::prelude::*;

    use super::*;

    fn read(bytes: &[u8]) -> Result<Vec<(Vec<u8>, usize)>, String> {
        let source = Cursor::new(bytes.to_vec());
        let mut trace = Trace::read("t".into(), source, None, 9).map_err(|why| why.to_string())?;
        let mut found = Vec::new();
        while let Some(request) = trace.request().map_err(|why| why.to_string())? {
            found.push((request.key.to_vec(), request.size));
        }
        Ok(found)
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).expect("packs");
        encoder.finish().expect("packs")
    }

    fn xz(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = XzEncoder::new(Vec::new(), 1);
        encoder.write_all(bytes).expect("packs");
        encoder.finish().expect("packs")
    }

    #[test]
    fn a_line_is_a_key_and_perhaps_a_size() {
        let found = read(b"a\nb 17\n\n \t\nc\t0\r\n  d   5  \n#e").expect("a trace");
        let wanted = [("a", 9), ("b", 17), ("c", 0), ("d", 5), ("#e", 9)];
        assert_eq!(found, wanted.map(|(key, size)| (key.as_bytes().to_vec(), size)));
        assert_eq!(read(b""), Ok(Vec::new()));
        assert_eq!(read(b"\xff\xfe 3").expect("any bytes"), [(vec![0xff, 0xfe], 3)]);
    }

    #[test]
    fn mistakes_name_their_line() {
        for (text, why) in [
            ("a\nb x\n", "t:2: the second word is no size in bytes"),
            ("a 1.5", "t:1: the second word is no size in bytes"),
            ("a -1", "t:1: the second word is no size in bytes"),
            ("a +1", "t:1: the second word is no size in bytes"),
            ("a 99999999999999999999", "t:1: the second word is no size in bytes"),
            ("a 536870913", "t:1: a value of more than 512 MiB"),
            ("\n\na 1 2\n", "t:3: a third word; a line is `key` or `key size`"),
        ] {
            assert_eq!(read(text.as_bytes()), Err(why.into()), "{text:?}");
        }
        let long = vec![b'x'; LONGEST_LINE];
        assert!(read(&long).is_ok());
        assert_eq!(read(&[&long[..], b"x"].concat()), Err("t:1: longer than 64 KiB".into()));
    }

    #[test]
    fn packed_traces_are_told_by_their_bytes() {
        let text = b"a 1\nb 2\n";
        let plain = read(text).expect("a trace");
        for pack in [gzip, xz] {
            assert_eq!(read(&pack(text)).as_ref(), Ok(&plain));
            let parts = [pack(b"a 1\n"), pack(b"b 2\n")].concat();
            assert_eq!(read(&parts).as_ref(), Ok(&plain), "one part behind the other");
            let all = pack(&b"key 1\n".repeat(10_000));
            let why = read(&all[..all.len() / 2]).expect_err("it is cut off");
            assert!(why.starts_with("t:"), "{why}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&bytes);
            let _ = read(&[XZ, &bytes].concat());
            let _ = read(&[GZIP, &bytes].concat());
        }
    }
}
