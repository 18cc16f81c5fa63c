//! Reading what stands in a data directory: epochs, whole, by the daemon at its start and by whoever looks.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::Path;

use bytes::Bytes;

use super::{CheckpointError, FORMAT, Manifest, Place, Restored, Unread, number, path, places};
use crate::evolution::{Fact, Facts, Role};
use crate::ledger::Audit;
use crate::store::{Damaged, FIRST_RECORD, FileReader, Kind, Storage};

/// The ledger of the newest complete epoch, without touching anything: a daemon may be writing there. `None` if there is no
/// checkpoint.
///
/// # Errors
/// When the checkpoints cannot be read, or none of them is whole.
pub fn audit(storage: &dyn Storage, data_dir: &Path) -> Result<Option<Audit>, CheckpointError> {
    let folder = data_dir.join("checkpoints");
    let io = |error| CheckpointError::Io { action: "listing", path: folder.clone(), error };
    let names = match storage.list(&folder) {
        Ok(names) => names,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && storage.list(data_dir).is_ok() => Vec::new(),
        Err(error) => return Err(io(error)),
    };
    let mut epochs: Vec<u64> = names.iter().filter_map(|name| number(name, "manifest-")).collect();
    epochs.sort_unstable();
    let mut damage = None;
    for epoch in epochs.into_iter().rev() {
        match read_manifest(storage, &folder.join(format!("manifest-{epoch:012}")), epoch) {
            Ok(Manifest { ledger, written_at: taken_at, .. }) => {
                return Ok(Some(Audit { epoch, taken_at, ledger: ledger.unwrap_or_default() }));
            }
            Err(found) => damage = damage.or(Some(found.to_string())),
        }
    }
    damage.map_or(Ok(None), |damage| Err(CheckpointError::Refused(damage)))
}

pub(super) fn read_manifest(storage: &dyn Storage, path: &Path, epoch: u64) -> Result<Manifest, Unread> {
    let (name, content) = read(storage, path)?;
    let reader = FileReader::new(&name, epoch, &content)?;
    let (text, _) = reader.record(FIRST_RECORD, epoch, Kind::Manifest)?;
    let manifest: Manifest =
        serde_json::from_slice(text).map_err(|error| Unread::Damaged(format!("{name}: {error}")))?;
    if manifest.format != FORMAT {
        return Err(Unread::Damaged(format!("{name}: format {} is not known to this version", manifest.format)));
    }
    Ok(manifest)
}

/// A file and its name.
fn read(storage: &dyn Storage, path: &Path) -> Result<(String, Vec<u8>), Unread> {
    let name = path.file_name().expect("it has a name").to_string_lossy().into_owned();
    match storage.read(path) {
        Ok(content) => Ok((name, content)),
        Err(error) => Err(Unread::Io { name, error }),
    }
}

/// An epoch with all its pieces.
#[derive(Debug)]
pub struct Epoch {
    pub(super) manifest: Manifest,
    pub restored: Restored,
    /// The sizes of the segments it is in.
    pub segments: BTreeMap<u64, u64>,
}

impl Epoch {
    /// How many bytes of state it holds.
    pub fn bytes(&self) -> u64 {
        places(&self.manifest).map(|place| place.length).sum()
    }

    /// When it was written, as the daemon told it.
    pub fn written_at(&self) -> &str {
        &self.manifest.written_at
    }
}

/// The numbers of the epochs that a data directory has manifests of, the oldest first.
pub fn epochs(storage: &dyn Storage, data_dir: &Path) -> Result<Vec<u64>, CheckpointError> {
    let folder = data_dir.join("checkpoints");
    let names =
        storage.list(&folder).map_err(|error| CheckpointError::Io { action: "listing", path: folder, error })?;
    let mut epochs: Vec<u64> = names.iter().filter_map(|name| number(name, "manifest-")).collect();
    // Names are in another order than numbers once these have more digits than the names provide for.
    epochs.sort_unstable();
    Ok(epochs)
}

/// Reads every byte of a file of checkpoints. `None`: the name is not that of one.
pub fn verify(name: &str, content: &[u8]) -> Option<Result<(), Damaged>> {
    let epoch = number(name, "manifest-").or_else(|| number(name, "segment-"))?;
    Some(FileReader::new(name, epoch, content).and_then(|reader| reader.verify(epoch)))
}

/// Reads an epoch with all its pieces, or says what is wrong with it.
pub fn read_epoch(storage: &dyn Storage, data_dir: &Path, epoch: u64) -> Result<Epoch, String> {
    load(storage, data_dir, epoch).map_err(|unread| unread.to_string())
}

pub(super) fn load(storage: &dyn Storage, data_dir: &Path, epoch: u64) -> Result<Epoch, Unread> {
    let folder = data_dir.join("checkpoints");
    let manifest = read_manifest(storage, &path(&folder, "manifest", epoch), epoch)?;
    let mut segments: BTreeMap<u64, (String, Vec<u8>)> = BTreeMap::new();
    for place in places(&manifest) {
        if let Entry::Vacant(entry) = segments.entry(place.segment) {
            entry.insert(read(storage, &path(&folder, "segment", place.segment))?);
        }
    }
    let piece = |place: &Place, kind| -> Result<Bytes, Unread> {
        let (name, content) = &segments[&place.segment];
        let reader = FileReader::new(name, place.segment, content)?;
        let (piece, _) = reader.record(place.offset, place.segment, kind)?;
        Ok(Bytes::copy_from_slice(piece))
    };
    let mut restored = Restored { epoch, sources: manifest.sources.clone(), ..Restored::default() };
    restored.journals = manifest.journals.clone();
    restored.buffers = manifest.buffers.clone();
    restored.ledger = manifest.ledger.clone();
    restored.facts = facts(&manifest);
    for (operator, pieces) in &manifest.operators {
        let groups: BTreeMap<u16, Bytes> = pieces
            .groups
            .iter()
            .map(|(group, place)| Ok((*group, piece(place, Kind::Piece)?)))
            .collect::<Result<_, Unread>>()?;
        restored.operators.insert(operator.clone(), (pieces.version, groups));
    }
    for (sink, place) in &manifest.sinks {
        restored.sinks.insert(sink.clone(), piece(place, Kind::SinkState)?);
    }
    let segments = segments.into_iter().map(|(number, (_, content))| (number, content.len() as u64)).collect();
    Ok(Epoch { manifest, restored, segments })
}

/// What the manifest says of the components, and of those that it does not speak of what can be known.
fn facts(manifest: &Manifest) -> Facts {
    let mut facts = manifest.components.clone().unwrap_or_default();
    let mut add = |name: &String, role, version| {
        let unknown = Fact { role, kind: None, version, shape: None, migrates: Vec::new(), held: None };
        facts.entry(name.clone()).or_insert(unknown);
    };
    manifest.sources.keys().for_each(|name| add(name, Role::Source, 0));
    manifest.operators.iter().for_each(|(name, pieces)| add(name, Role::Operator, pieces.version));
    manifest.sinks.keys().for_each(|name| add(name, Role::Sink, 0));
    for (name, fact) in &mut facts {
        if fact.role == Role::Source {
            fact.held = manifest.sources.get(name).map_or(Some(0), |lanes| Some(lanes.len() as u64));
        }
        if fact.role == Role::Operator {
            let pieces = manifest.operators.get(name);
            fact.held = Some(pieces.map_or(0, |pieces| pieces.groups.len() as u64));
            // The pieces are what counts if the two should differ.
            fact.version = pieces.map_or(fact.version, |pieces| pieces.version);
        }
    }
    facts
}
