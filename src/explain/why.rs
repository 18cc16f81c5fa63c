//! Why a rule told somebody or did not: the way of its records from the sources to the receivers, and the one place where it ends. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use anyhow::bail;
use serde_json::{Value as Json, json};
use tocsin_config::Plan;
use tocsin_config::facts::Audience;
use tocsin_config::plan::{ComponentId, Edge};
use tocsin_config::silence::Silence;
use tocsin_operators::is_named;
use tocsin_pipeline::ledger::Account;
use tocsin_pipeline::time::Timestamp;

use super::Standing;
use crate::api::to_the_second;

/// What was found.
#[derive(Debug)]
pub struct Answer {
    rule: String,
    key: Option<String>,
    /// The one cause, as a word.
    pub cause: &'static str,
    /// The same as a sentence.
    told: String,
    /// What was seen on the way, in its order.
    facts: Vec<String>,
    /// The alerts that are active: the one that the cause is of first, and the others by how much they need explaining.
    active: Vec<Verdict>,
    /// How many there are of them.
    count: usize,
    source: String,
}

/// What became of one of the active alerts.
#[derive(Debug)]
struct Verdict {
    /// In words.
    label: String,
    alert: Json,
    cause: &'static str,
    told: String,
    facts: Vec<String>,
}

/// So many verdicts are written, each in a line.
const LISTED_MAX: usize = 20;

impl Answer {
    pub fn text(&self) -> String {
        let key = self.key.as_ref().map_or(String::new(), |key| format!(" for {key}"));
        let mut text = String::new();
        let write = "writing to a string";
        let key = match &self.active[..] {
            [first, _, ..] => {
                let are = if first.alert["phase"].is_null() { "were" } else { "are" };
                writeln!(text, "{}{key}: {} alerts {are} active", self.rule, self.count).expect(write);
                for Verdict { label, cause, told, .. } in self.active.iter().take(LISTED_MAX) {
                    writeln!(text, "  {label}: {}, because {told}", cause.replace('_', " ")).expect(write);
                }
                let more = self.count.saturating_sub(LISTED_MAX);
                if more > 0 {
                    writeln!(text, "  and {more} more").expect(write);
                }
                writeln!(text).expect(write);
                format!(" for {}", first.label)
            }
            _ => key,
        };
        let cause = self.cause.replace('_', " ");
        writeln!(text, "{}{key}: {cause}\n  because {}\n", self.rule, self.told).expect(write);
        for fact in &self.facts {
            writeln!(text, "  {fact}").expect(write);
        }
        writeln!(text, "\n(as of {}; times are event time, but for those of deliveries)", self.source).expect(write);
        text
    }

    pub fn json(&self) -> Json {
        let verdict = |verdict: &Verdict| {
            let Verdict { alert, cause, told, .. } = verdict;
            let state = if alert["phase"].is_null() { &alert["state"] } else { &alert["phase"] };
            let labels = if alert["names"].is_null() { &alert["labels"] } else { &alert["names"] };
            json!({
                "fingerprint": alert["fingerprint"], "labels": labels, "state": state, "cause": cause, "because": told,
            })
        };
        json!({
            "rule": self.rule, "key": self.key, "cause": self.cause, "because": self.told, "facts": self.facts,
            "active": self.count, "alerts": self.active.iter().map(verdict).collect::<Vec<_>>(), "source": self.source,
        })
    }
}

/// The place where the way ends.
type Cause = (&'static str, String);

/// Looks for the cause. `key` is a value of a label or of a key, `name=value`, or a fingerprint; `at`: as it was then.
///
/// # Errors
/// When there is no such rule, or `at` is after all that is known.
pub fn why(
    plan: &Plan,
    standing: &Standing,
    rule: &str,
    key: Option<&str>,
    at: Option<Timestamp>,
) -> anyhow::Result<Answer> {
    let rules = || plan.operators.iter().filter(|operator| operator.type_name == "alert");
    let Some(number) = plan.operators.iter().position(|it| *it.name == *rule && it.type_name == "alert") else {
        let names: Vec<_> = rules().map(|rule| &*rule.name).collect();
        bail!("there is no rule `{rule}`; the rules are: {}", names.join(", "));
    };
    if let (Some(at), Some(last)) = (at, last_known(standing, rule))
        && at > last
    {
        let last = to_the_second(&last.to_string());
        bail!("{at} is after all that is known: the last moment that is, in event time, is {last}");
    }
    let mut inquiry = Inquiry { plan, standing, rule, key, facts: Vec::new(), active: Vec::new(), count: 0 };
    let (cause, told) = match at {
        Some(at) => inquiry.at(at),
        None => inquiry.now(ComponentId::Operator(number)),
    };
    let (rule, key, source) = (rule.to_owned(), key.map(str::to_owned), standing.source.clone());
    let Inquiry { facts, active, count, .. } = inquiry;
    Ok(Answer { rule, key, cause, told, facts, active, count, source })
}

/// Up to where event time has come at the rule and at those who tell of it.
fn last_known(standing: &Standing, rule: &str) -> Option<Timestamp> {
    let notifiers = standing.views.values().filter(|view| !view["notify"].is_null());
    standing.views.get(rule).into_iter().chain(notifiers).filter_map(|view| moment(view, "now")).max()
}

struct Inquiry<'a> {
    plan: &'a Plan,
    standing: &'a Standing,
    rule: &'a str,
    key: Option<&'a str>,
    facts: Vec<String>,
    active: Vec<Verdict>,
    count: usize,
}

impl<'a> Inquiry<'a> {
    fn fact(&mut self, text: impl Into<String>) {
        self.facts.push(text.into());
    }

    fn now(&mut self, rule: ComponentId) -> Cause {
        let upstream = self.upstream(rule);
        let view = self.view(self.rule);
        let alerts = view["alerts"].as_array().into_iter().flatten();
        let is_active = |alert: &&Json| matches!(alert["phase"].as_str(), Some("firing" | "pending"));
        let active: Vec<_> = alerts.filter(|alert| is_active(alert) && self.is_meant(alert)).collect();
        // What has fired before is told of whatever comes now.
        if active.is_empty() {
            return upstream.unwrap_or_else(|| self.not_active(rule));
        }
        let count = view["active"].as_u64().and_then(|count| usize::try_from(count).ok()).unwrap_or(0);
        self.judge(&active, count, |inquiry, alert| inquiry.of_alert(rule, alert))
    }

    /// What an operator says.
    fn view(&self, name: &str) -> &'a Json {
        self.standing.views.get(name).unwrap_or(&Json::Null)
    }

    /// Looks at each of the alerts that are active; gives the cause of the one that needs explaining most, with its facts.
    fn judge(&mut self, active: &[&Json], count: usize, of: impl Fn(&mut Self, &Json) -> Cause) -> Cause {
        let before = std::mem::take(&mut self.facts);
        for alert in active {
            let (cause, told) = of(self, alert);
            let (facts, label) = (std::mem::take(&mut self.facts), label(alert));
            self.active.push(Verdict { label, alert: (*alert).clone(), cause, told, facts });
        }
        self.facts = before;
        self.active.sort_by_key(|verdict| need(verdict.cause));
        self.count = count.max(self.active.len());
        let first = self.active.first_mut().expect("there is one at least");
        self.facts.append(&mut first.facts);
        (first.cause, first.told.clone())
    }

    /// What became of an alert that is active.
    fn of_alert(&mut self, rule: ComponentId, alert: &Json) -> Cause {
        let text = |name: &str| alert[name].as_str().unwrap_or("?");
        let label = label(alert);
        if alert["phase"] == "pending" {
            let (since, fires_at) = (text("since"), text("fires_at"));
            self.fact(format!("rule {}: {label} is pending since {since}, values {}", self.rule, alert["values"]));
            return ("pending", format!("the condition has held since {since} and must hold until {fires_at} (`for`)"));
        }
        let flaps = if alert["flapping"] == true { ", flapping" } else { "" };
        let since = text("started");
        self.fact(format!("rule {}: {label} fires since {since}{flaps}, values {}", self.rule, alert["values"]));
        self.downstream(rule, alert)
    }

    /// Whether the key means an alert or a record of one: by a label that it is told with, by its key, or by its fingerprint.
    fn is_meant(&self, alert: &Json) -> bool {
        let Some(key) = self.key else { return true };
        let names = [&alert["names"], &alert["labels"], &alert["key"], &json!({ "alertname": self.rule })];
        alert["fingerprint"] == key || names.iter().any(|names| is_named(key, names))
    }

    fn account(&self, component: ComponentId) -> Account {
        self.standing.ledger.components.get(&**self.plan.name(component)).cloned().unwrap_or_default()
    }

    fn edges_to(&self, to: ComponentId) -> impl Iterator<Item = &Edge> {
        self.plan.edges.iter().filter(move |edge| edge.to == to)
    }

    /// All that leads to a component, sources first.
    fn ancestors(&self, of: ComponentId) -> Vec<ComponentId> {
        let mut found = BTreeSet::new();
        let mut todo = vec![of];
        while let Some(at) = todo.pop() {
            for edge in self.edges_to(at) {
                if found.insert(edge.from.component) {
                    todo.push(edge.from.component);
                }
            }
        }
        found.into_iter().collect()
    }

    /// Where records end before they come to the rule, if none comes.
    fn upstream(&mut self, rule: ComponentId) -> Option<Cause> {
        let ancestors = self.ancestors(rule);
        let mut cause = None;
        let is_source = |it: &&ComponentId| matches!(it, ComponentId::Source(_));
        let sources: Vec<_> = ancestors.iter().filter(is_source).copied().collect();
        for source in &sources {
            let (name, account) = (self.plan.name(*source).clone(), self.account(*source));
            let undecodable = account.dropped.get("undecodable").copied().unwrap_or(0) + handed(&account, "rejected");
            self.fact(format!("source {name}: {} records read, {undecodable} not readable", account.received));
        }
        let accounts: Vec<_> = sources.iter().map(|source| self.account(*source)).collect();
        if accounts.iter().all(|account| account.received == 0) {
            let names: Vec<_> = sources.iter().map(|source| self.plan.name(*source).to_string()).collect();
            return Some(("no_records", format!("no record has been read from {}", names.join(", "))));
        }
        if accounts.iter().all(|account| handed(account, "") == 0) {
            return Some(("undecodable", "the codec could read none of the records that came".to_owned()));
        }
        let is_operator = |it: &&ComponentId| matches!(it, ComponentId::Operator(_));
        for operator in ancestors.iter().filter(is_operator).copied() {
            let ComponentId::Operator(number) = operator else { continue };
            let (name, account) = (self.plan.name(operator).clone(), self.account(operator));
            let type_name = self.plan.operators[number].type_name;
            let dropped: Vec<_> = account.dropped.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
            let passed: u64 = account.handed.values().sum();
            let dropped = if dropped.is_empty() { String::new() } else { format!(" ({})", dropped.join(", ")) };
            self.fact(format!("{type_name} {name}: {} records came, {passed} went on{dropped}", account.received));
            if cause.is_none() && account.received > 0 && passed == 0 {
                cause = match type_name {
                    "window" if account.dropped.get("late").is_some_and(|late| *late == account.received) => {
                        Some(("late", format!("all records came to `{name}` after their windows had closed")))
                    }
                    // It is looked at with the rule: what is open may be about to tell.
                    "window" => None,
                    _ => Some(("filtered", format!("`{name}` let none of {} records through", account.received))),
                };
            }
        }
        cause
    }

    /// Why no alert of the rule is active.
    fn not_active(&mut self, rule: ComponentId) -> Cause {
        let view = self.view(self.rule);
        if let Some((name, window)) = self.open_window(rule) {
            let closes_at = window["closes_at"].as_str().unwrap_or("?").to_owned();
            let records = window["records"].as_array().cloned().unwrap_or_default();
            let values: Vec<_> = records.iter().take(3).map(values).collect();
            self.fact(format!("window {name}: open until {closes_at}, so far {}", values.join(" · ")));
        }
        let told: Vec<_> = view["told"].as_array().into_iter().flatten().filter(|told| self.is_meant(told)).collect();
        let (amendments, told): (Vec<_>, Vec<_>) = told.into_iter().partition(|told| told["state"] == "amended");
        if let Some(amendment) = amendments.first() {
            self.fact(amended(self.rule, amendment));
        }
        if let Some(told) = told.first().filter(|told| told["state"] == "resolved") {
            let ended = told["ends_at"].as_str().unwrap_or("?");
            self.fact(format!("rule {}: {} was over at {ended}", self.rule, names(&told["labels"])));
            return ("resolved", format!("it fired until {ended}, and nothing has made it fire since"));
        }
        if let (Some(amendment), [], Some(_)) = (amendments.first(), &told[..], self.key) {
            let time = amendment["time"].as_str().unwrap_or("?");
            let told = format!(
                "all that is known of it is an amendment of {time}: what came late would have changed what was decided then, which \
                 is told at `{}.amended` alone",
                self.rule
            );
            return ("amended", told);
        }
        let account = self.account(rule);
        self.fact(format!("rule {}: {} records judged", self.rule, account.received));
        if let Some((name, window)) = self.open_window(rule).filter(|_| account.received == 0) {
            let closes_at = window["closes_at"].as_str().unwrap_or("?");
            let told =
                format!("the first window of `{name}` closes when event time comes to {closes_at}, and has not yet");
            return ("window_open", told);
        }
        if account.received == 0 {
            return ("nothing_to_judge", "no record has come to the rule".to_owned());
        }
        let entries = view["alerts"].as_array();
        let is_known = entries.is_some_and(|alerts| alerts.iter().any(|alert| self.is_meant(alert)));
        if let Some(key) = self.key.filter(|_| !is_known && told.is_empty() && self.open_window(rule).is_none()) {
            return ("unknown_key", unknown(key, view));
        }
        let of_key = if self.key.is_some() { " of this key" } else { "" };
        (
            "condition_false",
            format!("the condition was true of no record{of_key}, or has ceased to be while it was pending"),
        )
    }

    /// The window that the rule reads and that is open for the key.
    fn open_window(&self, rule: ComponentId) -> Option<(String, Json)> {
        self.edges_to(rule).find_map(|edge| {
            let name = self.plan.name(edge.from.component).to_string();
            let open = self.standing.views.get(&name)?["open"].as_array()?;
            let window = open.iter().find(|window| {
                window["records"].as_array().is_some_and(|records| {
                    records.iter().any(|record| self.key.is_none_or(|key| is_named(key, record)))
                })
            });
            Some((name, window?.clone()))
        })
    }

    /// What became of an alert that fires: of all its readers the one that got furthest.
    fn downstream(&mut self, rule: ComponentId, alert: &Json) -> Cause {
        let read = self.plan.edges.iter().filter(|edge| edge.from.component == rule && edge.from.port == 0);
        // A file or a topic tells nobody.
        let tells = |reader: &ComponentId| match reader {
            ComponentId::Sink(sink) => self.plan.sinks[*sink].options.audience() == Audience::People,
            ComponentId::Operator(_) | ComponentId::Source(_) => true,
        };
        let readers: BTreeSet<_> = read.map(|edge| edge.to).filter(tells).collect();
        if readers.is_empty() {
            return ("nobody_reads", "neither a `notify` nor a sink that tells somebody reads the rule".to_owned());
        }
        let id = self.standing.views.get(self.rule).and_then(|view| {
            let told = view["told"].as_array()?.iter().find(|told| told["fingerprint"] == alert["fingerprint"])?;
            told["id"].as_str().map(str::to_owned)
        });
        let mut causes = Vec::new();
        for reader in readers {
            match reader {
                ComponentId::Operator(number) if self.plan.operators[number].type_name == "notify" => {
                    causes.extend(self.notify(reader, alert));
                }
                ComponentId::Sink(_) => causes.extend(id.as_deref().map(|id| self.delivery(reader, id))),
                ComponentId::Operator(_) | ComponentId::Source(_) => {}
            }
        }
        // Delivered to one, and silenced for another: it was told, so that is the answer.
        let order = |(cause, _): &Cause| ORDER.iter().position(|known| known == cause).unwrap_or(ORDER.len());
        causes.sort_by_key(order);
        causes.into_iter().next().unwrap_or_else(|| {
            ("on_its_way", "it fires, and what is told of it has not come to those who read the rule".to_owned())
        })
    }

    /// What a `notify` says of an alert, for each of its receivers.
    fn notify(&mut self, notify: ComponentId, alert: &Json) -> Vec<Cause> {
        let name = self.plan.name(notify).to_string();
        let known = self.view(&name)["alerts"].as_array().into_iter().flatten();
        let Some(known) = known.into_iter().find(|known| known["fingerprint"] == alert["fingerprint"]) else {
            self.fact(format!("notify {name}: knows nothing of it"));
            return Vec::new();
        };
        let verdicts = known["receivers"].as_array().map_or(&[][..], Vec::as_slice);
        if verdicts.is_empty() {
            self.fact(format!("notify {name}: knows it, and no group of it has it"));
        }
        let mut causes = Vec::new();
        for verdict in verdicts {
            let (cause, told) = of_verdict(verdict);
            let receiver = verdict["receiver"].as_str().unwrap_or("?").to_owned();
            self.fact(format!("notify {name}, receiver {receiver}: {told}"));
            let id = verdict["id"].as_str().or_else(|| verdict["notified"].as_str());
            match id {
                Some(id) if cause == "notified" => {
                    let sinks: Vec<_> = self.sinks_of(notify, &receiver);
                    if sinks.is_empty() {
                        causes.push(("nobody_reads", format!("no sink reads the receiver `{receiver}` of `{name}`")));
                    }
                    for sink in sinks {
                        causes.push(self.delivery(sink, id));
                    }
                }
                _ => causes.push((cause, told)),
            }
        }
        causes
    }

    /// The sinks that read a receiver.
    fn sinks_of(&self, notify: ComponentId, receiver: &str) -> Vec<ComponentId> {
        let ComponentId::Operator(number) = notify else { return Vec::new() };
        let ports = self.plan.operators[number].options.ports();
        let port = ports.iter().position(|port| port == receiver).map_or(0, |at| at + 1);
        let edges = self.plan.edges.iter();
        edges.filter(|edge| edge.from.component == notify && edge.from.port == port).map(|edge| edge.to).collect()
    }

    /// How the attempts to deliver went.
    fn delivery(&mut self, sink: ComponentId, id: &str) -> Cause {
        let name = self.plan.name(sink).to_string();
        let Some(deliveries) = &self.standing.deliveries else {
            self.fact(format!("sink {name}: how deliveries went is known to the running daemon alone"));
            return ("notified", format!("it was handed to `{name}`"));
        };
        let last = deliveries.iter().find(|delivery| {
            delivery["sink"] == *name && delivery["id"].as_str().is_some_and(|known| known.contains(id))
        });
        let Some(last) = last else {
            self.fact(format!("sink {name}: no attempt yet"));
            return ("notified", format!("it was handed to `{name}`, which has not told how that went"));
        };
        let (at, why) = (last["at"].as_str().unwrap_or("?"), last["why"].as_str().unwrap_or("?"));
        let (cause, told) = match last["outcome"].as_str() {
            Some("delivered") => ("delivered", format!("`{name}` delivered it at {at}")),
            Some("again") => {
                ("delivery_fails", format!("`{name}` could not deliver it at {at} and tries again: {why}"))
            }
            _ => ("refused", format!("the receiver of `{name}` refused it for good at {at}: {why}")),
        };
        self.fact(format!("sink {name}: {told}"));
        (cause, told)
    }

    /// What was so at a moment, from what was told before it.
    fn at(&mut self, at: Timestamp) -> Cause {
        let view = self.view(self.rule);
        let told = view["told"].as_array().into_iter().flatten().filter(|told| self.is_meant(told));
        let before = told.filter_map(|told| Some((time_of(told)?, told))).filter(|(time, _)| *time <= at);
        // The newest is told first.
        let mut last: BTreeMap<&str, (Timestamp, &Json)> = BTreeMap::new();
        for (time, told) in before {
            let known = last.entry(told["fingerprint"].as_str().unwrap_or_default()).or_insert((time, told));
            if known.0 < time {
                *known = (time, told);
            }
        }
        let firing: Vec<_> = last.values().map(|(_, told)| *told).filter(|told| told["state"] == "firing").collect();
        if !firing.is_empty() {
            return self.judge(&firing, firing.len(), |inquiry, told| inquiry.of_firing(told, at));
        }
        let Some((since, last)) = last.into_values().max_by_key(|(time, _)| *time) else {
            return ("nothing_told", format!("of what is still known, nothing was told of it before {at}"));
        };
        self.fact(was(self.rule, last, since));
        ("resolved", format!("it was over at {since}"))
    }

    /// What had become at a moment of an alert that fired then.
    fn of_firing(&mut self, alert: &Json, at: Timestamp) -> Cause {
        let since = time_of(alert).unwrap_or(Timestamp::MIN);
        self.fact(was(self.rule, alert, since));
        let told = self.told_of(alert, since, at).map(|brief| {
            let text = |name: &str| brief[name].as_str().unwrap_or("?");
            let told = format!("{} was told at {} (event time; {})", text("receiver"), text("time"), text("reason"));
            self.fact(format!("notification {}: {told}", text("id")));
            (if text("outcome") == "digest" { "over_budget" } else { "notified" }, told, &brief["acknowledged"])
        });
        let attended = told.as_ref().map(|(_, _, attended)| *attended);
        let attended =
            attended.filter(|attended| moment(attended, "at").is_some_and(|time| time <= at)).map(|attended| {
                let text = |name: &str| attended[name].as_str().unwrap_or("?");
                format!("{} had taken care of it since {}", text("by"), text("at"))
            });
        attended.iter().for_each(|told| self.fact(told.as_str()));
        let silences = self.silences_of(alert, at);
        silences.iter().for_each(|told| self.fact(told.as_str()));
        match (silences.into_iter().next(), attended, told) {
            (Some(silence), _, _) => ("silenced", silence),
            (None, Some(attended), _) => ("acknowledged", attended),
            (None, None, Some((cause, told, _))) => (cause, told),
            (None, None, None) => {
                let unlisted = self.unlisted(since, at).unwrap_or_default();
                let told =
                    format!("it fired since {since}, and of what is still known no notification told of it{unlisted}");
                ("firing", told)
            }
        }
    }

    /// The last notification up to a moment that told of an alert since it began.
    fn told_of(&self, alert: &Json, since: Timestamp, at: Timestamp) -> Option<&'a Json> {
        let fingerprint = &alert["fingerprint"];
        let notifications = self.standing.views.values().filter_map(|view| view["notifications"].as_array()).flatten();
        let is_of_it = |brief: &&Json| {
            brief["alerts"].as_array().is_some_and(|alerts| alerts.contains(fingerprint))
                && moment(brief, "time").is_some_and(|time| (since..=at).contains(&time))
        };
        notifications.filter(is_of_it).max_by_key(|brief| moment(brief, "time"))
    }

    /// The last notification of that time that told of more alerts than are kept of it: it may have told of any.
    fn unlisted(&self, since: Timestamp, at: Timestamp) -> Option<String> {
        let count = |brief: &Json| brief["firing"].as_u64().unwrap_or(0) + brief["resolved"].as_u64().unwrap_or(0);
        let listed = |brief: &Json| brief["alerts"].as_array().map_or(0, Vec::len) as u64;
        let notifications = self.standing.views.values().filter_map(|view| view["notifications"].as_array()).flatten();
        let of_time = notifications.filter_map(|brief| Some((moment(brief, "time")?, brief)));
        let long = of_time.filter(|(time, brief)| (since..=at).contains(time) && count(brief) > listed(brief));
        let (time, brief) = long.max_by_key(|(time, _)| *time)?;
        Some(format!("; one of {time} told of {} alerts, of which {} are still known", count(brief), listed(brief)))
    }

    /// The silences that muted an alert at a moment, in words, each once.
    fn silences_of(&self, alert: &Json, at: Timestamp) -> Vec<String> {
        let label = |name: &str| match name {
            "alertname" => alert["labels"][name].as_str().or(Some(self.rule)),
            name => alert["labels"][name].as_str(),
        };
        let views = self.standing.views.values().filter_map(|view| view["silences"].as_array()).flatten();
        let silences = views.filter_map(|view| {
            let mut silence = view.clone();
            // What is told of one beside what it is.
            for name in ["state", "configured", "muted"] {
                silence.as_object_mut()?.remove(name);
            }
            Silence::of_json(&silence).ok()
        });
        let muting = silences.filter(|silence| silence.is_active(at) && silence.matches(label));
        let told = muting.map(|silence| {
            let Silence { id, owner, reason, ends_at, .. } = silence;
            format!("the silence {id} of {owner} muted it ({reason}), until {ends_at}")
        });
        told.collect::<BTreeSet<_>>().into_iter().collect()
    }
}

/// The furthest first.
const ORDER: [&str; 16] = [
    "delivered",
    "notified",
    "delivery_fails",
    "refused",
    "acknowledged",
    "digested",
    "over_budget",
    "group_wait",
    "group_interval",
    "muted",
    "silenced",
    "inhibited",
    "nobody_reads",
    "on_its_way",
    "pending",
    "condition_false",
];

/// How much of an answer a cause owes to whoever asks why nobody was told: the most first.
fn need(cause: &str) -> usize {
    let order = [
        "refused",
        "delivery_fails",
        "nobody_reads",
        "on_its_way",
        "firing",
        "silenced",
        "inhibited",
        "muted",
        "over_budget",
        "group_interval",
        "group_wait",
        "pending",
        "digested",
        "acknowledged",
        "notified",
        "delivered",
    ];
    order.iter().position(|known| *known == cause).unwrap_or(0)
}

/// What an alert is called in words: its labels and its level.
fn label(alert: &Json) -> String {
    let severity = alert["severity"].as_str().map_or(String::new(), |severity| format!(" ({severity})"));
    names(&alert["labels"]) + &severity
}

/// The cause of a verdict of `notify`, in words.
fn of_verdict(verdict: &Json) -> Cause {
    let text = |name: &str| verdict[name].as_str().unwrap_or("an unknown time").to_owned();
    let list = |name: &str| {
        let texts = verdict[name].as_array().into_iter().flatten().filter_map(Json::as_str);
        texts.collect::<Vec<_>>().join(", ")
    };
    match verdict["cause"].as_str() {
        Some("silenced") => ("silenced", format!("the silence {} mutes it", list("silences"))),
        Some("inhibited") => ("inhibited", format!("the alert {} inhibits it", text("by"))),
        Some("muted") => {
            ("muted", format!("the interval {} mutes its route until {}", text("interval"), text("until")))
        }
        Some("group_wait") => ("group_wait", format!("its group waits for more alerts until {}", text("until"))),
        Some("group_interval") => {
            ("group_interval", format!("its group was told before and is again at {}", text("until")))
        }
        Some("over_budget") => {
            ("over_budget", format!("the budget is spent; a digest tells of it at {}", text("digest_at")))
        }
        Some("digested") => ("digested", "a digest told of it".to_owned()),
        Some("acknowledged") => ("acknowledged", format!("{} takes care of it", text("by"))),
        Some("notified") => {
            let (at, again) = (text("at"), text("repeats_at"));
            ("notified", format!("told at {at} (event time), and again at {again} if nothing changes"))
        }
        _ => ("on_its_way", "nothing is known of it".to_owned()),
    }
}

fn handed(account: &Account, port: &str) -> u64 {
    account.handed.get(port).copied().unwrap_or(0)
}

/// Labels or keys in words.
fn names(texts: &Json) -> String {
    let texts = texts.as_object().into_iter().flatten();
    let texts: Vec<_> = texts
        .map(|(name, value)| format!("{name}={}", value.as_str().map_or_else(|| value.to_string(), str::to_owned)))
        .collect();
    if texts.is_empty() { "the alert".to_owned() } else { texts.join(" ") }
}

fn moment(record: &Json, name: &str) -> Option<Timestamp> {
    Timestamp::parse_rfc3339(record[name].as_str()?.as_bytes())
}

/// When what a rule told came to be so.
fn time_of(told: &Json) -> Option<Timestamp> {
    moment(told, if told["state"] == "resolved" { "ends_at" } else { "starts_at" })
}

/// What a rule had told last, in words.
fn was(rule: &str, told: &Json, since: Timestamp) -> String {
    let state = told["state"].as_str().unwrap_or("?");
    format!("rule {rule}: {} was {state} since {since}, values {}", names(&told["labels"]), told["values"])
}

/// An amendment in words.
fn amended(rule: &str, amendment: &Json) -> String {
    let holds = |name: &str| if amendment[name] == true { "true" } else { "false" };
    let (time, label) = (amendment["time"].as_str().unwrap_or("?"), names(&amendment["labels"]));
    format!(
        "rule {rule}: amended: at {time} the condition was {} of {label} and would be {} with what came late, values {}",
        holds("was"),
        holds("is"),
        amendment["values"]
    )
}

/// That nobody knows a key, and which are known.
fn unknown(key: &str, view: &Json) -> String {
    let known = view["known"].as_array().into_iter().flatten().map(names).collect::<Vec<_>>();
    let of_rule = match &known[..] {
        [] => "the rule has none at all now".to_owned(),
        known => format!("known are: {}", known.join(" · ")),
    };
    format!(
        "no alert with the key {key} is known: the condition was true of no record of it, or no record has it; {of_rule}"
    )
}

/// A window's record in words.
fn values(record: &Json) -> String {
    let fields = record.as_object().into_iter().flatten().filter(|(name, _)| !name.starts_with("window_"));
    fields.map(|(name, value)| format!("{name} {value}")).collect::<Vec<_>>().join(", ")
}
