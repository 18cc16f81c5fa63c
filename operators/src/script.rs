//! Test support: runs a written story over one operator and tells what came out of it, as text.
//!
//! A story is lines:
//!
//! ```text
//! 00:05 {"host":"a"}       a record with its event time, minutes and seconds after 1970-01-01T00:00:00Z
//! b: 00:05 {"host":"a"}    the same in the lane `b`; without a name it is the lane `a`; `commands` is that of the source `commands`
//! out_of_order 00:10       how much out of order the lanes that appear from here on may be
//! watermark 00:30          the merged watermark rises
//! barrier                  a checkpoint is taken
//! crash                    everything since the last barrier is forgotten, and its state restored
//! end                      all input has ended
//! ```
//!
//! The outcome has a line for each record that came out, with its port unless it is the operator's own name, and after each
//! stretch of records what ended at the operator, by reason. Within a stretch the ports come one after the other. Every story runs in several ways which must come to the same: records in one
//! batch or in one batch each, with [`Prepare`](tocsin_pipeline::operator::Prepare) and without. After every step each record must be
//! accounted for.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use tocsin_config::component::{BuildContext, OperatorConfig};
use tocsin_pipeline::codec::{Codec, DecodeError, PathTable, Row};
use tocsin_pipeline::event::{Batch, Cell, Field, Lane, Origin, Span, Times};
use tocsin_pipeline::json;
use tocsin_pipeline::operator::{Built, Input, Output, Reason};
use tocsin_pipeline::time::Timestamp;
use vrl::value::Value;

/// Runs `story` over the operator that the TOML text `config` describes.
pub(crate) fn run<C: OperatorConfig>(config: &str, story: &str) -> String {
    let outcomes = [(false, false), (true, false), (false, true), (true, true)].map(|(is_split, is_prepared)| {
        let mut runner = Runner::<C>::new(config, is_split, is_prepared);
        story.lines().map(str::trim).filter(|line| !line.is_empty()).for_each(|line| runner.step(line));
        runner.finish()
    });
    for outcome in &outcomes {
        assert_eq!(&outcomes[0], outcome, "the outcome depends on batches or on preparing");
    }
    let [outcome, ..] = outcomes;
    outcome
}

/// The problems of a configuration as text, a line each: `option[from..to]: message (help)`.
pub(crate) fn problems<C: OperatorConfig>(config: &str) -> String {
    let config: C = toml::from_str(config).unwrap();
    let mut text = String::new();
    for problem in config.problems() {
        text += &problem.option;
        if let Some(within) = problem.within {
            write!(text, "[{}..{}]", within.start, within.end).unwrap();
        }
        write!(text, ": {}", problem.message).unwrap();
        if let Some(help) = problem.help {
            write!(text, " ({help})").unwrap();
        }
        text.push('\n');
    }
    text
}

/// What an operator keeps its state by, and what it makes.
pub(crate) fn keying<C: OperatorConfig>(config: &str) -> String {
    let config: C = toml::from_str(config).unwrap();
    assert_eq!(config.problems(), []);
    format!("{:?}, {:?}", config.keying(), config.makes())
}

/// Builds the operator that the TOML text `config` describes, every port of it connected.
pub(crate) fn build<C: OperatorConfig>(config: &str) -> Built {
    let config: C = toml::from_str(config).unwrap();
    assert_eq!(config.problems(), []);
    let mut paths = PathTable::default();
    config.build(&mut BuildContext {
        name: "operator".into(),
        paths: &mut paths,
        folder: ".".into(),
        connected: config.ports(),
        silences: [].into(),
        partition: None,
    })
}

/// A batch of JSON records with their event times, at a position of their lane.
pub(crate) fn batch(lane: &Arc<Lane>, base: u64, seen_before: Timestamp, records: &[(Timestamp, &str)]) -> Batch {
    let (mut block, mut spans, mut times) = (Vec::new(), Vec::new(), Times { max: Timestamp::MIN, ..Times::default() });
    for (time, record) in records {
        spans.push(Span::new(block.len(), record.len()));
        block.extend_from_slice(record.as_bytes());
        block.push(b'\n');
        times.at.push(*time);
        times.before.push(times.max);
        times.max = times.max.max(*time);
    }
    let mut batch = Batch::new(Arc::clone(lane), block.into(), base, spans, Timestamp(0));
    batch.times = Some(Arc::new(times));
    batch.seen_before = seen_before;
    batch
}

pub(crate) fn lane(partition: &str, out_of_order: std::time::Duration) -> Arc<Lane> {
    // What people say comes from a source of its own.
    let source = if partition == tocsin_config::COMMANDS { partition } else { "source" };
    let (source, partition) = (source.into(), partition.to_owned());
    Arc::new(Lane { source, partition, origin: Origin::Stream, codec: Arc::new(Json), out_of_order })
}

/// What the engine keeps of a lane.
#[derive(Clone)]
struct LaneState {
    lane: Arc<Lane>,
    seen: Timestamp,
    offset: u64,
}

#[derive(Clone, Default)]
struct Saved {
    pieces: BTreeMap<u16, Vec<u8>>,
    lanes: BTreeMap<String, LaneState>,
}

struct Runner<C> {
    config: String,
    is_split: bool,
    is_prepared: bool,
    built: Built,
    ports: Vec<String>,
    lanes: BTreeMap<String, LaneState>,
    out_of_order: Timestamp,
    /// Records not handed over yet, all of one lane.
    pending: Vec<(String, Timestamp, String)>,
    saved: Saved,
    dropped: BTreeMap<Reason, u64>,
    expression_errors: u64,
    text: String,
    /// What came out since the last command, by port. The ports are streams of their own, so that it does not matter which
    /// of them an operator hands out first.
    stretch: BTreeMap<usize, String>,
    kind: std::marker::PhantomData<C>,
}

impl<C: OperatorConfig> Runner<C> {
    fn new(config: &str, is_split: bool, is_prepared: bool) -> Self {
        let parsed: C = toml::from_str(config).unwrap();
        Self {
            config: config.to_owned(),
            is_split,
            is_prepared,
            built: build::<C>(config),
            ports: parsed.ports(),
            lanes: BTreeMap::new(),
            out_of_order: Timestamp(0),
            pending: Vec::new(),
            saved: Saved::default(),
            dropped: BTreeMap::new(),
            expression_errors: 0,
            text: String::new(),
            stretch: BTreeMap::new(),
            kind: std::marker::PhantomData,
        }
    }

    fn step(&mut self, line: &str) {
        let (lane, rest) = match line.split_once(": ") {
            Some((lane, rest)) if lane.chars().all(char::is_alphanumeric) => (lane, rest),
            _ => ("a", line),
        };
        if rest.starts_with(|c: char| c.is_ascii_digit()) {
            let (time, record) = rest.split_once(' ').unwrap();
            if self.is_split || self.pending.last().is_some_and(|(last, ..)| last != lane) {
                self.hand_over();
            }
            self.pending.push((lane.to_owned(), parse_time(time), record.to_owned()));
            return;
        }
        self.hand_over();
        self.tell_drops();
        let (command, argument) = line.split_once(' ').unwrap_or((line, ""));
        match command {
            "out_of_order" => self.out_of_order = parse_time(argument),
            "watermark" => self.watermark(parse_time(argument)),
            "end" => self.watermark(Timestamp::MAX),
            "barrier" => self.barrier(),
            "crash" => self.crash(),
            _ => panic!("{line:?} is not a line of a story"),
        }
    }

    fn finish(mut self) -> String {
        self.hand_over();
        self.tell_drops();
        self.text
    }

    fn hand_over(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        let Some((name, ..)) = pending.first() else { return };
        let out_of_order = self.out_of_order.since(Timestamp(0));
        let state = self.lanes.entry(name.clone()).or_insert_with(|| LaneState {
            lane: lane(name, out_of_order),
            seen: Timestamp::MIN,
            offset: 0,
        });
        let records: Vec<_> = pending.iter().map(|(_, time, record)| (*time, record.as_str())).collect();
        let mut batch = batch(&state.lane, state.offset, Timestamp::MIN, &records);
        let seen_before = state.seen;
        state.seen = state.seen.max(batch.times.as_ref().unwrap().max);
        state.offset += batch.block.len() as u64;
        let received = batch.len();
        let mut output = Output::default();
        match &mut self.built {
            Built::Transform(transform) => {
                batch.decode(&transform.reads());
                batch.seen_before = seen_before;
                transform.apply(batch, &mut output);
            }
            Built::Operator { operator, prepare, reads } => {
                batch.decode(reads);
                let input = match prepare.as_ref().filter(|_| self.is_prepared) {
                    // Preparing comes before the order of blocks is restored, so it must do without `seen_before`.
                    Some(prepare) => {
                        let mut prepared = prepare.prepare(batch);
                        prepared.seen_before = seen_before;
                        Input::Prepared(prepared)
                    }
                    None => {
                        batch.seen_before = seen_before;
                        Input::Batch(batch)
                    }
                };
                operator.on_input(0, input, &mut output);
            }
        }
        self.tell(received, output);
    }

    fn watermark(&mut self, watermark: Timestamp) {
        let mut output = Output::default();
        if let Built::Operator { operator, .. } = &mut self.built {
            let deadline = operator.next_deadline();
            operator.on_watermark(watermark, &mut output);
            let is_quiet = output.batches.is_empty();
            assert!(is_quiet || deadline <= watermark, "it told something at {watermark}, but not before {deadline}");
        }
        self.tell(0, output);
        self.tell_drops();
    }

    fn barrier(&mut self) {
        let Built::Operator { operator, .. } = &mut self.built else { return };
        let pieces = &mut self.saved.pieces;
        operator.snapshot(false, &mut |group, piece| {
            pieces.insert(group, piece);
        });
        // The pieces that changed, put over the earlier ones, must come to what a full snapshot holds.
        let mut full = BTreeMap::new();
        operator.snapshot(true, &mut |group, piece| {
            full.insert(group, piece);
        });
        pieces.retain(|_, piece| !piece.is_empty());
        full.retain(|_, piece| !piece.is_empty());
        assert_eq!(&full, pieces, "a full snapshot differs from what the changes come to");
        self.saved.lanes = self.lanes.clone();
    }

    fn crash(&mut self) {
        self.built = build::<C>(&self.config);
        self.lanes = self.saved.lanes.clone();
        let Built::Operator { operator, .. } = &mut self.built else { return };
        for (group, piece) in &self.saved.pieces {
            operator.restore(*group, piece).unwrap();
        }
    }

    fn tell(&mut self, received: usize, output: Output) {
        let handed: usize = output.batches.iter().map(|(_, batch)| batch.len()).sum();
        let dropped: u64 = output.dropped.iter().map(|(_, count)| count).sum();
        assert_eq!(received as u64 + output.made, handed as u64 + dropped, "a record is not accounted for");
        for (port, batch) in output.batches {
            let text = self.stretch.entry(port).or_default();
            for row in batch.rows() {
                if port > 0 {
                    write!(text, "{}: ", self.ports[port - 1]).unwrap();
                }
                let mut record = Vec::new();
                json::write_value(&batch.value(row), &mut record);
                let record = String::from_utf8(record).unwrap();
                writeln!(text, "{} {record}", show_time(batch.time(row))).unwrap();
            }
        }
        for (reason, count) in output.dropped {
            *self.dropped.entry(reason).or_default() += count;
        }
        self.expression_errors += output.expression_errors;
    }

    fn tell_drops(&mut self) {
        self.text.extend(std::mem::take(&mut self.stretch).into_values());
        for (reason, count) in std::mem::take(&mut self.dropped) {
            writeln!(self.text, "({} {count})", reason.as_str()).unwrap();
        }
        match std::mem::take(&mut self.expression_errors) {
            0 => {}
            errors => writeln!(self.text, "(expression errors {errors})").unwrap(),
        }
    }
}

/// `minutes:seconds[.milliseconds]`
fn parse_time(text: &str) -> Timestamp {
    let (minutes, seconds) = text.split_once(':').unwrap();
    let (seconds, millis) = seconds.split_once('.').unwrap_or((seconds, "0"));
    let [minutes, seconds, millis] = [minutes, seconds, millis].map(|part| part.parse::<i64>().unwrap());
    Timestamp::from_millis((minutes * 60 + seconds) * 1000 + millis)
}

fn show_time(time: Timestamp) -> String {
    let millis = time.0.div_euclid(1_000_000);
    let (minutes, seconds) = (millis.div_euclid(60_000), millis.div_euclid(1000).rem_euclid(60));
    match millis.rem_euclid(1000) {
        0 => format!("{minutes:02}:{seconds:02}"),
        millis => format!("{minutes:02}:{seconds:02}.{millis:03}"),
    }
}

/// JSON records, read the slow and certain way.
#[derive(Debug)]
pub(crate) struct Json;

impl Codec for Json {
    fn name(&self) -> &'static str {
        "json"
    }

    fn decode(&self, record: &[u8], row: &mut Row<'_>) -> Result<(), DecodeError> {
        let value = self.value(record)?;
        for (slot, path) in row.projection().paths().to_vec().iter().enumerate() {
            match value.get(path.path()) {
                None => {}
                Some(Value::Null) => row.set(slot, Cell::Null),
                Some(Value::Boolean(value)) => row.set(slot, Cell::Bool(*value)),
                Some(Value::Integer(value)) => row.set(slot, Cell::Integer(*value)),
                Some(Value::Float(value)) => row.set(slot, Cell::Float(value.into_inner())),
                Some(Value::Timestamp(time)) => row.set(slot, Cell::Time(Timestamp::from_datetime(time))),
                Some(Value::Bytes(_) | Value::String(_)) => {
                    let Field::Text(text) = Field::of_value(value.get(path.path()).unwrap()) else { unreachable!() };
                    // Both ways that text can be given: as it stands in the record, and from elsewhere.
                    match record.windows(text.len() + 2).position(|piece| {
                        piece[0] == b'"' && piece[text.len() + 1] == b'"' && &piece[1..=text.len()] == text
                    }) {
                        Some(start) => row.text(slot, start + 1, text.len()),
                        None => row.owned(slot, text),
                    }
                }
                Some(value) => {
                    let mut text = Vec::new();
                    json::write_value(value, &mut text);
                    match record.windows(text.len()).position(|piece| piece == text) {
                        Some(start) => row.json(slot, start, text.len()),
                        None => panic!("write the record {value} without spaces and with sorted keys"),
                    }
                }
            }
        }
        Ok(())
    }

    fn value(&self, record: &[u8]) -> Result<Value, DecodeError> {
        json::parse_value(record)
    }
}
