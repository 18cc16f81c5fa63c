//! How far a finite run has come: on a terminal as one line that is written over, in logs every ten seconds.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::time::Duration;

use tocsin_pipeline::metrics::ComponentMetrics;
use tocsin_pipeline::time::Clock;

/// Tells the progress of `sources` until it is dropped (its task aborted).
pub async fn tell(sources: Vec<ComponentMetrics>, clock: Arc<dyn Clock>) {
    let is_terminal = std::io::stderr().is_terminal();
    let interval = if is_terminal { Duration::from_secs(1) } else { Duration::from_secs(10) };
    let begun = clock.monotonic();
    loop {
        tokio::time::sleep(interval).await;
        let read = Read::of(&sources);
        let line = read.line(clock.monotonic().saturating_sub(begun));
        if is_terminal {
            // Clear to the end of the line: the next one may be shorter.
            let _ = write!(std::io::stderr(), "\r{line}\x1b[K");
        } else {
            tracing::info!(bytes = read.bytes, records = read.records, "{line}");
        }
    }
}

/// What has been read of a finite run, in all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Read {
    pub bytes: u64,
    pub records: u64,
    /// How many bytes there are in all, if every source knows.
    pub expected: Option<u64>,
}

impl Read {
    pub fn of(sources: &[ComponentMetrics]) -> Self {
        Self {
            bytes: sources.iter().map(ComponentMetrics::received_bytes).sum(),
            records: sources.iter().map(ComponentMetrics::received_events).sum(),
            expected: sources.iter().map(ComponentMetrics::expected_bytes).sum(),
        }
    }

    /// One line for a person.
    pub fn line(&self, elapsed: Duration) -> String {
        let seconds = elapsed.as_secs_f64().max(1e-9);
        let rate = self.bytes as f64 / seconds;
        let mut line = format!(
            "{} records, {:.1} MB at {:.1} MB/s, {:.0} records/s",
            self.records,
            self.bytes as f64 / 1e6,
            rate / 1e6,
            self.records as f64 / seconds
        );
        if let Some(expected) = self.expected.filter(|expected| *expected > 0) {
            let share = (self.bytes as f64 / expected as f64).min(1.0);
            let left = (expected.saturating_sub(self.bytes)) as f64 / rate.max(1.0);
            line.push_str(&format!(", {:.0} %, {left:.0} s to go", share * 100.0));
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_end_gives_a_share_and_a_time_to_go() {
        let read = Read { bytes: 5_000_000, records: 20_000, expected: Some(20_000_000) };
        assert_eq!(
            read.line(Duration::from_secs(2)),
            "20000 records, 5.0 MB at 2.5 MB/s, 10000 records/s, 25 %, 6 s to go"
        );
        let read = Read { expected: None, ..read };
        assert_eq!(read.line(Duration::from_secs(2)), "20000 records, 5.0 MB at 2.5 MB/s, 10000 records/s");
    }
}
