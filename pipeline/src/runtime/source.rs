//! The task behind a source: runs its blocks through the fused operators on several threads, restores their order, and
//! stamps barriers between them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::deadlines::{Deadlines, wait};
use super::edge::{Outlets, Signal, Ticket};
use super::journal::{Events, Journaled};
use super::offload::offload;
use super::stage::accounts;
use super::{Failure, Report};
use crate::checkpoint::LanePosition;
use crate::event::{Lane, Origin};
use crate::fault::{self, Defect};
use crate::graph::Intake;
use crate::health::{Health, Trouble};
use crate::intake::Taken;
use crate::source::{Block, Gone, SourceEvent};
use crate::tally::Book;
use crate::time::{Clock, Timestamp};
use crate::watermark::SourceWatermark;

/// Blocks up to this size are run where they arrive: handing them to another thread would cost more than it saves.
const INLINE_BYTES: usize = 32 << 10;

/// Something whose turn has not come yet.
enum Item {
    Running {
        work: JoinHandle<Taken>,
        after: After,
    },
    Ready {
        taken: Box<Taken>,
        after: After,
    },
    Opened {
        lane: Arc<Lane>,
        position: serde_json::Value,
    },
    Watermark {
        lane: Arc<Lane>,
        at: Timestamp,
        position: serde_json::Value,
    },
    Idle(Arc<Lane>),
    Stalled(Arc<Lane>),
    Closed {
        lane: Arc<Lane>,
        keep: Option<serde_json::Value>,
        journal: Option<u64>,
    },
    Barrier(Arc<Ticket>),
    /// The source has come to its own end.
    Ended,
}

/// What is true once a block has been handed on.
struct After {
    position: serde_json::Value,
    acknowledgement: Option<oneshot::Sender<()>>,
    arrival: Timestamp,
    /// Where the source's journal goes on after it.
    journal: Option<u64>,
}

pub(super) struct SourceDriver {
    pub name: Arc<str>,
    pub intake: Arc<Intake>,
    pub book: Book,
    pub outlets: Outlets,
    pub events: Events,
    pub barriers: mpsc::Receiver<Arc<Ticket>>,
    pub reports: mpsc::Sender<Report>,
    pub clock: Arc<dyn Clock>,
    pub watermark: SourceWatermark,
    pub positions: BTreeMap<String, LanePosition>,
    /// Where its journal goes on, if it has one.
    pub journal: Option<u64>,
    /// How many blocks may be on other threads at once.
    pub parallel: usize,
    /// Where a checkpoint is asked for soon, because clients wait for it.
    pub hurry: Arc<tokio::sync::Notify>,
    /// What the stages wait for.
    pub deadlines: Arc<Deadlines>,
    pub health: Health,
    /// The lanes that cannot be read.
    pub stalled: BTreeSet<String>,
    pub activity: Arc<std::sync::atomic::AtomicU64>,
    /// Whether the source stopped because it was told to: then windows stay open.
    pub is_stopping: Box<dyn Fn() -> bool + Send>,
}

impl SourceDriver {
    pub async fn run(mut self) -> Result<(), Failure> {
        let mut queue: VecDeque<Item> = VecDeque::new();
        let mut acknowledgements = Vec::new();
        let mut is_open = true;
        let mut ticks = tokio::time::interval(self.tick());
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut deadlines = self.deadlines.changed();
        loop {
            while !matches!(queue.front(), None | Some(Item::Running { .. })) {
                let item = queue.pop_front().expect("it has a front");
                self.finish(item, &mut acknowledgements).await?;
            }
            let has_room = queue.len() < self.parallel;
            let waits = is_open && self.intake.needs_time;
            let due = if waits { self.deadlines.soonest(&self.watermark, self.clock.now()) } else { None };
            tokio::select! {
                biased;
                taken = front(&mut queue) => {
                    let Some(Item::Running { after, .. }) = queue.pop_front() else { unreachable!("front waits for it") };
                    let taken = taken.map_err(|error| Failure::bug(&self.name, &error))?;
                    queue.push_front(Item::Ready { taken: Box::new(taken), after });
                }
                event = self.events.recv(), if is_open && has_room => match event {
                    Some(event) => self.accept(event, &mut queue),
                    None => {
                        is_open = false;
                        queue.push_back(Item::Ended);
                    }
                },
                ticket = self.barriers.recv() => match ticket {
                    Some(ticket) => queue.push_back(Item::Barrier(ticket)),
                    // The coordinator has what it wants: nothing follows.
                    None => {
                        let _ = self.outlets.signal(Signal::End).await;
                        return Ok(());
                    }
                },
                _ = ticks.tick(), if is_open => self.advance().await?,
                () = wait(due) => self.advance().await?,
                Ok(()) = deadlines.changed(), if waits => {}
            }
        }
    }

    fn tick(&self) -> Duration {
        (self.intake.options.idle_timeout / 4).clamp(Duration::from_millis(50), Duration::from_secs(1))
    }

    fn accept(&mut self, journaled: Journaled, queue: &mut VecDeque<Item>) {
        let Journaled { event, arrival, next: journal } = journaled;
        queue.push_back(match event {
            SourceEvent::Block(lane, block) => {
                if fault::is_planted(Defect::PositionsAhead) {
                    let seen = self.watermark.seen(&lane.partition).0;
                    let position = LanePosition { position: block.position.clone(), seen };
                    self.positions.insert(lane.partition.clone(), position);
                }
                self.start(lane, block, journal, queue.is_empty())
            }
            SourceEvent::Rejected { lane, offset, reason, message, raw, position } => {
                let arrival = arrival.unwrap_or_else(|| self.clock.now());
                let taken = self.intake.refuse(lane, offset, reason, &message, raw, arrival);
                Item::Ready {
                    taken: Box::new(taken),
                    after: After { position, acknowledgement: None, arrival, journal },
                }
            }
            SourceEvent::Opened { lane, position } => Item::Opened { lane, position },
            SourceEvent::Watermark { lane, at, position } => Item::Watermark { lane, at, position },
            SourceEvent::Idle(lane) => Item::Idle(lane),
            SourceEvent::Stalled(lane) => Item::Stalled(lane),
            SourceEvent::Closed { lane, keep } => Item::Closed { lane, keep, journal },
        });
    }

    fn start(&self, lane: Arc<Lane>, mut block: Block, journal: Option<u64>, is_next: bool) -> Item {
        let after = After {
            position: std::mem::take(&mut block.position),
            acknowledgement: block.acknowledgement.take(),
            arrival: block.arrival,
            journal,
        };
        if is_next && block.bytes.len() <= INLINE_BYTES {
            return Item::Ready { taken: Box::new(self.intake.take(lane, block)), after };
        }
        let intake = Arc::clone(&self.intake);
        Item::Running { work: offload(move || intake.take(lane, block)), after }
    }

    /// Does what an item asks for, now that all before it is done.
    async fn finish(&mut self, item: Item, acknowledgements: &mut Vec<oneshot::Sender<()>>) -> Result<(), Gone> {
        match item {
            Item::Running { .. } => unreachable!("it is waited for first"),
            Item::Ready { taken, after } => {
                self.activity.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                taken.settle(&mut self.book);
                let Taken { lane, passage, seen_max, is_told, .. } = *taken;
                self.is_read(&lane.partition);
                // Each record was told what it comes behind; what the lane was told is only what comes behind all of it.
                let seen_before = match is_told {
                    true => Timestamp::MIN,
                    false => self.watermark.observe(&lane.partition, seen_max),
                };
                for mut sent in passage.sent {
                    sent.content.set_seen_before(seen_before);
                    self.outlets.send(sent).await?;
                }
                let seen = self.watermark.seen(&lane.partition).0;
                let position = LanePosition { position: after.position, seen };
                if !fault::is_planted(Defect::PositionsAhead) {
                    self.positions.insert(lane.partition.clone(), position);
                }
                self.journal = after.journal.or(self.journal);
                if let Some(acknowledgement) = after.acknowledgement {
                    acknowledgements.push(acknowledgement);
                    self.hurry.notify_one();
                }
                if seen_max > Timestamp::MIN {
                    let now = self.clock.now();
                    self.intake.metrics.lag(now.since(seen_max).as_secs_f64());
                }
                self.advance_at(after.arrival).await?;
            }
            Item::Opened { lane, position } => {
                self.activity.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                self.watermark.open(&lane.partition);
                let seen = self.watermark.seen(&lane.partition).0;
                self.positions.entry(lane.partition.clone()).or_insert(LanePosition { position, seen });
            }
            Item::Watermark { lane, at, position } => {
                self.activity.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                self.is_read(&lane.partition);
                self.watermark.told(&lane.partition, at);
                let seen = self.watermark.seen(&lane.partition).0;
                self.positions.insert(lane.partition.clone(), LanePosition { position, seen });
                self.advance().await?;
            }
            Item::Idle(lane) => {
                self.is_read(&lane.partition);
                self.watermark.idle(&lane.partition, self.clock.now());
            }
            Item::Stalled(lane) => {
                self.stalled.insert(lane.partition.clone());
                let lane_name = match &lane.origin {
                    Origin::File(path) => path,
                    _ => &*lane.partition,
                };
                self.health.raise(Trouble::SourceStalled, &self.name, format!("{lane_name} cannot be read"));
                self.watermark.stalled(&lane.partition);
            }
            Item::Closed { lane, keep, journal } => {
                self.journal = journal.or(self.journal);
                self.activity.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                self.is_read(&lane.partition);
                let seen = self.watermark.seen(&lane.partition).0;
                match keep {
                    Some(position) => {
                        self.positions.insert(lane.partition.clone(), LanePosition { position, seen });
                    }
                    None => {
                        self.positions.remove(&lane.partition);
                    }
                }
                self.watermark.close(&lane.partition);
            }
            Item::Barrier(ticket) => {
                ticket.acknowledgements.lock().expect("no holder of this lock panics").append(acknowledgements);
                let positions = self.positions.clone();
                let (name, journal) = (Arc::clone(&self.name), self.journal);
                let accounts = accounts(&self.book, &self.outlets);
                let _ = self.reports.send(Report::Source { name, positions, journal, accounts }).await;
                self.outlets.signal(Signal::Barrier(ticket)).await?;
            }
            Item::Ended => {
                self.activity.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                if !(self.is_stopping)() {
                    self.outlets.signal(Signal::Watermark(Timestamp::MAX)).await?;
                }
                let _ = self.reports.send(Report::SourceEnded).await;
            }
        }
        Ok(())
    }

    /// A lane can be read again, or will not be any more.
    fn is_read(&mut self, partition: &str) {
        if self.stalled.remove(partition) && self.stalled.is_empty() {
            self.health.clear(Trouble::SourceStalled, &self.name);
        }
    }

    async fn advance(&mut self) -> Result<(), Gone> {
        self.advance_at(self.clock.now()).await
    }

    async fn advance_at(&mut self, now: Timestamp) -> Result<(), Gone> {
        if self.intake.needs_time
            && let Some(watermark) = self.watermark.advance(now)
        {
            self.activity.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            self.outlets.signal(Signal::Watermark(watermark)).await?;
        }
        Ok(())
    }
}

/// Waits for the block at the front of the queue, for ever if there is none on another thread.
async fn front(queue: &mut VecDeque<Item>) -> Result<Taken, tokio::task::JoinError> {
    match queue.front_mut() {
        Some(Item::Running { work, .. }) => work.await,
        _ => std::future::pending().await,
    }
}
