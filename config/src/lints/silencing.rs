//! What may be wrong with silences.

use std::collections::BTreeSet;
use std::time::Duration;

use tocsin_pipeline::time::Timestamp;

use super::matching::{Labels, all, contradiction, is_universal};
use super::view::{Finding, Subject, View};

/// A silence that is meant to end does so within that time.
const LONG: Duration = Duration::from_secs(90 * 86_400);

/// What the labels of alerts that any notifier gets are called; `None` where others may come.
pub(crate) fn label_names(view: &View<'_>) -> Option<BTreeSet<String>> {
    let labels = labels(view)?;
    let names = labels.iter().flat_map(|labels| labels.values.keys().cloned()).collect();
    labels.iter().all(|labels| !labels.is_open).then_some(names)
}

/// The labels of all alerts that any notifier gets; `None` where others may come.
fn labels(view: &View<'_>) -> Option<Vec<Labels>> {
    let mut labels = Vec::new();
    for (id, _) in view.notifiers() {
        labels.extend(view.labels_at(id)?);
    }
    (!labels.is_empty()).then_some(labels)
}

pub(super) fn of_everything(view: &View<'_>, found: &mut Vec<Finding>) {
    let labels = labels(view).unwrap_or_default();
    for (at, (silence, _)) in view.silences.iter().enumerate() {
        let matchers = all(&silence.matchers);
        let of_all_rules = labels.len() > 1 && labels.iter().all(|labels| labels.must_match(&matchers));
        if of_all_rules || matchers.iter().all(|matcher| is_universal(matcher)) {
            let message = "this silence is for every alert: while it lasts nobody is told of anything";
            let help = "say which alerts are meant, such as `'host=\"web-1\"'`";
            found.push(Finding::new(Subject::Silence(at), "matchers", message).help(help));
        }
    }
}

pub(super) fn over(view: &View<'_>, found: &mut Vec<Finding>) {
    let Some(now) = view.now else { return };
    for (at, (silence, _)) in view.silences.iter().enumerate().filter(|(_, (silence, _))| silence.ends_at <= now) {
        let message = format!("this silence of {} is over", silence.owner);
        let help = "remove it, so that the next reader does not take it for one that lasts";
        found.push(Finding::new(Subject::Silence(at), "ends_at", message).help(help));
    }
}

pub(super) fn of_nothing(view: &View<'_>, found: &mut Vec<Finding>) {
    let labels = labels(view);
    for (at, (silence, _)) in view.silences.iter().enumerate() {
        let matchers = all(&silence.matchers);
        let message = match (contradiction(&matchers), &labels) {
            (Some(label), _) => {
                format!("what this silence asks of `{label}` excludes itself, so that it is for no alert")
            }
            (None, Some(labels)) if !labels.iter().any(|labels| labels.may_match(&matchers)) => {
                "no rule makes alerts that this silence is for".to_owned()
            }
            _ => continue,
        };
        let help = "compare its matchers with the `labels` and `group_by` of the rules";
        found.push(Finding::new(Subject::Silence(at), "matchers", message).help(help));
    }
}

pub(super) fn without_notifier(view: &View<'_>, found: &mut Vec<Finding>) {
    if view.notifiers().next().is_none() && !view.silences.is_empty() {
        let message =
            "silences are heeded by `notify`, and there is none: sinks that read a rule are told of each transition";
        let help = "put an operator of the type `notify` between the rules and the sinks: tocsin help notify";
        found.push(Finding::new(Subject::Silence(0), "", message).help(help));
    }
}

pub(super) fn for_long(view: &View<'_>, found: &mut Vec<Finding>) {
    for (at, (silence, _)) in view.silences.iter().enumerate() {
        let from = if silence.starts_at == Timestamp::MIN { view.now } else { Some(silence.starts_at) };
        let is_long = from.is_some_and(|from| silence.ends_at.since(from) > LONG);
        if is_long && silence.during.is_none() {
            let message = "this silence lasts longer than 90 days";
            let help = "what nobody wants to hear of for so long is better changed in the rule, or removed from it";
            found.push(Finding::new(Subject::Silence(at), "ends_at", message).help(help));
        }
    }
}

pub(super) fn never_lasts(view: &View<'_>, found: &mut Vec<Finding>) {
    for (at, (silence, _)) in view.silences.iter().enumerate() {
        let from = if silence.starts_at == Timestamp::MIN { view.now } else { Some(silence.starts_at) };
        let Some(from) = from.filter(|from| silence.during.is_some() && *from < silence.ends_at) else { continue };
        if silence.begins(from).is_none() {
            let message = "`during` holds at no time before the silence is over";
            let help = "look at the days and times, and at `location`, which is \"UTC\" where nothing is said";
            found.push(Finding::new(Subject::Silence(at), "during", message).help(help));
        }
    }
}
