//! SIGKILL at every named point between a barrier and the end of its transaction, between two topics.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::ensure;
use tocsin_pipeline::fault::POINTS;

use crate::scene::Keeper;
use crate::stage::{PIPELINE, Stage};
use crate::support::campaign::{Campaign, Order, Outcome};
use crate::support::kafka::Cluster;

/// Each point so many times, at a later visit each time.
pub const POINTS_CAMPAIGN: Campaign =
    Campaign { name: "kafka-points", variable: "TOCSIN_KAFKA_POINTS", sizes: (1, 20), body: every_point };

/// What a reload adds.
const ADDED: &str = "\n[sinks.added]\ntype = \"blackhole\"\ninputs = [\"stats\"]\n";

const OFTEN: [&str; 2] = ["--set", "daemon.checkpoint_interval=50ms"];

/// The point to die at, and at which visit.
type Fault = Option<(&'static str, u64)>;

fn points() -> impl Iterator<Item = &'static str> {
    let kinds = ["checkpoint", "segment", "manifest", "decider", "kafka", "garbage", "reload"];
    let wanted = std::env::var("TOCSIN_POINT").ok();
    POINTS
        .iter()
        .copied()
        .filter(move |point| point.split('.').next().is_some_and(|kind| kinds.contains(&kind)))
        .filter(move |point| wanted.as_deref().is_none_or(|wanted| wanted == *point))
}

fn every_point(order: &Order, outcome: &mut Outcome) -> anyhow::Result<()> {
    let list = tempfile::NamedTempFile::new()?;
    story(order, None, Some(list.path()), outcome)?;
    let hit: BTreeSet<String> = fs::read_to_string(list.path())?.lines().map(str::to_owned).collect();
    println!("come to: {hit:?}");
    let missed: Vec<_> = points().filter(|point| !hit.contains(*point)).collect();
    ensure!(missed.is_empty(), "the story does not come to {missed:?}");
    // A defect of recovery shows where a checkpoint is written and not committed.
    let is_wanted = |point: &str| order.planted.is_none() || point == "decider.commit";
    let mut random = order.random();
    let mut deaths: BTreeMap<&str, u64> = BTreeMap::new();
    for round in 0..order.size {
        for point in points().filter(|point| is_wanted(point)) {
            // The first epoch may hold nothing, the second holds the first records; later visits may not come to pass.
            let is_decisive = point.starts_with("decider.") || point.starts_with("kafka.");
            let visits = match round {
                // Whether there are records in a transaction is a matter of time; of several, one has some.
                0 if order.planted.is_some() => vec![1, 2, 3, 4, 5],
                0 if is_decisive => vec![1, 2],
                0 => vec![1],
                _ => vec![random.between(3, 3 + 2 * round)],
            };
            for visit in visits {
                let died = story(order, Some((point, visit)), None, outcome);
                *deaths.entry(point).or_default() += *died.as_ref().unwrap_or(&0);
                outcome.runs += 1;
                if died.is_err() || !outcome.is_clean() {
                    outcome.violations.push(format!("killed at {point}, visit {visit}"));
                    return died.map(|_| ());
                }
            }
        }
    }
    println!("killed at: {deaths:?}");
    let survived: Vec<_> = deaths.iter().filter(|(_, count)| **count == 0).map(|(point, _)| point).collect();
    ensure!(survived.is_empty(), "nothing was killed at {survived:?}");
    outcome.note("points", deaths.len());
    outcome.note("kills", deaths.values().sum::<u64>());
    Ok(())
}

/// Records come, and the daemon is killed from outside, reloaded, stopped and started again. Gives how often it died at its
/// point.
fn story(order: &Order, fault: Fault, list: Option<&Path>, outcome: &mut Outcome) -> anyhow::Result<u64> {
    let cluster = Cluster::shared();
    let stage = Stage::new(order, cluster, &cluster.bootstrap(), PIPELINE);
    let (mut feed, mut follower) = (stage.feed(), stage.follower());
    let mut keeper = Keeper::new(&stage.scene);
    if let Some((point, visit)) = fault {
        keeper = keeper.with_fault(point, visit);
    }
    if let Some(list) = list {
        keeper = keeper.listing(list.to_owned());
    }
    feed.write(120);
    keeper.start(&OFTEN);
    keeper.wait("the first records", || follower.has_kept(&feed))?;
    keeper.kill();
    feed.write(80);
    keeper.restart();
    // Some checkpoints later files of the first are deleted.
    for _ in 0..5 {
        keeper.wait("what was written before and after a kill", || follower.has_kept(&feed))?;
        feed.write(20);
    }
    let pipeline = fs::read_to_string(stage.scene.path("pipeline.toml"))?;
    fs::write(stage.scene.path("pipeline.toml"), pipeline + ADDED)?;
    keeper.until_it_listens()?;
    keeper.signal("HUP");
    feed.write(60);
    let added = stage.scene.state().join("sinks/added");
    keeper.wait("a reload", || added.exists())?;
    keeper.wait("what was written meanwhile", || follower.has_kept(&feed))?;
    feed.write(100);
    keeper.terminate()?;
    keeper.finish()?;
    stage.judge(&feed, &mut follower, outcome)?;
    if list.is_some() {
        stage.judge_with_kafka(&feed, outcome);
    }
    if !outcome.is_clean() {
        println!("what the daemons said last:\n{}", stage.scene.told());
    }
    Ok(keeper.deaths)
}
