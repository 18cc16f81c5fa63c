//! Data directories of every format that was ever released, opened by today's program.
//!
//! A folder of `tests/formats/` holds `pipeline.toml`; `first.ndjson`, what had been read when the daemon was stopped; `data/`,
//! its data directory then, and `out/`, what it had written; `rest.ndjson`, what came afterwards, and `expected/`, what must
//! have come of everything in the end. See `tests/formats/README.md`.

mod support;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use support::{Receiver, copy_folder, tocsin, update_expected, wait_for};

fn formats() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/formats")
}

fn versions() -> Vec<PathBuf> {
    let entries = fs::read_dir(formats()).unwrap().map(|entry| entry.unwrap().path());
    let mut versions: Vec<_> = entries.filter(|path| path.join("data").is_dir()).collect();
    versions.sort();
    versions
}

/// Runs the pipeline that is in `folder`, with `data/` and `out/` beside it.
fn run(folder: &Path, hook: &str, arguments: &[&str]) -> Command {
    let mut command = tocsin(&["run", "pipeline.toml", "--data-dir", "data"]);
    command.args(arguments).current_dir(folder).env("OUT", "out").env("HOOK", hook);
    command
}

/// The files of a folder by name.
fn files(folder: &Path) -> BTreeMap<String, String> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries.map(|entry| (entry.file_name().into_string().unwrap(), fs::read_to_string(entry.path()).unwrap())).collect()
}

#[test]
fn what_an_older_version_kept_is_gone_on_from() {
    let versions = versions();
    assert!(!versions.is_empty(), "there are formats");
    for version in versions {
        let folder = tempfile::tempdir().unwrap();
        copy_folder(&version, folder.path());
        let receiver = Receiver::start();
        let output = run(folder.path(), &receiver.url(), &["--once"])
            .stdin(File::open(version.join("rest.ndjson")).unwrap())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}: {}", version.display(), String::from_utf8_lossy(&output.stderr));
        let mut got = files(&folder.path().join("out"));
        // Whom is told in which order depends on the network.
        let mut told = receiver.bodies();
        told.sort();
        got.insert("told.ndjson".to_owned(), told.join("\n") + "\n");
        let expected = version.join("expected");
        if update_expected() {
            fs::create_dir_all(&expected).unwrap();
            got.iter().for_each(|(name, text)| fs::write(expected.join(name), text).unwrap());
        }
        let want = files(&expected);
        assert_eq!(got.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>(), "{}", version.display());
        for (name, want) in want {
            assert!(got[&name] == want, "{}: {name}\n--- expected\n{want}--- got\n{}", version.display(), got[&name]);
        }
        println!("{}: {} files as expected", version.display(), got.len());
    }
}

/// What a notification held before there was more to tell: the rest a restored alert cannot know of its past.
fn as_ever(told: &str) -> String {
    let one = |line: &str| {
        let mut record: serde_json::Value = serde_json::from_str(line).unwrap();
        let fields = record.as_object_mut().unwrap();
        fields.remove("history");
        for piece in fields.get_mut("evidence").and_then(|pieces| pieces.as_array_mut()).into_iter().flatten() {
            piece.as_object_mut().unwrap().remove("hash");
        }
        format!("{record}\n")
    };
    told.lines().map(one).collect()
}

/// The same input in one run, with nothing restored, gives what is expected of the restored: so that is right, and not only
/// the same as ever.
#[test]
fn what_is_expected_of_a_restored_run_is_that_of_an_undisturbed_one() {
    for version in versions() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("out")).unwrap();
        fs::copy(version.join("pipeline.toml"), folder.path().join("pipeline.toml")).unwrap();
        let all = folder.path().join("all.ndjson");
        fs::write(
            &all,
            ["first.ndjson", "rest.ndjson"].map(|name| fs::read_to_string(version.join(name)).unwrap()).concat(),
        )
        .unwrap();
        let receiver = Receiver::start();
        let mut command = run(folder.path(), &receiver.url(), &["--once"]);
        let output = command.stdin(File::open(&all).unwrap()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let mut want = files(&version.join("expected"));
        let mut told = receiver.bodies();
        told.sort();
        assert_eq!(as_ever(&want.remove("told.ndjson").unwrap()), as_ever(&told.join("\n")));
        assert_eq!(files(&folder.path().join("out")), want);
    }
}

/// Makes the directory of a new format: `TOCSIN_NEW_FORMAT=v2 cargo test --test formats`. The folder must hold the pipeline and
/// the two parts of its input already.
#[test]
fn a_new_format_is_made_on_request() {
    let Some(version) = std::env::var_os("TOCSIN_NEW_FORMAT").map(|name| formats().join(name)) else { return };
    for made in ["data", "out"] {
        let _ = fs::remove_dir_all(version.join(made));
        fs::create_dir(version.join(made)).unwrap();
    }
    let first = fs::read_to_string(version.join("first.ndjson")).unwrap();
    // Nobody listens at the discard port: what is to be told stays in the outbox.
    let mut command = run(&version, "http://127.0.0.1:9/", &[]);
    let mut daemon = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut input = daemon.stdin.take().unwrap();
    input.write_all(first.as_bytes()).unwrap();
    let checkpoints = version.join("data/checkpoints");
    let names = || {
        let names = fs::read_dir(&checkpoints).map(|entries| entries.map(|entry| entry.unwrap().file_name()));
        names.map(Iterator::collect::<Vec<_>>).unwrap_or_default()
    };
    wait_for("the first checkpoint", || !names().is_empty());
    // Everything is read, and the files are closed, when nothing is written for a while.
    let (mut before, mut same) = (names(), 0);
    wait_for("nothing more to do", || {
        let now = names();
        same = if now == before { same + 1 } else { 0 };
        before = now;
        same > 1000
    });
    assert!(Command::new("kill").arg(daemon.id().to_string()).status().unwrap().success());
    assert!(daemon.wait().unwrap().success());
    drop(input);
}
