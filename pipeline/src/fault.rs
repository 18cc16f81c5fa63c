//! Places where tests make the daemon fail, and defects that tests plant to see that they are noticed.
//!
//! Without the feature `faults` all of this is nothing: [`point`] does nothing and [`is_planted`] is `false`. The feature is
//! enabled for tests alone. Then the environment tells what happens:
//!
//! - `TOCSIN_FAULT_POINT=NAME` ends the process with SIGKILL when it comes to the point of this name, for the
//!   `TOCSIN_FAULT_VISIT`th time (default 1).
//! - `TOCSIN_FAULT_LIST=FILE` writes the name of every point into the file when it is come to for the first time.
//! - `TOCSIN_PLANT=NAME` plants a [`Defect`].
//! - `TOCSIN_POISON=HOW@COMPONENT:TEXT` makes a component fail on each record that holds the text: HOW is `panic`, `abort` or
//!   `overflow` (of the stack).

use crate::event::Batch;

/// The points of the daemon, in the order of what they belong to. Tests come to each of them.
pub const POINTS: &[&str] = &[
    "checkpoint.barrier",
    "checkpoint.collected",
    "segment.write",
    "segment.written",
    "segment.synced",
    "manifest.write",
    "manifest.written",
    "manifest.renamed",
    "manifest.synced",
    "checkpoint.told",
    "decider.commit",
    "decider.committed",
    "kafka.prepare",
    "kafka.prepared",
    "kafka.init",
    "kafka.recovered",
    "kafka.offsets",
    "kafka.commit",
    "kafka.committed",
    "garbage.manifest",
    "garbage.segment",
    "garbage.done",
    // A reload.
    "reload.checked",
    "reload.suspended",
    "reload.started",
    // The file sink: its journal of opened files, and the files.
    "ledger.write",
    "ledger.written",
    "ledger.rewrite",
    "ledger.renamed",
    "output.open",
    "output.opened",
    "output.rotate",
    "output.write",
    "output.written",
    "output.sync",
    "output.synced",
    "output.named",
    "output.delete",
    "output.deleted",
    "output.cut",
    "output.recovered",
    // The outbox.
    "outbox.intent",
    "outbox.intended",
    "outbox.sync",
    "outbox.synced",
    "outbox.send",
    "outbox.answered",
    "outbox.settled",
    "outbox.rewrite",
    "outbox.rewritten",
    // The other sinks that send.
    "http.send",
    "http.answered",
    "socket.write",
    "socket.written",
    // The ingest journal.
    "journal.append",
    "journal.appended",
    "journal.synced",
    "journal.acknowledged",
    "journal.replayed",
    "journal.trimmed",
    // The buffers on disk.
    "buffer.spill",
    "buffer.synced",
    "buffer.answered",
    "buffer.read",
    "buffer.trimmed",
    // The file source.
    "input.open",
    "input.opened",
    "input.hand",
    "input.handed",
    "input.truncated",
    "input.renamed",
    "input.finished",
    "input.closed",
];

/// A defect that a test can plant: a mistake that was made by others, or would be easy to make here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    /// The names in a folder are not made durable.
    NoFolderSync,
    /// The content of files is not made durable.
    NoFileSync,
    /// An fsync that failed is called again, and believed.
    RetriedSync,
    /// A failed write of a checkpoint counts as a complete one.
    IgnoredError,
    /// A checkpoint holds positions that are newer than its state.
    PositionsAhead,
    /// A barrier is handed on when the first of several inputs has brought it.
    UnalignedBarrier,
    /// Files that a kept epoch still needs are deleted.
    EarlyGarbage,
    /// Clients are told that their records are durable before they are.
    EarlyAcknowledgement,
    /// A notification has another identity after a restart.
    UnstableIdentity,
    /// What the outbox's journal says is not applied at start.
    NoRollForward,
    /// Files are not cut back to the checkpoint.
    NoCut,
    /// A file's identity is its inode alone.
    InodeAlone,
    /// A file counts as truncated only when it has become shorter than what was read of it.
    SizeAlone,
    /// An unfinished last line is a record.
    PartialLine,
    /// Records are dropped without being counted.
    UncountedDrop,
    /// What a full buffer has written to disk is forgotten at a restart.
    ForgottenSpill,
    /// The newest checkpoint is gone on from, whether or not its transaction was committed.
    NewestCheckpoint,
    /// A transaction commits offsets that are not those of its checkpoint.
    OffsetsAhead,
    /// A transaction does not say which checkpoint it belongs to.
    NoMarker,
}

impl Defect {
    pub const ALL: [Self; 19] = [
        Self::NoFolderSync,
        Self::NoFileSync,
        Self::RetriedSync,
        Self::IgnoredError,
        Self::PositionsAhead,
        Self::UnalignedBarrier,
        Self::EarlyGarbage,
        Self::EarlyAcknowledgement,
        Self::UnstableIdentity,
        Self::NoRollForward,
        Self::NoCut,
        Self::InodeAlone,
        Self::SizeAlone,
        Self::PartialLine,
        Self::UncountedDrop,
        Self::ForgottenSpill,
        Self::NewestCheckpoint,
        Self::OffsetsAhead,
        Self::NoMarker,
    ];

    /// The word that `TOCSIN_PLANT` takes.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoFolderSync => "no_folder_sync",
            Self::NoFileSync => "no_file_sync",
            Self::RetriedSync => "retried_sync",
            Self::IgnoredError => "ignored_error",
            Self::PositionsAhead => "positions_ahead",
            Self::UnalignedBarrier => "unaligned_barrier",
            Self::EarlyGarbage => "early_garbage",
            Self::EarlyAcknowledgement => "early_acknowledgement",
            Self::UnstableIdentity => "unstable_identity",
            Self::NoRollForward => "no_roll_forward",
            Self::NoCut => "no_cut",
            Self::InodeAlone => "inode_alone",
            Self::SizeAlone => "size_alone",
            Self::PartialLine => "partial_line",
            Self::UncountedDrop => "uncounted_drop",
            Self::ForgottenSpill => "forgotten_spill",
            Self::NewestCheckpoint => "newest_checkpoint",
            Self::OffsetsAhead => "offsets_ahead",
            Self::NoMarker => "no_marker",
        }
    }
}

/// A place where the process may end at any time; `name` is one of [`POINTS`].
#[inline]
pub fn point(name: &'static str) {
    #[cfg(feature = "faults")]
    armed::visit(name);
    #[cfg(not(feature = "faults"))]
    let _ = name;
}

/// Fails if a test wants the component to fail on a record of the batch.
#[inline]
pub fn strike(component: &str, batch: &Batch) {
    #[cfg(feature = "faults")]
    armed::strike(component, batch);
    #[cfg(not(feature = "faults"))]
    let _ = (component, batch);
}

/// Whether a test has planted the defect.
#[inline]
pub fn is_planted(defect: Defect) -> bool {
    #[cfg(feature = "faults")]
    return armed::is_planted(defect);
    #[cfg(not(feature = "faults"))]
    {
        let _ = defect;
        false
    }
}

#[cfg(feature = "faults")]
pub use armed::plant;

#[cfg(feature = "faults")]
mod armed {
    use std::cell::Cell;
    use std::collections::BTreeMap;
    use std::io::Write;
    use std::sync::{Mutex, OnceLock};

    use super::{Batch, Defect, POINTS};

    /// What the environment asks for.
    struct Plan {
        defect: Option<Defect>,
        kill: Option<(String, u64)>,
        list: Option<std::path::PathBuf>,
        /// How, which component, and what the records hold.
        poison: Option<(String, String, String)>,
        visits: Mutex<BTreeMap<&'static str, u64>>,
    }

    static PLAN: OnceLock<Plan> = OnceLock::new();

    thread_local! {
        static PLANTED: Cell<Option<Defect>> = const { Cell::new(None) };
    }

    fn plan() -> &'static Plan {
        PLAN.get_or_init(|| {
            let text = |name| std::env::var(name).ok();
            let visit =
                text("TOCSIN_FAULT_VISIT").map_or(1, |visit| visit.parse().expect("TOCSIN_FAULT_VISIT is a number"));
            Plan {
                defect: text("TOCSIN_PLANT").map(|name| {
                    let known = Defect::ALL.into_iter().find(|defect| defect.as_str() == name);
                    known.unwrap_or_else(|| panic!("TOCSIN_PLANT: there is no defect {name}"))
                }),
                kill: text("TOCSIN_FAULT_POINT").map(|name| (name, visit)),
                list: std::env::var_os("TOCSIN_FAULT_LIST").map(Into::into),
                poison: text("TOCSIN_POISON").map(|text| {
                    let parts = text.split_once('@').and_then(|(how, rest)| Some((how, rest.split_once(':')?)));
                    let (how, (component, text)) = parts.expect("TOCSIN_POISON is HOW@COMPONENT:TEXT");
                    (how.to_owned(), component.to_owned(), text.to_owned())
                }),
                visits: Mutex::default(),
            }
        })
    }

    pub fn visit(name: &'static str) {
        let plan = plan();
        if plan.kill.is_none() && plan.list.is_none() {
            return;
        }
        assert!(POINTS.contains(&name), "{name} is not in the list of points");
        let visits = {
            let mut visits = plan.visits.lock().expect("no holder of this lock panics");
            let count = visits.entry(name).or_default();
            *count += 1;
            *count
        };
        if let Some(list) = plan.list.as_ref().filter(|_| visits == 1) {
            let file = std::fs::OpenOptions::new().create(true).append(true).open(list);
            let _ = file.and_then(|mut file| file.write_all(format!("{name}\n").as_bytes()));
        }
        if plan.kill.as_ref().is_some_and(|(wanted, visit)| wanted == name && *visit == visits) {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        }
    }

    pub fn strike(component: &str, batch: &Batch) {
        let Some((how, wanted, text)) = &plan().poison else { return };
        if wanted != component {
            return;
        }
        let is_poison = |row| memchr::memmem::find(batch.raw(row), text.as_bytes()).is_some();
        if batch.rows().any(is_poison) {
            match how.as_str() {
                "panic" => panic!("poison"),
                "abort" => std::process::abort(),
                "overflow" => println!("{}", deep(1)),
                how => panic!("TOCSIN_POISON: there is no {how}"),
            }
        }
    }

    /// Needs more stack than there is.
    fn deep(depth: u64) -> u64 {
        let room = std::hint::black_box([depth; 1024]);
        if depth == 0 { 0 } else { deep(depth + 1) + room[0] }
    }

    pub fn is_planted(defect: Defect) -> bool {
        plan().defect == Some(defect) || PLANTED.get() == Some(defect)
    }

    /// Plants a defect for what runs on this thread, until told otherwise.
    pub fn plant(defect: Option<Defect>) {
        PLANTED.set(defect);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_points_and_defects_are_distinct() {
        let points: std::collections::BTreeSet<_> = POINTS.iter().collect();
        assert_eq!(points.len(), POINTS.len());
        let defects: std::collections::BTreeSet<_> = Defect::ALL.map(Defect::as_str).into();
        assert_eq!(defects.len(), Defect::ALL.len());
    }
}
