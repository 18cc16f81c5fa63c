//! The daemon's own log: on stderr, readable on a terminal, JSON otherwise.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};

/// Starts logging at `level`; `TOCSIN_LOG` overrides it, with tracing's filter syntax.
pub fn init(level: &str) {
    let filter = EnvFilter::try_from_env("TOCSIN_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    // Where nobody reads what is said any more, saying so would end whoever says something.
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    let builder = builder.log_internal_errors(false);
    // A second call finds a logger in place: in tests that run commands one after the other.
    let _ = if std::io::stderr().is_terminal() {
        builder.with_timer(TimeOfDay).try_init()
    } else {
        builder.json().flatten_event(true).with_timer(SystemTime).try_init()
    };
}

/// Hours, minutes and seconds: a person at a terminal knows the day.
struct TimeOfDay;

impl FormatTime for TimeOfDay {
    fn format_time(&self, writer: &mut tracing_subscriber::fmt::format::Writer<'_>) -> std::fmt::Result {
        let mut full = String::new();
        SystemTime.format_time(&mut tracing_subscriber::fmt::format::Writer::new(&mut full))?;
        writer.write_str(full.get(11..19).unwrap_or(&full))
    }
}
