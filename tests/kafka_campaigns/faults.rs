//! Brokers that go away, and connections that end at the worst of times: before a request has come to the broker, and after it
//! was done but before that is known.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use crate::scene::Keeper;
use crate::stage::{Feed, Follower, PIPELINE, Stage, beside};
use crate::support::Daemon;
use crate::support::campaign::{Campaign, Order, Outcome};
use crate::support::kafka::{Cluster, Setup};
use crate::support::proxy::{Api, Fault, When};

pub const FAULTS: Campaign =
    Campaign { name: "kafka-faults", variable: "TOCSIN_KAFKA_FAULTS", sizes: (1, 50), body: faults };

pub const BROKERS: Campaign =
    Campaign { name: "kafka-brokers", variable: "TOCSIN_KAFKA_BROKERS", sizes: (1, 20), body: brokers };

const OFTEN: [&str; 2] = ["--set", "daemon.checkpoint_interval=100ms"];

/// So soon records must come through again.
const BACK: Duration = Duration::from_secs(10);
/// The same where a broker has to start.
const BACK_AFTER_START: Duration = Duration::from_secs(30);

/// Waits until what is written from now on has been committed; how long that took.
fn wait_for_service(
    stage: &Stage<'_>,
    daemon: &mut Daemon,
    feed: &mut Feed<'_>,
    follower: &mut Follower,
    patience: Duration,
) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    feed.write(40);
    while !follower.has_kept(feed) {
        if let Some(status) = daemon.ended() {
            bail!("it ended by itself: {status}\n{}", stage.scene.told());
        }
        ensure!(begun.elapsed() < patience, "nothing came through for {patience:?}\n{}", stage.scene.told());
    }
    Ok(begun.elapsed())
}

fn finish(
    stage: &Stage<'_>,
    daemon: Daemon,
    feed: &Feed<'_>,
    follower: &mut Follower,
    outcome: &mut Outcome,
) -> anyhow::Result<()> {
    let status = daemon.terminate();
    ensure!(status.success(), "it ended badly: {status}\n{}", stage.scene.told());
    Keeper::new(&stage.scene).finish()?;
    stage.judge(feed, follower, outcome)
}

/// Each kind of request that the daemon sends is cut off before and after, and reset; then nothing is answered for a while.
fn faults(order: &Order, outcome: &mut Outcome) -> anyhow::Result<()> {
    let cluster = Cluster::start_with(Setup::default());
    let mut random = order.random();
    for round in 0..order.size {
        let stage = Stage::new(order, &cluster, &cluster.bootstrap_proxied(), PIPELINE);
        let (mut feed, mut follower) = (stage.feed(), stage.follower());
        let mut daemon = Daemon::start(&mut stage.scene.command(&OFTEN));
        wait_for_service(&stage, &mut daemon, &mut feed, &mut follower, 6 * BACK)?;
        let kinds: Vec<Api> = cluster.faults().seen().into_keys().collect();
        ensure!(kinds.contains(&Api::EndTxn) && kinds.contains(&Api::TxnOffsetCommit), "{kinds:?}");
        let mut slowest: BTreeMap<String, Duration> = BTreeMap::new();
        for api in kinds {
            for when in [When::Before, When::After] {
                let fault = if random.below(2) == 0 { Fault::Cut } else { Fault::Reset };
                let struck = cluster.faults().struck();
                let nth = if round == 0 { 1 } else { random.between(1, 3) };
                cluster.faults().inject(api, nth, when, fault);
                // Some are sent only where a connection is new, or a daemon.
                let is_of_start = matches!(
                    api,
                    Api::InitProducerId | Api::FindCoordinator | Api::OffsetFetch | Api::ApiVersions | Api::Metadata
                );
                if is_of_start {
                    drop(daemon);
                    daemon = Daemon::start(&mut stage.scene.command(&OFTEN));
                }
                let took = wait_for_service(&stage, &mut daemon, &mut feed, &mut follower, BACK)
                    .with_context(|| format!("{fault:?} {when:?} {api:?}"))?;
                let what = format!("{api:?} {when:?}");
                // Some come once a second.
                let begun = Instant::now();
                while cluster.faults().struck() == struck && begun.elapsed() < Duration::from_secs(3) {
                    wait_for_service(&stage, &mut daemon, &mut feed, &mut follower, BACK)?;
                }
                let again =
                    wait_for_service(&stage, &mut daemon, &mut feed, &mut follower, BACK).context(what.clone())?;
                let took = took.max(again);
                if cluster.faults().struck() == struck {
                    println!("{what}: none came");
                    cluster.faults().clear();
                    continue;
                }
                let known = slowest.entry(what).or_default();
                *known = took.max(*known);
                outcome.runs += 1;
            }
        }
        cluster.faults().silence(Duration::from_secs(4));
        std::thread::sleep(Duration::from_secs(4));
        let took = wait_for_service(&stage, &mut daemon, &mut feed, &mut follower, BACK).context("a black hole")?;
        slowest.insert("silence".to_owned(), took);
        println!("{slowest:?}");
        outcome.note("slowest_ms", slowest.values().max().map_or(0, Duration::as_millis) as u64);
        finish(&stage, daemon, &feed, &mut follower, outcome)?;
    }
    Ok(())
}

/// Under load a single broker is killed and started again, and of three the one that leads the output, and the one that leads the
/// group and its transactions.
fn brokers(order: &Order, outcome: &mut Outcome) -> anyhow::Result<()> {
    for nodes in [1, 3] {
        let cluster = Cluster::start_with(Setup { nodes, ..Setup::default() });
        let stage = Stage::new(order, &cluster, &cluster.bootstrap(), PIPELINE);
        let mut follower = stage.follower();
        let mut random = order.random();
        let mut slowest = Duration::ZERO;
        let (mut feed, mut daemon) = beside(stage.feed(), || {
            let mut daemon = Daemon::start(&mut stage.scene.command(&OFTEN));
            let mut wait = |daemon: &mut Daemon, what: &str| -> anyhow::Result<()> {
                let (begun, mut before) = (Instant::now(), None);
                // Who asks has to find the brokers again, too.
                while !stage.epoch().is_ok_and(|epoch| epoch > *before.get_or_insert(epoch) + 1) {
                    if let Some(status) = daemon.ended() {
                        bail!("{what}: it ended by itself: {status}\n{}", stage.scene.told());
                    }
                    let patience = BACK_AFTER_START;
                    ensure!(begun.elapsed() < patience, "{what}: nothing was committed\n{}", stage.scene.told());
                    std::thread::sleep(Duration::from_millis(20));
                }
                slowest = slowest.max(begun.elapsed());
                println!("{what}: back after {:.1?}", begun.elapsed());
                Ok(())
            };
            wait(&mut daemon, "the start")?;
            for _ in 0..order.size {
                let targets: &[&str] = match nodes {
                    1 => &["-out"],
                    _ => &["-out", "__transaction_state", "__consumer_offsets"],
                };
                for target in targets {
                    let topic = if target.starts_with('-') { stage.output() } else { (*target).to_owned() };
                    let partition = match *target {
                        "__transaction_state" => coordinator_of(&format!("tocsin.{}.out", stage.name)),
                        "__consumer_offsets" => coordinator_of(&stage.name),
                        _ => 0,
                    };
                    let node = cluster.leader(&topic, partition);
                    std::thread::sleep(Duration::from_millis(random.below(300)));
                    cluster.node(node).kill();
                    if nodes > 1 {
                        wait(&mut daemon, &format!("{target}: without node {node}"))?;
                    }
                    cluster.node(node).restart();
                    wait(&mut daemon, &format!("{target}: with node {node} again"))?;
                    outcome.runs += 1;
                    follower.read();
                }
            }
            Ok(daemon)
        })?;
        wait_for_service(&stage, &mut daemon, &mut feed, &mut follower, BACK_AFTER_START)?;
        outcome.note(if nodes == 1 { "slowest_of_one_ms" } else { "slowest_of_three_ms" }, slowest.as_millis() as u64);
        finish(&stage, daemon, &feed, &mut follower, outcome)?;
    }
    Ok(())
}

/// The partition of the internal topics that an id belongs to: four of them, by Java's hash of the text.
fn coordinator_of(id: &str) -> i32 {
    let hash = id.encode_utf16().fold(0_i32, |hash, unit| hash.wrapping_mul(31).wrapping_add(i32::from(unit)));
    (hash & 0x7fff_ffff) % 4
}
