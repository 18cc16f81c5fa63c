//! Finding files: globs, and the order and kinship of rotated names.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Component, Path, PathBuf};

use globset::{GlobBuilder, GlobMatcher};

/// How deep `**` goes.
const DEPTH_MAX: usize = 32;

/// How many paths one look gives at most: beyond that the rest is left for when there are fewer, and counted.
const PATHS_MAX: usize = 100_000;

/// A pattern for paths, taken apart at its slashes so that only folders that can match are read.
#[derive(Debug, Clone)]
pub(super) struct Pattern {
    /// What comes before the first component with a wildcard; the whole path where there is none.
    root: PathBuf,
    parts: Vec<Part>,
}

#[derive(Debug, Clone)]
enum Part {
    Literal(String),
    Any(Box<GlobMatcher>),
    /// `**`: any number of folders.
    Deep,
}

impl Pattern {
    /// # Errors
    /// What is wrong with the pattern, for a person.
    pub(super) fn new(pattern: &str, folder: &Path) -> Result<Self, String> {
        if pattern.is_empty() {
            return Err("a path is empty".into());
        }
        if pattern.contains('\0') {
            return Err("a path cannot hold a zero byte".into());
        }
        let (mut root, mut parts) = (folder.to_path_buf(), Vec::new());
        for component in Path::new(pattern).components() {
            let text = component.as_os_str().to_str().expect("the pattern was text");
            let is_plain = !text.contains(['*', '?', '[', '{', '\\']);
            if parts.is_empty() && (is_plain || !matches!(component, Component::Normal(_))) {
                root.push(component);
            } else if text == "**" {
                parts.push(Part::Deep);
            } else if is_plain {
                parts.push(Part::Literal(text.to_owned()));
            } else {
                let glob = GlobBuilder::new(text).literal_separator(true).build();
                parts.push(Part::Any(Box::new(glob.map_err(|error| error.kind().to_string())?.compile_matcher())));
            }
        }
        Ok(Self { root, parts })
    }

    /// Whether a path is one of those it stands for.
    pub(super) fn matches(&self, path: &Path) -> bool {
        let Ok(rest) = path.strip_prefix(&self.root) else { return false };
        let names: Vec<_> = rest.components().map(Component::as_os_str).collect();
        matches_parts(&self.parts, &names)
    }
}

fn matches_parts(parts: &[Part], names: &[&OsStr]) -> bool {
    match (parts.first(), names.first()) {
        (None, None) => true,
        (Some(Part::Deep), _) => (0..=names.len()).any(|skipped| matches_parts(&parts[1..], &names[skipped..])),
        (Some(part), Some(name)) => part.matches(name) && matches_parts(&parts[1..], &names[1..]),
        _ => false,
    }
}

impl Part {
    fn matches(&self, name: &OsStr) -> bool {
        match self {
            Self::Literal(literal) => name == literal.as_str(),
            Self::Any(glob) => glob.is_match(Path::new(name)),
            Self::Deep => true,
        }
    }
}

/// What patterns stand for just now.
#[derive(Debug, Default)]
pub(super) struct Matches {
    /// Of anything: whether they are files is not known yet.
    pub paths: BTreeSet<PathBuf>,
    /// The folders where a change can add or remove a path.
    pub folders: BTreeSet<PathBuf>,
    /// Whether there were more than could be taken.
    pub is_cut: bool,
}

impl Matches {
    pub(super) fn of(patterns: &[Pattern], exclude: &[Pattern]) -> Self {
        let mut matches = Self::default();
        for pattern in patterns {
            matches.walk(&pattern.root, &pattern.parts, 0);
        }
        matches.paths.retain(|path| !exclude.iter().any(|pattern| pattern.matches(path)));
        matches
    }

    fn walk(&mut self, path: &Path, parts: &[Part], depth: usize) {
        let Some(part) = parts.first() else {
            if self.paths.len() >= PATHS_MAX {
                self.is_cut = true;
                return;
            }
            self.folders.extend(path.parent().filter(|folder| folder.is_dir()).map(Path::to_path_buf));
            if path.symlink_metadata().is_ok() {
                self.paths.insert(path.to_path_buf());
            }
            return;
        };
        if let Part::Literal(name) = part {
            return self.walk(&path.join(name), &parts[1..], depth + 1);
        }
        if matches!(part, Part::Deep) {
            self.walk(path, &parts[1..], depth);
        }
        if depth >= DEPTH_MAX || self.folders.len() >= PATHS_MAX {
            self.is_cut = true;
            return;
        }
        // A folder that cannot be read now may be readable at the next look.
        let Ok(entries) = fs::read_dir(path) else { return };
        self.folders.insert(path.to_path_buf());
        for entry in entries.flatten() {
            if !part.matches(&entry.file_name()) {
                continue;
            }
            if matches!(part, Part::Deep) {
                // Not through links, which may lead in circles.
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    self.walk(&entry.path(), parts, depth + 1);
                }
            } else {
                self.walk(&entry.path(), &parts[1..], depth + 1);
            }
        }
    }
}

/// The other files of a rotation: those in the same folder whose names begin with the same name.
pub(super) fn siblings(path: &Path) -> Vec<PathBuf> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return Vec::new() };
    let base = family_name(&name.to_string_lossy()).0.to_owned();
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut found: Vec<_> = entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&base))
        .map(|entry| entry.path())
        .take(PATHS_MAX)
        .collect();
    found.sort();
    found
}

/// What files of one rotation have in common: their folder and the name without what rotation adds.
pub(super) fn family(path: &Path) -> PathBuf {
    path.with_file_name(family_name(&path.file_name().unwrap_or_default().to_string_lossy()).0)
}

/// Whether a path may be that of another file of a family's rotation.
pub(super) fn is_kin(family: &Path, path: &Path) -> bool {
    let (Some(base), Some(name)) = (family.file_name(), path.file_name()) else { return false };
    family.parent() == path.parent() && name.as_encoded_bytes().starts_with(base.as_encoded_bytes())
}

/// Orders paths by family, and the files of a family from the oldest to the newest as far as names tell: numbers down
/// (`app.log.2`, `app.log.1`), dates up, and the name without either last.
pub(super) fn order(path: &Path) -> (PathBuf, Age, PathBuf) {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    (family(path), family_name(&name).1, path.to_path_buf())
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Age {
    Dated(String),
    Numbered(std::cmp::Reverse<u64>),
    Current,
}

/// Takes the name of a rotated file apart: `app.log-20261120.gz` is `app.log` of a date.
fn family_name(name: &str) -> (&str, Age) {
    let stem = [".gz", ".zst", ".zstd"].iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name);
    // What rotation adds is made of digits and of what stands between those in a date.
    let base = stem.trim_end_matches(|c: char| c.is_ascii_digit() || matches!(c, '-' | '.' | '_' | 'T' | ':'));
    let suffix = &stem[base.len()..];
    let digits: String = suffix.chars().filter(char::is_ascii_digit).collect();
    if base.is_empty() || digits.is_empty() || !suffix.starts_with(['-', '.', '_']) {
        return (stem, Age::Current);
    }
    match digits.parse() {
        Ok(number) if digits.len() < 6 => (base, Age::Numbered(std::cmp::Reverse(number))),
        _ => (base, Age::Dated(digits)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(folder: &Path, patterns: &[&str], exclude: &[&str]) -> Vec<String> {
        let compile = |patterns: &[&str]| -> Vec<_> {
            patterns.iter().map(|pattern| Pattern::new(pattern, folder).unwrap()).collect()
        };
        let matches = Matches::of(&compile(patterns), &compile(exclude));
        matches.paths.iter().map(|path| path.strip_prefix(folder).unwrap().display().to_string()).collect()
    }

    #[test]
    fn patterns_find_what_they_say() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a.log", "b.log", "b.log.1", "x/c.log", "x/y/d.log", "x/y/e.txt", "z/c.log"] {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        std::os::unix::fs::symlink(folder.path().join("x"), folder.path().join("x/y/loop")).unwrap();
        let check = |patterns: &[&str], exclude: &[&str], expected: &[&str]| {
            assert_eq!(found(folder.path(), patterns, exclude), expected, "{patterns:?}");
        };
        check(&["*.log"], &[], &["a.log", "b.log"]);
        check(&["b.log*"], &["*.1"], &["b.log"]);
        check(&["*/c.log"], &[], &["x/c.log", "z/c.log"]);
        check(&["**/*.log"], &[], &["a.log", "b.log", "x/c.log", "x/y/d.log", "z/c.log"]);
        check(&["**/*.log"], &["x/**"], &["a.log", "b.log", "z/c.log"]);
        check(&["{a,b}.log", "x/y/?.txt"], &[], &["a.log", "b.log", "x/y/e.txt"]);
        check(&["missing.log", "a.log/b"], &[], &[]);
        assert!(Pattern::new("[", Path::new("/")).is_err());
    }

    #[test]
    fn rotated_names_are_put_in_the_order_they_were_written_in() {
        let mut names = [
            "/l/app.log",
            "/l/app.log.1",
            "/l/app.log.10.gz",
            "/l/app.log.2.gz",
            "/l/app.log-20261119",
            "/l/app.log-20261118.zst",
            "/l/other.log",
            "/l/app.log.2026-11-20",
        ];
        names.sort_by_key(|name| order(Path::new(name)));
        assert_eq!(
            names,
            [
                "/l/app.log-20261118.zst",
                "/l/app.log-20261119",
                "/l/app.log.2026-11-20",
                "/l/app.log.10.gz",
                "/l/app.log.2.gz",
                "/l/app.log.1",
                "/l/app.log",
                "/l/other.log",
            ]
        );
    }
}
