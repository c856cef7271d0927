//! LOLWUT: a larder, drawn anew each second.

use super::{
    Args, Session,
    info::{LARDER_VERSION, REDIS_VERSION},
    row::{Flags, Row, Run},
    server::SUB,
};
use crate::{cache::tx::Stop, protocol::Reply, tier::shelf::next_random};

/// Shelves of the larder.
const SHELVES: usize = 3;
/// Places on a shelf.
const PLACES: usize = 8;
/// Lines of what stands on a shelf.
const HEIGHT: usize = 3;
/// Columns of a place.
const WIDTH: usize = 5;
/// What stands there, from top to bottom.
const GOODS: [[&str; HEIGHT]; 6] = [
    [" ___ ", "|___|", "|jam|"],
    ["  _  ", " ( ) ", " |_| "],
    ["     ", " ___ ", "(___)"],
    ["  |  ", " / \\ ", "|___|"],
    ["     ", " ,_, ", "{o,o}"],
    ["     ", "     ", "     "],
];

/// LOLWUT.
pub const ROW: Row = Row {
    name: "lolwut",
    arity: -1,
    flags: Flags::READONLY.with(Flags::FAST),
    run: Run::Session(lolwut),
    since: "5.0.0",
    summary: "Draws a larder, and tells the version.",
    syntax: "[VERSION version]",
    ..SUB
};

fn lolwut(session: &mut Session, args: Args<'_>, reply: &mut Reply<'_>) -> Result<(), Stop> {
    if args.len() > 2 && args.is(1, "version") {
        // There is one drawing whatever the version, but it has to be a number.
        args.integer(2)?;
    }
    let mut text = draw(session.now / 1_000);
    text.push_str(&format!("Redis ver. {REDIS_VERSION} (Larder {LARDER_VERSION})\n"));
    reply.verbatim("txt", text.as_bytes());
    Ok(())
}

/// Shelves with goods in an order that `seed` decides.
fn draw(seed: u64) -> String {
    let mut random = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut text = String::new();
    for _ in 0..SHELVES {
        let goods: [usize; PLACES] = std::array::from_fn(|_| {
            random = next_random(random);
            (random >> 33) as usize % GOODS.len()
        });
        text.extend((0..HEIGHT).map(|line| {
            let row: String = goods.iter().map(|good| GOODS[*good][line]).collect();
            format!("|{row}|\n")
        }));
        text.push_str(&format!("+{}+\n", "=".repeat(PLACES * WIDTH)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::testing::{call, session};

    #[test]
    fn lines_are_of_one_length() {
        for seed in 0..50 {
            let text = draw(seed);
            assert_eq!(text.lines().count(), SHELVES * (HEIGHT + 1));
            assert!(text.lines().all(|line| line.len() == PLACES * WIDTH + 2), "{text}");
        }
        assert_ne!(draw(1), draw(2));
    }

    #[test]
    fn the_version_is_a_number() {
        let mut session = session();
        for words in [&["LOLWUT"][..], &["LOLWUT", "VERSION"], &["LOLWUT", "VERSION", "5", "1"]] {
            let version = format!("Redis ver. 7.2.4 (Larder {LARDER_VERSION})\n\r\n");
            assert!(call(&mut session, words).ends_with(&version));
        }
        let error = "-ERR value is not an integer or out of range\r\n";
        assert_eq!(call(&mut session, &["LOLWUT", "VERSION", "x"]), error);
    }
}
