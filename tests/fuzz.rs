//! The fuzzers' targets over their corpus and over mutations of it, without a fuzzer: see `fuzz/README.md`.
//!
//! `TOCSIN_FUZZ_RUNS` (default 2000) sets how many mutations each target gets, `TOCSIN_FUZZ_SEED` which; `TOCSIN_FUZZ_TARGET`
//! runs one target alone. An input that finds something is written to `target/fuzz/TARGET`, to be put into the corpus.
#![allow(clippy::disallowed_methods, reason = "how long a target takes is measured")]

use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

#[allow(dead_code, reason = "a part of it is used")]
#[path = "support/random.rs"]
mod random;
#[path = "../fuzz/src/targets.rs"]
mod targets;

use random::Random;
use targets::TARGETS;

/// An input is not longer.
const INPUT_MAX: usize = 4096;
/// No target may take longer for such an input, on a machine that is busy.
const TIME_MAX: Duration = Duration::from_secs(5);
/// The process may not grow beyond this.
const MEMORY_MAX: u64 = 1 << 30;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = root().join("fuzz/corpus").join(target);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// Changes an input a little, as fuzzers do.
fn mutate(input: &mut Vec<u8>, corpus: &[Vec<u8>], random: &mut Random) {
    const TOKENS: [&[u8]; 24] = [
        b"\0",
        b"\n",
        b"\r\n",
        b"\"",
        b"\\",
        b"\\u0000",
        b"\\ud800",
        b"{",
        b"}",
        b"[",
        b"]",
        b"{{",
        b"}}",
        b"{% for x in y %}",
        b"-1",
        b"1e999",
        b"9223372036854775808",
        b"\xff",
        b"\xc3\xa9",
        b"\x80\0\0\0",
        b"\xff\xff\xff\x7f",
        b" ",
        b"=",
        b"%",
    ];
    for _ in 0..1 + random.below(4) {
        let at = random.below(input.len() as u64 + 1) as usize;
        let length = (random.below(16) as usize).min(input.len() - at);
        match random.below(8) {
            0 if at < input.len() => input[at] ^= 1 << random.below(8),
            1 if at < input.len() => input[at] = random.below(256) as u8,
            2 => drop(input.drain(at..at + length)),
            3 => {
                let piece = input[at..at + length].to_vec();
                input.splice(at..at, piece.repeat(1 + random.below(4) as usize));
            }
            4 => drop(input.splice(at..at, TOKENS[random.below(TOKENS.len() as u64) as usize].iter().copied())),
            5 => {
                let other = &corpus[random.below(corpus.len() as u64) as usize];
                let from = random.below(other.len() as u64 + 1) as usize;
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            6 => input.truncate(at),
            _ => input.extend((0..length).map(|_| random.below(256) as u8)),
        }
    }
    input.truncate(INPUT_MAX);
}

/// The most memory that this process has had, where the system tells.
fn memory() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? << 10)
}

fn kept(target: &str, input: &[u8]) -> PathBuf {
    let folder = root().join("target/fuzz").join(target);
    fs::create_dir_all(&folder).unwrap();
    let path = folder.join("found");
    fs::write(&path, input).unwrap();
    path
}

#[test]
fn no_input_makes_anything_panic_or_hang_or_grow() {
    let (runs, seed) = (number("TOCSIN_FUZZ_RUNS", 2000), number("TOCSIN_FUZZ_SEED", 1));
    let only = std::env::var("TOCSIN_FUZZ_TARGET").ok();
    println!("TOCSIN_FUZZ_RUNS={runs} TOCSIN_FUZZ_SEED={seed}");
    for (name, target) in TARGETS.iter().filter(|(name, _)| only.as_ref().is_none_or(|only| only == name)) {
        let corpus = corpus(name);
        let mut random = Random(seed);
        let begun = Instant::now();
        let mut inputs = 0;
        let mut run = |input: &[u8]| {
            let before = Instant::now();
            if catch_unwind(AssertUnwindSafe(|| target(input))).is_err() {
                panic!("{name} does not hold for {}", kept(name, input).display());
            }
            let took = before.elapsed();
            assert!(took < TIME_MAX, "{name} took {took:?} for {}", kept(name, input).display());
            inputs += 1;
        };
        corpus.iter().for_each(|input| run(input));
        for _ in 0..runs {
            let mut input = corpus[random.below(corpus.len() as u64) as usize].clone();
            mutate(&mut input, &corpus, &mut random);
            run(&input);
        }
        println!("{name}: {inputs} inputs in {:?}", begun.elapsed());
        if let Some(memory) = memory() {
            assert!(memory < MEMORY_MAX, "{name} made the process grow to {memory} bytes");
        }
    }
}

#[test]
fn every_target_has_a_corpus_and_a_fuzzer() {
    let names: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    let listed = |folder: &str| -> BTreeSet<String> {
        let entries = fs::read_dir(root().join("fuzz").join(folder)).unwrap();
        entries.map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned()).collect()
    };
    assert_eq!(listed("corpus"), names);
    assert_eq!(listed("fuzz_targets"), names);
    let manifest = fs::read_to_string(root().join("fuzz/Cargo.toml")).unwrap();
    for name in &names {
        assert!(manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")), "{name} is not in fuzz/Cargo.toml");
        let text = fs::read_to_string(root().join(format!("fuzz/fuzz_targets/{name}.rs"))).unwrap();
        assert!(text.contains(&format!("run(\"{name}\", data)")), "{name}");
    }
}
