//! The thread that reads: takes messages from the client, puts them together to blocks, and hands those over.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use bytes::Bytes;
use rdkafka::consumer::{CommitMode, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::{Offset, TopicPartitionList};
use tocsin_kafka::client::Listener;
use tocsin_kafka::place::{Inputs, Place};
use tocsin_kafka::stamp::{self, Content};
use tocsin_kafka::topics::{Partition, discover, pattern};
use tocsin_pipeline::event::{Lane, Origin};
use tocsin_pipeline::health::Trouble;
use tocsin_pipeline::operator::Reason;
use tocsin_pipeline::source::{Gone, SourceContext, SourceError, SourceEvent, TooLong};
use tocsin_pipeline::time::Timestamp;
use tokio::runtime::Handle;

use super::blocks::{self, Gathering, Piece};
use super::offsets::{self, Begin, Check};
use super::watch::{Note, Watch, Watched};
use super::{Config, Consumer};

/// How long the brokers may take to answer before the fault is told; they are asked again for ever.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two attempts.
const AGAIN: Duration = Duration::from_secs(1);
/// Where nothing comes, so often it is looked whether something else is to be done.
const LOOK: Duration = Duration::from_millis(50);
/// Where records wait for room downstream.
const LOOK_FOR_ROOM: Duration = Duration::from_millis(2);
/// A reader that is held up for longer stops fetching; what was fetched ahead is fetched again then.
const HELD_UP: Duration = Duration::from_secs(1);
/// So many messages are taken before it is looked whether something else is to be done.
const MESSAGES_BETWEEN: u32 = 1024;
/// Notes that wait for the reader.
const NOTES: usize = 1024;

/// A lane of a relay whose last message is so far behind what was read of its partition is said to have been read as far: what is
/// before need not be there for it any more.
const FAR: i64 = 1000;

/// What is known of a partition beside what it gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Something has come since the brokers were asked last.
    Busy,
    Quiet,
    /// The engine knows that there is nothing to read.
    Idle,
    Stalled,
    /// Read to its end, with `run --once`.
    Done,
}

/// A partition that is read.
struct Reading {
    topic: String,
    partition: i32,
    /// The offset of the next message.
    next: i64,
    /// Whatever is before this offset was handed over before the start.
    known: i64,
    /// One. Of the topic of a relay, one for each lane that writes to it.
    branches: Vec<Branch>,
    state: State,
}

/// A lane of the engine: all of a partition, or what one lane has written to it.
struct Branch {
    lane: Arc<Lane>,
    /// Who has written it; `None`: anybody.
    writer: Option<String>,
    /// The offset after its last message.
    next: i64,
    gathering: Gathering,
}

impl Reading {
    fn name(&self) -> String {
        Place::lane(&self.topic, self.partition)
    }

    fn is_handed_over(&self) -> bool {
        self.branches.iter().all(|branch| branch.gathering.is_empty())
    }
}

pub(super) struct Reader {
    config: Config,
    inputs: Inputs,
    consumer: Consumer,
    listener: Listener,
    context: SourceContext,
    handle: Handle,
    lanes: Vec<Reading>,
    /// Of a relay: the lanes that are known to write to it.
    writers: Vec<String>,
    /// The topic that is read, where one is read after the other.
    only: Option<String>,
    /// The partition of the last message: the next is likely to be of the same.
    last: usize,
    /// A block is handed over when it is so large.
    block_bytes: usize,
    /// How many bytes all lanes hold together.
    held: usize,
    watched: Watched,
}

/// Why reading ends.
enum Stop {
    /// The pipeline wants no more.
    Wanted,
    Failed(SourceError),
}

impl From<Gone> for Stop {
    fn from(_: Gone) -> Self {
        Self::Wanted
    }
}

impl Reader {
    pub fn new(config: Config, inputs: Inputs, consumer: Consumer, listener: Listener, context: SourceContext) -> Self {
        let prefetch = usize::try_from(config.prefetch.0).unwrap_or(usize::MAX);
        Self {
            block_bytes: (prefetch / 4).min(tocsin_pipeline::source::BLOCK_BYTES),
            config,
            inputs,
            consumer,
            listener,
            context,
            handle: Handle::current(),
            lanes: Vec::new(),
            writers: Vec::new(),
            only: None,
            last: 0,
            held: 0,
            watched: Arc::default(),
        }
    }

    /// Reads until the end, with `run --once`, or until it is stopped.
    pub fn run(mut self) -> Result<(), SourceError> {
        let read = if self.context.once { self.read_to_the_end() } else { self.read_on() };
        match read {
            Ok(()) | Err(Stop::Wanted) => Ok(()),
            Err(Stop::Failed(error)) => Err(error),
        }
    }

    fn read_on(&mut self) -> Result<(), Stop> {
        self.open_all()?;
        self.assign()?;
        let notes = self.watch();
        let consumer = Arc::clone(&self.consumer);
        let (mut taken, mut wait) = (0, Duration::ZERO);
        loop {
            match consumer.poll(wait) {
                Some(Ok(message)) => {
                    self.take(&message)?;
                    taken += 1;
                    wait = Duration::ZERO;
                    if taken < MESSAGES_BETWEEN {
                        continue;
                    }
                }
                Some(Err(error)) => self.fault(&error)?,
                None => wait = if self.hand_over()? { LOOK } else { LOOK_FOR_ROOM },
            }
            taken = 0;
            self.heed(&notes)?;
        }
    }

    /// Reads topic after topic: that a partition has come to its end is told without the name of its topic.
    fn read_to_the_end(&mut self) -> Result<(), Stop> {
        self.open_all()?;
        let topics: std::collections::BTreeSet<String> = self.lanes.iter().map(|lane| lane.topic.clone()).collect();
        for topic in topics {
            self.only = Some(topic.clone());
            self.assign()?;
            let mut open = self.lanes.iter().filter(|lane| lane.topic == topic).count();
            let consumer = Arc::clone(&self.consumer);
            while open > 0 {
                if self.context.stop.is_cancelled() {
                    return Err(Stop::Wanted);
                }
                match consumer.poll(LOOK) {
                    Some(Ok(message)) => self.take(&message)?,
                    Some(Err(KafkaError::PartitionEOF(partition))) => {
                        let is_it = |lane: &Reading| lane.topic == topic && lane.partition == partition;
                        let at = self.lanes.iter().position(is_it).filter(|at| self.lanes[*at].state != State::Done);
                        if let Some(at) = at {
                            self.close(at)?;
                            open -= 1;
                        }
                    }
                    Some(Err(error)) => self.fault(&error)?,
                    None => {}
                }
            }
        }
        Ok(())
    }

    /// Finds the partitions and where each begins, and tells of them.
    fn open_all(&mut self) -> Result<(), Stop> {
        if let Some(relay) = self.config.relay.clone() {
            // Each of them may still have something to say, so event time waits for all.
            let found = self.discover(&relay.topics, |_| true)?;
            self.writers = found.iter().map(|(topic, partition)| Place::lane(topic, *partition)).collect();
        }
        let (topics, ours) = (self.inputs.topics.clone(), self.inputs.partition);
        let found = self.discover(&topics, |(_, partition)| ours.is_none_or(|ours| ours == *partition))?;
        self.open(found)?;
        self.close_gone()
    }

    /// Lanes of the checkpoint that are not there any more give nothing, and nobody waits for them. Those of topics that are still
    /// to be read keep their offset: brokers may be back with them.
    fn close_gone(&mut self) -> Result<(), Stop> {
        let is_there =
            |name: &str| self.lanes.iter().flat_map(|lane| &lane.branches).any(|it| it.lane.partition == name);
        let gone = self.context.positions.iter().filter(|(name, _)| !is_there(name));
        let gone: Vec<_> = gone.filter_map(|(name, position)| Some((name.clone(), Place::read(position)?))).collect();
        for (name, place) in gone {
            let is_wanted = self.inputs.topics.iter().any(|topic| match pattern(topic) {
                Some(pattern) => pattern.is_ok_and(|pattern| pattern.is_match(&place.topic)),
                None => *topic == place.topic,
            });
            tracing::warn!(source = &*self.context.name, lane = name, "it is in the checkpoint and not there any more");
            let origin = Origin::Kafka { topic: place.topic.as_str().into(), partition: place.partition };
            let lane = self.context.lane(name, origin);
            self.emit(SourceEvent::Closed { lane, keep: is_wanted.then(|| place.write()) })?;
        }
        Ok(())
    }

    /// The partitions of topics. Asks until there are some.
    fn discover(&self, topics: &[String], is_wanted: impl Fn(&Partition) -> bool) -> Result<Vec<Partition>, Stop> {
        loop {
            let wrong = match discover(&self.consumer, topics, PATIENCE) {
                Ok((found, missing)) => {
                    let found: Vec<_> = found.into_iter().filter(&is_wanted).collect();
                    // Topics may be made later; but who reads to the end wants them now.
                    if !found.is_empty() && (missing.is_empty() || !self.context.once) {
                        return Ok(found);
                    }
                    match missing.is_empty() {
                        true => format!("no topic matches {}", topics.join(", ")),
                        false => format!("there is no topic {}", missing.join(", ")),
                    }
                }
                Err(error) => self.unreachable(&error),
            };
            self.wait(wrong)?;
        }
    }

    fn is_ours(&self, partition: &Partition) -> bool {
        self.inputs.partition.is_none_or(|ours| ours == partition.1)
    }

    /// Opens partitions that are not read yet.
    fn open(&mut self, found: Vec<Partition>) -> Result<(), Stop> {
        let is_first_start = !self.context.restored && self.lanes.is_empty();
        let mut opened = Vec::new();
        for (topic, partition) in found {
            if self.lanes.iter().any(|lane| lane.topic == topic && lane.partition == partition) {
                continue;
            }
            let mut lanes = Vec::new();
            for writer in self.writers(&topic, partition) {
                let lane = self.lane(&topic, partition, writer.as_deref());
                let known = match self.context.positions.get(&lane.partition) {
                    None => None,
                    Some(position) => Some(Place::read(position).ok_or_else(|| {
                        Stop::Failed(SourceError(format!("the checkpoint holds no position of kafka: {position}")))
                    })?),
                };
                lanes.push((writer, lane, known.map(|place| place.next)));
            }
            let known = || lanes.iter().filter_map(|(.., next)| *next);
            let next = match (known().min(), known().max()) {
                (Some(least), Some(greatest)) => {
                    if greatest > least {
                        self.checked(&topic, partition, greatest)?;
                    }
                    self.checked(&topic, partition, least)?
                }
                _ => self.first(&topic, partition, offsets::begin(&self.config.read_from, is_first_start))?,
            };
            let known = known().max().unwrap_or(next);
            let mut branches = Vec::new();
            for (writer, lane, before) in lanes {
                if before.is_none() {
                    let position = self.position(&topic, partition, next);
                    self.emit(SourceEvent::Opened { lane: Arc::clone(&lane), position })?;
                }
                // What is not there any more, or not yet, was told of.
                let next = before.filter(|_| writer.is_some()).unwrap_or(next).max(next);
                branches.push(Branch { lane, writer, next, gathering: Gathering::default() });
            }
            opened.push(Reading { topic, partition, next, known, branches, state: State::Busy });
        }
        self.lanes.append(&mut opened);
        self.lanes.sort_by(|one, other| (&one.topic, one.partition).cmp(&(&other.topic, other.partition)));
        self.last = 0;
        self.context.health.clear(Trouble::SourceStalled, &self.context.name);
        let watched = self.lanes.iter().map(|lane| (lane.topic.clone(), lane.partition)).collect();
        *self.watched.lock().expect("no holder of this lock panics") = watched;
        Ok(())
    }

    /// Who writes to a partition, each for a lane of its own: `None` where that makes no difference.
    fn writers(&self, topic: &str, partition: i32) -> Vec<Option<String>> {
        if self.config.relay.is_none() {
            return vec![None];
        }
        let restored = self.context.positions.keys().filter_map(|lane| Place::writer(lane, topic, partition));
        let mut writers: Vec<_> = restored.map(str::to_owned).chain(self.writers.iter().cloned()).collect();
        writers.sort();
        writers.dedup();
        writers.into_iter().map(Some).collect()
    }

    fn lane(&self, topic: &str, partition: i32, writer: Option<&str>) -> Arc<Lane> {
        let origin = Origin::Kafka { topic: topic.into(), partition };
        let name = match writer {
            Some(writer) => Place::branch(topic, partition, writer),
            None => Place::lane(topic, partition),
        };
        self.context.lane(name, origin)
    }

    fn first(&mut self, topic: &str, partition: i32, begin: Begin) -> Result<i64, Stop> {
        match begin {
            Begin::Beginning => Ok(self.bounds(topic, partition)?.0),
            Begin::End => Ok(self.bounds(topic, partition)?.1),
            Begin::Offset(offset) => {
                let (low, high) = self.bounds(topic, partition)?;
                Ok(offset.clamp(low, high))
            }
            Begin::Time(time) => loop {
                let mut wanted = TopicPartitionList::new();
                let millis = Offset::Offset(time.0.div_euclid(1_000_000));
                wanted.add_partition_offset(topic, partition, millis).map_err(failed)?;
                let found = self.consumer.offsets_for_times(wanted, PATIENCE);
                match found.map(|found| found.find_partition(topic, partition).map(|found| found.offset())) {
                    Ok(Some(Offset::Offset(offset))) => return Ok(offset),
                    Ok(_) => return Ok(self.bounds(topic, partition)?.1),
                    Err(error) => {
                        let why = self.unreachable(&error.to_string());
                        self.wait(why)?;
                    }
                }
            },
        }
    }

    /// The first offset that a partition holds, and the one after the last. Asks until it is answered.
    fn bounds(&mut self, topic: &str, partition: i32) -> Result<(i64, i64), Stop> {
        loop {
            match self.consumer.fetch_watermarks(topic, partition, PATIENCE) {
                Ok(bounds) => return Ok(bounds),
                Err(error) => {
                    let why = self.unreachable(&error.to_string());
                    self.wait(why)?;
                }
            }
        }
    }

    /// The offset to go on at, where the checkpoint says `next`.
    fn checked(&mut self, topic: &str, partition: i32, next: i64) -> Result<i64, Stop> {
        let (low, high) = self.bounds(topic, partition)?;
        match offsets::check(next, low, high, self.config.out_of_range) {
            Check::Fine => Ok(next),
            Check::Moved { to, missing } => {
                tracing::error!(
                    source = &*self.context.name,
                    topic,
                    partition,
                    next,
                    to,
                    missing,
                    "records are missing"
                );
                self.context.metrics.errors("records_missing", missing.max(1));
                Ok(to)
            }
            Check::Stop(why) => Err(Stop::Failed(SourceError(format!("{topic}/{partition}: {why}")))),
        }
    }

    fn unreachable(&self, error: &str) -> String {
        let why = self.listener.take_fault().unwrap_or_else(|| error.to_owned());
        format!("cannot reach the brokers {}: {why}", self.inputs.brokers.join(", "))
    }

    /// Tells what is wrong and waits before it is tried again.
    fn wait(&self, wrong: String) -> Result<(), Stop> {
        tracing::debug!(source = &*self.context.name, "{wrong}");
        if self.context.health.standing().iter().all(|it| it.component != self.context.name) {
            tracing::warn!(source = &*self.context.name, "{wrong}; it is tried again until it works");
        }
        self.context.health.raise(Trouble::SourceStalled, &self.context.name, wrong);
        let stopped = async { tokio::time::timeout(AGAIN, self.context.stop.cancelled()).await.is_ok() };
        if self.handle.block_on(stopped) || self.context.events.is_closed() { Err(Stop::Wanted) } else { Ok(()) }
    }

    fn position(&self, topic: &str, partition: i32, next: i64) -> serde_json::Value {
        let (brokers, group) = (self.inputs.brokers.clone(), self.inputs.group.clone());
        Place { brokers, group, topic: topic.to_owned(), partition, next }.write()
    }

    /// Has the client fetch what is to be read, each partition from where it has come to.
    fn assign(&self) -> Result<(), Stop> {
        self.consumer.assign(&self.list()?).map_err(failed)
    }

    fn list(&self) -> Result<TopicPartitionList, Stop> {
        let mut list = TopicPartitionList::with_capacity(self.lanes.len());
        let is_read =
            |lane: &&Reading| lane.state != State::Done && self.only.as_ref().is_none_or(|only| *only == lane.topic);
        for lane in self.lanes.iter().filter(is_read) {
            list.add_partition_offset(&lane.topic, lane.partition, Offset::Offset(lane.next)).map_err(failed)?;
        }
        Ok(list)
    }

    fn watch(&self) -> Receiver<Note> {
        let (notes, received) = sync_channel(NOTES);
        let watch = Watch {
            consumer: Arc::downgrade(&self.consumer),
            listener: self.listener.clone(),
            topics: self.inputs.topics.clone(),
            watched: Arc::clone(&self.watched),
            notes,
            stop: self.context.stop.clone(),
            handle: self.handle.clone(),
        };
        let started = std::thread::Builder::new().name("kafka-watch".to_owned()).spawn(move || watch.run());
        if let Err(error) = started {
            // Records are read all the same; only silence is not told from a fault.
            tracing::error!(%error, source = &*self.context.name, "cannot start the thread that watches partitions");
        }
        received
    }

    /// A message: a record of its lane, or, in the topic of a relay, what its writer tells of event time.
    fn take(&mut self, message: &BorrowedMessage<'_>) -> Result<(), Stop> {
        let (topic, partition, offset) = (message.topic(), message.partition(), message.offset());
        let is_it = |lane: &Reading| lane.partition == partition && lane.topic == topic;
        let at = match self.lanes.get(self.last).is_some_and(is_it) {
            true => self.last,
            false => self.lanes.iter().position(is_it).expect("only lanes are assigned"),
        };
        self.last = at;
        let lane = &mut self.lanes[at];
        // After a reassignment the client may hand over again what was fetched before.
        if offset < lane.next || lane.state == State::Done {
            return Ok(());
        }
        lane.state = State::Busy;
        if self.config.relay.is_some() {
            return self.take_relayed(at, message);
        }
        let time = blocks::time(message, || self.context.clock.now());
        self.gather((at, 0), message, time, None)
    }

    /// A message in the topic of a relay.
    fn take_relayed(&mut self, at: usize, message: &BorrowedMessage<'_>) -> Result<(), Stop> {
        let offset = message.offset();
        let stamp = match blocks::stamp(message) {
            Ok(stamp) => stamp,
            // It is of no lane, so that of another may tell that it was refused: any of those that are behind it does.
            Err(_) if offset < self.lanes[at].known => {
                self.lanes[at].next = offset + 1;
                return Ok(());
            }
            Err(why) => {
                let told =
                    format!("no `repartition` of this release has written it: its header `{}` {why}", stamp::HEADER);
                let value = message.payload().unwrap_or_default();
                let raw = Bytes::copy_from_slice(&value[..value.len().min(self.context.records.max_record_bytes)]);
                return self.refuse((at, 0), offset, Reason::Undecodable, &told, raw);
            }
        };
        let place = (at, self.branch(at, &stamp.lane, offset)?);
        if offset < self.lanes[at].branches[place.1].next {
            // It was handed over before the start, and others of the partition were not.
            self.lanes[at].next = offset + 1;
            return Ok(());
        }
        match stamp.content {
            Content::Record(time) => {
                // The engine takes off what may be out of order, as of what a lane has shown by itself.
                let before = match stamp.watermark {
                    Timestamp::MIN => Timestamp::MIN,
                    watermark => watermark.saturating_add(self.context.out_of_order),
                };
                self.gather(place, message, time, Some(before))
            }
            Content::Mark => {
                self.send(place)?;
                self.tell(place, offset + 1, stamp.watermark)
            }
        }
    }

    /// The lane of what `writer` has written to a partition. One that was not known is opened where its first message is.
    fn branch(&mut self, at: usize, writer: &str, offset: i64) -> Result<usize, Stop> {
        let reading = &self.lanes[at];
        let is_it = |branch: &Branch| branch.writer.as_deref() == Some(writer);
        if let Some(known) = reading.branches.iter().position(is_it) {
            return Ok(known);
        }
        let lane = self.lane(&reading.topic, reading.partition, Some(writer));
        let position = self.position(&reading.topic, reading.partition, offset);
        let branch = Branch {
            lane: Arc::clone(&lane),
            writer: Some(writer.to_owned()),
            next: offset,
            gathering: Gathering::default(),
        };
        self.lanes[at].branches.push(branch);
        self.emit(SourceEvent::Opened { lane, position })?;
        Ok(self.lanes[at].branches.len() - 1)
    }

    /// Tells of a lane that all before `next` was read of it, and that what follows comes behind `watermark`.
    fn tell(&mut self, (at, branch): (usize, usize), next: i64, watermark: Timestamp) -> Result<(), Stop> {
        let reading = &mut self.lanes[at];
        reading.next = next.max(reading.next);
        reading.branches[branch].next = next;
        let lane = Arc::clone(&reading.branches[branch].lane);
        let position = self.position_of((at, branch));
        self.emit(SourceEvent::Watermark { lane, at: watermark, position })
    }

    /// Adds a record to what is gathered of its lane; `before` is what that had shown, where it is told.
    fn gather(
        &mut self,
        (at, branch): (usize, usize),
        message: &BorrowedMessage<'_>,
        time: Timestamp,
        before: Option<Timestamp>,
    ) -> Result<(), Stop> {
        let (place, offset) = ((at, branch), message.offset());
        let max = self.context.records.max_record_bytes;
        let value = match message.payload() {
            None => return self.refuse(place, offset, Reason::Tombstone, "a record without a value", Bytes::new()),
            Some(value) if value.len() <= max => value,
            Some(value) if self.context.records.too_long == TooLong::Truncate => &value[..max],
            Some(value) => {
                let told = format!("{} bytes, and `max_record_bytes` is {max}", value.len());
                return self.refuse(place, offset, Reason::TooLong, &told, Bytes::copy_from_slice(&value[..max]));
            }
        };
        let mut headers = blocks::headers(message);
        if before.is_some() {
            headers.retain(|(name, _)| name != stamp::HEADER);
        }
        let reading = &mut self.lanes[at];
        reading.next = offset + 1;
        let branch = &mut reading.branches[branch];
        branch.next = offset + 1;
        let held = branch.gathering.len();
        branch.gathering.push(Piece { offset, value, key: message.key(), time, before, headers });
        self.held += branch.gathering.len() - held;
        if branch.gathering.len() >= self.block_bytes {
            return self.send(place);
        }
        // Many lanes may not hold more together than half of what may be read ahead.
        if self.held > 2 * self.block_bytes {
            let fullest = self.places().max_by_key(|(at, branch)| self.lanes[*at].branches[*branch].gathering.len());
            return self.send(fullest.expect("there is one"));
        }
        Ok(())
    }

    /// All lanes: the number of the partition, and that in it.
    fn places(&self) -> impl Iterator<Item = (usize, usize)> + use<'_> {
        let branches = self.lanes.iter().map(|reading| reading.branches.len());
        branches.enumerate().flat_map(|(at, branches)| (0..branches).map(move |branch| (at, branch)))
    }

    /// A record that cannot be handed on, in its turn.
    fn refuse(
        &mut self,
        (at, branch): (usize, usize),
        offset: i64,
        reason: Reason,
        message: &str,
        raw: Bytes,
    ) -> Result<(), Stop> {
        self.send((at, branch))?;
        let reading = &mut self.lanes[at];
        reading.next = offset + 1;
        reading.branches[branch].next = offset + 1;
        let lane = Arc::clone(&reading.branches[branch].lane);
        let position = self.position_of((at, branch));
        let (offset, message) = (offset.unsigned_abs(), message.to_owned());
        self.emit(SourceEvent::Rejected { lane, offset, reason, message, raw, position })
    }

    /// Where reading of a lane goes on.
    fn position_of(&self, (at, branch): (usize, usize)) -> serde_json::Value {
        let reading = &self.lanes[at];
        self.position(&reading.topic, reading.partition, reading.branches[branch].next)
    }

    /// What a lane has gathered, as a block.
    fn block(&mut self, (at, branch): (usize, usize)) -> Option<SourceEvent> {
        if self.lanes[at].branches[branch].gathering.is_empty() {
            return None;
        }
        let position = self.position_of((at, branch));
        let arrival = self.context.clock.now();
        let branch = &mut self.lanes[at].branches[branch];
        self.held -= branch.gathering.len();
        Some(SourceEvent::Block(Arc::clone(&branch.lane), branch.gathering.take(position, arrival)))
    }

    fn send(&mut self, place: (usize, usize)) -> Result<(), Stop> {
        match self.block(place) {
            Some(block) => self.emit(block),
            None => Ok(()),
        }
    }

    /// What all lanes of a partition have gathered.
    fn send_all(&mut self, at: usize) -> Result<(), Stop> {
        (0..self.lanes[at].branches.len()).try_for_each(|branch| self.send((at, branch)))
    }

    /// Hands over what was gathered, as far as there is room; whether that was all.
    fn hand_over(&mut self) -> Result<bool, Stop> {
        let places: Vec<_> = self.places().collect();
        for place in places {
            if self.lanes[place.0].branches[place.1].gathering.is_empty() {
                continue;
            }
            let events = self.context.events.clone();
            match events.try_reserve() {
                Ok(permit) => {
                    if let Some(block) = self.block(place) {
                        permit.send(block);
                    }
                }
                Err(tokio::sync::mpsc::error::TrySendError::Full(())) => return Ok(false),
                Err(tokio::sync::mpsc::error::TrySendError::Closed(())) => return Err(Stop::Wanted),
            }
        }
        Ok(true)
    }

    /// Hands an event over, waiting while downstream is busy. Meanwhile the client is kept alive, and fetches no more.
    fn emit(&mut self, event: SourceEvent) -> Result<(), Stop> {
        let events = self.context.events.clone();
        let permit = match events.try_reserve() {
            Ok(permit) => permit,
            Err(tokio::sync::mpsc::error::TrySendError::Closed(())) => return Err(Stop::Wanted),
            Err(tokio::sync::mpsc::error::TrySendError::Full(())) => {
                let (handle, stop) = (self.handle.clone(), self.context.stop.clone());
                let reserve = async |patience| {
                    tokio::select! {
                        permit = events.reserve() => permit.map(Some).map_err(|_| Stop::Wanted),
                        () = stop.cancelled() => Err(Stop::Wanted),
                        () = tokio::time::sleep(patience) => Ok(None),
                    }
                };
                match handle.block_on(reserve(HELD_UP))? {
                    Some(permit) => permit,
                    None => {
                        let list = self.list()?;
                        self.consumer.pause(&list).map_err(failed)?;
                        let consumer = Arc::clone(&self.consumer);
                        let permit = loop {
                            // A message that was on its way is not lost: it is fetched again, since its lane has not gone on.
                            drop(consumer.poll(Duration::ZERO));
                            if let Some(permit) = handle.block_on(reserve(LOOK))? {
                                break permit;
                            }
                        };
                        permit.send(event);
                        // From where the lanes have come to, whatever the client had handed out.
                        return self.assign();
                    }
                }
            }
        };
        permit.send(event);
        Ok(())
    }

    /// Something else than a message.
    fn fault(&mut self, error: &KafkaError) -> Result<(), Stop> {
        match error {
            KafkaError::MessageConsumption(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange) => {
                // Retention has overtaken us, or the topic was made anew; which partition it is is not told.
                for at in 0..self.lanes.len() {
                    let (topic, partition, next) =
                        (self.lanes[at].topic.clone(), self.lanes[at].partition, self.lanes[at].next);
                    let to = self.checked(&topic, partition, next)?;
                    if to != next {
                        self.send_all(at)?;
                        self.lanes[at].next = to;
                        self.lanes[at].branches.iter_mut().for_each(|branch| branch.next = to);
                    }
                }
                self.assign()
            }
            KafkaError::MessageConsumptionFatal(code) => {
                Err(Stop::Failed(SourceError(format!("the client cannot go on: {code}"))))
            }
            error => {
                // The client tries again by itself.
                tracing::debug!(source = &*self.context.name, "{error}");
                self.context.metrics.error("broker");
                Ok(())
            }
        }
    }

    /// The partition has been read to its end.
    fn close(&mut self, at: usize) -> Result<(), Stop> {
        self.send_all(at)?;
        self.lanes[at].state = State::Done;
        for branch in 0..self.lanes[at].branches.len() {
            let keep = Some(self.position_of((at, branch)));
            let lane = Arc::clone(&self.lanes[at].branches[branch].lane);
            self.emit(SourceEvent::Closed { lane, keep })?;
        }
        Ok(())
    }

    /// Of a relay: lanes whose writers have nothing to say are said to be read as far as the others. `is_again`: whatever they say,
    /// as they can be read again.
    fn follow(&mut self, at: usize, is_again: bool) -> Result<(), Stop> {
        for branch in 0..self.lanes[at].branches.len() {
            let reading = &self.lanes[at];
            if is_again || reading.next - reading.branches[branch].next >= FAR {
                let next = reading.next;
                self.send((at, branch))?;
                self.tell((at, branch), next, Timestamp::MIN)?;
            }
        }
        Ok(())
    }

    /// Looks whether something else is to be done.
    fn heed(&mut self, notes: &Receiver<Note>) -> Result<(), Stop> {
        if self.context.stop.is_cancelled() {
            return Err(Stop::Wanted);
        }
        self.tell_group();
        while let Ok(note) = notes.try_recv() {
            self.note(note)?;
        }
        Ok(())
    }

    fn note(&mut self, note: Note) -> Result<(), Stop> {
        let find = |lanes: &[Reading], wanted: &Partition| {
            lanes.iter().position(|lane| lane.topic == wanted.0 && lane.partition == wanted.1)
        };
        match note {
            Note::Found(found) => {
                let found: Vec<_> = found.into_iter().filter(|it| self.is_ours(it)).collect();
                let count = self.lanes.len();
                self.open(found)?;
                if self.lanes.len() > count { self.assign() } else { Ok(()) }
            }
            Note::Reached { partition, high } => {
                let Some(at) = find(&self.lanes, &partition) else { return Ok(()) };
                let lane = &mut self.lanes[at];
                self.context.metrics.lag_events(&lane.name(), u64::try_from(high - lane.next).unwrap_or(0));
                let before = lane.state;
                match lane.state {
                    State::Busy => lane.state = State::Quiet,
                    State::Quiet | State::Stalled if lane.is_handed_over() => {
                        lane.state = State::Idle;
                        // Of a relay, that nothing comes says nothing: its writers have clocks, and tell.
                        if self.config.relay.is_none() {
                            let lane = Arc::clone(&lane.branches[0].lane);
                            self.emit(SourceEvent::Idle(lane))?;
                        }
                    }
                    State::Quiet | State::Stalled | State::Idle | State::Done => {}
                }
                match self.config.relay {
                    Some(_) => self.follow(at, before == State::Stalled),
                    None => Ok(()),
                }
            }
            Note::Unreachable { partition, why } => {
                let Some(at) = find(&self.lanes, &partition) else { return Ok(()) };
                let lane = &mut self.lanes[at];
                // What comes proves more than what does not answer.
                if matches!(lane.state, State::Quiet | State::Idle) {
                    lane.state = State::Stalled;
                    let lanes: Vec<_> = lane.branches.iter().map(|branch| Arc::clone(&branch.lane)).collect();
                    let why = format!("{}: {}", self.lanes[at].name(), self.unreachable(&why));
                    tracing::warn!(source = &*self.context.name, "{why}");
                    self.context.health.raise(Trouble::SourceStalled, &self.context.name, why);
                    return lanes.into_iter().try_for_each(|lane| self.emit(SourceEvent::Stalled(lane)));
                }
                if lane.state == State::Busy {
                    lane.state = State::Quiet;
                }
                Ok(())
            }
        }
    }

    /// Tells the brokers how far the last complete epoch has come, for dashboards. Nothing depends on it.
    fn tell_group(&mut self) {
        if !self.context.completed.has_changed().unwrap_or(false) {
            return;
        }
        let completed = Arc::clone(&self.context.completed.borrow_and_update());
        let mut list = TopicPartitionList::new();
        for ((_, topic, partition), next) in Place::least(completed.values().filter_map(Place::read)) {
            let _ = list.add_partition_offset(&topic, partition, Offset::Offset(next));
        }
        if list.count() > 0
            && let Err(error) = self.consumer.commit(&list, CommitMode::Async)
        {
            tracing::debug!(source = &*self.context.name, "the group's offsets cannot be told: {error}");
        }
    }
}

fn failed(error: KafkaError) -> Stop {
    Stop::Failed(SourceError(format!("the client cannot go on: {error}")))
}
