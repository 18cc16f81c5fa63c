//! A configuration without problems as the lints look at it: what each component tells of itself, who reads whom, and where
//! everything is written.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use tocsin_pipeline::expression::Known;
use tocsin_pipeline::time::Timestamp;
use vrl::path::{OwnedSegment, OwnedValuePath};

use super::matching::{Labels, RULE};
use crate::component::{Assigns, Keying, Makes};
use crate::facts::{Audience, Facts, LabelText, NotifierFacts, RouteFacts, RuleFacts, WindowFacts};
use crate::options::{BufferOptions, DaemonOptions};
use crate::plan::{ComponentId, Edge, Outlet, Test};
use crate::scale::reached;
use crate::silence::Silence;
use crate::tree::{Node, Place};

/// What is looked at.
pub(crate) struct View<'a> {
    pub(crate) members: BTreeMap<ComponentId, Member<'a>>,
    /// What goes through a topic comes out of the component that writes to it.
    pub(crate) edges: Vec<Edge>,
    pub(crate) daemon: &'a DaemonOptions,
    pub(crate) daemon_node: &'a Node<'a>,
    pub(crate) silences: &'a [(Silence, Node<'a>)],
    pub(crate) tests: &'a [Test],
    /// Where secrets are written.
    pub(crate) secrets: &'a [Place],
    /// `None` where nobody knows what time it is.
    pub(crate) now: Option<Timestamp>,
}

/// A component.
pub(crate) struct Member<'a> {
    pub(crate) name: &'a str,
    pub(crate) node: &'a Node<'a>,
    pub(crate) role: Role,
}

#[expect(clippy::large_enum_variant, reason = "there is one for each component, made once and looked at where it is")]
pub(crate) enum Role {
    Source {
        /// Whether it is the source of what people say, which nobody has written.
        is_commands: bool,
        is_at_admin: bool,
    },
    Operator {
        facts: Facts,
        keying: Keying,
        makes: Makes,
        ports: Vec<String>,
    },
    Sink {
        audience: Audience,
        buffer: BufferOptions,
    },
    /// An operator that stands for a topic.
    Relay,
}

/// What a finding is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    Component(ComponentId),
    /// Its number.
    Silence(usize),
    Daemon,
}

/// What a lint has found.
#[derive(Debug)]
pub(crate) struct Finding {
    pub(crate) subject: Subject,
    /// As [`Problem::option`](crate::component::Problem).
    pub(crate) option: String,
    /// Where exactly, if that is no option of its own.
    pub(crate) place: Option<Place>,
    pub(crate) within: Option<Range<usize>>,
    pub(crate) message: String,
    pub(crate) help: Option<String>,
    /// Other options that have to do with it.
    pub(crate) notes: Vec<(Subject, String, String)>,
}

impl Finding {
    pub(crate) fn new(subject: Subject, option: impl Into<String>, message: impl Into<String>) -> Self {
        let (option, message) = (option.into(), message.into());
        Self { subject, option, place: None, within: None, message, help: None, notes: Vec::new() }
    }

    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    pub(crate) fn note(mut self, subject: Subject, option: impl Into<String>, message: impl Into<String>) -> Self {
        self.notes.push((subject, option.into(), message.into()));
        self
    }
}

/// What an operator reads, as far back as it can be followed.
#[derive(Debug, Default)]
pub(super) struct Stream<'v> {
    pub(super) windows: Vec<(ComponentId, &'v WindowFacts)>,
    /// Fields that were given other values on the way.
    assigned: BTreeSet<String>,
    /// Whether there are records of no window.
    pub(super) has_plain: bool,
    /// Whether there are records of which nobody knows what they are.
    pub(super) is_opaque: bool,
}

impl Stream<'_> {
    /// Whether all are records of windows.
    pub(super) fn is_windows(&self) -> bool {
        !self.windows.is_empty() && !self.has_plain && !self.is_opaque
    }

    /// What is known of a field of all records.
    pub(super) fn known(&self, path: &OwnedValuePath) -> Known {
        let [OwnedSegment::Field(name)] = &path.segments[..] else { return Known::Nothing };
        let name = name.as_str();
        if !self.is_windows() || self.assigned.contains(name) {
            return Known::Nothing;
        }
        let mut all = self.windows.iter().map(|(_, window)| window.aggregates.get(name).copied());
        let first = all.next().flatten().unwrap_or(Known::Nothing);
        if all.all(|other| other == Some(first)) { first } else { Known::Nothing }
    }

    /// How far apart the records of a key are at least, and at most.
    pub(super) fn steps(&self) -> Option<(std::time::Duration, std::time::Duration)> {
        let steps = || self.windows.iter().map(|(_, window)| window.every);
        steps().min().zip(steps().max()).filter(|_| self.is_windows())
    }
}

/// The rules whose alerts get to a notifier.
#[derive(Debug, Default)]
pub(super) struct Origins {
    pub(super) rules: Vec<ComponentId>,
    /// Whether there may be other alerts, or alerts that are not as the rule made them.
    pub(super) is_open: bool,
}

impl View<'_> {
    pub(super) fn name(&self, id: ComponentId) -> &str {
        self.members.get(&id).map_or("", |member| member.name)
    }

    pub(super) fn rules(&self) -> impl Iterator<Item = (ComponentId, &RuleFacts)> {
        self.members.iter().filter_map(|(id, member)| match &member.role {
            Role::Operator { facts: Facts::Rule(rule), .. } => Some((*id, rule)),
            _ => None,
        })
    }

    pub(super) fn notifiers(&self) -> impl Iterator<Item = (ComponentId, &NotifierFacts)> {
        self.members.iter().filter_map(|(id, member)| match &member.role {
            Role::Operator { facts: Facts::Notifier(notifier), .. } => Some((*id, &**notifier)),
            _ => None,
        })
    }

    pub(super) fn windows(&self) -> impl Iterator<Item = (ComponentId, &WindowFacts)> {
        self.members.iter().filter_map(|(id, member)| match &member.role {
            Role::Operator { facts: Facts::Window(window), .. } => Some((*id, window)),
            _ => None,
        })
    }

    /// The sinks that what a component gives out gets to.
    pub(super) fn audiences(&self, from: ComponentId) -> BTreeMap<ComponentId, Audience> {
        let reached = reached(&self.edges, from).into_iter();
        let sinks = reached.filter_map(|id| match &self.members.get(&id)?.role {
            Role::Sink { audience, .. } => Some((id, *audience)),
            _ => None,
        });
        sinks.collect()
    }

    /// Whether people are told of what a component gives out.
    pub(super) fn is_told(&self, from: ComponentId) -> bool {
        self.audiences(from).values().any(|audience| *audience == Audience::People)
    }

    pub(super) fn inputs(&self, to: ComponentId) -> impl Iterator<Item = Outlet> {
        self.edges.iter().filter(move |edge| edge.to == to).map(|edge| edge.from)
    }

    /// The number of an operator's output of this name.
    pub(super) fn port(&self, id: ComponentId, name: &str) -> Option<usize> {
        match &self.members.get(&id)?.role {
            Role::Operator { ports, .. } => ports.iter().position(|port| port == name).map(|at| at + 1),
            _ => None,
        }
    }

    pub(super) fn is_read(&self, component: ComponentId, port: usize) -> bool {
        self.edges.iter().any(|edge| edge.from == Outlet { component, port })
    }

    /// Whether dead letters come out of an output.
    pub(super) fn is_rejected(&self, outlet: Outlet) -> bool {
        match &self.members.get(&outlet.component).map(|member| &member.role) {
            Some(Role::Operator { ports, .. }) => {
                outlet.port.checked_sub(1).and_then(|at| ports.get(at)).is_some_and(|port| port == "rejected")
            }
            _ => outlet.port > 0,
        }
    }

    /// What a component reads.
    pub(super) fn stream(&self, of: ComponentId) -> Stream<'_> {
        let mut stream = Stream::default();
        let (mut open, mut seen): (Vec<_>, BTreeSet<Outlet>) = (self.inputs(of).collect(), BTreeSet::new());
        while let Some(outlet) = open.pop() {
            if !seen.insert(outlet) {
                continue;
            }
            let id = outlet.component;
            match self.members.get(&id).map(|member| &member.role) {
                Some(Role::Source { is_commands: true, .. }) => {}
                Some(Role::Source { .. }) => stream.has_plain = true,
                // What a topic gives is the same, and no longer known as what a window made.
                Some(Role::Relay) => stream.is_opaque = true,
                Some(Role::Operator { .. }) if self.is_rejected(outlet) => stream.has_plain = true,
                Some(Role::Operator { facts: Facts::Window(window), .. }) => match outlet.port {
                    0 => stream.windows.push((id, window)),
                    _ => stream.has_plain = true,
                },
                Some(Role::Operator { keying: Keying::Stateless { assigns }, makes: Makes::Same, .. }) => {
                    match assigns {
                        Assigns::Nothing => {}
                        Assigns::Paths(paths) => stream.assigned.extend(paths.iter().map(|path| first_field(path))),
                        Assigns::Everything => stream.is_opaque = true,
                    }
                    open.extend(self.inputs(id));
                }
                Some(Role::Operator { keying: Keying::By { .. }, makes: Makes::Same, .. }) => {
                    open.extend(self.inputs(id));
                }
                Some(Role::Operator { .. } | Role::Sink { .. }) | None => stream.is_opaque = true,
            }
        }
        stream.windows.sort_by_key(|(id, _)| *id);
        stream
    }

    /// The rules whose alerts a notifier reads.
    pub(super) fn origins(&self, of: ComponentId) -> Origins {
        let mut origins = Origins::default();
        let (mut open, mut seen): (Vec<_>, BTreeSet<Outlet>) = (self.inputs(of).collect(), BTreeSet::new());
        while let Some(outlet) = open.pop() {
            if !seen.insert(outlet) {
                continue;
            }
            let id = outlet.component;
            match self.members.get(&id).map(|member| &member.role) {
                Some(Role::Source { is_commands: true, .. }) => {}
                Some(Role::Operator { .. }) if self.is_rejected(outlet) => origins.is_open = true,
                Some(Role::Operator { facts: Facts::Rule(_), .. }) => origins.rules.push(id),
                // What it makes is no alert.
                Some(Role::Operator { facts: Facts::Window(_), .. }) if outlet.port == 0 => {}
                Some(Role::Relay) => open.extend(self.inputs(id)),
                Some(Role::Operator { keying: Keying::Stateless { assigns }, makes: Makes::Same, .. }) => {
                    origins.is_open |= *assigns != Assigns::Nothing;
                    open.extend(self.inputs(id));
                }
                Some(Role::Operator { keying: Keying::By { .. }, makes: Makes::Same, .. }) => {
                    open.extend(self.inputs(id));
                }
                Some(Role::Source { .. } | Role::Operator { .. } | Role::Sink { .. }) | None => origins.is_open = true,
            }
        }
        origins.rules.sort_unstable();
        origins.rules.dedup();
        origins
    }

    /// What the labels of a rule's alerts can be.
    pub(super) fn labels(&self, id: ComponentId, rule: &RuleFacts) -> Labels {
        let mut labels = Labels::default();
        for (name, text) in &rule.labels {
            let values = match text {
                LabelText::Fixed(values) => Some(values.clone()),
                LabelText::Of(_) => None,
            };
            labels.values.insert(name.clone(), values);
        }
        let mut keys: BTreeSet<String> = BTreeSet::new();
        match &rule.keys {
            Some(names) => keys.extend(names.iter().cloned()),
            None => {
                let stream = self.stream(id);
                labels.is_open = stream.is_opaque;
                keys.extend(stream.windows.iter().flat_map(|(_, window)| window.keys.clone()));
                if stream.has_plain {
                    let texts = rule.labels.values();
                    keys.extend(texts.flat_map(|text| match text {
                        LabelText::Fixed(_) => BTreeSet::new(),
                        LabelText::Of(fields) => fields.clone(),
                    }));
                }
            }
        }
        for key in keys {
            labels.values.entry(key).or_insert(None);
        }
        labels.values.entry(RULE.to_owned()).or_insert_with(|| Some(vec![self.name(id).to_owned()]));
        labels
    }

    /// The labels of all alerts that get to a notifier; `None` where others may.
    pub(super) fn labels_at(&self, notifier: ComponentId) -> Option<Vec<Labels>> {
        let origins = self.origins(notifier);
        if origins.is_open || origins.rules.is_empty() {
            return None;
        }
        let rules: BTreeMap<ComponentId, &RuleFacts> = self.rules().collect();
        Some(origins.rules.iter().map(|id| self.labels(*id, rules[id])).collect())
    }
}

/// Calls for each route, from the root on, with those that it stands in, the outermost first.
pub(super) fn each_route<'r>(
    root: &'r RouteFacts,
    above: &mut Vec<&'r RouteFacts>,
    call: &mut dyn FnMut(&'r RouteFacts, &[&'r RouteFacts]),
) {
    call(root, above);
    above.push(root);
    for route in &root.routes {
        each_route(route, above, call);
    }
    above.pop();
}

/// The field at the top that a path is within.
fn first_field(path: &str) -> String {
    let path = path.trim_start_matches('.');
    path.split(['.', '[']).next().unwrap_or(path).trim_matches('"').to_owned()
}
