//! The whole engine under a virtual clock: random pipelines over random records, with the power cut, the process killed, the
//! disk failing and full, sinks that are slow or cannot prepare, restarts of every kind. What the sinks hold in the end must be
//! what they hold after a run that nobody disturbed.
//!
//! Sources and sinks are simulated, everything between them is what the daemon runs: the real engine, operators and
//! checkpoints, on one thread, a paused clock and a simulated disk. A seed always does the same.
//!
//! See `docs/testing.md`. `TOCSIN_SEEDS` is how many pipelines there are, `TOCSIN_DAMAGES` how often a data directory is damaged.

mod support;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::ErrorKind;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde_json::json;
use support::campaign::{Campaign, Order, Outcome};
use tocsin_config::component::Catalog;
use tocsin_config::{EmptyEnvironment, Plan, SourceFile};
use tocsin_pipeline::event::Origin;
use tocsin_pipeline::fault::{self, Defect};
use tocsin_pipeline::graph::Graph;
use tocsin_pipeline::json::write_value;
use tocsin_pipeline::metrics::Metrics;
use tocsin_pipeline::runtime::{self, Settings};
use tocsin_pipeline::sink::{Sink, SinkContext, SinkError, SinkInput, SinkState};
use tocsin_pipeline::source::{Block, Framing, Source, SourceContext, SourceError, SourceEvent};
use tocsin_pipeline::store::simulated::{Failure, Random, SimulatedDisk};
use tocsin_pipeline::time::{Clock, Timestamp};
use tokio_util::sync::CancellationToken;

static CATALOG: Catalog = Catalog {
    sources: tocsin_sources::SOURCES,
    codecs: tocsin_sources::CODECS,
    operators: tocsin_operators::OPERATORS,
    sinks: tocsin_sinks::SINKS,
};

/// A pipeline, its records, and what of its outputs is defined.
struct Scenario {
    text: String,
    plan: Plan,
    /// By source, by lane.
    input: BTreeMap<String, Vec<Bytes>>,
    /// By sink: whether the order of its records is defined.
    is_ordered: BTreeMap<String, bool>,
}

/// An output that others can read.
#[derive(Clone)]
struct Outlet {
    name: String,
    kind: Kind,
    is_ordered: bool,
    is_read: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Record,
    Window,
    Alert,
}

fn records(random: &mut Random, source: usize, lane: usize) -> Bytes {
    let mut text = String::new();
    let mut at = random.below(5_000);
    // Enough for blocks that are worked on away from the task of their source, now and then.
    let count = if random.one_in(4) { 500 + random.below(1_000) } else { 50 + random.below(400) };
    for number in 0..count {
        at += random.below(400);
        // Now and then one comes late.
        let time = if random.one_in(20) { at.saturating_sub(random.below(8_000)) } else { at };
        let (minute, second, milli) = (time / 60_000, time / 1000 % 60, time % 1000);
        let level = ["DEBUG", "INFO", "WARN", "ERROR"][random.below(4) as usize];
        writeln!(
            text,
            "{{\"ts\":\"2026-11-20T12:{minute:02}:{second:02}.{milli:03}Z\",\"level\":\"{level}\",\"service\":\"s{}\",\"n\":{},\
             \"latency\":{}.{},\"id\":\"{source}-{lane}-{number}\"}}",
            random.below(5),
            random.below(1000),
            random.below(5),
            random.below(1000)
        )
        .unwrap();
        if random.one_in(50) {
            text.push_str("not a record\n");
        }
    }
    text.into()
}

fn scenario(random: &mut Random) -> Scenario {
    let mut text = String::new();
    let mut input = BTreeMap::new();
    let mut outlets: Vec<Outlet> = Vec::new();
    for number in 0..1 + random.below(2) {
        let name = format!("in{number}");
        let lanes = if random.one_in(2) { 1 } else { 1 + random.below(3) as usize };
        let behind = ["0s", "1s", "5s"][random.below(3) as usize];
        write!(
            text,
            "[sources.{name}]\ntype = \"file\"\npaths = [\"{name}.log\"]\ncodec = \"json\"\ntimestamp = {{ field = \".ts\" }}\n\
             out_of_order = \"{behind}\"\n\n"
        )
        .unwrap();
        input.insert(name.clone(), (0..lanes).map(|lane| records(random, number as usize, lane)).collect());
        let is_ordered = lanes == 1;
        outlets.push(Outlet { name: format!("{name}.rejected"), kind: Kind::Alert, is_ordered, is_read: false });
        outlets.push(Outlet { name, kind: Kind::Record, is_ordered, is_read: false });
    }
    for number in 0..1 + random.below(6) {
        operator(random, number, &mut text, &mut outlets);
    }
    let mut is_ordered = BTreeMap::new();
    let mut sink = |text: &mut String, inputs: &[&Outlet]| {
        let name = format!("out{}", is_ordered.len());
        let names: Vec<_> = inputs.iter().map(|outlet| outlet.name.as_str()).collect();
        write!(text, "[sinks.{name}]\ntype = \"blackhole\"\ninputs = {names:?}\n\n").unwrap();
        is_ordered.insert(name, inputs.len() == 1 && inputs[0].is_ordered);
    };
    for outlet in outlets.iter().filter(|outlet| !outlet.is_read) {
        sink(&mut text, &[outlet]);
    }
    if random.one_in(2) {
        let (one, other) = (random.below(outlets.len() as u64) as usize, random.below(outlets.len() as u64) as usize);
        if one != other {
            sink(&mut text, &[&outlets[one], &outlets[other]]);
        }
    }
    let files = [SourceFile { name: "pipeline.toml".into(), text: text.clone() }];
    let plan = tocsin_config::check(&files, &EmptyEnvironment, &CATALOG, &[])
        .unwrap_or_else(|report| panic!("{}\n{text}", report.render(false)));
    Scenario { text, plan, input, is_ordered }
}

/// Adds an operator behind one or two of the outputs there are.
fn operator(random: &mut Random, number: u64, text: &mut String, outlets: &mut Vec<Outlet>) {
    let name = format!("op{number}");
    let at = random.below(outlets.len() as u64) as usize;
    let from = outlets[at].clone();
    let mut inputs = vec![from.name.clone()];
    let choice = random.below(9);
    let (body, kind, is_ordered, ports) = match (from.kind, choice) {
        (Kind::Record, 0 | 1) => {
            let condition = [".level != \"DEBUG\"", ".n > 500", "contains(string!(.service), \"1\") || .latency < 2.5"]
                [random.below(3) as usize];
            (format!("type = \"filter\"\ncondition = '{condition}'"), Kind::Record, from.is_ordered, vec![])
        }
        (Kind::Record, 2) => {
            let body = "type = \"remap\"\nprogram = '.double = int!(.n) * 2; .level = downcase!(.level)'";
            (body.to_owned(), Kind::Record, from.is_ordered, vec![])
        }
        (Kind::Record, 3) => {
            let body = "type = \"route\"\nroutes = { big = \".n > 500\", slow = \".latency > 2\" }";
            (
                body.to_owned(),
                Kind::Record,
                from.is_ordered,
                vec![("big", Kind::Record), ("slow", Kind::Record), ("other", Kind::Record)],
            )
        }
        (Kind::Record, 4) if from.is_ordered => {
            ("type = \"dedupe\"\nkey = [\".service\"]\nwithin = \"3s\"".to_owned(), Kind::Record, true, vec![])
        }
        (Kind::Record, 5) if from.is_ordered => {
            ("type = \"throttle\"\nkey = [\".level\"]\nevents = 3\nper = \"5s\"".to_owned(), Kind::Record, true, vec![])
        }
        (Kind::Record, 6) if from.is_ordered => {
            let body = "type = \"alert\"\ncondition = '.n > 900'\ngroup_by = [\".service\"]\nresolve_after = \"10s\"";
            (body.to_owned(), Kind::Alert, true, vec![])
        }
        (Kind::Record, _) => {
            let other = outlets[random.below(outlets.len() as u64) as usize].clone();
            if other.kind == Kind::Record && other.name != from.name {
                inputs.push(other.name.clone());
            }
            let size = ["tumbling = \"10s\"", "tumbling = \"2s\"", "hopping = { size = \"20s\", every = \"5s\" }"]
                [random.below(3) as usize];
            let is_alone = inputs.len() == 1 && from.is_ordered;
            // What is told anew, and how often, is defined within a lane.
            let lateness = match random.below(3) {
                0 => "lateness = \"0s\"",
                1 if is_alone => "lateness = \"30s\"\nemit = \"update\"",
                _ => "lateness = \"2s\"",
            };
            let body = format!(
                "type = \"window\"\n{size}\n{lateness}\ngroup_by = [\".service\"]\n\
                 aggregates = {{ count = \"count()\", total = \"sum(.latency)\", top = \"max(.n)\", p90 = \"quantile(.latency, 0.9)\", ids = \"distinct(.id)\" }}"
            );
            outlets.push(Outlet {
                name: format!("{name}.late"),
                kind: Kind::Alert,
                is_ordered: is_alone,
                is_read: false,
            });
            (body, Kind::Window, true, vec![])
        }
        (Kind::Window, 0..5) => {
            let body = "type = \"alert\"\ncondition = '.count > 4'\nfor = \"4s\"\nlabels = { severity = \"page\" }";
            let (name, is_ordered) = (format!("{name}.amended"), from.is_ordered);
            outlets.push(Outlet { name, kind: Kind::Alert, is_ordered, is_read: false });
            (body.to_owned(), Kind::Alert, is_ordered, vec![])
        }
        (Kind::Window, _) => {
            ("type = \"filter\"\ncondition = '.total > 5'".to_owned(), Kind::Window, from.is_ordered, vec![])
        }
        (Kind::Alert, _) => return,
    };
    for outlet in outlets.iter_mut().filter(|outlet| inputs.contains(&outlet.name)) {
        outlet.is_read = true;
    }
    write!(text, "[operators.{name}]\ninputs = {inputs:?}\n{body}\n\n").unwrap();
    if ports.is_empty() {
        outlets.push(Outlet { name, kind, is_ordered, is_read: false });
    } else {
        outlets.extend(ports.into_iter().map(|(port, kind)| Outlet {
            name: format!("{name}.{port}"),
            kind,
            is_ordered,
            is_read: false,
        }));
    }
}

/// A clock that stands unless tokio's is moved on.
struct PausedClock {
    base: tokio::time::Instant,
    before: Duration,
}

impl Clock for PausedClock {
    fn now(&self) -> Timestamp {
        // Long before all records: nothing may depend on the clock, and what follows it by mistake is seen.
        Timestamp::from_secs(946_684_800).saturating_add(self.monotonic())
    }

    fn monotonic(&self) -> Duration {
        self.before + self.base.elapsed()
    }
}

/// Lines that can be read again, cut into blocks at random.
struct Lines {
    lanes: Vec<Bytes>,
    random: Random,
}

impl Source for Lines {
    fn open<'a>(&'a mut self, _: &'a SourceContext) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(async { Ok(()) })
    }

    fn run(mut self: Box<Self>, context: SourceContext) -> BoxFuture<'static, Result<(), SourceError>> {
        Box::pin(async move {
            let place = |offset: usize| json!({ "offset": offset });
            let block = |bytes: Bytes, start: usize| Block {
                position: place(start + bytes.len()),
                bytes,
                framing: Framing::Lines,
                base: start as u64,
                arrival: context.clock.now(),
                acknowledgement: None,
                notes: None,
            };
            let mut offsets = Vec::new();
            let mut lanes = Vec::new();
            for number in 0..self.lanes.len() {
                let partition = number.to_string();
                let offset = context.positions.get(&partition).and_then(|position| position["offset"].as_u64());
                offsets.push(usize::try_from(offset.unwrap_or(0)).unwrap());
                lanes.push(context.lane(partition, Origin::Stream));
                // As sources do that know their lanes: no time may run ahead of one that is still to be read.
                context
                    .emit(SourceEvent::Block(Arc::clone(&lanes[number]), block(Bytes::new(), offsets[number])))
                    .await?;
            }
            loop {
                let left: Vec<_> = (0..lanes.len()).filter(|lane| offsets[*lane] < self.lanes[*lane].len()).collect();
                if left.is_empty() || context.stop.is_cancelled() {
                    break;
                }
                let lane = left[self.random.below(left.len() as u64) as usize];
                let (start, whole) = (offsets[lane], &self.lanes[lane]);
                let most = if self.random.one_in(4) { 900 } else { 40 };
                let lines = 1 + self.random.below(most) as usize;
                let end = memchr::memchr_iter(b'\n', &whole[start..]).nth(lines - 1);
                let end = end.map_or(whole.len(), |end| start + end + 1);
                let block = block(whole.slice(start..end), start);
                context.emit(SourceEvent::Block(Arc::clone(&lanes[lane]), block)).await?;
                offsets[lane] = end;
                if self.random.one_in(3) {
                    tokio::time::sleep(Duration::from_millis(self.random.below(60))).await;
                }
            }
            if !context.stop.is_cancelled() {
                for (lane, offset) in lanes.into_iter().zip(offsets) {
                    context.emit(SourceEvent::Closed { lane, keep: Some(place(offset)) }).await?;
                }
            }
            Ok(())
        })
    }
}

/// What the sinks have written: the world outside, which survives everything.
type World = Arc<Mutex<BTreeMap<String, Vec<String>>>>;

/// Writes records and is cut back to the checkpoint, as files are.
struct Written {
    world: World,
    random: Random,
    /// Whether it may be slow and unable to prepare.
    is_troubled: bool,
}

impl Sink for Written {
    fn open<'a>(&'a mut self, context: &'a SinkContext) -> BoxFuture<'a, Result<(), SinkError>> {
        let length = context
            .restored
            .as_ref()
            .map_or(0, |state| u64::from_le_bytes(state[..].try_into().expect("it is what was said at a barrier")));
        let mut world = self.world.lock().unwrap();
        let lines = world.entry(context.name.to_string()).or_default();
        let is_there = lines.len() as u64 >= length;
        if !fault::is_planted(Defect::NoCut) {
            lines.truncate(length as usize);
        }
        Box::pin(async move {
            if is_there { Ok(()) } else { Err(SinkError("what the checkpoint speaks of was never written".into())) }
        })
    }

    fn run(mut self: Box<Self>, mut context: SinkContext) -> BoxFuture<'static, Result<SinkState, SinkError>> {
        Box::pin(async move {
            let world = Arc::clone(&self.world);
            let state = |world: &World| {
                let length = world.lock().unwrap()[&*context.name].len() as u64;
                SinkState::State(length.to_le_bytes().to_vec().into())
            };
            let mut answered = world.lock().unwrap()[&*context.name].len();
            while let Some(queued) = context.input.recv().await {
                if self.is_troubled && self.random.one_in(20) {
                    tokio::time::sleep(Duration::from_millis(self.random.below(2_000))).await;
                }
                let (input, _permit) = queued.split();
                match input {
                    SinkInput::Batch(batch) => {
                        context.metrics.received(batch.len(), batch.bytes());
                        for row in batch.rows() {
                            let mut line = batch.record(row).to_vec();
                            if let Some(value) = batch.changed(row) {
                                line.clear();
                                write_value(value, &mut line);
                            }
                            let line = String::from_utf8(line).expect("records are text here");
                            world.lock().unwrap().get_mut(&*context.name).unwrap().push(line);
                        }
                        context.metrics.sent(batch.len());
                    }
                    SinkInput::Barrier { prepared, .. } => {
                        let said = if self.is_troubled && self.random.one_in(10) {
                            SinkState::Failed("trouble".into())
                        } else {
                            answered = world.lock().unwrap()[&*context.name].len();
                            state(&world)
                        };
                        let _ = prepared.send(said);
                    }
                    SinkInput::Committed { .. } | SinkInput::Watermark(_) => {}
                    SinkInput::End => break,
                }
            }
            if self.is_troubled && self.random.one_in(5) {
                // It could not write what came since it answered last.
                world.lock().unwrap().get_mut(&*context.name).unwrap().truncate(answered);
                return Ok(SinkState::Failed("trouble".into()));
            }
            Ok(state(&world))
        })
    }
}

fn graph(scenario: &Scenario, world: &World, random: &mut Random, is_troubled: bool) -> Graph {
    let mut graph = tocsin_config::build::build(&scenario.plan);
    for source in &mut graph.sources {
        source.source = Box::new(Lines { lanes: scenario.input[&*source.name].clone(), random: Random(random.word()) });
    }
    for sink in &mut graph.sinks {
        sink.sink = Box::new(Written { world: Arc::clone(world), random: Random(random.word()), is_troubled });
    }
    graph
}

/// How a life of the daemon ends.
#[derive(Clone, Copy, Debug)]
enum End {
    /// By itself, when all is read.
    Own,
    /// Told to stop after so many milliseconds.
    Stopped(u64),
    /// Killed after so many milliseconds.
    Killed(u64),
    /// The power goes at this operation of the disk.
    PowerCut(u64),
}

struct Life {
    end: End,
    failure: Option<Failure>,
    seed: u64,
}

/// Lives once; gives how long it was, on its clock, and what the engine said unless it was ended from outside.
fn live(
    scenario: &Scenario,
    world: &World,
    disk: Option<&SimulatedDisk>,
    life: &Life,
    before: Duration,
) -> (Duration, Option<Result<(), String>>) {
    let mut random = Random(life.seed);
    let is_troubled = disk.is_some() && random.one_in(2) && !matches!(life.end, End::Own);
    let executor = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    if let Some(disk) = disk {
        if let End::PowerCut(operation) = life.end {
            disk.crash_at(operation);
        }
        if let Some(failure) = life.failure {
            disk.fail(failure);
        }
    }
    executor.block_on(async {
        let clock = Arc::new(PausedClock { base: tokio::time::Instant::now(), before });
        let stop = CancellationToken::new();
        let settings = Settings {
            data_dir: disk.map(|_| "/data".into()),
            shared: None,
            completed: None,
            checkpoint_interval: Duration::from_millis(10 + random.below(300)),
            shutdown_timeout: Duration::from_secs(15),
            threads: 1 + random.below(4) as usize,
            memory: 4 << 20,
            once: true,
            no_state_loss: true,
            guard: Arc::default(),
            undelivered: |_, _| None,
            clock: Arc::clone(&clock) as Arc<dyn Clock>,
            storage: Arc::new(disk.cloned().unwrap_or_default()),
            health: Default::default(),
            metrics: Metrics::new(),
            status: Arc::default(),
        };
        let graph = graph(scenario, world, &mut random, is_troubled);
        let watched = async {
            match life.end {
                End::Own => std::future::pending().await,
                End::Killed(millis) => tokio::time::sleep(Duration::from_millis(millis)).await,
                End::Stopped(millis) => {
                    tokio::time::sleep(Duration::from_millis(millis)).await;
                    stop.cancel();
                    std::future::pending().await
                }
                End::PowerCut(_) => {
                    while disk.is_some_and(|disk| !disk.is_dead()) {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                }
            }
        };
        let outcome = tokio::select! {
            outcome = runtime::run(graph, settings, stop.clone()) => Some(outcome.map_err(|error| error.to_string())),
            () = watched => None,
        };
        (clock.monotonic(), outcome)
    })
}

/// What the sinks hold, as far as it is defined.
fn written(scenario: &Scenario, world: &World) -> BTreeMap<String, Vec<String>> {
    let mut world = world.lock().unwrap().clone();
    for (sink, lines) in &mut world {
        if !scenario.is_ordered[sink] {
            lines.sort();
        }
    }
    world
}

/// One pipeline and its fate; gives how many times it was disturbed, or what is wrong. `None`: it has nothing to write.
fn simulate(seed: u64) -> Result<Option<u64>, String> {
    let mut random = Random(seed);
    let scenario = scenario(&mut random);
    let told = |why: String| format!("seed {seed}: {why}\n{}", scenario.text);
    let mut history = String::new();
    let undisturbed = World::default();
    let calm = Life { end: End::Own, failure: None, seed: random.word() };
    let (_, outcome) = live(&scenario, &undisturbed, None, &calm, Duration::ZERO);
    outcome.expect("it ends by itself").map_err(|error| told(format!("undisturbed: {error}")))?;
    let expected = written(&scenario, &undisturbed);
    if expected.values().all(Vec::is_empty) {
        return Ok(None);
    }
    let world = World::default();
    let mut disk = SimulatedDisk::default();
    let mut now = Duration::ZERO;
    let disturbances = random.below(6);
    for _ in 0..disturbances {
        let end = match random.below(6) {
            0 => End::Stopped(random.below(2_000)),
            1 | 2 => End::Killed(random.below(2_000)),
            _ => End::PowerCut(random.below(150)),
        };
        let failure = random.one_in(3).then(|| Failure {
            // A daemon that cannot write its data directory at start rightly gives up.
            from: 20 + random.below(80),
            count: 1 + random.below(30),
            kind: if random.one_in(2) { ErrorKind::StorageFull } else { ErrorKind::Other },
        });
        let life = Life { end, failure, seed: random.word() };
        let (lived, outcome) = live(&scenario, &world, Some(&disk), &life, now);
        now = lived + Duration::from_secs(1);
        writeln!(history, "{end:?} {failure:?}: {outcome:?}").unwrap();
        match outcome {
            Some(Err(error)) if failure.is_none() && !disk.is_dead() => {
                return Err(told(format!("{end:?}: {error}")));
            }
            _ => {}
        }
        disk = if let End::PowerCut(_) = end {
            disk.crash();
            let mut order: Vec<_> = (0..disk.pending()).filter(|_| !random.one_in(3)).collect();
            if random.one_in(2) {
                random.shuffle(&mut order);
            }
            let tear = random.one_in(2);
            disk.after_crash(&order, tear.then_some(&mut random))
        } else {
            disk.after_kill()
        };
    }
    // Without trouble, as else it might end before everything is written.
    let last = Life { end: End::Own, failure: None, seed: random.word() };
    let (_, outcome) = live(&scenario, &world, Some(&disk), &last, now);
    outcome.expect("it ends by itself").map_err(|error| told(format!("the last start: {error}")))?;
    let got = written(&scenario, &world);
    for (sink, want) in &expected {
        let none = Vec::new();
        let got = got.get(sink).unwrap_or(&none);
        if got != want {
            let at = want.iter().zip(got).position(|(want, got)| want != got).unwrap_or(want.len().min(got.len()));
            return Err(told(format!(
                "{sink} holds {} records, not {}; at {at}: {:?}, not {:?}\n{history}",
                got.len(),
                want.len(),
                got.get(at),
                want.get(at)
            )));
        }
    }
    Ok(Some(disturbances))
}

/// Damages a file of a data directory: a bit, a sector, or its end. Gives what was done.
fn damage(disk: &SimulatedDisk, random: &mut Random) -> Option<(String, String)> {
    let files: Vec<_> = disk.files().into_iter().filter(|(_, content)| !content.is_empty()).collect();
    let (path, mut content) = files.get(random.below(files.len().max(1) as u64) as usize)?.clone();
    let at = random.below(content.len() as u64) as usize;
    let what = match random.below(3) {
        0 => {
            content[at] ^= 1 << random.below(8);
            format!("a bit of byte {at} flipped")
        }
        1 => {
            let (from, to) = (at / 512 * 512, (at / 512 * 512 + 512).min(content.len()));
            if content[from..to].iter().all(|byte| *byte == 0) {
                return None;
            }
            content[from..to].fill(0);
            format!("bytes {from} to {to} zeroed")
        }
        _ => {
            content.truncate(at);
            format!("cut to {at} bytes")
        }
    };
    disk.replace(&path, content);
    Some((path.display().to_string(), what))
}

/// One data directory, damaged in `times` ways, each gone on from. Gives how many starts were refused.
fn rot(seed: u64, times: u64) -> Result<u64, String> {
    let mut random = Random(seed);
    let scenario = scenario(&mut random);
    let undisturbed = World::default();
    let calm = Life { end: End::Own, failure: None, seed: random.word() };
    let (_, outcome) = live(&scenario, &undisturbed, None, &calm, Duration::ZERO);
    outcome.expect("it ends by itself")?;
    let expected = written(&scenario, &undisturbed);
    let (world, disk) = (World::default(), SimulatedDisk::default());
    let killed = Life { end: End::Killed(200 + random.below(500)), failure: None, seed: random.word() };
    live(&scenario, &world, Some(&disk), &killed, Duration::ZERO);
    let mut refused = 0;
    for _ in 0..times {
        let left = disk.after_kill();
        let Some((path, what)) = damage(&left, &mut random) else { continue };
        let told = |why: String| format!("seed {seed}: {path}: {what}: {why}\n{}", scenario.text);
        let world = World::new(Mutex::new(world.lock().unwrap().clone()));
        let life = Life { end: End::Own, failure: None, seed: random.word() };
        let (_, outcome) = live(&scenario, &world, Some(&left), &life, Duration::from_secs(5));
        match outcome.expect("it ends by itself") {
            // A person is told which file, and nothing has been done on a guess.
            Err(why) if why.contains(path.rsplit('/').next().expect("it has a name")) => refused += 1,
            Err(why) => return Err(told(format!("refused without its name: {why}"))),
            Ok(()) if written(&scenario, &world) == expected => {}
            Ok(()) => return Err(told("the output is another".to_owned())),
        }
    }
    Ok(refused)
}

const DAMAGE: Campaign =
    Campaign { name: "damage", variable: "TOCSIN_DAMAGES", sizes: (1_000, 200_000), body: damages };

fn damages(order: &Order, outcome: &mut Outcome) -> anyhow::Result<()> {
    let mut refused = 0;
    for number in 0..order.size.div_ceil(50) {
        refused += rot(order.seed.wrapping_add(number), 50).map_err(anyhow::Error::msg)?;
        outcome.runs += 50;
    }
    outcome.note("refused", refused);
    Ok(())
}

#[test]
fn damage_to_the_data_directory_is_found_and_never_believed() {
    DAMAGE.run();
}

const SIMULATION: Campaign =
    Campaign { name: "simulation", variable: "TOCSIN_SEEDS", sizes: (1_000, 200_000), body: simulations };

fn simulations(order: &Order, outcome: &mut Outcome) -> anyhow::Result<()> {
    fault::plant(order.planted);
    let (mut disturbances, mut empty) = (0, 0);
    let result = (0..order.size).try_for_each(|number| {
        let disturbed = simulate(order.seed.wrapping_add(number))?;
        disturbances += disturbed.unwrap_or(0);
        empty += u64::from(disturbed.is_none());
        outcome.runs += 1;
        Ok(())
    });
    fault::plant(None);
    outcome.note("empty", empty);
    // A strict rule over few records writes nothing, now and then.
    if empty > 1 + order.size / 100 {
        outcome.violations.push(format!("{empty} of {} pipelines have nothing to write", order.size));
    }
    outcome.note("disturbances", disturbances);
    result.map_err(anyhow::Error::msg::<String>)
}

#[test]
fn what_is_written_in_the_end_does_not_tell_what_happened_on_the_way() {
    SIMULATION.run();
}

#[test]
fn a_seed_always_does_the_same() {
    for seed in 1..20 {
        let run = || {
            let mut random = Random(seed);
            let scenario = scenario(&mut random);
            let (world, disk) = (World::default(), SimulatedDisk::default());
            let life = Life { end: End::Killed(300), failure: None, seed };
            let lived = live(&scenario, &world, Some(&disk), &life, Duration::ZERO);
            (lived, world.lock().unwrap().clone(), disk.files())
        };
        assert_eq!(run(), run(), "seed {seed}");
    }
}

#[test]
fn every_planted_defect_of_the_engine_is_caught() {
    for defect in [Defect::NoCut, Defect::NoFolderSync] {
        let outcome = SIMULATION.once(&Order { size: SIMULATION.sizes.0, seed: 1, planted: Some(defect) });
        let why = outcome.violations.first().and_then(|why| why.lines().next());
        println!("{}: {why:?}", defect.as_str());
        assert!(!outcome.is_clean(), "{} goes unnoticed", defect.as_str());
    }
}
