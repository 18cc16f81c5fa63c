//! SIGKILL at random times, between two topics.

use std::time::Duration;

use anyhow::ensure;

use crate::scene::Keeper;
use crate::stage::{PIPELINE, Stage, beside};
use crate::support::Daemon;
use crate::support::campaign::{Campaign, Order, Outcome};
use crate::support::kafka::Cluster;

pub const KILL: Campaign =
    Campaign { name: "kafka-kill", variable: "TOCSIN_KAFKA_KILLS", sizes: (50, 2000), body: kill };

/// So many kills, then everything is held against each other and begun anew.
const KILLS_OF_A_ROUND: u64 = 50;

const OFTEN: [&str; 2] = ["--set", "daemon.checkpoint_interval=50ms"];

fn kill(order: &Order, outcome: &mut Outcome) -> anyhow::Result<()> {
    let cluster = Cluster::shared();
    let mut random = order.random();
    let mut progress = 0;
    while outcome.runs < order.size && outcome.is_clean() {
        let stage = Stage::new(order, cluster, &cluster.bootstrap(), PIPELINE);
        let mut follower = stage.follower();
        let kills = KILLS_OF_A_ROUND.min(order.size - outcome.runs);
        let (feed, ()) = beside(stage.feed(), || {
            for number in 0..kills {
                let before = stage.epoch()?;
                let mut daemon = Daemon::start(&mut stage.scene.command(&OFTEN));
                // Some are killed before they have begun, some in the middle of their work.
                std::thread::sleep(Duration::from_millis(20 + random.below(1500)));
                // Were none to come far, nothing would be shown.
                let patience = if order.planted.is_some() { 500 } else { 3000 };
                for _ in 0..if number % 3 == 2 { patience } else { 0 } {
                    if stage.epoch()? > before + 2 || daemon.ended().is_some() {
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(10));
                }
                if let Some(status) = daemon.ended() {
                    anyhow::bail!("it ended by itself: {status}\n{}", stage.scene.told());
                }
                daemon.kill();
                outcome.runs += 1;
                stage.require_agreement()?;
                progress += u64::from(stage.epoch()? > before);
                follower.read();
            }
            Ok(())
        })?;
        let mut keeper = Keeper::new(&stage.scene);
        keeper.start(&OFTEN);
        keeper.wait("all records", || follower.has_kept(&feed))?;
        keeper.terminate()?;
        keeper.finish()?;
        stage.judge(&feed, &mut follower, outcome)?;
        stage.judge_with_kafka(&feed, outcome);
        println!("{} kills, {progress} after progress; {} records", outcome.runs, feed.next);
    }
    outcome.note("with_progress", progress);
    ensure!(progress * 4 >= outcome.runs, "only {progress} of {} lives saw a commit", outcome.runs);
    Ok(())
}
