//! Being told of changes: inotify where there is one. Nothing depends on it but the latency, as everything is looked at
//! again from time to time: its queue may overflow, and network file systems tell nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use tokio::io::unix::AsyncFd;

/// What has changed since it was asked last.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Files may have come, gone, or changed their names.
    pub names: bool,
    /// The partitions of files that were written to.
    pub written: BTreeSet<String>,
    /// Changes were lost: every file must be looked at.
    pub all: bool,
    /// Not everything has been taken yet.
    pub more: bool,
}

pub(super) struct Watch {
    inotify: AsyncFd<Inotify>,
    folders: BTreeMap<PathBuf, WatchDescriptor>,
    /// By number: descriptors have no order.
    files: BTreeMap<i32, String>,
}

impl Watch {
    /// `None` where the system has no more instances to give. Must be called in a runtime.
    #[expect(
        deprecated,
        reason = "what replaces it is unsafe to call; the descriptor is owned and stays the same here"
    )]
    pub(super) fn new() -> Option<Self> {
        let inotify = Inotify::init().and_then(AsyncFd::new).ok()?;
        Some(Self { inotify, folders: BTreeMap::new(), files: BTreeMap::new() })
    }

    /// Watches exactly these folders; says whether all of them could be.
    pub(super) fn folders(&mut self, wanted: &BTreeSet<PathBuf>) -> bool {
        let gone: Vec<_> = self.folders.keys().filter(|folder| !wanted.contains(*folder)).cloned().collect();
        for folder in gone {
            if let Some(descriptor) = self.folders.remove(&folder) {
                // It fails where the folder is gone, and then there is nothing to undo.
                let _ = self.inotify.get_mut().watches().remove(descriptor);
            }
        }
        let mask = WatchMask::CREATE
            | WatchMask::MOVE
            | WatchMask::DELETE
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        let mut complete = true;
        for folder in wanted {
            if !self.folders.contains_key(folder) {
                match self.inotify.get_mut().watches().add(folder, mask) {
                    Ok(descriptor) => {
                        self.folders.insert(folder.clone(), descriptor);
                    }
                    Err(_) => complete = false,
                }
            }
        }
        complete
    }

    /// Watches a file that is open, whatever it is called or will be.
    pub(super) fn file(&mut self, file: &File, partition: &str) -> bool {
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        match self.inotify.get_mut().watches().add(Path::new(&path), WatchMask::MODIFY) {
            Ok(descriptor) => {
                self.files.insert(descriptor.get_watch_descriptor_id(), partition.to_owned());
                true
            }
            Err(_) => false,
        }
    }

    /// Returns when something has changed since [`Self::take`] was called last, or earlier.
    pub(super) async fn changed(&self) {
        match self.inotify.readable().await {
            // Cleared before the changes are taken: one that comes meanwhile wakes again.
            Ok(mut guard) => guard.clear_ready(),
            // An error would come again at once; looking from time to time goes on without.
            Err(_) => std::future::pending().await,
        }
    }

    /// What has changed; does not wait.
    pub(super) fn take(&mut self) -> Changes {
        let mut changes = Changes::default();
        let mut buffer = [0; 16 << 10];
        let Self { inotify, folders, files } = self;
        // At most so often, as a busy writer makes changes faster than they are read.
        for _ in 0..64 {
            let events = match inotify.get_mut().read_events(&mut buffer) {
                Ok(events) => events,
                Err(_) => return changes,
            };
            for event in events {
                if event.mask.contains(EventMask::Q_OVERFLOW) {
                    changes.all = true;
                    continue;
                }
                let id = event.wd.get_watch_descriptor_id();
                if event.mask.contains(EventMask::IGNORED) {
                    files.remove(&id);
                    folders.retain(|_, descriptor| *descriptor != event.wd);
                } else if let Some(partition) = files.get(&id) {
                    changes.written.insert(partition.clone());
                } else {
                    changes.names = true;
                }
            }
        }
        changes.more = true;
        changes
    }
}
