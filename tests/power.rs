//! Power cuts: checkpoints on a simulated disk that loses power at every operation, keeping any subset of what was not
//! durable, in any order, writes torn at sectors; and with operations that fail. What is found afterwards must be an epoch that
//! was written, whole, and none older than the last that was said to be complete.
//!
//! See `docs/testing.md`. `TOCSIN_POWER_CUTS` is how many random cuts there are beside the complete enumeration of three epochs.

mod support;

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use support::campaign::{Campaign, Order, Outcome};
use tocsin_pipeline::checkpoint::{Checkpoints, LanePosition, Snapshot};
use tocsin_pipeline::fault::{self, Defect};
use tocsin_pipeline::store::simulated::{Failure, Random, SimulatedDisk};
use tocsin_pipeline::time::Timestamp;

const DATA: &str = "/data";

/// What an epoch holds, in full: what recovery must give back.
#[derive(Clone, Debug, Default, PartialEq)]
struct Whole {
    position: u64,
    pieces: BTreeMap<u16, Bytes>,
    sink: Vec<u8>,
}

/// Everything that was ever handed over to be written, by epoch.
type Model = BTreeMap<u64, Whole>;

/// What a daemon does between two power cuts.
struct Run {
    /// The epoch that was said to be complete last; 0 if none was.
    complete: u64,
    model: Model,
    now: Whole,
}

/// Changes the state as a little work would, and gives what changed.
fn work(now: &mut Whole, random: &mut Random) -> Snapshot {
    now.position += 1 + random.below(1000);
    let mut snapshot = Snapshot::default();
    let position = LanePosition { position: now.position.into(), seen: now.position as i64 };
    snapshot.sources.insert("in".into(), BTreeMap::from([(String::new(), position)]));
    let mut pieces = BTreeMap::new();
    for _ in 0..random.below(4) {
        let group = random.below(6) as u16;
        let length = if random.one_in(5) { 0 } else { 1 + random.below(1500) as usize };
        let piece = Bytes::from(vec![random.word() as u8; length]);
        if piece.is_empty() {
            now.pieces.remove(&group);
        } else {
            now.pieces.insert(group, piece.clone());
        }
        pieces.insert(group, piece);
    }
    snapshot.operators.insert("op".into(), (1, pieces));
    if random.one_in(2) {
        now.sink = now.position.to_le_bytes().to_vec();
        snapshot.sinks.insert("out".into(), now.sink.clone().into());
    }
    snapshot
}

impl Run {
    /// Starts as the daemon does, from what is on the disk; the error says what is wrong with it.
    fn start(&mut self, disk: &SimulatedDisk) -> Result<Option<Checkpoints>, String> {
        let opened = Checkpoints::open(Arc::new(disk.clone()), Path::new(DATA));
        let (checkpoints, restored, passed_over) = match opened {
            Ok(opened) => opened,
            Err(_) if disk.is_dead() => return Ok(None),
            Err(error) => return Err(format!("it does not start: {error}")),
        };
        if !passed_over.is_empty() {
            return Err(format!("damage: {passed_over:?}"));
        }
        let found = Whole {
            position: restored.sources.get("in").map_or(0, |lanes| lanes[""].position.as_u64().unwrap()),
            pieces: restored.operators.get("op").map(|(_, pieces)| pieces.clone()).unwrap_or_default(),
            sink: restored.sinks.get("out").map(|state| state.to_vec()).unwrap_or_default(),
        };
        if restored.epoch < self.complete {
            return Err(format!("epoch {} was complete, and {} is found", self.complete, restored.epoch));
        }
        let expected = if restored.epoch == 0 { Some(&Whole::default()) } else { self.model.get(&restored.epoch) };
        if expected != Some(&found) {
            return Err(format!("epoch {} holds {found:?}, not {expected:?}", restored.epoch));
        }
        self.now = found;
        // Epochs after this one were never complete, and their numbers may be used again.
        self.model.retain(|epoch, _| *epoch <= restored.epoch);
        Ok(Some(checkpoints))
    }

    /// Takes `epochs` checkpoints, or as many as there is power for.
    fn go_on(&mut self, checkpoints: &mut Checkpoints, disk: &SimulatedDisk, epochs: u64, random: &mut Random) {
        for _ in 0..epochs {
            let epoch = checkpoints.next_epoch();
            let snapshot = work(&mut self.now, random);
            self.model.insert(epoch, self.now.clone());
            if checkpoints.write(epoch, snapshot, Timestamp(0)).is_ok() {
                self.complete = epoch;
            }
            if disk.is_dead() {
                return;
            }
        }
    }
}

fn fresh() -> Run {
    Run { complete: 0, model: Model::new(), now: Whole::default() }
}

/// Cuts the power at every operation of three epochs, and keeps every subset of what was not durable (up to 4,096), and 64
/// random orders with torn writes. Gives how many cuts there were.
fn enumerate(seed: u64) -> Result<u64, String> {
    let mut cuts = 0;
    for operation in 0.. {
        let (disk, mut run, mut random) = (SimulatedDisk::default(), fresh(), Random(seed));
        disk.crash_at(operation);
        if let Some(mut checkpoints) = run.start(&disk)? {
            run.go_on(&mut checkpoints, &disk, 3, &mut random);
        }
        if !disk.is_dead() {
            return Ok(cuts);
        }
        let pending = disk.pending();
        let subsets = (0..1u32 << pending.min(12)).map(|bits| {
            let subset = (0..pending).filter(|at| *at >= 12 || bits & (1 << at) != 0).collect::<Vec<_>>();
            (subset, false)
        });
        let mut chance = Random(seed ^ operation);
        let mut orders = Vec::new();
        for _ in 0..64 {
            let mut order: Vec<_> = (0..pending).filter(|_| !chance.one_in(3)).collect();
            chance.shuffle(&mut order);
            orders.push((order, true));
        }
        for (survived, is_torn) in subsets.chain(orders) {
            let left = disk.after_crash(&survived, is_torn.then_some(&mut chance));
            cuts += 1;
            let told = |why| format!("power cut at operation {operation} of seed {seed}, {survived:?} survived: {why}");
            let mut next = Run { complete: run.complete, model: run.model.clone(), now: Whole::default() };
            let started = next.start(&left).map_err(told)?;
            // What was left lying about must be in nobody's way.
            next.go_on(&mut started.expect("there is power"), &left, 1, &mut chance);
            fresh_start(&next, &left).map_err(told)?;
        }
    }
    unreachable!("three epochs are finitely many operations")
}

/// A start after a clean end.
fn fresh_start(run: &Run, disk: &SimulatedDisk) -> Result<(), String> {
    let all: Vec<_> = (0..disk.pending()).collect();
    let mut next = Run { complete: run.complete, model: run.model.clone(), now: Whole::default() };
    next.start(&disk.after_crash(&all, None)).map(drop)
}

/// A daemon's life with `cuts` power cuts at random moments, during starts too, and with failing operations.
fn live(seed: u64, cuts: u64) -> Result<u64, String> {
    let mut random = Random(seed);
    let (mut disk, mut run) = (SimulatedDisk::default(), fresh());
    for cut in 0..cuts {
        let told = |why| format!("cut {cut} of seed {seed}: {why}");
        disk.crash_at(random.below(60));
        if random.one_in(3) {
            let kind = if random.one_in(2) { ErrorKind::StorageFull } else { ErrorKind::Other };
            // Not before the daemon has started: one that cannot read its disk at start rightly gives up.
            disk.fail(Failure { from: 12 + random.below(40), count: 1 + random.below(6), kind });
        }
        match run.start(&disk) {
            Ok(Some(mut checkpoints)) => {
                let epochs = 1 + random.below(8);
                run.go_on(&mut checkpoints, &disk, epochs, &mut random);
            }
            Ok(None) => {}
            Err(why) => return Err(told(why)),
        }
        disk.crash();
        let mut order: Vec<_> = (0..disk.pending()).filter(|_| !random.one_in(3)).collect();
        if random.one_in(2) {
            random.shuffle(&mut order);
        }
        let tear = random.one_in(2);
        let left = disk.after_crash(&order, tear.then_some(&mut random));
        disk = left;
    }
    Ok(cuts)
}

const POWER: Campaign =
    Campaign { name: "power", variable: "TOCSIN_POWER_CUTS", sizes: (20_000, 2_000_000), body: power };

fn power(order: &Order, outcome: &mut Outcome) -> anyhow::Result<()> {
    fault::plant(order.planted);
    let result = (|| {
        outcome.runs += enumerate(order.seed)?;
        outcome.runs += enumerate(order.seed.wrapping_add(1))?;
        for life in 0..order.size / 50 {
            outcome.runs += live(order.seed.wrapping_add(life), 50)?;
        }
        Ok(())
    })();
    fault::plant(None);
    result.map_err(anyhow::Error::msg::<String>)
}

#[test]
fn a_power_cut_at_any_moment_leaves_the_last_complete_epoch_or_the_one_being_written() {
    POWER.run();
}

#[test]
fn every_planted_defect_of_the_storage_is_caught() {
    for defect in
        [Defect::NoFolderSync, Defect::NoFileSync, Defect::RetriedSync, Defect::IgnoredError, Defect::EarlyGarbage]
    {
        let outcome = POWER.once(&Order { size: POWER.sizes.0, seed: 1, planted: Some(defect) });
        println!("{}: {:?}", defect.as_str(), outcome.violations);
        assert!(!outcome.is_clean(), "{} goes unnoticed", defect.as_str());
    }
}
