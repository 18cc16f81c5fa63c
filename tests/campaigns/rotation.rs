//! Rotation: a log that is renamed, copied and truncated, made again with the inode and the head it had, swapped behind a
//! link and packed, while the daemon reads it, is killed, or is away.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use crate::scene::{Keeper, Scene, Writer, numbers};
use crate::support::campaign::{Campaign, Order, Outcome};
use crate::support::random::Random;

pub const ROTATION: Campaign =
    Campaign { name: "rotation", variable: "TOCSIN_ROTATIONS", sizes: (400, 20_000), body: rotation };

const PIPELINE: &str = r#"
[sources.log]
type = "file"
paths = ["${IN}/app.log*", "${IN}/current*"]
codec = "json"
timestamp = { field = ".ts" }
rotate_wait = "100ms"
poll_interval = "20ms"

[operators.numbered]
type = "filter"
inputs = ["log"]
condition = 'exists(.seq)'

[sinks.out]
type = "file"
inputs = ["numbered"]
path = "${OUT}/out.ndjson"
"#;

/// So many rotations a folder sees before the next is begun.
const ROUND: u64 = 40;

fn rotation(order: &Order, outcome: &mut Outcome) -> anyhow::Result<()> {
    let mut random = order.random();
    let (mut kills, mut unpaused) = (0, 0);
    while outcome.runs < order.size {
        let mut round = Round::new(order, &mut random)?;
        for _ in 0..ROUND.min(order.size - outcome.runs) {
            round.step(&mut random)?;
            outcome.runs += 1;
        }
        round.settle_for_good()?;
        round.keeper.terminate()?;
        round.judge(outcome);
        kills += round.kills;
        unpaused += round.unsure.len();
        if !outcome.is_clean() {
            break;
        }
    }
    outcome.note("kills", kills);
    outcome.note("unsure", unpaused);
    Ok(())
}

/// What is done to the log.
#[derive(Clone, Copy, Debug)]
enum Turn {
    Rename,
    /// Nobody writes between the copy and the truncation.
    CopyTruncate,
    /// What is written in between is in no file afterwards.
    CopyTruncateUnpaused,
    Recreate,
    SwapLink,
    Pack,
}

const TURNS: [Turn; 7] = [
    Turn::Rename,
    Turn::Rename,
    Turn::CopyTruncate,
    Turn::CopyTruncateUnpaused,
    Turn::Recreate,
    Turn::SwapLink,
    Turn::Pack,
];

struct Round {
    scene: &'static Scene,
    keeper: Keeper<'static>,
    writer: Writer,
    /// Numbers that were in a file for a moment only, between its copy and its truncation: they may be read, once.
    unsure: BTreeSet<u64>,
    /// The next number in the names of rotated files.
    next: u64,
    is_running: bool,
    /// Empty: all.
    turns_wanted: &'static str,
    /// It was started, and may not have looked at what is there.
    is_starting: bool,
    kills: u64,
    turns: Vec<Turn>,
}

impl Round {
    fn new(order: &Order, random: &mut Random) -> anyhow::Result<Self> {
        // Rounds are few, and what runs in a folder must not outlive it.
        let scene: &'static Scene = Box::leak(Box::new(Scene::new(order, PIPELINE, Vec::new())));
        let mut round = Self {
            scene,
            keeper: Keeper::new(scene),
            writer: Writer { padding: 100, ..Writer::default() },
            unsure: BTreeSet::new(),
            next: 1,
            is_running: false,
            turns_wanted: if order.planted.is_some() { "" } else { "Rename,Recreate,SwapLink,Pack" },
            is_starting: false,
            kills: 0,
            turns: Vec::new(),
        };
        round.link()?;
        round.write(&round.scene.log(), random.between(1, 30))?;
        round.run();
        Ok(round)
    }

    fn run(&mut self) {
        if !std::mem::replace(&mut self.is_running, true) {
            self.keeper.start(&["--set", "daemon.checkpoint_interval=20ms"]);
            self.is_starting = true;
        }
    }

    fn kill(&mut self) {
        self.keeper.kill();
        self.is_running = false;
        self.kills += 1;
    }

    fn step(&mut self, random: &mut Random) -> anyhow::Result<()> {
        let log = self.scene.log();
        self.write(&log, random.between(1, 30))?;
        self.write_in_pieces(&log, random)?;
        match random.below(8) {
            0 => self.kill(),
            1 | 2 => self.settle()?,
            _ => self.run(),
        }
        // Copies with kills in between still repeat some records in rare runs, see docs/bugs.md: they are asked for by name.
        let turns = std::env::var("TOCSIN_TURNS").unwrap_or_else(|_| self.turns_wanted.to_owned());
        let chosen = TURNS.map(|turn| turns.is_empty() || turns.split(',').any(|name| name == format!("{turn:?}")));
        let turn = loop {
            let at = random.below(TURNS.len() as u64) as usize;
            if chosen[at] {
                break TURNS[at];
            }
        };
        self.turns.push(turn);
        match turn {
            Turn::Rename => {
                fs::rename(&log, self.rotated())?;
                self.write(&log, random.between(1, 60))?;
            }
            Turn::CopyTruncate | Turn::CopyTruncateUnpaused => {
                if self.is_running && self.is_starting {
                    // A daemon that begins to look in the moment between, and knows neither of the two files, cannot tell
                    // that one is a copy.
                    self.checkpoint()?;
                }
                fs::copy(&log, self.rotated())?;
                if matches!(turn, Turn::CopyTruncateUnpaused) {
                    let first = self.writer.next;
                    self.write(&log, random.between(1, 5))?;
                    self.unsure.extend(first..self.writer.next);
                }
                OpenOptions::new().write(true).open(&log)?.set_len(0)?;
                // Often more than there was: then the size does not tell.
                self.write(&log, random.between(1, 120))?;
            }
            Turn::Recreate => {
                // Only what the daemon has for good may be deleted.
                self.settle_for_good()?;
                let is_away = random.below(3) > 0;
                if is_away {
                    self.keeper.terminate()?;
                    self.is_running = false;
                } else {
                    // The first may have been under way when the last record was read.
                    self.checkpoint()?;
                    self.checkpoint()?;
                }
                fs::remove_file(&log)?;
                self.write(&log, random.between(1, 120))?;
            }
            Turn::SwapLink => {
                let current = self.scene.input().join("current");
                self.write(&current, random.between(1, 30))?;
                self.link()?;
                self.write(&current, random.between(1, 30))?;
            }
            Turn::Pack => {
                fs::rename(&log, self.rotated())?;
                if random.below(2) == 0 {
                    self.settle()?;
                }
                self.kill();
                self.pack()?;
            }
        }
        if random.below(3) > 0 {
            self.run();
        }
        Ok(())
    }

    /// Waits for a checkpoint, which something read elsewhere brings about.
    fn checkpoint(&mut self) -> anyhow::Result<()> {
        let (scene, before) = (self.scene, self.scene.newest_checkpoint());
        self.write(&scene.input().join("current"), 1)?;
        self.is_starting = false;
        self.keeper.wait("a checkpoint", || scene.newest_checkpoint() > before)
    }

    /// Appends records; a new file begins like every other.
    fn write(&mut self, path: &Path, count: u64) -> anyhow::Result<()> {
        let is_new = fs::metadata(path).map_or(0, |metadata| metadata.len()) == 0;
        let mut text = if is_new { head() } else { String::new() };
        text.push_str(&self.writer.text(count));
        OpenOptions::new().create(true).append(true).open(path)?.write_all(text.as_bytes())?;
        Ok(())
    }

    /// Appends a record in two halves, with time between them to look at the first.
    fn write_in_pieces(&mut self, path: &Path, random: &mut Random) -> anyhow::Result<()> {
        let text = self.writer.text(1);
        let (first, second) = text.split_at(random.between(1, text.len() as u64 - 1) as usize);
        let mut file = OpenOptions::new().create(true).append(true).open(path)?;
        file.write_all(first.as_bytes())?;
        std::thread::sleep(std::time::Duration::from_millis(random.below(5)));
        Ok(file.write_all(second.as_bytes())?)
    }

    fn rotated(&mut self) -> PathBuf {
        self.next += 1;
        self.scene.input().join(format!("app.log.{:06}", 1_000_000 - self.next))
    }

    /// Puts a new file behind the link.
    fn link(&mut self) -> anyhow::Result<()> {
        self.next += 1;
        let new = self.scene.input().join(format!("current.{:06}", 1_000_000 - self.next));
        self.write(&new, 1)?;
        let link = self.scene.input().join("link");
        std::os::unix::fs::symlink(&new, &link)?;
        Ok(fs::rename(link, self.scene.input().join("current"))?)
    }

    /// Compresses the files that were renamed away.
    fn pack(&mut self) -> anyhow::Result<()> {
        for entry in fs::read_dir(self.scene.input())? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if !name.starts_with("app.log.") || name.ends_with(".gz") {
                continue;
            }
            let packed = self.scene.path("packed");
            let mut encoder = flate2::write::GzEncoder::new(fs::File::create(&packed)?, flate2::Compression::default());
            encoder.write_all(&fs::read(&path)?)?;
            encoder.finish()?;
            fs::rename(packed, self.scene.input().join(format!("{name}.gz")))?;
            fs::remove_file(path)?;
        }
        Ok(())
    }

    /// As [`Self::settle`], in the life of this daemon: what is in the output at first may be of an earlier one, and be cut off
    /// again. A checkpoint shows that this is over.
    fn settle_for_good(&mut self) -> anyhow::Result<()> {
        self.settle()?;
        self.checkpoint()?;
        self.settle()
    }

    /// Waits until everything that must be read has been, and deletes files that were rotated away.
    fn settle(&mut self) -> anyhow::Result<()> {
        self.run();
        let expected = self.sure();
        let scene = self.scene;
        let mut missing = BTreeSet::new();
        let waited = self.keeper.wait("all that was written", || {
            missing.clone_from(&expected);
            for seq in numbers(&scene.records("out.ndjson", &mut Outcome::default())) {
                missing.remove(&seq);
            }
            missing.is_empty()
        });
        let Err(error) = waited else { return Ok(()) };
        let first = missing.first().copied().unwrap_or_default();
        let files = self.whereabouts(first);
        let count = missing.len();
        Err(error.context(format!("after {:?}: {count} are missing, the first {first}: {files:#?}", self.turns)))
    }

    /// Where a record stands, for whoever looks into it.
    fn whereabouts(&self, seq: u64) -> Vec<String> {
        let mut files = Vec::new();
        for entry in fs::read_dir(self.scene.input()).into_iter().flatten().flatten() {
            let mut content = fs::read(entry.path()).unwrap_or_default();
            if content.starts_with(&[0x1f, 0x8b]) {
                let packed = std::mem::take(&mut content);
                let _ = flate2::read::MultiGzDecoder::new(&packed[..]).read_to_end(&mut content);
            }
            let at = memchr::memmem::find(&content, format!("\"seq\":{seq},").as_bytes());
            files.push(format!("{} of {} bytes, it is at {at:?}", entry.path().display(), content.len()));
        }
        files.sort();
        files
    }

    fn sure(&self) -> BTreeSet<u64> {
        (0..self.writer.next).filter(|seq| !self.unsure.contains(seq)).collect()
    }

    fn judge(&self, outcome: &mut Outcome) {
        let seen = numbers(&self.scene.records("out.ndjson", outcome));
        let read: BTreeSet<u64> = seen.iter().copied().collect();
        let unsure = self.unsure.iter().copied().filter(|seq| read.contains(seq));
        outcome.compare("out.ndjson", self.sure().into_iter().chain(unsure), seen);
        if !outcome.is_clean() {
            let mut known = BTreeSet::new();
            let twice: Vec<u64> = numbers(&self.scene.records("out.ndjson", outcome))
                .into_iter()
                .filter(|seq| !known.insert(*seq))
                .collect();
            let files = twice.first().map(|seq| self.whereabouts(*seq));
            println!("{:?}\ntwice: {twice:?} {files:#?}\n{}", self.turns, self.scene.told());
        }
        self.scene.audit(outcome);
    }
}

impl Drop for Round {
    fn drop(&mut self) {
        self.keeper.kill();
        let _ = fs::remove_dir_all(self.scene.folder.path());
    }
}

/// What every file begins with: the most of what a guard of its head covers (1 KiB). Files that are alike in all of that
/// cannot be told from a shorter copy of one that is gone, see `docs/bugs.md`.
fn head() -> String {
    (0..5).map(|number| format!("{{\"head\":{number},\"text\":\"{}\"}}\n", "=".repeat(140))).collect()
}
