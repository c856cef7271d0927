//! Kills and power losses at any moment, against a simple model.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    /// A key, bytes of its value (none: a delete), whether it names the one before it.
    Append(u8, Option<u16>, bool),
    /// Acknowledges what a key has, up to the n-th; the last first.
    Acknowledge(u8, usize),
    /// Waits until the last effect is durable.
    Sync,
    /// Makes what old segments have superfluous.
    Churn(u8),
    Kill,
    /// A kill, and then a start of the machine in good order.
    Reboot,
    PowerLoss(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0u8..5, prop::option::of(0u16..400), any::<bool>())
            .prop_map(|(key, len, names)| Step::Append(key, len, names)),
        4 => (0u8..5, 0usize..6).prop_map(|(key, count)| Step::Acknowledge(key, count)),
        4 => Just(Step::Sync),
        1 => (5u8..40).prop_map(Step::Churn),
        1 => Just(Step::Kill),
        1 => Just(Step::Reboot),
        1 => any::<u64>().prop_map(Step::PowerLoss),
    ]
}

/// An effect as the model knows it.
#[derive(Clone, Debug)]
struct Known {
    effect: Effect,
    durable: bool,
    acknowledged: bool,
    superseded_by: Option<u64>,
}

struct Model {
    fsync: Fsync,
    disk: Memory,
    journal: Journal,
    known: BTreeMap<u64, Known>,
    version: u64,
}

impl Model {
    fn new(fsync: Fsync) -> Self {
        let disk = Memory::new();
        let (journal, ..) = open(&disk, options(fsync));
        Self { fsync, disk, journal, known: BTreeMap::new(), version: 0 }
    }

    /// The effects of a key that aren't over, in order.
    fn live(&self, key: &[u8]) -> Vec<u64> {
        let is_live = |known: &Known| {
            known.effect.key == key && !known.acknowledged && known.superseded_by.is_none()
        };
        let live = self.known.iter().filter(|(_, known)| is_live(known));
        live.map(|(sequence, _)| *sequence).collect()
    }

    fn append(&mut self, key: u8, len: Option<u16>, names: bool) {
        self.version += 1;
        let version = self.version;
        let key = Bytes::from(vec![key; 3]);
        let value = |len| vec![version as u8; usize::from(len)].into();
        let change = match len {
            Some(len) => Change::Put(Record {
                value: value(len),
                deadline: version,
                version,
                fresh_for: None,
            }),
            None => Change::Delete { version },
        };
        let live = self.live(&key);
        // An older one that isn't named would be left behind if the named one went.
        let supersedes = live.last().copied().filter(|_| names && live.len() == 1);
        let effect = Effect { db: 0, key, change, supersedes: supersedes.map(Position) };
        let append = if version.is_multiple_of(3) { append } else { append_only };
        let position = append(&self.journal, effect.clone()).expect("room");
        let durable = self.journal.is_synced(position);
        if let Some(older) = supersedes.and_then(|older| self.known.get_mut(&older)) {
            older.superseded_by = Some(position.0);
        }
        let known = Known { effect, durable, acknowledged: false, superseded_by: None };
        self.known.insert(position.0, known);
    }

    fn acknowledge(&mut self, key: u8, count: usize) {
        let live = self.live(&[key; 3]);
        let ended = &live[..count.min(live.len())];
        for sequence in ended {
            self.known.get_mut(sequence).expect("known").acknowledged = true;
        }
        self.journal.acknowledge(ended.iter().rev().map(|sequence| Position(*sequence)));
    }

    fn sync(&mut self) {
        let Some((last, _)) = self.known.last_key_value() else { return };
        wait(self.journal.synced(Position(*last))).expect("durable");
        self.known.values_mut().for_each(|known| known.durable = true);
    }

    /// Whether an effect, or what took its place, is among these, or the store has it.
    fn is_kept(&self, sequence: u64, found: &BTreeMap<u64, Replayed>) -> bool {
        let Some(known) = self.known.get(&sequence) else { return true };
        found.contains_key(&sequence)
            || known.acknowledged
            || known.superseded_by.is_some_and(|newer| self.is_kept(newer, found))
    }

    fn crash(&mut self, image: Memory, loses_power: bool) {
        let (journal, replayed, report) = open(&image, options(self.fsync));
        let found: BTreeMap<u64, Replayed> =
            replayed.iter().map(|it| (it.position.0, it.clone())).collect();
        assert!(replayed.is_sorted_by_key(|it| it.position) && found.len() == replayed.len());
        let keeps = !loses_power || self.fsync == Fsync::Always;
        let last = found.keys().last().copied().unwrap_or(0);
        for (sequence, known) in &self.known {
            if known.durable && keeps || *sequence <= last {
                assert!(self.is_kept(*sequence, &found), "{sequence} is lost, {last} isn't");
            }
            if known.durable && keeps {
                assert!(report.ceiling >= known.effect.change.version());
            }
            let Some(it) = found.get(sequence) else {
                // Where a newer one is gone, no older one comes back.
                let is_older =
                    |it: &Replayed| it.key == known.effect.key && it.position.0 < *sequence;
                let comes_back = replayed.iter().find(|it| is_older(it));
                assert!(
                    !known.durable || !keeps || comes_back.is_none(),
                    "{comes_back:?} comes back after {sequence}"
                );
                continue;
            };
            assert_eq!((&it.key, &it.change), (&known.effect.key, &known.effect.change));
        }
        // What came back is what there is; the rest is over, or was never promised.
        self.known.retain(|sequence, _| found.contains_key(sequence));
        for known in self.known.values_mut() {
            let rest =
                Known { durable: true, acknowledged: false, superseded_by: None, ..known.clone() };
            *known = rest;
        }
        assert_eq!(found.len(), self.known.len(), "something came back that never was");
        self.disk = image;
        self.journal = journal;
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Append(key, len, names) => self.append(key, len, names),
            Step::Acknowledge(key, count) => self.acknowledge(key, count),
            Step::Sync => self.sync(),
            Step::Churn(count) => {
                for _ in 0..count {
                    self.append(9, Some(100), true);
                    self.sync();
                }
            }
            Step::Kill => self.crash(self.disk.after_kill(), false),
            Step::Reboot => self.crash(self.disk.after_reboot(), false),
            Step::PowerLoss(mut seed) => {
                seed |= 1;
                let image = self.disk.after_power_loss(|| {
                    seed = crate::tier::shelf::next_random(seed);
                    seed >> 7
                });
                self.crash(image, true);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn nothing_durable_is_lost_and_no_order_inverted(
        steps in prop::collection::vec(step(), 1..60),
        policy in 0..3,
    ) {
        let fsync = match policy {
            0 => Fsync::Always,
            1 => Fsync::Interval(Duration::ZERO),
            _ => Fsync::Never,
        };
        let mut model = Model::new(fsync);
        for step in steps {
            model.take(step);
        }
        model.crash(model.disk.after_kill(), false);
        model.sync();
        model.crash(model.disk.after_power_loss(|| 0), true);
    }
}
