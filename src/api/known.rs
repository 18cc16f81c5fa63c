//! What the operators `notify` know, of all of them together.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};
use tocsin_config::matcher::{Matcher, Matchers};

use super::{Api, Failure};

/// An alert, as one `notify` tells it.
#[derive(Clone, Debug, Deserialize)]
pub struct Alert {
    pub fingerprint: String,
    pub labels: BTreeMap<String, String>,
    pub firing: bool,
    pub starts_at: String,
    pub ends_at: Option<String>,
    pub updated_at: String,
    pub record: Json,
    pub silenced_by: Vec<String>,
    pub inhibited_by: Vec<String>,
    /// For each of its groups why the receiver was told or not.
    pub receivers: Vec<Json>,
}

impl Alert {
    pub fn is_matched(&self, matchers: &Matchers) -> bool {
        matchers.matches(|name| self.labels.get(name).map(String::as_str))
    }

    pub fn is_suppressed(&self) -> bool {
        !self.silenced_by.is_empty() || !self.inhibited_by.is_empty()
    }

    /// Who is told of it, each once.
    pub fn receivers(&self) -> Vec<&str> {
        let mut names: Vec<_> = self.receivers.iter().filter_map(|verdict| verdict["receiver"].as_str()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Takes what another `notify` knows of the same alert. Where one tells of it, it is not kept quiet.
    fn merge(&mut self, other: Self) {
        self.receivers.extend(other.receivers);
        if !self.is_suppressed() {
            return;
        }
        (self.silenced_by, self.inhibited_by) = match other.silenced_by.is_empty() && other.inhibited_by.is_empty() {
            true => (Vec::new(), Vec::new()),
            false => {
                let mut both = (std::mem::take(&mut self.silenced_by), std::mem::take(&mut self.inhibited_by));
                both.0.extend(other.silenced_by);
                both.1.extend(other.inhibited_by);
                for names in [&mut both.0, &mut both.1] {
                    names.sort();
                    names.dedup();
                }
                both
            }
        };
    }
}

/// A group of alerts that a receiver is told of together.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Group {
    #[serde(default)]
    pub notify: String,
    pub key: String,
    pub receiver: Option<String>,
    pub labels: BTreeMap<String, String>,
    /// By fingerprint.
    pub alerts: Vec<String>,
    pub muted_by: Vec<String>,
    pub acknowledged: Option<Acknowledged>,
}

/// Who takes care, since when.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Acknowledged {
    pub by: String,
    pub at: String,
}

/// A silence.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Silence {
    pub id: String,
    pub matchers: Vec<String>,
    pub owner: String,
    pub reason: String,
    pub starts_at: Option<String>,
    pub ends_at: String,
    pub updated_at: Option<String>,
    pub during: Json,
    pub annotations: BTreeMap<String, String>,
    /// `active` while it mutes; `pending` where it will; `expired` where it never does any more.
    pub state: String,
    /// When it begins to mute, or does again; of one that does, `None`.
    pub next: Option<String>,
    /// Whether the configuration says it.
    pub configured: bool,
    /// How many alerts that fire it keeps quiet now, where that was asked.
    #[serde(default)]
    pub muted: u64,
}

impl Silence {
    /// What it is for; those of the operators can always be read.
    pub fn matchers(&self) -> Vec<Matcher> {
        self.matchers.iter().filter_map(|text| Matchers::parse(text).ok()).flat_map(|matchers| matchers.0).collect()
    }
}

fn part<T: for<'a> Deserialize<'a>>(told: &mut Json, name: &str) -> Result<Vec<T>, Failure> {
    let part = told.get_mut(name).map(Json::take).unwrap_or_default();
    serde_json::from_value(part).map_err(|error| {
        Failure::new(
            hyper::StatusCode::INTERNAL_SERVER_ERROR,
            format!("a `notify` tells its {name} otherwise: {error}"),
        )
    })
}

/// What one `notify` knows.
#[derive(Debug)]
pub struct Known {
    pub notify: String,
    pub alerts: Vec<Alert>,
    pub groups: Vec<Group>,
}

impl Api {
    /// The alerts and groups of each `notify`.
    pub async fn known(&self) -> Result<Vec<Known>, Failure> {
        let told = self.ask(json!({ "of": ["alerts", "groups"] })).await?;
        told.into_iter()
            .map(|mut told| {
                let notify = told["notify"].as_str().unwrap_or_default().to_owned();
                let mut groups: Vec<Group> = part(&mut told, "groups")?;
                groups.iter_mut().for_each(|group| group.notify.clone_from(&notify));
                Ok(Known { notify, alerts: part(&mut told, "alerts")?, groups })
            })
            .collect()
    }

    /// All alerts that fire, by fingerprint.
    pub async fn firing(&self) -> Result<BTreeMap<String, Alert>, Failure> {
        let mut firing: BTreeMap<String, Alert> = BTreeMap::new();
        for mut told in self.ask(json!({ "of": ["alerts"] })).await? {
            let alerts: Vec<Alert> = part(&mut told, "alerts")?;
            for alert in alerts.into_iter().filter(|alert| alert.firing) {
                match firing.get_mut(&alert.fingerprint) {
                    Some(known) => known.merge(alert),
                    None => drop(firing.insert(alert.fingerprint.clone(), alert)),
                }
            }
        }
        Ok(firing)
    }

    /// The groups that somebody means by the identity of a notification, a group's key, or an alert's fingerprint.
    pub async fn meant(&self, what: &str) -> Result<Vec<Group>, Failure> {
        let mut meant = Vec::new();
        for mut told in self.ask(json!({ "find": what })).await? {
            let notify = told["notify"].as_str().unwrap_or_default().to_owned();
            let groups: Vec<Group> = part(&mut told, "groups")?;
            meant.extend(groups.into_iter().map(|group| Group { notify: notify.clone(), ..group }));
        }
        Ok(meant)
    }

    /// The silences of each `notify`, without how many alerts they keep quiet.
    pub async fn silences_of_each(&self) -> Result<Vec<Vec<Silence>>, Failure> {
        let told = self.ask(json!({ "of": ["silences"], "now": self.clock.now().to_string() })).await?;
        told.into_iter().map(|mut told| part(&mut told, "silences")).collect()
    }

    /// All silences: those that mute first, the next to end before the others; then those to come; then those that are over.
    pub async fn silences(&self) -> Result<Vec<Silence>, Failure> {
        let mut silences: BTreeMap<String, Silence> = BTreeMap::new();
        let question = json!({ "of": ["silences", "muted"], "now": self.clock.now().to_string() });
        for mut told in self.ask(question).await? {
            for silence in part::<Silence>(&mut told, "silences")? {
                match silences.get_mut(&silence.id) {
                    Some(known) => known.muted += silence.muted,
                    None => drop(silences.insert(silence.id.clone(), silence)),
                }
            }
        }
        let mut silences: Vec<_> = silences.into_values().collect();
        silences.sort_by_cached_key(|silence| {
            let nanos = |text: &str| super::moment("", text).map_or(0, |time| time.0);
            match silence.state.as_str() {
                "active" => (0, nanos(&silence.ends_at)),
                "pending" => (1, silence.next.as_deref().map_or(0, nanos)),
                _ => (2, nanos(&silence.ends_at).saturating_neg()),
            }
        });
        Ok(silences)
    }

    /// The last notifications of all, in brief.
    pub async fn notifications(&self) -> Result<Vec<Json>, Failure> {
        let told = self.ask(json!({ "of": ["notifications"] })).await?;
        Ok(told.into_iter().flat_map(|mut told| part(&mut told, "notifications").unwrap_or_default()).collect())
    }
}
