//! Lints: what is right as a configuration and still hardly what was meant. A rule that never fires, a route that no alert takes, a
//! silence that is over. Each has a code that does not change, and a page that says why it matters and what to do.
//!
//! They look at a configuration that has no problems, by what its components tell of themselves ([`facts`](crate::facts)) and by who
//! reads whom. What they say is certain: where a thing cannot be known, nothing is said of it.

mod matching;
mod notifying;
mod plumbing;
mod rules;
mod silencing;
mod view;

use std::collections::BTreeSet;
use std::fmt::Write as _;

use crate::report::Found;
use crate::shape::nearest;
use crate::tree::{Node, Value};

pub(crate) use silencing::label_names;
use view::Finding;
pub(crate) use view::{Member, Role, Subject, View};

/// The options of `daemon` that allow what lints find.
pub(crate) const ALLOW: &str = "allow";

/// A kind of thing that is hardly what was meant.
pub struct Lint {
    /// What it is called for ever: `T001`.
    pub code: &'static str,
    /// What it is called by people: `never-fires`.
    pub name: &'static str,
    /// What it finds, in a line.
    pub summary: &'static str,
    /// Why it matters, an example that has it, one that has not, and when it is fine: Markdown. The first two blocks of TOML are these
    /// examples, and a test checks them.
    pub page: &'static str,
    find: fn(&View<'_>, &mut Vec<Finding>),
}

/// What the lints are about, by the numbers that they begin with.
const ROOMS: [(&[&str], &str); 4] = [
    (&["T00", "T01"], "Rules"),
    (&["T02", "T03"], "Notifying"),
    (&["T04"], "Silences"),
    (&["T05", "T06"], "Records and the daemon"),
];

/// All of them, in the order of their codes.
pub static LINTS: &[Lint] = &[
    Lint {
        code: "T001",
        name: "never-fires",
        summary: "a rule whose condition no record fulfils",
        page: include_str!("pages/T001.md"),
        find: rules::never_fires,
    },
    Lint {
        code: "T002",
        name: "always-fires",
        summary: "a rule whose condition every window fulfils",
        page: include_str!("pages/T002.md"),
        find: rules::always_fires,
    },
    Lint {
        code: "T003",
        name: "waits-for-empty-window",
        summary: "a rule that only a window without records would make fire",
        page: include_str!("pages/T003.md"),
        find: rules::empty_window,
    },
    Lint {
        code: "T004",
        name: "for-below-step",
        summary: "a `for` that is shorter than windows are apart",
        page: include_str!("pages/T004.md"),
        find: rules::for_below_step,
    },
    Lint {
        code: "T005",
        name: "resolve-below-step",
        summary: "a `resolve_after` that is shorter than windows are apart",
        page: include_str!("pages/T005.md"),
        find: rules::resolve_below_step,
    },
    Lint {
        code: "T006",
        name: "unbounded-label",
        summary: "a label that differs from record to record",
        page: include_str!("pages/T006.md"),
        find: rules::unbounded_label,
    },
    Lint {
        code: "T007",
        name: "label-of-value",
        summary: "a label that says another value each time",
        page: include_str!("pages/T007.md"),
        find: rules::label_of_value,
    },
    Lint {
        code: "T008",
        name: "nobody-told",
        summary: "a rule whose alerts get to nobody",
        page: include_str!("pages/T008.md"),
        find: rules::nobody_told,
    },
    Lint {
        code: "T009",
        name: "same-rule-twice",
        summary: "two rules that watch for the same",
        page: include_str!("pages/T009.md"),
        find: rules::same_rule,
    },
    Lint {
        code: "T010",
        name: "no-summary",
        summary: "a rule that people are told of without a sentence",
        page: include_str!("pages/T010.md"),
        find: rules::no_summary,
    },
    Lint {
        code: "T011",
        name: "no-severity",
        summary: "a rule without `severity` where routes go by it",
        page: include_str!("pages/T011.md"),
        find: rules::no_severity,
    },
    Lint {
        code: "T012",
        name: "not-tested",
        summary: "a rule that no test looks at, where there are tests",
        page: include_str!("pages/T012.md"),
        find: rules::not_tested,
    },
    Lint {
        code: "T013",
        name: "level-never-told",
        summary: "a level that is always outdone by one above it",
        page: include_str!("pages/T013.md"),
        find: rules::level_never_told,
    },
    Lint {
        code: "T014",
        name: "never-flaps",
        summary: "a `flapping` that windows are too far apart for",
        page: include_str!("pages/T014.md"),
        find: rules::never_flaps,
    },
    Lint {
        code: "T020",
        name: "route-unreachable",
        summary: "a route behind one that takes all its alerts",
        page: include_str!("pages/T020.md"),
        find: notifying::route_unreachable,
    },
    Lint {
        code: "T021",
        name: "matchers-contradict",
        summary: "matchers that no alert fulfils together",
        page: include_str!("pages/T021.md"),
        find: notifying::matchers_contradict,
    },
    Lint {
        code: "T022",
        name: "route-without-alerts",
        summary: "a route for alerts that no rule makes",
        page: include_str!("pages/T022.md"),
        find: notifying::route_without_alerts,
    },
    Lint {
        code: "T023",
        name: "receiver-unread",
        summary: "a receiver that no sink reads",
        page: include_str!("pages/T023.md"),
        find: notifying::receiver_unread,
    },
    Lint {
        code: "T024",
        name: "repeat-below-interval",
        summary: "a `repeat_interval` that is shorter than `group_interval`",
        page: include_str!("pages/T024.md"),
        find: notifying::repeat_below_interval,
    },
    Lint {
        code: "T025",
        name: "wait-above-interval",
        summary: "a `group_wait` that is longer than `group_interval`",
        page: include_str!("pages/T025.md"),
        find: notifying::wait_above_interval,
    },
    Lint {
        code: "T026",
        name: "inhibit-without-alerts",
        summary: "an inhibition for alerts that no rule makes",
        page: include_str!("pages/T026.md"),
        find: notifying::inhibit_without_alerts,
    },
    Lint {
        code: "T027",
        name: "inhibits-itself",
        summary: "an inhibition whose sources are its targets",
        page: include_str!("pages/T027.md"),
        find: notifying::inhibits_itself,
    },
    Lint {
        code: "T028",
        name: "inhibits-everything",
        summary: "an inhibition that keeps every other alert silent",
        page: include_str!("pages/T028.md"),
        find: notifying::inhibits_everything,
    },
    Lint {
        code: "T029",
        name: "equal-unknown-label",
        summary: "an inhibition that compares a label which no alert has",
        page: include_str!("pages/T029.md"),
        find: notifying::equal_unknown_label,
    },
    Lint {
        code: "T030",
        name: "interval-unused",
        summary: "an interval that no route names",
        page: include_str!("pages/T030.md"),
        find: notifying::interval_unused,
    },
    Lint {
        code: "T031",
        name: "interval-always",
        summary: "an interval that always holds",
        page: include_str!("pages/T031.md"),
        find: notifying::interval_always,
    },
    Lint {
        code: "T032",
        name: "interval-never",
        summary: "an interval that never holds",
        page: include_str!("pages/T032.md"),
        find: notifying::interval_never,
    },
    Lint {
        code: "T033",
        name: "mute-and-active",
        summary: "a route that is muted whenever it is active",
        page: include_str!("pages/T033.md"),
        find: notifying::mute_and_active,
    },
    Lint {
        code: "T034",
        name: "escalates-to-itself",
        summary: "an escalation to somebody who was told before",
        page: include_str!("pages/T034.md"),
        find: notifying::escalates_to_itself,
    },
    Lint {
        code: "T035",
        name: "escalation-cannot-stop",
        summary: "an escalation that nobody can stop",
        page: include_str!("pages/T035.md"),
        find: notifying::escalation_cannot_stop,
    },
    Lint {
        code: "T036",
        name: "link-without-admin",
        summary: "links to an admin address that is not there",
        page: include_str!("pages/T036.md"),
        find: notifying::link_without_admin,
    },
    Lint {
        code: "T037",
        name: "budget-below-repeat",
        summary: "a budget that one lasting alert takes up",
        page: include_str!("pages/T037.md"),
        find: notifying::budget_below_repeat,
    },
    Lint {
        code: "T038",
        name: "budget-without-effect",
        summary: "a budget where every alert is critical",
        page: include_str!("pages/T038.md"),
        find: notifying::budget_without_effect,
    },
    Lint {
        code: "T039",
        name: "group-by-unknown-label",
        summary: "a `group_by` label that no alert has",
        page: include_str!("pages/T039.md"),
        find: notifying::group_by_unknown_label,
    },
    Lint {
        code: "T040",
        name: "silence-of-everything",
        summary: "a silence for every alert",
        page: include_str!("pages/T040.md"),
        find: silencing::of_everything,
    },
    Lint {
        code: "T041",
        name: "silence-over",
        summary: "a silence that is over",
        page: include_str!("pages/T041.md"),
        find: silencing::over,
    },
    Lint {
        code: "T042",
        name: "silence-of-nothing",
        summary: "a silence for alerts that no rule makes",
        page: include_str!("pages/T042.md"),
        find: silencing::of_nothing,
    },
    Lint {
        code: "T043",
        name: "silence-without-notify",
        summary: "a silence where nothing heeds it",
        page: include_str!("pages/T043.md"),
        find: silencing::without_notifier,
    },
    Lint {
        code: "T044",
        name: "silence-for-long",
        summary: "a silence of more than 90 days",
        page: include_str!("pages/T044.md"),
        find: silencing::for_long,
    },
    Lint {
        code: "T045",
        name: "silence-never-lasts",
        summary: "a silence whose `during` never comes",
        page: include_str!("pages/T045.md"),
        find: silencing::never_lasts,
    },
    Lint {
        code: "T050",
        name: "records-to-people",
        summary: "people who are told of each record",
        page: include_str!("pages/T050.md"),
        find: plumbing::records_to_people,
    },
    Lint {
        code: "T051",
        name: "constant-condition",
        summary: "a condition that all records fulfil, or none",
        page: include_str!("pages/T051.md"),
        find: plumbing::constant_condition,
    },
    Lint {
        code: "T052",
        name: "branch-unread",
        summary: "an output of a route that nothing reads",
        page: include_str!("pages/T052.md"),
        find: plumbing::branch_unread,
    },
    Lint {
        code: "T053",
        name: "lateness-above-size",
        summary: "a window that waits longer than it lasts",
        page: include_str!("pages/T053.md"),
        find: plumbing::lateness_above_size,
    },
    Lint {
        code: "T054",
        name: "secret-in-clear",
        summary: "a secret that is written in the configuration",
        page: include_str!("pages/T054.md"),
        find: plumbing::secret_in_clear,
    },
    Lint {
        code: "T055",
        name: "source-without-admin",
        summary: "a source at an admin address that is not there",
        page: include_str!("pages/T055.md"),
        find: plumbing::source_without_admin,
    },
    Lint {
        code: "T056",
        name: "alerts-forgotten",
        summary: "alerts that a restart forgets",
        page: include_str!("pages/T056.md"),
        find: plumbing::alerts_forgotten,
    },
    Lint {
        code: "T057",
        name: "admin-open",
        summary: "an admin address that others reach",
        page: include_str!("pages/T057.md"),
        find: plumbing::admin_open,
    },
    Lint {
        code: "T058",
        name: "alerts-dropped",
        summary: "a receiver that drops alerts when it is slow",
        page: include_str!("pages/T058.md"),
        find: plumbing::alerts_dropped,
    },
    Lint {
        code: "T059",
        name: "notify-without-rule",
        summary: "windows that are given to `notify`",
        page: include_str!("pages/T059.md"),
        find: plumbing::notifier_without_rule,
    },
    Lint {
        code: "T060",
        name: "allowance-unused",
        summary: "an allowance for what is not there",
        page: include_str!("pages/T060.md"),
        find: |_, _| {},
    },
    Lint {
        code: "T061",
        name: "secret-in-default",
        summary: "a secret whose default is written in the configuration",
        page: include_str!("pages/T061.md"),
        find: plumbing::secret_in_default,
    },
];

/// What allows findings: a code, or a code and the name of the component that may have it, `T012:mail`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allowance {
    code: &'static str,
    /// `None`: all of them.
    component: Option<String>,
}

impl Allowance {
    /// # Errors
    /// What is wrong with the text, and the way out.
    pub fn parse(text: &str) -> Result<Self, (String, String)> {
        let (code, component) = match text.split_once(':') {
            Some((code, component)) => (code, Some(component.to_owned())),
            None => (text, None),
        };
        let Some(lint) = lint(code) else {
            let codes: Vec<_> = LINTS.iter().map(|lint| lint.code.to_lowercase()).collect();
            let help = match nearest(code, codes.iter().map(String::as_str)) {
                Some(meant) => format!("did you mean `{}`?", meant.to_uppercase()),
                None => "`tocsin help checks` lists them; write `T012`, or `T012:NAME` for one component".to_owned(),
            };
            return Err((format!("there is no check `{code}`"), help));
        };
        Ok(Self { code: lint.code, component })
    }

    /// Whether it is for a finding of this code about this component.
    pub(crate) fn is_for(&self, code: &str, component: &str) -> bool {
        self.code == code && self.component.as_deref().is_none_or(|name| name == component)
    }
}

/// The lint of this code, or of this name.
pub fn lint(code: &str) -> Option<&'static Lint> {
    LINTS.iter().find(|lint| lint.code.eq_ignore_ascii_case(code) || lint.name == code)
}

/// The page of a lint.
pub fn page(lint: &Lint) -> String {
    format!(
        "# {} {}\n\n{}\n\n{}\n\nTo allow it: `tocsin check --allow {}`, or `allow = [\"{}\"]` below `[daemon]`; `\"{}:NAME\"` for one \
         component.\n",
        lint.code,
        lint.name,
        sentence(lint.summary),
        lint.page.trim_end(),
        lint.code,
        lint.code,
        lint.code
    )
}

/// All lints, a line each.
pub fn checks() -> String {
    let mut text = String::from("What `tocsin check` looks for beside what is wrong (tocsin help CODE):\n");
    let mut room = "";
    for lint in LINTS {
        if std::mem::replace(&mut room, room_of(lint)) != room {
            let _ = write!(text, "\n{room}\n");
        }
        let _ = writeln!(text, "  {}  {:<26} {}", lint.code, lint.name, lint.summary);
    }
    text
}

/// All pages, in Markdown.
pub fn checks_reference() -> String {
    let mut text = String::from(
        "# Checks\n\n\
         What `tocsin check` finds in a configuration that is right and still hardly what was meant. A finding is shown as \
         `warning[CODE]` with its place, and makes the exit status 1; `tocsin run` logs it and starts. `tocsin help CODE` shows its page.\n\n\
         What is meant nevertheless is allowed: `allow = [\"T012\"]` below `[daemon]`, `\"T012:NAME\"` for one component (`silences` and \
         `daemon` are names too), or `tocsin check --allow T012`. This page is written from the program.\n",
    );
    let mut room = "";
    for lint in LINTS {
        if std::mem::replace(&mut room, room_of(lint)) != room {
            let _ = write!(text, "\n## {room}\n");
        }
        let (code, name, page) = (lint.code, lint.name, lint.page.trim_end());
        let _ = write!(text, "\n### {code} {name}\n\n{}\n\n{page}\n", sentence(lint.summary));
    }
    text
}

/// The code or the name that was probably meant.
pub fn nearest_check(name: &str) -> Option<&'static str> {
    nearest(name, LINTS.iter().map(|lint| lint.name))
}

fn room_of(lint: &Lint) -> &'static str {
    let room = ROOMS.iter().find(|(codes, _)| codes.contains(&&lint.code[..3]));
    room.map_or("", |(_, room)| room)
}

fn sentence(summary: &str) -> String {
    let mut letters = summary.chars();
    let first = letters.next().map(|first| first.to_uppercase().to_string()).unwrap_or_default();
    format!("{first}{}.", letters.as_str())
}

/// All that the lints find and nothing allows, with its places.
pub(crate) fn find(view: &View<'_>, all: &str) -> Vec<Found> {
    let allowances = allowances(view.daemon_node);
    let mut used: BTreeSet<usize> = BTreeSet::new();
    let mut found = Vec::new();
    for lint in LINTS {
        let mut findings = Vec::new();
        (lint.find)(view, &mut findings);
        for finding in findings {
            let subject = name_of(view, finding.subject);
            let allowing = allowances.iter().position(|(allowance, _)| allowance.is_for(lint.code, subject));
            match allowing {
                Some(at) => {
                    used.insert(at);
                }
                None => found.push(located(view, lint, subject, finding, all)),
            }
        }
    }
    let unused = allowances.iter().enumerate().filter(|(at, _)| !used.contains(at));
    let unused: Vec<_> = unused.map(|(_, (allowance, node))| (allowance, *node)).collect();
    found.extend(allowances_unused(view, &allowances, &unused, all));
    found
}

/// Where a finding is.
fn located(view: &View<'_>, lint: &Lint, subject: &str, finding: Finding, all: &str) -> Found {
    let node = node_of(view, finding.subject);
    let place = match (&finding.place, node.find(&finding.option), &finding.within) {
        (Some(place), _, _) => place.clone(),
        (None, Some(option), Some(within)) => option.place_within(within, all),
        (None, Some(option), None) => option.place.clone(),
        (None, None, _) => node.place.clone(),
    };
    let mut found = Found::new(&place, finding.message).maybe_help(finding.help).code(lint.code, subject);
    for (subject, option, message) in finding.notes {
        let node = node_of(view, subject);
        found = found.note(&node.find(&option).unwrap_or(node).place, message);
    }
    found
}

fn node_of<'v>(view: &'v View<'_>, subject: Subject) -> &'v Node<'v> {
    match subject {
        Subject::Component(id) => view.members[&id].node,
        Subject::Silence(at) => &view.silences[at].1,
        Subject::Daemon => view.daemon_node,
    }
}

fn name_of<'v>(view: &'v View<'_>, subject: Subject) -> &'v str {
    match subject {
        Subject::Component(id) => view.name(id),
        Subject::Silence(_) => "silences",
        Subject::Daemon => "daemon",
    }
}

/// The allowances of the configuration, as far as they can be read.
fn allowances<'n>(daemon: &'n Node<'_>) -> Vec<(Allowance, &'n Node<'n>)> {
    let Some(Value::List(values)) = daemon.get(ALLOW).map(|node| &node.value) else { return Vec::new() };
    values.iter().filter_map(|node| Some((Allowance::parse(node.as_text()?).ok()?, node))).collect()
}

/// What is wrong with the allowances: a code or a component that is not there. `names` are those of the components.
pub(crate) fn problems_of_allowances(daemon: &Node<'_>, names: &BTreeSet<&str>) -> Vec<Found> {
    let Some(Value::List(values)) = daemon.get(ALLOW).map(|node| &node.value) else { return Vec::new() };
    let problem = |node: &Node<'_>| match Allowance::parse(node.as_text()?) {
        Err((message, help)) => Some(Found::new(&node.place, message).help(help)),
        Ok(Allowance { component: Some(component), .. }) if !names.contains(component.as_str()) => {
            let found = Found::new(&node.place, format!("there is no component `{component}`"));
            let meant = nearest(&component, names.iter().copied());
            Some(found.maybe_help(meant.map(|meant| format!("did you mean `{meant}`?"))))
        }
        Ok(_) => None,
    };
    values.iter().filter_map(problem).collect()
}

/// The lint that is not like the others: it looks at what they have found.
fn allowances_unused(
    view: &View<'_>,
    allowances: &[(Allowance, &Node<'_>)],
    unused: &[(&Allowance, &Node<'_>)],
    all: &str,
) -> Vec<Found> {
    let lint = lint("T060").expect("it is one of them");
    if allowances.iter().any(|(allowance, _)| allowance.is_for(lint.code, "daemon")) {
        return Vec::new();
    }
    let found = unused.iter().filter(|(allowance, _)| allowance.code != lint.code).map(|(allowance, node)| {
        let message = format!("there is no `{}` to allow", allowance.code);
        let finding =
            Finding::new(Subject::Daemon, ALLOW, message).help("remove it, so that the next one is not overlooked");
        located(view, lint, "daemon", Finding { place: Some(node.place.clone()), ..finding }, all)
    });
    found.collect()
}
