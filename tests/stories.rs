//! Stories: a configuration, its input and what must come of it, each run several ways against one golden output.
//!
//! A folder of `tests/cases/` holds `pipeline.toml`, its input files, and `expected/` with the files the pipeline must write
//! (byte for byte). `${CASE}` is the story's folder, `${OUT}` an empty one. Straight, with checkpoints, on one thread and on
//! four, and killed after every part of the input, the output must be the same, and every record accounted for. A folder with `expected.err` instead holds a
//! wrong configuration and what `tocsin check` must say of it. `UPDATE_EXPECT=1` rewrites what is expected.

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use support::{Daemon, require_balance, tocsin, update_expected, wait_for};

fn cases() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let mut cases: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    cases
}

fn stories() -> Vec<PathBuf> {
    cases().into_iter().filter(|case| !case.join("expected.err").exists()).collect()
}

/// The input files of a story, with their place in `folder` and their content.
fn inputs(case: &Path, folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = fs::read_dir(case.join("input")).unwrap().map(|entry| entry.unwrap());
    entries.map(|entry| (folder.join(entry.file_name()), fs::read(entry.path()).unwrap())).collect()
}

/// Compares (or rewrites) the files of `expected/` with those in `out`.
fn compare(case: &Path, out: &Path, way: &str) {
    let expected = case.join("expected");
    if update_expected() && way == "straight" {
        let _ = fs::remove_dir_all(&expected);
        fs::create_dir_all(&expected).unwrap();
        for entry in fs::read_dir(out).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), expected.join(entry.file_name())).unwrap();
        }
    }
    let names = |folder: &Path| -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(names(out), names(&expected), "{}: files, {way}", case.display());
    assert!(!names(out).is_empty(), "{}: it wrote nothing", case.display());
    for name in names(&expected) {
        let (want, got) = (fs::read(expected.join(&name)).unwrap(), fs::read(out.join(&name)).unwrap());
        assert!(
            want == got,
            "{}: {name}, {way}\n--- expected\n{}--- got\n{}",
            case.display(),
            String::from_utf8_lossy(&want),
            String::from_utf8_lossy(&got)
        );
    }
}

#[test]
fn every_story_ends_the_same_whichever_way_it_is_run() {
    let mut count = 0;
    for case in stories() {
        let ways: [(&str, &[&str], bool); 4] = [
            ("straight", &[], false),
            ("with checkpoints", &["--set", "daemon.checkpoint_interval=10ms"], true),
            ("on one thread", &["--set", "daemon.threads=1"], true),
            ("on four threads", &["--set", "daemon.threads=4"], false),
        ];
        for (way, arguments, has_state) in ways {
            let folder = tempfile::tempdir().unwrap();
            let (input, out) = (folder.path().join("in"), folder.path().join("out"));
            fs::create_dir(&input).unwrap();
            fs::create_dir(&out).unwrap();
            for (path, content) in inputs(&case, &input) {
                fs::write(path, content).unwrap();
            }
            let mut command = tocsin(&["run", "--once"]);
            // Relative paths: coordinates name them, and the golden output is that of every machine.
            fs::copy(case.join("pipeline.toml"), folder.path().join("pipeline.toml")).unwrap();
            command.arg("pipeline.toml").args(arguments).current_dir(folder.path());
            command.env("CASE", "in").env("OUT", "out");
            if has_state {
                command.args(["--data-dir", "state"]);
            }
            let output = command.output().unwrap();
            assert!(output.status.success(), "{}, {way}: {}", case.display(), String::from_utf8_lossy(&output.stderr));
            compare(&case, &out, way);
            if has_state {
                require_balance(&folder.path().join("state"), &format!("{}, {way}", case.display()));
            }
        }
        count += 1;
    }
    assert!(count > 0, "there are stories");
    println!("{count} stories, four ways each");
}

#[test]
fn a_story_that_is_killed_and_resumed_ends_the_same() {
    for case in stories() {
        // The input comes in parts, some of which end in the middle of a line; after each the daemon is killed, at
        // different moments: as soon as it runs, or after a checkpoint.
        for (parts, has_checkpoint) in [(2, true), (5, false), (7, true)] {
            let folder = tempfile::tempdir().unwrap();
            let (input, out, state) =
                (folder.path().join("in"), folder.path().join("out"), folder.path().join("state"));
            fs::create_dir(&input).unwrap();
            fs::create_dir(&out).unwrap();
            let files = inputs(&case, &input);
            fs::copy(case.join("pipeline.toml"), folder.path().join("pipeline.toml")).unwrap();
            let prepare = |arguments: &[&str]| {
                let mut command = tocsin(arguments);
                command
                    .arg("pipeline.toml")
                    .args(["--set", "daemon.checkpoint_interval=10ms"])
                    .args(["--data-dir", "state"])
                    .current_dir(folder.path())
                    .env("CASE", "in")
                    .env("OUT", "out");
                command
            };
            for part in 1..parts {
                for (path, content) in &files {
                    let end = content.len() * part / parts;
                    append(path, &content[..end]);
                }
                let before = newest_checkpoint(&state);
                let daemon = Daemon::start(&mut prepare(&["run"]));
                if has_checkpoint {
                    wait_for("a checkpoint", || newest_checkpoint(&state) > before);
                }
                daemon.kill();
            }
            for (path, content) in &files {
                append(path, content);
            }
            let output = prepare(&["run", "--once"]).output().unwrap();
            assert!(output.status.success(), "{}: {}", case.display(), String::from_utf8_lossy(&output.stderr));
            compare(&case, &out, &format!("killed {} times", parts - 1));
            require_balance(&state, &format!("{}, killed {} times", case.display(), parts - 1));
        }
    }
}

/// Makes `path` begin with `content`, by appending: the file keeps its identity.
fn append(path: &Path, content: &[u8]) {
    use std::io::Write;
    let mut file = fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
    let length = usize::try_from(file.metadata().unwrap().len()).unwrap();
    file.write_all(&content[length..]).unwrap();
}

/// The number of the newest checkpoint; 0 if there is none.
fn newest_checkpoint(state: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(state.join("checkpoints")) else { return 0 };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_prefix("manifest-")?.parse().ok())
        .max()
        .unwrap_or(0)
}

#[test]
fn a_wrong_configuration_is_told_with_every_problem_and_its_place() {
    let mut count = 0;
    for case in cases().into_iter().filter(|case| case.join("expected.err").exists()) {
        let output = tocsin(&["check", "pipeline.toml"]).current_dir(&case).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{}: {said}", case.display());
        let path = case.join("expected.err");
        if update_expected() {
            fs::write(&path, &said).unwrap();
        }
        assert_eq!(said, fs::read_to_string(&path).unwrap(), "{}", case.display());
        // A wrong configuration never starts half a pipeline.
        let output = tocsin(&["run", "--once", "pipeline.toml"]).current_dir(&case).output().unwrap();
        assert_eq!((output.status.code(), output.stdout), (Some(1), Vec::new()), "{}", case.display());
        count += 1;
    }
    assert!(count >= 12, "there are at least twelve wrong configurations, not {count}");
    println!("{count} wrong configurations");
}
