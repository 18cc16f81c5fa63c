//! Components for tests of scaling: a topic, what keeps state by key, and what cannot move. They are built and never run.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value as Json, json};
use tocsin_pipeline::event::Batch;
use tocsin_pipeline::operator::{Built, Output, Ports, Transform};
use tocsin_pipeline::sink::{Sink, SinkContext, SinkError, SinkState};
use tocsin_pipeline::source::{Source, SourceContext, SourceError};

use crate::component::{
    Assigns, BuildContext, Catalog, Keying, Makes, OperatorConfig, OperatorType, Partitioned, Relay, RelayOptions,
    Repartition, SinkConfig, SinkType, SourceConfig, SourceType,
};
use crate::types::Secret;

pub(super) static CATALOG: Catalog = Catalog {
    sources: &[SourceType::of::<Topic>(), SourceType::of::<Tail>()],
    codecs: crate::fakes::CATALOG.codecs,
    operators: &[
        OperatorType::of::<Edit>(),
        OperatorType::of::<Split>(),
        OperatorType::of::<Count>(),
        OperatorType::of::<Unique>(),
        OperatorType::of::<Rule>(),
        OperatorType::of::<Sort>(),
        OperatorType::of::<Through>(),
    ],
    sinks: &[SinkType::of::<Produce>(), SinkType::of::<Folder>(), SinkType::of::<Print>()],
};

thread_local! {
    /// What was built, and for which partition.
    pub(super) static BUILT: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

fn note(context: &BuildContext<'_>) {
    let partition = context.partition.as_ref().map(|lane| format!("{}/{}", lane.topic, lane.partition));
    let note = format!("{} of {}", context.name, partition.as_deref().unwrap_or("everything"));
    BUILT.with_borrow_mut(|built| built.push(note));
}

type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

struct Nothing;

impl Source for Nothing {
    fn open<'a>(&'a mut self, _: &'a SourceContext) -> BoxFuture<'a, Result<(), SourceError>> {
        unreachable!("never run")
    }

    fn run(self: Box<Self>, _: SourceContext) -> BoxFuture<'static, Result<(), SourceError>> {
        unreachable!("never run")
    }
}

impl Transform for Nothing {
    fn apply(&self, _: Batch, _: &mut Output) {}
}

impl Sink for Nothing {
    fn open<'a>(&'a mut self, _: &'a SinkContext) -> BoxFuture<'a, Result<(), SinkError>> {
        unreachable!("never run")
    }

    fn run(self: Box<Self>, _: SinkContext) -> BoxFuture<'static, Result<SinkState, SinkError>> {
        unreachable!("never run")
    }
}

/// Reads a topic.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Topic {
    topic: String,
    keyed_by: Option<Vec<String>>,
    password: Option<Secret>,
    /// Whether something can go through topics on its servers.
    #[serde(default = "yes")]
    is_writable: bool,
}

fn yes() -> bool {
    true
}

impl SourceConfig for Topic {
    const NAME: &'static str = "topic";

    fn partitioned(&self) -> Option<Partitioned> {
        let _ = &self.password;
        Some(Partitioned { group: "g".to_owned(), keyed_by: self.keyed_by.clone() })
    }

    fn relay(&self, relay: &Relay, written: &Json) -> Option<RelayOptions> {
        let Repartition { key, topic, partitions } = &relay.repartition;
        let topic = topic.clone().unwrap_or_else(|| format!("{}.{}", self.topic, relay.name));
        let options = |own: Json| -> Map<String, Json> {
            let own = own.as_object().expect("a table").clone();
            let handed_on = written.as_object().expect("a table").iter().filter(|(name, _)| *name == "password");
            own.into_iter().chain(handed_on.map(|(name, value)| (name.clone(), value.clone()))).collect()
        };
        let mut sink = options(json!({ "type": "produce", "topic": topic, "key": key }));
        if let Some(partitions) = partitions {
            sink.insert("partitions".to_owned(), json!(partitions));
        }
        let source = options(json!({ "type": "topic", "topic": topic, "keyed_by": key }));
        self.is_writable.then_some(RelayOptions { sink, source })
    }

    fn build(&self, context: &mut BuildContext<'_>) -> Box<dyn Source> {
        note(context);
        Box::new(Nothing)
    }
}

/// Reads files as they grow.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Tail {}

impl SourceConfig for Tail {
    const NAME: &'static str = "tail";

    fn build(&self, _: &mut BuildContext<'_>) -> Box<dyn Source> {
        Box::new(Nothing)
    }
}

/// Changes records.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Edit {
    /// `None`: everything.
    assigns: Option<Vec<String>>,
}

impl OperatorConfig for Edit {
    const NAME: &'static str = "edit";

    fn keying(&self) -> Keying {
        let assigns = match &self.assigns {
            Some(paths) if paths.is_empty() => Assigns::Nothing,
            Some(paths) => Assigns::Paths(paths.clone()),
            None => Assigns::Everything,
        };
        Keying::Stateless { assigns }
    }

    fn build(&self, context: &mut BuildContext<'_>) -> Built {
        note(context);
        Built::Transform(Arc::new(Nothing))
    }
}

/// Sends records to `NAME.high` and `NAME.low`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Split {}

impl OperatorConfig for Split {
    const NAME: &'static str = "split";

    fn ports(&self) -> Ports {
        vec!["high".to_owned(), "low".to_owned()]
    }

    fn keying(&self) -> Keying {
        Keying::Stateless { assigns: Assigns::Nothing }
    }

    fn build(&self, context: &mut BuildContext<'_>) -> Built {
        note(context);
        Built::Transform(Arc::new(Nothing))
    }
}

/// Counts by time.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Count {
    #[serde(default)]
    group_by: Vec<String>,
}

impl OperatorConfig for Count {
    const NAME: &'static str = "count";

    fn ports(&self) -> Ports {
        vec!["late".to_owned()]
    }

    fn keying(&self) -> Keying {
        Keying::By { option: "group_by", key: self.group_by.clone() }
    }

    fn makes(&self) -> Makes {
        Makes::Windows
    }

    fn build(&self, context: &mut BuildContext<'_>) -> Built {
        note(context);
        Built::Transform(Arc::new(Nothing))
    }
}

/// Drops repeats.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Unique {
    key: Vec<String>,
}

impl OperatorConfig for Unique {
    const NAME: &'static str = "unique";

    fn keying(&self) -> Keying {
        Keying::By { option: "key", key: self.key.clone() }
    }

    fn build(&self, context: &mut BuildContext<'_>) -> Built {
        note(context);
        Built::Transform(Arc::new(Nothing))
    }
}

/// Tells what is wrong.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Rule {
    group_by: Option<Vec<String>>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

impl OperatorConfig for Rule {
    const NAME: &'static str = "rule";

    fn keying(&self) -> Keying {
        match &self.group_by {
            Some(key) => Keying::By { option: "group_by", key: key.clone() },
            None => Keying::ByWindow { otherwise: self.labels.values().cloned().collect() },
        }
    }

    fn makes(&self) -> Makes {
        Makes::Within { path: ".labels", except: vec!["team".to_owned()] }
    }

    fn build(&self, context: &mut BuildContext<'_>) -> Built {
        note(context);
        Built::Transform(Arc::new(Nothing))
    }
}

/// Says nothing of its state.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Sort {}

impl OperatorConfig for Sort {
    const NAME: &'static str = "sort";

    fn build(&self, _: &mut BuildContext<'_>) -> Built {
        Built::Transform(Arc::new(Nothing))
    }
}

/// Goes through a topic.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Through {
    key: Vec<String>,
    topic: Option<String>,
    partitions: Option<u32>,
}

impl OperatorConfig for Through {
    const NAME: &'static str = "through";

    fn repartition(&self) -> Option<Repartition> {
        Some(Repartition { key: self.key.clone(), topic: self.topic.clone(), partitions: self.partitions })
    }

    fn build(&self, _: &mut BuildContext<'_>) -> Built {
        unreachable!("it becomes a sink and a source")
    }
}

/// Writes to a topic.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Produce {
    topic: String,
    key: Option<Vec<String>>,
    partitions: Option<u8>,
    password: Option<Secret>,
}

impl SinkConfig for Produce {
    const NAME: &'static str = "produce";

    fn guarantee(&self) -> &'static str {
        let _ = (&self.topic, &self.key, &self.partitions, &self.password);
        "exactly once"
    }

    fn is_transactional(&self) -> bool {
        true
    }

    fn build(&self, context: &mut BuildContext<'_>) -> Box<dyn Sink> {
        note(context);
        Box::new(Nothing)
    }
}

/// Writes files.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Folder {}

impl SinkConfig for Folder {
    const NAME: &'static str = "folder";

    fn guarantee(&self) -> &'static str {
        "exactly once"
    }

    fn is_movable(&self) -> bool {
        false
    }

    fn build(&self, _: &mut BuildContext<'_>) -> Box<dyn Sink> {
        Box::new(Nothing)
    }
}

/// Prints records.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Print {}

impl SinkConfig for Print {
    const NAME: &'static str = "print";

    fn guarantee(&self) -> &'static str {
        "at least once"
    }

    fn build(&self, context: &mut BuildContext<'_>) -> Box<dyn Sink> {
        note(context);
        Box::new(Nothing)
    }
}
