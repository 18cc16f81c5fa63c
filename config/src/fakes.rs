//! Components for tests of the configuration: they check like real ones and are never run.

use std::collections::BTreeMap;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::Deserialize;
use tocsin_pipeline::codec::{Codec, DecodeError, Row};
use tocsin_pipeline::expression::Condition;
use tocsin_pipeline::operator::{Built, Output, Ports, Transform};
use tocsin_pipeline::sink::Sink;
use tocsin_pipeline::source::Source;
use vrl::value::Value;

use crate::component::{
    BuildContext, Catalog, CodecConfig, CodecType, OperatorConfig, OperatorType, Problem, SinkConfig, SinkType,
    SourceConfig, SourceType,
};
use crate::types::{ByteSize, Duration, Secret};

pub(crate) static CATALOG: Catalog = Catalog {
    sources: &[SourceType::of::<Tail>()],
    codecs: &[CodecType::of::<Text>(), CodecType::of::<Csv>()],
    operators: &[OperatorType::of::<Filter>(), OperatorType::of::<Route>(), OperatorType::of::<Window>()],
    sinks: &[SinkType::of::<Mail>(), SinkType::of::<Print>()],
};

/// Reads files as they grow.
///
/// **After a crash:** reads on where the checkpoint says.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Tail {
    /// The files, as patterns.
    paths: Vec<String>,
    /// Where a file that is new is read from. Default: its end.
    #[serde(default)]
    read_from: ReadFrom,
    /// How often to look for new files.
    #[serde(default = "one_second")]
    poll_interval: Duration,
}

/// Where a file that is new is read from.
#[derive(Debug, Clone, Copy, Default, Deserialize, JsonSchema, serde::Serialize)]
#[serde(rename_all = "snake_case")]
enum ReadFrom {
    /// Its first byte.
    Beginning,
    /// Its last byte.
    #[default]
    End,
}

fn one_second() -> Duration {
    Duration(std::time::Duration::from_secs(1))
}

impl SourceConfig for Tail {
    const NAME: &'static str = "tail";

    fn is_replayable(&self) -> bool {
        true
    }

    fn problems(&self) -> Vec<Problem> {
        let empty = self.paths.is_empty().then(|| Problem::new("paths", "no path").help("name a file"));
        let slow = (self.poll_interval.0.as_secs() > 60).then(|| Problem::new("poll_interval", "seldom"));
        let _ = self.read_from;
        empty.into_iter().chain(slow).collect()
    }

    fn build(&self, _: &mut BuildContext<'_>) -> Box<dyn Source> {
        unreachable!("never built")
    }
}

/// Takes a record as text.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Text {}

impl CodecConfig for Text {
    const NAME: &'static str = "text";

    fn build(&self) -> Arc<dyn Codec> {
        Arc::new(Raw)
    }
}

/// Reads separated values.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Csv {
    /// The names of the columns.
    columns: Vec<String>,
    /// What stands between values: one character.
    #[serde(default = "comma")]
    separator: String,
}

fn comma() -> String {
    ",".to_owned()
}

impl CodecConfig for Csv {
    const NAME: &'static str = "csv";

    fn problems(&self) -> Vec<Problem> {
        let problem = Problem::new("separator", format!("{:?} is not one character", self.separator));
        let _ = &self.columns;
        (self.separator.chars().count() != 1).then_some(problem).into_iter().collect()
    }

    fn build(&self) -> Arc<dyn Codec> {
        Arc::new(Raw)
    }
}

#[derive(Debug)]
struct Raw;

impl Codec for Raw {
    fn name(&self) -> &'static str {
        "raw"
    }

    fn decode(&self, _: &[u8], _: &mut Row<'_>) -> Result<(), DecodeError> {
        Ok(())
    }

    fn value(&self, record: &[u8]) -> Result<Value, DecodeError> {
        Ok(Value::from(record.to_vec()))
    }
}

/// Passes the records for which `condition` is true.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Filter {
    /// Which records pass, in VRL. It is checked before anything runs.
    condition: String,
    /// How many pass at most.
    #[serde(default = "u64_max")]
    limit: u64,
}

fn u64_max() -> u64 {
    1 << 40
}

impl OperatorConfig for Filter {
    const NAME: &'static str = "filter";

    fn problems(&self) -> Vec<Problem> {
        let _ = self.limit;
        conditions([("condition".to_owned(), &self.condition)])
    }

    fn build(&self, _: &mut BuildContext<'_>) -> Built {
        Built::Transform(Arc::new(Nothing))
    }
}

struct Nothing;

impl Transform for Nothing {
    fn apply(&self, _: tocsin_pipeline::event::Batch, _: &mut Output) {}
}

fn conditions<'a>(options: impl IntoIterator<Item = (String, &'a String)>) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (option, text) in options {
        problems.extend(Condition::check(text).into_iter().map(|found| {
            let problem = Problem::new(&option, found.message).within(found.within);
            Problem { help: found.help, ..problem }
        }));
    }
    problems
}

/// Sends each record to the first of its branches that it fits.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Route {
    /// A condition for each branch.
    routes: BTreeMap<String, String>,
}

impl OperatorConfig for Route {
    const NAME: &'static str = "route";

    fn problems(&self) -> Vec<Problem> {
        conditions(self.routes.iter().map(|(name, text)| (format!("routes.{name}"), text)))
    }

    fn ports(&self) -> Ports {
        self.routes.keys().cloned().chain(["other".to_owned()]).collect()
    }

    fn build(&self, _: &mut BuildContext<'_>) -> Built {
        Built::Transform(Arc::new(Nothing))
    }
}

/// Counts by time.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Window {
    /// The kind of window.
    shape: WindowShape,
    /// How much state is kept.
    #[serde(default)]
    state_max: Option<ByteSize>,
}

/// The kind of a window.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum WindowShape {
    /// One after the other, of this length.
    Tumbling(Duration),
    /// Overlapping.
    Hopping {
        /// The length of each.
        size: Duration,
        /// How far they are apart.
        every: Duration,
    },
}

impl OperatorConfig for Window {
    const NAME: &'static str = "window";

    fn problems(&self) -> Vec<Problem> {
        let _ = self.state_max;
        match &self.shape {
            WindowShape::Hopping { size, every } if every > size => {
                vec![Problem::new("shape.hopping.every", "windows this far apart leave gaps")]
            }
            WindowShape::Tumbling(length) if length.0.is_zero() => {
                vec![Problem::new("shape.tumbling", "a window of no length")]
            }
            WindowShape::Hopping { .. } | WindowShape::Tumbling(_) => Vec::new(),
        }
    }

    fn ports(&self) -> Ports {
        vec!["late".to_owned()]
    }

    fn build(&self, _: &mut BuildContext<'_>) -> Built {
        Built::Transform(Arc::new(Nothing))
    }
}

/// Sends mail.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Mail {
    /// The server.
    smtp: String,
    /// Who logs in.
    password: Option<Secret>,
    /// Further headers.
    #[serde(default)]
    headers: BTreeMap<String, Secret>,
}

impl SinkConfig for Mail {
    const NAME: &'static str = "mail";

    fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if !self.smtp.starts_with("smtp") {
            problems.push(Problem::new("smtp", format!("{:?} is not a mail server", self.smtp)));
        }
        if let Some(password) = &self.password
            && password.reveal().contains(' ')
        {
            // A careless component: the configuration must not let it tell.
            problems.push(Problem::new("password", format!("{:?} has a space", password.reveal())));
        }
        let _ = &self.headers;
        problems
    }

    fn guarantee(&self) -> &'static str {
        "at least once"
    }

    fn build(&self, _: &mut BuildContext<'_>) -> Box<dyn Sink> {
        unreachable!("never built")
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

    fn build(&self, _: &mut BuildContext<'_>) -> Box<dyn Sink> {
        unreachable!("never built")
    }
}
