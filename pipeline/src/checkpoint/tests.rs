//! Checkpoints on a real disk.

use super::*;
use crate::store::Disk;

#[test]
fn what_was_prepared_and_not_decided_is_gone_afterwards() {
    let folder = tempfile::tempdir().unwrap();
    let (mut checkpoints, ..) = open(folder.path());
    assert!(checkpoints.settle(Decided::Nothing).unwrap().is_none());
    for piece in ["one", "twos", "threes"] {
        let epoch = checkpoints.next_epoch();
        checkpoints.write(epoch, snapshot(1, piece), Timestamp(0)).unwrap();
    }
    let (mut checkpoints, restored, _) = open(folder.path());
    assert_eq!(restored.epoch, 3);
    let restored = checkpoints.settle(Decided::Epoch(2)).unwrap().expect("it goes back");
    assert_eq!((restored.epoch, &restored.operators["op"].1[&1][..]), (2, &b"twos"[..]));
    assert_eq!(checkpoints.next_epoch(), 4, "numbers are not used twice");
    checkpoints.write(4, snapshot(1, "fours!"), Timestamp(0)).unwrap();
    let (mut checkpoints, restored, _) = open(folder.path());
    assert_eq!((restored.epoch, &restored.operators["op"].1[&1][..]), (4, &b"fours!"[..]));
    assert!(checkpoints.settle(Decided::Epoch(3)).is_err(), "it is not there any more");
    let names = Disk.list(&folder.path().join("checkpoints")).unwrap();
    assert!(!names.iter().any(|name| name.ends_with("003")), "{names:?}");
}

fn snapshot(group: u16, piece: &str) -> Snapshot {
    let mut snapshot = Snapshot::default();
    let position = LanePosition { position: Json::from(piece.len()), seen: 1 };
    snapshot.sources.insert("in".into(), BTreeMap::from([(String::new(), position)]));
    snapshot.operators.insert("op".into(), (1, BTreeMap::from([(group, Bytes::copy_from_slice(piece.as_bytes()))])));
    snapshot.sinks.insert("out".into(), Bytes::from(format!("sink {piece}")));
    snapshot
}

fn open(folder: &Path) -> (Checkpoints, Restored, Vec<Found>) {
    Checkpoints::open(Arc::new(Disk), folder).unwrap()
}

#[test]
fn pieces_that_did_not_change_come_from_older_segments() {
    let folder = tempfile::tempdir().unwrap();
    let (mut checkpoints, restored, _) = open(folder.path());
    assert_eq!(restored.epoch, 0);
    for (group, piece) in [(1, "one"), (2, "two"), (1, ""), (3, "three"), (4, "four"), (5, "five")] {
        let epoch = checkpoints.next_epoch();
        checkpoints.write(epoch, snapshot(group, piece), Timestamp(0)).unwrap();
    }
    let (mut checkpoints, restored, passed_over) = open(folder.path());
    assert_eq!((restored.epoch, passed_over.len()), (6, 0));
    let groups: Vec<_> = restored.operators["op"].1.keys().copied().collect();
    assert_eq!(groups, [2, 3, 4, 5], "an empty piece removes its group");
    assert_eq!(restored.sinks["out"], "sink five");
    assert_eq!(restored.sources["in"][""].position, 4);
    assert_eq!(checkpoints.next_epoch(), 7);
    let mut names = Disk.list(&folder.path().join("checkpoints")).unwrap();
    names.retain(|name| name.starts_with("manifest"));
    assert_eq!(names.len(), KEPT);
}

#[test]
fn a_damaged_epoch_is_passed_over_with_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let (mut checkpoints, ..) = open(folder.path());
    for piece in ["one", "two"] {
        let epoch = checkpoints.next_epoch();
        checkpoints.write(epoch, snapshot(1, piece), Timestamp(0)).unwrap();
    }
    let path = folder.path().join("checkpoints/segment-000000000002");
    let mut content = std::fs::read(&path).unwrap();
    *content.last_mut().unwrap() ^= 1;
    std::fs::write(&path, content).unwrap();
    let (_, restored, passed_over) = open(folder.path());
    assert_eq!(restored.epoch, 1);
    assert_eq!(restored.operators["op"].1[&1], "one");
    assert!(passed_over[0].damage.as_ref().unwrap().contains("checksum does not match"), "{passed_over:?}");
}

#[test]
fn what_is_not_gone_on_from_is_in_no_later_epoch_and_what_is_migrated_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let (mut checkpoints, ..) = open(folder.path());
    let epoch = checkpoints.next_epoch();
    checkpoints.write(epoch, snapshot(1, "one"), Timestamp(0)).unwrap();
    let (mut checkpoints, mut restored, _) = open(folder.path());
    let verdict = |role, name: &str, fate| Verdict { role, name: name.to_owned(), fate };
    let verdicts = [
        verdict(Role::Source, "in", Fate::Lost(String::new())),
        verdict(Role::Operator, "op", Fate::Migrated { from: 1 }),
        verdict(Role::Sink, "out", Fate::Gone),
    ];
    restored.forget(&verdicts);
    checkpoints.adopt(Facts::new(), &verdicts);
    assert!(restored.sources.is_empty() && restored.sinks.is_empty());
    assert_eq!(restored.operators["op"].1[&1], "one", "it is handed to the operator");
    assert!(checkpoints.wants_full());
    let mut whole = Snapshot::default();
    whole.operators.insert("op".into(), (2, BTreeMap::from([(5, Bytes::from_static(b"new"))])));
    let epoch = checkpoints.next_epoch();
    checkpoints.write(epoch, whole, Timestamp(0)).unwrap();
    assert!(!checkpoints.wants_full());
    let (_, restored, _) = open(folder.path());
    assert!(restored.sources.is_empty() && restored.sinks.is_empty());
    assert_eq!(
        restored.operators["op"],
        (2, BTreeMap::from([(5, Bytes::from_static(b"new"))])),
        "none of the older version"
    );
}

#[test]
fn what_could_not_be_written_is_written_with_the_next_epoch() {
    let folder = tempfile::tempdir().unwrap();
    let (mut checkpoints, ..) = open(folder.path());
    let epoch = checkpoints.next_epoch();
    // A folder in the segment's place makes writing it fail.
    let blocker = folder.path().join(format!("checkpoints/segment-{epoch:012}"));
    std::fs::create_dir(&blocker).unwrap();
    assert!(checkpoints.write(epoch, snapshot(1, "one"), Timestamp(0)).is_err());
    let epoch = checkpoints.next_epoch();
    checkpoints.write(epoch, Snapshot::default(), Timestamp(0)).unwrap();
    std::fs::remove_dir(&blocker).unwrap();
    let (_, restored, _) = open(folder.path());
    assert_eq!((restored.epoch, &restored.operators["op"].1[&1][..]), (2, &b"one"[..]));
}
