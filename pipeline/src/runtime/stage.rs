//! The tasks between sources and sinks: stages of operators, the gates of sinks that several tasks feed, the relays of dead
//! letters.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::deadlines::next_deadline;
use super::edge::{Arrived, Inbox, Outlets, Signal, SinkDoor};
use super::{Accounts, Done, Failure, Report, StateReport};
use crate::chain::{Content, Passage};
use crate::graph::{Link, StageTask, Stateless, Work};
use crate::inquiry::Inquiry;
use crate::ledger::{Account, Kind};
use crate::metrics::Metrics;
use crate::sink::{Letters, Port, Queued, SinkInput};
use crate::source::Gone;
use crate::tally::Book;
use crate::time::Timestamp;

/// Brings a sink's dead letters, and the records that it hands on, to those who take them.
pub(super) struct Relay {
    pub sink: Arc<str>,
    pub letters: mpsc::Receiver<Letters>,
    pub chain: Stateless,
    pub rejected: Vec<Link>,
    pub failed: Vec<Link>,
    pub outlets: Outlets,
    pub signals: mpsc::Receiver<Signal>,
    pub reports: mpsc::Sender<Report>,
    pub book: Book,
    /// How many dead letters have been handed on, and how many records.
    pub handed: [u64; 2],
}

impl Relay {
    pub async fn run(mut self) -> Result<Done, Failure> {
        let mut barriers = 0;
        let mut next: Option<Letters> = None;
        loop {
            // What the sink wrote after it answered a barrier waits for that barrier.
            if let Some(letters) = next.take_if(|letters| letters.barriers <= barriers) {
                self.pass(letters).await?;
            }
            tokio::select! {
                // Letters first: those written before the sink answered a barrier belong to its epoch.
                biased;
                Some(letters) = self.letters.recv(), if next.is_none() => next = Some(letters),
                signal = self.signals.recv() => match signal {
                    Some(Signal::Barrier(ticket)) => {
                        barriers += 1;
                        let _ = self.reports.send(Report::Relay { accounts: self.accounts() }).await;
                        self.outlets.signal(Signal::Barrier(ticket)).await?;
                    }
                    Some(Signal::Watermark(watermark)) => self.outlets.signal(Signal::Watermark(watermark)).await?,
                    Some(Signal::End) => {
                        self.outlets.signal(Signal::End).await?;
                        return Ok(Done::Counted(self.accounts()));
                    }
                    None => return Ok(Done::Counted(self.accounts())),
                },
            }
        }
    }

    async fn pass(&mut self, Letters { port, batch, .. }: Letters) -> Result<(), Failure> {
        let (entry, handed) = match port {
            Port::Rejected => (&self.rejected, &mut self.handed[0]),
            Port::Failed => (&self.failed, &mut self.handed[1]),
        };
        *handed += batch.len() as u64;
        let mut passage = Passage::of(&self.chain);
        self.chain.run(entry, batch, &mut passage);
        passage.settle(&mut self.book);
        for sent in passage.sent {
            self.outlets.send(sent).await?;
        }
        Ok(())
    }

    fn accounts(&self) -> Accounts {
        let ports = ["rejected".to_owned(), "failed".to_owned()].into_iter().zip(self.handed);
        let handed = ports.filter(|(_, records)| *records > 0).collect();
        let own = Account { kind: Kind::Sink, handed, ..Account::default() };
        accounts(&self.book, &self.outlets).into_iter().chain([(Arc::clone(&self.sink), own)]).collect()
    }
}

/// What a task has counted, and what its edges have.
pub(super) fn accounts(book: &Book, outlets: &Outlets) -> Accounts {
    book.accounts().into_iter().chain(outlets.accounts()).collect()
}

/// The task of a stage: hands what arrives to its operators, in order, and tells what they wait for.
pub(super) async fn run_stage(
    mut stage: StageTask,
    mut inbox: Inbox,
    mut inquiries: mpsc::Receiver<Inquiry>,
    outlets: Outlets,
    reports: mpsc::Sender<Report>,
    metrics: Metrics,
    tell: impl Fn(Timestamp) + Send,
) -> Result<Done, Failure> {
    tell(next_deadline(&stage));
    let gauge = metrics.watermark.with_label_values(&[stage.name.as_str()]);
    let mut book = Book::of_chain(&stage.chain);
    let mut passage = Passage::of(&stage.chain);
    loop {
        let arrived = tokio::select! {
            biased;
            Some(inquiry) = inquiries.recv() => {
                answer(&stage, inquiry);
                continue;
            }
            arrived = inbox.next() => arrived,
        };
        let Some(arrived) = arrived else { break };
        match arrived {
            Arrived::Data { entry, content, permit } => {
                let (node, number) = stage.entries[entry];
                stage.chain.deliver(node, number, content, &mut passage)?;
                passage.settle(&mut book);
                drop(permit);
            }
            Arrived::Watermark(watermark) => {
                if watermark != Timestamp::MAX {
                    gauge.set(watermark.0 as f64 / 1e9);
                }
                stage.chain.on_watermark(watermark, &mut passage)?;
                passage.settle(&mut book);
                for sent in passage.sent.drain(..) {
                    outlets.send(sent).await?;
                }
                outlets.signal(Signal::Watermark(watermark)).await?;
            }
            Arrived::Barrier(ticket) => {
                let operators = snapshot(&mut stage, ticket.full, &metrics);
                let accounts = accounts(&book, &outlets);
                let _ = reports.send(Report::Stage { operators, accounts }).await;
                outlets.signal(Signal::Barrier(ticket)).await?;
            }
            Arrived::End => {
                outlets.signal(Signal::End).await?;
                return Ok(Done::Counted(accounts(&book, &outlets)));
            }
        }
        for sent in passage.sent.drain(..) {
            outlets.send(sent).await?;
        }
        tell(next_deadline(&stage));
    }
    Ok(Done::Task)
}

/// Lets the operator that is asked say how it stands. Whoever asked may have gone.
fn answer(stage: &StageTask, inquiry: Inquiry) {
    let node = stage.chain.nodes.iter().find(|node| node.name == inquiry.operator);
    if let Some(Work::Operator(operator)) = node.map(|node| &node.work) {
        let _ = inquiry.answer.send(operator.view(&inquiry.question));
    }
}

fn snapshot(stage: &mut StageTask, full: bool, metrics: &Metrics) -> Vec<StateReport> {
    let mut operators = Vec::new();
    for node in &mut stage.chain.nodes {
        let Work::Operator(operator) = &mut node.work else { continue };
        let mut pieces = BTreeMap::new();
        operator.snapshot(full, &mut |group, piece| {
            pieces.insert(group, Bytes::from(piece));
        });
        metrics.state_bytes.with_label_values(&[&*node.name]).set(operator.state_bytes() as i64);
        for (state, count) in operator.alerts() {
            metrics.alerts.with_label_values(&[&*node.name, state]).set(count as i64);
        }
        operators.push(StateReport { name: Arc::clone(&node.name), version: operator.state_version(), pieces });
    }
    operators
}

/// Brings together the edges of a sink that several tasks feed.
pub(super) async fn run_gate(mut inbox: Inbox, queue: mpsc::Sender<Queued>, door: SinkDoor) -> Result<Done, Failure> {
    while let Some(arrived) = inbox.next().await {
        let queued = match arrived {
            Arrived::Data { content: Content::Batch(batch), permit, .. } => {
                Queued { input: SinkInput::Batch(batch), _permit: permit, place: None }
            }
            Arrived::Data { .. } => unreachable!("sinks have no prepared input"),
            Arrived::Watermark(watermark) => match door.input(Signal::Watermark(watermark)) {
                Some(input) => Queued::free(input),
                None => continue,
            },
            Arrived::Barrier(ticket) => match door.input(Signal::Barrier(ticket)) {
                Some(input) => Queued::free(input),
                None => continue,
            },
            Arrived::End => {
                queue.send(Queued::free(SinkInput::End)).await.map_err(|_| Gone)?;
                return Ok(Done::Task);
            }
        };
        queue.send(queued).await.map_err(|_| Gone)?;
    }
    Ok(Done::Task)
}
