//! What did not fit: many notifications that are told as one.
//!
//! A digest counts all of them and lists some: the first, the last, and each *resolved* whose *firing* had been told one by
//! one, so that nobody is left with an alert that seems to go on. What follows about a listed alert changes its line; so the
//! list says how each alert stood in the end.

use std::collections::{BTreeSet, VecDeque};
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};
use tocsin_pipeline::time::Timestamp;
use vrl::value::Value;

use crate::notice::Notice;

/// How many of the first notifications are listed.
const FIRST_MAX: usize = 100;
/// How many of the last.
const LAST_MAX: usize = 10;
/// How many *resolved* are listed whose *firing* had been told before; beyond, they are counted.
const ENDED_MAX: usize = 1000;
/// How many alerts that are not listed are remembered as firing. Beyond, the *resolved* of one counts as if its *firing* had
/// been told, which lists too much and never too little.
const UNLISTED_MAX: usize = 100_000;
/// A name is not longer.
const NAME_MAX: usize = 200;
/// Labels that take more as JSON are left out.
const LABELS_MAX: usize = 512;

/// A notification as a digest lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Item {
    /// The rule of an alert; the beginning of any other record.
    name: String,
    /// Empty for a record that is no alert.
    state: String,
    thread: String,
    /// As JSON; empty: none, or too long.
    labels: String,
    /// Event time.
    time: i64,
}

impl Item {
    pub(super) fn of(record: &Value, thread: &str, time: Timestamp) -> Self {
        let field = |name: &str| record.as_object().and_then(|fields| fields.get(name));
        let text = |name: &str| field(name).and_then(Value::to_str_lossy).map(|text| cut(&text));
        let as_json = |value: &Value| {
            let mut text = Vec::new();
            tocsin_pipeline::json::write_value(value, &mut text);
            String::from_utf8_lossy(&text).into_owned()
        };
        match (text("alert"), text("state")) {
            // It changes nothing in how its alert stands.
            (Some(_), Some(state)) if state == "amended" => {
                let name = cut(&Notice::of(record).title);
                Self { name, state: String::new(), thread: String::new(), labels: String::new(), time: time.0 }
            }
            (Some(name), Some(state)) => {
                let labels = field("labels").map(as_json).filter(|labels| labels.len() <= LABELS_MAX);
                Self { name, state, thread: thread.to_owned(), labels: labels.unwrap_or_default(), time: time.0 }
            }
            _ => {
                let name = text("message").unwrap_or_else(|| cut(&as_json(record)));
                Self { name, state: String::new(), thread: String::new(), labels: String::new(), time: time.0 }
            }
        }
    }

    fn is_firing(&self) -> bool {
        self.state == "firing"
    }

    fn labels(&self) -> Json {
        serde_json::from_str(&self.labels).unwrap_or_else(|_| json!({}))
    }

    fn json(&self) -> Json {
        let time = Timestamp(self.time).to_string();
        match self.state.is_empty() {
            true => json!({ "record": self.name, "time": time }),
            false => json!({
                "alert": self.name,
                "state": self.state,
                "fingerprint": self.thread,
                "labels": self.labels(),
                "time": time,
            }),
        }
    }

    fn line(&self) -> String {
        let mut line = format!("  {}", Timestamp(self.time));
        if !self.state.is_empty() {
            let _ = write!(line, " {}", self.state);
        }
        let _ = write!(line, " {}", self.name);
        let labels = self.labels();
        for (at, (name, value)) in labels.as_object().into_iter().flatten().enumerate() {
            let value = value.as_str().map_or_else(|| value.to_string(), cut);
            let _ = write!(line, "{} {name}={value}", if at == 0 { ":" } else { "," });
        }
        line
    }
}

/// The beginning of a text, as one line without controls.
fn cut(text: &str) -> String {
    let clean = |letter: char| if letter.is_control() { ' ' } else { letter };
    let mut name: String = text.chars().take(NAME_MAX).map(clean).collect();
    if text.chars().nth(NAME_MAX).is_some() {
        name.push('…');
    }
    name
}

/// A notification that goes into a digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Folded {
    /// Of all changes to digests; see [`Queue`](super::queue::Queue).
    pub(super) number: u64,
    /// The notification's own name, which is settled by this.
    pub(super) id: String,
    pub(super) receiver: String,
    pub(super) item: Item,
    pub(super) now: i64,
    /// When the record was read.
    pub(super) arrival: i64,
}

/// The notifications to one receiver that are told as one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Digest {
    pub(crate) receiver: String,
    /// Follows from the receiver and the first notification: the same whenever it is made again.
    pub(crate) id: String,
    count: u64,
    since: i64,
    until: i64,
    arrival: i64,
    first: Vec<Item>,
    last: VecDeque<Item>,
    ended: Vec<Item>,
    /// What was not listed for want of room, and might have been missed.
    ended_unlisted: u64,
    /// The alerts that fire and are not listed, as hashes of their threads.
    unlisted: BTreeSet<u64>,
}

impl Digest {
    pub(super) fn new(folded: &Folded) -> Self {
        let named = blake3::hash(format!("digest\0{}\0{}", folded.receiver, folded.id).as_bytes());
        Self {
            receiver: folded.receiver.clone(),
            id: named.to_hex()[..32].to_owned(),
            count: 0,
            since: folded.now,
            until: folded.now,
            arrival: folded.arrival,
            first: Vec::new(),
            last: VecDeque::new(),
            ended: Vec::new(),
            ended_unlisted: 0,
            unlisted: BTreeSet::new(),
        }
    }

    /// Takes a notification in. Without room (other digests are long too) it is listed only among the first and the last.
    pub(super) fn fold(&mut self, folded: &Folded, has_room: bool) {
        self.count += 1;
        self.until = folded.now;
        let item = &folded.item;
        if item.thread.is_empty() {
            return self.list(item.clone(), has_room);
        }
        if let Some(listed) = self.first.iter_mut().chain(&mut self.last).find(|listed| listed.thread == item.thread) {
            listed.clone_from(item);
            return;
        }
        let was_firing = self.unlisted.remove(&hash(&item.thread));
        match item.state == "resolved" {
            false => self.list(item.clone(), has_room),
            // Neither its beginning nor its end has been told.
            true if was_firing => {}
            true if has_room && self.ended.len() < ENDED_MAX => self.ended.push(item.clone()),
            true => self.ended_unlisted += 1,
        }
    }

    fn list(&mut self, item: Item, has_room: bool) {
        if self.first.len() < FIRST_MAX {
            self.first.push(item);
            return;
        }
        self.last.push_back(item);
        if self.last.len() <= LAST_MAX {
            return;
        }
        if let Some(item) = self.last.pop_front()
            && item.is_firing()
            && has_room
            && self.unlisted.len() < UNLISTED_MAX
        {
            self.unlisted.insert(hash(&item.thread));
        }
    }

    /// How many entries it holds beyond the first and the last.
    pub(super) fn weight(&self) -> usize {
        self.ended.len() + self.unlisted.len()
    }

    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    pub(super) fn arrival(&self) -> Timestamp {
        Timestamp(self.arrival)
    }

    /// When the last of them came.
    pub(super) fn until(&self) -> Timestamp {
        Timestamp(self.until)
    }

    fn items(&self) -> impl Iterator<Item = &Item> {
        self.ended.iter().chain(&self.first).chain(&self.last)
    }

    /// The alerts that it speaks of by name, as [`Row::thread`](super::Row::thread) holds several.
    pub(crate) fn threads(&self) -> String {
        let threads: BTreeSet<_> = self.items().map(|item| &*item.thread).filter(|thread| !thread.is_empty()).collect();
        threads.into_iter().collect::<Vec<_>>().join(" ")
    }

    /// How many are counted and not listed.
    fn more(&self) -> u64 {
        // A line may stand for several notifications about one alert.
        self.count.saturating_sub(self.items().count() as u64)
    }

    /// How many of its alerts fire when it ends; those that were not even remembered are not among them.
    fn firing(&self) -> usize {
        self.items().filter(|item| item.is_firing()).count() + self.unlisted.len()
    }

    /// What happened, in a line.
    pub(crate) fn summary(&self) -> String {
        let mut line = match self.count {
            1 => "1 notification was".to_owned(),
            count => format!("{} notifications were", grouped(count)),
        };
        let _ = write!(line, " not sent one by one since {}", Timestamp(self.since));
        for (at, item) in self.items().take(3).enumerate() {
            line += if at == 0 { "; first: " } else { ", " };
            let _ = write!(line, "{}{}{}", item.name, if item.state.is_empty() { "" } else { " " }, item.state);
        }
        line
    }

    /// As a record, in the shape of an alert as far as it has one.
    pub(crate) fn record(&self) -> Json {
        json!({
            "alert": "digest",
            "digest": true,
            "id": self.id,
            "count": self.count,
            "firing": self.firing(),
            "since": Timestamp(self.since).to_string(),
            "until": Timestamp(self.until).to_string(),
            "labels": {},
            "annotations": { "summary": self.summary() },
            "alerts": self.items().map(Item::json).collect::<Vec<_>>(),
            "more": self.more(),
        })
    }

    /// As [`Self::record`], as records are handed on.
    pub(crate) fn value(&self) -> Value {
        tocsin_pipeline::json::parse_value(self.record().to_string().as_bytes()).expect("it was written as JSON")
    }

    /// In words, for people.
    pub(crate) fn text(&self) -> String {
        let mut text = format!(
            "{}.\n\nThey came until {}, faster than they could be delivered. ",
            self.summary(),
            Timestamp(self.until)
        );
        let _ = match self.firing() {
            0 => writeln!(text, "None of the alerts among them was firing in the end."),
            1 => writeln!(text, "1 of the alerts among them was firing in the end."),
            firing => writeln!(text, "{} of the alerts among them were firing in the end.", grouped(firing as u64)),
        };
        let mut part = |title: &str, items: &mut dyn Iterator<Item = &Item>| {
            let lines: Vec<_> = items.map(Item::line).collect();
            if !lines.is_empty() {
                let _ = writeln!(text, "\n{title}:\n{}", lines.join("\n"));
            }
        };
        part("Ends of alerts that had been sent before", &mut self.ended.iter());
        part("The first", &mut self.first.iter());
        part("The last", &mut self.last.iter());
        if self.ended_unlisted > 0 {
            let _ = writeln!(
                text,
                "\n{} more ends of alerts are not listed: look whether what you were told of still goes on.",
                grouped(self.ended_unlisted)
            );
        }
        text
    }
}

fn hash(thread: &str) -> u64 {
    u64::from_le_bytes(blake3::hash(thread.as_bytes()).as_bytes()[..8].try_into().expect("eight bytes"))
}

/// A number as people read it: `12,345`.
fn grouped(number: u64) -> String {
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

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn folded(number: u64, name: &str, state: &str) -> Folded {
        let noon = crate::conformance::NOON.0 + number as i64 * 1_000_000_000;
        let record = json!({ "alert": name, "state": state, "labels": { "host": "a" } }).to_string();
        let record = tocsin_pipeline::json::parse_value(record.as_bytes()).unwrap();
        let item = Item::of(&record, name, Timestamp(noon));
        Folded { number, id: format!("{name}{state}"), receiver: "r".into(), item, now: noon, arrival: noon }
    }

    fn digest(given: &[(&str, &str)]) -> Digest {
        let mut digest = Digest::new(&folded(0, given[0].0, given[0].1));
        for ((name, state), number) in given.iter().zip(0..) {
            digest.fold(&folded(number, name, state), true);
        }
        digest
    }

    #[test]
    fn an_amendment_leaves_the_line_of_its_alert_as_it_is() {
        let mut digest = digest(&[("disk", "firing")]);
        let record =
            json!({ "alert": "disk", "state": "amended", "labels": {}, "time": "2026-11-20T12:03:00Z", "is": true });
        let record = tocsin_pipeline::json::parse_value(record.to_string().as_bytes()).unwrap();
        let item = Item::of(&record, "disk", Timestamp(0));
        digest.fold(&Folded { item, ..folded(1, "disk", "firing") }, true);
        let listed: Vec<_> = digest.first.iter().map(|item| format!("{} {}", item.state, item.name)).collect();
        assert_eq!((listed, digest.firing()), (vec!["firing disk".to_owned(), " [AMENDED] disk".to_owned()], 1));
    }

    #[test]
    fn it_says_how_each_alert_stood_in_the_end() {
        let digest = digest(&[("disk", "firing"), ("old", "resolved"), ("net", "firing"), ("disk", "resolved")]);
        expect![[r#"
            4 notifications were not sent one by one since 2026-11-20T12:00:00Z; first: old resolved, disk resolved, net firing.

            They came until 2026-11-20T12:00:03Z, faster than they could be delivered. 1 of the alerts among them was firing in the end.

            Ends of alerts that had been sent before:
              2026-11-20T12:00:01Z resolved old: host=a

            The first:
              2026-11-20T12:00:03Z resolved disk: host=a
              2026-11-20T12:00:02Z firing net: host=a
        "#]]
        .assert_eq(&digest.text());
        assert_eq!(digest.threads(), "disk net old");
    }

    #[test]
    fn as_a_record_it_has_the_shape_of_an_alert() {
        let record = r#"{"message":"a\nline","host":"a"}"#;
        let item =
            Item::of(&tocsin_pipeline::json::parse_value(record.as_bytes()).unwrap(), "", crate::conformance::NOON);
        let mut digest = digest(&[("disk", "firing")]);
        digest.fold(&Folded { item, ..folded(1, "", "") }, true);
        expect![[r#"
            {
              "alert": "digest",
              "alerts": [
                {
                  "alert": "disk",
                  "fingerprint": "disk",
                  "labels": {
                    "host": "a"
                  },
                  "state": "firing",
                  "time": "2026-11-20T12:00:00Z"
                },
                {
                  "record": "a line",
                  "time": "2026-11-20T12:00:00Z"
                }
              ],
              "annotations": {
                "summary": "2 notifications were not sent one by one since 2026-11-20T12:00:00Z; first: disk firing, a line"
              },
              "count": 2,
              "digest": true,
              "firing": 1,
              "id": "dbb708bdabb474dfb8bcae03838b4daa",
              "labels": {},
              "more": 0,
              "since": "2026-11-20T12:00:00Z",
              "until": "2026-11-20T12:00:01Z"
            }"#]]
        .assert_eq(&serde_json::to_string_pretty(&digest.record()).unwrap());
    }

    #[test]
    fn it_stays_small_whatever_comes() {
        let mut digest = digest(&[("0", "firing")]);
        for number in 1..20_000 {
            digest.fold(&folded(number, &number.to_string(), "firing"), true);
        }
        assert_eq!((digest.first.len(), digest.last.len(), digest.firing()), (FIRST_MAX, LAST_MAX, 20_000));
        // Whose beginning was not listed, its end is not either; whose beginning was told before, its end is.
        for number in 0..20_000 {
            digest.fold(&folded(number, &number.to_string(), "resolved"), true);
        }
        assert_eq!((digest.firing(), digest.weight()), (0, 0));
        for number in 0..2000 {
            digest.fold(&folded(number, &format!("told{number}"), "resolved"), true);
        }
        assert_eq!((digest.ended.len(), digest.ended_unlisted), (ENDED_MAX, 1000));
        assert!(digest.text().contains("1,000 more ends of alerts are not listed"));
        assert!(digest.summary().starts_with("42,000 notifications were"), "{}", digest.summary());
    }

    #[test]
    fn an_alert_that_began_again_is_listed_as_firing() {
        let digest = digest(&[("told", "resolved"), ("told", "firing")]);
        let states: Vec<_> = digest.items().map(|item| &*item.state).collect();
        assert_eq!((states, digest.firing()), (vec!["resolved", "firing"], 1));
    }
}
