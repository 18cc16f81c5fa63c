//! What a component tells of itself so that a configuration can be looked at as a whole: what a rule watches, what a window can
//! hold, whom a notifier tells. The lints go by nothing else, so they know no component; see [`lints`](crate::lints).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tocsin_pipeline::expression::Known;

use crate::interval::Interval;
use crate::matcher::Matchers;

/// What an operator is for, as far as it says.
#[derive(Debug, Default)]
pub enum Facts {
    #[default]
    Nothing,
    /// It hands records on by conditions.
    Branches(Vec<Branch>),
    Window(WindowFacts),
    /// It makes alerts.
    Rule(RuleFacts),
    /// It tells people of alerts.
    Notifier(Box<NotifierFacts>),
}

/// Records of which a condition is true go to an output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Branch {
    /// Where the condition is written, as [`Problem::option`](crate::component::Problem).
    pub option: String,
    pub condition: String,
    /// `None`: the operator's own name.
    pub port: Option<String>,
}

/// A window.
#[derive(Clone, Debug)]
pub struct WindowFacts {
    pub size: Duration,
    /// How far apart windows of a key end.
    pub every: Duration,
    /// How long after its end it is told.
    pub told_after: Duration,
    /// The names of the fields that hold its keys.
    pub keys: BTreeSet<String>,
    /// What is known of its aggregates, by name.
    pub aggregates: BTreeMap<String, Known>,
}

/// A rule.
#[derive(Clone, Debug)]
pub struct RuleFacts {
    /// One, or one for each severity, rising.
    pub conditions: Vec<Watched>,
    pub keep_firing_for: Duration,
    pub resolve_after: Option<Duration>,
    /// So many changes within that time make it flap.
    pub flapping: Option<(usize, Duration)>,
    /// The names under which the values of its `group_by` are labels; `None`: those of the window, or the fields that labels name.
    pub keys: Option<Vec<String>>,
    pub labels: BTreeMap<String, LabelText>,
    /// The names of its annotations.
    pub annotations: BTreeSet<String>,
}

/// What a rule watches for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watched {
    /// Where the condition is written.
    pub option: String,
    pub condition: String,
    /// Where it is written how long it must hold.
    pub for_option: String,
    pub pending_for: Duration,
}

/// What a label says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LabelText {
    /// One of these.
    Fixed(Vec<String>),
    /// What is in these fields.
    Of(BTreeSet<String>),
}

/// A notifier.
#[derive(Debug)]
pub struct NotifierFacts {
    pub root: RouteFacts,
    pub inhibits: Vec<InhibitFacts>,
    pub intervals: BTreeMap<String, Interval>,
    pub budgets: BTreeMap<String, BudgetFacts>,
    /// What budgets do not hold up.
    pub critical: Matchers,
    /// Whether notifications have a link to acknowledge them.
    pub has_link: bool,
}

/// A route, with what it has from those above it.
#[derive(Clone, Debug)]
pub struct RouteFacts {
    /// Where it is written: `routes[0].routes[2]`; empty: the operator itself.
    pub option: String,
    pub matchers: Matchers,
    pub receiver: String,
    pub is_continued: bool,
    pub group_by: Vec<String>,
    pub group_wait: Duration,
    pub group_interval: Duration,
    pub repeat_interval: Duration,
    pub mute: Vec<String>,
    pub active: Vec<String>,
    /// Who is told after how long if nobody takes care.
    pub escalate: Vec<(Duration, String)>,
    pub routes: Vec<Self>,
}

/// A rule by which alerts keep others silent.
#[derive(Clone, Debug)]
pub struct InhibitFacts {
    pub option: String,
    pub source: Matchers,
    pub target: Matchers,
    pub equal: Vec<String>,
}

/// What a receiver is sent at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BudgetFacts {
    pub max: usize,
    pub per: Duration,
}

/// Who reads what a sink writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Audience {
    /// What is written is thrown away.
    Nobody,
    /// Who looks at it when it is wanted: a file, a topic, a terminal.
    #[default]
    Whoever,
    /// Somebody is told, one record at a time.
    People,
}
