//! What a rule has told, the last of it: each transition as the record that it was, in the state, so that it can be asked
//! for later.

use std::collections::{BTreeMap, BTreeSet};

use tocsin_pipeline::operator::key_group;

/// How much memory it may take; beyond it the oldest are forgotten early.
const BYTES_MAX: usize = 16 << 20;

/// A record that was told.
struct Told {
    /// The key group of its `id`.
    group: u16,
    /// As JSON.
    record: String,
}

/// The records that a rule has told, by their number.
#[derive(Default)]
pub(super) struct History {
    max: usize,
    told: BTreeMap<u64, Told>,
    by_group: BTreeMap<u16, BTreeSet<u64>>,
    bytes: usize,
}

impl History {
    /// `max`: how many are kept.
    pub(super) fn new(max: usize) -> Self {
        Self { max, ..Self::default() }
    }

    pub(super) fn is_kept(&self) -> bool {
        self.max > 0
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes a record; `changed` is told each key group that is not what it was.
    pub(super) fn push(&mut self, id: &str, record: String, mut changed: impl FnMut(u16)) {
        let number = self.told.last_key_value().map_or(0, |(last, _)| last + 1);
        let group = key_group(id.as_bytes());
        changed(group);
        self.insert(number, group, record);
        while self.told.len() > self.max || (self.bytes > BYTES_MAX && self.told.len() > 1) {
            let Some((number, Told { group, record })) = self.told.pop_first() else { return };
            self.bytes -= record.len();
            if let Some(members) = self.by_group.get_mut(&group) {
                members.remove(&number);
            }
            changed(group);
        }
    }

    fn insert(&mut self, number: u64, group: u16, record: String) {
        self.bytes += record.len();
        self.by_group.entry(group).or_default().insert(number);
        self.told.insert(number, Told { group, record });
    }

    /// What was told, the newest first.
    pub(super) fn newest(&self) -> impl Iterator<Item = &str> {
        self.told.values().rev().map(|told| told.record.as_str())
    }

    /// What belongs into the piece of a key group.
    pub(super) fn of_group(&self, group: u16) -> Vec<(u64, String)> {
        let numbers = self.by_group.get(&group).into_iter().flatten();
        numbers.map(|number| (*number, self.told[number].record.clone())).collect()
    }

    /// Takes back what was in the piece of a key group. Where fewer are to be kept now, the oldest go with the next that comes.
    pub(super) fn restore(&mut self, group: u16, told: Vec<(u64, String)>) {
        let is_kept = self.is_kept();
        for (number, record) in told.into_iter().filter(|_| is_kept) {
            self.insert(number, group, record);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_go_first_and_their_groups_change() {
        let mut history = History::new(3);
        let mut changed = BTreeSet::new();
        for number in 0..10u64 {
            changed.clear();
            history.push(&number.to_string(), format!("{{\"n\":{number}}}"), |group| {
                changed.insert(group);
            });
        }
        assert_eq!(history.told.keys().copied().collect::<Vec<_>>(), [7, 8, 9]);
        assert_eq!(changed, [key_group(b"9"), key_group(b"6")].into());
        let mut other = History::new(3);
        for group in (0..tocsin_pipeline::operator::KEY_GROUPS).rev() {
            other.restore(group, history.of_group(group));
        }
        assert_eq!(other.bytes, history.bytes);
        assert!(
            other
                .told
                .iter()
                .map(|(n, told)| (n, &told.record))
                .eq(history.told.iter().map(|(n, told)| (n, &told.record)))
        );
        history.push("big", "x".repeat(BYTES_MAX), |_| {});
        assert_eq!(history.told.len(), 1);
    }
}
