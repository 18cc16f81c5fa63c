//! From a checked plan to a graph of components: pure, nothing is opened and no task is started.

use std::path::Path;
use std::sync::Arc;

use tocsin_pipeline::codec::PathTable;
use tocsin_pipeline::evolution::Meaning;
use tocsin_pipeline::graph::{Graph, IntakeOptions, OperatorNode, SinkNode, SourceNode, Target};
use tocsin_pipeline::timestamp::TimestampOptions;

use crate::component::{AssignedPartition, BuildContext};
use crate::options;
use crate::plan::{ComponentId, FAILED, Outlet, Plan, PlannedSource, REJECTED};
use crate::scale::Section;

/// The graph of a plan that one process runs. What goes into a relay goes right to what reads from it: so tests of a configuration
/// for several daemons need no topic.
pub fn build(plan: &Plan) -> Graph {
    build_watched(plan, &[])
}

/// The same where more is read than the plan says: these outlets get readers.
pub fn build_watched(plan: &Plan, watched: &[Outlet]) -> Graph {
    let is_relay = |source: &usize| plan.relays.iter().any(|relay| relay.source == *source);
    Part {
        plan,
        sources: (0..plan.sources.len()).filter(|source| !is_relay(source)).collect(),
        operators: (0..plan.operators.len()).collect(),
        sinks: (0..plan.sinks.len()).collect(),
        partition: None,
        watched,
    }
    .build()
}

/// The graph of the section that runs for a partition.
pub fn build_lane(plan: &Plan, section: &Section, partition: &AssignedPartition) -> Graph {
    Part {
        plan,
        sources: vec![section.source],
        operators: section.operators.clone(),
        sinks: section.sinks.clone(),
        partition: Some(partition),
        watched: &[],
    }
    .build()
}

/// Some of the components of a plan, by number, each kind rising: in the graph they are numbered anew.
struct Part<'a> {
    plan: &'a Plan,
    sources: Vec<usize>,
    operators: Vec<usize>,
    sinks: Vec<usize>,
    partition: Option<&'a AssignedPartition>,
    /// Outlets that are read by what is not in the plan.
    watched: &'a [Outlet],
}

impl Part<'_> {
    fn build(&self) -> Graph {
        let plan = self.plan;
        let mut paths = PathTable::default();
        let sources = self.sources.iter().map(|at| {
            let (component, source) = (ComponentId::Source(*at), &plan.sources[*at]);
            let built = source.options.build(&mut self.context(component, &mut paths, &source.folder));
            SourceNode {
                name: Arc::clone(&source.name),
                meaning: Meaning::of(source.type_name),
                source: built,
                intake: intake(source, &mut paths),
                journal: source.journal,
                outputs: self.targets(Outlet { component, port: 0 }),
                rejected: self.targets(Outlet { component, port: REJECTED }),
            }
        });
        let sources = sources.collect();
        let operators = self.operators.iter().map(|at| {
            let (component, operator) = (ComponentId::Operator(*at), &plan.operators[*at]);
            let ports = operator.options.ports();
            OperatorNode {
                name: Arc::clone(&operator.name),
                meaning: Meaning { kind: operator.type_name, shape: operator.shape.clone() },
                built: operator.options.build(&mut self.context(component, &mut paths, &operator.folder)),
                needs_time: operator.options.needs_time(),
                outputs: (0..=ports.len()).map(|port| self.targets(Outlet { component, port })).collect(),
                ports,
            }
        });
        let operators = operators.collect();
        let sinks = self.sinks.iter().map(|at| {
            let (component, sink) = (ComponentId::Sink(*at), &plan.sinks[*at]);
            SinkNode {
                name: Arc::clone(&sink.name),
                meaning: Meaning { kind: sink.type_name, shape: sink.options.state_shape() },
                sink: sink.options.build(&mut self.context(component, &mut paths, &sink.folder)),
                needs_time: sink.options.needs_time(),
                buffer_bytes: usize::try_from(sink.buffer.max.0).unwrap_or(usize::MAX).clamp(1, u32::MAX as usize),
                when_full: match sink.buffer.when_full {
                    options::WhenFull::DropNewest => tocsin_pipeline::graph::WhenFull::DropNewest,
                    options::WhenFull::Block => tocsin_pipeline::graph::WhenFull::Block,
                    options::WhenFull::Spill => {
                        tocsin_pipeline::graph::WhenFull::Spill { max_disk: sink.buffer.max_disk.0 }
                    }
                },
                rejected: self.targets(Outlet { component, port: REJECTED }),
                failed: self.targets(Outlet { component, port: FAILED }),
            }
        });
        let sinks = sinks.collect();
        Graph { sources, operators, sinks }
    }

    fn context<'p>(&self, component: ComponentId, paths: &'p mut PathTable, folder: &Path) -> BuildContext<'p> {
        BuildContext {
            name: Arc::clone(self.plan.name(component)),
            paths,
            folder: folder.to_owned(),
            connected: self.connected(component),
            silences: Arc::clone(&self.plan.silences),
            partition: self.partition.cloned(),
        }
    }

    /// The ports from 1 on that something reads, by name.
    fn connected(&self, component: ComponentId) -> Vec<String> {
        let is_read = |port| {
            let outlet = Outlet { component, port };
            self.watched.contains(&outlet) || self.plan.readers(outlet).next().is_some()
        };
        (1..).zip(self.plan.ports(component)).filter(|(port, _)| is_read(*port)).map(|(_, name)| name).collect()
    }

    /// What an output is connected to, all of which is in the part.
    fn targets(&self, from: Outlet) -> Vec<Target> {
        let place = |numbers: &[usize], number: usize| {
            numbers.binary_search(&number).expect("what a part gives out stays in it")
        };
        let mut targets = Vec::new();
        for edge in self.plan.readers(from) {
            match edge.to {
                ComponentId::Operator(index) => {
                    targets.push(Target::Operator { index: place(&self.operators, index), input: edge.input });
                }
                ComponentId::Sink(sink) => {
                    targets.push(Target::Sink(place(&self.sinks, sink)));
                    targets.extend(self.behind_relay(sink));
                }
                ComponentId::Source(_) => unreachable!("nothing can be written to a source"),
            }
        }
        targets
    }

    /// Where nothing goes through topics: what reads from the relay that a sink is the one end of.
    fn behind_relay(&self, sink: usize) -> Vec<Target> {
        match self.plan.relays.iter().find(|relay| relay.sink == sink) {
            Some(relay) if self.partition.is_none() => {
                self.targets(Outlet { component: ComponentId::Source(relay.source), port: 0 })
            }
            _ => Vec::new(),
        }
    }
}

fn intake(source: &PlannedSource, paths: &mut PathTable) -> IntakeOptions {
    let codec = source.codec.build();
    let default =
        || codec.timestamp_path().map(|path| TimestampOptions { path: Some(path), ..TimestampOptions::default() });
    let timestamp = source.timestamp.clone().or_else(default).and_then(|options| {
        let path = paths.intern(options.path.as_ref()?);
        Some((options, path))
    });
    IntakeOptions {
        codec,
        records: source.records.clone(),
        on_decode_error: match source.on_decode_error {
            options::OnDecodeError::Reject => tocsin_pipeline::graph::OnDecodeError::Reject,
            options::OnDecodeError::Drop => tocsin_pipeline::graph::OnDecodeError::Drop,
        },
        timestamp,
        out_of_order: source.out_of_order,
        idle_timeout: source.idle_timeout,
    }
}
