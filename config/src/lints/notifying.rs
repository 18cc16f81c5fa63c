//! What may be wrong with who is told of alerts.

use std::collections::BTreeSet;

use super::matching::{RULE, all, all_follow, contradiction, is_universal};
use super::view::{Finding, Subject, View, each_route};
use crate::facts::{NotifierFacts, RouteFacts};
use crate::interval::Interval;
use crate::matcher::{Matcher, Matchers};
use crate::plan::ComponentId;
use crate::types;

/// The receiver whose notifications leave by the notifier's own name.
const DEFAULT: &str = "default";
/// In `group_by`: all labels.
const ALL: &str = "...";

/// So many routes before one are looked at for one that takes all its alerts: more are not worth the time.
const BEFORE_MAX: usize = 100;

fn told(duration: std::time::Duration) -> String {
    types::Duration(duration).to_string()
}

/// The matchers of a route and of all that it stands in.
fn path<'r>(route: &'r RouteFacts, above: &[&'r RouteFacts]) -> Vec<&'r Matcher> {
    above.iter().copied().chain([route]).flat_map(|route| &route.matchers.0).collect()
}

/// Where the matchers of a route are written; the route itself where it has none.
fn matchers_option(route: &RouteFacts) -> String {
    if route.matchers.0.is_empty() { route.option.clone() } else { format!("{}.matchers", route.option) }
}

/// An option of a route.
fn option(route: &RouteFacts, name: &str) -> String {
    if route.option.is_empty() { name.to_owned() } else { format!("{}.{name}", route.option) }
}

/// Calls for each route of each notifier.
fn routes<'v>(view: &'v View<'_>, mut call: impl FnMut(ComponentId, &'v RouteFacts, &[&'v RouteFacts])) {
    for (id, notifier) in view.notifiers() {
        each_route(&notifier.root, &mut Vec::new(), &mut |route, above| call(id, route, above));
    }
}

pub(super) fn route_unreachable(view: &View<'_>, found: &mut Vec<Finding>) {
    routes(view, |id, parent, above| {
        let outer = path(parent, above);
        for (at, route) in parent.routes.iter().enumerate() {
            let matchers: Vec<_> = outer.iter().copied().chain(&route.matchers.0).collect();
            let takes_all =
                |before: &&RouteFacts| !before.is_continued && all_follow(&all(&before.matchers), &matchers);
            if let Some(before) = parent.routes[..at].iter().take(BEFORE_MAX).find(takes_all) {
                let message = "no alert gets here: a route before it takes all that this one is for";
                let finding = Finding::new(Subject::Component(id), matchers_option(route), message)
                    .help("put it before that route, or give that route `continue = true`")
                    .note(Subject::Component(id), matchers_option(before), "this route");
                found.push(finding);
            }
        }
    });
}

pub(super) fn matchers_contradict(view: &View<'_>, found: &mut Vec<Finding>) {
    let message = |label: &str| format!("no alert is both: what is asked of `{label}` excludes itself");
    routes(view, |id, route, above| {
        let outer = above.last().map_or(Vec::new(), |parent| path(parent, &above[..above.len() - 1]));
        if contradiction(&outer).is_some() {
            return;
        }
        let Some(label) = contradiction(&path(route, above)) else { return };
        let help =
            "all matchers of a route, and of those that it stands in, must be true: write two routes, or `=~\"a|b\"`";
        let mut finding = Finding::new(Subject::Component(id), matchers_option(route), message(label)).help(help);
        let outer = above.iter().find(|outer| outer.matchers.0.iter().any(|matcher| matcher.name == label));
        if let Some(outer) = outer {
            finding = finding.note(Subject::Component(id), matchers_option(outer), "it stands in this route");
        }
        found.push(finding);
    });
    for (id, notifier) in view.notifiers() {
        for inhibit in &notifier.inhibits {
            for (side, matchers) in [("source", &inhibit.source), ("target", &inhibit.target)] {
                if let Some(label) = contradiction(&all(matchers)) {
                    let help = "all matchers must be true: write two rules, or `=~\"a|b\"`";
                    let option = format!("{}.{side}", inhibit.option);
                    found.push(Finding::new(Subject::Component(id), option, message(label)).help(help));
                }
            }
        }
    }
}

pub(super) fn route_without_alerts(view: &View<'_>, found: &mut Vec<Finding>) {
    for (id, notifier) in view.notifiers() {
        let Some(labels) = view.labels_at(id) else { continue };
        let is_taken = |matchers: &[&Matcher]| labels.iter().any(|labels| labels.may_match(matchers));
        each_route(&notifier.root, &mut Vec::new(), &mut |route, above| {
            let matchers = path(route, above);
            let outer = above.last().map_or(Vec::new(), |parent| path(parent, &above[..above.len() - 1]));
            if contradiction(&matchers).is_none() && is_taken(&outer) && !is_taken(&matchers) {
                let message = "no rule makes alerts that take this route";
                let help = "compare its matchers with the `labels` and `group_by` of the rules that come here";
                found.push(Finding::new(Subject::Component(id), matchers_option(route), message).help(help));
            }
        });
    }
}

/// Who is told, with where each is named first.
fn receivers(notifier: &NotifierFacts) -> Vec<(String, String)> {
    let mut receivers: Vec<(String, String)> = Vec::new();
    each_route(&notifier.root, &mut Vec::new(), &mut |route, above| {
        // What all alerts take that get to a route ends within it.
        let is_passed = route.routes.iter().any(|within| within.matchers.0.iter().all(is_universal));
        let parent = above.last();
        if !is_passed && receivers.iter().all(|(known, _)| *known != route.receiver) {
            let names_it = parent.is_none_or(|parent| parent.receiver != route.receiver);
            let place = if names_it { option(route, "receiver") } else { route.option.clone() };
            receivers.push((route.receiver.clone(), place));
        }
        for (at, (_, receiver)) in route.escalate.iter().enumerate() {
            if receivers.iter().all(|(known, _)| known != receiver) {
                receivers.push((receiver.clone(), option(route, &format!("escalate[{at}].receiver"))));
            }
        }
    });
    receivers
}

pub(super) fn receiver_unread(view: &View<'_>, found: &mut Vec<Finding>) {
    for (id, notifier) in view.notifiers() {
        let name = view.name(id);
        for (receiver, option) in receivers(notifier) {
            let (output, port) = match receiver.as_str() {
                DEFAULT => (name.to_owned(), Some(0)),
                receiver => (format!("{name}.{receiver}"), view.port(id, receiver)),
            };
            if port.is_some_and(|port| !view.is_read(id, port)) {
                let message =
                    format!("nobody is told: no sink reads `{output}`, where notifications for `{receiver}` leave");
                let help = format!("add `{output}` to the `inputs` of a sink");
                found.push(Finding::new(Subject::Component(id), option, message).help(help));
            }
        }
    }
}

pub(super) fn repeat_below_interval(view: &View<'_>, found: &mut Vec<Finding>) {
    routes(view, |id, route, above| {
        let is_new = above.last().is_none_or(|parent| {
            (parent.repeat_interval, parent.group_interval) != (route.repeat_interval, route.group_interval)
        });
        if is_new && route.repeat_interval < route.group_interval {
            let message = format!(
                "nothing is repeated before `group_interval` has passed, which is {}: {} has no effect",
                told(route.group_interval),
                told(route.repeat_interval)
            );
            let help = "write a `repeat_interval` that is some times the `group_interval`";
            found.push(Finding::new(Subject::Component(id), option(route, "repeat_interval"), message).help(help));
        }
    });
}

pub(super) fn wait_above_interval(view: &View<'_>, found: &mut Vec<Finding>) {
    routes(view, |id, route, above| {
        let is_new = above.last().is_none_or(|parent| {
            (parent.group_wait, parent.group_interval) != (route.group_wait, route.group_interval)
        });
        if is_new && route.group_wait > route.group_interval {
            let message = format!(
                "the first notification of a group waits {}, longer than any after it, which wait {}",
                told(route.group_wait),
                told(route.group_interval)
            );
            let help = "people want to hear first of what is new: write a shorter `group_wait`";
            found.push(Finding::new(Subject::Component(id), option(route, "group_wait"), message).help(help));
        }
    });
}

pub(super) fn inhibit_without_alerts(view: &View<'_>, found: &mut Vec<Finding>) {
    for (id, notifier) in view.notifiers() {
        let Some(labels) = view.labels_at(id) else { continue };
        for inhibit in &notifier.inhibits {
            for (side, matchers) in [("source", &inhibit.source), ("target", &inhibit.target)] {
                let is_possible = contradiction(&all(matchers)).is_none();
                if is_possible && !labels.iter().any(|labels| labels.may_match(&all(matchers))) {
                    let message =
                        format!("no rule makes alerts that are a {side} of this, so that it keeps nothing silent");
                    let help = "compare its matchers with the `labels` and `group_by` of the rules that come here";
                    let option = format!("{}.{side}", inhibit.option);
                    found.push(Finding::new(Subject::Component(id), option, message).help(help));
                }
            }
        }
    }
}

pub(super) fn inhibits_itself(view: &View<'_>, found: &mut Vec<Finding>) {
    for (id, notifier) in view.notifiers() {
        for inhibit in &notifier.inhibits {
            let (source, target) = (all(&inhibit.source), all(&inhibit.target));
            if all_follow(&source, &target) && all_follow(&target, &source) {
                let message = "sources and targets are the same alerts, which do not keep each other silent";
                let help = "say in `source` what is worse, and in `target` what need not be told beside it";
                found.push(Finding::new(Subject::Component(id), &inhibit.option, message).help(help));
            }
        }
    }
}

pub(super) fn inhibits_everything(view: &View<'_>, found: &mut Vec<Finding>) {
    for (id, notifier) in view.notifiers() {
        for inhibit in &notifier.inhibits {
            let is_for_all = |matchers: &Matchers| matchers.0.iter().all(is_universal);
            if is_for_all(&inhibit.target) && !is_for_all(&inhibit.source) && inhibit.equal.is_empty() {
                let message = "while a source of this fires, nobody is told of anything else";
                let help = "say with `target` which alerts, or with `equal` that they have something in common";
                found.push(Finding::new(Subject::Component(id), &inhibit.option, message).help(help));
            }
        }
    }
}

pub(super) fn equal_unknown_label(view: &View<'_>, found: &mut Vec<Finding>) {
    for (id, notifier) in view.notifiers() {
        let Some(labels) = view.labels_at(id) else { continue };
        for inhibit in &notifier.inhibits {
            for (at, label) in inhibit.equal.iter().enumerate() {
                if !labels.iter().any(|labels| labels.may_have(label)) {
                    let message =
                        format!("no rule makes alerts with a label `{label}`, and what both do not have is equal");
                    let help = format!("remove it, or give the rules the label `{label}`");
                    let option = format!("{}.equal[{at}]", inhibit.option);
                    found.push(Finding::new(Subject::Component(id), option, message).help(help));
                }
            }
        }
    }
}

pub(super) fn interval_unused(view: &View<'_>, found: &mut Vec<Finding>) {
    for (id, notifier) in view.notifiers() {
        let mut used: BTreeSet<&str> = BTreeSet::new();
        each_route(&notifier.root, &mut Vec::new(), &mut |route, _| {
            used.extend(route.mute.iter().chain(&route.active).map(String::as_str));
        });
        for name in notifier.intervals.keys().filter(|name| !used.contains(name.as_str())) {
            let message = format!("no route names the interval `{name}`");
            let help = format!("name it in `mute` or `active` of a route, or remove it: `mute = [\"{name}\"]`");
            found.push(Finding::new(Subject::Component(id), format!("intervals.{name}"), message).help(help));
        }
    }
}

/// The intervals that do not change for as long as can be looked ahead, by whether they hold now.
fn constant(view: &View<'_>, holds: bool, call: &mut dyn FnMut(ComponentId, &str)) {
    let Some(now) = view.now else { return };
    let is_constant = |interval: &Interval| interval.contains(now) == holds && interval.next_change(now).is_none();
    for (id, notifier) in view.notifiers() {
        for (name, _) in notifier.intervals.iter().filter(|(_, interval)| is_constant(interval)) {
            call(id, name);
        }
    }
}

pub(super) fn interval_always(view: &View<'_>, found: &mut Vec<Finding>) {
    constant(view, true, &mut |id, name| {
        let message = format!("`{name}` always holds: what it mutes is never told");
        let help = "limit it by `times`, `weekdays`, `days_of_month`, `months` or `years`";
        found.push(Finding::new(Subject::Component(id), format!("intervals.{name}"), message).help(help));
    });
}

pub(super) fn interval_never(view: &View<'_>, found: &mut Vec<Finding>) {
    constant(view, false, &mut |id, name| {
        let message = format!("`{name}` does not hold within the next five years");
        let help = "its years may be over, or there may be no such day";
        found.push(Finding::new(Subject::Component(id), format!("intervals.{name}"), message).help(help));
    });
}

pub(super) fn mute_and_active(view: &View<'_>, found: &mut Vec<Finding>) {
    routes(view, |id, route, _| {
        // It is active while one of them holds: with another one, it may be told then.
        let is_told = route.active.iter().any(|name| !route.mute.contains(name));
        if !route.active.is_empty() && !is_told {
            let message = "this route is active in the very intervals that mute it: nobody is ever told";
            let help = "name an interval in `mute` or in `active`, not in both";
            let finding = Finding::new(Subject::Component(id), option(route, "mute"), message).help(help);
            found.push(finding.note(Subject::Component(id), option(route, "active"), "active here"));
        }
    });
}

/// Whether a route has said itself who is told next.
fn escalates(route: &RouteFacts, above: &[&RouteFacts]) -> bool {
    above.last().is_none_or(|parent| parent.escalate != route.escalate)
}

pub(super) fn escalates_to_itself(view: &View<'_>, found: &mut Vec<Finding>) {
    routes(view, |id, route, above| {
        let mut before = vec![route.receiver.as_str()];
        let is_own = escalates(route, above);
        for (at, (_, receiver)) in route.escalate.iter().enumerate() {
            if before.contains(&receiver.as_str()) {
                let message = format!("`{receiver}` has been told already, and did not take care");
                let help = "name somebody else; `repeat_interval` says when the same is told again";
                let place =
                    if is_own { option(route, &format!("escalate[{at}].receiver")) } else { option(route, "receiver") };
                found.push(Finding::new(Subject::Component(id), place, message).help(help));
            }
            before.push(receiver);
        }
    });
}

pub(super) fn escalation_cannot_stop(view: &View<'_>, found: &mut Vec<Finding>) {
    if view.daemon.admin.is_some() {
        return;
    }
    routes(view, |id, route, above| {
        if escalates(route, above) && !route.escalate.is_empty() {
            let message = "nobody can say that he takes care, so that the next one is told in any case";
            let help = "set `daemon.admin`: links, `tocsin alerts ack` and the API lead there";
            found.push(Finding::new(Subject::Component(id), option(route, "escalate"), message).help(help));
        }
    });
}

pub(super) fn link_without_admin(view: &View<'_>, found: &mut Vec<Finding>) {
    for (id, _) in view.notifiers().filter(|(_, notifier)| notifier.has_link && view.daemon.admin.is_none()) {
        let message = "links to acknowledge lead to the admin address, and there is none";
        let help = "set `daemon.admin`, and let `acknowledge.url` be how people reach it";
        found.push(Finding::new(Subject::Component(id), "acknowledge", message).help(help));
    }
}

pub(super) fn budget_below_repeat(view: &View<'_>, found: &mut Vec<Finding>) {
    for (id, notifier) in view.notifiers() {
        for (name, budget) in &notifier.budgets {
            let mut repeats_after = Vec::new();
            each_route(&notifier.root, &mut Vec::new(), &mut |route, above| {
                // Budgets do not hold up what is critical.
                if route.receiver == *name && !all_follow(&all(&notifier.critical), &path(route, above)) {
                    repeats_after.push(route.repeat_interval.max(route.group_interval));
                }
            });
            let Some(repeat) = repeats_after.into_iter().min() else { continue };
            let repeats = budget.per.as_nanos() / repeat.as_nanos().max(1);
            // Half of the budget is for digests.
            let single = budget.max - budget.max / 2;
            if repeats > single as u128 {
                let message = format!(
                    "one alert that lasts is repeated {repeats} times in {}, and the budget has {single} for single notifications",
                    told(budget.per)
                );
                let help = "repeat less often, or give a greater budget: the other half of it is for digests";
                let option = format!("receivers.{name}.budget");
                found.push(Finding::new(Subject::Component(id), option, message).help(help));
            }
        }
    }
}

pub(super) fn budget_without_effect(view: &View<'_>, found: &mut Vec<Finding>) {
    for (id, notifier) in view.notifiers().filter(|(_, notifier)| !notifier.budgets.is_empty()) {
        let critical = all(&notifier.critical);
        let labels = view.labels_at(id).unwrap_or_default();
        let is_known = !labels.is_empty() && labels.iter().all(|labels| labels.must_match(&critical));
        if is_known || critical.iter().all(|matcher| is_universal(matcher)) {
            let message = "every alert that comes here is critical, so that budgets hold up none";
            let help = "let `critical` match few alerts; to have none critical, name a label that they do not have";
            found.push(Finding::new(Subject::Component(id), "critical", message).help(help));
        }
    }
}

pub(super) fn group_by_unknown_label(view: &View<'_>, found: &mut Vec<Finding>) {
    for (id, notifier) in view.notifiers() {
        let Some(labels) = view.labels_at(id) else { continue };
        each_route(&notifier.root, &mut Vec::new(), &mut |route, above| {
            if above.last().is_some_and(|parent| parent.group_by == route.group_by) {
                return;
            }
            for (at, label) in route.group_by.iter().enumerate().filter(|(_, label)| *label != ALL && *label != RULE) {
                if !labels.iter().any(|labels| labels.may_have(label)) {
                    let message = format!("no rule makes alerts with a label `{label}`, so that it groups nothing");
                    let help = format!("remove it, or give the rules the label `{label}`");
                    let option = option(route, &format!("group_by[{at}]"));
                    found.push(Finding::new(Subject::Component(id), option, message).help(help));
                }
            }
        });
    }
}
