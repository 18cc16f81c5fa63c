//! Silences: alerts that nobody is told of for a while, who said so, and what was kept quiet meanwhile.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};
use tocsin_config::silence::Silence;
use tocsin_pipeline::time::Timestamp;

use super::alert::Alert;

/// How many silences there are at most, those that ended within [`KEPT`] included.
pub(super) const SILENCES_MAX: usize = 10_000;
/// How long a silence that is over is remembered, in event time.
pub(super) const KEPT: std::time::Duration = std::time::Duration::from_secs(5 * 86_400);
/// How many of the alerts that a silence muted are known by name; further ones are counted.
const MUTED_MAX: usize = 1000;

/// A silence and what it has done.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub silence: Silence,
    /// Whether the configuration says it: then it is not part of the state, and commands cannot end it.
    pub is_configured: bool,
    pub muted: Muted,
    /// What it kept quiet has been told after its end.
    pub is_told: bool,
}

/// What a silence kept quiet.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Muted {
    /// By receiver: the alerts that it would have been told of, by fingerprint, in brief.
    pub alerts: BTreeMap<String, BTreeMap<String, Json>>,
    /// How many are not among them, as there were too many.
    pub more: u64,
}

impl Muted {
    fn count(&self) -> usize {
        self.alerts.values().map(BTreeMap::len).sum()
    }

    /// Gives whether that is new.
    fn add(&mut self, receiver: &str, fingerprint: &str, alert: &Alert) -> bool {
        let known = self.count();
        if self.alerts.get(receiver).is_some_and(|alerts| alerts.contains_key(fingerprint)) {
            return false;
        }
        if known >= MUTED_MAX {
            self.more += 1;
            return true;
        }
        self.alerts.entry(receiver.to_owned()).or_default().insert(fingerprint.to_owned(), alert.brief());
        true
    }
}

/// What of a silence is in the state.
#[derive(Serialize, Deserialize)]
pub(super) struct Saved {
    /// `None` of one that the configuration says: of that only what it muted is kept.
    silence: Option<Json>,
    id: String,
    muted: Muted,
    is_told: bool,
}

/// All silences, by identity.
#[derive(Debug, Default)]
pub(super) struct Silences {
    pub entries: BTreeMap<String, Entry>,
}

impl Silences {
    pub(super) fn of(configured: &[Silence]) -> Self {
        let entry = |silence: &Silence| {
            let entry =
                Entry { silence: silence.clone(), is_configured: true, muted: Muted::default(), is_told: false };
            (silence.id.clone(), entry)
        };
        Self { entries: configured.iter().map(entry).collect() }
    }

    /// The silences that mute an alert now.
    pub(super) fn muting<'a>(&'a self, alert: &'a Alert, now: Timestamp) -> impl Iterator<Item = &'a str> + 'a {
        self.entries
            .iter()
            .filter(move |(_, entry)| entry.silence.is_active(now) && entry.silence.matches(|name| alert.label(name)))
            .map(|(id, _)| id.as_str())
    }

    /// Puts one in, or in the place of the one of its identity.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn put(&mut self, silence: Silence) -> Result<(), &'static str> {
        let is_full = self.entries.len() >= SILENCES_MAX;
        match self.entries.get_mut(&silence.id) {
            Some(known) if known.is_configured => return Err("the configuration says this silence; change it there"),
            Some(known) => known.silence = silence,
            None if is_full => return Err("there are as many silences as may be"),
            None => {
                let id = silence.id.clone();
                let entry = Entry { silence, is_configured: false, muted: Muted::default(), is_told: false };
                self.entries.insert(id, entry);
            }
        }
        Ok(())
    }

    /// Ends one now.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn expire(&mut self, id: &str, now: Timestamp) -> Result<(), &'static str> {
        match self.entries.get_mut(id) {
            None => Err("there is no silence of this identity"),
            Some(known) if known.is_configured => Err("the configuration says this silence; change it there"),
            Some(known) => {
                known.silence.ends_at = known.silence.ends_at.min(now);
                known.silence.starts_at = known.silence.starts_at.min(now);
                Ok(())
            }
        }
    }

    /// The next moment at which one begins or ends to mute.
    pub(super) fn next_change(&self, now: Timestamp) -> Option<Timestamp> {
        self.entries.values().filter_map(|entry| entry.silence.next_change(now)).min()
    }

    /// Those that are over and of which that has not been told: told by the call.
    pub(super) fn take_ended(&mut self, now: Timestamp) -> Vec<(Silence, Muted)> {
        let mut ended = Vec::new();
        for entry in self.entries.values_mut() {
            if !entry.is_told && entry.silence.ends_at <= now {
                entry.is_told = true;
                ended.push((entry.silence.clone(), entry.muted.clone()));
            }
        }
        // Long over: nobody asks for it any more.
        self.entries.retain(|_, entry| entry.is_configured || entry.silence.ends_at.saturating_add(KEPT) > now);
        ended
    }

    /// One has kept an alert from a receiver. Gives whether that is new.
    pub(super) fn mute(&mut self, id: &str, receiver: &str, fingerprint: &str, alert: &Alert) -> bool {
        self.entries.get_mut(id).is_some_and(|entry| entry.muted.add(receiver, fingerprint, alert))
    }

    /// What belongs into a snapshot.
    pub(super) fn saved(&self) -> Vec<Saved> {
        self.entries
            .values()
            .filter(|entry| !entry.is_configured || entry.muted != Muted::default() || entry.is_told)
            .map(|entry| Saved {
                silence: (!entry.is_configured).then(|| entry.silence.to_json()),
                id: entry.silence.id.clone(),
                muted: entry.muted.clone(),
                is_told: entry.is_told,
            })
            .collect()
    }

    pub(super) fn restore(&mut self, saved: Vec<Saved>) -> Result<(), String> {
        for Saved { silence, id, muted, is_told } in saved {
            if let Some(silence) = silence {
                let silence = Silence::of_json(&silence)?;
                self.entries.insert(id, Entry { silence, is_configured: false, muted, is_told });
            } else if let Some(known) = self.entries.get_mut(&id) {
                (known.muted, known.is_told) = (muted, is_told);
            }
        }
        Ok(())
    }

    /// All of them, for those who ask; `alerts`: how many of these each keeps quiet is asked too.
    pub(super) fn view(&self, now: Timestamp, alerts: Option<&BTreeMap<String, Alert>>) -> Vec<Json> {
        self.entries
            .values()
            .map(|entry| {
                let mut view = entry.silence.to_json();
                let begins = entry.silence.begins(now);
                let state = match begins {
                    None => "expired",
                    Some(begins) if begins > now => "pending",
                    Some(_) => "active",
                };
                view["state"] = state.into();
                view["next"] =
                    begins.filter(|begins| *begins > now).map_or(Json::Null, |begins| begins.to_string().into());
                view["configured"] = entry.is_configured.into();
                if let Some(alerts) = alerts {
                    let firing = alerts.values().filter(|alert| state == "active" && alert.is_firing);
                    let muted = firing.filter(|alert| entry.silence.matches(|name| alert.label(name)));
                    view["muted"] = json!(muted.count());
                }
                view
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn one_that_recurs_is_active_within_its_hours_alone() {
        let silence = json!({
            "id": "s", "matchers": ["path=/export"], "owner": "ana", "reason": "slow", "ends_at": "2026-11-21T02:00:00Z",
            "during": { "times": ["01:00-03:00"] },
        });
        let silences = Silences::of(&[Silence::of_json(&silence).unwrap()]);
        let alert = |path: &str, state: &str| {
            let record = json!({ "alert": "slow", "state": state, "labels": { "path": path }, "fingerprint": format!("{path}{state}") });
            Alert::of(record, Timestamp(0)).unwrap()
        };
        let alerts = [alert("/export", "firing"), alert("/export", "resolved"), alert("/", "firing")].into();
        let mut text = String::new();
        for now in ["2026-11-20T00:30:00Z", "2026-11-20T01:00:00Z", "2026-11-20T12:00:00Z", "2026-11-21T02:00:00Z"] {
            let at = Timestamp::parse_rfc3339(now.as_bytes()).unwrap();
            let view = &silences.view(at, Some(&alerts))[0];
            text += &format!("{now} {} {} {}\n", view["state"], view["next"], view["muted"]);
            assert!(silences.view(at, None)[0]["muted"].is_null(), "nobody asked");
        }
        expect![[r#"
            2026-11-20T00:30:00Z "pending" "2026-11-20T01:00:00Z" 0
            2026-11-20T01:00:00Z "active" null 1
            2026-11-20T12:00:00Z "pending" "2026-11-21T01:00:00Z" 0
            2026-11-21T02:00:00Z "expired" null 0
        "#]]
        .assert_eq(&text);
    }
}
