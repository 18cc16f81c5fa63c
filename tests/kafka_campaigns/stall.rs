//! SIGSTOP in the middle of a transaction: for longer than it may be open, and while another daemon takes over.

use std::time::{Duration, Instant};

use anyhow::{bail, ensure};

use crate::scene::Keeper;
use crate::stage::{PIPELINE, Stage, beside};
use crate::support::campaign::{Campaign, Order, Outcome};
use crate::support::kafka::Cluster;
use crate::support::{Daemon, copy_folder};

pub const EXPIRY: Campaign =
    Campaign { name: "kafka-expiry", variable: "TOCSIN_KAFKA_EXPIRIES", sizes: (5, 100), body: expiry };

pub const ZOMBIE: Campaign =
    Campaign { name: "kafka-zombie", variable: "TOCSIN_KAFKA_ZOMBIES", sizes: (4, 200), body: zombie };

/// A transaction is open almost all the time.
const SELDOM: [&str; 2] = ["--set", "daemon.checkpoint_interval=300ms"];

const TIMEOUT: Duration = Duration::from_secs(2);

/// How long a daemon may take until it commits again.
const BACK: Duration = Duration::from_secs(10);

fn pipeline(has_short_timeout: bool) -> String {
    match has_short_timeout {
        true => PIPELINE.to_owned() + "transaction_timeout = \"2s\"\n",
        false => PIPELINE.to_owned(),
    }
}

/// Waits until the daemon commits, and says how long that took.
fn wait_for_commits(stage: &Stage<'_>, daemon: &mut Daemon, patience: Duration) -> anyhow::Result<Duration> {
    let (begun, before) = (Instant::now(), stage.epoch()?);
    while stage.epoch()? <= before + 1 {
        if let Some(status) = daemon.ended() {
            bail!("it ended by itself: {status}\n{}", stage.scene.told());
        }
        ensure!(begun.elapsed() < patience, "nothing was committed for {patience:?}\n{}", stage.scene.told());
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(begun.elapsed())
}

fn expiry(order: &Order, outcome: &mut Outcome) -> anyhow::Result<()> {
    let cluster = Cluster::shared();
    let stage = Stage::new(order, cluster, &cluster.bootstrap(), &pipeline(true));
    let (mut feed, mut follower) = (stage.feed(), stage.follower());
    let mut daemon = Daemon::start(&mut stage.scene.command(&["--set", "daemon.checkpoint_interval=1s"]));
    let mut slowest = Duration::ZERO;
    for round in 0..=order.size {
        let begun = Instant::now();
        while !follower.has_kept(&feed) {
            if let Some(status) = daemon.ended() {
                bail!("it ended by itself: {status}\n{}", stage.scene.told());
            }
            ensure!(begun.elapsed() < 6 * BACK, "nothing was committed\n{}", stage.scene.told());
        }
        if round > 0 {
            slowest = slowest.max(begun.elapsed());
            outcome.runs += 1;
        }
        if round == order.size {
            break;
        }
        // Soon they are in a transaction that is not committed yet.
        feed.write(60);
        std::thread::sleep(Duration::from_millis(300));
        daemon.signal("STOP");
        std::thread::sleep(TIMEOUT + Duration::from_millis(800));
        // That it was undone shows when the next record is written, or else when it is committed.
        if round % 2 == 1 {
            feed.write(60);
        }
        daemon.signal("CONT");
    }
    daemon.terminate();
    let told = std::fs::read_to_string(stage.scene.path("told"))?;
    let undone = told.matches("what was under way is undone").count() as u64;
    outcome.note("undone", undone);
    outcome.note("slowest_ms", slowest.as_millis() as u64);
    ensure!(undone * 2 > order.size, "{undone} transactions were undone, too few to show anything\n{told}");
    Keeper::new(&stage.scene).finish()?;
    stage.judge(&feed, &mut follower, outcome)
}

/// One daemon is stopped while another goes on from a copy of its folder with the same transactional id; then the first wakes up.
fn zombie(order: &Order, outcome: &mut Outcome) -> anyhow::Result<()> {
    let cluster = Cluster::shared();
    let mut random = order.random();
    for round in 0..order.size {
        // Every second sleeps for longer than its transaction may be open.
        let is_long = round % 2 == 1;
        let stage = Stage::new(order, cluster, &cluster.bootstrap(), &pipeline(is_long));
        let mut follower = stage.follower();
        let (feed, daemon) = beside(stage.feed(), || {
            let mut first = Daemon::start(&mut stage.command("first", &SELDOM));
            wait_for_commits(&stage, &mut first, 6 * BACK)?;
            std::thread::sleep(Duration::from_millis(random.below(400)));
            first.signal("STOP");
            copy_folder(&stage.scene.path("first"), &stage.scene.state());
            let mut second = Daemon::start(&mut stage.scene.command(&SELDOM));
            if is_long {
                std::thread::sleep(TIMEOUT + Duration::from_millis(800));
            }
            wait_for_commits(&stage, &mut second, 6 * BACK)?;
            first.signal("CONT");
            let begun = Instant::now();
            let status = loop {
                if let Some(status) = first.ended() {
                    break status;
                }
                ensure!(begun.elapsed() < BACK, "the first goes on\n{}", stage.scene.told());
                std::thread::sleep(Duration::from_millis(5));
            };
            let told = stage.scene.told();
            ensure!(!status.success(), "the first ended as if all were well\n{told}");
            ensure!(told.contains("another daemon has taken over"), "it does not say why it ended\n{told}");
            wait_for_commits(&stage, &mut second, BACK)?;
            // Whoever starts it again must not stop the one that goes on.
            let mut again = Daemon::start(&mut stage.command("first", &SELDOM));
            let begun = Instant::now();
            while again.ended().is_none() {
                ensure!(begun.elapsed() < 3 * BACK, "the first goes on from an old checkpoint\n{}", stage.scene.told());
                std::thread::sleep(Duration::from_millis(5));
            }
            let told = stage.scene.told();
            ensure!(told.contains("this is an older copy of the data directory"), "it does not say why not\n{told}");
            wait_for_commits(&stage, &mut second, BACK)?;
            outcome.runs += 1;
            Ok(second)
        })?;
        daemon.terminate();
        Keeper::new(&stage.scene).finish()?;
        stage.judge(&feed, &mut follower, outcome)?;
    }
    Ok(())
}
