//! Checkpoints: one epoch holds every source position, every operator's state and every sink's, for the whole process.
//!
//! `checkpoints/segment-N` holds the pieces of state that changed in epoch N; `checkpoints/manifest-N` names all pieces of the
//! epoch, most of them in older segments. The rename of the manifest, made durable, is what makes the epoch the truth.
//! What to do with what is found at start is decided by [`decide`] and [`settle`], which touch nothing.
//!
//! A chain of checkpoints in a place that several daemons share has owners one after the other, each with a [`Term`]. The
//! first epoch of a term is whole in its own segment, and an owner deletes nothing of later terms, so whatever somebody does
//! who does not know yet that he was followed, what the newest owner has written stays as it is.

mod decision;
mod reading;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

pub use self::decision::{Decided, Found, Recovery, decide, settle};
pub use self::reading::{Epoch, audit, epochs, read_epoch, verify};
use self::reading::{load, read_manifest};
use crate::evolution::{Facts, Fate, Role, Verdict};
use crate::fault::{self, Defect};
use crate::ledger::Ledger;
use crate::store::term::{self, Term};
use crate::store::{Damaged, FileWriter, Kind, Storage};
use crate::time::Timestamp;

/// The format of manifests and segments; a directory of another is refused.
const FORMAT: u32 = 1;
/// How many complete epochs are kept: a damaged one can be passed over.
const KEPT: usize = 3;
/// How often the checkpoints of a chain are looked at anew because somebody deleted some while they were read.
const LOOKS: usize = 5;

/// What a manifest says.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Manifest {
    format: u32,
    epoch: u64,
    sources: BTreeMap<String, BTreeMap<String, LanePosition>>,
    operators: BTreeMap<String, Pieces>,
    sinks: BTreeMap<String, Place>,
    /// What has become of all records by then.
    #[serde(default)]
    ledger: Option<Ledger>,
    /// What gives the state its meaning; `None`: written by a version that did not say.
    #[serde(default)]
    components: Option<Facts>,
    /// By source: the first record of its journal that is not part of the epoch.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    journals: BTreeMap<String, u64>,
    /// By sink whose buffer can be on disk: what is in it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    buffers: BTreeMap<String, Buffer>,
    /// A [`Decider`](crate::decider::Decider) tells whether the epoch is the truth.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    is_prepared: bool,
    /// When it was written, for people.
    written_at: String,
}

/// Where reading of a lane goes on, and what its event time had come to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LanePosition {
    pub position: Json,
    /// The greatest event time seen, in nanoseconds since 1970.
    pub seen: i64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Pieces {
    version: u16,
    groups: BTreeMap<u16, Place>,
}

/// What the buffer of a sink holds behind what the sink's state knows of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Buffer {
    /// The places in its log from which on the sink is handed everything again, and up to which.
    pub from: u64,
    pub to: u64,
    /// How many records stand between.
    pub records: u64,
    /// The number of the sink's barrier that its state is of; its barriers are numbered by themselves.
    pub barrier: u64,
}

/// Where a piece of state stands.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Place {
    segment: u64,
    offset: u64,
    length: u64,
}

/// What an epoch holds, as collected from the tasks.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub sources: BTreeMap<String, BTreeMap<String, LanePosition>>,
    /// By operator: its state version, and the pieces that changed. An empty piece: nothing is left of the group.
    pub operators: BTreeMap<String, (u16, BTreeMap<u16, Bytes>)>,
    /// By sink: its state where it changed.
    pub sinks: BTreeMap<String, Bytes>,
    /// `None`: as in the epoch before.
    pub ledger: Option<Ledger>,
    /// By source that has one: where its journal goes on.
    pub journals: BTreeMap<String, u64>,
    pub buffers: BTreeMap<String, Buffer>,
}

impl Snapshot {
    /// Takes out what was said of a component.
    fn forget(&mut self, role: Role, name: &str) {
        match role {
            Role::Source => {
                self.sources.remove(name);
                self.journals.remove(name);
            }
            Role::Operator => drop(self.operators.remove(name)),
            Role::Sink => drop(self.sinks.remove(name)),
        }
    }

    /// Lays a later snapshot over this one.
    fn overlay(&mut self, later: Self) {
        self.sources.extend(later.sources);
        for (operator, (version, pieces)) in later.operators {
            let entry = self.operators.entry(operator).or_default();
            entry.0 = version;
            entry.1.extend(pieces);
        }
        self.sinks.extend(later.sinks);
        self.ledger = later.ledger.or(self.ledger.take());
        self.journals.extend(later.journals);
        self.buffers.extend(later.buffers);
    }
}

/// What a pipeline starts from.
#[derive(Clone, Debug, Default)]
pub struct Restored {
    /// 0 on a fresh start.
    pub epoch: u64,
    pub sources: BTreeMap<String, BTreeMap<String, LanePosition>>,
    pub operators: BTreeMap<String, (u16, BTreeMap<u16, Bytes>)>,
    pub sinks: BTreeMap<String, Bytes>,
    /// `None`: the epoch was written before there were ledgers.
    pub ledger: Option<Ledger>,
    /// What gave it its meaning when it was written.
    pub facts: Facts,
    pub journals: BTreeMap<String, u64>,
    pub buffers: BTreeMap<String, Buffer>,
}

impl Restored {
    /// Finds out what the sinks have not delivered. `new` tells what they are where the checkpoint does not.
    pub fn count_undelivered(&mut self, new: &Facts, undelivered: impl Fn(&str, &[u8]) -> Option<u64>) {
        for (name, fact) in self.facts.iter_mut().filter(|(_, fact)| fact.role == Role::Sink) {
            let kind = fact.kind.as_ref().or_else(|| new.get(name)?.kind.as_ref());
            fact.held = match (self.sinks.get(name), kind) {
                (None, _) => Some(0),
                (Some(state), Some(kind)) => undelivered(kind, state),
                (Some(_), None) => None,
            };
            let buffered = self.buffers.get(name).map_or(0, |buffer| buffer.records);
            fact.held = fact.held.map(|held| held + buffered);
        }
    }

    /// Takes out what is not gone on from.
    pub fn forget(&mut self, verdicts: &[Verdict]) {
        for Verdict { role, name, .. } in verdicts.iter().filter(|verdict| !verdict.fate.is_kept()) {
            match role {
                Role::Source => {
                    self.sources.remove(name);
                    self.journals.remove(name);
                }
                Role::Operator => drop(self.operators.remove(name)),
                Role::Sink => {
                    self.sinks.remove(name);
                    if let Some(ledger) = &mut self.ledger {
                        ledger.forget(name);
                    }
                    self.buffers.remove(name);
                }
            }
        }
    }
}

/// What a kept epoch refers to outside its manifest.
struct Kept {
    is_prepared: bool,
    segments: BTreeSet<u64>,
    journals: BTreeMap<String, u64>,
    buffers: BTreeMap<String, Buffer>,
}

/// Writes checkpoints to a data directory and reads them back.
pub struct Checkpoints {
    storage: Arc<dyn Storage>,
    folder: PathBuf,
    /// Of whom the epochs are; `None`: the folder is that of one daemon, which keeps all others out.
    term: Option<Term>,
    /// The files of earlier terms were deleted; where there are no terms, there are none.
    is_swept: bool,
    /// The manifest of the last complete epoch.
    current: Option<Manifest>,
    /// The sizes of the segments that kept manifests refer to.
    segments: BTreeMap<u64, u64>,
    /// What each kept epoch refers to.
    kept: BTreeMap<u64, Kept>,
    /// What was collected for epochs whose writing failed: operators do not hand it out again.
    unsaved: Snapshot,
    /// What gives the state of the components that run its meaning.
    facts: Facts,
    /// Pieces of an older version were taken back: they are all written anew before any of them is.
    is_migrated: bool,
    /// Whether a decider tells which epochs are the truth.
    has_decider: bool,
    next_epoch: u64,
}

/// A checkpoint could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("{action} {}: {error}", path.display())]
    Io { action: &'static str, path: PathBuf, error: std::io::Error },
    #[error("{0}")]
    Refused(String),
    /// Nothing more is written: somebody else goes on from what was.
    #[error("the checkpoints were taken over by {by} (term {term})")]
    Superseded { term: u64, by: String },
}

/// Why an epoch was not read.
#[derive(Debug, thiserror::Error)]
enum Unread {
    #[error("{name}: {error}")]
    Io { name: String, error: std::io::Error },
    #[error("{0}")]
    Damaged(String),
}

impl From<Damaged> for Unread {
    fn from(damaged: Damaged) -> Self {
        Self::Damaged(damaged.to_string())
    }
}

impl Checkpoints {
    /// Opens the checkpoints of a data directory: what was kept, and what to go on from.
    pub fn open(storage: Arc<dyn Storage>, data_dir: &Path) -> Result<(Self, Restored, Vec<Found>), CheckpointError> {
        let folder = data_dir.join("checkpoints");
        let io = |action| {
            let path = folder.clone();
            move |error| CheckpointError::Io { action, path, error }
        };
        storage.create_dir(&folder).map_err(io("making"))?;
        let names = storage.list(&folder).map_err(io("listing"))?;
        let epochs: Vec<u64> = names.iter().filter_map(|name| number(name, "manifest-")).collect();
        let highest = names
            .iter()
            .filter_map(|name| number(name, "manifest-").or_else(|| number(name, "segment-")))
            .max()
            .unwrap_or(0);
        let mut checkpoints = Self::new(storage, folder.clone(), None, highest + 1);
        let mut loaded = BTreeMap::new();
        let mut found = Vec::new();
        for epoch in epochs {
            match read_epoch(&*checkpoints.storage, data_dir, epoch) {
                Ok(whole) => {
                    checkpoints.segments.extend(&whole.segments);
                    loaded.insert(epoch, whole);
                    found.push(Found { epoch, damage: None });
                }
                Err(damage) => found.push(Found { epoch, damage: Some(damage) }),
            }
        }
        match decide(found) {
            Recovery::StartFresh => Ok((checkpoints, Restored::default(), Vec::new())),
            Recovery::Refuse(reason) => Err(CheckpointError::Refused(reason)),
            Recovery::Resume { epoch, passed_over } => {
                for (epoch, whole) in &loaded {
                    checkpoints.keep(*epoch, &whole.manifest);
                }
                let Epoch { manifest, restored, .. } = loaded.remove(&epoch).expect("decided from what was loaded");
                checkpoints.rise_above(&manifest);
                checkpoints.current = Some(manifest);
                checkpoints.tidy(&names).map_err(io("tidying"))?;
                checkpoints.collect_garbage();
                Ok((checkpoints, restored, passed_over))
            }
        }
    }

    /// Goes back to the epoch that was decided, where that is not the newest: what to go on from then; `None` if it is. From
    /// now on epochs are prepared for a decider if there is one.
    ///
    /// # Errors
    /// When nobody but a person can know what to go on from, or the epoch cannot be read.
    pub fn settle(&mut self, decided: Decided) -> Result<Option<Restored>, CheckpointError> {
        self.has_decider = decided != Decided::ByItself;
        let mut found = match self.term {
            None => self.kept.iter().map(|(epoch, kept)| (*epoch, kept.is_prepared)).collect(),
            // Whoever was before may have gone on until the decider kept him out.
            Some(_) => self.there()?,
        };
        let (epoch, whole) = loop {
            let epoch = match settle(found.clone(), decided) {
                Recovery::Refuse(reason) => return Err(CheckpointError::Refused(reason)),
                Recovery::Resume { epoch, .. } => epoch,
                Recovery::StartFresh => 0,
            };
            if epoch == self.epoch() {
                return Ok(None);
            }
            if epoch == 0 {
                break (epoch, None);
            }
            let data_dir = self.folder.parent().expect("checkpoints are below their data directory");
            match load(&*self.storage, data_dir, epoch) {
                Ok(whole) => break (epoch, Some(whole)),
                Err(unread) => {
                    let damage = self.damage(unread)?;
                    // What was decided cannot be passed over, and of one daemon's own epochs those that are damaged are not
                    // among the kept.
                    if self.term.is_none() || matches!(decided, Decided::Epoch(_)) {
                        return Err(CheckpointError::Refused(damage));
                    }
                    found.retain(|(of, _)| *of != epoch);
                }
            }
        };
        self.unsaved = Snapshot::default();
        match self.term {
            None => {
                // They are in the way of nothing: the numbers of later epochs are greater. But nobody is to go on from them.
                let io = |error| CheckpointError::Io { action: "tidying", path: self.folder.clone(), error };
                for undecided in self.kept.split_off(&(epoch + 1)).into_keys() {
                    self.storage.remove(&path(&self.folder, "manifest", undecided)).map_err(io)?;
                }
                self.storage.sync_dir(&self.folder).map_err(io)?;
                self.collect_garbage();
            }
            Some(_) => {
                self.kept.clear();
                if let Some(whole) = &whole {
                    self.go_on_from(epoch, &whole.manifest, &whole.restored);
                }
            }
        }
        let (manifest, restored) = whole.map(|whole| (whole.manifest, whole.restored)).unzip();
        self.current = manifest;
        Ok(Some(restored.unwrap_or_default()))
    }

    /// The epochs that are there and whose manifests can be read, each with whether it was prepared for a decider.
    fn there(&self) -> Result<Vec<(u64, bool)>, CheckpointError> {
        let io = |error| CheckpointError::Io { action: "listing", path: self.folder.clone(), error };
        let names = self.storage.list(&self.folder).map_err(io)?;
        let mut there = Vec::new();
        for epoch in names.iter().filter_map(|name| number(name, "manifest-")) {
            match read_manifest(&*self.storage, &self.path("manifest", epoch), epoch) {
                Ok(manifest) => there.push((epoch, manifest.is_prepared)),
                Err(unread) => drop(self.damage(unread)?),
            }
        }
        Ok(there)
    }

    /// Goes on from an epoch that an earlier owner has written: all of it goes out with the first epoch of this one, with what has
    /// changed by then in its place.
    fn go_on_from(&mut self, epoch: u64, manifest: &Manifest, restored: &Restored) {
        self.keep(epoch, manifest);
        self.unsaved.operators = restored.operators.clone();
        self.unsaved.sinks = restored.sinks.clone();
        self.rise_above(manifest);
    }

    /// The epochs that can be gone on from, each with whether it was prepared for a decider; `None` where somebody else may be adding to them.
    pub fn kept(&self) -> Option<Vec<(u64, bool)>> {
        let kept = || self.kept.iter().map(|(epoch, kept)| (*epoch, kept.is_prepared)).collect();
        self.term.is_none().then(kept)
    }

    /// The positions of all lanes in the last complete epoch, by source.
    pub fn positions(&self) -> impl Iterator<Item = (&str, &BTreeMap<String, LanePosition>)> {
        let sources = self.current.iter().flat_map(|manifest| &manifest.sources);
        sources.map(|(source, lanes)| (source.as_str(), lanes))
    }

    /// Opens the chain of checkpoints in a folder for the owner of `term`: what to go on from, and what was passed over for it.
    /// What is there stays there until this owner has written enough of its own.
    pub fn open_term(
        storage: Arc<dyn Storage>,
        folder: &Path,
        term: Term,
    ) -> Result<(Self, Restored, Vec<Found>), CheckpointError> {
        let mut checkpoints = Self::new(storage, folder.join("checkpoints"), Some(term), term.first_epoch());
        let outcome = checkpoints.read_newest(folder);
        // Whoever has been followed already has read what the next owner was deleting: what came of it means nothing.
        checkpoints.check_term()?;
        let (found, newest) = outcome?;
        match decide(found) {
            Recovery::StartFresh => Ok((checkpoints, Restored::default(), Vec::new())),
            Recovery::Refuse(reason) => Err(CheckpointError::Refused(reason)),
            Recovery::Resume { epoch, passed_over } => {
                let Epoch { manifest, restored, .. } = newest.expect("decided from what was read");
                checkpoints.go_on_from(epoch, &manifest, &restored);
                checkpoints.current = Some(manifest);
                Ok((checkpoints, restored, passed_over))
            }
        }
    }

    fn new(storage: Arc<dyn Storage>, folder: PathBuf, term: Option<Term>, next_epoch: u64) -> Self {
        Self {
            storage,
            folder,
            term,
            is_swept: term.is_none(),
            current: None,
            segments: BTreeMap::new(),
            kept: BTreeMap::new(),
            unsaved: Snapshot::default(),
            facts: Facts::new(),
            is_migrated: false,
            has_decider: false,
            next_epoch,
        }
    }

    /// The newest whole epoch, and what was found on the way to it. Somebody may be writing and deleting there.
    fn read_newest(&self, chain: &Path) -> Result<(Vec<Found>, Option<Epoch>), CheckpointError> {
        let list = || {
            let io = |error| CheckpointError::Io { action: "listing", path: self.folder.clone(), error };
            self.storage.list(&self.folder).map_err(io)
        };
        let mut names = list()?;
        let mut looks = 1;
        loop {
            let mut epochs: Vec<u64> = names.iter().filter_map(|name| number(name, "manifest-")).collect();
            epochs.sort_unstable();
            let mut found = Vec::new();
            let mut newest = None;
            while let (Some(epoch), None) = (epochs.pop(), &newest) {
                match load(&*self.storage, chain, epoch) {
                    Ok(whole) => {
                        newest = Some(whole);
                        found.push(Found { epoch, damage: None });
                    }
                    Err(unread) => found.push(Found { epoch, damage: Some(self.damage(unread)?) }),
                }
            }
            if looks == LOOKS || found.iter().all(|found| found.damage.is_none()) {
                return Ok((found, newest));
            }
            looks += 1;
            let before = std::mem::replace(&mut names, list()?);
            if names == before {
                return Ok((found, newest));
            }
        }
    }

    /// What is wrong with an epoch that was not read. What cannot be read now can be read later, and is an error: to go on from
    /// an older epoch would be to forget this one.
    fn damage(&self, unread: Unread) -> Result<String, CheckpointError> {
        match unread {
            Unread::Io { name, error } if error.kind() != std::io::ErrorKind::NotFound => {
                Err(CheckpointError::Io { action: "reading", path: self.folder.join(name), error })
            }
            unread => Ok(unread.to_string()),
        }
    }

    /// Fails if somebody has taken a later term.
    fn check_term(&self) -> Result<(), CheckpointError> {
        let Some(term) = self.term else { return Ok(()) };
        match term::successor(&*self.storage, &self.folder, term) {
            Ok(None) => Ok(()),
            Ok(Some((term, by))) => Err(CheckpointError::Superseded { term, by }),
            Err(error) => Err(CheckpointError::Io { action: "listing", path: self.folder.clone(), error }),
        }
    }

    /// From now on epochs are those of these components. What is not gone on from is in no later epoch.
    pub fn adopt(&mut self, facts: Facts, verdicts: &[Verdict]) {
        self.facts = facts;
        self.is_migrated = verdicts.iter().any(|verdict| matches!(verdict.fate, Fate::Migrated { .. }));
        for Verdict { role, name, .. } in verdicts.iter().filter(|verdict| verdict.fate != Fate::Kept) {
            self.unsaved.forget(*role, name);
        }
        let Some(current) = &mut self.current else { return };
        // What is migrated is in the next epoch whole, in its new version.
        for Verdict { role, name, .. } in verdicts.iter().filter(|verdict| verdict.fate != Fate::Kept) {
            match role {
                Role::Source => {
                    current.sources.remove(name);
                    current.journals.remove(name);
                }
                Role::Operator => drop(current.operators.remove(name)),
                Role::Sink => {
                    current.sinks.remove(name);
                    current.buffers.remove(name);
                }
            }
        }
    }

    /// The last complete epoch; 0 if there is none.
    pub fn epoch(&self) -> u64 {
        self.current.as_ref().map_or(0, |manifest| manifest.epoch)
    }

    /// A sink whose buffer is taken from it has its barriers numbered by epochs again, and numbers only rise.
    fn rise_above(&mut self, manifest: &Manifest) {
        let barriers = manifest.buffers.values().map(|buffer| buffer.barrier + 1).max().unwrap_or(0);
        self.next_epoch = self.next_epoch.max(barriers);
    }

    /// The number of the next epoch; never used twice, even if writing it fails.
    pub fn next_epoch(&mut self) -> u64 {
        let epoch = self.next_epoch;
        self.next_epoch += 1;
        epoch
    }

    /// Whether the pieces are scattered over so many or so large old segments that operators should hand out all their
    /// state with the next snapshot.
    pub fn wants_full(&self) -> bool {
        if self.is_migrated {
            return true;
        }
        let Some(current) = &self.current else { return false };
        let live: u64 = places(current).map(|place| place.length).sum();
        let held: u64 = self.segments.values().sum();
        self.segments.len() > 64 || held > 4 * live + (64 << 20)
    }

    /// The first record of a source's journal that some kept epoch may be gone on from; what is before it is not needed.
    pub fn journal_floor(&self, source: &str) -> u64 {
        // An epoch from before there was a journal is gone on from with all of it.
        self.kept.values().map(|kept| kept.journals.get(source).copied().unwrap_or(0)).min().unwrap_or(0)
    }

    /// The first place of a sink's buffer that some kept epoch may be gone on from.
    pub fn buffer_floor(&self, sink: &str) -> u64 {
        let floors = self.kept.values().filter_map(|kept| kept.buffers.get(sink)).map(|buffer| buffer.from);
        floors.min().unwrap_or(0)
    }

    /// Keeps what was collected for an epoch that is abandoned: it goes out with the next.
    pub fn hold(&mut self, snapshot: Snapshot) {
        self.unsaved.overlay(snapshot);
    }

    /// Writes an epoch. When this returns without error it is the truth; when it fails the epoch before stays that, and
    /// what was collected is written with the next. An owner of a term that was taken over from writes nothing more.
    pub fn write(&mut self, epoch: u64, snapshot: Snapshot, now: Timestamp) -> Result<u64, CheckpointError> {
        self.unsaved.overlay(snapshot);
        self.check_term()?;
        let mut manifest = self.current.clone().unwrap_or_else(|| Manifest {
            format: FORMAT,
            epoch,
            sources: BTreeMap::new(),
            operators: BTreeMap::new(),
            sinks: BTreeMap::new(),
            ledger: None,
            components: None,
            journals: BTreeMap::new(),
            buffers: BTreeMap::new(),
            is_prepared: false,
            written_at: String::new(),
        });
        manifest.epoch = epoch;
        manifest.is_prepared = self.has_decider;
        manifest.components = Some(self.facts.clone());
        manifest.written_at = now.to_string();
        manifest.sources.extend(self.unsaved.sources.clone());
        manifest.ledger = self.unsaved.ledger.clone().or(manifest.ledger);
        manifest.journals.extend(self.unsaved.journals.clone());
        manifest.buffers.extend(self.unsaved.buffers.clone());
        let mut segment = FileWriter::new(epoch);
        for (operator, (version, pieces)) in &self.unsaved.operators {
            let entry = manifest.operators.entry(operator.clone()).or_default();
            entry.version = *version;
            for (group, piece) in pieces {
                if piece.is_empty() {
                    entry.groups.remove(group);
                } else {
                    entry.groups.insert(*group, place(&mut segment, epoch, Kind::Piece, piece));
                }
            }
        }
        for (sink, state) in &self.unsaved.sinks {
            if state.is_empty() {
                manifest.sinks.remove(sink);
            } else {
                manifest.sinks.insert(sink.clone(), place(&mut segment, epoch, Kind::SinkState, state));
            }
        }
        if fault::is_planted(Defect::EarlyGarbage) {
            let needed: BTreeSet<u64> = places(&manifest).map(|place| place.segment).collect();
            for segment in self.segments.keys().filter(|segment| !needed.contains(segment)) {
                let _ = self.storage.remove(&self.path("segment", *segment));
            }
        }
        let written = match self.write_files(epoch, &manifest, &segment) {
            Err(_) if fault::is_planted(Defect::IgnoredError) => 0,
            Err(error) => {
                // A later owner may have deleted what was being written.
                let followed = self.check_term().err();
                let followed = followed.filter(|error| matches!(error, CheckpointError::Superseded { .. }));
                return Err(followed.unwrap_or(error));
            }
            Ok(written) => written,
        };
        self.unsaved = Snapshot::default();
        self.is_migrated = false;
        if !segment.is_empty() {
            self.segments.insert(epoch, segment.len() as u64);
        }
        self.keep(epoch, &manifest);
        self.rise_above(&manifest);
        self.current = Some(manifest);
        self.collect_garbage();
        Ok(written)
    }

    fn write_files(&self, epoch: u64, manifest: &Manifest, segment: &FileWriter) -> Result<u64, CheckpointError> {
        let io = |action, path: &Path| {
            let path = path.to_owned();
            move |error| CheckpointError::Io { action, path, error }
        };
        let mut written = 0;
        if !segment.is_empty() {
            let path = self.path("segment", epoch);
            fault::point("segment.write");
            self.storage.write_new(&path, segment.content()).map_err(io("writing", &path))?;
            fault::point("segment.written");
            self.storage.sync_dir(&self.folder).map_err(io("syncing", &self.folder))?;
            fault::point("segment.synced");
            written += segment.len();
        }
        let mut file = FileWriter::new(epoch);
        let text = serde_json::to_vec(manifest).expect("a manifest has string keys");
        file.push(epoch, Kind::Manifest, &text);
        let path = self.path("manifest", epoch);
        let temporary = match self.term {
            None => self.folder.join("manifest.tmp"),
            // Whoever was before may be writing one too.
            Some(_) => path.with_extension("tmp"),
        };
        if self.storage.is_atomic() {
            self.storage.write_new(&path, file.content()).map_err(io("writing", &path))?;
        } else {
            fault::point("manifest.write");
            self.storage.write_new(&temporary, file.content()).map_err(io("writing", &temporary))?;
            fault::point("manifest.written");
            self.storage.rename(&temporary, &path).map_err(io("renaming to", &path))?;
            fault::point("manifest.renamed");
        }
        self.storage.sync_dir(&self.folder).map_err(io("syncing", &self.folder))?;
        fault::point("manifest.synced");
        Ok((written + file.len()) as u64)
    }

    fn keep(&mut self, epoch: u64, manifest: &Manifest) {
        let kept = Kept {
            is_prepared: manifest.is_prepared,
            segments: places(manifest).map(|place| place.segment).collect(),
            journals: manifest.journals.clone(),
            buffers: manifest.buffers.clone(),
        };
        self.kept.insert(epoch, kept);
    }

    /// Puts manifests that cannot be used aside, for people, and deletes what a crash has left of epochs that never
    /// became complete: no manifest names it, and none ever will.
    fn tidy(&mut self, names: &[String]) -> std::io::Result<()> {
        for epoch in names.iter().filter_map(|name| number(name, "manifest-")) {
            if self.kept.contains_key(&epoch) {
                continue;
            }
            let aside = self.folder.join("damaged");
            self.storage.create_dir(&aside)?;
            let path = self.path("manifest", epoch);
            self.storage.rename(&path, &aside.join(path.file_name().expect("it has a name")))?;
        }
        for segment in names.iter().filter_map(|name| number(name, "segment-")) {
            if !self.segments.contains_key(&segment) {
                self.storage.remove(&self.path("segment", segment))?;
            }
        }
        Ok(())
    }

    /// Deletes what no kept epoch needs. A failure leaves a file too many, which the next start finds and deletes.
    fn collect_garbage(&mut self) {
        while self.kept.len() > KEPT {
            let (epoch, _) = self.kept.pop_first().expect("it has more than none");
            fault::point("garbage.manifest");
            let _ = self.storage.remove(&self.path("manifest", epoch));
        }
        let needed: BTreeSet<u64> = self.kept.values().flat_map(|kept| &kept.segments).copied().collect();
        let stale: Vec<u64> = self.segments.keys().filter(|segment| !needed.contains(segment)).copied().collect();
        for segment in stale {
            fault::point("garbage.segment");
            self.segments.remove(&segment);
            fault::point("garbage.segment");
            let _ = self.storage.remove(&self.path("segment", segment));
        }
        fault::point("garbage.done");
        if !self.is_swept && self.kept.len() == KEPT && self.kept.keys().all(|epoch| self.is_own(*epoch)) {
            self.is_swept = true;
            self.sweep();
        }
    }

    fn is_own(&self, epoch: u64) -> bool {
        self.term.is_some_and(|term| term.number() == Term::of(epoch))
    }

    /// Deletes the files of earlier terms, also those that their owners left behind: there are enough epochs of this one. A
    /// failure leaves files too many, which the next owner deletes.
    fn sweep(&self) {
        let Some(term) = self.term else { return };
        for name in self.storage.list(&self.folder).unwrap_or_default() {
            if term::is_earlier(&name, term) {
                let _ = self.storage.remove(&self.folder.join(name));
            }
        }
    }

    fn path(&self, kind: &str, epoch: u64) -> PathBuf {
        path(&self.folder, kind, epoch)
    }
}

fn path(folder: &Path, kind: &str, epoch: u64) -> PathBuf {
    folder.join(format!("{kind}-{epoch:012}"))
}

fn place(segment: &mut FileWriter, epoch: u64, kind: Kind, piece: &[u8]) -> Place {
    let offset = segment.push(epoch, kind, piece);
    Place { segment: epoch, offset, length: piece.len() as u64 }
}

fn places(manifest: &Manifest) -> impl Iterator<Item = &Place> {
    manifest.operators.values().flat_map(|pieces| pieces.groups.values()).chain(manifest.sinks.values())
}

fn number(name: &str, prefix: &str) -> Option<u64> {
    name.strip_prefix(prefix)?.parse().ok()
}

#[cfg(test)]
mod tests;
