//! What is found at start, and what is done with it: the checkpoint that the transactions name is the truth, and where there is
//! none of that number a person decides.

use std::fs;
use std::time::{Duration, Instant};

use crate::scene::Keeper;
use crate::stage::{Feed, Follower, PIPELINE, Stage};
use crate::support::campaign::{Order, Outcome};
use crate::support::kafka::Cluster;
use crate::support::{Daemon, copy_folder};

const OFTEN: [&str; 2] = ["--set", "daemon.checkpoint_interval=50ms"];

/// A stage with a daemon that has committed something and was killed.
struct Left<'c> {
    stage: Stage<'c>,
    feed: Feed<'c>,
    follower: Follower,
}

impl Left<'static> {
    fn new() -> Self {
        let order = Order { size: 1, seed: 1, planted: None };
        let cluster = Cluster::shared();
        let stage = Stage::new(&order, cluster, &cluster.bootstrap(), PIPELINE);
        let (mut feed, follower) = (stage.feed(), stage.follower());
        feed.write(200);
        let mut left = Self { stage, feed, follower };
        left.run(120);
        left
    }

    /// Runs a daemon until everything has come through, more records included; then it is killed.
    fn run(&mut self, more: u64) {
        let mut keeper = Keeper::new(&self.stage.scene);
        keeper.start(&OFTEN);
        self.feed.write(more);
        keeper.wait("all records", || self.follower.has_kept(&self.feed)).unwrap();
        keeper.kill();
    }

    /// Goes on to the end of the input; nothing was lost or repeated.
    fn judge(mut self) {
        Keeper::new(&self.stage.scene).finish().unwrap();
        let mut outcome = Outcome::default();
        self.stage.judge(&self.feed, &mut self.follower, &mut outcome).unwrap();
        assert!(outcome.is_clean(), "{outcome:?}\n{}", self.stage.scene.told());
    }

    /// The daemon does not start, and says why.
    fn require_refusal(&self, why: &str) {
        let begun = Instant::now();
        let mut daemon = Daemon::start(&mut self.stage.scene.command(&OFTEN));
        let status = loop {
            if let Some(status) = daemon.ended() {
                break status;
            }
            assert!(begun.elapsed() < Duration::from_secs(30), "it starts: {}", self.stage.scene.told());
            std::thread::sleep(Duration::from_millis(5));
        };
        let told = self.stage.scene.told();
        assert!(!status.success() && told.contains(why), "{status}: {told}");
        // It is a sentence as people write them.
        assert!(!told.contains("   "), "{told}");
    }

    fn checkpoints(&self) -> usize {
        fs::read_dir(self.stage.scene.state().join("checkpoints")).unwrap().count()
    }
}

pub fn undecided_epoch_is_done_again() {
    let mut left = Left::new();
    left.stage.require_agreement().unwrap();
    left.feed.write(90);
    let mut keeper = Keeper::new(&left.stage.scene).with_fault("decider.commit", 2);
    keeper.start(&OFTEN);
    // It dies with a checkpoint that is written and not committed, and the next one goes back to the one before.
    keeper.wait("all records", || left.follower.has_kept(&left.feed)).unwrap();
    assert_eq!(keeper.deaths, 1);
    keeper.terminate().unwrap();
    left.judge();
}

pub fn older_copy_is_refused() {
    let mut left = Left::new();
    let state = left.stage.scene.state();
    let copy = left.stage.scene.path("copy");
    copy_folder(&state, &copy);
    left.run(300);
    let newer = left.stage.scene.path("newer");
    fs::rename(&state, &newer).unwrap();
    copy_folder(&copy, &state);
    left.require_refusal("this is an older copy of the data directory");
    // What is right is not spoilt by the attempt.
    fs::remove_dir_all(&state).unwrap();
    fs::rename(&newer, &state).unwrap();
    left.run(50);
    left.judge();
}

pub fn empty_folder_is_refused() {
    let left = Left::new();
    let (state, aside) = (left.stage.scene.state(), left.stage.scene.path("aside"));
    fs::rename(&state, &aside).unwrap();
    left.require_refusal("and the epochs here are: none");
    fs::remove_dir_all(&state).unwrap();
    fs::rename(&aside, &state).unwrap();
    left.judge();
}

pub fn reset_offsets_are_refused() {
    let left = Left::new();
    assert!(left.checkpoints() > 2);
    // Nobody can reset the offsets of a group while a transaction has some pending; the daemon that starts ends it.
    let mut keeper = Keeper::new(&left.stage.scene);
    keeper.start(&OFTEN);
    keeper.until_it_listens().unwrap();
    std::thread::sleep(Duration::from_secs(1));
    keeper.terminate().unwrap();
    let cluster = left.stage.cluster;
    let (group, topic) = (left.stage.name.clone(), left.stage.input());
    cluster.consumer_groups(&["--reset-offsets", "--group", &group, "--topic", &topic, "--to-earliest", "--execute"]);
    left.require_refusal("no transaction is known of");
}

pub fn delivery_may_be_changed_and_changed_back() {
    let mut left = Left::new();
    let path = left.stage.scene.path("pipeline.toml");
    let exactly = fs::read_to_string(&path).unwrap();
    let at_least = exactly.replace("delivery = \"exactly_once\"", "delivery = \"at_least_once\"");
    // It is stopped, not killed, so nothing repeats.
    let mut keeper = Keeper::new(&left.stage.scene);
    for text in [&at_least, &exactly, &at_least, &exactly] {
        fs::write(&path, text).unwrap();
        keeper.start(&OFTEN);
        left.feed.write(70);
        keeper.wait("all records", || left.follower.has_kept(&left.feed)).unwrap();
        keeper.terminate().unwrap();
    }
    let mut outcome = Outcome::default();
    keeper.finish().unwrap();
    left.follower.read();
    left.feed.compare("what a reader sees", &left.follower.seen, &mut outcome);
    println!("{outcome:?}");
    assert_eq!((outcome.lost, outcome.violations.len()), (0, 0), "{}", left.stage.scene.told());
}
