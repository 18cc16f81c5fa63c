//! A replay as a chart of text: time goes to the right, a row for each rule, and one for what each receiver is told.

use std::fmt::Write as _;

use tocsin_pipeline::time::{Timestamp, nanos};

use super::outcome::Outcome;

/// Names take no more room than this; the longest are cut.
const NAME_MAX: usize = 24;
/// A chart is not narrower, whatever the terminal.
const COLUMNS_MIN: usize = 20;

/// Draws it, `width` columns wide.
pub fn draw(outcome: &Outcome, width: usize) -> String {
    let Some((from, to)) = outcome.stretch() else { return String::new() };
    let receivers = outcome.by_receiver();
    let names = outcome.rules.iter().map(|rule| &**rule).chain(receivers.keys().copied());
    let margin = names.map(|name| name.chars().count()).max().unwrap_or(0).min(NAME_MAX);
    let columns = width.saturating_sub(margin + 2).max(COLUMNS_MIN);
    let scale = Scale { from, length: nanos(to.since(from)).max(1), columns };
    let mut rows: Vec<(&str, String)> = Vec::new();
    let episodes = outcome.episodes();
    for rule in &outcome.rules {
        let mut cells = vec!['·'; columns];
        for episode in episodes.iter().filter(|episode| episode.rule == *rule) {
            let (start, end) = (scale.column(episode.start), scale.column(episode.end.unwrap_or(to)));
            cells[start..=end].fill('█');
        }
        rows.push((rule, cells.into_iter().collect()));
    }
    for receiver in receivers.keys().copied() {
        let mut counts = vec![0u32; columns];
        for sent in outcome.sent.iter().filter(|sent| &*sent.receiver == receiver && outcome.is_told(sent.time)) {
            counts[scale.column(sent.time)] += 1;
        }
        let digit = |count: u32| match count {
            0 => ' ',
            1..=9 => char::from_digit(count, 10).expect("one digit"),
            _ => '+',
        };
        rows.push((receiver, counts.into_iter().map(digit).collect::<String>().trim_end().to_owned()));
    }
    let mut text = String::new();
    for (name, cells) in rows {
        let name: String = name.chars().take(margin).collect();
        writeln!(text, "{name:<margin$}  {cells}").expect("writing to a string");
    }
    let (first, last) = (from.to_string(), to.to_string());
    let gap = columns.saturating_sub(first.len()).max(last.len() + 1);
    writeln!(text, "{:<margin$}  {first}{last:>gap$}", "").expect("writing to a string");
    text
}

struct Scale {
    from: Timestamp,
    length: i64,
    columns: usize,
}

impl Scale {
    fn column(&self, time: Timestamp) -> usize {
        let past = nanos(time.since(self.from)).min(self.length);
        let column = i128::from(past) * self.columns as i128 / i128::from(self.length);
        (column as usize).min(self.columns - 1)
    }
}
