//! Silences that are put in and ended while the daemon runs.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::FutureExt as _;
use serde_json::{Value as Json, json};
use tocsin_config::matcher::{Matcher, Matchers};
use tocsin_config::silence::Silence as Checked;
use tocsin_pipeline::time::Timestamp;
use uuid::Uuid;

use super::known::Silence;
use super::{Api, Failure, moment};

/// What somebody wants to be silent.
#[derive(Debug)]
pub struct Wanted {
    /// Of the one to change.
    pub id: Option<String>,
    pub matchers: Vec<String>,
    pub owner: String,
    pub reason: String,
    /// `None`: from now on.
    pub starts_at: Option<Timestamp>,
    pub ends_at: Timestamp,
    /// `None`: where it changes one, as that says.
    pub during: Option<Json>,
    pub annotations: BTreeMap<String, String>,
}

/// What is to be done for it.
#[derive(Debug)]
struct Change {
    silence: Json,
    /// The one that it takes the place of.
    expires: Option<String>,
}

/// Decides as Alertmanager does: a silence keeps its identity as long as nothing that was silent becomes another story.
fn change(wanted: Wanted, known: &[Silence], now: Timestamp, new_id: String) -> Result<Change, Failure> {
    let mut matchers = Vec::new();
    for text in &wanted.matchers {
        let parsed = Matchers::parse(text);
        matchers.extend(parsed.map_err(|error| Failure::bad(format!("`matchers`: {text:?}: {}", error.message)))?.0);
    }
    if !matchers.is_empty() && matchers.iter().all(|matcher| Matchers(vec![matcher.clone()]).matches(|_| None)) {
        return Err(Failure::bad("one of `matchers` at least must not be true of alerts that do not have its label"));
    }
    let begun = wanted.starts_at.unwrap_or(now);
    if begun >= wanted.ends_at {
        return Err(Failure::bad("the silence must begin before it ends"));
    }
    if wanted.ends_at <= now {
        return Err(Failure::bad("the silence must end in the future"));
    }
    let changed = match &wanted.id {
        None => None,
        Some(id) => {
            let found = known.iter().find(|silence| silence.id == *id);
            let found = found.ok_or_else(|| Failure::not_found(format!("there is no silence {id}")))?;
            if found.configured {
                return Err(Failure::bad("the configuration says this silence; change it there"));
            }
            Some(found)
        }
    };
    let starts =
        |silence: &Silence| silence.starts_at.as_deref().map_or(Ok(Timestamp::MIN), |text| moment("starts_at", text));
    let kept = match changed {
        Some(silence) if sorted(silence.matchers()) == sorted(matchers) => {
            let starts_at = starts(silence)?;
            match silence.state.as_str() {
                "expired" => None,
                // It may be outside of its hours. To the second, as clients that know no finer time send it back.
                _ if starts_at <= now => (starts_at.0 / 1_000_000_000 == begun.0 / 1_000_000_000).then_some(starts_at),
                _ => Some(begun).filter(|begun| *begun >= now),
            }
        }
        _ => None,
    };
    let (id, starts_at) = match (kept, changed) {
        (Some(starts_at), Some(silence)) => (silence.id.clone(), starts_at),
        _ => (new_id, begun.max(now)),
    };
    let expires = changed.filter(|silence| silence.id != id && silence.state != "expired");
    let during = wanted.during.or_else(|| changed.map(|silence| silence.during.clone()));
    let silence = json!({
        "id": id,
        "matchers": wanted.matchers,
        "owner": wanted.owner,
        "reason": wanted.reason,
        "starts_at": starts_at.to_string(),
        "ends_at": wanted.ends_at.to_string(),
        "updated_at": now.to_string(),
        "during": during,
        "annotations": wanted.annotations,
    });
    if Checked::of_json(&silence).map_err(Failure::bad)?.begins(now).is_none() {
        return Err(Failure::bad(format!(
            "`during` holds at no time from {starts_at} to {}: look at its days and times, and at `location`, which is \"UTC\" where \
             nothing is said",
            wanted.ends_at
        )));
    }
    Ok(Change { silence, expires: expires.map(|silence| silence.id.clone()) })
}

/// What is odd about a silence and may be meant all the same. `labels` are those that alerts can have; `None`: any.
fn warnings(matchers: &[Matcher], labels: Option<&BTreeSet<String>>) -> Vec<String> {
    let Some(labels) = labels else { return Vec::new() };
    let unknown: BTreeSet<_> =
        matchers.iter().map(|matcher| &matcher.name).filter(|name| !labels.contains(*name)).collect();
    let known = labels.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    unknown.into_iter().map(|name| format!("no rule makes alerts with a label `{name}`; there are {known}")).collect()
}

/// Matchers in an order that does not depend on how they were written.
fn sorted(matchers: Vec<Matcher>) -> Matchers {
    let mut matchers = Matchers(matchers);
    matchers.sort();
    matchers
}

impl Api {
    /// Puts a silence in or changes one; gives its identity when it is in force, and what is odd about it.
    pub async fn put_silence(&self, wanted: Wanted) -> Result<(String, Vec<String>), Failure> {
        let known = self.silences().await?;
        let matchers = wanted.matchers.iter().filter_map(|text| Matchers::parse(text).ok());
        let matchers: Vec<_> = matchers.flat_map(|matchers| matchers.0).collect();
        let warnings = warnings(&matchers, self.views.labels().as_ref());
        let change = change(wanted, &known, self.clock.now(), Uuid::new_v4().to_string())?;
        let mut commands = Vec::new();
        if let Some(id) = &change.expires {
            commands.push(json!({ "command": "expire", "id": id }));
        }
        commands.push(json!({ "command": "silence", "silence": change.silence }));
        let id = change.silence["id"].as_str().unwrap_or_default();
        let updated_at = change.silence["updated_at"].as_str();
        let is_in = |silence: &Silence| silence.id == id && silence.updated_at.as_deref() == updated_at;
        let is_done = || async { Ok(self.silences_of_each().await?.iter().all(|each| each.iter().any(is_in))) }.boxed();
        self.tell(&commands, is_done).await?;
        Ok((id.to_owned(), warnings))
    }

    /// Ends a silence. One that is over already is none the worse for it.
    pub async fn expire_silence(&self, id: &str) -> Result<(), Failure> {
        let known = self.silences().await?;
        let Some(silence) = known.iter().find(|silence| silence.id == id) else {
            return Err(Failure::not_found(format!("there is no silence {id}")));
        };
        if silence.configured {
            return Err(Failure::bad("the configuration says this silence; end it there"));
        }
        if silence.state == "expired" {
            return Ok(());
        }
        let is_over = |silence: &Silence| silence.id != id || silence.state == "expired";
        let is_done = || async { Ok(self.silences_of_each().await?.iter().flatten().all(is_over)) }.boxed();
        self.tell(&[json!({ "command": "expire", "id": id })], is_done).await
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    const NOW: &str = "2026-11-29T12:00:00Z";

    fn at(text: &str) -> Timestamp {
        Timestamp::parse_rfc3339(format!("2026-11-29T{text}:00Z").as_bytes()).unwrap()
    }

    fn known(id: &str, state: &str, starts_at: &str) -> Silence {
        Silence {
            id: id.to_owned(),
            matchers: vec!["a=\"b\"".to_owned(), "c=\"d\"".to_owned()],
            owner: "ana".to_owned(),
            reason: "works".to_owned(),
            starts_at: Some(at(starts_at).to_string()),
            ends_at: at("20:00").to_string(),
            updated_at: None,
            during: json!({ "times": ["01:00-24:00"] }),
            annotations: BTreeMap::new(),
            state: state.to_owned(),
            next: None,
            configured: id == "configured",
            muted: 0,
        }
    }

    /// What becomes of a wish, in a line.
    fn wish(id: Option<&str>, matchers: &[&str], starts_at: Option<&str>, ends_at: &str) -> String {
        wish_during(None, id, matchers, starts_at, ends_at)
    }

    fn wish_during(
        during: Option<Json>,
        id: Option<&str>,
        matchers: &[&str],
        starts_at: Option<&str>,
        ends_at: &str,
    ) -> String {
        let silences = [
            known("active", "active", "10:00"),
            known("pending", "pending", "13:00"),
            known("resting", "pending", "10:00"),
            known("expired", "expired", "10:00"),
            known("configured", "active", "10:00"),
        ];
        let wanted = Wanted {
            id: id.map(str::to_owned),
            matchers: matchers.iter().map(|text| (*text).to_owned()).collect(),
            owner: "ana".to_owned(),
            reason: "works".to_owned(),
            starts_at: starts_at.map(at),
            ends_at: at(ends_at),
            during,
            annotations: BTreeMap::new(),
        };
        let now = Timestamp::parse_rfc3339(NOW.as_bytes()).unwrap();
        match change(wanted, &silences, now, "new".to_owned()) {
            Ok(Change { silence, expires }) => format!(
                "{} from {} to {} during {}{}\n",
                silence["id"],
                silence["starts_at"],
                silence["ends_at"],
                silence["during"],
                expires.map(|id| format!(", expires {id}")).unwrap_or_default()
            ),
            Err(failure) => format!("{}: {}\n", failure.status, failure.message),
        }
    }

    #[test]
    fn a_silence_keeps_its_identity_while_it_is_for_the_same_and_has_not_begun_otherwise() {
        let same = &["c=d", "a=b"][..];
        let text = [
            wish(None, same, None, "14:00"),
            wish(None, same, Some("09:00"), "14:00"),
            wish(Some("active"), same, Some("10:00"), "14:00"),
            wish(Some("active"), same, Some("11:00"), "14:00"),
            wish(Some("active"), &["a=b"], Some("10:00"), "14:00"),
            wish(Some("pending"), same, Some("12:30"), "14:00"),
            wish(Some("pending"), same, Some("11:00"), "14:00"),
            wish(Some("resting"), same, Some("10:00"), "14:00"),
            wish(Some("expired"), same, Some("10:00"), "14:00"),
        ];
        expect![[r#"
            "new" from "2026-11-29T12:00:00Z" to "2026-11-29T14:00:00Z" during null
            "new" from "2026-11-29T12:00:00Z" to "2026-11-29T14:00:00Z" during null
            "active" from "2026-11-29T10:00:00Z" to "2026-11-29T14:00:00Z" during {"times":["01:00-24:00"]}
            "new" from "2026-11-29T12:00:00Z" to "2026-11-29T14:00:00Z" during {"times":["01:00-24:00"]}, expires active
            "new" from "2026-11-29T12:00:00Z" to "2026-11-29T14:00:00Z" during {"times":["01:00-24:00"]}, expires active
            "pending" from "2026-11-29T12:30:00Z" to "2026-11-29T14:00:00Z" during {"times":["01:00-24:00"]}
            "new" from "2026-11-29T12:00:00Z" to "2026-11-29T14:00:00Z" during {"times":["01:00-24:00"]}, expires pending
            "resting" from "2026-11-29T10:00:00Z" to "2026-11-29T14:00:00Z" during {"times":["01:00-24:00"]}
            "new" from "2026-11-29T12:00:00Z" to "2026-11-29T14:00:00Z" during {"times":["01:00-24:00"]}
        "#]]
        .assert_eq(&text.concat());
    }

    #[test]
    fn a_label_that_no_rule_makes_is_told() {
        let matchers = Matchers::parse(r#"pth="/checkout", path="/", pth!="x""#).unwrap().0;
        let labels = ["alertname", "path"].map(str::to_owned).into();
        let expected = "no rule makes alerts with a label `pth`; there are `alertname`, `path`";
        assert_eq!(warnings(&matchers, Some(&labels)), [expected]);
        assert!(warnings(&matchers, None).is_empty() && warnings(&matchers[1..2], Some(&labels)).is_empty());
    }

    #[test]
    fn what_cannot_be_silenced_is_told_with_the_reason() {
        let text = [
            wish(Some("nobody"), &["a=b"], None, "14:00"),
            wish(Some("configured"), &["a=b"], None, "14:00"),
            wish(None, &[], None, "14:00"),
            wish(None, &["a=~\".*\"", "b!=c"], None, "14:00"),
            wish(None, &["a=~\"(\""], None, "14:00"),
            wish(None, &["a=b"], Some("14:00"), "14:00"),
            wish(None, &["a=b"], Some("10:00"), "11:00"),
            wish_during(Some(json!({ "times": ["13:00-14:00"] })), None, &["a=b"], None, "13:00"),
            wish_during(Some(json!({ "weekdays": ["monday"] })), None, &["a=b"], Some("13:00"), "14:00"),
        ];
        expect![[r#"
            404 Not Found: there is no silence nobody
            400 Bad Request: the configuration says this silence; change it there
            400 Bad Request: `matchers` of the silence: has no matcher, so that the silence would be for every alert
            400 Bad Request: one of `matchers` at least must not be true of alerts that do not have its label
            400 Bad Request: `matchers`: "a=~\"(\"": not a regular expression: unclosed group
            400 Bad Request: the silence must begin before it ends
            400 Bad Request: the silence must end in the future
            400 Bad Request: `during` holds at no time from 2026-11-29T12:00:00Z to 2026-11-29T13:00:00Z: look at its days and times, and at `location`, which is "UTC" where nothing is said
            400 Bad Request: `during` holds at no time from 2026-11-29T13:00:00Z to 2026-11-29T14:00:00Z: look at its days and times, and at `location`, which is "UTC" where nothing is said
        "#]]
        .assert_eq(&text.concat());
    }
}
