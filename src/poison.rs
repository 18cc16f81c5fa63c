//! Going on from the checkpoint: after a record has made an operator, or the whole process, fail, and after a transaction was
//! undone.

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
/// The longest wait before going on.
const PAUSE_MAX: Duration = Duration::from_secs(2);

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

/// When it was gone back to the checkpoint lately.
#[derive(Default)]
pub struct Failures(Vec<Duration>);

impl Failures {
    /// What is known after an operator has failed on a record, or what was written since the checkpoint was undone.
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
        let told = failure.downcast_ref();
        if !matches!(told, Some(RunError::Poisoned { held: Some(_), .. } | RunError::Undone { .. })) {
            return Err(failure);
        }
        self.0.retain(|at| now.saturating_sub(*at) < WITHIN);
        self.0.push(now);
        if !has_state || self.0.len() > FAILURES_MAX {
            return Err(failure);
        }
        match told {
            Some(RunError::Poisoned { component, message, held: Some(held) }) => {
                tracing::error!(
                    component,
                    message,
                    "an operator failed; going back to the checkpoint to find the record"
                );
                let guard = guard.learn(*held);
                guard.remember().context("noting which records are passed over")?;
                Ok(guard)
            }
            Some(RunError::Undone { component, message }) => {
                tracing::warn!(
                    component,
                    message,
                    "what was under way is undone; it is done again from the checkpoint"
                );
                Ok(guard.clone())
            }
            _ => Err(failure),
        }
    }

    /// How long to wait before going on: the more often it was gone back lately, the longer.
    pub fn pause(&self) -> Duration {
        PAUSE_MAX.min(Duration::from_millis(100) * u32::try_from(self.0.len()).unwrap_or(u32::MAX))
    }
}
