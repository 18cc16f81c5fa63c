//! `tocsin recover`: what the daemon must not decide by itself. It tells what it would do and what that costs, and does it only
//! when that is accepted. Nothing is deleted: what is in the way is moved aside.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, anyhow, bail};
use clap::ValueEnum;
use tocsin_pipeline::store::Lock;
use tocsin_pipeline::time::{Clock, SystemClock};

use crate::cli::RecoverArguments;
use crate::commands::print;
use crate::data_dir::{self, Damage, Part};

/// What a step costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Cost {
    /// Something may be delivered or written again.
    Duplicates,
    /// Something may never be delivered, or counted twice, or not at all.
    Loss,
}

impl Cost {
    fn as_str(self) -> &'static str {
        match self {
            Self::Duplicates => "duplicates",
            Self::Loss => "loss",
        }
    }
}

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Step {
    /// The files to move aside, below the data directory.
    files: Vec<PathBuf>,
    /// What is done, and what it means.
    told: String,
    cost: Cost,
}

/// What is known of the epochs: the number, and whether it can be read. In any order.
type Epochs = [(u64, bool)];

/// Decides what to do from what was found. `from`: the epoch that a person wants to go back to.
fn decide(epochs: &Epochs, damages: &[Damage], from: Option<u64>) -> Result<Vec<Step>, String> {
    let manifest = |epoch: &u64| PathBuf::from(format!("checkpoints/manifest-{epoch:012}"));
    let mut steps = Vec::new();
    let mut readable: Vec<u64> = epochs.iter().filter(|(_, is_whole)| *is_whole).map(|(number, _)| *number).collect();
    readable.sort_unstable();
    let newer =
        |than: u64| epochs.iter().map(|(number, _)| *number).filter(|number| *number > than).collect::<Vec<_>>();
    match (from, readable.last()) {
        (Some(from), _) if !readable.contains(&from) => {
            let listed = readable.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
            return Err(match readable.is_empty() {
                true => format!("epoch {from} is not there or cannot be read, and neither can any other"),
                false => format!("epoch {from} is not there or cannot be read; those that can: {listed}"),
            });
        }
        (Some(from), _) => {
            let later = newer(from);
            if !later.is_empty() {
                steps.push(Step {
                    files: later.iter().map(manifest).collect(),
                    told: format!(
                        "go back to epoch {from}: what came after it is read again, and what was delivered since may be delivered \
                         again; files are cut back to it"
                    ),
                    cost: Cost::Duplicates,
                });
            }
        }
        (None, None) if !epochs.is_empty() => steps.push(Step {
            files: newer(0).iter().map(manifest).collect(),
            told: "start without a checkpoint: no epoch can be read. Positions, windows and alerts are forgotten, and sources \
                   begin as on a first start"
                .to_owned(),
            cost: Cost::Loss,
        }),
        // A damaged epoch with an older one that reads needs nobody: the daemon passes it over.
        (None, _) => {}
    }
    for damage in damages {
        let file = damage.path.display();
        let step = |told, cost| Step { files: vec![damage.path.clone()], told, cost };
        match damage.part {
            Part::Checkpoint => {}
            Part::Journal => steps.push(step(
                format!(
                    "go on without {file}, which is damaged at byte {}: what was done since the last checkpoint may be done again",
                    damage.offset
                ),
                Cost::Duplicates,
            )),
            Part::Records => steps.push(step(
                format!("go on without {file}, which is damaged at byte {}: the records in it are lost", damage.offset),
                Cost::Loss,
            )),
        }
    }
    Ok(steps)
}

/// Tells what can be done, and does it if its costs are accepted.
pub fn recover(arguments: &RecoverArguments) -> anyhow::Result<ExitCode> {
    let data_dir = &arguments.data_dir;
    let verified = data_dir::verify(data_dir)?;
    let _lock = Lock::take(data_dir).map_err(|error| anyhow!(error))?;
    let mut epochs = Vec::new();
    data_dir::each_epoch(data_dir, |found| epochs.push((found.number, found.epoch.is_ok())))?;
    let steps = decide(&epochs, &verified.damages, arguments.from).map_err(|error| anyhow!(error))?;
    if steps.is_empty() {
        return print("nothing needs a decision: the daemon goes on by itself\n");
    }
    let lacking: Vec<_> = [Cost::Duplicates, Cost::Loss]
        .into_iter()
        .filter(|cost| steps.iter().any(|step| step.cost == *cost) && !arguments.accept.contains(cost))
        .map(|cost| format!("--accept {}", cost.as_str()))
        .collect();
    if !lacking.is_empty() {
        let mut text: String = steps.iter().map(|step| format!("would {}\n", step.told)).collect();
        text.push_str(&format!("nothing is done yet; to do it: {}\n", lacking.join(" ")));
        print(&text)?;
        return Ok(ExitCode::from(1));
    }
    let (aside, stamp) = aside(data_dir)?;
    let mut text = String::new();
    for step in &steps {
        for file in &step.files {
            move_aside(data_dir, file, &aside).with_context(|| format!("moving {} aside", file.display()))?;
        }
        text.push_str(&format!("{}\n", step.told));
        note(data_dir, &format!("{stamp} {}; moved to {}\n", step.told, aside.display()))
            .with_context(|| format!("writing {}", data_dir.join("recover.log").display()))?;
    }
    text.push_str(&format!("what was in the way is in {}\n", data_dir.join(&aside).display()));
    print(&text)
}

/// A new folder for what is moved aside, below the data directory, and when that is.
fn aside(data_dir: &Path) -> anyhow::Result<(PathBuf, String)> {
    let stamp = SystemClock::default().now().to_string();
    fs::create_dir_all(data_dir.join("damaged"))
        .with_context(|| format!("making {}", data_dir.join("damaged").display()))?;
    for number in 1..=1000 {
        let aside = Path::new("damaged").join(number.to_string());
        match fs::create_dir(data_dir.join(&aside)) {
            Ok(()) => return Ok((aside, stamp)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).with_context(|| format!("making {}", data_dir.join(&aside).display())),
        }
    }
    bail!("{} holds a thousand folders; delete those that are not needed", data_dir.join("damaged").display())
}

fn move_aside(data_dir: &Path, file: &Path, aside: &Path) -> io::Result<()> {
    let from = data_dir.join(file);
    let to = data_dir.join(aside).join(file);
    let (above, below) = (from.parent().expect("it is in a folder"), to.parent().expect("it is in a folder"));
    fs::create_dir_all(below)?;
    // The segment stays, as the daemon goes by its number, but it deletes what no epoch names: so this is its second name.
    if let Some(number) = file.to_string_lossy().strip_prefix("checkpoints/manifest-") {
        let segment = format!("checkpoints/segment-{number}");
        match fs::hard_link(data_dir.join(&segment), data_dir.join(aside).join(&segment)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                fs::copy(data_dir.join(&segment), data_dir.join(aside).join(&segment))?;
            }
            _ => {}
        }
    }
    fs::rename(&from, &to)?;
    File::open(below)?.sync_all()?;
    File::open(above)?.sync_all()
}

/// Adds a line to the record of what people decided.
fn note(data_dir: &Path, line: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().create(true).append(true).open(data_dir.join("recover.log"))?;
    file.write_all(line.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn check(epochs: &Epochs, damages: &[(&str, Part)], from: Option<u64>, expected: Expect) {
        let damage = |(path, part): &(&str, Part)| Damage {
            path: path.into(),
            part: *part,
            offset: 7,
            problem: "the checksum does not match".to_owned(),
        };
        let damages: Vec<_> = damages.iter().map(damage).collect();
        let text = match decide(epochs, &damages, from) {
            Ok(steps) => {
                steps.iter().map(|step| format!("{} {:?}: {}\n", step.cost.as_str(), step.files, step.told)).collect()
            }
            Err(error) => format!("error: {error}\n"),
        };
        expected.assert_eq(&text);
    }

    #[test]
    fn what_the_daemon_does_by_itself_needs_no_decision() {
        check(&[], &[], None, expect![""]);
        check(&[(3, true), (4, true)], &[], None, expect![""]);
        check(&[(3, true), (4, false)], &[("checkpoints/manifest-000000000004", Part::Checkpoint)], None, expect![""]);
        check(&[(3, true), (4, true)], &[], Some(4), expect![""]);
    }

    #[test]
    fn an_older_epoch_is_gone_back_to_when_it_can_be_read() {
        check(
            &[(3, true), (4, true), (5, false)],
            &[],
            Some(3),
            expect![[r#"
            duplicates ["checkpoints/manifest-000000000004", "checkpoints/manifest-000000000005"]: go back to epoch 3: what came after it is read again, and what was delivered since may be delivered again; files are cut back to it
        "#]],
        );
        check(
            &[(3, true), (4, false)],
            &[],
            Some(4),
            expect![[r#"
            error: epoch 4 is not there or cannot be read; those that can: 3
        "#]],
        );
        check(
            &[(4, false)],
            &[],
            Some(4),
            expect![[r#"
            error: epoch 4 is not there or cannot be read, and neither can any other
        "#]],
        );
    }

    #[test]
    fn without_any_epoch_and_without_journals_something_is_lost_or_repeated() {
        check(
            &[(3, false), (4, false)],
            &[],
            None,
            expect![[r#"
            loss ["checkpoints/manifest-000000000003", "checkpoints/manifest-000000000004"]: start without a checkpoint: no epoch can be read. Positions, windows and alerts are forgotten, and sources begin as on a first start
        "#]],
        );
        check(
            &[(4, true)],
            &[("sinks/hook/outbox.log", Part::Journal), ("sources/in/journal/1-2", Part::Records)],
            None,
            expect![[r#"
                duplicates ["sinks/hook/outbox.log"]: go on without sinks/hook/outbox.log, which is damaged at byte 7: what was done since the last checkpoint may be done again
                loss ["sources/in/journal/1-2"]: go on without sources/in/journal/1-2, which is damaged at byte 7: the records in it are lost
            "#]],
        );
    }
}
