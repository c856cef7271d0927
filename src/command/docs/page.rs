//! `docs/commands.md`, made from the rows: what is supported, and what of Redis 7.2 is not. A test
//! compares the file with what [`markdown`] returns; run it with `LARDER_UPDATE_DOCS=1` to write the
//! file.

use super::{commands, names::COMMANDS, subcommands};
use crate::command::{row::Group, table::Entry};

const INTRODUCTION: &str = "\
<!-- Made from the rows in src/command by `LARDER_UPDATE_DOCS=1 cargo test --lib command::docs`; don't
     edit. -->

# Commands

What Larder supports of Redis 7.2's commands, with Redis's options, replies and error texts; *since* is
the version of Redis that brought a command (for those that only Larder has, its own). `COMMAND DOCS` tells the same to programs, and redis-cli
completes and hints from it. At the end are the commands of Redis 7.2 that Larder does not have.
";

/// The groups in the order of the page.
const GROUPS: [Group; 6] =
    [Group::Generic, Group::String, Group::Bitmap, Group::Connection, Group::Server, Group::Larder];

/// The reference page of all commands.
pub fn markdown() -> String {
    let mut page = INTRODUCTION.to_owned();
    for group in GROUPS {
        page += &supported(group);
    }
    page + MISSING
        + &COMMANDS.iter().map(|(group, names)| missing(group, names)).collect::<String>()
}

const HEAD: &str = "\
| Command | Since | |
|---|---|---|
";

const MISSING: &str = "
## Not supported
";

fn title(group: &str) -> String {
    let mut title = group.replace('-', " ");
    title[..1].make_ascii_uppercase();
    title
}

fn supported(group: Group) -> String {
    let mut rows: Vec<String> = commands()
        .flat_map(|entry| std::iter::once(entry).chain(subcommands(entry)))
        .filter(|entry| entry.row.group == group && is_listed(entry))
        .map(row)
        .collect();
    rows.sort_unstable();
    if rows.is_empty() {
        return String::new();
    }
    format!("\n## {}\n\n{HEAD}{}", title(group.name()), rows.concat())
}

/// Containers that do nothing by themselves are shown by their subcommands.
fn is_listed(entry: &Entry) -> bool {
    entry.row.subcommands().is_empty() || entry.row.arity.unsigned_abs() == 1
}

fn row(entry: &Entry) -> String {
    let name = entry.full_name().replace('|', " ").to_ascii_uppercase();
    let call = format!("{name} {}", entry.row.syntax);
    // A bar would end the column, even in code.
    let call = call.trim_end().replace('|', "\\|");
    format!("| `{call}` | {} | {} |\n", entry.row.since, entry.row.summary)
}

/// A line of the commands of a group that are not ours.
fn missing(group: &str, names: &str) -> String {
    let all = names.split(' ').filter(|name| super::find(name.as_bytes()).is_none());
    // A container that is missing stands for its subcommands.
    let container_is_missing = |name: &&str| {
        name.split_once('|')
            .is_some_and(|(container, _)| super::find(container.as_bytes()).is_none())
    };
    let shown = |name: &str| format!("`{}`", name.replace('|', " ").to_ascii_uppercase());
    let names: Vec<String> = all.filter(|name| !container_is_missing(name)).map(shown).collect();
    if names.is_empty() {
        return String::new();
    }
    format!("\n**{}**: {}.\n", title(group), names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/commands.md");

    #[test]
    fn the_page_is_up_to_date() {
        let page = markdown();
        if std::env::var_os("LARDER_UPDATE_DOCS").is_some() {
            std::fs::write(PATH, &page).expect("docs/commands.md can be written");
        }
        let found = std::fs::read_to_string(PATH).unwrap_or_default();
        assert!(found == page, "docs/commands.md is out of date: run with LARDER_UPDATE_DOCS=1");
    }

    #[test]
    fn every_line_has_its_columns() {
        for line in markdown().lines().filter(|line| line.starts_with('|')) {
            let columns = line.replace("\\|", "").matches('|').count();
            assert_eq!(columns, 4, "{line}");
        }
    }

    #[test]
    fn every_command_is_on_the_page_and_none_is_called_missing() {
        let page = markdown();
        let (supported, missing) = page.split_once(MISSING).expect("two parts");
        for entry in commands().filter(|entry| is_listed(entry)) {
            let name = entry.full_name().to_ascii_uppercase();
            assert!(supported.contains(&format!("`{name}")), "{name}");
            assert!(!missing.contains(&format!("`{name}`")), "{name}");
        }
    }
}
