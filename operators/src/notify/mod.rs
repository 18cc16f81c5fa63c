//! Alerts become notifications: grouped, routed, kept quiet where they are not wanted, told again where nobody takes care.

#[cfg(test)]
mod acceptance;
mod alert;
mod budget;
mod command;
#[cfg(test)]
mod corpus;
mod group;
mod inhibit;
mod notifier;
mod options;
mod record;
mod route;
mod silence;
#[cfg(test)]
mod tests;
mod view;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use tocsin_pipeline::event::{Batch, Lane, Origin};
use tocsin_pipeline::json;
use tocsin_pipeline::operator::{Input, KEY_GROUPS, Operator, Output, Reason, StateError, dead_letter};
use tocsin_pipeline::time::Timestamp;

use alert::Alert;
use budget::Spent;
use group::Group;
use notifier::{Notifier, SILENCES, Settings, key_of};
pub(crate) use options::Config;

/// The operator: hands records to the [`Notifier`] and what that tells to the receivers' ports.
struct Notify {
    notifier: Notifier,
    lane: Arc<Lane>,
    arrival: Timestamp,
    /// The number of the port `rejected`.
    rejected: usize,
    is_rejected_read: bool,
    /// What was restored has been put into order.
    is_settled: bool,
}

/// A piece of a snapshot, as JSON.
#[derive(Default, Serialize, Deserialize)]
struct Piece {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    alerts: Vec<(String, Alert)>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    groups: Vec<(String, Group)>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    receivers: Vec<(String, Spent)>,
    /// Moment, identity, and what is known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    history: Vec<(i64, String, Json)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    silences: Option<Vec<silence::Saved>>,
    /// What, by whom, when.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    early: Vec<(String, String, i64)>,
    /// In the piece of group 0 only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    now: Option<i64>,
}

impl Piece {
    fn is_empty(&self) -> bool {
        self.alerts.is_empty()
            && self.groups.is_empty()
            && self.receivers.is_empty()
            && self.history.is_empty()
            && self.silences.is_none()
            && self.early.is_empty()
            && self.now.is_none()
    }
}

impl Notify {
    fn new(settings: Settings, rejected: usize, is_rejected_read: bool) -> Self {
        let lane = Arc::new(Lane::of_operator(Arc::clone(&settings.name), Origin::Operator));
        let notifier = Notifier::new(Arc::new(settings));
        Self { notifier, lane, arrival: Timestamp(0), rejected, is_rejected_read, is_settled: false }
    }

    fn settle(&mut self) {
        if !std::mem::replace(&mut self.is_settled, true) {
            self.notifier.settle();
        }
    }

    fn take(&mut self, batch: &Batch, output: &mut Output) {
        self.settle();
        self.arrival = batch.arrival;
        let is_command = &*batch.lane.source == tocsin_config::COMMANDS;
        let mut letters = Vec::new();
        for row in batch.rows() {
            let time = batch.time(row);
            let mut text = Vec::new();
            json::write_value(&batch.value(row), &mut text);
            let record: Json = serde_json::from_slice(&text).unwrap_or(Json::Null);
            let taken = match is_command {
                true => command::obey(&mut self.notifier, &record, time).map_err(|why| (Reason::ProgramError, why)),
                false => self.notifier.take(record, time).map_err(|(reason, why)| (reason, why.to_owned())),
            };
            match taken {
                Ok(()) => output.drop(Reason::Aggregated, 1),
                Err((reason, why)) if self.is_rejected_read => {
                    let letter = dead_letter(&self.notifier.settings.name, reason.as_str(), &why, batch, row);
                    letters.push((time, letter));
                }
                Err((reason, _)) => output.drop(reason, 1),
            }
        }
        if !letters.is_empty() {
            output.emit(self.rejected, Batch::of_values(Arc::clone(&self.lane), letters, self.arrival));
        }
    }

    fn hand_on(&mut self, output: &mut Output) {
        let mut by_port: BTreeMap<usize, Vec<_>> = BTreeMap::new();
        for (port, time, record) in std::mem::take(&mut self.notifier.told) {
            let value = json::parse_value(record.to_string().as_bytes()).expect("it was written as JSON");
            by_port.entry(port).or_default().push((time, value));
        }
        for (port, told) in by_port {
            output.make(told.len());
            output.emit(port, Batch::of_values(Arc::clone(&self.lane), told, self.arrival));
        }
    }
}

impl Operator for Notify {
    fn on_input(&mut self, _: usize, input: Input, output: &mut Output) {
        let Input::Batch(batch) = input else { unreachable!("nothing is prepared for it") };
        self.take(&batch, output);
        self.hand_on(output);
    }

    fn on_watermark(&mut self, watermark: Timestamp, output: &mut Output) {
        self.settle();
        match watermark {
            Timestamp::MAX => self.notifier.finish(),
            watermark => self.notifier.advance(watermark),
        }
        self.hand_on(output);
    }

    fn next_deadline(&self) -> Timestamp {
        if !self.is_settled {
            return Timestamp::MIN;
        }
        self.notifier.next_deadline().map_or(Timestamp::MAX, |moment| Timestamp(moment.0.saturating_add(1)))
    }

    fn snapshot(&mut self, full: bool, piece: &mut dyn FnMut(u16, Vec<u8>)) {
        let notifier = &mut self.notifier;
        let mut changed = std::mem::take(&mut notifier.changed);
        if full {
            changed = (0..KEY_GROUPS).collect();
        }
        // The clock moves with every record.
        changed.insert(0);
        let mut pieces: BTreeMap<u16, Piece> = changed.iter().map(|group| (*group, Piece::default())).collect();
        for (fingerprint, alert) in &notifier.alerts {
            if let Some(piece) = pieces.get_mut(&key_of(fingerprint)) {
                piece.alerts.push((fingerprint.clone(), alert.clone()));
            }
        }
        for (key, group) in &notifier.groups {
            if let Some(piece) = pieces.get_mut(&group.key_group) {
                piece.groups.push((key.clone(), group.clone()));
            }
        }
        for (name, spent) in &notifier.spent {
            if let Some(piece) = pieces.get_mut(&key_of(name)) {
                piece.receivers.push((name.clone(), spent.clone()));
            }
        }
        for ((time, id), brief) in &notifier.history {
            if let Some(piece) = pieces.get_mut(&key_of(id)) {
                piece.history.push((time.0, id.clone(), brief.clone()));
            }
        }
        if let Some(piece) = pieces.get_mut(&key_of(SILENCES)) {
            piece.silences = Some(notifier.silences.saved()).filter(|saved| !saved.is_empty());
            piece.early = notifier.early.iter().map(|(what, (by, at))| (what.clone(), by.clone(), at.0)).collect();
        }
        for (group, content) in &mut pieces {
            if *group == 0 {
                content.now = Some(notifier.now.0);
            }
            let text =
                if content.is_empty() { Vec::new() } else { serde_json::to_vec(content).expect("texts and numbers") };
            piece(*group, text);
        }
    }

    fn restore(&mut self, group: u16, piece: &[u8]) -> Result<(), StateError> {
        if piece.is_empty() {
            return Ok(());
        }
        let unreadable =
            |error: &dyn std::fmt::Display| StateError(format!("notifications of key group {group}: {error}"));
        let piece: Piece = serde_json::from_slice(piece).map_err(|error| unreadable(&error))?;
        let notifier = &mut self.notifier;
        for (fingerprint, alert) in piece.alerts {
            notifier.restore_alert(fingerprint, alert);
        }
        for (key, mut group) in piece.groups {
            group.key_group = key_of(&key);
            notifier.restore_group(key, group);
        }
        notifier.spent.extend(piece.receivers);
        notifier.history.extend(piece.history.into_iter().map(|(time, id, brief)| ((Timestamp(time), id), brief)));
        notifier.early.extend(piece.early.into_iter().map(|(what, by, at)| (what, (by, Timestamp(at)))));
        if let Some(silences) = piece.silences {
            notifier.silences.restore(silences).map_err(|error| unreadable(&error))?;
        }
        if let Some(now) = piece.now {
            notifier.now = Timestamp(now);
        }
        Ok(())
    }

    fn state_bytes(&self) -> usize {
        self.notifier.bytes()
    }

    fn explain(&self) -> Vec<String> {
        let receivers: Vec<_> =
            self.notifier.settings.receivers.iter().map(|receiver| receiver.name.as_str()).collect();
        vec![format!("receivers: {}", receivers.join(", "))]
    }

    fn subject(&self) -> Option<&'static str> {
        Some("notify")
    }

    fn view(&self, question: &Json) -> Json {
        view::answer(&self.notifier, question)
    }
}

/// A moment as whole nanoseconds: it survives exactly.
mod nanoseconds {
    use serde::{Deserialize, Deserializer, Serializer};
    use tocsin_pipeline::time::Timestamp;

    pub(super) fn serialize<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_i64(time.0)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
        i64::deserialize(deserializer).map(Timestamp)
    }
}

/// As [`nanoseconds`], where there may be none.
mod optional_nanoseconds {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use tocsin_pipeline::time::Timestamp;

    pub(super) fn serialize<S: Serializer>(time: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
        time.map(|time| time.0).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Timestamp>, D::Error> {
        Ok(Option::<i64>::deserialize(deserializer)?.map(Timestamp))
    }
}
