//! The contract between a component's file and the configuration: what it is called, what it accepts, how it is checked
//! and built. The lists of components are plain statics of the types below.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::facts::{Audience, Facts};
use crate::silence::Silence;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::DeserializeOwned;
use serde_json::Value as Json;
use tocsin_pipeline::codec::{Codec, PathTable};
use tocsin_pipeline::operator::{Built, Ports};
use tocsin_pipeline::replay::Kept;
use tocsin_pipeline::sharing::Sharing;
use tocsin_pipeline::sink::Sink;
use tocsin_pipeline::source::Source;

/// Something wrong with an option, told by the component; the configuration adds file, line and column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The option, with dots into tables: `condition`, `aggregates.p99`, `routes.slow`; empty: the component as a whole.
    pub option: String,
    /// Where in the option's text, if it is text: byte offsets into the decoded string.
    pub within: Option<Range<usize>>,
    /// What is wrong, in lower case, without a full stop.
    pub message: String,
    /// The way out, if it is known.
    pub help: Option<String>,
}

impl Problem {
    pub fn new(option: impl Into<String>, message: impl Into<String>) -> Self {
        Self { option: option.into(), within: None, message: message.into(), help: None }
    }

    #[must_use]
    pub fn within(mut self, range: Range<usize>) -> Self {
        self.within = Some(range);
        self
    }

    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

/// What building needs to know beside the component's own options.
pub struct BuildContext<'a> {
    /// The component's name in the configuration.
    pub name: Arc<str>,
    /// The columns of the plan: every path that an expression reads is interned here.
    pub paths: &'a mut PathTable,
    /// The folder of the configuration file: relative paths to files that the configuration names start here.
    pub folder: PathBuf,
    /// Which of the component's ports something is connected to, by name (`late`, `rejected`).
    pub connected: Vec<String>,
    /// The silences of the configuration.
    pub silences: Arc<[Silence]>,
    /// The lane that is being built, where daemons share the partitions of a topic; `None`: everything.
    pub partition: Option<AssignedPartition>,
}

/// A partition that this daemon reads and no other, for now.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AssignedPartition {
    pub topic: String,
    pub partition: i32,
    /// How many lanes there are in all: each may take its part of what a component may.
    pub of: usize,
}

/// How a source is read by several daemons at a time, each of them some of its partitions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partitioned {
    /// The daemons that share the partitions.
    pub group: String,
    /// The paths whose values make the key of a record, such as `.host`: all records with the same values are in one partition.
    /// `None`: nobody has said.
    pub keyed_by: Option<Vec<String>>,
}

/// What an operator keeps from one record for the next, and by what: it decides whether daemons that each see some of the
/// partitions give the same results together as one that sees them all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keying {
    /// It keeps nothing.
    Stateless {
        /// What it may change in the records that it hands on.
        assigns: Assigns,
    },
    /// It keeps state by the values of these expressions.
    By {
        /// The option that names them, for the place of a problem.
        option: &'static str,
        /// As they are written: those that are no paths tell nothing of where a record is.
        key: Vec<String>,
    },
    /// It keeps state by the keys of the windows whose records it reads; of other records, by these paths.
    ByWindow { otherwise: Vec<String> },
    /// It keeps state of all records together.
    Whole,
}

/// What a stateless operator may change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Assigns {
    Nothing,
    /// At most these paths and what is within them.
    Paths(Vec<String>),
    Everything,
}

/// What an operator hands on, at its first output. The others give records as they were read, but for `rejected`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Makes {
    /// The records that it reads.
    Same,
    /// Records of its own for each key, as [`Origin::Keyed`](tocsin_pipeline::event::Origin) has them: each value of the key is
    /// at the top, under the last field of its path.
    Windows,
    /// Records of its own, at all its outputs: each value of the key is under the last field of its path, within `path`; except for these
    /// names, which may hold something else.
    Within { path: &'static str, except: Vec<String> },
}

/// A field at the top of a record that an option names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldRead {
    /// As [`Problem::option`] and [`Problem::within`].
    pub option: String,
    pub within: Range<usize>,
    pub field: String,
}

/// What a rule has told, and what it knows of now, as its state has it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Told {
    /// The records that it has handed on, the oldest first.
    pub transitions: Vec<Json>,
    /// The alerts that are pending or firing.
    pub active: Vec<Json>,
}

/// That records go through a topic of their own, so that all of one key are in one partition of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repartition {
    /// The paths whose values make the key.
    pub key: Vec<String>,
    /// `None`: named after the group and the operator.
    pub topic: Option<String>,
    /// `None`: as many as the topic has that the records come from.
    pub partitions: Option<u32>,
}

/// What a source is asked for so that records go through a topic on the same servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relay {
    /// The operator's name.
    pub name: String,
    pub repartition: Repartition,
    /// All options of the other sources that records come from, as they are written.
    pub others: Vec<Json>,
}

/// The two ends of a topic that records go through, as they would be written: the options of a sink and of a source, with
/// `type` and all else but the sink's `inputs`.
#[derive(Clone, Debug, PartialEq)]
pub struct RelayOptions {
    pub sink: serde_json::Map<String, Json>,
    pub source: serde_json::Map<String, Json>,
}

/// The options of a source; its doc comment is the reference page.
pub trait SourceConfig: DeserializeOwned + JsonSchema + Send + Sync + 'static {
    const NAME: &'static str;

    /// What types cannot check. No I/O.
    fn problems(&self) -> Vec<Problem> {
        Vec::new()
    }

    /// Whether it can be read again from a position: what decides the guarantees that `explain` tells.
    fn is_replayable(&self) -> bool {
        false
    }

    /// Whether clients wait until their records are durable: then what comes in is journaled where nothing else is said.
    fn acknowledges(&self) -> bool {
        false
    }

    /// The codec where the configuration names none.
    fn default_codec(&self) -> &'static str {
        "text"
    }

    /// How several daemons read it together; `None`: they cannot.
    fn partitioned(&self) -> Option<Partitioned> {
        None
    }

    /// What this daemon joins to be given some of the partitions; relative paths start at `folder`. `Some` where
    /// [`Self::partitioned`] is.
    fn sharing(&self, _folder: &Path) -> Option<Box<dyn Sharing>> {
        None
    }

    /// Whether what it reads comes to the daemon's admin address.
    fn is_at_admin(&self) -> bool {
        false
    }

    /// The ends of a topic on the servers that this source reads from. `written` is all its options as they are written, which hold
    /// how it connects. `None`: it reads from no such servers.
    fn relay(&self, _relay: &Relay, _written: &Json) -> Option<RelayOptions> {
        None
    }

    /// Whether it would read a file of this path; relative paths of its own start at `folder`. Both are absolute. No I/O.
    fn names_file(&self, _path: &Path, _folder: &Path) -> bool {
        false
    }

    /// What others keep of what it has read, to be read again in a replay; relative paths start at `folder`. No I/O yet.
    fn kept(&self, _folder: &Path) -> Option<Box<dyn Kept>> {
        None
    }

    /// No I/O, no task.
    fn build(&self, context: &mut BuildContext<'_>) -> Box<dyn Source>;
}

/// The options of an operator; its doc comment is the reference page.
pub trait OperatorConfig: DeserializeOwned + JsonSchema + Send + Sync + 'static {
    const NAME: &'static str;

    /// What types cannot check. No I/O. VRL is compiled here, so that its errors are found.
    fn problems(&self) -> Vec<Problem> {
        Vec::new()
    }

    /// The outputs beside its own name.
    fn ports(&self) -> Ports {
        Vec::new()
    }

    /// Whether it needs the event time of what it reads.
    fn needs_time(&self) -> bool {
        false
    }

    /// The options that give its state its meaning: where they change, the state in a checkpoint is of no use any more and is
    /// given up. `written` is all its options as they are written, which is what an operator goes by that does not know better. Those that
    /// do leave out what state does not depend on (bounds, texts), and write the same in one way only.
    fn state_shape(&self, written: Json) -> Json {
        written
    }

    /// What it keeps, and by what. An operator that does not say may keep anything, which is right on one daemon only.
    fn keying(&self) -> Keying {
        Keying::Whole
    }

    /// What its first output hands on.
    fn makes(&self) -> Makes {
        Makes::Same
    }

    /// The fields that records of its own can have at the top, at its first output; `None`: any.
    fn fields(&self) -> Option<BTreeSet<String>> {
        None
    }

    /// The fields that its options name, and that the records that it reads must be able to have.
    fn reads_fields(&self) -> Vec<FieldRead> {
        Vec::new()
    }

    /// Whether it stands for a topic that records go through: then it is never built, see [`Relay`].
    fn repartition(&self) -> Option<Repartition> {
        None
    }

    /// What it tells of itself, for the lints.
    fn facts(&self) -> Facts {
        Facts::Nothing
    }

    /// Whether it can do something with amendments: records that say that a rule decided wrongly.
    fn takes_amendments(&self) -> bool {
        true
    }

    /// Whether what people say to the daemon is for it: then it reads the source [`COMMANDS`](crate::COMMANDS) too.
    fn obeys(&self) -> bool {
        false
    }

    /// What the pieces of its state, by the name of this operator, say of what it has told; nothing of one that is no rule.
    fn told(_name: &str, _pieces: &[&[u8]]) -> Told {
        Told::default()
    }

    /// Pure. Only called when there are no problems.
    fn build(&self, context: &mut BuildContext<'_>) -> Built;
}

/// The options of a sink; its doc comment is the reference page.
pub trait SinkConfig: DeserializeOwned + JsonSchema + Send + Sync + 'static {
    const NAME: &'static str;

    /// What types cannot check. No I/O.
    fn problems(&self) -> Vec<Problem> {
        Vec::new()
    }

    /// Whether it needs the event time of what it writes (paths with dates, for instance).
    fn needs_time(&self) -> bool {
        false
    }

    /// What becomes of output after a crash, for `explain`: `exactly once`, `at least once, with one identity`, ….
    fn guarantee(&self) -> &'static str;

    /// Whether what it writes may come from one machine now and from another later. Not where it is kept on the machine.
    fn is_movable(&self) -> bool {
        true
    }

    /// Whether what it writes becomes visible by a transaction that ends with the checkpoint.
    fn is_transactional(&self) -> bool {
        false
    }

    /// Who reads what it writes: people, where somebody else may have to be told in their place.
    fn audience(&self) -> Audience {
        if self.hands_on() { Audience::People } else { Audience::Whoever }
    }

    /// How many records a state holds that are still to be delivered: what is lost if nobody goes on from it.
    fn undelivered(_state: &[u8]) -> u64 {
        0
    }

    /// Whether it has the output `NAME.failed`: the records that it could not deliver, as they came.
    fn hands_on(&self) -> bool {
        false
    }

    /// As [`OperatorConfig::takes_amendments`].
    fn takes_amendments(&self) -> bool {
        true
    }

    /// The options that give its state its meaning, as for operators. Most sinks keep what is still to be delivered, which
    /// means the same whatever the options are.
    fn state_shape(&self) -> Json {
        Json::Null
    }

    /// No I/O, no task.
    fn build(&self, context: &mut BuildContext<'_>) -> Box<dyn Sink>;
}

/// The options of a codec; its doc comment is the reference page.
pub trait CodecConfig: DeserializeOwned + JsonSchema + Send + Sync + 'static {
    const NAME: &'static str;

    fn problems(&self) -> Vec<Problem> {
        Vec::new()
    }

    fn build(&self) -> Arc<dyn Codec>;
}

/// A kind of component, as its list holds it: everything the configuration needs of it, with its type forgotten.
pub struct Type<C: ?Sized + 'static> {
    pub name: &'static str,
    /// The JSON Schema of its options; the description at its root is the reference page.
    pub schema: fn(&mut SchemaGenerator) -> Schema,
    /// Of sinks: how many records a state of theirs holds that are still to be delivered.
    pub undelivered: fn(&[u8]) -> u64,
    /// Of operators: see [`OperatorConfig::told`].
    pub told: fn(&str, &[&[u8]]) -> Told,
    /// Reads its options from a TOML table whose strings are substituted already.
    pub(crate) parse: fn(toml::de::ValueDeserializer<'_>) -> Result<Box<C>, toml::de::Error>,
}

/// [`SourceConfig`] with its type forgotten.
pub trait AnySource: Send + Sync {
    fn problems(&self) -> Vec<Problem>;
    fn is_replayable(&self) -> bool;
    fn acknowledges(&self) -> bool;
    fn default_codec(&self) -> &'static str;
    fn partitioned(&self) -> Option<Partitioned>;
    fn sharing(&self, folder: &Path) -> Option<Box<dyn Sharing>>;
    fn is_at_admin(&self) -> bool;
    fn relay(&self, relay: &Relay, written: &Json) -> Option<RelayOptions>;
    fn names_file(&self, path: &Path, folder: &Path) -> bool;
    fn kept(&self, folder: &Path) -> Option<Box<dyn Kept>>;
    fn build(&self, context: &mut BuildContext<'_>) -> Box<dyn Source>;
}

impl<C: SourceConfig> AnySource for C {
    fn problems(&self) -> Vec<Problem> {
        SourceConfig::problems(self)
    }

    fn is_replayable(&self) -> bool {
        SourceConfig::is_replayable(self)
    }

    fn acknowledges(&self) -> bool {
        SourceConfig::acknowledges(self)
    }

    fn default_codec(&self) -> &'static str {
        SourceConfig::default_codec(self)
    }

    fn partitioned(&self) -> Option<Partitioned> {
        SourceConfig::partitioned(self)
    }

    fn sharing(&self, folder: &Path) -> Option<Box<dyn Sharing>> {
        SourceConfig::sharing(self, folder)
    }

    fn is_at_admin(&self) -> bool {
        SourceConfig::is_at_admin(self)
    }

    fn relay(&self, relay: &Relay, written: &Json) -> Option<RelayOptions> {
        SourceConfig::relay(self, relay, written)
    }

    fn names_file(&self, path: &Path, folder: &Path) -> bool {
        SourceConfig::names_file(self, path, folder)
    }

    fn kept(&self, folder: &Path) -> Option<Box<dyn Kept>> {
        SourceConfig::kept(self, folder)
    }

    fn build(&self, context: &mut BuildContext<'_>) -> Box<dyn Source> {
        SourceConfig::build(self, context)
    }
}

/// [`OperatorConfig`] with its type forgotten.
pub trait AnyOperator: Send + Sync {
    fn problems(&self) -> Vec<Problem>;
    fn ports(&self) -> Ports;
    fn needs_time(&self) -> bool;
    fn state_shape(&self, written: Json) -> Json;
    fn keying(&self) -> Keying;
    fn makes(&self) -> Makes;
    fn fields(&self) -> Option<BTreeSet<String>>;
    fn reads_fields(&self) -> Vec<FieldRead>;
    fn repartition(&self) -> Option<Repartition>;
    fn facts(&self) -> Facts;
    fn takes_amendments(&self) -> bool;
    fn obeys(&self) -> bool;
    fn build(&self, context: &mut BuildContext<'_>) -> Built;
}

impl<C: OperatorConfig> AnyOperator for C {
    fn problems(&self) -> Vec<Problem> {
        OperatorConfig::problems(self)
    }

    /// Every operator has `rejected`: records that make it fail go there.
    fn ports(&self) -> Ports {
        let mut ports = OperatorConfig::ports(self);
        if !ports.iter().any(|port| port == "rejected") {
            ports.push("rejected".to_owned());
        }
        ports
    }

    fn needs_time(&self) -> bool {
        OperatorConfig::needs_time(self)
    }

    fn state_shape(&self, written: Json) -> Json {
        OperatorConfig::state_shape(self, written)
    }

    fn keying(&self) -> Keying {
        OperatorConfig::keying(self)
    }

    fn makes(&self) -> Makes {
        OperatorConfig::makes(self)
    }

    fn fields(&self) -> Option<BTreeSet<String>> {
        OperatorConfig::fields(self)
    }

    fn reads_fields(&self) -> Vec<FieldRead> {
        OperatorConfig::reads_fields(self)
    }

    fn repartition(&self) -> Option<Repartition> {
        OperatorConfig::repartition(self)
    }

    fn facts(&self) -> Facts {
        OperatorConfig::facts(self)
    }

    fn takes_amendments(&self) -> bool {
        OperatorConfig::takes_amendments(self)
    }

    fn obeys(&self) -> bool {
        OperatorConfig::obeys(self)
    }

    fn build(&self, context: &mut BuildContext<'_>) -> Built {
        OperatorConfig::build(self, context)
    }
}

/// [`SinkConfig`] with its type forgotten.
pub trait AnySink: Send + Sync {
    fn problems(&self) -> Vec<Problem>;
    fn needs_time(&self) -> bool;
    fn guarantee(&self) -> &'static str;
    fn is_movable(&self) -> bool;
    fn is_transactional(&self) -> bool;
    fn hands_on(&self) -> bool;
    fn ports(&self) -> Ports;
    fn audience(&self) -> Audience;
    fn takes_amendments(&self) -> bool;
    fn state_shape(&self) -> Json;
    fn build(&self, context: &mut BuildContext<'_>) -> Box<dyn Sink>;
}

impl<C: SinkConfig> AnySink for C {
    fn problems(&self) -> Vec<Problem> {
        SinkConfig::problems(self)
    }

    fn needs_time(&self) -> bool {
        SinkConfig::needs_time(self)
    }

    fn guarantee(&self) -> &'static str {
        SinkConfig::guarantee(self)
    }

    fn is_movable(&self) -> bool {
        SinkConfig::is_movable(self)
    }

    fn is_transactional(&self) -> bool {
        SinkConfig::is_transactional(self)
    }

    fn hands_on(&self) -> bool {
        SinkConfig::hands_on(self)
    }

    fn ports(&self) -> Ports {
        let failed = SinkConfig::hands_on(self).then(|| "failed".to_owned());
        std::iter::once("rejected".to_owned()).chain(failed).collect()
    }

    fn audience(&self) -> Audience {
        SinkConfig::audience(self)
    }

    fn takes_amendments(&self) -> bool {
        SinkConfig::takes_amendments(self)
    }

    fn state_shape(&self) -> Json {
        SinkConfig::state_shape(self)
    }

    fn build(&self, context: &mut BuildContext<'_>) -> Box<dyn Sink> {
        SinkConfig::build(self, context)
    }
}

/// [`CodecConfig`] with its type forgotten.
pub trait AnyCodec: Send + Sync {
    fn problems(&self) -> Vec<Problem>;
    fn build(&self) -> Arc<dyn Codec>;
}

impl<C: CodecConfig> AnyCodec for C {
    fn problems(&self) -> Vec<Problem> {
        CodecConfig::problems(self)
    }

    fn build(&self) -> Arc<dyn Codec> {
        CodecConfig::build(self)
    }
}

pub type SourceType = Type<dyn AnySource>;
pub type OperatorType = Type<dyn AnyOperator>;
pub type SinkType = Type<dyn AnySink>;
pub type CodecType = Type<dyn AnyCodec>;

impl SourceType {
    pub const fn of<C: SourceConfig>() -> Self {
        Self {
            name: C::NAME,
            schema: C::json_schema,
            undelivered: |_| 0,
            told: |_, _| Told::default(),
            parse: |value| C::deserialize(value).map(|config| Box::new(config) as _),
        }
    }
}

impl OperatorType {
    pub const fn of<C: OperatorConfig>() -> Self {
        Self {
            name: C::NAME,
            schema: C::json_schema,
            undelivered: |_| 0,
            told: C::told,
            parse: |value| C::deserialize(value).map(|config| Box::new(config) as _),
        }
    }
}

impl SinkType {
    pub const fn of<C: SinkConfig>() -> Self {
        Self {
            name: C::NAME,
            schema: C::json_schema,
            undelivered: C::undelivered,
            told: |_, _| Told::default(),
            parse: |value| C::deserialize(value).map(|config| Box::new(config) as _),
        }
    }
}

impl CodecType {
    pub const fn of<C: CodecConfig>() -> Self {
        Self {
            name: C::NAME,
            schema: C::json_schema,
            undelivered: |_| 0,
            told: |_, _| Told::default(),
            parse: |value| C::deserialize(value).map(|config| Box::new(config) as _),
        }
    }
}

/// Every kind of component the daemon has; put together in one place, `src/catalog.rs`.
#[derive(Clone, Copy)]
pub struct Catalog {
    pub sources: &'static [SourceType],
    pub codecs: &'static [CodecType],
    pub operators: &'static [OperatorType],
    pub sinks: &'static [SinkType],
}

impl Catalog {
    /// How many records the state of a sink of this type holds that are still to be delivered; `None` where the type is not
    /// known.
    pub fn undelivered(&self, sink: &str, state: &[u8]) -> Option<u64> {
        let kind = self.sinks.iter().find(|kind| kind.name == sink)?;
        Some((kind.undelivered)(state))
    }

    /// What the pieces of the state of an operator of this type say of what it has told.
    pub fn told(&self, kind: &str, name: &str, pieces: &[&[u8]]) -> Told {
        let kind = self.operators.iter().find(|known| known.name == kind);
        kind.map_or_else(Told::default, |kind| (kind.told)(name, pieces))
    }
}
