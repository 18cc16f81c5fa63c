//! The state of `notify`: which alerts there are, which groups they form, and when whom is told what.
//!
//! Time is event time. A moment has come when something later was seen: a record or a watermark behind it. So what belongs to a
//! moment is known when it is acted on, however records were cut into batches.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value as Json, json};
use tocsin_config::interval::Interval;
use tocsin_config::matcher::Matchers;
use tocsin_config::silence::Silence;
use tocsin_pipeline::operator::Reason;
use tocsin_pipeline::time::Timestamp;

use super::alert::{Alert, RULE};
use super::budget::{Budget, Spent};
use super::group::{Acknowledgement, Cause, Group};
use super::inhibit::{InhibitOptions, Inhibitor};
use super::record::{self, Link};
use super::route::{Route, Tree};
use super::silence::{Muted, Silences};

/// How long it is remembered, and of how much at most, that somebody takes care of what is not known.
const EARLY: Duration = Duration::from_secs(3600);
const EARLY_MAX: usize = 1000;
/// How many of the last notifications are known, and how many alerts of each.
const HISTORY_MAX: usize = 1000;
const REMEMBERED_MAX: usize = 20;

/// What a receiver is told and how often.
#[derive(Clone, Debug)]
pub(super) struct Receiver {
    pub name: String,
    pub tells_resolved: bool,
    pub budget: Option<Budget>,
}

/// The configuration as it runs.
pub(super) struct Settings {
    pub name: Arc<str>,
    pub tree: Tree,
    pub inhibit: Vec<InhibitOptions>,
    pub intervals: BTreeMap<String, Interval>,
    /// In the order of the ports: the operator's own name comes first.
    pub receivers: Vec<Receiver>,
    pub silences: Vec<Silence>,
    pub is_critical: Matchers,
    pub max_alerts: usize,
    pub link: Option<Link>,
}

impl Settings {
    pub(super) fn port(&self, receiver: &str) -> usize {
        self.receivers.iter().position(|known| known.name == receiver).unwrap_or(0)
    }

    fn receiver(&self, name: &str) -> &Receiver {
        &self.receivers[self.port(name)]
    }

    pub(super) fn steps(&self, route: &str) -> &[(Duration, String)] {
        self.tree.by_id(route).map_or(&[], |route| &route.escalate)
    }
}

/// What a timer is of. The order is that in which timers of one moment fire.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// An alert of which nothing more was heard.
    Alert(String),
    /// A silence begins or ends.
    Silences,
    Group(String),
    /// The digest of a receiver.
    Digest(String),
}

/// Why nobody is told of an alert that a group has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Quiet {
    Silenced(Vec<String>),
    /// By the alert of this fingerprint.
    Inhibited(String),
}

/// Something that is told: at which port, when, what.
pub(super) type Told = (usize, Timestamp, Json);

pub(super) struct Notifier {
    pub settings: Arc<Settings>,
    /// By fingerprint.
    pub alerts: BTreeMap<String, Alert>,
    /// By key.
    pub groups: BTreeMap<String, Group>,
    pub silences: Silences,
    /// Receivers with a budget, by name.
    pub spent: BTreeMap<String, Spent>,
    /// The last notifications, in brief.
    pub history: BTreeMap<(Timestamp, String), Json>,
    /// Who takes care of what has not been told yet, and when they said so: see [`Self::acknowledge`].
    pub early: BTreeMap<String, (String, Timestamp)>,
    timers: BTreeSet<(Timestamp, Timer)>,
    /// When silences change next, as it stands in the timers.
    silences_timer: Option<Timestamp>,
    /// The alerts that fire and keep others quiet.
    pub inhibitor: Inhibitor,
    /// The groups of each alert.
    pub memberships: BTreeMap<String, BTreeSet<String>>,
    /// Up to here all timers have fired.
    pub now: Timestamp,
    /// The key groups that have changed since the last snapshot.
    pub changed: BTreeSet<u16>,
    pub told: Vec<Told>,
}

impl Notifier {
    pub(super) fn new(settings: Arc<Settings>) -> Self {
        let silences = Silences::of(&settings.silences);
        let mut notifier = Self {
            silences,
            inhibitor: Inhibitor::build(&settings.inhibit),
            settings,
            alerts: BTreeMap::new(),
            groups: BTreeMap::new(),
            spent: BTreeMap::new(),
            history: BTreeMap::new(),
            early: BTreeMap::new(),
            timers: BTreeSet::new(),
            silences_timer: None,
            memberships: BTreeMap::new(),
            now: Timestamp::MIN,
            changed: BTreeSet::new(),
            told: Vec::new(),
        };
        notifier.time_silences();
        notifier
    }

    /// Everything before `time` has been seen: what was to happen until then happens.
    pub(super) fn advance(&mut self, time: Timestamp) {
        while let Some((moment, timer)) = self.timers.first().filter(|(moment, _)| *moment < time).cloned() {
            self.timers.pop_first();
            self.now = self.now.max(moment);
            match timer {
                Timer::Alert(fingerprint) => self.expire(&fingerprint, moment),
                Timer::Silences => {
                    self.silences_timer = None;
                    self.silences_changed(moment);
                }
                Timer::Group(key) => {
                    if let Some(group) = self.groups.get_mut(&key) {
                        group.timer = None;
                    }
                    self.look(&key, moment);
                }
                Timer::Digest(receiver) => {
                    if let Some(spent) = self.spent.get_mut(&receiver) {
                        spent.timer = None;
                    }
                    self.tell_digest(&receiver, moment);
                }
            }
        }
        self.now = self.now.max(time);
    }

    /// All input has ended: what waits is told in the order of its moments. Nothing is repeated for ever, and nothing that a
    /// later record would have ended is ended.
    pub(super) fn finish(&mut self) {
        let mut due: Vec<_> = self.groups.iter().filter_map(|(key, group)| Some((group.due?, key.clone()))).collect();
        due.sort();
        for (moment, key) in due {
            self.look(&key, moment);
        }
        let settings = Arc::clone(&self.settings);
        let due = |(name, spent): (&String, &Spent)| Some((spent.due(settings.receiver(name).budget?)?, name.clone()));
        let mut digests: Vec<_> = self.spent.iter().filter_map(due).collect();
        digests.sort();
        for (moment, receiver) in digests {
            self.tell_digest(&receiver, moment);
        }
    }

    fn mark(&mut self, key: &str) {
        self.changed.insert(key_of(key));
    }

    /// An alert has begun, changed or ended.
    ///
    /// # Errors
    /// Why it is not taken.
    pub(super) fn take(&mut self, record: Json, time: Timestamp) -> Result<(), (Reason, &'static str)> {
        let (fingerprint, next) = Alert::of(record, time).map_err(|why| (Reason::ProgramError, why))?;
        self.advance(time);
        let before = self.alerts.get(&fingerprint).cloned();
        match &before {
            // Nobody was told that it fires.
            None if !next.is_firing => return Ok(()),
            None if self.alerts.len() >= self.settings.max_alerts => {
                return Err((Reason::StateFull, "as many alerts are known as may be"));
            }
            None => drop(self.alerts.insert(fingerprint.clone(), next)),
            Some(known) => {
                if known.labels != next.labels {
                    self.inhibitor.set(&fingerprint, |name| known.label(name), false);
                }
                self.alerts.get_mut(&fingerprint).expect("it is known").follow(next);
            }
        }
        let alert = &self.alerts[&fingerprint];
        let is_firing = alert.is_firing;
        let has_turned = before.as_ref().is_none_or(|before| before.is_firing != is_firing);
        // A change of level changes labels, and with them routes.
        let moved = before.filter(|before| before.labels != alert.labels);
        let has_moved = moved.is_some();
        self.time_alert(&fingerprint);
        self.mark(&fingerprint);
        let alert = &self.alerts[&fingerprint];
        self.inhibitor.set(&fingerprint, |name| alert.label(name), is_firing);
        if is_firing {
            self.join(&fingerprint, moved, time);
        }
        if has_turned || has_moved {
            self.alert_turned(&fingerprint, time);
        }
        Ok(())
    }

    /// Nothing more was heard of an alert that somebody else would have told of.
    fn expire(&mut self, fingerprint: &str, at: Timestamp) {
        let Some(alert) = self.alerts.get_mut(fingerprint) else { return };
        if alert.deadline().is_none_or(|deadline| deadline > at) {
            return self.time_alert(fingerprint);
        }
        alert.expire();
        self.mark(fingerprint);
        self.alert_turned(fingerprint, at);
    }

    fn time_alert(&mut self, fingerprint: &str) {
        if let Some(deadline) = self.alerts.get(fingerprint).and_then(Alert::deadline) {
            self.timers.insert((deadline, Timer::Alert(fingerprint.to_owned())));
        }
    }

    /// An alert has begun to fire or is over: its groups are to be told, and those that it kept quiet may be.
    fn alert_turned(&mut self, fingerprint: &str, at: Timestamp) {
        let Some(alert) = self.alerts.get(fingerprint) else { return };
        let is_source = self.inhibitor.set(fingerprint, |name| alert.label(name), alert.is_firing);
        for key in self.memberships.get(fingerprint).cloned().unwrap_or_default() {
            self.schedule(&key, at);
        }
        if is_source {
            self.reconsider(at);
        }
        self.forget_if_over(fingerprint);
    }

    /// What was kept quiet may have to be told.
    fn reconsider(&mut self, at: Timestamp) {
        let keys: Vec<_> =
            self.groups.iter().filter(|(_, group)| group.is_suppressed).map(|(key, _)| key.clone()).collect();
        for key in keys {
            self.schedule(&key, at);
        }
    }

    /// Puts a firing alert into the groups of its routes. `moved`: what it was when it had other labels.
    fn join(&mut self, fingerprint: &str, moved: Option<Alert>, at: Timestamp) {
        let settings = Arc::clone(&self.settings);
        let alert = &self.alerts[fingerprint];
        let routes = settings.tree.matching(|name| alert.label(name)).into_iter();
        let places: BTreeMap<_, _> = routes
            .map(|route| {
                let labels = route.group(&alert.labels);
                (group_key(route, &labels), (route, labels))
            })
            .collect();
        let known = self.memberships.entry(fingerprint.to_owned()).or_default();
        let left: Vec<_> = known.iter().filter(|key| !places.contains_key(*key)).cloned().collect();
        known.extend(places.keys().cloned());
        for (key, (route, labels)) in places {
            let group = self.groups.entry(key.clone()).or_insert_with(|| Group::new(&route.id, labels, key_of(&key)));
            let is_new = group.members.insert(fingerprint.to_owned());
            // What has become of it is news even to those who know it.
            let is_back = group.moved.remove(fingerprint).is_some();
            let is_other = (moved.is_some() || is_back) && group.told.remove(fingerprint);
            if is_new || is_back || is_other {
                self.schedule(&key, at);
            }
        }
        if let Some(moved) = moved {
            // To those it has left it is over.
            for key in left {
                if let Some(group) = self.groups.get_mut(&key) {
                    group.moved.entry(fingerprint.to_owned()).or_insert_with(|| moved.ended(at));
                    self.schedule(&key, at);
                }
            }
        }
    }

    /// An alert that is over, and of which no group has anything to tell, is not known any more.
    fn forget_if_over(&mut self, fingerprint: &str) {
        let is_member = self.memberships.get(fingerprint).is_some_and(|groups| !groups.is_empty());
        if !is_member && self.alerts.get(fingerprint).is_some_and(|alert| !alert.is_firing) {
            self.alerts.remove(fingerprint);
            self.memberships.remove(fingerprint);
            self.mark(fingerprint);
        }
    }

    /// An alert as it is to a group.
    fn member(&self, key: &str, fingerprint: &str) -> &Alert {
        let moved = self.groups.get(key).and_then(|group| group.moved.get(fingerprint));
        moved.unwrap_or_else(|| &self.alerts[fingerprint])
    }

    /// A group that has no alert any more is over.
    fn tidy(&mut self, key: &str) {
        if self.groups.get(key).is_some_and(|group| group.members.is_empty())
            && let Some(group) = self.groups.remove(key)
        {
            if let Some(timer) = group.timer {
                self.timers.remove(&(timer, Timer::Group(key.to_owned())));
            }
            self.mark(key);
        }
    }

    /// Something of a group has changed at that time.
    fn schedule(&mut self, key: &str, at: Timestamp) {
        let settings = Arc::clone(&self.settings);
        let Some(group) = self.groups.get_mut(key) else { return };
        if let Some(route) = settings.tree.by_id(&group.route) {
            group.schedule(at, route);
        }
        self.mark(key);
        self.time_group(key);
        // What is due leaves at once; what has to wait does so.
        if self.groups.get(key).and_then(|group| group.due).is_some_and(|due| due <= at) {
            self.look(key, at);
        }
    }

    fn time_group(&mut self, key: &str) {
        let settings = Arc::clone(&self.settings);
        let Some(group) = self.groups.get_mut(key) else { return };
        let Some(route) = settings.tree.by_id(&group.route) else { return };
        let repeat = group.repeats_at(route).filter(|_| group.acknowledgement.is_none());
        let escalation = group.escalates_at(settings.steps(&group.route));
        let next = [group.due, repeat, escalation].into_iter().flatten().min();
        if next != group.timer {
            if let Some(timer) = std::mem::replace(&mut group.timer, next) {
                self.timers.remove(&(timer, Timer::Group(key.to_owned())));
            }
            if let Some(next) = next {
                self.timers.insert((next, Timer::Group(key.to_owned())));
            }
        }
    }

    /// Why nobody is told of an alert now.
    pub(super) fn quiet(&self, fingerprint: &str, now: Timestamp) -> Option<Quiet> {
        let alert = &self.alerts[fingerprint];
        let silences: Vec<_> = self.silences.muting(alert, now).map(str::to_owned).collect();
        if !silences.is_empty() {
            return Some(Quiet::Silenced(silences));
        }
        let (_, by) = self.inhibitor.inhibiting(|name| alert.label(name))?;
        Some(Quiet::Inhibited(by.to_owned()))
    }

    /// The interval that keeps a route quiet now, and when that may change.
    pub(super) fn muting_interval(&self, route: &Route, now: Timestamp) -> Option<(String, Option<Timestamp>)> {
        let intervals = &self.settings.intervals;
        let named = |name: &String| intervals.get(name).map(|interval| (name.clone(), interval));
        let next = |names: &[String]| {
            names.iter().filter_map(named).filter_map(|(_, interval)| interval.next_change(now)).min()
        };
        if let Some((name, _)) = route.mute.iter().filter_map(named).find(|(_, interval)| interval.contains(now)) {
            return Some((name, next(&route.mute)));
        }
        let is_active = route.active.iter().filter_map(named).any(|(_, interval)| interval.contains(now));
        (!route.active.is_empty() && !is_active).then(|| (route.active.join(", "), next(&route.active)))
    }

    /// The moment of a group has come: tells what is to be told.
    fn look(&mut self, key: &str, at: Timestamp) {
        let settings = Arc::clone(&self.settings);
        self.mark(key);
        let Some(group) = self.groups.get(key) else { return };
        let Some(route) = settings.tree.by_id(&group.route) else { return };
        if let Some((_, until)) = self.muting_interval(route, at) {
            let group = self.groups.get_mut(key).expect("it is there");
            group.is_suppressed = true;
            group.due = until;
            return self.time_muted(key);
        }
        let (mut firing, mut resolved, mut gone) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let mut is_suppressed = false;
        for fingerprint in group.members.clone() {
            let is_firing = self.member(key, &fingerprint).is_firing;
            match self.quiet(&fingerprint, at) {
                None if is_firing => drop(firing.insert(fingerprint)),
                None => drop(resolved.insert(fingerprint)),
                Some(quiet) => {
                    is_suppressed = true;
                    if let Quiet::Silenced(silences) = &quiet {
                        let alert = &self.alerts[&fingerprint];
                        let mut is_new = false;
                        for id in silences {
                            is_new |= self.silences.mute(id, &route.receiver, &fingerprint, alert);
                        }
                        if is_new {
                            self.mark(SILENCES);
                        }
                    }
                    if !is_firing && !self.groups[key].owed.contains(&fingerprint) {
                        gone.insert(fingerprint);
                    }
                }
            }
        }
        let group = self.groups.get_mut(key).expect("it is there");
        group.is_suppressed = is_suppressed;
        let tells_resolved = settings.receiver(&route.receiver).tells_resolved;
        let is_due = group.due.is_some_and(|due| due <= at);
        if is_due {
            group.due = None;
        }
        let is_attended = group.is_attended(&firing);
        let changed = if is_due { group.cause(&firing, &resolved, tells_resolved) } else { None };
        let repeats = group.repeats_at(route).is_some_and(|repeat| repeat <= at) && !firing.is_empty() && !is_attended;
        let cause = changed.or_else(|| repeats.then_some(Cause::Repeat));
        if let Some(cause) = cause {
            let none = BTreeSet::new();
            self.tell(key, route, cause, &firing, if tells_resolved { &resolved } else { &none }, at);
        }
        self.escalate(key, &firing, at);
        // What is over and told, or was never told, is none of the group's any more.
        let group = self.groups.get_mut(key).expect("it is there");
        let has_told = cause.is_some() || !tells_resolved;
        gone.extend(resolved.into_iter().filter(|alert| has_told || !group.owed.contains(alert)));
        for fingerprint in gone {
            let group = self.groups.get_mut(key).expect("it is there");
            group.members.remove(&fingerprint);
            group.owed.remove(&fingerprint);
            group.moved.remove(&fingerprint);
            if let Some(places) = self.memberships.get_mut(&fingerprint) {
                places.remove(key);
            }
            self.forget_if_over(&fingerprint);
        }
        self.tidy(key);
        self.time_group(key);
    }

    /// A group that an interval keeps quiet is looked at when that may have changed, and not before.
    fn time_muted(&mut self, key: &str) {
        let Some(group) = self.groups.get_mut(key) else { return };
        let next = group.due;
        if let Some(timer) = std::mem::replace(&mut group.timer, next) {
            self.timers.remove(&(timer, Timer::Group(key.to_owned())));
        }
        if let Some(next) = next {
            self.timers.insert((next, Timer::Group(key.to_owned())));
        }
    }

    fn tell(
        &mut self,
        key: &str,
        route: &Route,
        cause: Cause,
        firing: &BTreeSet<String>,
        resolved: &BTreeSet<String>,
        at: Timestamp,
    ) {
        let settings = Arc::clone(&self.settings);
        let group = self.groups.get_mut(key).expect("asked for by its owner");
        group.number += 1;
        let id = record::identity(&settings.name, key, group, at);
        let firing_id = group.firing_id.get_or_insert_with(|| id.clone()).clone();
        if firing.is_empty() {
            (group.unattended_since, group.acknowledgement) = (None, None);
            group.escalated = 0;
        } else if group.unattended_since.is_none() || (group.acknowledgement.is_some() && !group.is_attended(firing)) {
            // Somebody has to be found for what is new.
            (group.unattended_since, group.acknowledgement) = (Some(at), None);
            group.escalated = 0;
        }
        group.last = Some(at);
        group.told.clone_from(firing);
        group.owed.extend(firing.iter().cloned());
        for alert in resolved {
            group.owed.remove(alert);
        }
        let others = if cause == Cause::Resolved { std::mem::take(&mut group.others) } else { BTreeSet::new() };
        let notification = record::Notification {
            settings: &settings,
            key,
            group,
            receiver: &route.receiver,
            reason: cause.as_str(),
            id: &id,
            firing_id: &firing_id,
            at,
        };
        let member = |name: &String| group.moved.get(name).unwrap_or_else(|| &self.alerts[name]);
        let listed: Vec<_> = firing.iter().chain(resolved).map(|name| (name.as_str(), member(name))).collect();
        let record = notification.record(&listed);
        // Those who were told as nobody took care hear of the end too.
        let to = |receiver: &String| (receiver.clone(), notification.to(receiver).record(&listed));
        let more: Vec<_> = others.iter().map(to).collect();
        let told: Vec<_> = listed.iter().map(|(fingerprint, _)| (*fingerprint).to_owned()).collect();
        self.send(&route.receiver, record, &told, at);
        self.attend_early(key, &route.receiver, &id);
        for (receiver, record) in more {
            self.send(&receiver, record, &told, at);
        }
    }

    /// Tells the next receivers if nobody has taken care in time.
    fn escalate(&mut self, key: &str, firing: &BTreeSet<String>, at: Timestamp) {
        let settings = Arc::clone(&self.settings);
        loop {
            let Some(group) = self.groups.get_mut(key) else { return };
            let steps = settings.steps(&group.route);
            if firing.is_empty() || group.escalates_at(steps).is_none_or(|due| due > at) {
                return;
            }
            let receiver = steps[group.escalated].1.clone();
            group.escalated += 1;
            group.others.insert(receiver.clone());
            group.number += 1;
            let id = record::identity(&settings.name, key, group, at);
            let firing_id = group.firing_id.clone().unwrap_or_else(|| id.clone());
            let notification = record::Notification {
                settings: &settings,
                key,
                group,
                receiver: &receiver,
                reason: "escalated",
                id: &id,
                firing_id: &firing_id,
                at,
            };
            let listed: Vec<_> = firing.iter().map(|alert| (alert.as_str(), &self.alerts[alert])).collect();
            let record = notification.record(&listed);
            let told: Vec<_> = firing.iter().cloned().collect();
            self.send(&receiver, record, &told, at);
        }
    }

    /// Hands a notification of these alerts to its receiver, or the alerts to the digest that the receiver is told when its
    /// budget is spent.
    fn send(&mut self, receiver: &str, record: Json, alerts: &[String], at: Timestamp) {
        let settings = Arc::clone(&self.settings);
        if let Some(budget) = settings.receiver(receiver).budget {
            let spent = self.spent.entry(receiver.to_owned()).or_default();
            let known = alerts.iter().filter_map(|fingerprint| Some((fingerprint, self.alerts.get(fingerprint)?)));
            let is_critical = known
                .clone()
                .any(|(_, alert)| alert.is_firing && settings.is_critical.matches(|name| alert.label(name)));
            if !is_critical && !spent.may_send(budget, at) {
                for (fingerprint, alert) in known {
                    spent.hold(fingerprint, alert.label(RULE).unwrap_or_default(), alert.brief());
                }
                // What was kept quiet may be forgotten by now, and has to be told all the same.
                let listed = record["alerts"].as_array().into_iter().flatten();
                let told = listed.filter_map(|alert| Some((alert["fingerprint"].as_str()?, alert)));
                for (fingerprint, alert) in told.filter(|(fingerprint, _)| !self.alerts.contains_key(*fingerprint)) {
                    spent.hold(fingerprint, alert["alert"].as_str().unwrap_or_default(), alert.clone());
                }
                spent.count += 1;
                spent.since.get_or_insert(at);
                self.remember(&record, "digest");
                self.mark(receiver);
                return self.time_digest(receiver);
            }
            spent.spend(budget, at);
            self.mark(receiver);
        }
        self.remember(&record, "sent");
        self.told.push((settings.port(receiver), at, record));
    }

    fn time_digest(&mut self, receiver: &str) {
        let Some(budget) = self.settings.receiver(receiver).budget else { return };
        let Some(spent) = self.spent.get_mut(receiver) else { return };
        let next = spent.due(budget);
        if next != spent.timer {
            if let Some(timer) = std::mem::replace(&mut spent.timer, next) {
                self.timers.remove(&(timer, Timer::Digest(receiver.to_owned())));
            }
            if let Some(next) = next {
                self.timers.insert((next, Timer::Digest(receiver.to_owned())));
            }
        }
    }

    fn tell_digest(&mut self, receiver: &str, at: Timestamp) {
        let settings = Arc::clone(&self.settings);
        let Some(spent) = self.spent.get_mut(receiver) else { return };
        if spent.since.is_none() {
            return;
        }
        let waiting = spent.take();
        if let Some(budget) = settings.receiver(receiver).budget {
            spent.spend(budget, at);
        }
        let record = record::digest(&settings, receiver, &waiting, at);
        self.mark(receiver);
        self.remember(&record, "sent");
        self.told.push((settings.port(receiver), at, record));
        self.time_digest(receiver);
    }

    /// Keeps a notification in brief, for those who ask later.
    fn remember(&mut self, record: &Json, outcome: &str) {
        let id = record["id"].as_str().unwrap_or_default().to_owned();
        let time = record["time"].as_str().and_then(|time| Timestamp::parse_rfc3339(time.as_bytes()));
        let mut brief = serde_json::Map::new();
        for name in ["time", "receiver", "reason", "state", "group_key", "firing", "resolved", "id", "firing_id"] {
            brief.insert(name.to_owned(), record[name].clone());
        }
        brief.insert("outcome".to_owned(), outcome.into());
        let group = record["group_key"].as_str().and_then(|key| self.groups.get(key));
        if let Some(acknowledgement) = group.and_then(|group| group.acknowledgement.as_ref()) {
            brief.insert("acknowledged".to_owned(), acknowledgement.brief());
        }
        let listed = record["alerts"].as_array().into_iter().flatten();
        let listed: Vec<_> = listed.filter(|alert| alert["fingerprint"].is_string()).take(REMEMBERED_MAX).collect();
        let fingerprints: Vec<_> = listed.iter().map(|alert| &alert["fingerprint"]).collect();
        brief.insert("alerts".to_owned(), json!(fingerprints));
        let labels: Vec<_> = listed.iter().map(|alert| labels_of(alert)).collect();
        brief.insert("alert_labels".to_owned(), json!(labels));
        self.mark(&id);
        self.history.insert((time.unwrap_or(self.now), id), Json::Object(brief));
        while self.history.len() > HISTORY_MAX {
            if let Some(((_, id), _)) = self.history.pop_first() {
                self.mark(&id);
            }
        }
    }

    /// A silence was put in, begins or ends.
    pub(super) fn silences_changed(&mut self, at: Timestamp) {
        for (silence, muted) in self.silences.take_ended(at) {
            self.tell_muted(&silence, &muted, at);
        }
        self.mark(SILENCES);
        self.reconsider(at);
        self.time_silences();
    }

    pub(super) fn time_silences(&mut self) {
        let next = self.silences.next_change(self.now);
        if next != self.silences_timer {
            if let Some(timer) = std::mem::replace(&mut self.silences_timer, next) {
                self.timers.remove(&(timer, Timer::Silences));
            }
            if let Some(next) = next {
                self.timers.insert((next, Timer::Silences));
            }
        }
    }

    /// A silence is over: each receiver that it kept something from is told what that was.
    fn tell_muted(&mut self, silence: &Silence, muted: &Muted, at: Timestamp) {
        let settings = Arc::clone(&self.settings);
        for (receiver, alerts) in &muted.alerts {
            let record = record::summary(&settings, receiver, silence, alerts, muted.more, &self.alerts, at);
            let told: Vec<_> = alerts.keys().cloned().collect();
            self.send(receiver, record, &told, at);
        }
    }

    /// Puts a silence in.
    pub(super) fn silence(&mut self, silence: Silence, at: Timestamp) -> Result<(), &'static str> {
        self.silences.put(silence)?;
        self.silences_changed(at);
        Ok(())
    }

    /// Ends a silence.
    pub(super) fn expire_silence(&mut self, id: &str, at: Timestamp) -> Result<(), &'static str> {
        self.silences.expire(id, at)?;
        self.silences_changed(at);
        Ok(())
    }

    /// Somebody takes care of a group, or of an alert in all its groups: nobody else is told of what has been told. `what` is the
    /// identity of one of its notifications, the key of a group, or the fingerprint of an alert.
    pub(super) fn acknowledge(&mut self, what: &str, by: &str, at: Timestamp) -> Result<(), &'static str> {
        let keys = self.named(what);
        for key in &keys {
            self.attend(key, by, at);
        }
        if keys.is_empty() {
            // After a crash what people said may be read again before the alerts that they meant.
            self.early.retain(|_, (_, said)| said.saturating_add(EARLY) > at);
            if self.early.len() >= EARLY_MAX {
                return Err("nothing of that name is firing");
            }
            self.early.insert(what.to_owned(), (by.to_owned(), at));
            self.mark(SILENCES);
        }
        Ok(())
    }

    /// Somebody takes care of what a group has told.
    fn attend(&mut self, key: &str, by: &str, at: Timestamp) {
        let Some(group) = self.groups.get_mut(key) else { return };
        let (by, alerts) = (by.to_owned(), group.told.clone());
        let acknowledgement = Acknowledgement { by, at, alerts };
        let (brief, since) = (acknowledgement.brief(), group.unattended_since.or(group.last));
        group.acknowledgement = Some(acknowledgement);
        self.mark(key);
        // It is known for as long as what was told, which is longer than the group lasts.
        let told = self.history.iter_mut().filter(|((time, _), told)| {
            told["group_key"] == key && since.is_some_and(|since| since <= *time) && told["acknowledged"].is_null()
        });
        for ((_, id), told) in told {
            told["acknowledged"] = brief.clone();
            self.changed.insert(key_of(id));
        }
        self.time_group(key);
    }

    /// Somebody may have said that they take care before it was known what of. `id` is that of what was told just now.
    fn attend_early(&mut self, key: &str, receiver: &str, id: &str) {
        let Some(group) = self.groups.get(key).filter(|_| !self.early.is_empty()) else { return };
        let own = record::own_identity(id, receiver);
        let is_meant = |what: &str| {
            what == key || what == own || group.firing_id.as_deref() == Some(what) || group.told.contains(what)
        };
        let Some(what) = self.early.keys().find(|what| is_meant(what)).cloned() else { return };
        if let Some((by, at)) = self.early.remove(&what) {
            self.attend(key, &by, at);
            self.mark(SILENCES);
        }
    }

    /// The groups that somebody means by the identity of one of their notifications, their key, or the fingerprint of an alert.
    pub(super) fn named(&self, what: &str) -> Vec<String> {
        let keys: Vec<_> = self
            .groups
            .iter()
            .filter(|(key, group)| {
                *key == what || group.firing_id.as_deref() == Some(what) || group.members.contains(what)
            })
            .map(|(key, _)| key.clone())
            .collect();
        if !keys.is_empty() {
            return keys;
        }
        // A later notification of it.
        let meant = self.history.iter().filter(|((_, id), _)| id == what);
        let keys = meant.filter_map(|(_, brief)| brief["group_key"].as_str());
        keys.filter(|key| self.groups.contains_key(*key)).map(str::to_owned).collect()
    }

    /// Takes an alert back. Whoever looks at a checkpoint asks what it keeps quiet before anything is put into order.
    pub(super) fn restore_alert(&mut self, fingerprint: String, alert: Alert) {
        self.inhibitor.set(&fingerprint, |name| alert.label(name), alert.is_firing);
        self.alerts.insert(fingerprint, alert);
    }

    /// Takes a group back, and what it says of its alerts.
    pub(super) fn restore_group(&mut self, key: String, group: Group) {
        for fingerprint in &group.members {
            self.memberships.entry(fingerprint.clone()).or_default().insert(key.clone());
        }
        self.groups.insert(key, group);
    }

    /// Puts what was read back from a checkpoint into order: timers, and alerts whose routes have changed into groups that there
    /// are.
    pub(super) fn settle(&mut self) {
        let settings = Arc::clone(&self.settings);
        let lost: Vec<_> = self
            .groups
            .iter()
            .filter(|(_, group)| settings.tree.by_id(&group.route).is_none())
            .map(|(key, _)| key.clone())
            .collect();
        for key in lost {
            self.groups.remove(&key);
            for groups in self.memberships.values_mut() {
                groups.remove(&key);
            }
            self.mark(&key);
        }
        let now = self.now;
        let alerts: Vec<_> = self.alerts.iter().map(|(key, alert)| (key.clone(), alert.is_firing)).collect();
        for (fingerprint, is_firing) in alerts {
            self.time_alert(&fingerprint);
            match is_firing {
                true => self.join(&fingerprint, None, now),
                false => self.forget_if_over(&fingerprint),
            }
        }
        for key in self.groups.keys().cloned().collect::<Vec<_>>() {
            self.time_group(&key);
        }
        for receiver in self.spent.keys().cloned().collect::<Vec<_>>() {
            self.time_digest(&receiver);
        }
        self.time_silences();
    }

    /// When the next timer is to fire.
    pub(super) fn next_deadline(&self) -> Option<Timestamp> {
        self.timers.first().map(|(moment, _)| *moment)
    }

    pub(super) fn bytes(&self) -> usize {
        self.alerts.values().map(Alert::bytes).sum::<usize>() + self.groups.len() * 512 + self.history.len() * 2048
    }
}

/// The key group of what is known by a text.
pub(super) fn key_of(key: &str) -> u16 {
    tocsin_pipeline::operator::key_group(key.as_bytes())
}

/// The labels of an alert by its record, with the name of its rule as matchers see it.
fn labels_of(record: &Json) -> Json {
    let mut labels = record["labels"].clone();
    if let (Some(labels), Json::String(rule)) = (labels.as_object_mut(), &record["alert"]) {
        labels.entry(RULE).or_insert_with(|| rule.clone().into());
    }
    labels
}

/// What a group is called: as in Alertmanager, but for routes that only their place tells apart.
fn group_key(route: &Route, labels: &BTreeMap<String, String>) -> String {
    let key = route.group_key(labels);
    if route.id == route.key { key } else { format!("{key} of {}", route.id) }
}

/// The key of the silences among the pieces of a snapshot.
pub(super) const SILENCES: &str = "silences";
