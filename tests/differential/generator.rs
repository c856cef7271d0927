//! Random commands, made from templates: words in capitals stand for themselves, words in lower case
//! name what is put in their place, `[a | b]` is left out half of the time, `(a | b)` is not, and
//! `word...` repeats. One command in eight is then damaged: a word too many, one too few, a wrong one.

use super::Words;

/// Words that stand for keys in the templates; few, so that commands meet.
const KEYS: &[&[u8]] =
    &[b"a", b"b", b"k:1", b"k:2", b"num", b"{tag}x", b"\x00\xff\r\n", b"", b"h?[l"];
/// Keys of long values, apart so that nothing quadratic meets them.
const BIG_KEYS: &[&[u8]] = &[b"big:1", b"big:2"];
const PATTERNS: &[&str] = &[
    "*", "k:*", "?", "[a-b]", "[^a]", "k:[12]", "\\a", "*:*", "", "h\\?\\[l", "[", "*m", "nu?",
    "b*1",
];
/// What replaces a word of a damaged command. No number here may make a string of hundreds of
/// megabytes as an offset, and none may be a deadline that passes while the test runs.
const ODD: &[&str] = &[
    "",
    "0",
    "-1",
    "+1",
    "01",
    " 1",
    "1 ",
    "1.5",
    "-0",
    "1e3",
    "0x10",
    "nan",
    "inf",
    "-inf",
    "abc",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775808",
    "-9223372036854775809",
    "4294967296",
    "18446744073709551616",
    "NX",
    "xx",
    "Get",
    "KEEPTTL",
    "EX",
    "PERSIST",
    "LEN",
    "DB",
    "REPLACE",
    "BIT",
    "BYTE",
    "COUNT",
    "MATCH",
    "TYPE",
    "WITHMATCHLEN",
    "IDX",
    "ABSTTL",
    "#1",
    "u8",
    "\r\n",
    "it's \"so\"",
];
const INTEGERS: &[&str] = &[
    "0",
    "1",
    "-1",
    "7",
    "-13",
    "100",
    "9223372036854775807",
    "-9223372036854775808",
    "9223372036854775800",
    "9223372036854775808",
    "1.0",
    "",
    "ten",
];
const FLOATS: &[&str] = &[
    "0",
    "1.5",
    "-2.25",
    "0.1",
    "1e3",
    "3.0e-5",
    "1e17",
    "-1e-10",
    "123456789.123456789",
    "inf",
    "-inf",
    "nan",
    "1e400",
    "0x1p3",
    " 1",
    "1 ",
    "",
    "5e",
    ".5",
    "5.",
    "-0",
    "1e4000",
    "1e4933",
];
const ENCODINGS: &[&str] = &["u1", "i1", "u8", "i8", "u16", "i16", "u31", "i32", "u63", "i64"];
const NO_ENCODINGS: &[&str] = &["u64", "i65", "x8", "u0", "8", "i-1", ""];
const PLACES: &[&str] = &["0", "1", "7", "#0", "#2", "100"];
const NO_PLACES: &[&str] = &["-1", "#-1", "#", "x", "4294967296", "#9223372036854775807"];

/// A family of templates and how often it is chosen.
type Family = (u32, &'static [&'static str]);

const STRINGS: Family = (
    30,
    &[
        "SET key value",
        "SET key value",
        "SET key number",
        "SET key number",
        "SET key bits",
        "SET key value [NX | XX] [GET] [expiry | KEEPTTL]",
        "SET key float",
        "SET big bigvalue",
        "SETNX key value",
        "SETEX key seconds value",
        "PSETEX key millis value",
        "GET key",
        "GET key",
        "GET key",
        "GET big",
        "GETSET key value",
        "GETDEL key",
        "GETEX key [expiry | PERSIST]",
        "STRLEN key",
        "STRLEN big",
        "APPEND key value",
        "INCR key",
        "DECR key",
        "INCRBY key int",
        "DECRBY key int",
        "INCRBYFLOAT key float",
        "INCR num",
        "INCRBY num int",
        "DECRBY num int",
        "INCRBYFLOAT num float",
        "INCRBYFLOAT num index",
        "INCRBYFLOAT num index",
        "GETRANGE key index index",
        "GETRANGE big index index",
        "SUBSTR key index index",
        "SETRANGE key offset value",
        "MGET key...",
        "MGET big key...",
        "MSET pair...",
        "MSETNX pair...",
        "MSETNX pair",
        "LCS key key",
        "LCS key key [LEN]",
        "LCS key key IDX [WITHMATCHLEN] [MINMATCHLEN index]",
        "LCS key key [LEN] [IDX] [MINMATCHLEN int] [WITHMATCHLEN]",
    ],
);
const BITS: Family = (
    18,
    &[
        "SETBIT key bit (0 | 1)",
        "SETBIT key bit (0 | 1 | int)",
        "GETBIT key bit",
        "BITCOUNT key",
        "BITCOUNT key index index [BIT | BYTE]",
        "BITCOUNT key index [index]",
        "BITCOUNT big index index",
        "BITPOS key (0 | 1) [index]",
        "BITPOS key (0 | 1) index index [BIT | BYTE]",
        "BITPOS key int",
        "BITOP (AND | OR | XOR) key key...",
        "BITOP NOT key key...",
        "BITOP NOT key key",
        "BITOP (and | NAND | ONE) key key",
        "BITFIELD key field...",
        "BITFIELD key field field...",
        "BITFIELD_RO key GET enc at",
        "BITFIELD_RO key field...",
        "BITFIELD key",
    ],
);
const GENERIC: Family = (
    18,
    &[
        "DEL key...",
        "UNLINK key...",
        "EXISTS key...",
        "EXISTS key key",
        "TYPE key",
        "TOUCH key...",
        "RENAME key key",
        "RENAMENX key key",
        "COPY key key [REPLACE]",
        "COPY key key [DB db] [REPLACE]",
        "MOVE key db",
        "KEYS pattern",
        "KEYS *",
        "RANDOMKEY",
        "DBSIZE",
        "SCAN 0 COUNT 100000",
        "SCAN 0 [MATCH pattern] COUNT 100000 [TYPE type]",
        "SCAN 0 COUNT 100000 MATCH pattern",
        "SCAN (x | -1 | 0) (COUNT 0 | COUNT x | MATCH | FOO bar)",
    ],
);
const EXPIRES: Family = (
    18,
    &[
        "EXPIRE key seconds [cond]",
        "PEXPIRE key millis [cond]",
        "EXPIREAT key atsec [cond]",
        "PEXPIREAT key atmilli [cond]",
        "EXPIRE key (0 | -1 | int) [cond]",
        "EXPIREAT key (0 | -1 | 1000) [cond]",
        "PEXPIREAT key int [cond]",
        "PEXPIREAT key 9223372036854775800",
        "EXPIRE key seconds cond cond",
        "PEXPIREAT key atmilli cond cond",
        "TTL key",
        "PTTL key",
        "EXPIRETIME key",
        "PEXPIRETIME key",
        "TTL key",
        "EXPIRETIME key",
        "PERSIST key",
    ],
);
const OBJECTS: Family = (
    9,
    &[
        "OBJECT ENCODING key",
        "OBJECT ENCODING key",
        "OBJECT ENCODING num",
        "OBJECT REFCOUNT key",
        "OBJECT IDLETIME key",
        "OBJECT FREQ key",
        "OBJECT HELP",
        "OBJECT word key",
        "OBJECT ENCODING key key",
        "OBJECT",
        "DUMP key",
        "DUMP big",
        "RESTORE key 0 payload [REPLACE]",
        "RESTORE key 0 payload REPLACE",
        "RESTORE key millis payload [REPLACE] [IDLETIME 1000 | FREQ 7]",
        "RESTORE key atmilli payload [REPLACE] ABSTTL",
        "RESTORE key int payload [REPLACE] [ABSTTL]",
        "RESTORE key 0 payload [IDLETIME int] [FREQ int]",
        "RESTORE key 0 value REPLACE",
        "RESTORE big 0 payload REPLACE",
        "MEMORY USAGE key [SAMPLES index]",
        "MEMORY USAGE key",
    ],
);
const WHOLE: Family = (
    3,
    &[
        "SELECT db",
        "SELECT db",
        "SELECT db",
        "SELECT (16 | -1 | x | 15)",
        "SWAPDB db db",
        "SWAPDB (0 | x | 16) (1 | y | -1)",
        "FLUSHDB [ASYNC | SYNC]",
        "FLUSHALL [ASYNC | SYNC]",
        "FLUSHDB word",
        "FLUSHALL SYNC SYNC",
    ],
);
const CONNECTION: Family = (
    6,
    &[
        "PING",
        "PING value",
        "PING key key",
        "ECHO value",
        "CLIENT SETNAME name",
        "CLIENT GETNAME",
        "CLIENT SETNAME (two\\_words | x\ny)",
        "CLIENT NO-EVICT (on | OFF | maybe)",
        "CLIENT word",
        "CLIENT NO-TOUCH (on | OFF)",
        "CLIENT SETINFO (lib-name | LIB-VER) name",
        "CLIENT KILL ID (x | 0 | 999999999)",
        "CLIENT UNBLOCK (x | 999999999)",
        "CLIENT LIST TYPE word",
        "CLIENT LIST ID (x | -1)",
        "CLIENT REPLY word",
        "CLIENT UNPAUSE",
        "CLIENT",
        "HELLO (2 | 3)",
        "HELLO (1 | 4 | x)",
        "HELLO 3 SETNAME name",
        "HELLO 2 AUTH name",
        "HELLO 3 AUTH x y",
        "HELLO",
        "AUTH x",
        "AUTH default x",
        "AUTH x y z",
        "RESET",
        "TIME",
        "ROLE",
    ],
);
const SERVER: Family = (
    3,
    &[
        "COMMAND GETKEYS SET key value",
        "COMMAND GETKEYS MSET pair...",
        "COMMAND GETKEYS GET",
        "COMMAND GETKEYS BITOP AND key key key",
        "COMMAND GETKEYS PING",
        "COMMAND GETKEYS nosuch x",
        "COMMAND GETKEYS LCS key key",
        "COMMAND GETKEYSANDFLAGS COPY key key",
        "COMMAND INFO nosuch",
        "COMMAND GETKEYSANDFLAGS SET key value",
        "COMMAND GETKEYSANDFLAGS GET key",
        "COMMAND GETKEYSANDFLAGS DEL key...",
        "COMMAND GETKEYSANDFLAGS INCR key",
        "COMMAND LIST FILTERBY x y",
        "COMMAND LIST FILTERBY PATTERN getr*",
        "COMMAND LIST FILTERBY MODULE x",
        "COMMAND word",
        "CONFIG GET maxmemory-policy",
        "CONFIG GET databases",
        "CONFIG GET nosuch",
        "CONFIG GET",
        "CONFIG SET nosuch 1",
        "CONFIG SET maxmemory-policy word",
        "CONFIG SET databases 3",
        "CONFIG word",
        "CONFIG SET timeout 0 timeout 0",
        "CONFIG SET timeout",
        "SLOWLOG word",
        "SLOWLOG GET x",
        "SLOWLOG GET -2",
        "LATENCY word",
        "LATENCY HISTORY word",
        "LATENCY GRAPH word",
        "MEMORY word",
        "MEMORY USAGE",
        "nosuch key value",
        "nosuch",
        "LOLWUT VERSION",
    ],
);
const FAMILIES: &[Family] = &[STRINGS, BITS, GENERIC, EXPIRES, OBJECTS, WHOLE, CONNECTION, SERVER];

/// SplitMix64: Steele, Lea, Flood: "Fast splittable pseudorandom number generators" (2014).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    pub fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    pub fn pick<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.below(from.len())]
    }
}

/// Makes commands.
pub struct Generator {
    pub random: Random,
    /// Payloads of DUMP, to be restored.
    pub payloads: Vec<Vec<u8>>,
    /// Unix time in seconds at the start.
    now: u64,
}

impl Generator {
    pub fn new(seed: u64) -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let now = now.expect("after 1970").as_secs();
        Self { random: Random::new(seed), payloads: Vec::new(), now }
    }

    /// The next command.
    pub fn command(&mut self) -> Words {
        let total = FAMILIES.iter().map(|(weight, _)| *weight as usize).sum();
        let mut left = self.random.below(total);
        let (_, family) = FAMILIES
            .iter()
            .find(|(weight, _)| {
                let found = left < *weight as usize;
                left = left.saturating_sub(*weight as usize);
                found
            })
            .expect("the weights' sum");
        let template = self.random.pick(family);
        let mut words = Vec::new();
        self.expand(&template.split(' ').collect::<Vec<_>>(), &mut words);
        // Redis 7.0 sets the name before it finds fault with a later option; 7.2 and Larder don't.
        let names_itself = words[0] == b"HELLO" && words.iter().any(|word| word == b"SETNAME");
        if self.random.one_in(8) && !names_itself {
            self.damage(&mut words);
        }
        if self.random.one_in(4) {
            words[0].make_ascii_lowercase();
        }
        defuse(&mut words);
        words
    }

    /// A key of the small ones.
    pub fn key(&mut self) -> Vec<u8> {
        self.random.pick(KEYS).to_vec()
    }

    fn expand(&mut self, template: &[&str], words: &mut Words) {
        let mut at = 0;
        while at < template.len() {
            let word = template[at];
            at += 1;
            let Some(first) = word.strip_prefix(['[', '(']) else {
                self.repeat(word, words);
                continue;
            };
            let close = if word.starts_with('[') { ']' } else { ')' };
            let end = at - 1
                + template[at - 1..].iter().position(|word| word.ends_with(close)).expect("closed");
            let mut group: Vec<&str> = template[at - 1..=end].to_vec();
            group[0] = first;
            let last = group.len() - 1;
            group[last] = group[last].strip_suffix(close).expect("found so");
            at = end + 1;
            if close == ')' || self.random.one_in(2) {
                let choices: Vec<&[&str]> = group.split(|word| *word == "|").collect();
                let chosen = choices[self.random.below(choices.len())];
                chosen.iter().for_each(|word| self.repeat(word, words));
            }
        }
    }

    fn repeat(&mut self, word: &str, words: &mut Words) {
        match word.strip_suffix("...") {
            Some(word) => (0..1 + self.random.below(4)).for_each(|_| self.put(word, words)),
            None => self.put(word, words),
        }
    }

    /// Puts what a word of a template stands for.
    fn put(&mut self, word: &str, words: &mut Words) {
        let made = match word {
            "key" => self.key(),
            "big" => self.random.pick(BIG_KEYS).to_vec(),
            "value" => self.value(),
            "bigvalue" => self.big_value(),
            "bits" => (0..self.random.below(12)).map(|_| self.random.next() as u8).collect(),
            "number" => self.random.below(30_000).to_string().into_bytes(),
            "int" => self.random.pick(INTEGERS).into(),
            "float" => self.float(),
            "index" => (self.random.below(40) as i64 - 20).to_string().into_bytes(),
            "offset" => self.random.below(60).to_string().into_bytes(),
            "bit" => self.random.below(400).to_string().into_bytes(),
            // A few ten to a hundred days ahead, and never twice the same.
            "seconds" => (1_000_000 + self.random.below(9_000_000)).to_string().into_bytes(),
            "millis" => {
                (1_000_000_000 + 1000 * self.random.below(9_000_000)).to_string().into_bytes()
            }
            "atsec" => {
                (self.now as usize + 20_000_000 + self.random.below(99)).to_string().into_bytes()
            }
            "atmilli" => {
                let ahead = 20_000_000_000 + self.random.below(99_000);
                (self.now as usize * 1000 + ahead).to_string().into_bytes()
            }
            "db" => self.random.below(3).to_string().into_bytes(),
            "pattern" => self.random.pick(PATTERNS).into(),
            "type" => self.random.pick(&["string", "STRING", "list", "hash", "foo", ""]).into(),
            "name" => self.random.pick(&["me", "", "client-7", "a b"]).into(),
            "word" => self.random.pick(ODD).into(),
            "enc" if self.random.one_in(12) => self.random.pick(NO_ENCODINGS).into(),
            "enc" => self.random.pick(ENCODINGS).into(),
            "at" if self.random.one_in(12) => self.random.pick(NO_PLACES).into(),
            "at" => self.random.pick(PLACES).into(),
            "payload" => self.payload(),
            "pair" => return self.expand(&["key", "value"], words),
            "expiry" => {
                let forms: [&[&str]; 4] = [
                    &["EX", "seconds"],
                    &["PX", "millis"],
                    &["EXAT", "atsec"],
                    &["PXAT", "atmilli"],
                ];
                let form = forms[self.random.below(4)];
                return self.expand(form, words);
            }
            "cond" => self.random.pick(&["NX", "XX", "gt", "LT", "FOO"]).into(),
            "field" => return self.field(words),
            literal => literal.replace("\\_", " ").into_bytes(),
        };
        words.push(made);
    }

    fn field(&mut self, words: &mut Words) {
        let forms: &[&[&str]] = &[
            &["GET", "enc", "at"],
            &["SET", "enc", "at", "int"],
            &["INCRBY", "enc", "at", "int"],
            &["INCRBY", "enc", "at", "index"],
            &["OVERFLOW", "SAT", "INCRBY", "enc", "at", "int"],
            &["OVERFLOW", "FAIL", "INCRBY", "enc", "at", "int"],
            &["OVERFLOW", "FAIL", "SET", "enc", "at", "index"],
            &["OVERFLOW", "wrap"],
            &["OVERFLOW", "FOO"],
        ];
        let form = self.random.pick(forms);
        self.expand(form, words);
    }

    fn value(&mut self) -> Vec<u8> {
        match self.random.below(8) {
            0 => self.random.pick(INTEGERS).into(),
            1 => self.random.pick(FLOATS).into(),
            2 => vec![b'x'; self.random.pick(&[&19, &20, &21, &43, &44, &45, &64]).to_owned()],
            3 => (0..self.random.below(20)).map(|_| self.random.next() as u8).collect(),
            4 => (0..self.random.below(30)).map(|_| b'a' + self.random.below(3) as u8).collect(),
            _ => format!("value {}", self.random.below(100)).into_bytes(),
        }
    }

    fn big_value(&mut self) -> Vec<u8> {
        let len = self.random.pick(&[&1000, &16_383, &16_384, &16_385, &30_000]).to_owned();
        match self.random.below(3) {
            0 => vec![b'y'; len],
            1 => (0..len).map(|_| self.random.next() as u8).collect(),
            _ => b"lorem ipsum ".iter().copied().cycle().take(len).collect(),
        }
    }

    fn float(&mut self) -> Vec<u8> {
        match self.random.below(3) {
            0 => self.random.pick(FLOATS).into(),
            1 => (self.random.below(2_000_000) as f64 / 1000.0 - 1000.0).to_string().into_bytes(),
            _ => format!("{}.{}", self.random.below(1000), self.random.next()).into_bytes(),
        }
    }

    /// A payload of DUMP, one in four with a wrong bit or cut short.
    fn payload(&mut self) -> Vec<u8> {
        let Some(index) = self.payloads.len().checked_sub(1) else { return b"none yet".to_vec() };
        let mut payload = self.payloads[self.random.below(index + 1)].clone();
        if self.random.one_in(8) {
            let at = self.random.below(payload.len());
            payload[at] ^= 1 << self.random.below(8);
        } else if self.random.one_in(8) {
            payload.truncate(self.random.below(payload.len()));
        }
        payload
    }

    /// Damages what stands behind the name, rarely the name too.
    fn damage(&mut self, words: &mut Words) {
        let at = 1 + self.random.below(words.len().saturating_sub(1));
        match self.random.below(10) {
            0 => words[0] = self.random.pick(&["", "nosuch", "GE T", "get\r\n", "SETT"]).into(),
            1..3 if words.len() > 1 => drop(words.remove(at)),
            3..5 => words.push(self.random.pick(ODD).into()),
            5 if words.len() > 2 => {
                let other = 1 + self.random.below(words.len() - 1);
                words.swap(at, other);
            }
            6 if words.len() > 1 => words.insert(at, words[at].clone()),
            _ if words.len() > 1 => words[at] = self.random.pick(ODD).into(),
            _ => words.push(self.key()),
        }
    }
}

/// Replaces durations that would pass while the test runs, or soon enough for clocks to matter, and
/// numbers on which Redis 7.0 overflows or Larder's deadlines end, since what is stored then differs
/// from there on.
fn defuse(words: &mut Words) {
    let name = words[0].to_ascii_lowercase();
    match &*name {
        // `OVERFLOW SAT SET i8 0 -9223372036854775808` stores 127.
        b"bitfield" => replace(words, i64::MIN, "-129"),
        // Of two deadlines behind the last that Larder keeps, none is the later one.
        b"pexpireat" => replace(words, i64::MAX, "9223372036854775800"),
        _ => {}
    }
    let places: Vec<usize> = match &*name {
        b"expire" | b"pexpire" | b"setex" | b"psetex" | b"restore" => vec![2],
        b"set" | b"getex" => (2..words.len()).collect(),
        _ => return,
    };
    for at in places {
        let is_value = at == 2 && name == b"set";
        let number =
            words.get(at).and_then(|word| std::str::from_utf8(word).ok()?.parse::<i64>().ok());
        let is_near = number.is_some_and(|number| (1..500_000).contains(&number));
        // Such a key is gone at once.
        let overflows = name == b"restore" && number.is_some_and(|number| number > i64::MAX / 2);
        if !is_value && (is_near || overflows) {
            words[at] = b"0".to_vec();
        }
    }
}

fn replace(words: &mut Words, number: i64, by: &str) {
    let number = number.to_string().into_bytes();
    words.iter_mut().filter(|word| **word == number).for_each(|word| *word = by.into());
}
