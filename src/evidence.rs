//! `tocsin evidence`: whether the records that made an alert are still there, and still what they were.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use serde_json::{Value as Json, json};
use tocsin_pipeline::checkpoint::Epoch;

use crate::catalog::CATALOG;
use crate::cli::{ConfigurationArguments, EvidenceArguments, ReportFormat};
use crate::commands::{checked, print};
use crate::data_dir;

/// Finds what was told under an id and looks its evidence up.
pub fn evidence(arguments: &EvidenceArguments) -> anyhow::Result<ExitCode> {
    let data_dir = match &arguments.data_dir {
        Some(data_dir) => data_dir.clone(),
        None => {
            let configuration = ConfigurationArguments { files: arguments.files.clone(), set: Vec::new() };
            let Some(plan) = checked(&configuration) else { return Ok(ExitCode::from(1)) };
            let Some(data_dir) = plan.daemon.data_dir else {
                bail!("the configuration has no `daemon.data_dir`, so nothing is kept");
            };
            data_dir
        }
    };
    let record = find(&data_dir, &arguments.id)?;
    let pieces = record["evidence"].as_array().into_iter().flatten();
    let pieces: Vec<_> = pieces.map(|piece| (piece, look_up(piece))).collect();
    print(&match arguments.format {
        ReportFormat::Text => text(&record, &pieces),
        ReportFormat::Json => lines(&record, &pieces),
    })?;
    Ok(ExitCode::from(u8::from(!pieces.iter().all(|(_, verdict)| verdict.is_good()))))
}

/// So much of a fingerprint is enough: less may be that of another alert that is still to come.
const FINGERPRINT_MIN: usize = 6;

/// The record that somebody means, as the newest checkpoint has it.
fn find(data_dir: &Path, id: &str) -> anyhow::Result<Json> {
    let mut records = None;
    data_dir::each_epoch(data_dir, |found| {
        if let (None, Ok(epoch)) = (&records, found.epoch) {
            records = Some(told(&epoch));
        }
    })?;
    let Some(records) = records else { bail!("{} holds no checkpoint that can be read", data_dir.display()) };
    let beginning = |name: &str| -> Vec<&Json> {
        let begins =
            |record: &&Json| record[name].as_str().is_some_and(|known| !id.is_empty() && known.starts_with(id));
        records.iter().filter(begins).collect()
    };
    match &beginning("id")[..] {
        [record] => return Ok((*record).clone()),
        [] => {}
        several => {
            let ids: Vec<_> = several.iter().take(5).filter_map(|record| record["id"].as_str()).collect();
            bail!("{} records begin with the id {id:?}, such as {}", several.len(), ids.join(", "))
        }
    }
    let of_alert = if id.len() < FINGERPRINT_MIN { Vec::new() } else { beginning("fingerprint") };
    newest(&of_alert)?.cloned().with_context(|| {
        format!(
            "none of the {} records that are kept of what was told begins with the id {id:?}, nor (with six letters or more) \
             does the fingerprint of its alert, which `tocsin alerts` shows",
            records.len()
        )
    })
}

/// Of the records of an alert the newest that has evidence; `None` where there is no record.
fn newest<'a>(records: &[&'a Json]) -> anyhow::Result<Option<&'a Json>> {
    let alerts: BTreeSet<_> = records.iter().filter_map(|record| record["fingerprint"].as_str()).collect();
    if alerts.len() > 1 {
        let alerts: Vec<_> = alerts.iter().copied().take(5).collect();
        bail!("several alerts have a fingerprint that begins so, such as {}", alerts.join(", "));
    }
    let has_evidence = |record: &&&Json| record["evidence"].as_array().is_some_and(|pieces| !pieces.is_empty());
    let newest = records.iter().rev().find(has_evidence).copied();
    if newest.is_none() && !records.is_empty() {
        bail!("nothing that was told of this alert has evidence");
    }
    Ok(newest)
}

/// All that rules have told and still keep.
fn told(epoch: &Epoch) -> Vec<Json> {
    let restored = &epoch.restored;
    let operators = restored.operators.iter().filter_map(|(name, (_, groups))| {
        let kind = restored.facts.get(name)?.kind.as_deref()?;
        let pieces: Vec<&[u8]> = groups.values().map(|piece| &piece[..]).collect();
        Some(CATALOG.told(kind, name, &pieces).transitions)
    });
    operators.flatten().collect()
}

/// What has become of a record.
enum Verdict {
    /// It stands where it stood.
    Verified,
    /// It stands at the same place of another file: its own was rotated.
    Moved(PathBuf),
    /// An operator made it from others, so it stands nowhere but in the alert, and that is whole.
    Computed(String),
    /// It is no longer to be had, for this reason.
    Gone(String),
    /// Where it stands cannot be read from here.
    Unread(String),
}

impl Verdict {
    fn is_good(&self) -> bool {
        matches!(self, Self::Verified | Self::Moved(_) | Self::Computed(_))
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Verified => "verified",
            Self::Moved(_) => "moved",
            Self::Computed(_) => "computed",
            Self::Gone(_) => "gone",
            Self::Unread(_) => "unread",
        }
    }

    fn told(&self) -> String {
        match self {
            Self::Verified => "as it was".to_owned(),
            Self::Moved(path) => format!("as it was, now in {}", path.display()),
            Self::Computed(operator) => format!("made by `{operator}`, and kept whole"),
            Self::Gone(reason) => format!("GONE: {reason}"),
            Self::Unread(reason) => format!("not looked up: {reason}"),
        }
    }
}

fn look_up(piece: &Json) -> Verdict {
    let coordinate = &piece["coordinate"];
    let hash = piece["hash"].as_str();
    if let Some(operator) = coordinate["operator"].as_str() {
        let raw = piece["raw"].as_str().filter(|_| piece["cut_from"].is_null());
        return match (raw, hash) {
            (Some(raw), Some(hash)) if blake3::hash(raw.as_bytes()).to_hex().as_str() == hash => {
                Verdict::Computed(operator.to_owned())
            }
            (Some(_), Some(_)) => Verdict::Gone("the text that is kept is not that of its hash".to_owned()),
            _ => Verdict::Unread(format!("it was made by `{operator}`, and kept in part")),
        };
    }
    let Some(hash) = hash else { return Verdict::Unread("it is kept without a hash".to_owned()) };
    if let Some(topic) = coordinate["topic"].as_str() {
        let place = format!("partition {} at offset {}", coordinate["partition"], coordinate["offset"]);
        return Verdict::Unread(format!("it is in the topic {topic}, {place}: ask a broker"));
    }
    match (coordinate["file"].as_str(), coordinate["offset"].as_u64(), coordinate["length"].as_u64()) {
        (Some(file), Some(offset), Some(length)) => in_files(Path::new(file), offset, length, hash),
        _ => Verdict::Unread("it came over a connection, which keeps nothing".to_owned()),
    }
}

fn in_files(path: &Path, offset: u64, length: u64, hash: &str) -> Verdict {
    let read = tocsin_sources::reread(path, offset, length);
    let is_it = |bytes: &[u8]| blake3::hash(bytes).to_hex().as_str() == hash;
    if let Ok(Some(bytes)) = &read
        && is_it(bytes)
    {
        return Verdict::Verified;
    }
    for other in tocsin_sources::rotated(path) {
        if let Ok(Some(bytes)) = tocsin_sources::reread(&other, offset, length)
            && is_it(&bytes)
        {
            return Verdict::Moved(other);
        }
    }
    let nowhere = "and no other file of its rotation has it there";
    Verdict::Gone(match read {
        Ok(Some(_)) => format!("{} holds something else there, {nowhere}", path.display()),
        Ok(None) => format!("{} ends before it, {nowhere}", path.display()),
        Err(error) => format!("{} cannot be read ({error}), {nowhere}", path.display()),
    })
}

/// For programs: the record, then each piece of its evidence.
fn lines(record: &Json, pieces: &[(&Json, Verdict)]) -> String {
    let mut text = String::new();
    let mut record = record.clone();
    record["kind"] = "alert".into();
    let _ = writeln!(text, "{record}");
    for (piece, verdict) in pieces {
        let found = match verdict {
            Verdict::Moved(path) => Some(path.display().to_string()),
            _ => piece["coordinate"]["file"].as_str().filter(|_| verdict.is_good()).map(str::to_owned),
        };
        let told = json!({
            "kind": "evidence", "verdict": verdict.name(), "message": verdict.told(), "found_in": found,
            "coordinate": piece["coordinate"], "source": piece["source"], "hash": piece["hash"],
        });
        let _ = writeln!(text, "{told}");
    }
    text
}

/// For people.
fn text(record: &Json, pieces: &[(&Json, Verdict)]) -> String {
    let mut text = String::new();
    let word = |name: &str| record[name].as_str().unwrap_or_default();
    let labels = record["labels"].as_object().into_iter().flatten();
    let labels: Vec<_> = labels.map(|(name, label)| format!("{name}={label}")).collect();
    let _ = writeln!(text, "{} {} {{{}}}", word("alert"), word("state"), labels.join(", "));
    let end = record["ends_at"].as_str().map_or(String::new(), |end| format!(" to {end}"));
    let time = if word("state") == "amended" { word("time") } else { word("starts_at") };
    let _ = writeln!(text, "  {time}{end}, id {}", word("id"));
    for (name, annotation) in record["annotations"].as_object().into_iter().flatten() {
        let _ = writeln!(text, "  {name}: {}", one_line(annotation));
    }
    let matches = record["matches"].as_u64().unwrap_or_default();
    let _ =
        writeln!(text, "  values: {}\n\n{} of {matches} records are kept as evidence", record["values"], pieces.len());
    for (at, (piece, verdict)) in pieces.iter().enumerate() {
        let source = piece["source"].as_str().unwrap_or_default();
        let _ = writeln!(text, "\n{}. {source}, {}: {}", at + 1, place(&piece["coordinate"]), verdict.told());
        let around = |name: &str| piece[name].as_array().into_iter().flatten();
        let lines = around("before").chain([*piece]).chain(around("after"));
        for line in lines {
            let mark = if std::ptr::eq(line, *piece) { '>' } else { ' ' };
            let _ = writeln!(text, "   {mark} {}", raw(line));
        }
    }
    let good = pieces.iter().filter(|(_, verdict)| verdict.is_good()).count();
    let _ = match pieces.len() {
        0 => writeln!(text),
        all if all == good => writeln!(text, "\nall of them are what they were"),
        all => writeln!(text, "\n{} of {all} are gone or were not looked up", all - good),
    };
    text
}

fn place(coordinate: &Json) -> String {
    let number = |name: &str| coordinate[name].as_u64().unwrap_or_default();
    match (coordinate["file"].as_str(), coordinate["topic"].as_str(), coordinate["time"].as_str()) {
        (Some(file), ..) => format!("{file} at {}, {} bytes", number("offset"), number("length")),
        (_, Some(topic), _) => format!("{topic} {} at {}", number("partition"), number("offset")),
        (_, _, Some(time)) => time.to_owned(),
        _ => format!("at {}, {} bytes", number("offset"), number("length")),
    }
}

fn raw(line: &Json) -> String {
    let text = if line["raw"].is_null() { &line["raw_base64"] } else { &line["raw"] };
    let cut = if line["cut_from"].is_null() { "" } else { "…" };
    format!("{}{cut}", one_line(text))
}

/// A text without what would do something to a terminal.
fn one_line(text: &Json) -> String {
    let text = text.as_str().map_or_else(|| text.to_string(), str::to_owned);
    text.chars().map(|letter| if letter.is_control() { '\u{fffd}' } else { letter }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_record_of_one_alert_that_has_evidence_is_meant() {
        let record = |fingerprint: &str, id: u32, evidence: &[u32]| json!({ "fingerprint": fingerprint, "id": id, "evidence": evidence });
        let (old, new) = (record("abcdef1", 1, &[1]), record("abcdef1", 2, &[1]));
        let (amended, other) = (record("abcdef1", 3, &[]), record("abcdef2", 4, &[1]));
        assert_eq!(newest(&[&old, &new, &amended]).unwrap(), Some(&new));
        assert_eq!(newest(&[]).unwrap(), None);
        let told = |records: &[&Json]| newest(records).unwrap_err().to_string();
        assert_eq!(told(&[&amended]), "nothing that was told of this alert has evidence");
        assert_eq!(told(&[&old, &other]), "several alerts have a fingerprint that begins so, such as abcdef1, abcdef2");
    }
}
