//! What becomes of a single daemon among others.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::ensure;
use serde_json::Value as Json;

use crate::fleet::{Fleet, Member};
use crate::follower::writers;
use crate::support::campaign::{Campaign, Order, Outcome};
use crate::support::kafka::{Cluster, Isolation};
use crate::support::wait_for;

pub const ZOMBIE: Campaign =
    Campaign { name: "kafka-scale-zombie", variable: "TOCSIN_SCALE_ZOMBIES", sizes: (1, 20), body: zombie };

const PARTITIONS: i32 = 6;

fn exactly_once(partitions: i32) -> Fleet<'static> {
    Fleet::new(Cluster::shared(), partitions, "exactly_once")
}

/// One of two is frozen for longer than the group waits for it, and wakes up when the other has its partitions.
fn zombie(order: &Order, outcome: &mut Outcome) -> anyhow::Result<()> {
    let fleet = exactly_once(PARTITIONS).plant(order.planted);
    let (mut feed, follower) = (fleet.feed(), fleet.follower());
    let (mut frozen, mut other) = (fleet.start("frozen", &[]), fleet.start("other", &[]));
    let is_over = AtomicBool::new(false);
    let done = std::thread::scope(|scope| {
        let flow = scope.spawn(|| feed.flow(&is_over));
        let done = freeze(&fleet, &mut frozen, &mut other, order.size, outcome);
        is_over.store(true, Ordering::Relaxed);
        flow.join().unwrap();
        done
    });
    done?;
    feed.close()?;
    let mut members = [frozen, other];
    fleet.wait_until_read(&feed, &mut members)?;
    wait_for("what was written", || follower.count() >= feed.expected());
    std::thread::sleep(Duration::from_secs(1));
    feed.compare("what a reader sees", &follower.texts(), outcome);
    // Also of what was undone: once the other has begun, nothing comes of the frozen one until it is its turn again.
    for (host, turns) in writers(&fleet.cluster.read(&fleet.output(), Isolation::Uncommitted)) {
        // Each time it is frozen a partition may go to the other and come back, and the group may move it once more.
        if turns.len() as u64 > 1 + 3 * order.size {
            outcome.violations.push(format!("{host} was written by turns: {turns:?}"));
        }
    }
    outcome.note("records", feed.expected());
    outcome.note("pause_max_ms", follower.pause_max().as_millis() as u64);
    for member in members {
        member.terminate()?;
    }
    outcome.violations.extend(fleet.complaints());
    Ok(())
}

fn freeze(
    fleet: &Fleet<'_>,
    frozen: &mut Member,
    other: &mut Member,
    times: u64,
    outcome: &mut Outcome,
) -> anyhow::Result<()> {
    let all = fleet.partitions.unsigned_abs() as usize;
    for _ in 0..times {
        fleet.wait_until_shared(&[frozen, other])?;
        ensure!(!frozen.lanes().is_empty(), "it has nothing");
        std::thread::sleep(Duration::from_secs(1));
        frozen.signal("STOP");
        other.wait("all partitions", |other| other.lanes().len() == all && other.ready().0 == 200)?;
        std::thread::sleep(Duration::from_secs(2));
        let assigned = frozen.has_told("assigned: ");
        frozen.signal("CONT");
        frozen.wait("partitions again", |frozen| frozen.has_told("assigned: ") > assigned)?;
        outcome.runs += 1;
    }
    fleet.wait_until_shared(&[frozen, other])
}

/// Killed and started again at once: whoever has a name keeps its partitions, and so do the others.
pub fn restart_with_a_name() {
    let fleet = exactly_once(PARTITIONS);
    let mut feed = fleet.feed();
    let start = |name: &str| fleet.start(name, &["--set", &format!("daemon.instance={name}")]);
    let (a, b) = (start("a"), start("b"));
    fleet.wait_until_shared(&[&a, &b]).unwrap();
    feed.write(100);
    let (of_a, of_b, told) = (a.lanes(), b.lanes(), b.told().len());
    a.kill();
    feed.write(100);
    let a = start("a");
    fleet.wait_until_shared(&[&a, &b]).unwrap();
    feed.write(100);
    feed.close().unwrap();
    let mut members = [a, b];
    fleet.wait_until_read(&feed, &mut members).unwrap();
    let [a, b] = members;
    assert_eq!((a.lanes(), b.lanes()), (of_a.clone(), of_b), "each has what it had");
    let told = b.told()[told..].to_owned();
    assert!(!told.contains("given away") && !told.contains("assigned"), "nothing moves: {told}");
    // An orderly restart is one as well.
    let told = b.told().len();
    a.terminate().unwrap();
    let a = start("a");
    fleet.wait_until_shared(&[&a, &b]).unwrap();
    assert_eq!(a.lanes(), of_a);
    let told = b.told()[told..].to_owned();
    assert!(!told.contains("given away") && !told.contains("assigned"), "nothing moves: {told}");
    let mut outcome = Outcome::default();
    let seen: Vec<_> = fleet.cluster.read_committed(&fleet.output()).iter().map(|message| message.text()).collect();
    feed.compare("what a reader sees", &seen, &mut outcome);
    assert!(outcome.is_clean() && fleet.complaints().is_empty(), "{outcome:?} {:?}", fleet.complaints());
}

/// A name that two have: the one that came first is put out, and does not write any more.
pub fn two_with_one_name() {
    let fleet = exactly_once(PARTITIONS);
    let mut feed = fleet.feed();
    let instance = ["--set", "daemon.instance=a"];
    let mut first = fleet.start("first", &instance);
    fleet.wait_until_shared(&[&first]).unwrap();
    feed.write(100);
    let second = fleet.start("second", &instance);
    feed.write(100);
    wait_for("the end of the first", || first.ended().is_some());
    assert_eq!(first.ended().unwrap().code(), Some(1));
    let last = first.told();
    let last = last.lines().last().unwrap_or_default();
    assert!(last.contains("has another daemon the same `daemon.instance`?"), "{}", first.told());
    fleet.wait_until_shared(&[&second]).unwrap();
    feed.write(100);
    feed.close().unwrap();
    let mut members = [second];
    fleet.wait_until_read(&feed, &mut members).unwrap();
    let mut outcome = Outcome::default();
    let seen: Vec<_> = fleet.cluster.read_committed(&fleet.output()).iter().map(|message| message.text()).collect();
    feed.compare("what a reader sees", &seen, &mut outcome);
    assert!(outcome.is_clean(), "{outcome:?}");
}

/// The admin address of a daemon with several partitions, and of one without any.
pub fn what_is_told() {
    let fleet = exactly_once(2);
    let mut feed = fleet.feed();
    let mut a = fleet.start("a", &[]);
    fleet.wait_until_shared(&[&a]).unwrap();
    assert_eq!(a.ready(), (200, "ready\n".to_owned()));
    feed.write(200);
    feed.close().unwrap();
    fleet.wait_until_read(&feed, std::slice::from_mut(&mut a)).unwrap();
    // Each name once, and each lane under it.
    let metrics = a.metrics();
    let mut types: BTreeMap<&str, u32> = BTreeMap::new();
    metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")).for_each(|it| *types.entry(it).or_default() += 1);
    assert!(types.len() > 10 && types.values().all(|count| *count == 1), "{types:?}");
    for lane in 0..2 {
        let label = format!("lane=\"{}/{lane}\"", fleet.input());
        let received =
            |line: &&str| line.starts_with("tocsin_component_received_events_total") && line.contains(&label);
        assert!(metrics.lines().filter(received).any(|line| line.contains("component=\"out\"")), "{metrics}");
    }
    // The sum of all lanes, which balances; the last barrier may be just passing.
    let written: i64 = feed.ends().unwrap().iter().sum();
    wait_for("an audit of everything", || {
        let (status, audit) = a.ask("GET /api/v1/audit").unwrap();
        assert_eq!(status, 200, "{audit}");
        let audit: Json =
            serde_json::from_str(audit[audit.find('{').unwrap()..=audit.rfind('}').unwrap()].trim()).unwrap();
        assert_eq!(audit["balanced"], true, "{audit}");
        audit["components"]["log"]["received"] == written && audit["components"]["out"]["delivered"] == feed.expected()
    });
    // A reload is refused, and says what to do.
    a.signal("HUP");
    a.wait("the refusal", |a| a.has_told("restart them one after the other") == 1).unwrap();
    let (status, told) = a.ask("POST /api/v1/reload").unwrap();
    assert!(status == 409 && told.contains("restart them one after the other"), "{status} {told}");
    a.wait("its count", |a| a.metrics().contains("tocsin_reloads_total{result=\"refused\"} 2")).unwrap();
    // More daemons than partitions: those that have none are ready, and wait for some.
    let (b, c) = (fleet.start("b", &[]), fleet.start("c", &[]));
    fleet.wait_until_shared(&[&a, &b, &c]).unwrap();
    let members = [a, b, c];
    let (idle, busy): (Vec<_>, Vec<_>) = members.into_iter().partition(|member| member.lanes().is_empty());
    assert_eq!((idle.len(), busy.len()), (1, 2));
    assert_eq!(idle[0].ready(), (200, "ready, and standing by: other daemons have all partitions\n".to_owned()));
    assert!(idle[0].told().contains("stands by"), "{}", idle[0].told());
    assert_eq!(idle[0].ask("GET /api/v1/audit").unwrap().0, 503);
    for member in busy {
        member.terminate().unwrap();
    }
    fleet.wait_until_shared(&[&idle[0]]).unwrap();
    for member in idle {
        member.terminate().unwrap();
    }
}

/// A record that ends every attempt is found out and passed over, by the lane that it is in.
pub fn poisoned() {
    let fleet = exactly_once(2).with_variable("TOCSIN_POISON", "panic@once:request 33 at h01");
    let mut feed = fleet.feed();
    feed.write(100);
    feed.close().unwrap();
    let a = fleet.start("a", &[]);
    let mut members = [a];
    fleet.wait_until_read(&feed, &mut members).unwrap();
    let [a] = members;
    let failures = a.has_told("going back to the checkpoint to find the record");
    assert!((1..=3).contains(&failures), "{failures}: {}", a.told());
    let dropped = "tocsin_component_dropped_events_total{component=\"once\"";
    let metrics = a.metrics();
    let dropped: Vec<_> = metrics.lines().filter(|line| line.starts_with(dropped) && line.ends_with(" 1")).collect();
    assert_eq!(dropped.len(), 1, "{metrics}");
    let seen: Vec<_> = fleet.cluster.read_committed(&fleet.output()).iter().map(|message| message.text()).collect();
    let mut outcome = Outcome::default();
    feed.compare("what a reader sees", &seen, &mut outcome);
    // It is missing, and its window is another.
    assert_eq!((outcome.lost, outcome.duplicated), (2, 1), "{outcome:?}");
    a.terminate().unwrap();
}
