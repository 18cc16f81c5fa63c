//! Chains of checkpoints that change hands, on a disk, on a simulated one and on an object store in memory.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use object_store::memory::InMemory;

use super::*;
use crate::checkpoint::{CheckpointError, Checkpoints, Decided, LanePosition, Restored, Snapshot};
use crate::store::object::ObjectStorage;
use crate::store::simulated::{Random, SimulatedDisk};
use crate::store::{Append, Disk};
use crate::time::Timestamp;

const LANE: &str = "lanes/topic-7";

fn in_memory() -> Arc<dyn Storage> {
    Arc::new(ObjectStorage::new(Arc::new(InMemory::new())).unwrap())
}

/// Runs a story on each kind of storage.
fn on_each(story: impl Fn(Arc<dyn Storage>, &Path)) {
    let folder = tempfile::tempdir().unwrap();
    story(Arc::new(Disk), &folder.path().join(LANE));
    story(Arc::new(SimulatedDisk::default()), Path::new(LANE));
    story(in_memory(), Path::new(LANE));
}

/// What a pipeline has come to: by key group, the sink's state, and the source's position.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Content {
    groups: BTreeMap<u16, String>,
    sink: String,
    position: u64,
}

impl Content {
    fn of(restored: &Restored) -> Self {
        let groups = restored.operators.get("count").map(|(_, groups)| groups.clone()).unwrap_or_default();
        let position = restored.sources.get("in").map_or(0, |lanes| lanes[""].position.as_u64().unwrap());
        Self {
            groups: groups.into_iter().map(|(group, piece)| (group, text(&piece))).collect(),
            sink: restored.sinks.get("out").map(text).unwrap_or_default(),
            position,
        }
    }

    /// Goes on by a record: what has changed is in the snapshot. An empty piece removes its group.
    fn step(&mut self, group: u16, piece: &str, is_sent: bool) -> Snapshot {
        self.position += 1;
        let mut snapshot = Snapshot::default();
        let position = LanePosition { position: self.position.into(), seen: 0 };
        snapshot.sources.insert("in".to_owned(), BTreeMap::from([(String::new(), position)]));
        match piece {
            "" => drop(self.groups.remove(&group)),
            piece => drop(self.groups.insert(group, piece.to_owned())),
        }
        let pieces = BTreeMap::from([(group, Bytes::from(piece.to_owned()))]);
        snapshot.operators.insert("count".to_owned(), (1, pieces));
        if is_sent {
            self.sink = format!("sent {}", self.position);
            snapshot.sinks.insert("out".to_owned(), Bytes::from(self.sink.clone()));
        }
        snapshot
    }
}

fn text(bytes: &Bytes) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

struct Owner {
    checkpoints: Checkpoints,
    content: Content,
}

impl Owner {
    fn take(storage: &Arc<dyn Storage>, folder: &Path, who: &str) -> Self {
        let term = Term::take(&**storage, folder, who).unwrap();
        let (checkpoints, restored, passed_over) = Checkpoints::open_term(Arc::clone(storage), folder, term).unwrap();
        assert_eq!(passed_over, []);
        Self { checkpoints, content: Content::of(&restored) }
    }

    fn write(&mut self, group: u16, piece: &str) -> Result<u64, CheckpointError> {
        let snapshot = self.content.step(group, piece, group == 0);
        let epoch = self.checkpoints.next_epoch();
        self.checkpoints.write(epoch, snapshot, Timestamp(0)).map(|_| epoch)
    }
}

fn names(storage: &Arc<dyn Storage>, folder: &Path) -> Vec<String> {
    storage.list(&folder.join(FOLDER)).unwrap()
}

/// Who has it, if it was taken from somebody.
fn superseded(error: CheckpointError) -> (u64, String) {
    match error {
        CheckpointError::Superseded { term, by } => (term, by),
        error => panic!("{error}"),
    }
}

#[test]
fn terms_rise_and_tell_who_has_taken_them() {
    on_each(|storage, folder| {
        assert_eq!(newest(&*storage, folder).unwrap(), None);
        for (number, who) in [(1, "alpha"), (2, "beta"), (3, "alpha")] {
            assert_eq!(Term::take(&*storage, folder, who).unwrap().number(), number);
            assert_eq!(newest(&*storage, folder).unwrap(), Some((number, who.to_owned())));
        }
        assert_eq!(names(&storage, folder), ["term-00000001", "term-00000002", "term-00000003"]);
    });
}

#[test]
fn of_those_who_take_at_once_each_has_a_term_of_its_own() {
    on_each(|storage, folder| {
        let mut taken: Vec<Term> = std::thread::scope(|scope| {
            let takers: Vec<_> =
                (0..8).map(|_| scope.spawn(|| Term::take(&*storage, folder, "one of many").unwrap())).collect();
            takers.into_iter().map(|taker| taker.join().unwrap()).collect()
        });
        taken.sort_unstable();
        taken.dedup();
        assert_eq!(taken.len(), 8);
    });
}

#[test]
fn epochs_of_a_term_are_greater_than_all_of_the_terms_before_also_where_only_they_are_left() {
    on_each(|storage, folder| {
        let mut first = Owner::take(&storage, folder, "alpha");
        assert_eq!(first.write(1, "one").unwrap(), 1_000_000_000_001);
        storage.remove(&folder.join(FOLDER).join("term-00000001")).unwrap();
        assert_eq!(newest(&*storage, folder).unwrap(), Some((1, "another daemon".to_owned())));
        let mut second = Owner::take(&storage, folder, "beta");
        assert_eq!(second.write(2, "two").unwrap(), 2_000_000_000_001);
        assert_eq!(Term::of(second.checkpoints.epoch()), 2);
    });
}

#[test]
fn who_was_followed_is_told_by_whom_and_writes_nothing() {
    on_each(|storage, folder| {
        let mut first = Owner::take(&storage, folder, "alpha");
        first.write(1, "one").unwrap();
        let second = Owner::take(&storage, folder, "beta");
        assert_eq!(second.content, first.content);
        let before = names(&storage, folder);
        assert_eq!(superseded(first.write(1, "two").unwrap_err()), (2, "beta".to_owned()));
        assert_eq!(names(&storage, folder), before);
        // One who comes to read only after another has come is told the same.
        let term = Term::take(&*storage, folder, "gamma").unwrap();
        Term::take(&*storage, folder, "delta").unwrap();
        let late = Checkpoints::open_term(Arc::clone(&storage), folder, term).err().unwrap();
        assert_eq!(superseded(late), (4, "delta".to_owned()));
    });
}

#[test]
fn the_first_epoch_of_a_term_needs_nothing_of_the_terms_before() {
    on_each(|storage, folder| {
        let mut first = Owner::take(&storage, folder, "alpha");
        for (group, piece) in [(0, "zero"), (1, "one"), (2, "two"), (1, "")] {
            first.write(group, piece).unwrap();
        }
        let mut second = Owner::take(&storage, folder, "beta");
        // One group changes, the sink says nothing.
        second.write(2, "more").unwrap();
        assert!(!second.checkpoints.wants_full());
        for name in names(&storage, folder) {
            if is_earlier(&name, Term(2)) {
                storage.remove(&folder.join(FOLDER).join(name)).unwrap();
            }
        }
        assert_eq!(names(&storage, folder).len(), 3, "its term, its segment and its manifest are left");
        let third = Owner::take(&storage, folder, "gamma");
        assert_eq!(third.content, second.content);
        assert_eq!((third.content.sink.as_str(), third.content.groups.len()), ("sent 1", 2));
    });
}

#[test]
fn files_of_earlier_terms_are_deleted_once_there_are_enough_epochs_of_the_own() {
    on_each(|storage, folder| {
        let mut first = Owner::take(&storage, folder, "alpha");
        for group in 0..5 {
            first.write(group, "piece").unwrap();
        }
        Term::take(&*storage, folder, "one that wrote nothing").unwrap();
        let mut third = Owner::take(&storage, folder, "gamma");
        let before = names(&storage, folder);
        for number in 1..3 {
            third.write(0, "piece").unwrap();
            assert_eq!(names(&storage, folder).len(), before.len() + 2 * number);
        }
        third.write(1, "piece").unwrap();
        let mut left = names(&storage, folder);
        left.retain(|name| !name.starts_with("segment"));
        let manifests = ["manifest-3000000000001", "manifest-3000000000002", "manifest-3000000000003"];
        assert_eq!(left[..3], manifests);
        assert_eq!(left[3..], ["term-00000003"]);
        assert_eq!(Owner::take(&storage, folder, "delta").content, third.content);
    });
}

#[test]
fn a_damaged_epoch_is_passed_over_and_one_that_cannot_be_read_now_is_not() {
    let disk = SimulatedDisk::default();
    let storage: Arc<dyn Storage> = Arc::new(disk.clone());
    let folder = Path::new(LANE);
    let mut first = Owner::take(&storage, folder, "alpha");
    first.write(1, "one").unwrap();
    let before = first.content.clone();
    first.write(1, "two").unwrap();
    let segment = folder.join(FOLDER).join("segment-1000000000002");

    let world = World::new(Arc::clone(&storage));
    let unreadable = Through::new(&world, None);
    *unreadable.unreadable.lock().unwrap() = Some(segment.clone());
    let term = Term::take(&*storage, folder, "beta").unwrap();
    let error = Checkpoints::open_term(unreadable, folder, term).err().unwrap();
    assert!(matches!(&error, CheckpointError::Io { path, .. } if path == &segment), "{error}");

    let mut content = storage.read(&segment).unwrap();
    *content.last_mut().unwrap() ^= 1;
    disk.replace(&segment, content);
    let term = Term::take(&*storage, folder, "gamma").unwrap();
    let (mut checkpoints, restored, passed_over) = Checkpoints::open_term(storage, folder, term).unwrap();
    assert_eq!((passed_over.len(), passed_over[0].epoch), (1, 1_000_000_000_002));
    assert_eq!(Content::of(&restored), before);
    assert_eq!(checkpoints.next_epoch(), 3_000_000_000_001);
}

#[test]
fn a_storage_that_makes_what_is_there_already_is_found_out() {
    on_each(|storage, folder| {
        for _ in 0..2 {
            check(&*storage, folder).unwrap();
        }
        assert_eq!(newest(&*storage, folder).unwrap(), None);
    });
    let careless = Through { is_careless: true, ..Through::of(World::new(in_memory()), None) };
    let error = check(&careless, Path::new("shared")).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::Unsupported, "{error}");
}

#[test]
fn what_was_prepared_and_not_decided_is_gone_back_behind_and_the_next_epoch_is_whole_all_the_same() {
    on_each(|storage, folder| {
        let mut first = Owner::take(&storage, folder, "alpha");
        first.checkpoints.settle(Decided::Nothing).unwrap();
        for group in 0..3 {
            first.write(group, "decided").unwrap();
        }
        let (decided, before) = (first.checkpoints.epoch(), first.content.clone());
        first.write(1, "undecided").unwrap();
        // One comes, prepares an epoch of its own, and dies before it is decided.
        let mut second = Owner::take(&storage, folder, "beta");
        let restored = second.checkpoints.settle(Decided::Epoch(decided)).unwrap().expect("it goes back");
        second.content = Content::of(&restored);
        assert_eq!(second.content, before);
        second.write(2, "undecided either").unwrap();
        let mut third = Owner::take(&storage, folder, "gamma");
        let restored = third.checkpoints.settle(Decided::Epoch(decided)).unwrap().expect("it goes back");
        third.content = Content::of(&restored);
        assert_eq!(third.content, before);
        third.write(4, "more").unwrap();
        for name in names(&storage, folder).into_iter().filter(|name| is_earlier(name, Term(3))) {
            storage.remove(&folder.join(FOLDER).join(name)).unwrap();
        }
        let mut fourth = Owner::take(&storage, folder, "delta");
        assert!(fourth.checkpoints.settle(Decided::Epoch(third.checkpoints.epoch())).unwrap().is_none());
        assert_eq!(fourth.content, third.content);
    });
}

#[test]
fn what_was_decided_after_it_was_looked_is_found() {
    on_each(|storage, folder| {
        let mut first = Owner::take(&storage, folder, "alpha");
        first.checkpoints.settle(Decided::Nothing).unwrap();
        first.write(1, "one").unwrap();
        let world = World::new(Arc::clone(&storage));
        let term = Term::take(&*storage, folder, "beta").unwrap();
        // The first has looked before the second took its term, and now decides.
        let blind = Through::new(&world, Some(Term(1)));
        let (checkpoints, restored, _) = Checkpoints::open_term(blind, folder, Term(1)).unwrap();
        let mut first = Owner { checkpoints, content: Content::of(&restored) };
        let (mut checkpoints, restored, _) = Checkpoints::open_term(Arc::clone(&storage), folder, term).unwrap();
        first.checkpoints.settle(Decided::Epoch(restored.epoch)).unwrap();
        // Another number than the epoch that is there, as if it had gone on itself.
        first.checkpoints.next_epoch();
        let decided = first.write(1, "two").unwrap();
        let restored = checkpoints.settle(Decided::Epoch(decided)).unwrap().expect("it goes on");
        assert_eq!(Content::of(&restored), first.content);
    });
}

#[test]
fn a_damaged_epoch_is_passed_over_when_nobody_decides_and_not_when_it_was_decided() {
    let disk = SimulatedDisk::default();
    let storage: Arc<dyn Storage> = Arc::new(disk.clone());
    let folder = Path::new(LANE);
    let mut first = Owner::take(&storage, folder, "alpha");
    first.checkpoints.settle(Decided::ByItself).unwrap();
    first.write(1, "one").unwrap();
    let before = first.content.clone();
    let damaged = first.write(1, "two").unwrap();
    let segment = folder.join(FOLDER).join(format!("segment-{damaged}"));
    let mut content = storage.read(&segment).unwrap();
    *content.last_mut().unwrap() ^= 1;
    disk.replace(&segment, content);
    for (decided, is_fine) in [(Decided::ByItself, true), (Decided::Epoch(damaged), false)] {
        let term = Term::take(&*storage, folder, "beta").unwrap();
        let (mut checkpoints, restored, passed_over) =
            Checkpoints::open_term(Arc::clone(&storage), folder, term).unwrap();
        assert_eq!((passed_over.len(), Content::of(&restored)), (1, before.clone()));
        let settled = checkpoints.settle(decided);
        assert_eq!(settled.is_ok(), is_fine);
        assert!(settled.is_ok_and(|settled| settled.is_none()) || !is_fine);
    }
    // What cannot be read now is no reason to give anything up.
    let through = Through::new(&World::new(Arc::clone(&storage)), None);
    let term = Term::take(&*storage, folder, "gamma").unwrap();
    let (mut checkpoints, ..) = Checkpoints::open_term(Arc::<Through>::clone(&through), folder, term).unwrap();
    *lock(&through.unreadable) = Some(folder.join(FOLDER).join(format!("manifest-{damaged}")));
    let error = checkpoints.settle(Decided::Epoch(damaged)).err().unwrap();
    assert!(matches!(error, CheckpointError::Io { .. }), "{error}");
}

/// What is called before each operation on a storage.
type Before = Box<dyn FnMut(&Arc<Mutex<World>>) + Send>;

/// A storage and those who are at it, for stories in which anything happens between any two operations.
struct World {
    storage: Arc<dyn Storage>,
    before: Option<Before>,
}

impl World {
    fn new(storage: Arc<dyn Storage>) -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self { storage, before: None }))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap()
}

/// The storage as one of many sees it.
struct Through {
    world: Arc<Mutex<World>>,
    /// Of this one, nothing that later terms leave in a folder is seen: a listing that is kept for too long.
    blind: Option<Term>,
    /// After so many operations its user is dead.
    operations: Mutex<Option<u64>>,
    unreadable: Mutex<Option<PathBuf>>,
    is_careless: bool,
}

impl std::fmt::Debug for Through {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Through")
    }
}

impl Through {
    fn of(world: Arc<Mutex<World>>, blind: Option<Term>) -> Self {
        Self { world, blind, operations: Mutex::new(None), unreadable: Mutex::new(None), is_careless: false }
    }

    fn new(world: &Arc<Mutex<World>>, blind: Option<Term>) -> Arc<Self> {
        Arc::new(Self::of(Arc::clone(world), blind))
    }

    /// Lets others do something, and then gives the storage.
    fn operate(&self) -> io::Result<Arc<dyn Storage>> {
        if let Some(left) = &mut *lock(&self.operations) {
            if *left == 0 {
                return Err(io::Error::other("it is dead"));
            }
            *left -= 1;
        }
        let before = lock(&self.world).before.take();
        if let Some(mut before) = before {
            before(&self.world);
            lock(&self.world).before = Some(before);
        }
        Ok(Arc::clone(&lock(&self.world).storage))
    }
}

impl Storage for Through {
    fn write_new(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        self.operate()?.write_new(path, content)
    }

    fn create_new(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let storage = self.operate()?;
        if self.is_careless { storage.write_new(path, content) } else { storage.create_new(path, content) }
    }

    fn is_atomic(&self) -> bool {
        lock(&self.world).storage.is_atomic()
    }

    fn append(&self, _: &Path) -> io::Result<Box<dyn Append>> {
        unreachable!("nothing of a chain grows")
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        if lock(&self.unreadable).as_deref() == Some(path) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.operate()?.read(path)
    }

    fn read_at(&self, path: &Path, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        self.operate()?.read_at(path, offset, length)
    }

    fn cut(&self, _: &Path, _: u64) -> io::Result<()> {
        unreachable!("nothing of a chain is made shorter")
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.operate()?.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.operate()?.remove(path)
    }

    fn sync_dir(&self, folder: &Path) -> io::Result<()> {
        self.operate()?.sync_dir(folder)
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        let mut names = self.operate()?.list(folder)?;
        if let Some(term) = self.blind {
            names.retain(|name| of(name).is_none_or(|of| of <= term.number()));
        }
        Ok(names)
    }

    fn create_dir(&self, folder: &Path) -> io::Result<()> {
        self.operate()?.create_dir(folder)
    }
}

#[test]
fn a_term_that_was_had_and_deleted_meanwhile_is_not_taken_again() {
    on_each(|storage, folder| {
        let world = World::new(Arc::clone(&storage));
        Owner::take(&storage, folder, "alpha").write(0, "piece").unwrap();
        let (others, mut operations) = (folder.to_owned(), 0);
        lock(&world).before = Some(Box::new(move |world| {
            operations += 1;
            // Between the first look and the attempt.
            if operations == 3 {
                let storage = Arc::clone(&lock(world).storage);
                for who in ["beta", "gamma"] {
                    let mut owner = Owner::take(&storage, &others, who);
                    for group in 0..3 {
                        owner.write(group, "piece").unwrap();
                    }
                }
                assert!(!names(&storage, &others).contains(&"term-00000002".to_owned()));
            }
        }));
        let term = Term::take(&*Through::new(&world, None), folder, "slow").unwrap();
        assert_eq!(term.number(), 4, "2 is free again, and worth nothing");
    });
}

#[test]
fn what_is_deleted_while_it_is_read_is_not_taken_for_damage() {
    on_each(|storage, folder| {
        let world = World::new(Arc::clone(&storage));
        let term = Term::take(&*storage, folder, "alpha").unwrap();
        let (checkpoints, ..) = Checkpoints::open_term(Through::new(&world, Some(term)), folder, term).unwrap();
        let mut first = Owner { checkpoints, content: Content::default() };
        for group in 0..3 {
            first.write(group, "piece").unwrap();
        }
        let term = Term::take(&*storage, folder, "beta").unwrap();
        let mut operations = 0;
        lock(&world).before = Some(Box::new(move |_| {
            operations += 1;
            // Between the listing and the reading: none of what was listed is left.
            if operations == 2 {
                for group in 0..3 {
                    first.write(group, "other").unwrap();
                }
            }
        }));
        let (_, restored, passed_over) = Checkpoints::open_term(Through::new(&world, None), folder, term).unwrap();
        assert_eq!((restored.epoch, passed_over), (1_000_000_000_006, Vec::new()));
        assert_eq!(Content::of(&restored).groups[&2], "other");
    });
}

/// Who takes part in a random story, and what is known of what they have written.
struct Story {
    random: Random,
    owners: Vec<Participant>,
    /// What each epoch that somebody began to write holds.
    intended: BTreeMap<u64, Content>,
    /// The greatest epoch whose writing came to its end.
    completed: u64,
    /// How many do something in the middle of what others do.
    depth: usize,
    /// What has happened, to see that it happens at all.
    counts: BTreeMap<&'static str, u64>,
}

struct Participant {
    owner: Owner,
    term: Term,
    through: Arc<Through>,
}

impl Story {
    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// Any of the participants; there are some.
    fn any(&mut self) -> usize {
        self.random.below(self.owners.len() as u64) as usize
    }
}

/// Somebody does something.
fn act(world: &Arc<Mutex<World>>, story: &Arc<Mutex<Story>>) {
    let choice = {
        let mut story = lock(story);
        story.depth += 1;
        let choice = story.random.below(10);
        if story.owners.is_empty() { 0 } else { choice }
    };
    match choice {
        0 | 1 => take_over(world, story),
        2 => {
            let mut story = lock(story);
            let at = story.any();
            story.owners.swap_remove(at);
        }
        _ => write(story),
    }
    lock(story).depth -= 1;
}

fn take_over(world: &Arc<Mutex<World>>, story: &Arc<Mutex<Story>>) {
    let folder = Path::new(LANE);
    let seeing = Through::new(world, None);
    let term = Term::take(&*seeing, folder, "somebody").unwrap();
    let is_blind = lock(story).random.one_in(3);
    let through = Through::new(world, is_blind.then_some(term));
    let completed = lock(story).completed;
    // Who is told that he was followed is not blind; and nobody is before he has read.
    let opened = Checkpoints::open_term(Arc::<Through>::clone(&through), folder, term);
    let mut story = lock(story);
    match opened {
        Ok((checkpoints, restored, passed_over)) => {
            assert_eq!(passed_over, [], "term {}", term.number());
            let (epoch, content) = (restored.epoch, Content::of(&restored));
            assert!(epoch >= completed, "term {} goes on from {epoch}, and {completed} is complete", term.number());
            assert_eq!(content, story.intended.get(&epoch).cloned().unwrap_or_default(), "epoch {epoch}");
            story.count("taken over");
            if story.owners.len() == 4 {
                story.owners.remove(0);
            }
            story.owners.push(Participant { owner: Owner { checkpoints, content }, term, through });
        }
        Err(error) => {
            let (by, _) = superseded(error);
            assert!(by > term.number());
            story.count("followed before it has begun");
        }
    }
}

fn write(story: &Arc<Mutex<Story>>) {
    let mut told = lock(story);
    let at = told.any();
    // Out of the story for as long as it is in the middle of something.
    let mut participant = told.owners.swap_remove(at);
    let group = told.random.below(5) as u16;
    let piece = if told.random.one_in(4) { String::new() } else { format!("piece {}", told.random.below(1000)) };
    let dies_after = told.random.one_in(12).then(|| told.random.below(8));
    *lock(&participant.through.operations) = dies_after;
    let owner = &mut participant.owner;
    let epoch = owner.checkpoints.next_epoch();
    let snapshot = owner.content.step(group, &piece, group == 0);
    told.intended.insert(epoch, owner.content.clone());
    drop(told);
    let outcome = owner.checkpoints.write(epoch, snapshot, Timestamp(0));
    let mut told = lock(story);
    match outcome {
        Ok(_) => {
            // One that died while it was deleting has written its epoch.
            let is_late = told.completed > epoch;
            told.count(if is_late { "written too late" } else { "written" });
            told.completed = told.completed.max(epoch);
            if dies_after.is_none() {
                told.owners.push(participant);
            }
        }
        Err(CheckpointError::Superseded { term, .. }) => {
            assert!(term > participant.term.number());
            told.count("followed");
        }
        Err(CheckpointError::Io { .. }) if dies_after.is_some() => told.count("died"),
        // What it was writing was deleted by an owner of a later term, whom it does not see.
        Err(CheckpointError::Io { error, .. })
            if participant.through.blind.is_some() && error.kind() == io::ErrorKind::NotFound =>
        {
            assert!(told.completed > epoch);
            told.count("swept away");
        }
        Err(error) => panic!("{error}"),
    }
}

/// A random story; gives what has happened.
fn tell(seed: u64, storage: Arc<dyn Storage>, power: Option<SimulatedDisk>) -> BTreeMap<&'static str, u64> {
    println!("seed {seed}");
    let world = World::new(storage);
    let story = Arc::new(Mutex::new(Story {
        random: Random(seed),
        owners: Vec::new(),
        intended: BTreeMap::new(),
        completed: 0,
        depth: 0,
        counts: BTreeMap::new(),
    }));
    // While one acts in between, the others of the same moment do nothing in between: the hook is taken out.
    let between = Arc::clone(&story);
    lock(&world).before = Some(Box::new(move |world| {
        let is_time = {
            let mut story = lock(&between);
            story.depth == 1 && story.random.one_in(8)
        };
        if is_time {
            act(world, &between);
        }
    }));
    let mut power = power;
    for _ in 0..60 {
        act(&world, &story);
        if let Some(disk) = &mut power
            && lock(&story).random.one_in(20)
        {
            let mut story = lock(&story);
            let mut survived: Vec<usize> = (0..disk.pending()).filter(|_| story.random.one_in(2)).collect();
            story.random.shuffle(&mut survived);
            *disk = disk.after_crash(&survived, Some(&mut story.random));
            lock(&world).storage = Arc::new(disk.clone());
            story.count("power lost");
        }
    }
    take_over(&world, &story);
    let counts = lock(&story).counts.clone();
    lock(&world).before = None;
    counts
}

fn tell_many(seeds: std::ops::Range<u64>, storage: impl Fn() -> (Arc<dyn Storage>, Option<SimulatedDisk>)) {
    let mut all: BTreeMap<&str, u64> = BTreeMap::new();
    for seed in seeds {
        let (storage, power) = storage();
        for (what, count) in tell(seed, storage, power) {
            *all.entry(what).or_default() += count;
        }
    }
    println!("{all:?}");
    for what in ["taken over", "followed before it has begun", "written", "written too late", "followed", "died"] {
        assert!(all.get(what).is_some_and(|count| *count > 10), "{what} hardly happens: {all:?}");
    }
}

#[test]
fn what_is_restored_is_what_the_newest_term_has_completed_whatever_the_others_do() {
    tell_many(0..100, || {
        let disk = SimulatedDisk::default();
        (Arc::new(disk.clone()), Some(disk))
    });
}

#[test]
fn what_is_restored_from_an_object_store_is_what_the_newest_term_has_completed() {
    tell_many(0..30, || (in_memory(), None));
}
