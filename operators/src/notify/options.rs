//! The options of `notify`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration as Span;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value as Json;
use tocsin_config::component::{BuildContext, Keying, OperatorConfig, Problem};
use tocsin_config::facts::{BudgetFacts, Facts, NotifierFacts};
use tocsin_config::interval::IntervalOptions;
use tocsin_config::matcher::Matchers;
use tocsin_config::types::{Duration, Secret};
use tocsin_pipeline::codec::Projection;
use tocsin_pipeline::operator::{Built, Ports};

use super::Notify;
use super::budget::Budget;
use super::inhibit::{self, InhibitOptions};
use super::notifier::{Receiver, Settings};
use super::record::Link;
use super::route::{DEFAULT, EscalationOptions, RootOptions, RouteOptions, Tree, problems_of_matchers};

/// Tells people of alerts as Alertmanager does: in groups, by routes, not while silenced, inhibited or muted, again while nothing
/// changes, and to somebody else if nobody takes care. It reads the records of `alert` (not its amendments) and of the source `alerts`, and hands on
/// one record for each notification: `NAME` gives those for the receiver `default`, `NAME.receiver` those for the other receivers that routes
/// name. Sinks that tell people read them; in templates `state`, `labels`, `annotations` are what the alerts have in common, and `alerts`
/// lists them:
///
/// ```json
/// {"notification": "oncall", "receiver": "pager", "reason": "first", "state": "firing", "alert": "high_error_rate",
///  "group_key": "{}/{severity=\"critical\"}:{alertname=\"high_error_rate\"}", "group_labels": {"alertname": "high_error_rate"},
///  "labels": {…}, "annotations": {…}, "starts_at": "…", "ends_at": null, "firing": 2, "resolved": 0, "more": 0, "alerts": [{…}, {…}],
///  "time": "…", "id": "…", "firing_id": "…"}
/// ```
///
/// `reason` is `first`, `changed` (alerts have come or ended), `resolved` (all have), `repeat`, `escalated`, `digest` or `summary`. `id`
/// names the notification for ever, so that a crash or a replay tells nobody twice; `firing_id` is that of the first of the group, under
/// which mails form one thread. At most 100 alerts are listed, and `more` are not; a digest lists all.
///
/// **Groups.** Alerts that take the same route and have the same `group_by` labels are told together. The first notification leaves
/// `group_wait` after the first alert, at once by default. What changes after that is told together, not sooner than `group_interval` after
/// the notification before. While alerts fire and nothing changes, it is repeated each `repeat_interval`. The label `alertname` is the
/// name of the rule unless an alert has a label of that name.
///
/// **Routes** are tried in their order; an alert takes the first whose matchers are true of it, and goes on to those after it where that
/// has `continue = true`. What takes none is told as the options at the top say.
///
/// **Quiet.** Nobody is told of an alert while a silence (`[[silences]]`, or one that was added while the daemon runs) matches it, while an alert
/// that inhibits it fires, and while an interval mutes its route. What still fires when that ends is told then; what was told as firing
/// and ended meanwhile is told too. When a silence ends, each receiver is told what it was not told of;
/// `pagerduty`, `opsgenie` and `alertmanager` tell nothing of that.
///
/// **Budget.** A receiver with a budget is sent at most `max` notifications in any time of the length `per`. Half of it is for single
/// notifications; what goes beyond is told in digests, spread over that time, each of which lists its alerts once as they stand then. Notifications of alerts that `critical` matches are sent in any case.
///
/// **Escalation.** With `escalate`, the next receiver is told if nobody has taken care after so long: by the link in a mail (`acknowledge`), by
/// `tocsin alerts ack`, or by the API. What has been acknowledged is neither repeated nor escalated; an alert that comes to the group later is.
///
/// **Time** is event time: a moment comes when a record or a watermark behind it does. Where nothing else comes, event time follows the
/// clock `idle_timeout` behind, and so do notifications that wait; those that need not wait leave at once.
///
/// **State:** the alerts that fire and what was told of them, silences, budgets, the last 1000 notifications in brief. At most `max_alerts`;
/// further alerts go to `NAME.rejected` as `state_full`.
///
/// **When options change:** alerts are kept. Those whose routes are new are told by them; groups of routes that are gone are forgotten.
///
/// **Late events:** taken as they come: event time does not go back.
///
/// **After a crash:** everything comes back with the last checkpoint, and what is told again has the same `id`, which sinks do not send twice.
///
/// ```toml
/// [operators.oncall]
/// type = "notify"
/// inputs = ["high_error_rate"]
/// group_by = ["alertname", "cluster"]
/// routes = [{ matchers = ['severity="critical"'], receiver = "pager", escalate = [{ after = "15m", receiver = "phone" }] }]
/// inhibit = [{ source = ['severity="critical"'], target = ['severity="warning"'], equal = ["cluster"] }]
/// receivers = { default = { budget = { max = 10, per = "1h" } } }
/// ```
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// Who is told of alerts that no route takes. Default `"default"`: the operator's own name.
    #[serde(default = "default_receiver")]
    receiver: String,
    /// The labels by which alerts are grouped. Default `["alertname"]`; `["..."]`: each set of labels is a group of its own; `[]`: all
    /// are one group.
    #[serde(default = "by_rule")]
    group_by: Vec<String>,
    /// How long the first notification of a group waits for more alerts. Default `"0s"`: it leaves at once.
    #[serde(default = "nothing")]
    group_wait: Duration,
    /// How long after a notification of a group changes of it wait. Default `"5m"`.
    #[serde(default = "five_minutes")]
    group_interval: Duration,
    /// After how long a notification is sent again for a group that still fires. Default `"4h"`.
    #[serde(default = "four_hours")]
    repeat_interval: Duration,
    /// Ways for some of the alerts, in the order in which they are tried.
    #[serde(default)]
    routes: Vec<RouteOptions>,
    /// Who is told next if nobody takes care, in the order of the times; routes without an `escalate` of their own do as this says.
    #[serde(default)]
    escalate: Vec<EscalationOptions>,
    /// Alerts that keep others quiet while they fire.
    #[serde(default)]
    inhibit: Vec<InhibitOptions>,
    /// Stretches of time by name, for `mute` and `active` of routes.
    #[serde(default)]
    intervals: BTreeMap<String, IntervalOptions>,
    /// What is special about a receiver, by its name.
    #[serde(default)]
    receivers: BTreeMap<String, ReceiverOptions>,
    /// Matchers of alerts that budgets do not hold up. Default `['severity="critical"']`.
    #[serde(default = "severity_critical")]
    critical: Vec<String>,
    /// Links by which people say that they take care. Left out, notifications have none.
    acknowledge: Option<LinkOptions>,
    /// How many alerts are known at a time. Default 100000, at most 1000000.
    #[serde(default = "hundred_thousand")]
    max_alerts: usize,
}

/// What is special about a receiver.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ReceiverOptions {
    /// Whether it is told that alerts are over. Default true.
    #[serde(default = "yes")]
    send_resolved: bool,
    /// How many notifications it is sent at most.
    budget: Option<BudgetOptions>,
}

/// At most so many notifications in a time.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct BudgetOptions {
    /// How many, digests included. From 1 to 10000.
    max: usize,
    /// In any time of this length.
    per: Duration,
    /// How long a digest waits for more alerts before it is sent. Default `"1m"`.
    #[serde(default = "one_minute")]
    wait: Duration,
}

/// Where links lead, and what they are signed with.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct LinkOptions {
    /// The admin address as people reach it, such as `"https://tocsin.example.org"`.
    url: String,
    /// What links are signed with, so that nobody can make one up: at least 16 characters. Empty: there are no links, so that
    /// `"${LINK_KEY:-}"` has them where the variable is set.
    key: Secret,
}

fn default_receiver() -> String {
    DEFAULT.to_owned()
}

fn by_rule() -> Vec<String> {
    vec![super::alert::RULE.to_owned()]
}

fn nothing() -> Duration {
    Duration(Span::ZERO)
}

fn one_minute() -> Duration {
    Duration(Span::from_secs(60))
}

fn five_minutes() -> Duration {
    Duration(Span::from_secs(300))
}

fn four_hours() -> Duration {
    Duration(Span::from_secs(4 * 3600))
}

fn severity_critical() -> Vec<String> {
    vec!["severity=\"critical\"".to_owned()]
}

fn hundred_thousand() -> usize {
    100_000
}

fn yes() -> bool {
    true
}

impl Config {
    fn link(&self) -> Option<&LinkOptions> {
        self.acknowledge.as_ref().filter(|link| !link.key.reveal().is_empty())
    }

    pub(super) fn root(&self) -> RootOptions<'_> {
        RootOptions {
            receiver: &self.receiver,
            group_by: &self.group_by,
            group_wait: self.group_wait.0,
            group_interval: self.group_interval.0,
            repeat_interval: self.repeat_interval.0,
            escalate: &self.escalate,
            routes: &self.routes,
        }
    }
}

impl OperatorConfig for Config {
    const NAME: &'static str = "notify";

    fn problems(&self) -> Vec<Problem> {
        let intervals: BTreeSet<&str> = self.intervals.keys().map(String::as_str).collect();
        let mut problems = self.root().problems(&intervals);
        problems.extend(inhibit::problems(&self.inhibit));
        for (name, interval) in &self.intervals {
            problems.extend(interval.problems(&format!("intervals.{name}")));
        }
        problems.extend(problems_of_matchers("critical", &self.critical));
        if problems.is_empty() {
            let known: BTreeSet<_> = self.root().receivers().into_iter().chain([DEFAULT.to_owned()]).collect();
            for name in self.receivers.keys().filter(|name| !known.contains(*name)) {
                let known: Vec<_> = known.iter().map(String::as_str).collect();
                problems.push(
                    Problem::new(format!("receivers.{name}"), format!("no route names a receiver `{name}`"))
                        .help(format!("there is {}", known.join(", "))),
                );
            }
        }
        for (name, receiver) in &self.receivers {
            let Some(budget) = &receiver.budget else { continue };
            if !(1..=10_000).contains(&budget.max) {
                problems.push(Problem::new(format!("receivers.{name}.budget.max"), "must be from 1 to 10000"));
            }
            if budget.per.0.is_zero() {
                problems.push(Problem::new(format!("receivers.{name}.budget.per"), "must be longer than nothing"));
            }
        }
        if let Some(link) = &self.acknowledge {
            let is_url = ["https://", "http://"]
                .iter()
                .any(|scheme| link.url.strip_prefix(scheme).is_some_and(|rest| !rest.is_empty()));
            if !is_url {
                problems.push(
                    Problem::new("acknowledge.url", "is not the URL of a page")
                        .help("write the admin address as people reach it, such as \"https://tocsin.example.org\""),
                );
            }
            if (1..16).contains(&link.key.reveal().len()) {
                problems.push(
                    Problem::new("acknowledge.key", "has less than 16 characters, so that links could be made up")
                        .help("write one of `openssl rand -hex 32` into a file, and `${file:…}` here"),
                );
            }
        }
        if !(1..=1_000_000).contains(&self.max_alerts) {
            problems.push(Problem::new("max_alerts", "must be from 1 to 1000000"));
        }
        problems
    }

    fn ports(&self) -> Ports {
        // Texts that cannot be read are told as problems; the names of receivers are right all the same.
        self.root().receivers()
    }

    fn needs_time(&self) -> bool {
        true
    }

    fn facts(&self) -> Facts {
        let budgets = self.receivers.iter().filter_map(|(name, receiver)| {
            let budget = receiver.budget.as_ref()?;
            Some((name.clone(), BudgetFacts { max: budget.max, per: budget.per.0 }))
        });
        Facts::Notifier(Box::new(NotifierFacts {
            root: self.root().facts(),
            inhibits: inhibit::facts(&self.inhibit),
            intervals: self.intervals.iter().map(|(name, interval)| (name.clone(), interval.build())).collect(),
            budgets: budgets.collect(),
            critical: Matchers::all(&self.critical),
            has_link: self.link().is_some(),
        }))
    }

    fn obeys(&self) -> bool {
        true
    }

    /// Alerts that people were told of must be told to the end, so no option is reason enough to forget them.
    fn state_shape(&self, _: Json) -> Json {
        Json::Null
    }

    fn takes_amendments(&self) -> bool {
        false
    }

    fn keying(&self) -> Keying {
        Keying::Whole
    }

    fn build(&self, context: &mut BuildContext<'_>) -> Built {
        let tree = Tree::build(&self.root());
        let ports = self.ports();
        let receiver = |name: &str| {
            let options = self.receivers.get(name);
            let budget = options.and_then(|options| options.budget.as_ref()).map(|budget| Budget {
                max: budget.max,
                per: budget.per.0,
                wait: budget.wait.0,
            });
            let tells_resolved = options.is_none_or(|options| options.send_resolved);
            Receiver { name: name.to_owned(), tells_resolved, budget }
        };
        let rejected = ports.len() + 1;
        let settings = Settings {
            name: context.name.clone(),
            receivers: [DEFAULT].into_iter().chain(ports.iter().map(String::as_str)).map(receiver).collect(),
            tree,
            inhibit: self.inhibit.clone(),
            intervals: self.intervals.iter().map(|(name, interval)| (name.clone(), interval.build())).collect(),
            silences: context.silences.to_vec(),
            is_critical: Matchers::all(&self.critical),
            max_alerts: self.max_alerts,
            link: self.link().map(|link| Link {
                url: link.url.trim_end_matches('/').to_owned(),
                key: blake3::derive_key("tocsin acknowledgement 1", link.key.reveal().as_bytes()),
            }),
        };
        let is_rejected_read = context.connected.iter().any(|port| port == "rejected");
        Built::Operator {
            operator: Box::new(Notify::new(settings, rejected, is_rejected_read)),
            prepare: None,
            reads: Projection::default(),
        }
    }
}
