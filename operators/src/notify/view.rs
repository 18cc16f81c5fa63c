//! How `notify` stands, for those who ask: alerts and why they were told or not, groups, silences, receivers.

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};
use tocsin_pipeline::time::Timestamp;

use super::group::Group;
use super::notifier::{Notifier, Quiet};

/// Answers a question: `{"acknowledge": ID, "signature": …}` tells what a link is about, or null; everything else tells all.
pub(super) fn answer(notifier: &Notifier, question: &Json) -> Json {
    if let Some(id) = question["acknowledge"].as_str() {
        let signature = question["signature"].as_str().unwrap_or_default();
        let is_signed = notifier.settings.link.as_ref().is_some_and(|link| link.is_signed(id, signature));
        let group = notifier.groups.iter().find(|(_, group)| group.firing_id.as_deref() == Some(id));
        return match (is_signed, group) {
            (false, _) => Json::Null,
            (true, None) => json!({ "state": "over" }),
            (true, Some((key, group))) => group_view(notifier, key, group),
        };
    }
    let now = notifier.now;
    let moment = |time: Timestamp| if time == Timestamp::MIN { Json::Null } else { time.to_string().into() };
    let receivers: Vec<_> = notifier
        .settings
        .receivers
        .iter()
        .map(|receiver| {
            let spent = notifier.spent.get(&receiver.name);
            json!({
                "name": receiver.name,
                "budget": receiver.budget.map(|budget| budget.max),
                "waiting_for_digest": spent.map_or(0, |spent| spent.waiting.len()),
                "digest_at": spent.zip(receiver.budget).and_then(|(spent, budget)| spent.due(budget)).map(moment),
            })
        })
        .collect();
    json!({
        "notify": notifier.settings.name.as_ref(),
        "now": moment(now),
        "alerts": notifier.alerts.keys().map(|fingerprint| alert_view(notifier, fingerprint)).collect::<Vec<_>>(),
        "groups": notifier.groups.iter().map(|(key, group)| group_view(notifier, key, group)).collect::<Vec<_>>(),
        "silences": notifier.silences.view(now),
        "receivers": receivers,
        "notifications": notifier.history.values().collect::<Vec<_>>(),
    })
}

fn group_view(notifier: &Notifier, key: &str, group: &Group) -> Json {
    let moment = |time: Option<Timestamp>| time.map_or(Json::Null, |time| time.to_string().into());
    let route = notifier.settings.tree.by_id(&group.route);
    let steps = notifier.settings.steps(&group.route);
    json!({
        "key": key,
        "receiver": route.map(|route| route.receiver.as_str()),
        "labels": group.labels,
        "alerts": group.members,
        "told": group.told,
        "notifications": group.number,
        "id": group.firing_id,
        "last": moment(group.last),
        "next": moment(group.timer),
        "repeats_at": moment(route.and_then(|route| group.repeats_at(route))),
        "escalates_at": moment(group.escalates_at(steps)),
        "escalates_to": steps.get(group.escalated).map(|(_, receiver)| receiver.as_str()),
        "acknowledged": group.acknowledgement.as_ref().map(|it| json!({ "by": it.by, "at": it.at.to_string() })),
    })
}

/// An alert, and for each of its groups the one cause why its receiver was told or not.
fn alert_view(notifier: &Notifier, fingerprint: &str) -> Json {
    let alert = &notifier.alerts[fingerprint];
    let quiet = notifier.quiet(fingerprint, notifier.now);
    let (silenced_by, inhibited_by) = match &quiet {
        Some(Quiet::Silenced(silences)) => (silences.clone(), Vec::new()),
        Some(Quiet::Inhibited(by)) => (Vec::new(), vec![by.clone()]),
        None => (Vec::new(), Vec::new()),
    };
    let groups = notifier.groups.iter().filter(|(_, group)| group.members.contains(fingerprint));
    let verdicts: Vec<_> =
        groups.map(|(key, group)| verdict(notifier, fingerprint, key, group, quiet.as_ref())).collect();
    json!({
        "fingerprint": fingerprint,
        "labels": alert.labels,
        "firing": alert.is_firing,
        "starts_at": alert.starts_at.to_string(),
        "updated_at": alert.updated.to_string(),
        "record": alert.record,
        "silenced_by": silenced_by,
        "inhibited_by": inhibited_by,
        "receivers": verdicts,
    })
}

/// Why a receiver was told of an alert or not: one cause.
fn verdict(notifier: &Notifier, fingerprint: &str, key: &str, group: &Group, quiet: Option<&Quiet>) -> Json {
    let settings = &notifier.settings;
    let route = settings.tree.by_id(&group.route);
    let receiver = route.map_or("", |route| route.receiver.as_str());
    let mut verdict = BTreeMap::from([("group", Json::from(key)), ("receiver", receiver.into())]);
    let mut say = |cause: &str, more: &[(&'static str, Json)]| {
        verdict.insert("cause", cause.into());
        verdict.extend(more.iter().cloned());
    };
    let moment = |time: Option<Timestamp>| time.map_or(Json::Null, |time| time.to_string().into());
    let interval = route.and_then(|route| notifier.muting_interval(route, notifier.now));
    let last = notifier.history.values().rev().find(|told| {
        told["group_key"] == *key
            && told["alerts"].as_array().is_some_and(|alerts| alerts.iter().any(|it| it == fingerprint))
    });
    let is_told = group.told.contains(fingerprint);
    match quiet {
        Some(Quiet::Silenced(silences)) => say("silenced", &[("silences", json!(silences))]),
        Some(Quiet::Inhibited(by)) => say("inhibited", &[("by", json!(by))]),
        None if interval.is_some() => {
            let (name, until) = interval.unwrap_or_default();
            say("muted", &[("interval", name.into()), ("until", moment(until))]);
        }
        None if is_told && last.is_some_and(|told| told["outcome"] == "digest") => {
            let spent = notifier.spent.get(receiver);
            let budget = settings.receivers[settings.port(receiver)].budget;
            let at = spent.zip(budget).and_then(|(spent, budget)| spent.due(budget));
            let is_waiting = spent.is_some_and(|spent| spent.waiting.contains_key(fingerprint));
            let cause = if is_waiting { "over_budget" } else { "digested" };
            say(cause, &[("digest_at", moment(at))]);
        }
        None if is_told && group.acknowledgement.is_some() => {
            let by = group.acknowledgement.as_ref().map(|it| it.by.clone());
            say("acknowledged", &[("by", json!(by)), ("notified", last.map_or(Json::Null, |told| told["id"].clone()))]);
        }
        None if is_told => {
            let repeat = route.and_then(|route| group.repeats_at(route));
            let told = last.map_or(Json::Null, |told| told["id"].clone());
            say("notified", &[("id", told), ("at", moment(group.last)), ("repeats_at", moment(repeat))]);
        }
        None if group.last.is_none() => say("group_wait", &[("until", moment(group.due))]),
        None => say("group_interval", &[("until", moment(group.due))]),
    }
    json!(verdict)
}
