//! The arguments of a request, as a command sees them.

use crate::{cache::tx::Key, error::ClientError, protocol::Span, value::number};

/// The arguments; index 0 is the command's name.
#[derive(Clone, Copy)]
pub struct Args<'a> {
    buf: &'a [u8],
    spans: &'a [Span],
}

impl<'a> Args<'a> {
    /// Arguments that lie in `buf`.
    #[inline]
    pub fn new(buf: &'a [u8], spans: &'a [Span]) -> Self {
        Self { buf, spans }
    }

    /// How many there are, the name included.
    #[inline]
    #[expect(clippy::len_without_is_empty, reason = "a request has at least its name")]
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// An argument; empty if there is none.
    #[inline]
    pub fn get(&self, index: usize) -> &'a [u8] {
        self.spans.get(index).map_or(&[], |span| span.of(self.buf))
    }

    /// An argument that is a key of the row.
    #[inline]
    pub fn key(&self, index: usize) -> Key<'a> {
        let span = &self.spans[index];
        Key { bytes: span.of(self.buf), hash: span.hash }
    }

    /// The arguments from an index on.
    pub fn from(
        &self,
        index: usize,
    ) -> impl DoubleEndedIterator<Item = &'a [u8]> + ExactSizeIterator {
        let buf = self.buf;
        self.spans.get(index..).unwrap_or_default().iter().map(move |span| span.of(buf))
    }

    /// Whether an argument is this word, in any case.
    #[inline]
    pub fn is(&self, index: usize, word: &str) -> bool {
        self.get(index).eq_ignore_ascii_case(word.as_bytes())
    }

    /// An argument as an integer.
    pub fn integer(&self, index: usize) -> Result<i64, ClientError> {
        number::parse_i64(self.get(index)).ok_or(ClientError::NOT_INTEGER)
    }

    /// All bytes of the arguments.
    #[inline]
    pub fn bytes(&self) -> usize {
        self.spans.iter().map(|span| span.len as usize).sum()
    }

    /// Copies the arguments into a buffer of their own.
    pub fn to_owned(self) -> OwnedArgs {
        let mut buf = Vec::with_capacity(self.bytes());
        let place = |span: &Span| {
            let start = buf.len() as u32;
            buf.extend_from_slice(span.of(self.buf));
            Span { start, ..*span }
        };
        let spans = self.spans.iter().map(place).collect();
        OwnedArgs { buf, spans }
    }
}

/// Arguments that outlive the buffer in which they came.
pub struct OwnedArgs {
    buf: Vec<u8>,
    spans: Vec<Span>,
}

impl OwnedArgs {
    /// The arguments.
    pub fn get(&self) -> Args<'_> {
        Args::new(&self.buf, &self.spans)
    }
}
