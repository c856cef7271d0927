//! The figures of a replay, and how they are printed.

use std::{fmt::Write, sync::atomic::Ordering::Relaxed};

use crate::tier::log::Log;

/// Where a request found its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// L1.
    Local,
    /// L2.
    Memory,
    /// L3, the queue before it included.
    Disk,
    /// It was a miss.
    Nowhere,
}

/// What one tier did; of misses the hits are the misses themselves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tier {
    /// Requests that found their key here.
    pub hits: u64,
    /// Bytes of their values.
    pub bytes: u64,
    /// Entries at the end.
    pub entries: u64,
    /// Bytes that they take at the end, overhead included.
    pub held: u64,
}

/// What went on between memory and disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it, and the counters of the log")]
pub struct Flow {
    /// Entries that left memory and are nowhere.
    pub evicted: u64,
    pub demotions: u64,
    pub demoted_bytes: u64,
    pub unchanged: u64,
    pub promotions: u64,
    pub rejected: u64,
    pub dropped: u64,
    pub reinserted: u64,
    pub reinserted_bytes: u64,
    pub forgotten: u64,
    pub writes: u64,
    pub written_bytes: u64,
    /// Reads for a key, and the hits among them that weren't in the queue.
    pub reads: u64,
    pub read_hits: u64,
    pub index_bytes: u64,
}

impl Flow {
    /// Takes over the counters of a log.
    pub fn count(&mut self, log: &Log) {
        let counters = &log.counters;
        let pairs = [
            (&mut self.demotions, &counters.demotions),
            (&mut self.demoted_bytes, &counters.demoted_bytes),
            (&mut self.unchanged, &counters.unchanged),
            (&mut self.promotions, &counters.promotions),
            (&mut self.rejected, &counters.rejected),
            (&mut self.dropped, &counters.dropped),
            (&mut self.reinserted, &counters.reinserted),
            (&mut self.reinserted_bytes, &counters.reinserted_bytes),
            (&mut self.forgotten, &counters.forgotten),
            (&mut self.writes, &counters.writes),
            (&mut self.written_bytes, &counters.written_bytes),
            (&mut self.reads, &counters.reads),
        ];
        for (figure, counter) in pairs {
            *figure = counter.load(Relaxed);
        }
        self.read_hits = counters.hits.load(Relaxed) - counters.queue_hits.load(Relaxed);
    }

    /// Bytes written for each byte of a record that was admitted; `None` if there was none.
    pub fn write_amplification(&self) -> Option<f64> {
        part(self.written_bytes, self.demoted_bytes)
    }

    /// Reads of the disk for each hit there.
    pub fn reads_per_hit(&self) -> Option<f64> {
        part(self.reads, self.read_hits)
    }
}

/// The figures of a replay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Requests.
    pub requests: u64,
    /// Values for which there was no room: too long, or nothing might be evicted.
    pub refused: u64,
    /// By [`Place`].
    pub tiers: [Tier; 4],
    /// Between memory and disk.
    pub flow: Flow,
}

fn part(count: u64, of: u64) -> Option<f64> {
    (of != 0).then(|| count as f64 / of as f64)
}

impl Report {
    /// The share of the requests that found their key here.
    pub fn share(&self, place: Place) -> f64 {
        part(self.tiers[place as usize].hits, self.requests).unwrap_or(0.0)
    }

    /// The share of the requests that missed.
    pub fn miss_ratio(&self) -> f64 {
        self.share(Place::Nowhere)
    }

    /// The report as text, for those who read it.
    pub fn text(&self, has_disk: bool) -> String {
        let mut text = String::new();
        // Writing to a string can't fail.
        let _ = self.write(&mut text, has_disk);
        text
    }

    fn write(&self, out: &mut String, has_disk: bool) -> std::fmt::Result {
        writeln!(
            out,
            "{:<6}{:>16}{:>10}{:>12}{:>14}{:>12}",
            "tier", "hits", "share", "bytes", "entries", "held"
        )?;
        let places = [
            ("L1", Place::Local),
            ("L2", Place::Memory),
            ("L3", Place::Disk),
            ("miss", Place::Nowhere),
        ];
        for (name, place) in places {
            let tier = self.tiers[place as usize];
            write!(out, "{name:<6}{:>16}", grouped(tier.hits))?;
            write!(out, "{:>10}{:>12}", percent(self.share(place)), size(tier.bytes))?;
            match place {
                Place::Nowhere => writeln!(out)?,
                _ => writeln!(out, "{:>14}{:>12}", grouped(tier.entries), size(tier.held))?,
            }
        }
        let bytes = self.tiers.iter().map(|tier| tier.bytes).sum();
        writeln!(out, "{:<6}{:>16}{:>22}", "all", grouped(self.requests), size(bytes))?;
        writeln!(out, "miss ratio {}", percent(self.miss_ratio()))?;
        if self.refused > 0 {
            writeln!(out, "{} values found no room", grouped(self.refused))?;
        }
        if has_disk { self.write_flow(out) } else { self.write_evicted(out) }
    }

    fn write_evicted(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "\nevicted     {:>14}", grouped(self.flow.evicted))
    }

    fn write_flow(&self, out: &mut String) -> std::fmt::Result {
        let flow = &self.flow;
        let lines = [
            ("promotions", flow.promotions, "brought back from L3".to_owned()),
            ("demotions", flow.demotions, format!("{} written to L3", size(flow.demoted_bytes))),
            ("unchanged", flow.unchanged, "left memory, and L3 had them".to_owned()),
            ("rejected", flow.rejected, "left memory, and weren't worth a place".to_owned()),
            ("dropped", flow.dropped, "left memory while the queue was full".to_owned()),
            ("reinserted", flow.reinserted, format!("{} again", size(flow.reinserted_bytes))),
            ("forgotten", flow.forgotten, "left L3".to_owned()),
        ];
        writeln!(out)?;
        for (name, count, words) in lines {
            writeln!(out, "{name:<12}{:>14}  {words}", grouped(count))?;
        }
        writeln!(out, "written     {:>14}  in {} writes", size(flow.written_bytes), flow.writes)?;
        let ratio =
            |ratio: Option<f64>| ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.3}"));
        let amplification = ratio(flow.write_amplification());
        writeln!(out, "write amplification {amplification}, the demotions' bytes being 1")?;
        writeln!(out, "disk reads per hit  {}", ratio(flow.reads_per_hit()))?;
        let index = part(flow.index_bytes, self.tiers[Place::Disk as usize].entries);
        let index = index.map_or("-".to_owned(), |bytes| format!("{bytes:.1}"));
        writeln!(out, "index of L3         {}, {index} bytes a record", size(flow.index_bytes))
    }
}

/// `12.34 %`.
pub fn percent(share: f64) -> String {
    format!("{:.2} %", share * 100.0)
}

/// A number with its digits in groups of three.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A size to three digits or so: `17 B`, `1.5 KiB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let (mut number, mut unit) = (bytes as f64 / 1024.0, 0);
    while number >= 1000.0 && unit + 1 < UNITS.len() {
        (number, unit) = (number / 1024.0, unit + 1);
    }
    format!("{number:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_easy_to_read() {
        assert_eq!(
            ["0", "999", "1,000", "12,345,678"],
            [0, 999, 1_000, 12_345_678].map(grouped)[..]
        );
        assert_eq!(["0 B", "1023 B", "1.0 KiB", "1.5 MiB"], [0, 1023, 1024, 3 << 19].map(size)[..]);
        assert_eq!(size(u64::MAX), "16384.0 PiB");
        assert_eq!(percent(0.12345), "12.35 %");
    }

    #[test]
    fn an_empty_report_has_no_ratio() {
        let report = Report::default();
        assert_eq!(report.miss_ratio(), 0.0);
        assert!(report.text(true).contains("write amplification -,"), "{}", report.text(true));
        assert!(!report.text(false).contains("write amplification"));
    }
}
