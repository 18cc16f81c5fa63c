//! What may be wrong with rules.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tocsin_pipeline::expression::{Known, Verdict, follows, prove};

use super::view::{Finding, Stream, Subject, View, each_route};
use crate::facts::{Audience, LabelText, RuleFacts, Watched};
use crate::matcher::Matcher;
use crate::plan::ComponentId;
use crate::scale::reached;
use crate::shape::list;
use crate::types;

/// Fields that have another value in nearly every record.
const UNBOUNDED: [&str; 20] = [
    "@timestamp",
    "body",
    "event_id",
    "id",
    "line",
    "log",
    "message",
    "msg",
    "offset",
    "raw",
    "request_id",
    "requestId",
    "span_id",
    "time",
    "timestamp",
    "trace_id",
    "traceId",
    "ts",
    "url",
    "uuid",
];
/// Fields of a window that say when it was.
const TIMES: [&str; 2] = ["window_start", "window_end"];

fn told(duration: Duration) -> String {
    types::Duration(duration).to_string()
}

/// As known, with windows without any record taken for possible.
fn with_empty(known: Known) -> Known {
    match known {
        Known::Number { least, is_integer, is_nullable } => {
            Known::Number { least: least.min(0.0), is_integer, is_nullable }
        }
        Known::Nothing => Known::Nothing,
    }
}

/// What becomes of a condition that does not hold.
fn never(rule: &RuleFacts, name: &str) -> String {
    match rule.conditions.len() {
        1 => format!("`{name}` never fires"),
        _ => format!("`{name}` is never on this level"),
    }
}

pub(super) fn never_fires(view: &View<'_>, found: &mut Vec<Finding>) {
    for (id, rule) in view.rules() {
        let stream = view.stream(id);
        for watched in &rule.conditions {
            let is_never = |empty| verdict(&watched.condition, &stream, empty) == Verdict::Never;
            if is_never(true) {
                let message = format!("no record fulfils this condition, so that {}", never(rule, view.name(id)));
                let help = "look at what it compares, and with what";
                found.push(Finding::new(Subject::Component(id), &watched.option, message).help(help));
            }
        }
    }
}

pub(super) fn empty_window(view: &View<'_>, found: &mut Vec<Finding>) {
    for (id, rule) in view.rules() {
        let stream = view.stream(id);
        for watched in &rule.conditions {
            let verdict = |empty| verdict(&watched.condition, &stream, empty);
            if verdict(false) == Verdict::Never && verdict(true) != Verdict::Never {
                let message = format!(
                    "only a window without records would fulfil this, and there is no such window: {}",
                    never(rule, view.name(id))
                );
                let help = "let the window read more and count what is missed: `count(CONDITION)` can be 0";
                found.push(Finding::new(Subject::Component(id), &watched.option, message).help(help));
            }
        }
    }
}

fn verdict(condition: &str, stream: &Stream<'_>, has_empty: bool) -> Verdict {
    prove(condition, |path| {
        let known = stream.known(path);
        if has_empty { with_empty(known) } else { known }
    })
}

pub(super) fn always_fires(view: &View<'_>, found: &mut Vec<Finding>) {
    for (id, rule) in view.rules() {
        let stream = view.stream(id);
        for watched in &rule.conditions {
            if stream.is_windows() && verdict(&watched.condition, &stream, true) == Verdict::Always {
                let message = format!(
                    "every window fulfils this condition, so that `{}` fires for each key and no window resolves it",
                    view.name(id)
                );
                let help = "write a bound that some windows keep and others do not";
                found.push(Finding::new(Subject::Component(id), &watched.option, message).help(help));
            }
        }
    }
}

pub(super) fn for_below_step(view: &View<'_>, found: &mut Vec<Finding>) {
    for (id, rule) in view.rules() {
        let Some((step, _)) = view.stream(id).steps() else { continue };
        for watched in &rule.conditions {
            if !watched.pending_for.is_zero() && watched.pending_for < step {
                let message = format!(
                    "there is a window each {}, so that `for = \"{}\"` waits for the next one as `for = \"{}\"` does",
                    told(step),
                    told(watched.pending_for),
                    told(step)
                );
                let help = format!("write \"{}\", or leave it out to fire at once", told(step));
                found.push(Finding::new(Subject::Component(id), &watched.for_option, message).help(help));
            }
        }
    }
}

pub(super) fn resolve_below_step(view: &View<'_>, found: &mut Vec<Finding>) {
    for (id, rule) in view.rules() {
        let Some((_, step)) = view.stream(id).steps() else { continue };
        let Some(after) = rule.resolve_after.filter(|after| *after < step) else { continue };
        let is_waiting = rule.conditions.iter().any(|watched| !watched.pending_for.is_zero());
        let effect = match is_waiting {
            true => "an alert is given up before the next window comes, and with `for` it never fires",
            false => "an alert is resolved between two windows that both fulfil the condition",
        };
        let message = format!("there is a window each {}, and after {} without one {effect}", told(step), told(after));
        let help = format!("write at least \"{}\", or leave it out", told(step.saturating_mul(2)));
        found.push(Finding::new(Subject::Component(id), "resolve_after", message).help(help));
    }
}

pub(super) fn unbounded_label(view: &View<'_>, found: &mut Vec<Finding>) {
    for (id, rule) in view.rules() {
        if view.stream(id).is_windows() {
            continue;
        }
        let keys: Vec<_> = match &rule.keys {
            Some(keys) => {
                let keys = keys.iter().enumerate();
                keys.map(|(at, name)| (format!("group_by[{at}]"), BTreeSet::from([name.clone()]))).collect()
            }
            None => label_fields(rule).collect(),
        };
        for (option, fields) in keys {
            let Some(field) = fields.iter().find(|field| UNBOUNDED.contains(&field.as_str())) else { continue };
            let message = format!("`{field}` differs from record to record, so that each makes an alert of its own");
            let help = "say what is wrong in an annotation; labels are for what alerts have in common, such as a host";
            found.push(Finding::new(Subject::Component(id), option, message).help(help));
        }
    }
}

fn label_fields(rule: &RuleFacts) -> impl Iterator<Item = (String, BTreeSet<String>)> {
    rule.labels.iter().filter_map(|(name, text)| match text {
        LabelText::Of(fields) => Some((format!("labels.{name}"), fields.clone())),
        LabelText::Fixed(_) => None,
    })
}

pub(super) fn label_of_value(view: &View<'_>, found: &mut Vec<Finding>) {
    for (id, rule) in view.rules() {
        let stream = view.stream(id);
        let is_value = |field: &&String| match stream.is_windows() {
            true => {
                TIMES.contains(&field.as_str())
                    || stream.windows.iter().any(|(_, window)| window.aggregates.contains_key(*field))
            }
            // Without `group_by` it would be part of the key.
            false => rule.keys.is_some() && UNBOUNDED.contains(&field.as_str()),
        };
        for (option, fields) in label_fields(rule) {
            let Some(field) = fields.iter().find(is_value) else { continue };
            let message = format!(
                "`{field}` is another one each time: the label says what it was when the alert began, and silences and \
                 routes cannot go by it"
            );
            let help = "say it in an annotation";
            found.push(Finding::new(Subject::Component(id), option, message).help(help));
        }
    }
}

pub(super) fn nobody_told(view: &View<'_>, found: &mut Vec<Finding>) {
    for (id, _) in view.rules() {
        let audiences = view.audiences(id);
        if audiences.values().all(|audience| *audience == Audience::Nobody) {
            let sinks: Vec<_> = audiences.keys().map(|sink| view.name(*sink)).collect();
            let message = match &sinks[..] {
                [] => format!("what `{}` tells gets to no sink", view.name(id)),
                sinks => format!(
                    "what `{}` tells gets to {} only, where it is thrown away",
                    view.name(id),
                    list(sinks.iter().copied())
                ),
            };
            let help = "name it among the `inputs` of a sink that tells somebody, such as `email`";
            found.push(Finding::new(Subject::Component(id), "", message).help(help));
        }
    }
}

pub(super) fn same_rule(view: &View<'_>, found: &mut Vec<Finding>) {
    let mut known: BTreeMap<_, ComponentId> = BTreeMap::new();
    for (id, rule) in view.rules() {
        let conditions = rule.conditions.iter();
        let watched: Vec<_> = conditions.map(|watched| (watched.condition.trim(), watched.pending_for)).collect();
        let inputs: BTreeSet<_> = view.inputs(id).collect();
        let first = *known.entry((watched, &rule.keys, inputs)).or_insert(id);
        if first == id {
            continue;
        }
        let (name, before) = (view.name(id), view.name(first));
        let message = format!("`{name}` watches for the same as `{before}`, so that two alerts tell of one thing");
        let option = rule.conditions.first().map_or("", |watched| watched.option.as_str());
        let finding = Finding::new(Subject::Component(id), option, message)
            .help("remove one, and send the alerts of the other where both went")
            .note(Subject::Component(first), option, "here");
        found.push(finding);
    }
}

pub(super) fn no_summary(view: &View<'_>, found: &mut Vec<Finding>) {
    for (id, rule) in view.rules() {
        if !rule.annotations.contains("summary") && view.is_told(id) {
            let message =
                format!("people are told of `{}`, and nothing says in a sentence what is wrong", view.name(id));
            let help = "add `annotations = { summary = \"…\" }`: it is the subject of mails and the text of messages";
            found.push(Finding::new(Subject::Component(id), "annotations", message).help(help));
        }
    }
}

pub(super) fn no_severity(view: &View<'_>, found: &mut Vec<Finding>) {
    const SEVERITY: &str = "severity";
    for (notifier, facts) in view.notifiers() {
        let mut asking: Option<String> = None;
        let asks = |matchers: &[Matcher]| matchers.iter().any(|matcher| matcher.name == SEVERITY);
        each_route(&facts.root, &mut Vec::new(), &mut |route, _| {
            if asking.is_none() && asks(&route.matchers.0) {
                asking = Some(format!("{}.matchers", route.option));
            }
        });
        for inhibit in facts.inhibits.iter().filter(|_| asking.is_none()) {
            if asks(&inhibit.source.0) || asks(&inhibit.target.0) {
                asking = Some(inhibit.option.clone());
                break;
            }
        }
        let Some(option) = asking else { continue };
        let rules = view.rules().filter(|(id, _)| view.origins(notifier).rules.contains(id));
        for (id, _) in rules.filter(|(id, rule)| !view.labels(*id, rule).may_have(SEVERITY)) {
            let message =
                format!("alerts of `{}` have no `{SEVERITY}`, and `{}` goes by it", view.name(id), view.name(notifier));
            let help = format!("add `{SEVERITY}` to its `labels`");
            let finding = Finding::new(Subject::Component(id), "labels", message).help(help).note(
                Subject::Component(notifier),
                option.clone(),
                "here",
            );
            found.push(finding);
        }
    }
}

pub(super) fn not_tested(view: &View<'_>, found: &mut Vec<Finding>) {
    if view.tests.is_empty() {
        return;
    }
    for (id, _) in view.rules() {
        let reached = reached(&view.edges, id);
        let is_tested = view.tests.iter().any(|test| {
            test.alerts.iter().any(|alert| ComponentId::Operator(alert.rule) == id)
                || test.expect.iter().any(|expected| reached.contains(&expected.from.component))
                || test.notifications.as_ref().is_some_and(|sent| {
                    sent.is_empty() || sent.iter().any(|sent| reached.contains(&ComponentId::Sink(sent.receiver)))
                })
        });
        if !is_tested {
            let message = format!("no test looks at `{}`, nor at anything that its alerts get to", view.name(id));
            let help = "add one of `[[tests]]` with `alerts` or `notifications` of it: tocsin help tests";
            found.push(Finding::new(Subject::Component(id), "", message).help(help));
        }
    }
}

pub(super) fn level_never_told(view: &View<'_>, found: &mut Vec<Finding>) {
    for (id, rule) in view.rules() {
        let stream = view.stream(id);
        for (at, lower) in rule.conditions.iter().enumerate() {
            let outdoes = |higher: &&Watched| {
                higher.pending_for <= lower.pending_for
                    && follows(&higher.condition, &lower.condition, |path| stream.known(path))
            };
            // What is never true is told already.
            let is_ever = verdict(&lower.condition, &stream, false) != Verdict::Never;
            if let Some(higher) = rule.conditions[at + 1..].iter().find(outdoes).filter(|_| is_ever) {
                let message = "an alert is never on this level: wherever this holds, a level above it does";
                let help = "levels rise: write the one that holds most often first, and the worst last";
                let finding = Finding::new(Subject::Component(id), &lower.option, message).help(help);
                found.push(finding.note(Subject::Component(id), &higher.option, "the level above"));
            }
        }
    }
}

pub(super) fn never_flaps(view: &View<'_>, found: &mut Vec<Finding>) {
    for (id, rule) in view.rules() {
        let Some((step, _)) = view.stream(id).steps() else { continue };
        let Some((changes, within)) = rule.flapping else { continue };
        // Else it may be resolved between two windows.
        let changes_at_windows = rule.keep_firing_for.is_zero() && rule.resolve_after.is_none_or(|after| after >= step);
        let needed = step.saturating_mul(u32::try_from(changes).unwrap_or(u32::MAX).saturating_sub(1));
        if changes_at_windows && within < needed {
            let message = format!(
                "{changes} changes take {} at least, since there is a window each {}: it never flaps",
                told(needed),
                told(step)
            );
            let help = "write a longer `within`, or fewer `changes`";
            found.push(Finding::new(Subject::Component(id), "flapping.within", message).help(help));
        }
    }
}
