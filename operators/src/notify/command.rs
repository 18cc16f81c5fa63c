//! What people say to a running `notify`: silences, their ends, and that they take care.

use std::time::Duration;

use serde_json::Value as Json;
use tocsin_config::silence::Silence;
use tocsin_pipeline::time::Timestamp;

use super::notifier::Notifier;

/// Event time that is further behind the clock is that of records that have piled up, and not of a quiet hour: idle sources follow
/// the clock more closely.
const BEHIND: Duration = Duration::from_secs(60);

/// Does what a record of the source of commands says.
///
/// # Errors
/// Why not.
pub(super) fn obey(notifier: &mut Notifier, record: &Json, time: Timestamp) -> Result<(), String> {
    // What people say comes by the clock. A pipeline that goes through what has piled up is not hurried on by it: it counts as
    // said where event time stands.
    let is_behind = notifier.now > Timestamp::MIN && time > notifier.now.saturating_add(BEHIND);
    let time = if is_behind { notifier.now } else { time };
    notifier.advance(time);
    let text = |name: &str| record[name].as_str().ok_or_else(|| format!("the command has no `{name}`"));
    match text("command")? {
        "silence" => notifier.silence(Silence::of_json(&record["silence"])?, time)?,
        "expire" => notifier.expire_silence(text("id")?, time)?,
        "acknowledge" => {
            // Each `notify` is told; the command is for the one that it names.
            let is_ours = record["operator"].as_str().is_none_or(|name| *name == *notifier.settings.name);
            if is_ours {
                let id = text("id")?;
                if let Some(signature) = record["signature"].as_str() {
                    let link = notifier.settings.link.as_ref();
                    if !link.is_some_and(|link| link.is_signed(id, signature)) {
                        return Err("the link is not one of ours".to_owned());
                    }
                }
                notifier.acknowledge(id, record["by"].as_str().unwrap_or("somebody"), time)?;
            }
        }
        other => return Err(format!("there is no command `{other}`")),
    }
    Ok(())
}
