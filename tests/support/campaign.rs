//! Campaigns: the real binary under faults, many times, with one line of results for each.
//!
//! A campaign has two sizes: the one that every change is tested with, and a long one (`TOCSIN_CAMPAIGN=long`, or its own
//! variable, such as `TOCSIN_KILLS=5000`). `TOCSIN_SEED` repeats a run. Results are appended to `TOCSIN_RESULTS` (default
//! `target/campaigns.jsonl`); with `TOCSIN_SKIP_DONE=1` a campaign that stands there at this size without fault is left out.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};
use tocsin_pipeline::fault::Defect;

use super::random::Random;

/// What is done to the daemon, and how often.
pub struct Campaign {
    pub name: &'static str,
    /// Sets the size.
    pub variable: &'static str,
    /// The size that every change is tested with, and the long one.
    pub sizes: (u64, u64),
    pub body: fn(&Order, &mut Outcome) -> anyhow::Result<()>,
}

/// What a run of a campaign is told.
pub struct Order {
    pub size: u64,
    pub seed: u64,
    /// Planted in every daemon that the run starts.
    pub planted: Option<Defect>,
}

impl Order {
    pub fn random(&self) -> Random {
        Random(self.seed)
    }
}

/// What came of a run.
#[derive(Debug, Default)]
pub struct Outcome {
    pub runs: u64,
    pub lost: u64,
    pub duplicated: u64,
    /// What else must not be, a sentence each.
    pub violations: Vec<String>,
    /// What was measured beside.
    pub notes: BTreeMap<&'static str, Json>,
}

impl Outcome {
    pub fn is_clean(&self) -> bool {
        self.lost == 0 && self.duplicated == 0 && self.violations.is_empty()
    }

    /// Holds what was expected against what was seen, and says where they differ.
    pub fn compare<T: Ord + Debug>(
        &mut self,
        what: &str,
        expected: impl IntoIterator<Item = T>,
        seen: impl IntoIterator<Item = T>,
    ) {
        let mut balance: BTreeMap<T, i64> = BTreeMap::new();
        expected.into_iter().for_each(|item| *balance.entry(item).or_default() += 1);
        seen.into_iter().for_each(|item| *balance.entry(item).or_default() -= 1);
        let missing = balance.values().filter(|count| **count > 0).sum::<i64>().unsigned_abs();
        let surplus = balance.values().filter(|count| **count < 0).sum::<i64>().unsigned_abs();
        self.lost += missing;
        self.duplicated += surplus;
        if missing + surplus > 0 {
            let example = balance.iter().find(|(_, count)| **count != 0);
            println!("{what}: {missing} lost, {surplus} too many, the first {example:?}");
        }
    }

    pub fn note(&mut self, name: &'static str, value: impl Into<Json>) {
        self.notes.insert(name, value.into());
    }
}

impl Campaign {
    /// Runs it at the size that is asked for, writes the result down and asserts that nothing was lost, repeated or wrong.
    pub fn run(&self) {
        let size = self.size();
        if std::env::var_os("TOCSIN_SKIP_DONE").is_some() && self.is_done(size) {
            println!("skipped: {}: it is done at size {size}", self.name);
            return;
        }
        let seed = seed();
        println!("{}: TOCSIN_SEED={seed} {}={size}", self.name, self.variable);
        let begun = Instant::now();
        let outcome = self.once(&Order { size, seed, planted: None });
        let took = begun.elapsed();
        self.write_down(size, seed, took, &outcome);
        println!("{}: {outcome:?} in {took:.1?}", self.name);
        assert!(
            outcome.is_clean(),
            "{}: {} lost, {} duplicated, {:#?}; repeat it with TOCSIN_SEED={seed} {}={size}",
            self.name,
            outcome.lost,
            outcome.duplicated,
            outcome.violations,
            self.variable
        );
    }

    /// One run that only tells what came of it. An error, and a panic, count as violations.
    pub fn once(&self, order: &Order) -> Outcome {
        let mut outcome = Outcome::default();
        let body = std::panic::AssertUnwindSafe(|| (self.body)(order, &mut outcome));
        match std::panic::catch_unwind(body) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => outcome.violations.push(format!("{error:#}")),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
                outcome.violations.push(text.unwrap_or("it panicked").to_owned());
            }
        }
        outcome
    }

    fn size(&self) -> u64 {
        let of = |variable| std::env::var(variable).ok().and_then(|text| text.parse().ok());
        let is_long = std::env::var("TOCSIN_CAMPAIGN").is_ok_and(|size| size == "long");
        of(self.variable).unwrap_or(if is_long { self.sizes.1 } else { self.sizes.0 })
    }

    fn is_done(&self, size: u64) -> bool {
        results().iter().any(|line| {
            line["campaign"] == self.name
                && line["size"] == size
                && [&line["lost"], &line["duplicated"], &line["violations"]].iter().all(|count| **count == 0)
        })
    }

    fn write_down(&self, size: u64, seed: u64, took: Duration, outcome: &Outcome) {
        let mut line = json!({
            "campaign": self.name,
            "size": size,
            "runs": outcome.runs,
            "lost": outcome.lost,
            "duplicated": outcome.duplicated,
            "violations": outcome.violations.len(),
            "seed": seed,
            "seconds": (took.as_secs_f64() * 10.0).round() / 10.0,
            "commit": commit(),
        });
        for (name, value) in &outcome.notes {
            line[*name] = value.clone();
        }
        append(&line);
    }
}

/// The seed that was asked for, or one that no run before had.
pub fn seed() -> u64 {
    let given = std::env::var("TOCSIN_SEED").ok().and_then(|text| text.parse().ok());
    given.unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Random(now.as_nanos() as u64 ^ u64::from(std::process::id())).below(1 << 32)
    })
}

fn path() -> PathBuf {
    std::env::var_os("TOCSIN_RESULTS")
        .map_or_else(|| std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("target/campaigns.jsonl"), PathBuf::from)
}

/// The lines of results that are there, oldest first.
pub fn results() -> Vec<Json> {
    let text = fs::read_to_string(path()).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// Appends a line of results.
pub fn append(line: &Json) {
    if let Some(folder) = path().parent() {
        fs::create_dir_all(folder).unwrap();
    }
    let mut file = fs::OpenOptions::new().create(true).append(true).open(path()).unwrap();
    // In one write: several campaigns may end at the same time.
    file.write_all(format!("{line}\n").as_bytes()).unwrap();
}

/// The commit that is tested, where that can be told.
fn commit() -> Option<String> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = std::process::Command::new("git").args(["rev-parse", "--short", "HEAD"]).current_dir(folder).output();
    let text = String::from_utf8(output.ok().filter(|output| output.status.success())?.stdout).ok()?;
    Some(text.trim().to_owned())
}
