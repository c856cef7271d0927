//! The benches' options: `--name value` pairs, unknown names refused.

use std::{collections::BTreeMap, io, str::FromStr};

/// The options given.
pub struct Flags(BTreeMap<String, String>);

impl Flags {
    /// Reads the process's arguments. `known` are the allowed names with their help, which `--help`
    /// prints (then there is nothing to run, and `None` comes back). The `--bench` that cargo adds is
    /// ignored.
    pub fn read(known: &[(&str, &str)]) -> io::Result<Option<Self>> {
        Self::parse(std::env::args().skip(1), known)
    }

    fn parse(
        arguments: impl Iterator<Item = String>,
        known: &[(&str, &str)],
    ) -> io::Result<Option<Self>> {
        let mut given = BTreeMap::new();
        let mut arguments = arguments.filter(|argument| argument != "--bench");
        while let Some(argument) = arguments.next() {
            let name = argument.trim_start_matches("--");
            if name == "help" {
                known.iter().for_each(|(name, help)| println!("  --{name:<12} {help}"));
                return Ok(None);
            }
            if !known.iter().any(|(known, _)| *known == name) {
                return Err(bad(&format!("unknown option {argument}; --help names them all")));
            }
            let value = arguments.next().ok_or_else(|| bad(&format!("--{name} needs a value")))?;
            given.insert(name.to_owned(), value);
        }
        Ok(Some(Self(given)))
    }

    /// The value of an option, if it was given.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// The value of an option, or what stands for it.
    pub fn get<T: FromStr>(&self, name: &str, default: T) -> io::Result<T> {
        self.text(name).map_or(Ok(default), |text| value(name, text))
    }

    /// The values of an option, which commas separate, or what stands for them.
    pub fn list<T: FromStr>(&self, name: &str, default: &str) -> io::Result<Vec<T>> {
        self.text(name).unwrap_or(default).split(',').map(|text| value(name, text)).collect()
    }
}

fn value<T: FromStr>(name: &str, text: &str) -> io::Result<T> {
    text.parse().map_err(|_| bad(&format!("--{name} can't be {text:?}")))
}

/// A wrong option.
pub fn bad(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> io::Result<Option<Flags>> {
        Flags::parse(line.split_whitespace().map(String::from), &[("rounds", ""), ("keys", "")])
    }

    #[test]
    fn options_are_read_and_checked() {
        let flags = parse("--rounds 3 --keys 1,2 --bench").unwrap().unwrap();
        assert_eq!(flags.get("rounds", 7).unwrap(), 3);
        assert_eq!(flags.list::<u64>("keys", "9").unwrap(), [1, 2]);
        assert_eq!(parse("").unwrap().unwrap().get("rounds", 7).unwrap(), 7);
        assert!(flags.get::<u8>("keys", 1).is_err());
        assert!(parse("--round 3").is_err() && parse("--rounds").is_err());
        assert!(parse("--help").unwrap().is_none());
    }
}
