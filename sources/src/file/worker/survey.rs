//! What is there: finding new files, and where the known ones are now.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::Duration;

use super::super::identity::HEAD_BYTES;
use super::*;

impl Worker {
    /// Looks at all names: finds new files, and where the known ones are now.
    pub(super) fn look(&mut self, now: Duration) -> Result<(), End> {
        self.is_stale = false;
        self.looked = now;
        let matches = Matches::of(&self.paths, &self.exclude);
        if matches.is_cut {
            self.context.metrics.error("too_many_files");
        }
        let mut there: Vec<There> = Vec::new();
        let mut by_identity = BTreeMap::new();
        let mut paths: Vec<_> = matches.paths.into_iter().collect();
        paths.sort_by_cached_key(|path| find::order(path));
        for path in paths {
            if let Some(found) = self.stat(&path)
                && !by_identity.contains_key(&found.identity)
            {
                by_identity.insert(found.identity, there.len());
                there.push(found);
            }
        }
        self.buffers.release();
        if self.is_first_look {
            self.restore(&there, &by_identity)?;
        }
        let known: Vec<u64> = self.generations.keys().copied().collect();
        for number in known {
            let found = by_identity.get(&self.generations[&number].identity()).map(|at| &there[*at]);
            self.place(number, found, now)?;
        }
        let claimed: BTreeSet<Identity> = self.generations.values().map(Generation::identity).collect();
        self.shadows.retain(|identity, _| by_identity.contains_key(identity));
        self.troubled.retain(|path| path.symlink_metadata().is_ok());
        for found in &there {
            if !claimed.contains(&found.identity) {
                self.meet(found, &by_identity)?;
            }
        }
        if self.is_first_look {
            self.is_first_look = false;
            if there.is_empty() {
                let paths = self.options.paths.join(", ");
                let then = if self.once { "it has nothing to read" } else { "it waits for one" };
                tracing::warn!(source = %self.context.name, "no file is called {paths}; {then}");
            }
            if self.once {
                self.tell_expected(&there);
            }
            self.announce()?;
        }
        if let Some(watch) = &mut self.watch {
            let mut folders = matches.folders;
            // Where links lead, names change unseen from here.
            folders.extend(there.iter().filter_map(|found| {
                let is_link = found.path.symlink_metadata().is_ok_and(|metadata| metadata.is_symlink());
                is_link.then(|| found.path.canonicalize().ok()?.parent().map(Path::to_path_buf)).flatten()
            }));
            if !watch.folders(&folders) {
                tracing::debug!("not all folders can be watched; they are looked at from time to time");
            }
        }
        Ok(())
    }

    /// Tells how much there is to read, for progress; not where files are compressed, as their sizes say little then.
    fn tell_expected(&self, there: &[There]) {
        let is_packed = |path: &Path| path.extension().is_some_and(|extension| extension == "gz" || extension == "zst");
        if there.iter().any(|found| is_packed(&found.path)) {
            return;
        }
        let read: BTreeMap<Identity, u64> =
            self.generations.values().map(|generation| (generation.identity(), generation.position.offset)).collect();
        let left = |found: &There| found.size.saturating_sub(read.get(&found.identity).copied().unwrap_or(0));
        self.context.metrics.expect_bytes(there.iter().map(left).sum());
    }

    pub(super) fn stat(&self, path: &Path) -> Option<There> {
        let metadata = std::fs::metadata(path).ok()?;
        metadata.is_file().then(|| There {
            path: path.to_path_buf(),
            identity: Identity::of(&metadata),
            size: metadata.len(),
            modified: modified(&metadata),
        })
    }

    /// Takes over the positions of the checkpoint, in the order of the files that hold them.
    pub(super) fn restore(&mut self, there: &[There], by_identity: &BTreeMap<Identity, usize>) -> Result<(), End> {
        let mut restored = Vec::new();
        for (partition, position) in std::mem::take(&mut self.context.positions) {
            match serde_json::from_value::<Position>(position) {
                Ok(position) => {
                    let path = by_identity.get(&position.identity).map(|at| there[*at].path.clone());
                    let path = path.unwrap_or_else(|| PathBuf::from(&position.path));
                    restored.push((find::order(&path), partition, position, path));
                }
                Err(error) => {
                    self.context.metrics.error("position");
                    tracing::error!(%partition, %error, "a position in the checkpoint is not one; its file is read anew");
                }
            }
        }
        restored.sort_by(|left, right| (&left.0, &left.1).cmp(&(&right.0, &right.1)));
        let oldest = self.context.clock.now().saturating_sub(self.options.forget_after.0);
        for (_, partition, position, path) in restored {
            let forgotten = position.last_seen < oldest.0 && !by_identity.contains_key(&position.identity);
            let generation = Generation::new(&self.context, partition, position, path);
            if forgotten {
                self.emit(SourceEvent::Closed { lane: generation.lane, keep: None })?;
            } else {
                let number = self.add(generation);
                self.dirty.insert(number);
            }
        }
        self.restored = self.next;
        Ok(())
    }

    pub(super) fn add(&mut self, generation: Generation) -> u64 {
        let number = self.next;
        self.next += 1;
        self.by_partition.insert(generation.lane.partition.clone(), number);
        self.generations.insert(number, generation);
        number
    }

    pub(super) fn remove(&mut self, number: u64) {
        self.dirty.remove(&number);
        self.timed.remove(&number);
        self.open.remove(&number);
        if let Some(generation) = self.generations.remove(&number) {
            self.by_partition.remove(&generation.lane.partition);
        }
    }

    /// Notes where a known generation is now.
    pub(super) fn place(&mut self, number: u64, found: Option<&There>, now: Duration) -> Result<(), End> {
        let wall = self.context.clock.now();
        let Some(generation) = self.generations.get_mut(&number) else { return Ok(()) };
        if let Some(found) = found {
            generation.path.clone_from(&found.path);
            generation.position.last_seen = wall.0;
            let is_displaced = found.path != Path::new(&generation.position.path) && generation.content.is_some();
            if !is_displaced {
                generation.displaced = None;
            } else if generation.displaced.is_none() && !generation.is_ending {
                fault::point("input.renamed");
                generation.displaced = Some(now);
                self.timed.insert(number);
            }
            let changed = generation.looked.replace((found.size, found.modified)) != Some((found.size, found.modified));
            match generation.state {
                State::Live if changed => {
                    self.dirty.insert(number);
                }
                State::Live => {}
                State::Finished if generation.position.finished == Some(found.size) => {}
                State::Finished | State::Vanished => {
                    generation.state = State::Live;
                    generation.is_ending = false;
                    self.dirty.insert(number);
                }
            }
            // Read to its end in an earlier life, and as it was then.
            if generation.content.is_none()
                && generation.state == State::Live
                && generation.position.finished == Some(found.size)
            {
                generation.state = State::Finished;
                self.dirty.remove(&number);
                return self.close_lane(number);
            }
            return Ok(());
        }
        if let Some(content) = &generation.content {
            if generation.displaced.is_none() && !generation.is_ending {
                generation.displaced = Some(now);
            }
            self.timed.insert(number);
            let looked = content.file.metadata().ok().map(|metadata| (metadata.len(), modified(&metadata)));
            if looked != generation.looked {
                generation.looked = looked;
                self.dirty.insert(number);
            }
            return Ok(());
        }
        match generation.state {
            // Not open and not where it was: renamed to where the patterns do not reach, or copied, or gone.
            State::Live => self.seek_elsewhere(number),
            State::Finished => {
                generation.state = State::Vanished;
                let family = generation.family.clone();
                // What stood in its shadow may have to take its place.
                self.shadows.clear();
                tracing::debug!(family = %family.display(), "a file that was read to its end is gone");
                Ok(())
            }
            State::Vanished => {
                if wall.saturating_sub(self.options.forget_after.0).0 > generation.position.last_seen {
                    let lane = Arc::clone(&generation.lane);
                    self.remove(number);
                    self.emit(SourceEvent::Closed { lane, keep: None })?;
                }
                Ok(())
            }
        }
    }

    /// Looks for the rest of a generation among the files of its rotation, whatever the patterns say.
    pub(super) fn seek_elsewhere(&mut self, number: u64) -> Result<(), End> {
        let identity = self.generations[&number].identity();
        let origin = PathBuf::from(&self.generations[&number].position.path);
        let siblings: Vec<There> = find::siblings(&origin).iter().filter_map(|path| self.stat(path)).collect();
        if let Some(found) = siblings.iter().find(|found| found.identity == identity) {
            let generation = self.generations.get_mut(&number).expect("the caller has it");
            generation.path.clone_from(&found.path);
            let looked = Some((found.size, found.modified));
            if generation.position.finished == Some(found.size) {
                generation.state = State::Finished;
                self.dirty.remove(&number);
                return self.close_lane(number);
            }
            if generation.looked != looked {
                generation.looked = looked;
                generation.displaced = Some(self.context.clock.monotonic());
                self.timed.insert(number);
                self.dirty.insert(number);
            }
            return Ok(());
        }
        if let Some((found, content)) = self.copy_among(number, &siblings) {
            self.continue_in(number, found, Some(content));
            return Ok(());
        }
        self.dirty.remove(&number);
        if let Some(generation) = self.generations.get_mut(&number) {
            generation.state = State::Vanished;
            generation.close(&self.context.records);
            if generation.position.offset > 0 && generation.position.finished.is_none() {
                tracing::warn!(path = %generation.path.display(), offset = generation.position.offset,
                    "a file is gone; what was written to it after this offset was not read");
                self.context.metrics.error("file_gone");
            }
        }
        self.close_lane(number)
    }

    /// The copy of a generation whose own file is gone or truncated.
    pub(super) fn copy_among(&self, number: u64, siblings: &[There]) -> Option<(There, Content)> {
        let generation = &self.generations[&number];
        let claimed: BTreeSet<Identity> = self.generations.values().map(Generation::identity).collect();
        for found in siblings.iter().filter(|found| !claimed.contains(&found.identity)) {
            let Ok((candidate, content)) = candidate(&generation.position, found) else { continue };
            if on_found(&generation.position, Original::Gone, candidate) == Found::Continues {
                return Some((found.clone(), content));
            }
        }
        None
    }

    pub(super) fn continue_in(&mut self, number: u64, found: There, content: Option<Content>) {
        self.shadows.remove(&found.identity);
        let generation = self.generations.get_mut(&number).expect("the caller has it");
        tracing::info!(path = %found.path.display(), of = %generation.position.path, "goes on in a copy");
        generation.move_to(found.path, found.identity, &self.context.records);
        generation.content = content;
        if generation.content.is_some() {
            self.open.insert(number);
        }
        self.dirty.insert(number);
    }

    /// A file that no generation is read from: a new one, or a copy.
    pub(super) fn meet(&mut self, found: &There, by_identity: &BTreeMap<Identity, usize>) -> Result<(), End> {
        if self.shadows.get(&found.identity) == Some(&(found.size, found.modified)) {
            return Ok(());
        }
        let kin: Vec<u64> = self
            .generations
            .iter()
            .filter(|(_, it)| find::is_kin(&it.family, &found.path))
            .map(|(number, _)| *number)
            .collect();
        for number in kin {
            let generation = &self.generations[&number];
            if found.path != Path::new(&generation.position.path) && is_beginning(found, generation) {
                // As much of a copy as has been made of it so far, or the same words by chance: more of it will tell.
                self.shadows.insert(found.identity, (found.size, found.modified));
                return Ok(());
            }
            if self.is_unread(number)
                && found.path != Path::new(&generation.position.path)
                && is_alike(found, generation)
            {
                // A copy of it, or the same words by chance: the guards will tell once something has been read of it.
                return Ok(());
            }
            let Ok((candidate, content)) = candidate(&generation.position, found) else {
                // It may be half written: a compressed file cannot be told before.
                if self.context.clock.now().since(found.modified) < HALF_WRITTEN {
                    return Ok(());
                }
                continue;
            };
            if candidate.guards == Guards::Differ {
                continue;
            }
            let original = match &generation.content {
                Some(content) => original(content),
                None if by_identity.contains_key(&generation.identity()) => closed_original(generation),
                None => Original::Gone,
            };
            match on_found(&generation.position, original, candidate) {
                Found::Fresh => {}
                Found::Shadow => {
                    self.shadows.insert(found.identity, (found.size, found.modified));
                    return Ok(());
                }
                // It is read from a file that was deleted and is still open: as good.
                Found::Continues if generation.content.is_some() => {
                    self.shadows.insert(found.identity, (found.size, found.modified));
                    return Ok(());
                }
                Found::Continues => {
                    // What the file of the generation holds now is met at the next look.
                    self.is_stale = true;
                    self.continue_in(number, found.clone(), Some(content));
                    return Ok(());
                }
            }
        }
        self.shadows.remove(&found.identity);
        if self.generations.len() >= GENERATIONS_MAX {
            self.context.metrics.error("too_many_files");
            return Ok(());
        }
        let now = self.context.clock.now();
        if self.options.ignore_older.is_some_and(|age| now.since(found.modified) > age.0) {
            return Ok(());
        }
        let path = found.path.to_string_lossy().into_owned();
        // Whoever was here before is read first.
        let after = self.generations.iter().filter(|(_, it)| it.position.path == path).map(|(number, _)| *number);
        let after = after.max();
        let from_end = self.is_first_look && self.options.read_from == ReadFrom::End && !self.context.restored;
        self.begin(found, path, 0, after, from_end)
    }

    /// Whether a generation is known and about to be read. Of two files that are both new at the first look nobody knows
    /// which came first, and with `once` there may be no further look.
    fn is_unread(&self, number: u64) -> bool {
        let is_known = number < self.restored || !self.is_first_look;
        is_known && !self.once && self.generations[&number].position.head_len == 0 && self.dirty.contains(&number)
    }

    /// Begins to read a file, as the next generation after `after` of what was called `path` first.
    pub(super) fn begin(
        &mut self,
        found: &There,
        path: String,
        mut generation: u32,
        after: Option<u64>,
        from_end: bool,
    ) -> Result<(), End> {
        while self.by_partition.contains_key(&found.identity.partition(generation)) {
            generation += 1;
        }
        let now = self.context.clock.now();
        let mut position = Position {
            path,
            identity: found.identity,
            generation,
            offset: 0,
            head: String::new(),
            head_len: 0,
            tail: Some(0),
            finished: None,
            last_seen: now.0,
        };
        if from_end {
            match end_of(found, self.context.records.max_record_bytes) {
                Ok((offset, head, tail)) => {
                    position.offset = offset;
                    position.head_len = head.len() as u64;
                    position.head = content::hash(&head);
                    position.tail = tail;
                }
                Err(error) => {
                    self.trouble(&found.path, &error);
                    return Ok(());
                }
            }
        }
        let partition = found.identity.partition(generation);
        let mut generation = Generation::new(&self.context, partition, position, found.path.clone());
        generation.after = after;
        generation.looked = Some((found.size, found.modified));
        generation.grown = self.context.clock.monotonic();
        let number = self.add(generation);
        self.dirty.insert(number);
        if !self.is_first_look {
            self.announce_lane(number)?;
        }
        Ok(())
    }
}

/// Whether a file holds the first bytes of a generation and not yet enough of them to tell it by its guards.
fn is_beginning(found: &There, generation: &Generation) -> bool {
    if found.size >= generation.position.head_len {
        return false;
    }
    let head = |path: &Path| {
        let (file, identity) = content::open(path)?;
        let mut content = Content::new(file)?;
        Ok::<_, io::Error>((content.head(found.size)?, identity, content.form))
    };
    match (head(&found.path), head(&generation.path)) {
        // How long a compressed file is says nothing of how much it holds.
        (Ok((copied, _, form)), Ok((written, identity, _))) => {
            form == Form::Plain && identity == generation.identity() && copied == written
        }
        _ => false,
    }
}

/// Whether a file begins like the file of a generation, as far as both go.
fn is_alike(found: &There, generation: &Generation) -> bool {
    let head = |path: &Path| {
        let (file, identity) = content::open(path)?;
        Ok::<_, io::Error>((Content::new(file)?.head(HEAD_BYTES)?, identity))
    };
    match (head(&found.path), head(&generation.path)) {
        (Ok((copied, _)), Ok((written, identity))) => {
            let length = copied.len().min(written.len());
            identity == generation.identity() && length > 0 && copied[..length] == written[..length]
        }
        _ => false,
    }
}

/// What a file without a position is beside a generation; the content stands at the position where it matches.
fn candidate(position: &Position, found: &There) -> io::Result<(Candidate, Content)> {
    let (file, identity) = content::open(&found.path)?;
    if identity != found.identity {
        return Err(io::ErrorKind::NotFound.into());
    }
    let mut content = Content::new(file)?;
    let guards = content.guards(position)?;
    let size = (content.form == Form::Plain).then_some(found.size);
    Ok((Candidate { is_successor: found.path == Path::new(&position.path), guards, size }, content))
}

/// Where the last record of a file ends, and the guards of that place.
fn end_of(found: &There, max_record_bytes: usize) -> io::Result<(u64, Vec<u8>, Option<u32>)> {
    let (file, _) = content::open(&found.path)?;
    let mut content = Content::new(file)?;
    let offset = content.last_newline(max_record_bytes)?;
    let head = content.head(offset)?;
    let tail = content.tail(offset)?;
    Ok((offset, head, tail))
}

/// What has become of a file that is not open: it may have been truncated since.
fn closed_original(generation: &Generation) -> Original {
    let compare = || {
        let (file, identity) = content::open(&generation.path)?;
        let size = file.metadata()?.len();
        let guards = Content::new(file)?.guards(&generation.position)?;
        Ok::<_, io::Error>(
            (identity == generation.identity() && guards == Guards::Match).then_some(Original::Intact { size }),
        )
    };
    match compare() {
        Ok(original) => original.unwrap_or(Original::Gone),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Original::Gone,
        // Nobody knows: a copy is not read twice, and will be asked about again.
        Err(_) => Original::Intact { size: u64::MAX },
    }
}
