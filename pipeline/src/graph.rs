//! What building a plan gives: components and the edges between them, and how they are cut into tasks.
//!
//! Stateless operators never get a task of their own: they run fused behind whatever feeds them, once per feeder if there
//! are several. Operators with state that are fed by one task only run fused in it too. So tasks, and with them channels,
//! exist only after a source, where streams meet or state is kept, and before a sink.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::codec::{Codec, FieldPath, Projection};
use crate::evolution::{Fact, Facts, Meaning, Role};
use crate::ledger::LinkAccount;
use crate::metrics::{ComponentMetrics, Metrics};
use crate::operator::{Built, Operator, Ports, Prepare, Transform};
use crate::poison::Guard;
use crate::prefilter::Prefilter;
use crate::sink::Sink;
use crate::source::{RecordOptions, Source};
use crate::timestamp::TimestampOptions;

/// Where an output of a component leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    Operator { index: usize, input: usize },
    Sink(usize),
}

/// What is done with records that the codec cannot read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDecodeError {
    /// A dead letter at `NAME.rejected`, and a count.
    Reject,
    /// A count only.
    Drop,
}

/// How the records of a source are framed, decoded and timed.
#[derive(Clone)]
pub struct IntakeOptions {
    pub codec: Arc<dyn Codec>,
    pub records: RecordOptions,
    pub on_decode_error: OnDecodeError,
    /// Where the event time is, with its column; `None`: records are timed by their arrival.
    pub timestamp: Option<(TimestampOptions, FieldPath)>,
    pub out_of_order: std::time::Duration,
    pub idle_timeout: std::time::Duration,
}

/// How what a source reads is made durable before it is worked on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalOptions {
    /// Without a data directory the source cannot run; otherwise it then runs without a journal.
    pub is_asked_for: bool,
    /// How large the journal may become.
    pub max_bytes: u64,
}

pub struct SourceNode {
    pub name: Arc<str>,
    pub meaning: Meaning,
    pub source: Box<dyn Source>,
    pub intake: IntakeOptions,
    /// `None`: it is not journaled.
    pub journal: Option<JournalOptions>,
    pub outputs: Vec<Target>,
    /// Who takes its dead letters.
    pub rejected: Vec<Target>,
}

pub struct OperatorNode {
    pub name: Arc<str>,
    pub meaning: Meaning,
    pub ports: Ports,
    pub built: Built,
    pub needs_time: bool,
    /// By port; the first is its own name.
    pub outputs: Vec<Vec<Target>>,
}

/// What a sink's edge does when it holds all it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenFull {
    /// Its writers wait, back to the sources.
    Block,
    /// What comes is counted and dropped.
    DropNewest,
    /// What comes is written to disk, up to so many bytes; then its writers wait.
    Spill { max_disk: u64 },
}

pub struct SinkNode {
    pub name: Arc<str>,
    pub meaning: Meaning,
    pub sink: Box<dyn Sink>,
    pub needs_time: bool,
    pub buffer_bytes: usize,
    pub when_full: WhenFull,
    /// Who takes its dead letters.
    pub rejected: Vec<Target>,
    /// Who takes the records that it could not deliver.
    pub failed: Vec<Target>,
}

/// A built pipeline: nothing of it is open or running yet.
#[derive(Default)]
pub struct Graph {
    pub sources: Vec<SourceNode>,
    pub operators: Vec<OperatorNode>,
    pub sinks: Vec<SinkNode>,
}

/// Where a task's output goes: another task's inbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TaskId {
    Source(usize),
    Stage(usize),
    Sink(usize),
}

/// The stateless part of an operator, which runs ahead of the edge to it.
#[derive(Clone)]
pub struct Ahead {
    pub component: Arc<str>,
    pub work: Arc<dyn Prepare>,
}

/// An output of a fused chain.
#[derive(Clone)]
pub enum Link {
    /// On to another node of the same task.
    Node { node: usize, input: usize },
    /// Over an edge to the inbox of another task. For an operator with a stateless part, that part runs on this side.
    Edge { to: TaskId, entry: usize, prepare: Option<Ahead> },
}

/// A node of a fused chain. `W` is what it does: [`Work`], or transforms alone where threads share the chain.
pub struct Node<W> {
    pub name: Arc<str>,
    pub work: W,
    pub ports: Arc<[PortLinks]>,
    pub metrics: ComponentMetrics,
    /// What to decode before it is run: what it and its non-selective followers read.
    pub decode: Projection,
}

pub struct PortLinks {
    /// Empty for the operator's own name.
    pub name: Arc<str>,
    pub links: Vec<Link>,
}

pub enum Work {
    Transform(Arc<dyn Transform>),
    Operator(Box<dyn Operator>),
}

impl From<Arc<dyn Transform>> for Work {
    fn from(transform: Arc<dyn Transform>) -> Self {
        Self::Transform(transform)
    }
}

/// Nodes that run as one loop in one task; those with state come first, each after all that feed it.
pub struct Chain<W> {
    pub nodes: Vec<Node<W>>,
    /// Knows the records that nodes fail on.
    pub guard: Arc<Guard>,
}

impl<W> Default for Chain<W> {
    fn default() -> Self {
        Self { nodes: Vec::new(), guard: Arc::default() }
    }
}

impl<W> Chain<W> {
    /// The tasks that it and `entries` write to.
    pub fn receivers(&self, entries: &[&[Link]]) -> Vec<TaskId> {
        let ports = self.nodes.iter().flat_map(|node| node.ports.iter().flat_map(|port| &port.links));
        ports
            .chain(entries.iter().copied().flatten())
            .filter_map(|link| match link {
                Link::Edge { to, .. } => Some(*to),
                Link::Node { .. } => None,
            })
            .collect()
    }
}

/// A chain that threads share.
pub type Stateless = Chain<Arc<dyn Transform>>;

/// A task fed by a source.
pub struct SourceTask {
    pub name: Arc<str>,
    pub source: Box<dyn Source>,
    pub intake: Arc<Intake>,
    pub journal: Option<JournalOptions>,
    pub metrics: ComponentMetrics,
}

/// What is done with a block of a source before it crosses an edge: on any thread, for any block.
pub struct Intake {
    pub name: Arc<str>,
    pub options: IntakeOptions,
    /// Whether something downstream needs event times.
    pub needs_time: bool,
    /// Lines without any of these need not be looked at.
    pub prefilter: Option<Prefilter>,
    /// What is decoded while the records are checked.
    pub decode: Projection,
    pub chain: Stateless,
    pub entry: Vec<Link>,
    pub rejected: Vec<Link>,
    pub metrics: ComponentMetrics,
}

/// A task around operators with state.
pub struct StageTask {
    /// The names of its operators, for people.
    pub name: String,
    pub chain: Chain<Work>,
    /// Which node and which of its inputs an entry of its inbox is.
    pub entries: Vec<(usize, usize)>,
}

pub struct SinkTask {
    pub name: Arc<str>,
    pub sink: Box<dyn Sink>,
    pub buffer_bytes: usize,
    pub when_full: WhenFull,
    /// What its dead letters run through, and the records that it hands on.
    pub chain: Stateless,
    pub rejected: Vec<Link>,
    pub failed: Vec<Link>,
    pub metrics: ComponentMetrics,
}

/// A graph cut into tasks.
pub struct Tasks {
    pub sources: Vec<SourceTask>,
    pub stages: Vec<StageTask>,
    pub sinks: Vec<SinkTask>,
}

impl Tasks {
    /// How many bytes sources and sinks may hold beside what is on the edges.
    pub fn memory(&self) -> usize {
        let sources = self.sources.iter().map(|task| task.source.memory());
        sources.chain(self.sinks.iter().map(|task| task.sink.memory())).sum()
    }

    /// Has all chains heed what is known of records that components fail on.
    ///
    /// # Panics
    /// When a source's task has been started already.
    pub fn guard(&mut self, guard: &Arc<Guard>) {
        for source in &mut self.sources {
            let intake = Arc::get_mut(&mut source.intake).expect("nobody shares it before it is run");
            intake.chain.guard = Arc::clone(guard);
        }
        self.stages.iter_mut().for_each(|stage| stage.chain.guard = Arc::clone(guard));
        self.sinks.iter_mut().for_each(|sink| sink.chain.guard = Arc::clone(guard));
    }
}

impl Graph {
    /// The links between its components, by name, for the ledger.
    pub fn links(&self) -> Vec<LinkAccount> {
        let mut links = Vec::new();
        let mut add = |from: &str, port: &str, targets: &[Target]| {
            for target in targets {
                let to = match target {
                    Target::Operator { index, .. } => &self.operators[*index].name,
                    Target::Sink(index) => &self.sinks[*index].name,
                };
                links.push(LinkAccount {
                    from: from.to_owned(),
                    port: port.to_owned(),
                    to: to.to_string(),
                    records: 0,
                });
            }
        };
        for source in &self.sources {
            add(&source.name, "", &source.outputs);
            add(&source.name, "rejected", &source.rejected);
        }
        for operator in &self.operators {
            let ports = std::iter::once("").chain(operator.ports.iter().map(String::as_str));
            ports.zip(&operator.outputs).for_each(|(port, targets)| add(&operator.name, port, targets));
        }
        for sink in &self.sinks {
            add(&sink.name, "rejected", &sink.rejected);
            add(&sink.name, "failed", &sink.failed);
        }
        links
    }

    /// The names of all its components.
    pub fn names(&self) -> BTreeSet<String> {
        let sources = self.sources.iter().map(|node| &node.name);
        let operators = self.operators.iter().map(|node| &node.name);
        let sinks = self.sinks.iter().map(|node| &node.name);
        sources.chain(operators).chain(sinks).map(ToString::to_string).collect()
    }

    /// What gives the state of its components its meaning; operators without state are not among them.
    pub fn facts(&self) -> Facts {
        let fact = |role, meaning: &Meaning, version, migrates| Fact {
            role,
            kind: Some(meaning.kind.to_owned()),
            version,
            shape: Some(meaning.shape.clone()),
            migrates,
            held: None,
        };
        let sources = self.sources.iter().map(|node| (&node.name, fact(Role::Source, &node.meaning, 0, Vec::new())));
        let operators = self.operators.iter().filter_map(|node| match &node.built {
            Built::Operator { operator, .. } => {
                let migrates = operator.migrates_from().to_vec();
                Some((&node.name, fact(Role::Operator, &node.meaning, operator.state_version(), migrates)))
            }
            Built::Transform(_) => None,
        });
        let sinks = self.sinks.iter().map(|node| (&node.name, fact(Role::Sink, &node.meaning, 0, Vec::new())));
        sources.chain(operators).chain(sinks).map(|(name, fact)| (name.to_string(), fact)).collect()
    }

    /// Cuts the graph into tasks.
    ///
    /// # Panics
    /// When the graph has a cycle; the configuration has been checked for that.
    pub fn into_tasks(self, metrics: &Metrics) -> Tasks {
        Cutter::new(self, metrics).cut()
    }
}

struct Cutter<'a> {
    metrics: &'a Metrics,
    sources: Vec<SourceNode>,
    operators: Vec<Option<OperatorNode>>,
    sinks: Vec<SinkNode>,
    /// The stage of each operator with state.
    stage_of: BTreeMap<usize, usize>,
    stages: Vec<StagePlan>,
    /// The operators in an order in which every one comes after all that feed it.
    order: Vec<usize>,
    transforms: BTreeMap<usize, TransformNode>,
    prepares: BTreeMap<usize, Ahead>,
    reads: BTreeMap<usize, Projection>,
    outputs: Vec<Vec<Vec<Target>>>,
    ports: Vec<Ports>,
    needs_time: Vec<bool>,
}

#[derive(Default)]
struct StagePlan {
    operators: Vec<usize>,
    entries: Vec<(usize, usize)>,
}

#[derive(Clone)]
struct TransformNode {
    name: Arc<str>,
    transform: Arc<dyn Transform>,
}

impl<'a> Cutter<'a> {
    fn new(graph: Graph, metrics: &'a Metrics) -> Self {
        let mut transforms = BTreeMap::new();
        let mut prepares = BTreeMap::new();
        let mut reads = BTreeMap::new();
        for (index, node) in graph.operators.iter().enumerate() {
            if let Built::Operator { operator, .. } = &node.built
                && !operator.alerts().is_empty()
            {
                metrics.rule(&node.name, operator.slo());
            }
            match &node.built {
                Built::Transform(transform) => {
                    reads.insert(index, transform.reads());
                    let transform = Arc::clone(transform);
                    transforms.insert(index, TransformNode { name: Arc::clone(&node.name), transform });
                }
                Built::Operator { prepare, reads: projection, .. } => {
                    reads.insert(index, projection.clone());
                    if let Some(prepare) = prepare {
                        let ahead = Ahead { component: Arc::clone(&node.name), work: Arc::clone(prepare) };
                        prepares.insert(index, ahead);
                    }
                }
            }
        }
        let mut cutter = Self {
            metrics,
            outputs: graph.operators.iter().map(|node| node.outputs.clone()).collect(),
            ports: graph.operators.iter().map(|node| node.ports.clone()).collect(),
            needs_time: graph.operators.iter().map(|node| node.needs_time).collect(),
            sources: graph.sources,
            operators: graph.operators.into_iter().map(Some).collect(),
            sinks: graph.sinks,
            stage_of: BTreeMap::new(),
            stages: Vec::new(),
            order: Vec::new(),
            transforms,
            prepares,
            reads,
        };
        cutter.order = cutter.topological_order();
        cutter
    }

    /// All edges between operators, and from what sinks hand on to operators.
    fn topological_order(&self) -> Vec<usize> {
        let count = self.outputs.len();
        let mut waiting = vec![0usize; count];
        // What a sink hands on comes after everything that feeds the sink, be it another sink.
        let follow = |target: &Target| -> Vec<Target> {
            let (mut operators, mut sinks) = (Vec::new(), vec![*target]);
            while let Some(target) = sinks.pop() {
                match target {
                    Target::Sink(sink) => {
                        let sink = &self.sinks[sink];
                        sinks.extend(sink.rejected.iter().chain(&sink.failed).copied());
                    }
                    operator => operators.push(operator),
                }
            }
            operators
        };
        let successors: Vec<Vec<usize>> = self
            .outputs
            .iter()
            .map(|ports| {
                let mut all = Vec::new();
                for target in ports.iter().flatten().flat_map(follow) {
                    if let Target::Operator { index, .. } = target {
                        all.push(index);
                    }
                }
                all
            })
            .collect();
        for successor in successors.iter().flatten() {
            waiting[*successor] += 1;
        }
        let mut ready: Vec<usize> = (0..count).rev().filter(|index| waiting[*index] == 0).collect();
        let mut order = Vec::with_capacity(count);
        while let Some(index) = ready.pop() {
            order.push(index);
            for successor in &successors[index] {
                waiting[*successor] -= 1;
                if waiting[*successor] == 0 {
                    ready.push(*successor);
                }
            }
        }
        assert_eq!(order.len(), count, "a checked configuration has no cycle");
        order
    }

    /// The tasks that feed an operator, directly or through stateless operators.
    fn feeders(&self, operator: usize) -> Vec<TaskId> {
        let mut feeders = Vec::new();
        let feeds = |targets: &[Target]| {
            targets.iter().any(|target| matches!(target, Target::Operator { index, .. } if *index == operator))
        };
        for (index, source) in self.sources.iter().enumerate() {
            if feeds(&source.outputs) || feeds(&source.rejected) {
                feeders.push(TaskId::Source(index));
            }
        }
        for (index, sink) in self.sinks.iter().enumerate() {
            if feeds(&sink.rejected) || feeds(&sink.failed) {
                feeders.push(TaskId::Sink(index));
            }
        }
        for (index, ports) in self.outputs.iter().enumerate() {
            if ports.iter().any(|targets| feeds(targets)) {
                match self.stage_of.get(&index) {
                    Some(stage) => feeders.push(TaskId::Stage(*stage)),
                    None => feeders.extend(self.feeders(index)),
                }
            }
        }
        feeders.sort();
        feeders.dedup();
        feeders
    }

    fn cut(mut self) -> Tasks {
        for operator in self.order.clone() {
            if self.transforms.contains_key(&operator) {
                continue;
            }
            let stage = match self.feeders(operator)[..] {
                [TaskId::Stage(stage)] => stage,
                _ => {
                    self.stages.push(StagePlan::default());
                    self.stages.len() - 1
                }
            };
            self.stages[stage].operators.push(operator);
            self.stage_of.insert(operator, stage);
        }
        let mut sources = Vec::new();
        for source in std::mem::take(&mut self.sources) {
            sources.push(self.source_task(source));
        }
        let mut chains = Vec::new();
        for stage in 0..self.stages.len() {
            chains.push(self.stage_chain(stage));
        }
        let mut sinks = Vec::new();
        for sink in std::mem::take(&mut self.sinks) {
            let mut chain = Stateless::default();
            let mut placed = BTreeMap::new();
            let rejected = self.links(&sink.rejected, None, &mut chain, &mut placed);
            let failed = self.links(&sink.failed, None, &mut chain, &mut placed);
            let metrics = self.metrics.component(&sink.name, "sink");
            let SinkNode { name, sink, buffer_bytes, when_full, .. } = sink;
            sinks.push(SinkTask { name, sink, buffer_bytes, when_full, chain, rejected, failed, metrics });
        }
        let stages = chains
            .into_iter()
            .zip(self.stages)
            .map(|((chain, name), plan)| StageTask { name, chain, entries: plan.entries })
            .collect();
        Tasks { sources, stages, sinks }
    }

    fn source_task(&mut self, source: SourceNode) -> SourceTask {
        let mut chain = Stateless::default();
        let mut placed = BTreeMap::new();
        let entry = self.links(&source.outputs, None, &mut chain, &mut placed);
        let rejected = self.links(&source.rejected, None, &mut chain, &mut placed);
        let needs_time = self.needs_time_from(&source.outputs);
        let metrics = self.metrics.component(&source.name, "source");
        let mut decode = self.eager(&source.outputs);
        if let Some((_, path)) = source.intake.timestamp.as_ref().filter(|_| needs_time) {
            decode = decode.union(&Projection::new([path.clone()]));
        }
        // A record that the pre-filter skips is not decoded, so neither its time nor its faults would be seen: it is used
        // only where nobody asks for those.
        let is_alone = !needs_time && rejected.is_empty() && source.intake.records.multiline.is_none();
        let prefilter = match source.outputs[..] {
            [Target::Operator { index, .. }] if is_alone => {
                let literals = self.transforms.get(&index).and_then(|node| node.transform.prefilter());
                literals.and_then(|literals| Prefilter::new(literals, &*source.intake.codec))
            }
            _ => None,
        };
        let intake = Intake {
            name: Arc::clone(&source.name),
            options: source.intake,
            needs_time,
            prefilter,
            decode,
            chain,
            entry,
            rejected,
            metrics: metrics.clone(),
        };
        let SourceNode { name, source, journal, .. } = source;
        SourceTask { name, source, intake: Arc::new(intake), journal, metrics }
    }

    fn stage_chain(&mut self, stage: usize) -> (Chain<Work>, String) {
        let operators = self.stages[stage].operators.clone();
        let mut chain = Chain::default();
        let mut placed = BTreeMap::new();
        for operator in &operators {
            let node = self.operators[*operator].take().expect("every operator is in one stage");
            let Built::Operator { operator: work, .. } = node.built else { unreachable!("transforms have no stage") };
            placed.insert(*operator, chain.nodes.len());
            chain.nodes.push(Node {
                metrics: self.metrics.component(&node.name, "operator"),
                name: node.name,
                work: Work::Operator(work),
                ports: Arc::new([]),
                decode: self.reads.get(operator).cloned().unwrap_or_default(),
            });
        }
        for operator in &operators {
            let ports = self.port_links(*operator, Some(stage), &mut chain, &mut placed);
            chain.nodes[placed[operator]].ports = ports;
        }
        let names: Vec<_> = operators.iter().map(|operator| chain.nodes[placed[operator]].name.to_string()).collect();
        (chain, names.join("+"))
    }

    fn port_links<W: From<Arc<dyn Transform>>>(
        &mut self,
        operator: usize,
        stage: Option<usize>,
        chain: &mut Chain<W>,
        placed: &mut BTreeMap<usize, usize>,
    ) -> Arc<[PortLinks]> {
        let outputs = self.outputs[operator].clone();
        outputs
            .iter()
            .enumerate()
            .map(|(port, targets)| {
                let name =
                    port.checked_sub(1).and_then(|port| self.ports[operator].get(port)).map_or("", |name| name).into();
                PortLinks { name, links: self.links(targets, stage, chain, placed) }
            })
            .collect()
    }

    /// Links to `targets` from the task that `chain` belongs to, placing stateless operators in it.
    fn links<W: From<Arc<dyn Transform>>>(
        &mut self,
        targets: &[Target],
        stage: Option<usize>,
        chain: &mut Chain<W>,
        placed: &mut BTreeMap<usize, usize>,
    ) -> Vec<Link> {
        let mut links = Vec::new();
        for target in targets {
            match *target {
                Target::Sink(sink) => links.push(Link::Edge { to: TaskId::Sink(sink), entry: 0, prepare: None }),
                Target::Operator { index, input } => match self.stage_of.get(&index).copied() {
                    Some(to) if Some(to) == stage => links.push(Link::Node { node: placed[&index], input }),
                    Some(to) => {
                        let node = self.stages[to]
                            .operators
                            .iter()
                            .position(|operator| *operator == index)
                            .expect("it is an operator of that stage");
                        let entries = &mut self.stages[to].entries;
                        let entry = entries.iter().position(|known| *known == (node, input)).unwrap_or_else(|| {
                            entries.push((node, input));
                            entries.len() - 1
                        });
                        let prepare = self.prepares.get(&index).cloned();
                        links.push(Link::Edge { to: TaskId::Stage(to), entry, prepare });
                    }
                    None => links.push(Link::Node { node: self.place(index, stage, chain, placed), input }),
                },
            }
        }
        links
    }

    fn place<W: From<Arc<dyn Transform>>>(
        &mut self,
        operator: usize,
        stage: Option<usize>,
        chain: &mut Chain<W>,
        placed: &mut BTreeMap<usize, usize>,
    ) -> usize {
        if let Some(node) = placed.get(&operator) {
            return *node;
        }
        let TransformNode { name, transform } = self.transforms[&operator].clone();
        let at = chain.nodes.len();
        placed.insert(operator, at);
        let own = transform.reads();
        let decode = if transform.is_selective() {
            own
        } else {
            self.outputs[operator].iter().fold(own, |all, targets| all.union(&self.eager(targets)))
        };
        chain.nodes.push(Node {
            metrics: self.metrics.component(&name, "operator"),
            name,
            work: W::from(transform),
            ports: Arc::new([]),
            decode,
        });
        let ports = self.port_links(operator, stage, chain, placed);
        chain.nodes[at].ports = ports;
        at
    }

    /// What `targets` read, and what follows them where they let every record through.
    fn eager(&self, targets: &[Target]) -> Projection {
        targets.iter().fold(Projection::default(), |all, target| match target {
            Target::Sink(_) => all,
            Target::Operator { index, .. } => {
                let all = all.union(&self.reads[index]);
                match self.transforms.get(index) {
                    Some(node) if !node.transform.is_selective() => {
                        self.outputs[*index].iter().fold(all, |all, targets| all.union(&self.eager(targets)))
                    }
                    _ => all,
                }
            }
        })
    }

    fn needs_time_from(&self, targets: &[Target]) -> bool {
        targets.iter().any(|target| match target {
            Target::Sink(sink) => self.sinks.get(*sink).is_some_and(|sink| sink.needs_time),
            Target::Operator { index, .. } => {
                self.needs_time[*index] || self.outputs[*index].iter().any(|targets| self.needs_time_from(targets))
            }
        })
    }
}
