//! From a checked plan to a graph of components: pure, nothing is opened and no task is started.

use std::path::Path;
use std::sync::Arc;

use tocsin_pipeline::codec::PathTable;
use tocsin_pipeline::evolution::Meaning;
use tocsin_pipeline::graph::{Graph, IntakeOptions, OperatorNode, SinkNode, SourceNode, Target};
use tocsin_pipeline::timestamp::TimestampOptions;

use crate::component::BuildContext;
use crate::options;
use crate::plan::{ComponentId, Outlet, Plan, PlannedSource, REJECTED};

/// The graph of a plan.
pub fn build(plan: &Plan) -> Graph {
    let mut paths = PathTable::default();
    let sources = plan.sources.iter().enumerate().map(|(at, source)| {
        let component = ComponentId::Source(at);
        let built = source.options.build(&mut context(plan, component, &mut paths, &source.folder));
        SourceNode {
            name: Arc::clone(&source.name),
            meaning: Meaning::of(source.type_name),
            source: built,
            intake: intake(source, &mut paths),
            journal: source.journal,
            outputs: targets(plan, Outlet { component, port: 0 }),
            rejected: targets(plan, Outlet { component, port: REJECTED }),
        }
    });
    let sources = sources.collect();
    let operators = plan.operators.iter().enumerate().map(|(at, operator)| {
        let component = ComponentId::Operator(at);
        let ports = operator.options.ports();
        OperatorNode {
            name: Arc::clone(&operator.name),
            meaning: Meaning { kind: operator.type_name, shape: operator.shape.clone() },
            built: operator.options.build(&mut context(plan, component, &mut paths, &operator.folder)),
            needs_time: operator.options.needs_time(),
            outputs: (0..=ports.len()).map(|port| targets(plan, Outlet { component, port })).collect(),
            ports,
        }
    });
    let operators = operators.collect();
    let sinks = plan.sinks.iter().enumerate().map(|(at, sink)| {
        let component = ComponentId::Sink(at);
        SinkNode {
            name: Arc::clone(&sink.name),
            meaning: Meaning { kind: sink.type_name, shape: sink.options.state_shape() },
            sink: sink.options.build(&mut context(plan, component, &mut paths, &sink.folder)),
            needs_time: sink.options.needs_time(),
            buffer_bytes: usize::try_from(sink.buffer.max.0).unwrap_or(usize::MAX).clamp(1, u32::MAX as usize),
            when_full: match sink.buffer.when_full {
                options::WhenFull::DropNewest => tocsin_pipeline::graph::WhenFull::DropNewest,
                options::WhenFull::Block => tocsin_pipeline::graph::WhenFull::Block,
                options::WhenFull::Spill => {
                    tocsin_pipeline::graph::WhenFull::Spill { max_disk: sink.buffer.max_disk.0 }
                }
            },
            rejected: targets(plan, Outlet { component, port: REJECTED }),
        }
    });
    let sinks = sinks.collect();
    Graph { sources, operators, sinks }
}

fn context<'a>(plan: &Plan, component: ComponentId, paths: &'a mut PathTable, folder: &Path) -> BuildContext<'a> {
    BuildContext {
        name: Arc::clone(plan.name(component)),
        paths,
        folder: folder.to_owned(),
        connected: plan.connected(component),
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

fn targets(plan: &Plan, from: Outlet) -> Vec<Target> {
    plan.readers(from)
        .map(|edge| match edge.to {
            ComponentId::Operator(index) => Target::Operator { index, input: edge.input },
            ComponentId::Sink(sink) => Target::Sink(sink),
            ComponentId::Source(_) => unreachable!("nothing can be written to a source"),
        })
        .collect()
}
