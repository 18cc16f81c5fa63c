//! A checked configuration as data: what the engine builds from. Nothing in it can be wrong any more except in the outside
//! world.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value as Json;
use tocsin_pipeline::graph::JournalOptions;
use tocsin_pipeline::source::RecordOptions;
use tocsin_pipeline::time::Timestamp;

use crate::AMENDED;
use crate::component::{AnyCodec, AnyOperator, AnySink, AnySource};
use crate::options::{BufferOptions, DaemonOptions, OnDecodeError};
use crate::report::Report;
use crate::silence::Silence;
use tocsin_pipeline::timestamp::TimestampOptions;

/// The whole configuration, checked. Components are told apart by number, see [`ComponentId`]; names are distinct over all
/// of them.
pub struct Plan {
    /// `data_dir` is resolved against the folder of its file.
    pub daemon: DaemonOptions,
    /// In the order of the configuration; after them those that relays read with.
    pub sources: Vec<PlannedSource>,
    /// So that each stands after all operators that it reads from.
    pub operators: Vec<PlannedOperator>,
    /// So that each stands after all sinks whose dead letters it reads.
    pub sinks: Vec<PlannedSink>,
    /// Ordered by reader, then by the reader's input number, then by the order in which the output was named. No two are
    /// equal, but one output can go to many readers, and to two inputs of one reader.
    pub edges: Vec<Edge>,
    /// The topics that records go through, each as a sink and a source of the lists above. Ordered by source.
    pub relays: Vec<PlannedRelay>,
    /// In the order of the configuration.
    pub silences: Arc<[Silence]>,
    /// In the order of the configuration.
    pub tests: Vec<Test>,
    /// What the labels of alerts that somebody is told of by `notify` are called; `None`: anything.
    pub labels: Option<BTreeSet<String>>,
    /// What the lints have found, see [`lints`](crate::lints).
    pub findings: Report,
}

/// A component of a plan: its kind, and its number in the plan's list of that kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ComponentId {
    Source(usize),
    Operator(usize),
    Sink(usize),
}

/// An output of a component: port 0 is the component's own name. A source's port 1 is `rejected`; an operator's ports from 1
/// are its [`ports`](AnyOperator::ports) in their order; a sink's port 1 is `rejected`, its
/// port 2 `failed` if it has one, and its port 0 is what it is handed: only tests look at that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Outlet {
    pub component: ComponentId,
    pub port: usize,
}

/// The port of sources and sinks that dead letters come out of.
pub const REJECTED: usize = 1;
/// The port of sinks that records come out of which they could not deliver.
pub const FAILED: usize = 2;

/// That one component reads what another gives out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Edge {
    pub from: Outlet,
    /// An operator or a sink.
    pub to: ComponentId,
    /// Which entry of the reader's `inputs`: all that one entry with globs stands for has one number.
    pub input: usize,
}

/// Where a component is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file as it was named.
    pub file: Arc<str>,
    /// From 1.
    pub line: usize,
}

/// A source, its common options checked and made ready for the engine.
pub struct PlannedSource {
    pub name: Arc<str>,
    /// The word behind `type`.
    pub type_name: &'static str,
    pub options: Box<dyn AnySource>,
    pub codec_name: &'static str,
    pub codec: Box<dyn AnyCodec>,
    /// `None`: where the codec says, else the arrival.
    pub timestamp: Option<TimestampOptions>,
    pub records: RecordOptions,
    pub on_decode_error: OnDecodeError,
    pub out_of_order: Duration,
    pub idle_timeout: Duration,
    /// Whether what comes in is made durable before it is worked on.
    pub journal: Option<JournalOptions>,
    pub place: Place,
    /// The folder of its file, for [`BuildContext::folder`](crate::component::BuildContext).
    pub folder: PathBuf,
}

/// An operator.
pub struct PlannedOperator {
    pub name: Arc<str>,
    /// The word behind `type`.
    pub type_name: &'static str,
    pub options: Box<dyn AnyOperator>,
    /// What of its options gives its state its meaning, see [`OperatorConfig::state_shape`](crate::component::OperatorConfig).
    pub shape: Json,
    /// How many entries its `inputs` has: edges to it are numbered below.
    pub inputs: usize,
    pub place: Place,
    /// The folder of its file.
    pub folder: PathBuf,
}

/// A sink.
pub struct PlannedSink {
    pub name: Arc<str>,
    /// The word behind `type`.
    pub type_name: &'static str,
    pub options: Box<dyn AnySink>,
    pub buffer: BufferOptions,
    pub place: Place,
    /// The folder of its file.
    pub folder: PathBuf,
}

/// An operator `repartition`: its sink has its name and what it reads, its source feeds what reads the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannedRelay {
    /// The number in [`Plan::sinks`].
    pub sink: usize,
    /// The number in [`Plan::sources`].
    pub source: usize,
}

/// One of `[[tests]]`, its names and times resolved; see [`TestOptions`](crate::testing::TestOptions).
#[derive(Clone, Debug, PartialEq)]
pub struct Test {
    pub name: String,
    /// What the clock shows at first.
    pub start: Timestamp,
    /// Ordered by time.
    pub input: Vec<TestInput>,
    /// How far the clock goes after the last input; `None`: the input ends then, as with `run --once`.
    pub until: Option<Timestamp>,
    pub expect: Vec<ExpectedRecords>,
    pub alerts: Vec<ExpectedAlert>,
    /// Exactly these are sent, in this order, if given; `None`: notifications are not looked at.
    pub notifications: Option<Vec<ExpectedNotification>>,
    pub place: Place,
}

/// Records that arrive at a source at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestInput {
    /// The number of the source in [`Plan::sources`].
    pub source: usize,
    pub at: Timestamp,
    /// Each is one record as its source would frame it.
    pub records: Vec<String>,
}

/// What must come out of a component.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpectedRecords {
    pub from: Outlet,
    /// The output as it was named.
    pub name: String,
    /// A string is the record's text. An object asks for its fields, nested ones likewise; further fields do not matter
    /// unless `exact`.
    pub records: Vec<Json>,
    /// Whether these are all the records, in this order, with no further fields. Else they come in this order, with others
    /// between them.
    pub exact: bool,
    pub place: Place,
}

/// A transition that a rule must make.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpectedAlert {
    /// The number of the rule in [`Plan::operators`].
    pub rule: usize,
    /// When, in event time; `None`: some time.
    pub at: Option<Timestamp>,
    pub state: AlertState,
    /// Labels it must have among others.
    pub labels: serde_json::Map<String, Json>,
    pub place: Place,
}

pub use crate::testing::AlertState;

/// A notification that must be sent.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpectedNotification {
    /// The number of the sink in [`Plan::sinks`].
    pub receiver: usize,
    pub at: Timestamp,
    /// `None`: does not matter.
    pub subject: Option<String>,
    /// `None`: does not matter.
    pub body: Option<String>,
    pub place: Place,
}

impl Plan {
    pub fn name(&self, component: ComponentId) -> &Arc<str> {
        match component {
            ComponentId::Source(at) => &self.sources[at].name,
            ComponentId::Operator(at) => &self.operators[at].name,
            ComponentId::Sink(at) => &self.sinks[at].name,
        }
    }

    /// The component of this name.
    pub fn component(&self, name: &str) -> Option<ComponentId> {
        self.components().find(|component| &**self.name(*component) == name)
    }

    /// All components: sources, operators, sinks, each kind in its order.
    pub fn components(&self) -> impl Iterator<Item = ComponentId> {
        (0..self.sources.len())
            .map(ComponentId::Source)
            .chain((0..self.operators.len()).map(ComponentId::Operator))
            .chain((0..self.sinks.len()).map(ComponentId::Sink))
    }

    /// The names of a component's outputs from port 1 on.
    pub fn ports(&self, component: ComponentId) -> Vec<String> {
        match component {
            ComponentId::Source(_) => vec!["rejected".to_owned()],
            ComponentId::Sink(at) => self.sinks[at].options.ports(),
            ComponentId::Operator(at) => self.operators[at].options.ports(),
        }
    }

    /// The output's name, as `inputs` would have it: `NAME` or `NAME.port`.
    pub fn outlet_name(&self, outlet: Outlet) -> String {
        let name = self.name(outlet.component);
        match outlet.port.checked_sub(1).and_then(|port| self.ports(outlet.component).into_iter().nth(port)) {
            Some(port) => format!("{name}.{port}"),
            None => name.to_string(),
        }
    }

    /// Where a rule tells what it would have decided otherwise.
    pub fn amendments(&self, rule: usize) -> Option<Outlet> {
        let component = ComponentId::Operator(rule);
        let at = self.ports(component).iter().position(|port| port == AMENDED)?;
        Some(Outlet { component, port: at + 1 })
    }

    /// What reads an output.
    pub fn readers(&self, from: Outlet) -> impl Iterator<Item = &Edge> {
        self.edges.iter().filter(move |edge| edge.from == from)
    }

    /// What a component reads, by input number.
    pub fn inputs(&self, to: ComponentId) -> impl Iterator<Item = &Edge> {
        self.edges.iter().filter(move |edge| edge.to == to)
    }
}
