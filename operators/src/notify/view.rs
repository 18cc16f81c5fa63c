//! How `notify` stands, for those who ask: alerts and why they were told or not, groups, silences, receivers.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Value as Json, json};
use tocsin_pipeline::time::Timestamp;

use super::group::{Acknowledgement, Group};
use super::notifier::{Notifier, Quiet};

/// How many alerts the page of a link lists.
const LISTED_MAX: usize = 100;

/// Answers a question:
///
/// - `{"acknowledge": ID, "signature": …}`: what a link is about, or null;
/// - `{"find": WHAT}`: the groups that somebody means by it;
/// - `{"of": ["alerts", "groups", "silences", "muted", "receivers", "notifications"]}`: those of these things that are named; `muted` is
///   how many alerts each of the silences keeps quiet, and with `"now": TIME` silences are told of that time where no event has come yet;
/// - everything else: all of them.
pub(super) fn answer(notifier: &Notifier, question: &Json) -> Json {
    let name = notifier.settings.name.as_ref();
    if let Some(id) = question["acknowledge"].as_str() {
        return link(notifier, id, question["signature"].as_str().unwrap_or_default());
    }
    if let Some(what) = question["find"].as_str() {
        let groups: Vec<_> =
            notifier.named(what).iter().map(|key| group_view(notifier, key, &notifier.groups[key])).collect();
        return json!({ "notify": name, "groups": groups });
    }
    let asked = question["of"].as_array();
    let is_asked = |part: &str| asked.is_none_or(|parts| parts.iter().any(|it| it == part));
    let mut answer = json!({ "notify": name, "now": moment(Some(notifier.now).filter(|now| *now != Timestamp::MIN)) });
    if is_asked("alerts") {
        let last = last_told(notifier);
        answer["alerts"] = notifier.alerts.keys().map(|fingerprint| alert_view(notifier, fingerprint, &last)).collect();
    }
    if is_asked("groups") {
        answer["groups"] = notifier.groups.iter().map(|(key, group)| group_view(notifier, key, group)).collect();
    }
    if is_asked("silences") {
        let counted = is_asked("muted").then_some(&notifier.alerts);
        // Before anything has come event time stands at the beginning of all times.
        let clock = question["now"].as_str().and_then(|now| Timestamp::parse_rfc3339(now.as_bytes()));
        let now = Some(notifier.now).filter(|now| *now != Timestamp::MIN).or(clock).unwrap_or(notifier.now);
        answer["silences"] = notifier.silences.view(now, counted).into();
    }
    if is_asked("receivers") {
        answer["receivers"] = receivers(notifier);
    }
    if is_asked("notifications") {
        answer["notifications"] = notifier.history.values().cloned().collect();
    }
    answer
}

fn moment(time: Option<Timestamp>) -> Json {
    time.map_or(Json::Null, |time| time.to_string().into())
}

/// What the link to a notification is about; null if it is not one of ours.
fn link(notifier: &Notifier, id: &str, signature: &str) -> Json {
    let Some(link) = notifier.settings.link.as_ref().filter(|link| link.is_signed(id, signature)) else {
        return Json::Null;
    };
    let group = notifier.groups.iter().find(|(_, group)| group.firing_id.as_deref() == Some(id));
    let mut answer = match group {
        None => json!({ "state": "over" }),
        Some((key, group)) => {
            let mut view = group_view(notifier, key, group);
            let firing = group.members.iter().filter_map(|fingerprint| notifier.alerts.get(fingerprint));
            let firing = firing.filter(|alert| alert.is_firing);
            view["state"] = if firing.clone().next().is_some() { "firing" } else { "over" }.into();
            view["firing"] = firing.clone().count().into();
            view["listed"] = firing.take(LISTED_MAX).map(|alert| alert.brief()).collect();
            view
        }
    };
    answer["notify"] = notifier.settings.name.as_ref().into();
    answer["url"] = link.url.as_str().into();
    answer
}

fn receivers(notifier: &Notifier) -> Json {
    let receivers = notifier.settings.receivers.iter();
    receivers
        .map(|receiver| {
            let spent = notifier.spent.get(&receiver.name);
            json!({
                "name": receiver.name,
                "budget": receiver.budget.map(|budget| budget.max),
                "waiting_for_digest": spent.map_or(0, |spent| spent.waiting.len()),
                "digest_at": moment(spent.zip(receiver.budget).and_then(|(spent, budget)| spent.due(budget))),
            })
        })
        .collect()
}

fn group_view(notifier: &Notifier, key: &str, group: &Group) -> Json {
    let route = notifier.settings.tree.by_id(&group.route);
    let steps = notifier.settings.steps(&group.route);
    let muted_by = route.and_then(|route| notifier.muting_interval(route, notifier.now));
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
        "muted_by": muted_by.map(|(name, _)| name).into_iter().collect::<Vec<_>>(),
        "acknowledged": group.acknowledgement.as_ref().map(Acknowledgement::brief),
    })
}

/// The last notification of each alert in each group: found once for all of them, as there may be very many.
fn last_told(notifier: &Notifier) -> HashMap<(&str, &str), &Json> {
    let mut last = HashMap::new();
    for told in notifier.history.values() {
        let Some(key) = told["group_key"].as_str() else { continue };
        for fingerprint in told["alerts"].as_array().into_iter().flatten().filter_map(Json::as_str) {
            last.insert((key, fingerprint), told);
        }
    }
    last
}

/// An alert, and for each of its groups the one cause why its receiver was told or not.
fn alert_view(notifier: &Notifier, fingerprint: &str, last: &HashMap<(&str, &str), &Json>) -> Json {
    let alert = &notifier.alerts[fingerprint];
    let silenced_by: Vec<_> = notifier.silences.muting(alert, notifier.now).collect();
    let inhibited_by: Vec<_> =
        notifier.inhibitor.inhibiting(|name| alert.label(name)).map(|(_, by)| by).into_iter().collect();
    let quiet = notifier.quiet(fingerprint, notifier.now);
    let keys = notifier.memberships.get(fingerprint).into_iter().flatten();
    let groups = keys.filter_map(|key| Some((key, notifier.groups.get(key)?)));
    let verdicts: Vec<_> = groups
        .map(|(key, group)| {
            let last = last.get(&(key.as_str(), fingerprint)).copied();
            verdict(notifier, fingerprint, key, group, quiet.as_ref(), last)
        })
        .collect();
    json!({
        "fingerprint": fingerprint,
        "labels": alert.labels,
        "firing": alert.is_firing,
        "starts_at": alert.starts_at.to_string(),
        "ends_at": moment(alert.ends_at),
        "updated_at": alert.updated.to_string(),
        "record": alert.record,
        "silenced_by": silenced_by,
        "inhibited_by": inhibited_by,
        "receivers": verdicts,
    })
}

/// Why a receiver was told of an alert or not: one cause.
fn verdict(
    notifier: &Notifier,
    fingerprint: &str,
    key: &str,
    group: &Group,
    quiet: Option<&Quiet>,
    last: Option<&Json>,
) -> Json {
    let settings = &notifier.settings;
    let route = settings.tree.by_id(&group.route);
    let receiver = route.map_or("", |route| route.receiver.as_str());
    let mut verdict = BTreeMap::from([("group", Json::from(key)), ("receiver", receiver.into())]);
    let mut say = |cause: &str, more: &[(&'static str, Json)]| {
        verdict.insert("cause", cause.into());
        verdict.extend(more.iter().cloned());
    };
    let interval = route.and_then(|route| notifier.muting_interval(route, notifier.now));
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
