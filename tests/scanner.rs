//! The request scanner against its promises: any split of a pipeline gives the same requests as one
//! piece, well-formed input decodes as another implementation decodes it, errors are Redis's, and
//! neither mutations nor promises of length cost more than the bytes that came.

use std::borrow::Cow;

use larder::{
    error::ProtocolError,
    protocol::{Batch, Limits, Scanned, Scanner},
};
use proptest::prelude::*;
use redis_protocol::resp2::{decode, types::OwnedFrame};

/// Requests as lists of words.
type Requests = Vec<Vec<Vec<u8>>>;

/// A connection as the server keeps one: a scanner and the tail that it hasn't consumed.
struct Peer {
    scanner: Scanner,
    limits: Limits,
    tail: Vec<u8>,
    batch: Batch,
    requests: Requests,
    error: Option<ProtocolError>,
}

impl Peer {
    fn new(limits: Limits) -> Self {
        Self {
            scanner: Scanner::default(),
            limits,
            tail: Vec::new(),
            batch: Batch::default(),
            requests: Vec::new(),
            error: None,
        }
    }

    /// Takes bytes from the socket; false once the connection is to be closed.
    fn receive(&mut self, bytes: &[u8]) -> bool {
        self.tail.extend_from_slice(bytes);
        while self.error.is_none() {
            self.batch.clear();
            match self.scanner.scan(&mut self.tail, &self.limits, &mut self.batch) {
                Ok(scanned) => {
                    self.deliver(&scanned);
                    if !scanned.more {
                        break;
                    }
                }
                Err(error) => self.error = Some(error),
            }
        }
        self.error.is_none()
    }

    fn deliver(&mut self, scanned: &Scanned) {
        assert!(self.batch.len() <= self.limits.batch && scanned.consumed <= self.tail.len());
        let mut end = 0;
        for request in &self.batch.requests {
            let args = self.batch.args(request);
            assert!(!args.is_empty() && args.len() == request.count as usize);
            assert!(end < request.end as usize);
            end = request.end as usize;
            self.requests.push(args.iter().map(|arg| arg.of(&self.tail).to_vec()).collect());
        }
        assert!(end <= scanned.consumed);
        self.tail.drain(..scanned.consumed);
        if !scanned.more {
            assert_eq!(self.scanner.is_partial(), !self.tail.is_empty());
        }
        // Eight bytes an argument, which took at least six, with room for a quarter more.
        assert!(self.scanner.heap_bytes() / 8 <= self.tail.len() / 4 + 4);
    }
}

fn all(limits: Limits, pieces: &[&[u8]]) -> (Requests, Option<ProtocolError>) {
    let mut peer = Peer::new(limits);
    let _ = pieces.iter().all(|piece| peer.receive(piece));
    (peer.requests, peer.error)
}

fn authenticated() -> Limits {
    Limits::authenticated(512 << 20)
}

/// A request as clients send it.
fn multibulk(words: &[Vec<u8>]) -> Vec<u8> {
    let mut wire = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        wire.extend(format!("${}\r\n", word.len()).bytes());
        wire.extend_from_slice(word);
        wire.extend_from_slice(b"\r\n");
    }
    wire
}

/// A request as one types it, every byte escaped in one of the ways there are.
fn inline(words: &[Vec<u8>], style: u8) -> Vec<u8> {
    let mut line = Vec::new();
    for word in words {
        line.push(b' ');
        let plain = !word.is_empty() && word.iter().all(u8::is_ascii_alphanumeric);
        match style % 3 {
            0 if plain => line.extend_from_slice(word),
            1 if !word.contains(&b'\n') && !word.ends_with(b"\\") => single_quoted(word, &mut line),
            _ => double_quoted(word, &mut line),
        }
    }
    line.extend_from_slice(if style & 4 == 0 { b"\r\n" } else { b"\n" });
    line
}

fn single_quoted(word: &[u8], line: &mut Vec<u8>) {
    line.push(b'\'');
    for byte in word {
        line.extend_from_slice(if *byte == b'\'' { b"\\'" } else { std::slice::from_ref(byte) });
    }
    line.push(b'\'');
}

fn double_quoted(word: &[u8], line: &mut Vec<u8>) {
    line.push(b'"');
    for byte in word {
        match byte {
            b'a'..=b'z' => line.push(*byte),
            b'"' | b'\\' => line.extend_from_slice(&[b'\\', *byte]),
            b'\r' => line.extend_from_slice(b"\\r"),
            _ => line.extend(format!("\\x{byte:02x}").bytes()),
        }
    }
    line.push(b'"');
}

/// Words of which some are long, and some full of what has a meaning in the protocol.
fn word() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => "[a-z0-9]{1,12}".prop_map(String::into_bytes),
        2 => prop::collection::vec(prop::sample::select(&b"\r\n*$1'\"\\ x"[..]), 0..12),
        1 => prop::collection::vec(any::<u8>(), 0..40),
        1 => (95_usize..1200).prop_map(|len| vec![b'v'; len]),
    ]
}

/// Requests, each with the style in which it is sent: below 8 inline, else multibulk.
fn pipeline() -> impl Strategy<Value = Vec<(Vec<Vec<u8>>, u8)>> {
    let words = prop::collection::vec(word(), 1..14);
    prop::collection::vec((words, 0..24_u8), 1..8)
}

fn encode(pipeline: &[(Vec<Vec<u8>>, u8)]) -> Vec<u8> {
    let one = |(words, style): &(Vec<Vec<u8>>, u8)| match style {
        0..8 => inline(words, *style),
        8 => [b"*0\r\n*-1\r\n \r\n\n".to_vec(), multibulk(words)].concat(),
        _ => multibulk(words),
    };
    pipeline.iter().flat_map(one).collect()
}

fn split_at<'a>(wire: &'a [u8], cuts: &[prop::sample::Index]) -> Vec<&'a [u8]> {
    let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(wire.len() + 1)).collect();
    cuts.extend([0, wire.len()]);
    cuts.sort_unstable();
    cuts.windows(2).map(|cut| &wire[cut[0]..cut[1]]).collect()
}

proptest! {
    #[test]
    fn any_split_gives_the_same_requests(
        pipeline in pipeline(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
        batch in 1..9_usize,
    ) {
        let wire = encode(&pipeline);
        let expected: Requests = pipeline.into_iter().map(|(words, _)| words).collect();
        prop_assert_eq!(&all(authenticated(), &[&wire]), &(expected.clone(), None));
        let limits = Limits { batch, ..authenticated() };
        prop_assert_eq!(&all(limits, &split_at(&wire, &cuts)), &(expected.clone(), None));
        let bytes: Vec<_> = wire.chunks(1).collect();
        prop_assert_eq!(all(authenticated(), &bytes), (expected, None));
    }

    #[test]
    fn multibulk_decodes_as_elsewhere(
        requests in prop::collection::vec(prop::collection::vec(word(), 1..14), 1..8),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
    ) {
        let wire: Vec<u8> = requests.iter().flat_map(|words| multibulk(words)).collect();
        let (ours, error) = all(authenticated(), &split_at(&wire, &cuts));
        prop_assert_eq!(error, None);
        let mut rest = wire.as_slice();
        for words in ours {
            let (frame, used) = decode::decode(rest).expect("well formed").expect("complete");
            let words = words.into_iter().map(OwnedFrame::BulkString).collect();
            prop_assert_eq!(frame, OwnedFrame::Array(words));
            rest = &rest[used..];
        }
        prop_assert!(rest.is_empty());
    }
}

/// Deterministic random numbers (Marsaglia 2003, xorshift64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % bound
    }

    /// Changes, removes, repeats or inserts a byte; those with a meaning come often.
    fn mutate(&mut self, wire: &mut Vec<u8>) {
        const TELLING: &[u8] = b"*$\r\n0123456789-+\"'\\x \0\xff";
        let (at, byte) = (self.below(wire.len()), TELLING[self.below(TELLING.len())]);
        match self.below(5) {
            0 => wire[at] = byte,
            1 => wire[at] = self.below(256) as u8,
            2 => wire.insert(at, byte),
            3 => wire.truncate(at + 1),
            _ => drop(wire.remove(at)),
        }
        if wire.is_empty() {
            wire.push(byte);
        }
    }
}

/// A million mutants, in random pieces: no panic, no split matters, and the invariants of
/// [`Peer::deliver`] hold.
#[test]
fn mutations_do_no_harm() {
    let valid: [&[u8]; 4] = [
        b"*2\r\n$3\r\nGET\r\n$5\r\nkey:1\r\n*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$12\r\nhello, world\r\n",
        b"PING \"a\\x41\\n\" 'b\\'c' d\"e\"\r\n*1\r\n$4\r\nPING\r\nSET k v\n",
        b"*-1\r\n*0\r\n\r\n*11\r\n$0\r\n\r\n$0\r\n\r\n$0\r\n\r\n$0\r\n\r\n$0\r\n\r\n$0\r\n\r\n$0\r\n\r\n\
          $0\r\n\r\n$0\r\n\r\n$0\r\n\r\n$1\r\nx\r\n",
        b"*2\r\n$4\r\nECHO\r\n$100\r\naaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\
          aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\nPING\r\n",
    ];
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    let mut wire = valid[0].to_vec();
    for round in 0..1_000_000 {
        // Up to eight mutations heap up before the next valid pipeline.
        if round % 8 == 0 {
            wire = valid[random.below(valid.len())].to_vec();
        }
        random.mutate(&mut wire);
        let cut = random.below(wire.len() + 1);
        let second = cut + random.below(wire.len() - cut + 1);
        let limits = if random.below(4) == 0 { Limits::anonymous() } else { authenticated() };
        let pieces = [&wire[..cut], &wire[cut..second], &wire[second..]];
        assert_eq!(all(limits, &pieces), all(limits, &[&wire]), "{}", wire.escape_ascii());
    }
}

/// Checks that `wire`, behind a good request, gives the good one and then this error, in one piece
/// and byte by byte. Each case was sent to redis-server 7.0.15.
#[track_caller]
fn refused(limits: Limits, wire: &[u8], text: &str) {
    let behind = [b"*1\r\n$4\r\nPING\r\n", wire].concat();
    let error = Some(ProtocolError::Malformed(Cow::Owned(text.to_string())));
    let shown = &wire[..wire.len().min(60)].escape_ascii();
    assert_eq!(all(limits, &[wire]), (vec![], error.clone()), "{shown}");
    let expected = (vec![vec![b"PING".to_vec()]], error);
    assert_eq!(all(limits, &[&behind]), expected, "{shown}");
    assert_eq!(all(limits, &behind.chunks(1).collect::<Vec<_>>()), expected, "{shown}");
}

/// A prefix and so many times the digit 1.
fn ones(prefix: &str, count: usize) -> Vec<u8> {
    [prefix, &"1".repeat(count)].concat().into_bytes()
}

#[test]
fn malformed_requests_get_the_errors_of_redis() {
    let table: &[(&[u8], &str)] = &[
        (b"*3x\r\n", "invalid multibulk length"),
        (b"*\r\n", "invalid multibulk length"),
        (b"*+1\r\n", "invalid multibulk length"),
        (b"*01\r\n", "invalid multibulk length"),
        (b"* 1\r\n", "invalid multibulk length"),
        (b"*-0\r\n", "invalid multibulk length"),
        (b"*-x\r\n", "invalid multibulk length"),
        (b"*1\n$4\r\nPING\r\n", "invalid multibulk length"),
        (b"*2147483648\r\n", "invalid multibulk length"),
        (b"*9223372036854775807\r\n", "invalid multibulk length"),
        (b"*-9223372036854775809\r\n", "invalid multibulk length"),
        // Redis 7.0 takes up to 2147483647; ours is 6.2's limit.
        (b"*1048577\r\n", "invalid multibulk length"),
        (b"*1\r\n$-1\r\n", "invalid bulk length"),
        (b"*1\r\n$-0\r\n", "invalid bulk length"),
        (b"*1\r\n$\r\n", "invalid bulk length"),
        (b"*1\r\n$5x\r\n", "invalid bulk length"),
        (b"*1\r\n$+4\r\nPING\r\n", "invalid bulk length"),
        (b"*1\r\n$04\r\nPING\r\n", "invalid bulk length"),
        (b"*1\r\n$4\nPING\r\n", "invalid bulk length"),
        (b"*1\r\n$536870913\r\n", "invalid bulk length"),
        (b"*1\r\n$99999999999999999999\r\n", "invalid bulk length"),
        (b"*2\r\n$4\r\nECHO\r\n$-5\r\n", "invalid bulk length"),
        (b"*1\r\n*1\r\n$4\r\nPING\r\n", "expected '$', got '*'"),
        (b"*2\r\n$4\r\nECHO\r\n*1\r\n$1\r\na\r\n", "expected '$', got '*'"),
        (b"*1\r\n:5\r\n", "expected '$', got ':'"),
        (b"*1\r\n'\r\n", "expected '$', got '''"),
        (b"*1\r\n\x01\r\n", "expected '$', got '\x01'"),
        (b"*1\r\n\r\n", "expected '$', got ' '"),
        (b"*1\r\n\n\r\n", "expected '$', got ' '"),
        (b"*12\r3\r\n", "expected '$', got ' '"),
        (b"*1\r\n\xff\r\n", "expected '$', got '?'"),
        (b"PING \"abc\r\n", "unbalanced quotes in request"),
        (b"PING \"a\"b\r\n", "unbalanced quotes in request"),
        (b"PING \"\\x22\" \"b\r\n", "unbalanced quotes in request"),
        (b"PING \"a\nb\"\r\n", "unbalanced quotes in request"),
    ];
    for (wire, text) in table {
        refused(authenticated(), wire, text);
    }
}

#[test]
fn lines_past_64_kib_are_refused() {
    let limits = authenticated();
    refused(limits, &ones("*", 65_536), "too big mbulk count string");
    refused(limits, &ones("*1\r\n$", 65_536), "too big bulk count string");
    refused(limits, &ones("*1\r\n", 65_537), "too big bulk count string");
    refused(limits, &ones("", 65_537), "too big inline request");
    for wire in [ones("*", 65_535), ones("*1\r\n$", 65_535), ones("", 65_536)] {
        assert_eq!(all(limits, &[&wire]), (vec![], None));
    }
    // The end of the line may be the byte behind those.
    let (requests, error) = all(limits, &[&ones("PING ", 65_530), b"\r\n"]);
    assert_eq!((requests.len(), error), (1, None));
}

#[test]
fn before_auth_limits_are_small() {
    let limits = Limits::anonymous();
    refused(limits, b"*11\r\n", "unauthenticated multibulk length");
    refused(limits, b"*1048577\r\n", "unauthenticated multibulk length");
    refused(limits, b"*2147483648\r\n", "invalid multibulk length");
    refused(limits, b"*11x\r\n", "invalid multibulk length");
    refused(limits, b"*1\r\n$16385\r\n", "unauthenticated bulk length");
    refused(limits, b"*1\r\n$536870913\r\n", "invalid bulk length");
    assert_eq!(all(limits, &[b"*10\r\n$16384\r\n"]), (vec![], None));
    // AUTH changes the limits of what follows in the same buffer.
    let mut peer = Peer::new(limits);
    peer.tail = b"AUTH x\r\n*11\r\n".to_vec();
    let scanned = peer.scanner.scan(&mut peer.tail, &limits, &mut peer.batch).unwrap();
    assert_eq!(scanned, Scanned { consumed: 8, need: 0, more: true });
    peer.deliver(&scanned);
    peer.limits = authenticated();
    assert!(peer.receive(b"") && peer.scanner.is_partial());
}

/// Odd input that Redis 7.0.15 takes.
#[test]
fn what_redis_forgives_is_forgiven() {
    let ping = b"*1\r\n$4\r\nPING\r\n".as_slice();
    let skipped: [&[u8]; 8] = [
        b"*-1\r\n",
        b"*0\r\n",
        b"*-5\r\n",
        b"*-9223372036854775808\r\n",
        b"\r\n",
        b"\n",
        b" \t\r\n",
        b"\r\r\n",
    ];
    for wire in skipped {
        let wire = [wire, ping].concat();
        assert_eq!(all(authenticated(), &[&wire]), (vec![vec![b"PING".to_vec()]], None));
        assert_eq!(all(authenticated(), &wire.chunks(1).collect::<Vec<_>>()).0.len(), 1);
    }
    let unchecked: [&[u8]; 3] =
        [b"*1\rX$4\r\nPING\r\n", b"*1\r\n$4\rXPING\r\n", b"*1\r\n$4\r\nPINGxx"];
    for wire in unchecked {
        let expected = (vec![vec![b"PING".to_vec()]; 2], None);
        assert_eq!(all(authenticated(), &[wire, ping]), expected);
        assert_eq!(all(authenticated(), &[&[wire, ping].concat()]), expected);
    }
    // A missing line end shifts what follows.
    let (requests, error) = all(authenticated(), &[b"*1\r\n$4\r\nPING\n", ping]);
    let words = [b"PING".as_slice(), b"1", b"$4", b"PING"].map(|word| vec![word.to_vec()]);
    assert_eq!((requests, error), (words.to_vec(), None));
}

#[test]
fn http_is_cut_off() {
    let disguised: [&[u8]; 7] = [
        b"POST / HTTP/1.1\r\n",
        b"post\r\n",
        b"Host: x\r\n",
        b"HOST:\r\n",
        b"\"POST\"\r\n",
        b"*1\r\n$4\r\nPOST\r\n",
        b"*2\r\n$5\r\nhost:\r\n$1\r\na\r\n",
    ];
    for wire in disguised {
        let behind = [b"PING\r\n", wire, b"PING\r\n"].concat();
        for limits in [authenticated(), Limits::anonymous()] {
            let expected = (vec![vec![b"PING".to_vec()]], Some(ProtocolError::CrossProtocol));
            assert_eq!(all(limits, &[&behind]), expected);
            assert_eq!(all(limits, &behind.chunks(1).collect::<Vec<_>>()), expected);
        }
    }
    assert_eq!(all(authenticated(), &[b"Host\r\nGET / HTTP/1.1\r\nECHO post\r\n"]).0.len(), 3);
}

#[test]
fn promises_reserve_nothing() {
    let mut peer = Peer::new(authenticated());
    assert!(peer.receive(b"*1048576\r\n$536870912\r\n"));
    assert!(peer.scanner.heap_bytes() <= 64 && peer.batch.spans.capacity() <= 64);
    let scanned = peer.scanner.scan(&mut peer.tail, &peer.limits, &mut peer.batch).unwrap();
    assert_eq!(scanned, Scanned { consumed: 0, need: (512 << 20) + 2, more: false });
}

/// The most arguments there may be, 16 KiB at a time: each byte is seen once, else this takes long.
#[test]
fn the_longest_request_is_scanned_once() {
    let mut wire = b"*1048576\r\n".to_vec();
    wire.extend(b"$1\r\nx\r\n".repeat(1 << 20));
    let mut peer = Peer::new(authenticated());
    assert!(wire.chunks(16 << 10).all(|piece| peer.receive(piece)));
    assert_eq!(peer.requests.len(), 1);
    assert_eq!(peer.requests[0].len(), 1 << 20);
    assert_eq!((peer.scanner.heap_bytes(), peer.tail.len()), (0, 0));
}

#[test]
fn an_error_stays() {
    let (mut scanner, mut batch) = (Scanner::default(), Batch::default());
    for _ in 0..3 {
        assert!(scanner.scan(&mut b"*x\r\n".to_vec(), &authenticated(), &mut batch).is_err());
        assert!(batch.is_empty());
    }
    assert!(scanner.scan(&mut b"PING\r\n".to_vec(), &authenticated(), &mut batch).is_err());
}
