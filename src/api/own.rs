//! Our own API: what the commands `tocsin alerts` and `tocsin silence` ask and say, and other programs may.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::FutureExt as _;
use serde::Deserialize;
use serde_json::{Value as Json, json};
use tocsin_config::matcher::Matchers;

use super::known::{Alert, Group};
use super::silences::Wanted;
use super::{Answer, Api, Asked, Failure, NOBODY, moment, only_look, only_post, request};
use crate::explain;

/// A name is not longer.
pub(super) const NAME_MAX: usize = 100;

/// `None` for paths that are not of alerts.
pub(super) async fn answer(api: &Api, asked: &Asked, path: &[&str]) -> Option<Result<Answer, Failure>> {
    Some(match path {
        ["alerts"] => alerts(api, asked).await,
        ["silences"] if asked.is_look() => silences(api, asked).await,
        ["silences"] => put(api, asked).await,
        ["silences", "expire"] => expire(api, asked).await,
        ["silences", "preview"] => preview(api, asked).await,
        ["acknowledge"] => acknowledge(api, asked).await,
        ["standing"] => standing(api, asked).await,
        _ => return None,
    })
}

/// How an alert stands and why each receiver was told or not, by each `notify` that knows it.
fn alert_view(notify: &str, alert: &Alert) -> Json {
    json!({
        "notify": notify,
        "fingerprint": alert.fingerprint,
        "alert": alert.record["alert"],
        "state": if alert.firing { "firing" } else { "resolved" },
        "labels": alert.labels,
        "annotations": alert.record["annotations"],
        "values": alert.record["values"],
        "starts_at": alert.starts_at,
        "ends_at": alert.ends_at,
        "updated_at": alert.updated_at,
        "silenced_by": alert.silenced_by,
        "inhibited_by": alert.inhibited_by,
        "receivers": alert.receivers,
    })
}

/// The labels by which a rule's own alert is known to matchers.
fn rule_labels(rule: &Json, labels: &Json) -> Json {
    let mut labels = labels.clone();
    if let Some(labels) = labels.as_object_mut() {
        labels.entry("alertname").or_insert_with(|| rule.clone());
    }
    labels
}

/// The same of one that no `notify` is told of.
fn firing_view(rule: &Json, alert: &Json) -> Json {
    json!({
        "alert": rule,
        "state": "firing",
        "fingerprint": alert["fingerprint"],
        "labels": rule_labels(rule, &alert["names"]),
        "values": alert["values"],
        "starts_at": alert["started"],
        "receivers": [],
    })
}

/// The same of one that has not held for long enough.
fn pending_view(rule: &Json, alert: &Json) -> Json {
    json!({
        "alert": rule,
        "state": "pending",
        "labels": rule_labels(rule, &alert["labels"]),
        "values": alert["values"],
        "starts_at": alert["since"],
        "fires_at": alert["fires_at"],
        "receivers": [],
    })
}

async fn alerts(api: &Api, asked: &Asked) -> Result<Answer, Failure> {
    only_look(asked)?;
    let matchers = asked.matchers("filter")?;
    let (mut told, mut more) = (Vec::new(), 0);
    let known = api.known().await?;
    for known in &known {
        let wanted = known.alerts.iter().filter(|alert| alert.is_matched(&matchers));
        told.extend(wanted.map(|alert| alert_view(&known.notify, alert)));
    }
    let has_no_notify = api.has_no_notify();
    // Nobody is told of what is pending, or where there is no `notify`, so that only the rules know it.
    let phases = if has_no_notify { &["firing", "pending"][..] } else { &["pending"] };
    for phase in phases {
        let view = if *phase == "firing" { firing_view } else { pending_view };
        for rule in api.ask_about("alert", json!({ "phase": phase })).await? {
            let alerts = rule["alerts"].as_array().map_or(&[][..], Vec::as_slice);
            more += rule["active"].as_u64().unwrap_or(0).saturating_sub(alerts.len() as u64);
            let is_wanted = |view: &Json| matchers.matches(|name| view["labels"][name].as_str());
            told.extend(alerts.iter().map(|alert| view(&rule["rule"], alert)).filter(is_wanted));
        }
    }
    Ok(request::json(&json!({ "alerts": told, "more": more, "has_no_notify": has_no_notify })))
}

/// What `tocsin explain` looks at.
async fn standing(api: &Api, asked: &Asked) -> Result<Answer, Failure> {
    only_look(asked)?;
    Ok(request::json(&explain::of_pipelines(&api.views, asked.one("key")).await))
}

async fn silences(api: &Api, asked: &Asked) -> Result<Answer, Failure> {
    let with_expired = asked.flag("expired", false)?;
    let mut silences = api.silences().await?;
    silences.retain(|silence| with_expired || silence.state != "expired");
    Ok(request::json(&json!({ "silences": silences })))
}

/// A silence as it is asked for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Posted {
    id: Option<String>,
    matchers: Vec<String>,
    owner: String,
    reason: String,
    starts_at: Option<String>,
    ends_at: String,
    during: Option<Json>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

async fn put(api: &Api, asked: &Asked) -> Result<Answer, Failure> {
    only_post(asked)?;
    let posted: Posted = asked.json()?;
    let starts_at = posted.starts_at.as_deref().map(|text| moment("starts_at", text)).transpose()?;
    let wanted = Wanted {
        id: posted.id,
        matchers: posted.matchers,
        owner: posted.owner,
        reason: posted.reason,
        starts_at,
        ends_at: moment("ends_at", &posted.ends_at)?,
        during: posted.during,
        annotations: posted.annotations,
    };
    let (id, warnings) = api.put_silence(wanted).await?;
    Ok(request::json(&json!({ "id": id, "warnings": warnings })))
}

/// What a command is about.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Named {
    id: String,
}

async fn expire(api: &Api, asked: &Asked) -> Result<Answer, Failure> {
    only_post(asked)?;
    let Named { id } = asked.json()?;
    api.expire_silence(&id).await?;
    Ok(request::json(&json!({ "id": id })))
}

/// What a silence would keep quiet, and would have kept quiet of the last notifications.
async fn preview(api: &Api, asked: &Asked) -> Result<Answer, Failure> {
    only_look(asked)?;
    let matchers = asked.matchers("matchers")?;
    if matchers.0.is_empty() {
        return Err(Failure::bad("say which alerts: `matchers`"));
    }
    let mut firing = api.firing().await?;
    firing.retain(|_, alert| alert.is_matched(&matchers));
    let alerts: Vec<_> = firing
        .values()
        .map(|alert| {
            json!({
                "fingerprint": alert.fingerprint,
                "labels": alert.labels,
                "starts_at": alert.starts_at,
                "silenced_by": alert.silenced_by,
            })
        })
        .collect();
    let notifications = past(&api.notifications().await?, &matchers);
    Ok(request::json(&json!({ "alerts": alerts, "notifications": notifications })))
}

/// How the matchers stand to notifications that were sent. Digests and summaries tell once more of what others told.
fn past(notifications: &[Json], matchers: &Matchers) -> Json {
    let (mut looked_at, mut muted, mut shortened) = (0, 0, 0);
    let mut since: Option<&str> = None;
    let mut by_receiver: BTreeMap<&str, u64> = BTreeMap::new();
    for told in notifications.iter().filter(|told| !matches!(told["reason"].as_str(), Some("digest" | "summary"))) {
        looked_at += 1;
        since = since.into_iter().chain(told["time"].as_str()).min();
        let alerts: Vec<_> = told["alert_labels"].as_array().into_iter().flatten().collect();
        let silent = alerts.iter().filter(|labels| matchers.matches(|name| labels[name].as_str())).count();
        let count = told["firing"].as_u64().unwrap_or(0) + told["resolved"].as_u64().unwrap_or(0);
        match silent {
            0 => {}
            // Of a long one not all alerts are known any more.
            silent if silent as u64 == count => {
                muted += 1;
                *by_receiver.entry(told["receiver"].as_str().unwrap_or_default()).or_default() += 1;
            }
            _ => shortened += 1,
        }
    }
    json!({ "looked_at": looked_at, "since": since, "muted": muted, "shortened": shortened, "muted_by_receiver": by_receiver })
}

/// Who takes care of what.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Attendance {
    id: String,
    by: String,
}

async fn acknowledge(api: &Api, asked: &Asked) -> Result<Answer, Failure> {
    only_post(asked)?;
    let Attendance { id, by } = asked.json()?;
    let by = name(&by)?;
    let meant = api.meant(&id).await?;
    if meant.is_empty() && api.has_no_notify() {
        return Err(Failure::not_found(NOBODY));
    }
    if meant.is_empty() {
        return Err(Failure::not_found(format!("nothing that fires is called {id:?}")));
    }
    let operators: BTreeSet<_> = meant.iter().map(|group| group.notify.as_str()).collect();
    let command = |operator: &&str| json!({ "command": "acknowledge", "operator": operator, "id": id, "by": by });
    let commands: Vec<_> = operators.iter().map(command).collect();
    let is_attended = |group: &Group| group.acknowledged.as_ref().is_some_and(|it| it.by == by);
    api.tell(&commands, || async { Ok(api.meant(&id).await?.iter().all(is_attended)) }.boxed()).await?;
    Ok(request::json(&json!({ "acknowledged": api.meant(&id).await? })))
}

/// The name of somebody.
pub(super) fn name(text: &str) -> Result<&str, Failure> {
    let name = text.trim();
    match name.chars().count() {
        1..=NAME_MAX if !name.chars().any(char::is_control) => Ok(name),
        _ => Err(Failure::bad(format!("a name has from 1 to {NAME_MAX} characters, all of which can be seen"))),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn the_past_tells_what_a_silence_would_have_kept_quiet() {
        let told = |reason: &str, receiver: &str, time: &str, hosts: &[&str], count: u64| {
            let labels: Vec<_> = hosts.iter().map(|host| json!({ "host": host })).collect();
            json!({
                "reason": reason, "receiver": receiver, "time": time, "alert_labels": labels, "firing": count, "resolved": 0
            })
        };
        let notifications = [
            told("first", "default", "2026-11-29T12:00:00Z", &["a"], 1),
            told("changed", "default", "2026-11-29T11:00:00Z", &["a", "b"], 2),
            told("first", "pager", "2026-11-29T12:00:00Z", &["a"], 1),
            told("repeat", "pager", "2026-11-29T13:00:00Z", &["b"], 1),
            told("first", "pager", "2026-11-29T13:00:00Z", &["a"], 21),
            told("digest", "pager", "2026-11-29T10:00:00Z", &["a"], 1),
        ];
        let told = past(&notifications, &Matchers::parse("host=a").unwrap());
        expect![[
            r#"{"looked_at":5,"muted":2,"muted_by_receiver":{"default":1,"pager":1},"shortened":2,"since":"2026-11-29T11:00:00Z"}"#
        ]]
        .assert_eq(&told.to_string());
    }

    #[test]
    fn a_name_is_one_that_can_be_read() {
        assert_eq!(name(" Ana Müller "), Ok("Ana Müller"));
        assert!(name("  ").is_err() && name("a\nb").is_err() && name(&"a".repeat(101)).is_err());
    }
}
