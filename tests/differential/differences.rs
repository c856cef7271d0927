//! The known differences from Redis: `tests/differences.toml`, one entry each with its reason.
//!
//! An entry matches a command by its name, by words that must occur among its arguments, and by how
//! the two replies begin; what an entry leaves out, it doesn't ask for.

use super::Words;

/// An entry of the file.
pub struct Difference {
    command: String,
    words: Vec<String>,
    redis: String,
    larder: String,
    /// Why they differ.
    pub reason: String,
}

impl Difference {
    fn from(table: &toml_edit::Table) -> Self {
        let known = ["command", "words", "redis", "larder", "reason"];
        table.iter().for_each(|(key, _)| assert!(known.contains(&key), "unknown: {key}"));
        let text = |key: &str| -> String {
            table.get(key).map_or("", |item| item.as_str().expect("a text")).to_owned()
        };
        let words = table.get("words").and_then(|item| item.as_array());
        let words = words.into_iter().flatten();
        let entry = Self {
            command: text("command"),
            words: words.map(|word| word.as_str().expect("a text").to_owned()).collect(),
            redis: text("redis"),
            larder: text("larder"),
            reason: text("reason"),
        };
        assert!(entry.reason.len() > 10, "{}: a reason, please", entry.command);
        entry
    }

    /// Whether this entry explains that the two replied so to the command.
    pub fn explains(&self, words: &Words, redis: &[u8], larder: &[u8]) -> bool {
        let is = |word: &[u8], name: &str| word.eq_ignore_ascii_case(name.as_bytes());
        is(&words[0], &self.command)
            && self.words.iter().all(|name| words[1..].iter().any(|word| is(word, name)))
            && redis.starts_with(self.redis.as_bytes())
            && larder.starts_with(self.larder.as_bytes())
    }

    /// The entry in a line.
    pub fn title(&self) -> String {
        format!("{} {}: {}", self.command, self.words.join(" "), self.reason)
    }
}

/// The entries of the file.
pub fn known() -> Vec<Difference> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/differences.toml");
    let text = std::fs::read_to_string(path).expect("the file is there");
    let document: toml_edit::DocumentMut = text.parse().expect("TOML");
    let entries = document.get("difference").and_then(|item| item.as_array_of_tables());
    entries.into_iter().flatten().map(Difference::from).collect()
}
