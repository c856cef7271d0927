//! One table of the file on its way in. As at the top of the file, a table in it holds keys that begin
//! alike: `timeout = { soft = "50ms" }` is `timeout-soft = "50ms"`.

use std::borrow::Cow;

use toml_edit::{Item, TableLike};

use super::{
    file::{Origin, Span, key_span, parse, unknown},
    kind::Value,
    settings::same_name,
    tables::TableKey,
};

/// A table, its groups taken apart.
pub(super) struct Reader<'a> {
    pub(super) origin: Origin<'a>,
    pub(super) span: Span,
    pub(super) keys: &'static [&'static [TableKey]],
    found: Vec<Found<'a>>,
}

/// A key that is there.
struct Found<'a> {
    name: Cow<'a, str>,
    span: Span,
    item: &'a Item,
}

/// Whether keys begin with this word.
fn is_group(keys: &[&[TableKey]], word: &str) -> bool {
    let is_behind = |name: &str| {
        let (head, rest) = name.split_at_checked(word.len()).unwrap_or_default();
        same_name(head, word) && rest.starts_with('-')
    };
    keys.iter().copied().flatten().any(|key| is_behind(key.name))
}

impl<'a> Reader<'a> {
    pub(super) fn new(
        origin: Origin<'a>,
        table: &'a dyn TableLike,
        span: Span,
        keys: &'static [&'static [TableKey]],
    ) -> Self {
        let mut found = Vec::new();
        for (key, item) in table.iter() {
            match item.as_table_like().filter(|_| is_group(keys, key)) {
                Some(group) => found.extend(group.iter().map(|(part, item)| Found {
                    name: format!("{key}-{part}").into(),
                    span: key_span(group, part),
                    item,
                })),
                None => found.push(Found { name: key.into(), span: key_span(table, key), item }),
            }
        }
        Self { origin, span, keys, found }
    }

    pub(super) fn known(&self) -> impl Iterator<Item = &'static TableKey> + use<> {
        self.keys.iter().copied().flatten()
    }

    /// Refuses keys that the table doesn't know, and one key in two spellings.
    pub(super) fn check_keys(&self) -> Result<(), String> {
        for (at, Found { name, span, .. }) in self.found.iter().enumerate() {
            if !self.known().any(|known| same_name(known.name, name)) {
                let known = self.known().map(|known| known.name);
                return Err(unknown(self.origin, span, name, known));
            }
            if self.found[..at].iter().any(|before| same_name(&before.name, name)) {
                return Err(self.origin.error(span, format!("`{name}` is set twice")));
            }
        }
        Ok(())
    }

    fn find(&self, name: &str) -> Option<&Found<'a>> {
        self.found.iter().find(|found| same_name(name, &found.name))
    }

    /// What stands under a key.
    pub(super) fn item(&self, name: &str) -> Option<&'a Item> {
        self.find(name).map(|found| found.item)
    }

    /// Whether a key is there.
    pub(super) fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// The value of a key, if it is there.
    pub(super) fn value(&self, name: &'static str) -> Result<Option<Value>, String> {
        let Some(known) = self.known().find(|known| known.name == name) else {
            return Ok(None);
        };
        let Some(found) = self.find(name) else { return Ok(None) };
        parse(self.origin, &found.name, known.kind, found.item, &found.span).map(Some)
    }

    pub(super) fn required(&self, name: &'static str) -> Result<Value, String> {
        self.value(name)?
            .ok_or_else(|| self.origin.error(&self.span, format!("`{name}` is missing")))
    }

    /// The text of a key, if it is there.
    pub(super) fn text(&self, name: &'static str) -> Result<Option<String>, String> {
        Ok(self.value(name)?.map(|value| match value {
            Value::Text(text) => text,
            _ => String::new(),
        }))
    }

    /// Where the value of a key stands, or the table where the key isn't there.
    pub(super) fn place(&self, name: &str) -> Span {
        let span = self.find(name).and_then(|found| found.item.span());
        span.or_else(|| self.span.clone())
    }

    /// An error at the value of a key, or at the table where the key isn't there.
    pub(super) fn error(&self, name: &str, message: impl AsRef<str>) -> String {
        self.origin.error(&self.place(name), message)
    }
}
