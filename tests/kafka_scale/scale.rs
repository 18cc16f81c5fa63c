//! Daemons that come, go and die while records come: one, three, two, and on by chance.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::ensure;

use crate::feed::Feed;
use crate::fleet::{Fleet, Member};
use crate::follower::Follower;
use crate::s3::Server;
use crate::support::campaign::{Campaign, Order, Outcome};
use crate::support::kafka::{Cluster, Isolation};
use crate::support::random::Random;

pub const SCALE: Campaign =
    Campaign { name: "kafka-scale", variable: "TOCSIN_SCALE_CHANGES", sizes: (10, 200), body: in_a_folder };

pub const SCALE_S3: Campaign =
    Campaign { name: "kafka-scale-s3", variable: "TOCSIN_SCALE_S3_CHANGES", sizes: (4, 50), body: in_an_object_store };

pub const AT_LEAST_ONCE: Campaign = Campaign {
    name: "kafka-scale-at-least-once",
    variable: "TOCSIN_SCALE_REPEATED",
    sizes: (4, 50),
    body: at_least_once,
};

/// Those of the input.
const PARTITIONS: i32 = 12;
const MEMBERS_MAX: usize = 3;

fn in_a_folder(order: &Order, outcome: &mut Outcome) -> anyhow::Result<()> {
    let fleet = Fleet::new(Cluster::shared(), PARTITIONS, "exactly_once").plant(order.planted);
    exactly_once(&fleet, order, outcome)
}

fn in_an_object_store(order: &Order, outcome: &mut Outcome) -> anyhow::Result<()> {
    let server = Server::start()?;
    let fleet = Fleet::new(Cluster::shared(), PARTITIONS / 2, "exactly_once").plant(order.planted);
    exactly_once(&fleet.keep_at(&server.store(), server.variables()), order, outcome)
}

fn exactly_once(fleet: &Fleet<'_>, order: &Order, outcome: &mut Outcome) -> anyhow::Result<()> {
    let (mut feed, follower) = (fleet.feed(), fleet.follower());
    run(fleet, order, outcome, &mut feed)?;
    drain(&follower, &feed);
    feed.compare("what a reader sees", &follower.texts(), outcome);
    let mut seen = Vec::new();
    // On a busy machine it may give up before the first record comes.
    for _ in 0..3 {
        // One more than there should be: it waits until nothing comes any more.
        let wanted = feed.expected() + 1;
        let messages = fleet.cluster.console_consumer(&fleet.output(), Isolation::Committed, wanted);
        seen = messages.iter().map(|message| message.text()).collect();
        if seen.len() >= feed.expected() {
            break;
        }
    }
    feed.compare("what Kafka's own consumer sees", &seen, outcome);
    note(&follower, &feed, outcome);
    Ok(())
}

fn at_least_once(order: &Order, outcome: &mut Outcome) -> anyhow::Result<()> {
    let fleet = Fleet::new(Cluster::shared(), PARTITIONS / 2, "at_least_once").plant(order.planted);
    let (mut feed, follower) = (fleet.feed(), fleet.follower());
    run(&fleet, order, outcome, &mut feed)?;
    drain(&follower, &feed);
    feed.compare_once("what a reader sees", &follower.texts(), outcome);
    note(&follower, &feed, outcome);
    Ok(())
}

/// Waits until as many records are seen as there should be, and a little longer for those that should not.
fn drain(follower: &Follower, feed: &Feed<'_>) {
    for _ in 0..100 {
        if follower.count() >= feed.expected() {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    std::thread::sleep(Duration::from_secs(1));
}

fn note(follower: &Follower, feed: &Feed<'_>, outcome: &mut Outcome) {
    outcome.note("records", feed.expected());
    outcome.note("pause_max_ms", follower.pause_max().as_millis() as u64);
}

/// Changes the fleet as often as is ordered, while records come, and waits until everything is read.
fn run(fleet: &Fleet<'_>, order: &Order, outcome: &mut Outcome, feed: &mut Feed<'_>) -> anyhow::Result<()> {
    let mut random = order.random();
    let mut crew = Crew { fleet, members: Vec::new(), next: 0, stops: Vec::new() };
    crew.start();
    let is_over = AtomicBool::new(false);
    let changed = std::thread::scope(|scope| {
        let flow = scope.spawn(|| feed.flow(&is_over));
        let changed = change(&mut crew, order.size, outcome, &mut random);
        is_over.store(true, Ordering::Relaxed);
        flow.join().unwrap();
        changed
    });
    changed?;
    feed.close()?;
    fleet.wait_until_read(feed, &mut crew.members)?;
    let groups = fleet.cluster.consumer_groups(&["--describe", "--group", &fleet.name]);
    let lags = lags(&groups, &fleet.input());
    ensure!(lags.len() == fleet.partitions.unsigned_abs() as usize, "the group is not described: {groups}");
    ensure!(lags.iter().all(|lag| lag == "0"), "a dashboard sees what is not read: {groups}");
    while let Some(member) = crew.members.pop() {
        crew.stops.push(member.terminate()?);
    }
    outcome.note("stop_max_ms", crew.stops.iter().max().map_or(0, |it| it.as_millis() as u64));
    outcome.violations.extend(fleet.complaints());
    Ok(())
}

/// The lag of each partition as Kafka's own tool tells it.
fn lags(groups: &str, topic: &str) -> Vec<String> {
    let lines = groups.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    lines
        .filter(|fields| fields.get(1) == Some(&topic))
        .filter_map(|fields| Some((*fields.get(5)?).to_owned()))
        .collect()
}

fn change(crew: &mut Crew<'_, '_>, changes: u64, outcome: &mut Outcome, random: &mut Random) -> anyhow::Result<()> {
    std::thread::sleep(Duration::from_secs(3));
    for change in 0..changes {
        let turn = match change {
            // One, three, two.
            0 | 1 => Turn::Start,
            2 => Turn::Kill,
            _ => crew.turn(random),
        };
        println!("change {change}: {turn:?}, of {}", crew.members.len());
        crew.take(turn, random)?;
        outcome.runs += 1;
        // Often the next comes before all have noticed the last.
        std::thread::sleep(Duration::from_millis(500 + random.below(7000)));
        for member in &mut crew.members {
            member.require_alive()?;
        }
    }
    Ok(())
}

#[derive(Clone, Copy, Debug)]
enum Turn {
    Start,
    Kill,
    KillAndRestart,
    Stop,
    StopAndRestart,
}

struct Crew<'f, 'c> {
    fleet: &'f Fleet<'c>,
    members: Vec<Member>,
    next: u32,
    /// How long stops took.
    stops: Vec<Duration>,
}

impl Crew<'_, '_> {
    fn start(&mut self) {
        self.next += 1;
        self.members.push(self.fleet.start(&format!("d{}", self.next), &[]));
    }

    fn turn(&self, random: &mut Random) -> Turn {
        loop {
            let turn = [Turn::Start, Turn::Start, Turn::Kill, Turn::KillAndRestart, Turn::Stop, Turn::StopAndRestart]
                [random.below(6) as usize];
            match turn {
                Turn::Start if self.members.len() >= MEMBERS_MAX => {}
                Turn::Kill | Turn::Stop if self.members.len() < 2 => {}
                turn => return turn,
            }
        }
    }

    fn take(&mut self, turn: Turn, random: &mut Random) -> anyhow::Result<()> {
        if let Turn::Start = turn {
            self.start();
            return Ok(());
        }
        let member = self.members.swap_remove(random.below(self.members.len() as u64) as usize);
        match turn {
            Turn::Kill | Turn::KillAndRestart => member.kill(),
            _ => self.stops.push(member.terminate()?),
        }
        if let Turn::KillAndRestart | Turn::StopAndRestart = turn {
            self.start();
        }
        Ok(())
    }
}
