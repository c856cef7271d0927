//! Patterns of keys: `user:{id}:{field}`, of which a store uses the parts. A pattern fits a whole key; `{name}` stands for one byte or
//! more, up to the first place where the text behind it begins, the last one up to the key's end. `{{`
//! and `}}` are braces.

use memchr::memmem;

/// See the module's doc.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    /// What a key begins with.
    head: String,
    /// Each part's name, and the text behind it.
    parts: Vec<(String, String)>,
}

impl Pattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut pattern = Self { head: String::new(), parts: Vec::new() };
        let mut signs = text.chars().peekable();
        while let Some(sign) = signs.next() {
            match sign {
                '{' | '}' if signs.next_if_eq(&sign).is_some() => pattern.literal().push(sign),
                '{' => {
                    let mut name = String::new();
                    let is_closed = loop {
                        match signs.next() {
                            Some('}') => break true,
                            Some(sign) => name.push(sign),
                            None => break false,
                        }
                    };
                    if !is_closed {
                        return Err("a `{` without its `}`; a brace itself is `{{`".into());
                    }
                    pattern.add_part(name)?;
                }
                '}' => return Err("a `}` without its `{`; a brace itself is `}}`".into()),
                sign => pattern.literal().push(sign),
            }
        }
        Ok(pattern)
    }

    /// The text that grows: behind the last part, or before the first.
    fn literal(&mut self) -> &mut String {
        self.parts.last_mut().map_or(&mut self.head, |(_, behind)| behind)
    }

    fn add_part(&mut self, name: String) -> Result<(), String> {
        let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic());
        if !first || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            return Err(
                "a name in braces is made of letters, digits and `_`, a letter first".into()
            );
        }
        if self.place(&name).is_some() {
            return Err(format!("`{{{name}}}` comes twice"));
        }
        if self.parts.last().is_some_and(|(_, behind)| behind.is_empty()) {
            return Err(format!("nothing tells where `{{{name}}}` begins"));
        }
        self.parts.push((name, String::new()));
        Ok(())
    }

    /// The number of a part.
    pub fn place(&self, name: &str) -> Option<usize> {
        self.parts.iter().position(|(known, _)| known == name)
    }

    /// The names of the parts.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().map(|(name, _)| name.as_str())
    }

    /// Whether a key with this prefix may fit.
    pub fn may_fit(&self, prefix: &str) -> bool {
        if self.parts.is_empty() {
            return self.head.starts_with(prefix);
        }
        self.head.starts_with(prefix) || prefix.starts_with(&self.head)
    }

    /// The parts of a key, if it fits.
    pub fn parts_of<'k>(&self, key: &'k [u8]) -> Option<Vec<&'k [u8]>> {
        let mut rest = key.strip_prefix(self.head.as_bytes())?;
        let mut found = Vec::with_capacity(self.parts.len());
        for (_, behind) in &self.parts {
            let end = match behind.as_str() {
                "" => rest.len(),
                behind => memmem::find(rest, behind.as_bytes())?,
            };
            if end == 0 {
                return None;
            }
            found.push(&rest[..end]);
            rest = &rest[end + behind.len()..];
        }
        rest.is_empty().then_some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(pattern: &str, key: &str) -> Option<Vec<String>> {
        let pattern = Pattern::parse(pattern).unwrap();
        let found = pattern.parts_of(key.as_bytes())?;
        Some(found.into_iter().map(|part| String::from_utf8_lossy(part).into_owned()).collect())
    }

    #[test]
    fn a_pattern_fits_whole_keys() {
        for (pattern, key, expected) in [
            ("user:{id}", "user:1", Some(vec!["1"])),
            ("user:{id}", "user:1:x", Some(vec!["1:x"])),
            ("user:{id}", "user:", None),
            ("user:{id}", "auser:1", None),
            ("user:{id}:name", "user:1:name", Some(vec!["1"])),
            ("user:{id}:name", "user:1:name:name", None),
            ("user:{id}:name", "user::name", None),
            ("{kind}:{id}", "a:b:c", Some(vec!["a", "b:c"])),
            ("{{{id}}}:x", "{7}:x", Some(vec!["7"])),
            ("settings", "settings", Some(vec![])),
            ("settings", "settings2", None),
            ("ü{id}", "üß", Some(vec!["ß"])),
        ] {
            let expected = expected.map(|parts| parts.into_iter().map(str::to_owned).collect());
            assert_eq!(parts(pattern, key), expected, "{pattern} {key}");
        }
        assert_eq!(Pattern::parse("u:{id}").unwrap().parts_of(b"u:\xff"), Some(vec![&b"\xff"[..]]));
    }

    #[test]
    fn wrong_patterns_are_refused() {
        for pattern in ["{", "}", "{}", "{1a}", "{a}{b}", "{a}:{a}", "{a-b}", "a{{b}"] {
            assert!(Pattern::parse(pattern).is_err(), "{pattern}");
        }
    }

    #[test]
    fn a_prefix_may_fit_or_not() {
        let pattern = Pattern::parse("user:{id}").unwrap();
        assert!(["", "us", "user:", "user:1"].iter().all(|prefix| pattern.may_fit(prefix)));
        assert!(!pattern.may_fit("usr:"));
        assert!(!Pattern::parse("one").unwrap().may_fit("one:"));
    }
}
