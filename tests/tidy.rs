//! Tests of the source itself: its layers, its shape, and the samples that come with it.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Lines above which a file has to have a seam found for it.
const TOO_LONG: usize = 800;

/// The layers, the lowest first; a module may use those before it and itself.
/// Leaves may be used by all.
const LAYERS: &[&str] = &[
    "value",
    "store",
    "tier",
    "journal",
    "policy",
    "cache",
    "simulate",
    "command",
    "dead_letter",
    "admin",
    "health",
    "server",
];
const LEAVES: &[&str] = &["error", "clock", "log", "protocol", "config", "metrics", "vitals"];
/// Leaves that may use a few others, and who uses which.
const LEAF_USES: &[(&str, &[&str])] = &[
    ("protocol", &["error", "protocol"]),
    ("config", &["error", "config", "policy", "store", "tier", "value"]),
    ("error", &["error"]),
    ("clock", &["clock"]),
    ("log", &["config", "error"]),
];

fn sources() -> Vec<(PathBuf, String)> {
    sources_in("src")
}

fn sources_in(dir: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut left = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(dir)];
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(dir).expect("src is there") {
            let path = entry.expect("readable").path();
            if path.is_dir() {
                left.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                let text = fs::read_to_string(&path).expect("text");
                found.push((path, text));
            }
        }
    }
    found
}

fn module_of(path: &Path) -> String {
    let inside =
        path.strip_prefix(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).expect("ours");
    let first = inside.components().next().expect("a file").as_os_str().to_string_lossy();
    first.trim_end_matches(".rs").to_owned()
}

/// The modules that a file names as `crate::module` or in `use crate::{module...}`, tests left out.
fn uses(text: &str) -> Vec<String> {
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let line_start = code[..at].rfind('\n').map_or(0, |at| at + 1);
        if code[line_start..at].trim_start().starts_with("//") {
            continue;
        }
        let rest = &code[at + "crate::".len()..];
        if let Some(list) = rest.strip_prefix('{') {
            found.extend(top_level_names(list));
        } else {
            found.extend(first_name(rest));
        }
    }
    found
}

fn first_name(text: &str) -> Option<String> {
    let end = text.find(|sign: char| !sign.is_alphanumeric() && sign != '_').unwrap_or(text.len());
    (end > 0).then(|| text[..end].to_owned())
}

fn top_level_names(list: &str) -> Vec<String> {
    let (mut depth, mut expects, mut found) = (0, true, Vec::new());
    for (at, sign) in list.char_indices() {
        match sign {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => expects = true,
            _ if depth == 0 && expects && sign.is_alphabetic() => {
                found.extend(first_name(&list[at..]));
                expects = false;
            }
            _ => {}
        }
    }
    found
}

#[test]
fn arrows_run_one_way() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let module = module_of(&path);
        let level = LAYERS.iter().position(|layer| *layer == module);
        for used in uses(&text) {
            let allowed = match (level, LEAF_USES.iter().find(|(leaf, _)| *leaf == module)) {
                (Some(level), _) => LEAVES.contains(&&*used) || LAYERS[..=level].contains(&&*used),
                (None, Some((_, may))) => may.contains(&&*used),
                (None, None) => true,
            };
            let is_module = LAYERS.contains(&&*used) || LEAVES.contains(&&*used);
            if is_module && !allowed {
                wrong.push(format!("{}: {module} uses {used}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn files_have_a_doc_and_a_bounded_length() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let lines = text.lines().count();
        if lines > TOO_LONG {
            wrong.push(format!("{}: {lines} lines", path.display()));
        }
        if !text.starts_with("//!") {
            wrong.push(format!("{}: no module doc", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn exceptions_carry_their_reason() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        for (number, line) in text.lines().enumerate() {
            let excepts = line.contains("allow(") || line.contains("#[expect(");
            let reason = text.lines().skip(number).take(4).any(|line| line.contains("reason"));
            if excepts && line.trim_start().starts_with("#") && !reason {
                wrong.push(format!("{}:{}", path.display(), number + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn unsafe_stays_where_it_is_argued() {
    let may =
        ["entry.rs", "table.rs", "class.rs", "allocator.rs", "buffer.rs", "map.rs", "ring.rs"];
    for (path, text) in sources() {
        let name = path.file_name().expect("a file").to_string_lossy().into_owned();
        let blocks = text.matches("unsafe {").count();
        assert!(blocks == 0 || may.contains(&&*name), "{}: unsafe", path.display());
        let argued = text.matches("SAFETY").count() + text.matches("# Safety").count();
        assert!(argued >= blocks, "{}: {blocks} unsafe, {argued} argued", path.display());
    }
}

/// Rules of the tiers (SEMANTICS 1 to 9) that a test tells the story of, by its number.
#[test]
fn every_rule_of_the_tiers_has_a_test_that_names_it() {
    let all: Vec<_> = ["src/cache/tests", "tests"].into_iter().flat_map(sources_in).collect();
    for rule in 1..=9 {
        let is_named = |line: &str| {
            let numbers = line.trim_start().strip_prefix("/// SEMANTICS ");
            let numbers = numbers.and_then(|rest| rest.split_once(':')).map(|(numbers, _)| numbers);
            numbers.is_some_and(|numbers| numbers.contains(&rule.to_string()))
        };
        let named = all.iter().any(|(_, text)| text.lines().any(is_named));
        assert!(named, "no test names SEMANTICS {rule}");
    }
}

/// Tests have the same bound as what they test.
#[test]
fn files_of_tests_have_a_bounded_length() {
    for (path, text) in sources_in("tests") {
        let lines = text.lines().count();
        assert!(lines <= TOO_LONG, "{}: {lines} lines", path.display());
    }
}

#[test]
fn samples_of_the_configuration_parse() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    for entry in fs::read_dir(dir).expect("config is there") {
        let path = entry.expect("readable").path();
        let text = fs::read_to_string(&path).expect("text");
        if let Err(why) = larder::config::Config::from_toml(&text, &path.display().to_string()) {
            panic!("{why}");
        }
    }
}
