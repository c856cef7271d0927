//! Medians with their quartiles, tables for the eye, and JSON for machines.

use std::{fmt, io, path::Path};

/// The middle of some numbers and how far they spread.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// A quarter of the numbers is at or below.
    pub low: f64,
    /// Half of them.
    pub median: f64,
    /// Three quarters.
    pub high: f64,
}

impl Summary {
    /// The quartiles of some numbers, between neighbours by distance; NaN if there are none.
    pub fn of(numbers: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = numbers.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let place = share * sorted.len().saturating_sub(1) as f64;
            let (Some(below), Some(above)) =
                (sorted.get(place.floor() as usize), sorted.get(place.ceil() as usize))
            else {
                return f64::NAN;
            };
            below + (above - below) * place.fract()
        };
        Self { low: at(0.25), median: at(0.5), high: at(0.75) }
    }

    /// The quartiles of the ratios of pairs: what was measured side by side is compared side by side.
    pub fn of_ratios(ours: &[f64], theirs: &[f64]) -> Self {
        Self::of(ours.iter().zip(theirs).map(|(our, their)| our / their))
    }
}

/// `median [low high]`, with the precision asked for.
impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = f.precision().unwrap_or(2);
        let Self { low, median, high } = self;
        write!(f, "{median:.digits$} [{low:.digits$} {high:.digits$}]")
    }
}

/// Prints rows under their heads, the first column to the left, the others to the right.
pub fn print_table(heads: &[&str], rows: &[Vec<String>]) {
    let heads: Vec<String> = heads.iter().map(|head| (*head).to_owned()).collect();
    let width = |column: usize| {
        let cells = rows.iter().chain([&heads]).filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    for row in [&heads].into_iter().chain(rows) {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = width(column);
            match column {
                0 => line.push_str(&format!("{cell:<width$}")),
                _ => line.push_str(&format!("  {cell:>width$}")),
            }
        }
        println!("{}", line.trim_end());
    }
}

/// One object of a JSON report: names and what they stand for, already in JSON.
#[derive(Default)]
pub struct Record(Vec<String>);

impl Record {
    /// Adds a text; ours have nothing to escape.
    pub fn text(mut self, name: &str, text: &str) -> Self {
        self.0.push(format!("\"{name}\":\"{text}\""));
        self
    }

    /// Adds a number; what is none becomes null.
    pub fn number(mut self, name: &str, number: f64) -> Self {
        self.0.push(match number.is_finite() {
            true => format!("\"{name}\":{number}"),
            false => format!("\"{name}\":null"),
        });
        self
    }

    /// Adds a median with its quartiles.
    pub fn summary(mut self, name: &str, summary: Summary) -> Self {
        let Summary { low, median, high } = summary;
        let inner =
            Self::default().number("low", low).number("median", median).number("high", high);
        self.0.push(format!("\"{name}\":{{{}}}", inner.0.join(",")));
        self
    }
}

/// Writes records as one JSON array, a line each.
pub fn write_json(path: &Path, records: &[Record]) -> io::Result<()> {
    let lines: Vec<String> =
        records.iter().map(|record| format!("  {{{}}}", record.0.join(","))).collect();
    std::fs::write(path, format!("[\n{}\n]\n", lines.join(",\n")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles() {
        let summary = Summary::of([5.0, 1.0, 3.0, 2.0, 4.0]);
        assert_eq!(summary, Summary { low: 2.0, median: 3.0, high: 4.0 });
        assert_eq!(Summary::of([1.0, 2.0]).median, 1.5);
        assert!(Summary::of([]).median.is_nan());
        assert_eq!(Summary::of_ratios(&[2.0, 9.0], &[1.0, 3.0]).median, 2.5);
        assert_eq!(format!("{summary:.1}"), "3.0 [2.0 4.0]");
    }

    #[test]
    fn records_are_json() {
        let record = Record::default().text("server", "redis").number("ops", 1.5);
        let record = record.number("none", f64::NAN).summary("cpu", Summary::of([2.0]));
        let expected =
            r#""server":"redis","ops":1.5,"none":null,"cpu":{"low":2,"median":2,"high":2}"#;
        assert_eq!(record.0.join(","), expected);
    }
}
