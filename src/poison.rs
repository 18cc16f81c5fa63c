//! Going on after a record has made an operator, or the whole process, fail.

use std::fs::OpenOptions;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use signal_hook::consts::SIGABRT;
use tocsin_pipeline::poison::Guard;
use tocsin_pipeline::runtime::RunError;

/// With more failures than this within [`WITHIN`] something else is wrong than a record or two.
const FAILURES_MAX: usize = 20;
const WITHIN: Duration = Duration::from_secs(60);

/// The guard of a data directory; from now on it is written down there if the process ends itself.
pub fn guard(data_dir: &Path) -> anyhow::Result<Guard> {
    let told = || format!("noting what is in hand in {}", data_dir.display());
    let guard = Guard::open(data_dir).with_context(told)?;
    let file = OpenOptions::new().append(true).open(Guard::abort_file(data_dir)).with_context(told)?;
    // An abort, a panic in a panic, a stack that overflows and memory that runs out all end in this signal; a kill from
    // outside does not. The handler writes one byte.
    signal_hook::low_level::pipe::register(SIGABRT, file).context("listening for SIGABRT")?;
    Ok(guard)
}

/// When operators failed lately.
#[derive(Default)]
pub struct Failures(Vec<Duration>);

impl Failures {
    /// What is known after an operator has failed on a record.
    ///
    /// # Errors
    /// The failure itself, where it is another, nothing is kept to go back to, or there have been too many.
    pub fn learn(
        &mut self,
        guard: &Guard,
        failure: anyhow::Error,
        has_state: bool,
        now: Duration,
    ) -> anyhow::Result<Guard> {
        let Some(RunError::Poisoned { component, message, held: Some(held) }) = failure.downcast_ref() else {
            return Err(failure);
        };
        self.0.retain(|at| now.saturating_sub(*at) < WITHIN);
        self.0.push(now);
        if !has_state || self.0.len() > FAILURES_MAX {
            return Err(failure);
        }
        tracing::error!(component, message, "an operator failed; going back to the checkpoint to find the record");
        let guard = guard.learn(*held);
        guard.remember().context("noting which records are passed over")?;
        Ok(guard)
    }
}
