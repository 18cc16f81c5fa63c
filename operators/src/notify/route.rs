//! Who is told of which alerts: a tree of routes, and the way of an alert through it. No time, no state.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration as Span;

use schemars::JsonSchema;
use serde::Deserialize;
use tocsin_config::component::Problem;
use tocsin_config::facts::RouteFacts;
use tocsin_config::types::Duration;

use tocsin_config::matcher::{Matchers, quoted};

/// Routes are not nested deeper, and there are no more of them.
const DEPTH_MAX: usize = 32;
const ROUTES_MAX: usize = 10_000;
/// How many receivers are told one after the other.
const STEPS_MAX: usize = 16;

/// The receiver whose notifications leave by the operator's own name.
pub(super) const DEFAULT: &str = "default";
/// In `group_by`: all labels.
const ALL: &str = "...";

/// A way for some of the alerts that get to what it stands in. An alert takes the first way whose matchers are true of
/// it, and looks at the ways within; where it takes none, it is told as this route says. What a route does not say of
/// receiver, groups and times is as in the one that it stands in.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RouteOptions {
    /// Matchers of the alerts that take this route, such as `'severity="critical"'` and `'service=~"web|api"'`: `=`,
    /// `!=`, `=~` and `!~` as in Alertmanager. All must be true; without any, all alerts take it.
    #[serde(default)]
    matchers: Vec<String>,
    /// Who is told: the notifications leave by `NAME.receiver`, those for `default` by the operator's own name.
    receiver: Option<String>,
    /// Whether alerts that have taken this route go on to those after it. Default: `false`.
    #[serde(default, rename = "continue")]
    is_continued: bool,
    /// The labels by which alerts are grouped; `["..."]`: each set of labels is a group of its own; `[]`: all are one
    /// group.
    group_by: Option<Vec<String>>,
    /// How long the first notification of a group waits for more alerts.
    group_wait: Option<Duration>,
    /// How long after a notification of a group changes of it wait.
    group_interval: Option<Duration>,
    /// After how long a notification is sent again for a group that still fires.
    repeat_interval: Option<Duration>,
    /// Names of `intervals` during which alerts of this route are not told. Not handed on to the routes within.
    #[serde(default)]
    mute: Vec<String>,
    /// Names of `intervals`: outside of all of them alerts of this route are not told. Not handed on to the routes
    /// within.
    #[serde(default)]
    active: Vec<String>,
    /// Who is told next if nobody takes care, in the order of the times; `[]`: nobody.
    escalate: Option<Vec<EscalationOptions>>,
    /// Routes within, in the order in which alerts look at them.
    #[serde(default)]
    routes: Vec<RouteOptions>,
}

/// Who else is told if nobody has taken care of what was told.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct EscalationOptions {
    /// How long after the first notification that nobody has taken care of.
    pub(super) after: Duration,
    /// Who is told: as `receiver` of a route.
    pub(super) receiver: String,
}

/// The options that all alerts begin with. They all take this route, it is never muted, and there is none after it.
#[derive(Debug)]
pub(super) struct RootOptions<'a> {
    pub(super) receiver: &'a str,
    pub(super) group_by: &'a [String],
    pub(super) group_wait: Span,
    pub(super) group_interval: Span,
    pub(super) repeat_interval: Span,
    pub(super) escalate: &'a [EscalationOptions],
    pub(super) routes: &'a [RouteOptions],
}

impl RootOptions<'_> {
    /// What is wrong. `intervals` are the names of those that there are.
    pub(super) fn problems(&self, intervals: &BTreeSet<&str>) -> Vec<Problem> {
        let mut check = Check { intervals, count: 0, problems: Vec::new() };
        check.receiver("receiver", self.receiver);
        check.group_by("group_by", self.group_by);
        check.not_nothing("group_interval", self.group_interval);
        check.not_nothing("repeat_interval", self.repeat_interval);
        check.escalate("escalate", self.escalate);
        check.routes("routes", self.routes, 1);
        if check.count > ROUTES_MAX {
            check.problems.push(Problem::new("routes", format!("there are more than {ROUTES_MAX} routes")));
        }
        check.problems
    }
}

impl RootOptions<'_> {
    /// Who may be told, without `default`, by name. Also where other options are wrong.
    pub(super) fn receivers(&self) -> Vec<String> {
        let mut names: BTreeSet<&str> = [self.receiver].into();
        names.extend(self.escalate.iter().map(|step| step.receiver.as_str()));
        named(self.routes, &mut names, 0);
        names.into_iter().filter(|name| *name != DEFAULT).map(str::to_owned).collect()
    }
}

impl RootOptions<'_> {
    /// What the routes tell of themselves. Only called when there are no problems.
    pub(super) fn facts(&self) -> RouteFacts {
        let mut root = RouteFacts {
            option: String::new(),
            matchers: Matchers::default(),
            receiver: self.receiver.to_owned(),
            is_continued: false,
            group_by: self.group_by.to_vec(),
            group_wait: self.group_wait,
            group_interval: self.group_interval,
            repeat_interval: self.repeat_interval,
            mute: Vec::new(),
            active: Vec::new(),
            escalate: steps(self.escalate),
            routes: Vec::new(),
        };
        root.routes = facts_within(&root, "routes", self.routes);
        root
    }
}

fn facts_within(above: &RouteFacts, option: &str, routes: &[RouteOptions]) -> Vec<RouteFacts> {
    let within = |(at, options): (usize, &RouteOptions)| {
        let mut route = RouteFacts {
            option: format!("{option}[{at}]"),
            matchers: Matchers::all(&options.matchers),
            receiver: options.receiver.clone().unwrap_or_else(|| above.receiver.clone()),
            is_continued: options.is_continued,
            group_by: options.group_by.clone().unwrap_or_else(|| above.group_by.clone()),
            group_wait: options.group_wait.map_or(above.group_wait, |time| time.0),
            group_interval: options.group_interval.map_or(above.group_interval, |time| time.0),
            repeat_interval: options.repeat_interval.map_or(above.repeat_interval, |time| time.0),
            mute: options.mute.clone(),
            active: options.active.clone(),
            escalate: options.escalate.as_deref().map_or_else(|| above.escalate.clone(), steps),
            routes: Vec::new(),
        };
        route.routes = facts_within(&route, &format!("{}.routes", route.option), &options.routes);
        route
    };
    routes.iter().enumerate().map(within).collect()
}

fn named<'o>(routes: &'o [RouteOptions], names: &mut BTreeSet<&'o str>, depth: usize) {
    for route in routes.iter().filter(|_| depth <= DEPTH_MAX) {
        names.extend(route.receiver.as_deref());
        names.extend(route.escalate.iter().flatten().map(|step| step.receiver.as_str()));
        named(&route.routes, names, depth + 1);
    }
}

fn steps(options: &[EscalationOptions]) -> Vec<(Span, String)> {
    options.iter().map(|step| (step.after.0, step.receiver.clone())).collect()
}

struct Check<'a> {
    intervals: &'a BTreeSet<&'a str>,
    count: usize,
    problems: Vec<Problem>,
}

impl Check<'_> {
    fn routes(&mut self, option: &str, routes: &[RouteOptions], depth: usize) {
        if depth > DEPTH_MAX && !routes.is_empty() {
            self.problems.push(Problem::new(option, format!("routes are at most {DEPTH_MAX} deep")));
            return;
        }
        for (at, route) in routes.iter().enumerate() {
            self.count += 1;
            let option = format!("{option}[{at}]");
            self.problems.extend(problems_of_matchers(&format!("{option}.matchers"), &route.matchers));
            if let Some(receiver) = &route.receiver {
                self.receiver(&format!("{option}.receiver"), receiver);
            }
            self.group_by(&format!("{option}.group_by"), route.group_by.as_deref().unwrap_or_default());
            for (name, time) in [("group_interval", route.group_interval), ("repeat_interval", route.repeat_interval)] {
                self.not_nothing(&format!("{option}.{name}"), time.map_or(Span::MAX, |time| time.0));
            }
            self.escalate(&format!("{option}.escalate"), route.escalate.as_deref().unwrap_or_default());
            for (name, intervals) in [("mute", &route.mute), ("active", &route.active)] {
                for (at, interval) in intervals.iter().enumerate() {
                    self.interval(&format!("{option}.{name}[{at}]"), interval);
                }
            }
            self.routes(&format!("{option}.routes"), &route.routes, depth + 1);
        }
    }

    fn receiver(&mut self, option: &str, name: &str) {
        let is_name =
            !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
        if !is_name {
            self.problems.push(
                Problem::new(option, format!("{name:?} cannot be named among inputs"))
                    .help("use letters, digits, `_` and `-`"),
            );
        } else if name == "rejected" {
            self.problems.push(
                Problem::new(option, "`rejected` is the name of an output that is there anyway")
                    .help("give the receiver another name"),
            );
        }
    }

    fn group_by(&mut self, option: &str, labels: &[String]) {
        if labels.len() > 1 && labels.iter().any(|label| label == ALL) {
            let message = format!("`{ALL}` stands for all labels, and there are others beside it");
            self.problems.push(Problem::new(option, message).help(format!("write `[\"{ALL}\"]` alone")));
            return;
        }
        let mut seen = BTreeSet::new();
        for (at, label) in labels.iter().enumerate() {
            let option = format!("{option}[{at}]");
            if label.is_empty() {
                self.problems.push(Problem::new(option, format!("{label:?} is not a name of a label")));
            } else if !seen.insert(label) {
                self.problems.push(Problem::new(option, format!("`{label}` is there twice")));
            }
        }
    }

    fn not_nothing(&mut self, option: &str, time: Span) {
        if time.is_zero() {
            self.problems.push(Problem::new(option, "must be longer than nothing"));
        }
    }

    fn escalate(&mut self, option: &str, steps: &[EscalationOptions]) {
        if steps.len() > STEPS_MAX {
            self.problems.push(Problem::new(option, format!("there are more than {STEPS_MAX} steps")));
        }
        let mut before = Span::ZERO;
        for (at, step) in steps.iter().enumerate() {
            self.receiver(&format!("{option}[{at}].receiver"), &step.receiver);
            if step.after.0 <= before {
                let message =
                    if at == 0 { "must be longer than nothing" } else { "must be longer than that of the step before" };
                self.problems.push(Problem::new(format!("{option}[{at}].after"), message));
            }
            before = step.after.0;
        }
    }

    fn interval(&mut self, option: &str, name: &str) {
        if self.intervals.contains(name) {
            return;
        }
        let known: Vec<&str> = self.intervals.iter().copied().collect();
        let help = match known.as_slice() {
            [] => format!("define it as `intervals.{name}`"),
            known => format!("there is {}", known.join(", ")),
        };
        self.problems.push(Problem::new(option, format!("there is no interval {name:?}")).help(help));
    }
}

/// What is wrong with a list of texts of matchers.
pub(super) fn problems_of_matchers(option: &str, texts: &[String]) -> Vec<Problem> {
    let problem = |(at, text): (usize, &String)| {
        let error = Matchers::parse(text).err()?;
        Some(Problem::new(format!("{option}[{at}]"), error.message).within(error.within))
    };
    texts.iter().enumerate().filter_map(problem).collect()
}

/// By what alerts are grouped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum GroupBy {
    All,
    Labels(BTreeSet<String>),
}

impl GroupBy {
    fn new(labels: &[String]) -> Self {
        match labels {
            [all] if all == ALL => Self::All,
            labels => Self::Labels(labels.iter().cloned().collect()),
        }
    }
}

/// A route with all that it says itself or is as in those above it.
#[derive(Clone, Debug)]
pub(super) struct Route {
    /// The matchers from the root to it: what Alertmanager begins the keys of its groups with. Not unique.
    pub(super) key: String,
    /// The key, with its place among the routes of the same key unless it is the first.
    pub(super) id: String,
    pub(super) receiver: String,
    pub(super) group_by: GroupBy,
    pub(super) group_wait: Span,
    pub(super) group_interval: Span,
    pub(super) repeat_interval: Span,
    pub(super) mute: Vec<String>,
    pub(super) active: Vec<String>,
    /// Who is told if nobody takes care, and after how long.
    pub(super) escalate: Vec<(Span, String)>,
    matchers: Matchers,
    is_continued: bool,
    /// The indices of the routes within.
    routes: Vec<usize>,
}

impl Route {
    /// The labels that name the group of an alert with these labels.
    pub(super) fn group(&self, labels: &BTreeMap<String, String>) -> BTreeMap<String, String> {
        match &self.group_by {
            GroupBy::All => labels.clone(),
            GroupBy::Labels(names) => labels
                .iter()
                .filter(|(name, _)| names.contains(*name))
                .map(|(name, text)| (name.clone(), text.clone()))
                .collect(),
        }
    }

    /// The key of a group as Alertmanager writes it: `{}/{severity="critical"}:{alertname="x", job="y"}`.
    pub(super) fn group_key(&self, group: &BTreeMap<String, String>) -> String {
        let labels: Vec<String> = group.iter().map(|(name, text)| format!("{name}={}", quoted(text))).collect();
        format!("{}:{{{}}}", self.key, labels.join(", "))
    }
}

/// All routes, ready to be asked.
#[derive(Clone, Debug)]
pub(super) struct Tree {
    /// As they are written; the root comes first.
    routes: Vec<Route>,
}

impl Tree {
    /// Only called when there are no problems.
    pub(super) fn build(root: &RootOptions<'_>) -> Self {
        let matchers = Matchers::default();
        let mut tree = Self {
            routes: vec![Route {
                key: matchers.to_string(),
                id: matchers.to_string(),
                receiver: root.receiver.to_owned(),
                group_by: GroupBy::new(root.group_by),
                group_wait: root.group_wait,
                group_interval: root.group_interval,
                repeat_interval: root.repeat_interval,
                mute: Vec::new(),
                active: Vec::new(),
                escalate: steps(root.escalate),
                matchers,
                is_continued: false,
                routes: Vec::new(),
            }],
        };
        tree.add(0, root.routes);
        tree
    }

    fn add(&mut self, above: usize, routes: &[RouteOptions]) {
        for options in routes {
            let mut matchers = Matchers::all(&options.matchers);
            matchers.sort();
            let index = self.routes.len();
            let key = format!("{}/{matchers}", self.routes[above].key);
            let id = match self.routes.iter().filter(|known| known.key == key).count() {
                0 => key.clone(),
                before => format!("{key}#{}", before + 1),
            };
            let parent = &mut self.routes[above];
            parent.routes.push(index);
            let route = Route {
                key,
                id,
                receiver: options.receiver.clone().unwrap_or_else(|| parent.receiver.clone()),
                group_by: options.group_by.as_deref().map_or_else(|| parent.group_by.clone(), GroupBy::new),
                group_wait: options.group_wait.map_or(parent.group_wait, |time| time.0),
                group_interval: options.group_interval.map_or(parent.group_interval, |time| time.0),
                repeat_interval: options.repeat_interval.map_or(parent.repeat_interval, |time| time.0),
                mute: options.mute.clone(),
                active: options.active.clone(),
                escalate: options.escalate.as_deref().map_or_else(|| parent.escalate.clone(), steps),
                matchers,
                is_continued: options.is_continued,
                routes: Vec::new(),
            };
            self.routes.push(route);
            self.add(index, &options.routes);
        }
    }

    /// The routes that an alert with these labels ends at, in their order; at least the root.
    pub(super) fn matching<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> Vec<&Route> {
        let mut found = Vec::new();
        self.descend(0, &label, &mut found);
        found
    }

    /// Whether the alert takes the route at `index`.
    fn descend<'t, 'a>(
        &'t self,
        index: usize,
        label: &impl Fn(&str) -> Option<&'a str>,
        found: &mut Vec<&'t Route>,
    ) -> bool {
        let route = &self.routes[index];
        if !route.matchers.matches(label) {
            return false;
        }
        let mut is_taken_within = false;
        for within in &route.routes {
            if self.descend(*within, label, found) {
                is_taken_within = true;
                if !self.routes[*within].is_continued {
                    break;
                }
            }
        }
        if !is_taken_within {
            found.push(route);
        }
        true
    }

    /// The route of an [`id`](Route::id).
    pub(super) fn by_id(&self, id: &str) -> Option<&Route> {
        self.routes.iter().find(|route| route.id == id)
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    #[derive(Deserialize)]
    struct File {
        #[serde(default = "default")]
        receiver: String,
        #[serde(default)]
        group_by: Vec<String>,
        #[serde(default)]
        routes: Vec<RouteOptions>,
    }

    fn default() -> String {
        DEFAULT.to_owned()
    }

    impl File {
        fn root(&self) -> RootOptions<'_> {
            RootOptions {
                receiver: &self.receiver,
                group_by: &self.group_by,
                group_wait: Span::ZERO,
                group_interval: Span::from_secs(300),
                repeat_interval: Span::from_secs(4 * 3600),
                escalate: &[],
                routes: &self.routes,
            }
        }
    }

    const TREE: &str = r#"
        group_by = ["alert"]

        [[routes]]
        matchers = ['severity="critical"']
        receiver = "pager"
        continue = true
        mute = ["weekends"]

        [[routes]]
        matchers = ['service=~"web|api", env!=test', "team=\"a b\""]
        receiver = "web"
        group_by = ["..."]
        group_wait = "30s"
        routes = [{ matchers = ["env=prod"], repeat_interval = "1h" }, { matchers = ["env=prod"], receiver = "default", group_by = [] }]
    "#;

    #[test]
    fn an_alert_ends_at_the_routes_that_are_for_it() {
        let file: File = toml::from_str(TREE).unwrap();
        assert_eq!(file.root().problems(&BTreeSet::from(["weekends"])), []);
        let tree = Tree::build(&file.root());
        assert_eq!(file.root().receivers(), ["pager", "web"]);
        let mut text = String::new();
        for labels in [
            "alert=x",
            "severity=critical alert=x",
            "severity=critical service=web team=a_b",
            "service=api team=a_b env=test",
            "service=api team=a_b env=prod alert=x",
        ] {
            let labels: BTreeMap<String, String> = labels
                .split(' ')
                .filter_map(|label| label.split_once('='))
                .map(|(name, value)| (name.to_owned(), value.replace('_', " ")))
                .collect();
            text += &format!("{labels:?}\n");
            for route in tree.matching(|name| labels.get(name).map(String::as_str)) {
                let Route { id, receiver, group_wait, repeat_interval, mute, .. } = route;
                let key = route.group_key(&route.group(&labels));
                text += &format!("    {receiver} {id} {key} {group_wait:?} {repeat_interval:?} {mute:?}\n");
            }
        }
        expect![[r#"
            {"alert": "x"}
                default {} {}:{alert="x"} 0ns 14400s []
            {"alert": "x", "severity": "critical"}
                pager {}/{severity="critical"} {}/{severity="critical"}:{alert="x"} 0ns 14400s ["weekends"]
            {"service": "web", "severity": "critical", "team": "a b"}
                pager {}/{severity="critical"} {}/{severity="critical"}:{} 0ns 14400s ["weekends"]
                web {}/{env!="test",service=~"web|api",team="a b"} {}/{env!="test",service=~"web|api",team="a b"}:{service="web", severity="critical", team="a b"} 30s 14400s []
            {"env": "test", "service": "api", "team": "a b"}
                default {} {}:{} 0ns 14400s []
            {"alert": "x", "env": "prod", "service": "api", "team": "a b"}
                web {}/{env!="test",service=~"web|api",team="a b"}/{env="prod"} {}/{env!="test",service=~"web|api",team="a b"}/{env="prod"}:{alert="x", env="prod", service="api", team="a b"} 30s 3600s []
        "#]].assert_eq(&text);
    }

    #[expect(clippy::needless_pass_by_value, reason = "reads as a table")]
    fn check_problems(toml: &str, expected: Expect) {
        let file: File = toml::from_str(toml).unwrap();
        let problems = file.root().problems(&BTreeSet::from(["nights", "weekends"]));
        let told = problems.iter().map(|problem| {
            let within =
                problem.within.as_ref().map_or(String::new(), |within| format!("[{}..{}]", within.start, within.end));
            let help = problem.help.as_ref().map_or(String::new(), |help| format!(" ({help})"));
            format!("{}{within}: {}{help}\n", problem.option, problem.message)
        });
        expected.assert_eq(&told.collect::<String>());
    }

    #[test]
    fn routes_that_cannot_be_are_told() {
        check_problems(
            r#"
            receiver = "a b"
            group_by = ["x", "..."]

            [[routes]]
            matchers = ['a="b', 'ok=1']
            receiver = "rejected"
            group_by = ["x", "", "x"]
            group_interval = "0s"
            group_wait = "0s"
            mute = ["weekends", "lunch"]
            routes = [{ repeat_interval = "0s", active = ["x"] }]
            "#,
            expect![[r#"
                receiver: "a b" cannot be named among inputs (use letters, digits, `_` and `-`)
                group_by: `...` stands for all labels, and there are others beside it (write `["..."]` alone)
                routes[0].matchers[0][2..4]: the closing quote is missing
                routes[0].receiver: `rejected` is the name of an output that is there anyway (give the receiver another name)
                routes[0].group_by[1]: "" is not a name of a label
                routes[0].group_by[2]: `x` is there twice
                routes[0].group_interval: must be longer than nothing
                routes[0].mute[1]: there is no interval "lunch" (there is nights, weekends)
                routes[0].routes[0].repeat_interval: must be longer than nothing
                routes[0].routes[0].active[0]: there is no interval "x" (there is nights, weekends)
            "#]],
        );
        let nested = |depth: usize| format!("routes = [{}{}]", "{ routes = [".repeat(depth), "] }".repeat(depth));
        check_problems(&nested(32).replace("[] }", "[]}"), expect![[""]]);
        check_problems(
            &nested(33),
            expect![[r#"
            routes[0].routes[0].routes[0].routes[0].routes[0].routes[0].routes[0].routes[0].routes[0].routes[0].routes[0].routes[0].routes[0].routes[0].routes[0].routes[0].routes[0].routes[0].routes[0].routes[0].routes[0].routes[0].routes[0].routes[0].routes[0].routes[0].routes[0].routes[0].routes[0].routes[0].routes[0].routes[0].routes: routes are at most 32 deep
        "#]],
        );
    }
}
