use std::collections::BTreeSet;
use std::io;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::*;
use crate::metrics::Metrics;
use crate::source::{Block, Framing};
use crate::store::simulated::{Failure, Random, SimulatedDisk};
use crate::testing::{TextCodec, text_lane};
use crate::time::SystemClock;

const FOLDER: &str = "data/sources/in/journal";

/// A journal that runs, with both of its ends.
struct Running {
    input: mpsc::Sender<SourceEvent>,
    output: mpsc::Receiver<Journaled>,
    floor: watch::Sender<u64>,
    metrics: ComponentMetrics,
    task: JoinHandle<Result<(), Failure_>>,
    positions: BTreeMap<String, Option<Json>>,
}

type Failure_ = super::super::Failure;

fn start(disk: &SimulatedDisk, from: Option<u64>, max_bytes: u64) -> Result<Running, String> {
    let (source, codec): (Arc<str>, Arc<dyn Codec>) = ("in".into(), Arc::new(TextCodec));
    let opened = open(Arc::new(disk.clone()), Path::new(FOLDER), max_bytes, from, &source, &codec)?;
    let metrics = Metrics::new();
    let component = metrics.component("in", "source");
    let (input, events) = mpsc::channel(64);
    let (sender, output) = mpsc::channel(1024);
    let (floor, floors) = watch::channel(0);
    let journal = Journal {
        source,
        codec,
        log: Some(opened.log),
        from: opened.from,
        is_kept: true,
        max_bytes,
        input: events,
        output: sender,
        floor: floors,
        activity: Arc::default(),
        clock: Arc::new(SystemClock::default()),
        metrics: component.clone(),
        gauge: metrics.journal_bytes.with_label_values(&["in"]),
        health: Default::default(),
    };
    let task = tokio::spawn(journal.run());
    Ok(Running { input, output, floor, metrics: component, task, positions: opened.positions })
}

fn block(number: u64, arrival: i64, acknowledgement: Option<oneshot::Sender<()>>) -> SourceEvent {
    let text = format!("record {number}\n");
    SourceEvent::Block(
        text_lane("in"),
        Block {
            bytes: Bytes::from(text),
            framing: Framing::Lines,
            base: number * 100,
            position: Json::from(number + 1),
            arrival: Timestamp(arrival),
            acknowledgement,
            notes: None,
        },
    )
}

impl Running {
    /// Sends a record and waits until its client is told; `false`: it is refused.
    async fn post(&self, number: u64) -> bool {
        let (acknowledgement, acknowledged) = oneshot::channel();
        self.input.send(block(number, number as i64, Some(acknowledgement))).await.unwrap();
        acknowledged.await.is_ok()
    }

    /// The numbers of the records that are handed on next.
    async fn next(&mut self) -> Option<(u64, Journaled)> {
        let journaled = self.output.recv().await?;
        let SourceEvent::Block(_, block) = &journaled.event else { panic!("{:?}", journaled.event) };
        let text = std::str::from_utf8(&block.bytes).unwrap();
        Some((text.trim().trim_start_matches("record ").parse().unwrap(), journaled))
    }

    async fn numbers(&mut self, count: usize) -> Vec<u64> {
        let mut numbers = Vec::new();
        while numbers.len() < count {
            numbers.push(self.next().await.expect("the journal runs").0);
        }
        numbers
    }

    async fn end(self) -> Vec<u64> {
        let Self { input, mut output, task, .. } = self;
        drop(input);
        let mut numbers = Vec::new();
        while let Some(journaled) = output.recv().await {
            if let SourceEvent::Block(_, block) = journaled.event {
                numbers.push(block.base / 100);
            }
        }
        task.await.unwrap().unwrap();
        numbers
    }
}

#[tokio::test]
async fn what_is_behind_the_checkpoint_comes_back_as_it_came() {
    let disk = SimulatedDisk::default();
    let mut running = start(&disk, None, 1 << 20).unwrap();
    for number in 0..5 {
        assert!(running.post(number).await);
    }
    let mut next = Vec::new();
    for _ in 0..5 {
        next.push(running.next().await.unwrap().1.next.unwrap());
    }
    drop(running);
    // A power cut that takes everything that may be taken.
    let disk = disk.after_crash(&[], None);
    let mut running = start(&disk, Some(next[1]), 1 << 20).unwrap();
    assert_eq!(running.positions, BTreeMap::from([(String::new(), Some(Json::from(5)))]));
    assert!(running.post(9).await);
    for number in [2, 3, 4, 9] {
        let (found, journaled) = running.next().await.unwrap();
        let SourceEvent::Block(_, block) = journaled.event else { panic!("it was a block") };
        let facts = (found, block.arrival.0, block.base, block.position);
        assert_eq!(facts, (number, number as i64, number * 100, Json::from(number + 1)));
    }
    assert!(running.end().await.is_empty());
}

/// At every operation of the disk the power goes: what a client was told is durable must be read back.
async fn acknowledged_survives_every_cut(seed: u64) -> Result<(), String> {
    let mut random = Random(seed);
    for operation in 0.. {
        let disk = SimulatedDisk::default();
        let Ok(running) = start(&disk, None, 1 << 20) else { unreachable!("the disk works") };
        let cut = disk.operations() + operation;
        disk.crash_at(cut);
        let mut acknowledged = BTreeSet::new();
        for number in 0..6 {
            if running.post(number).await {
                acknowledged.insert(number);
            }
        }
        drop(running);
        if !disk.is_dead() {
            return Ok(());
        }
        let mut survived: Vec<usize> = (0..disk.pending()).filter(|_| random.one_in(2)).collect();
        random.shuffle(&mut survived);
        let after = disk.after_crash(&survived, Some(&mut random));
        let replayed = start(&after, None, 1 << 20)?.end().await;
        let replayed: BTreeSet<u64> = replayed.into_iter().collect();
        if !replayed.is_superset(&acknowledged) {
            return Err(format!("cut at operation {operation}: {acknowledged:?} were told, {replayed:?} came back"));
        }
    }
    Ok(())
}

#[tokio::test]
async fn what_was_acknowledged_survives_a_power_cut_at_any_operation() {
    for seed in 0..10 {
        println!("seed {seed}");
        acknowledged_survives_every_cut(seed).await.unwrap();
    }
}

#[cfg(feature = "faults")]
#[tokio::test]
async fn an_acknowledgement_before_the_fsync_is_noticed() {
    fault::plant(Some(Defect::EarlyAcknowledgement));
    let outcome = acknowledged_survives_every_cut(1).await;
    fault::plant(None);
    assert!(outcome.is_err());
}

#[tokio::test]
async fn while_the_disk_is_broken_clients_are_refused_and_others_wait() {
    let disk = SimulatedDisk::default();
    let mut running = start(&disk, None, 1 << 20).unwrap();
    assert!(running.post(0).await);
    let from = disk.operations();
    disk.fail(Failure { from, count: 6, kind: io::ErrorKind::StorageFull });
    running.input.send(block(1, 1, None)).await.unwrap();
    let mut refused = 0;
    let mut number = 2;
    while !running.post(number).await {
        (refused, number) = (refused + 1, number + 1);
        tokio::task::yield_now().await;
    }
    assert!(refused > 0 && running.metrics.error_count("journal") > 0);
    assert_eq!(running.numbers(3).await, [0, 1, number], "what had to wait is not lost, what was refused is not taken");
    let disk = disk.after_crash(&[], None);
    assert_eq!(start(&disk, None, 1 << 20).unwrap().end().await, [0, 1, number]);
}

#[tokio::test]
async fn a_journal_that_has_reached_its_bound_refuses_until_a_checkpoint_makes_room() {
    let disk = SimulatedDisk::default();
    let mut running = start(&disk, None, 1000).unwrap();
    let mut taken = 0;
    while running.post(taken).await {
        taken += 1;
    }
    assert!(running.metrics.error_count("journal_full") > 0);
    let mut next = 0;
    for _ in 0..taken {
        next = running.next().await.unwrap().1.next.unwrap();
    }
    running.floor.send_replace(next);
    while !running.post(100).await {
        tokio::task::yield_now().await;
    }
    let size: usize = disk.files().iter().map(|(_, content)| content.len()).sum();
    assert!(size < 1000, "{size} bytes are left");
    assert_eq!(running.numbers(1).await, [100]);
}

#[tokio::test]
async fn what_cannot_be_journaled_at_the_end_goes_into_the_last_checkpoint() {
    let disk = SimulatedDisk::default();
    let running = start(&disk, None, 1 << 20).unwrap();
    disk.fail(Failure { from: disk.operations(), count: u64::MAX / 2, kind: io::ErrorKind::StorageFull });
    running.input.send(block(7, 7, None)).await.unwrap();
    assert_eq!(running.end().await, [7]);
}

#[tokio::test]
async fn damage_is_told_with_its_place() {
    let disk = SimulatedDisk::default();
    let running = start(&disk, None, 1 << 20).unwrap();
    for number in 0..3 {
        assert!(running.post(number).await);
    }
    drop(running);
    let (path, mut content) = disk.files().pop().unwrap();
    content[60] ^= 1;
    disk.replace(&path, content);
    let Err(told) = start(&disk, None, 1 << 20) else { panic!("damage was passed over") };
    assert!(told.contains("the checksum does not match at byte 16") && told.contains("tocsin recover"), "{told}");
}
