//! Paths with dates and fields in them, and the folder they are confined to.
//!
//! What fields hold comes from outside. A field can become part of a file's name, never a way out of the folder: each is
//! percent-encoded, and folders are walked one by one without following symbolic links.

use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use chrono::format::{Fixed, Item, Numeric, StrftimeItems};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use tocsin_pipeline::codec::{FieldPath, PathTable, Projection};
use tocsin_pipeline::event::{Batch, Field};
use tocsin_pipeline::time::Timestamp;
use vrl::path::OwnedValuePath;

/// The longest name most file systems take, less what a sequence number adds.
const NAME_BYTES: usize = 235;

/// The longest part of a name that one field makes.
const FIELD_BYTES: usize = 120;

/// A path template that does not parse.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PathError {
    pub(super) within: Range<usize>,
    pub(super) message: String,
}

impl PathError {
    fn new(within: Range<usize>, message: impl Into<String>) -> Self {
        Self { within, message: message.into() }
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Part<F> {
    Literal(String),
    Time(Vec<Item<'static>>),
    Field(F),
}

/// A path template, parsed: the folder it starts in, and what follows.
#[derive(Debug, PartialEq)]
pub(super) struct Parsed {
    folder: PathBuf,
    parts: Vec<Part<OwnedValuePath>>,
}

impl Parsed {
    /// Parses `logs/%Y-%m-%d/{{ host }}.log`. The folder is what is literal up to the last `/` before the first part that
    /// is not.
    pub(super) fn parse(text: &str) -> Result<Self, PathError> {
        let first = [text.find("{{"), text.find('%')].into_iter().flatten().min().unwrap_or(text.len());
        let name = text[..first].rfind('/').map_or(0, |slash| slash + 1);
        if text[name..].is_empty() {
            return Err(PathError::new(0..text.len(), "does not end in the name of a file"));
        }
        let mut parts = Vec::new();
        let mut at = name;
        while at < text.len() {
            if text[at..].starts_with("{{") {
                let end = text[at..]
                    .find("}}")
                    .map(|end| at + end + 2)
                    .ok_or_else(|| PathError::new(at..text.len(), "has `{{` without `}}`"))?;
                let field = text[at + 2..end - 2].trim();
                let dotted = if field.starts_with('.') { field.to_owned() } else { format!(".{field}") };
                let path = tocsin_pipeline::path::parse(&dotted)
                    .filter(|path| !path.segments.is_empty())
                    .ok_or_else(|| PathError::new(at..end, format!("`{field}` is not the path of a field")))?;
                parts.push(Part::Field(path));
                at = end;
                continue;
            }
            let end = text[at..].find("{{").map_or(text.len(), |end| at + end);
            let piece = &text[at..end];
            if piece.contains('%') {
                parts.push(Part::Time(time_items(piece, at)?));
            } else {
                parts.push(Part::Literal(piece.to_owned()));
            }
            at = end;
        }
        if text.ends_with('/') {
            return Err(PathError::new(0..text.len(), "does not end in the name of a file"));
        }
        if text[name..].split('/').any(|component| matches!(component, "" | "." | "..")) {
            return Err(PathError::new(
                name..text.len(),
                "has an empty, `.` or `..` folder after its first variable part",
            ));
        }
        Ok(Self { folder: PathBuf::from(&text[..name]), parts })
    }

    /// The literal part up to the last `/` before what varies.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether it depends on the event time.
    pub(super) fn has_time(&self) -> bool {
        self.parts.iter().any(|part| matches!(part, Part::Time(_)))
    }

    /// Makes its fields columns of the plan.
    pub(super) fn intern(self, paths: &mut PathTable, start: &Path) -> PathTemplate {
        let folder = start.join(&self.folder);
        let parts: Vec<_> = self
            .parts
            .into_iter()
            .map(|part| match part {
                Part::Literal(text) => Part::Literal(text),
                Part::Time(items) => Part::Time(items),
                Part::Field(path) => Part::Field(paths.intern(&path)),
            })
            .collect();
        let fields = parts.iter().filter_map(|part| match part {
            Part::Field(field) => Some(field.clone()),
            _ => None,
        });
        let fields = Projection::new(fields);
        PathTemplate { folder, parts, fields, last: None }
    }
}

fn time_items(piece: &str, at: usize) -> Result<Vec<Item<'static>>, PathError> {
    let within = at..at + piece.len();
    let items = StrftimeItems::new(piece)
        .parse_to_owned()
        .map_err(|_| PathError::new(within.clone(), "holds a `%` that is no part of a date; write `%%` for `%`"))?;
    let is_finer_than_seconds = |item: &Item<'_>| {
        matches!(
            item,
            Item::Numeric(Numeric::Nanosecond, _)
                | Item::Fixed(
                    Fixed::Nanosecond
                        | Fixed::Nanosecond3
                        | Fixed::Nanosecond6
                        | Fixed::Nanosecond9
                        | Fixed::RFC3339
                        | Fixed::Internal(_)
                )
        )
    };
    if items.iter().any(is_finer_than_seconds) {
        return Err(PathError::new(within, "would make a file for each fraction of a second"));
    }
    Ok(items)
}

/// A path template of a plan.
#[derive(Debug)]
pub(super) struct PathTemplate {
    folder: PathBuf,
    parts: Vec<Part<FieldPath>>,
    fields: Projection,
    /// The second rendered last and its path: records come in order of time, more or less, so most share one.
    last: Option<(i64, String)>,
}

impl PathTemplate {
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Which records of a batch go to which file, below the folder; `None` for all of them.
    pub(super) fn split(&mut self, batch: &mut Batch) -> Vec<(String, Option<Vec<u32>>)> {
        if self.parts.iter().all(|part| matches!(part, Part::Literal(_))) {
            return vec![(self.render(batch, 0), None)];
        }
        batch.decode(&self.fields);
        let has_fields = !self.fields.is_empty();
        let mut files: Vec<(String, Vec<u32>)> = Vec::new();
        for row in batch.rows() {
            let second = batch.time(row).0.div_euclid(1_000_000_000);
            if has_fields || self.last.as_ref().is_none_or(|(last, _)| *last != second) {
                self.last = Some((second, self.render(batch, row)));
            }
            let path = self.last.as_ref().map_or("", |(_, path)| path);
            // From the end: most records go where the one before went.
            match files.iter_mut().rfind(|(known, _)| known == path) {
                Some((_, rows)) => rows.push(row),
                None => files.push((path.to_owned(), vec![row])),
            }
        }
        if let [(path, _)] = &mut files[..] {
            return vec![(std::mem::take(path), None)];
        }
        files.into_iter().map(|(path, rows)| (path, Some(rows))).collect()
    }

    fn render(&self, batch: &Batch, row: u32) -> String {
        let mut path = String::new();
        for part in &self.parts {
            match part {
                Part::Literal(text) => path.push_str(text),
                Part::Time(items) => {
                    let _ = write!(path, "{}", utc(batch.time(row)).format_with_items(items.iter()));
                }
                Part::Field(field) => append_confined(batch.field(row, field), &mut path),
            }
        }
        let confined: Vec<_> = path.split('/').map(confine_name).collect();
        confined.join("/")
    }
}

fn utc(time: Timestamp) -> chrono::DateTime<chrono::Utc> {
    time.to_datetime()
}

/// Appends what a field holds as part of a name: letters, digits, `_`, `-` and inner `.` as they are, all else
/// percent-encoded; `_` where there is nothing. What is too long is cut and made distinct by a hash.
pub(super) fn append_confined(field: Field<'_>, path: &mut String) {
    let text = field.to_text().unwrap_or_default();
    if text.is_empty() {
        path.push('_');
        return;
    }
    let start = path.len();
    for (at, byte) in text.iter().enumerate() {
        // A leading dot would hide the file, or climb.
        if byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-') || (*byte == b'.' && at > 0) {
            path.push(char::from(*byte));
        } else {
            let _ = write!(path, "%{byte:02X}");
        }
        if path.len() - start > FIELD_BYTES {
            path.truncate(start + FIELD_BYTES - 18);
            let _ = write!(path, "--{}", &blake3::hash(&text).to_hex()[..16]);
            return;
        }
    }
}

/// A name as it may stand between two `/`.
fn confine_name(name: &str) -> String {
    match name {
        "" | "." | ".." => "_".to_owned(),
        name if name.len() <= NAME_BYTES => name.replace('\0', "_"),
        name => {
            let end = (0..=NAME_BYTES - 18).rev().find(|at| name.is_char_boundary(*at)).unwrap_or(0);
            format!("{}--{}", &name[..end], &blake3::hash(name.as_bytes()).to_hex()[..16])
        }
    }
}

/// What tells one file from another under the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Identity {
    pub(super) dev: u64,
    pub(super) ino: u64,
}

/// A folder that nothing leads out of.
#[derive(Debug)]
pub(super) struct Folder {
    root: OwnedFd,
}

impl Folder {
    /// Opens a folder, making it if need be. This path comes from the configuration and may hold symbolic links.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        std::fs::create_dir_all(path)?;
        Ok(Self { root: File::open(path)?.into() })
    }

    /// Walks to the folder that holds `path`.
    fn parent<'p>(&self, path: &'p str, may_make: bool) -> io::Result<(OwnedFd, &'p str)> {
        let mut folder = self.root.try_clone()?;
        let (parents, name) = path.rsplit_once('/').map_or(("", path), |(parents, name)| (parents, name));
        for component in parents.split('/').filter(|component| !component.is_empty()) {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            folder = match rustix::fs::openat(&folder, component, flags, Mode::empty()) {
                Err(rustix::io::Errno::NOENT) if may_make => {
                    match rustix::fs::mkdirat(&folder, component, Mode::from_raw_mode(0o777)) {
                        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                        Err(error) => return Err(error.into()),
                    }
                    rustix::fs::openat(&folder, component, flags, Mode::empty())?
                }
                opened => opened?,
            };
        }
        Ok((folder, name))
    }

    /// Opens a file for appending. It must be a regular file.
    pub(super) fn append_to(&self, path: &str, mode: u32, may_create: bool) -> io::Result<File> {
        let (folder, name) = self.parent(path, may_create)?;
        let mut flags =
            OFlags::WRONLY | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        if may_create {
            flags |= OFlags::CREATE;
        }
        let file = rustix::fs::openat(&folder, name, flags, Mode::from_raw_mode(mode))?;
        if FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) != FileType::RegularFile {
            return Err(rustix::io::Errno::NXIO.into());
        }
        Ok(file.into())
    }

    /// Which file a name stands for, and how long it is; `None` if there is none.
    pub(super) fn look(&self, path: &str) -> io::Result<Option<(Identity, u64)>> {
        let found = self
            .parent(path, false)
            .and_then(|(folder, name)| Ok(rustix::fs::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW)?));
        match found {
            Ok(stat) => match FileType::from_raw_mode(stat.st_mode) {
                FileType::RegularFile => {
                    Ok(Some((Identity { dev: stat.st_dev, ino: stat.st_ino }, stat.st_size.max(0) as u64)))
                }
                // What cannot be opened must not be taken for a file that recovery could cut back.
                FileType::Directory => Err(rustix::io::Errno::ISDIR.into()),
                FileType::Symlink => Err(rustix::io::Errno::LOOP.into()),
                _ => Err(rustix::io::Errno::NXIO.into()),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes a file; that there is none is fine.
    pub(super) fn remove(&self, path: &str) -> io::Result<()> {
        let (folder, name) = match self.parent(path, false) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            found => found?,
        };
        match rustix::fs::unlinkat(&folder, name, AtFlags::empty()) {
            Ok(()) => Ok(rustix::fs::fsync(&folder)?),
            Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes the entries on the way to a file durable.
    pub(super) fn sync_to(&self, path: &str) -> io::Result<()> {
        let mut at = Some(path);
        while let Some(path) = at {
            let (folder, _) = self.parent(path, false)?;
            rustix::fs::fsync(&folder)?;
            at = path.rsplit_once('/').map(|(parents, _)| parents);
        }
        Ok(())
    }

    /// The numbers that follow `path.` in the names of the files beside it.
    pub(super) fn sequences(&self, path: &str) -> io::Result<Vec<u64>> {
        let (folder, name) = match self.parent(path, false) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            found => found?,
        };
        let mut sequences = Vec::new();
        for entry in rustix::fs::Dir::read_from(&folder)? {
            let entry = entry?;
            let sequence =
                entry.file_name().to_str().ok().and_then(|found| found.strip_prefix(name)?.strip_prefix('.'));
            let is_number = |text: &&str| text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
            sequences.extend(sequence.filter(is_number).and_then(|text| text.parse::<u64>().ok()));
        }
        sequences.sort_unstable();
        Ok(sequences)
    }
}

/// Which file an open one is.
pub(super) fn identity(file: &File) -> io::Result<(Identity, u64)> {
    let stat = rustix::fs::fstat(file)?;
    Ok((Identity { dev: stat.st_dev, ino: stat.st_ino }, stat.st_size.max(0) as u64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::records;

    fn paths(template: &str, given: &[&str]) -> Vec<String> {
        let parsed = Parsed::parse(template).unwrap();
        let mut template = parsed.intern(&mut PathTable::default(), Path::new("/base"));
        let mut batch = records(given);
        let rows = batch.len() as u32;
        let mut by_row = vec![String::new(); given.len()];
        for (path, chosen) in template.split(&mut batch) {
            for row in chosen.unwrap_or_else(|| (0..rows).collect()) {
                by_row[row as usize] = path.clone();
            }
        }
        by_row
    }

    #[test]
    fn dates_and_fields_are_filled_in() {
        assert_eq!(paths("out.log", &["{}"]), ["out.log"]);
        assert_eq!(
            paths("logs/%Y/%m-%d.{{ host }}{{ .at.dc }}.log", &[r#"{"host": "web-1", "at": {"dc": 3}}"#, "{}"]),
            ["2026/11-20.web-13.log", "2026/11-20.__.log"]
        );
        assert_eq!(paths("%H%M%S", &["{}", "{}"]), ["120000", "120001"]);
    }

    #[test]
    fn a_field_cannot_leave_the_folder() {
        for (field, expected) in [
            ("../../etc/passwd", "%2E.%2F..%2Fetc%2Fpasswd"),
            ("..", "%2E."),
            (".", "%2E"),
            ("", "_"),
            ("/", "%2F"),
            ("a\\u0000b", "a%00b"),
            ("a\\nb", "a%0Ab"),
            ("%2e%2e", "%252e%252e"),
            ("é", "%C3%A9"),
        ] {
            assert_eq!(paths("logs/{{ a }}", &[&format!("{{\"a\": \"{field}\"}}")]), [expected]);
        }
    }

    #[test]
    fn long_names_are_cut_and_stay_distinct() {
        let of = |letter: &str| {
            let field = format!("{}{letter}", "/".repeat(5000));
            paths("{{ a }}{{ a }}{{ a }}", &[&format!("{{\"a\": \"{field}\"}}")]).remove(0)
        };
        assert!(of("x").len() <= NAME_BYTES);
        assert_ne!(of("x"), of("y"));
    }

    #[test]
    fn what_cannot_be_a_path_is_refused_with_its_place() {
        let told = |text: &str| {
            let error = Parsed::parse(text).unwrap_err();
            format!("{}: {}", &text[error.within], error.message)
        };
        assert_eq!(told("logs/{{ a"), "{{ a: has `{{` without `}}`");
        assert_eq!(told("logs/{{ a b }}"), "{{ a b }}: `a b` is not the path of a field");
        assert_eq!(told("logs/%Q"), "%Q: holds a `%` that is no part of a date; write `%%` for `%`");
        assert_eq!(told("logs/%s%f"), "%s%f: would make a file for each fraction of a second");
        assert_eq!(told("logs/"), "logs/: does not end in the name of a file");
        assert_eq!(told("logs/%Y/../x"), "%Y/../x: has an empty, `.` or `..` folder after its first variable part");
    }

    #[test]
    fn the_folder_is_what_is_literal() {
        let folder = |text: &str| Parsed::parse(text).unwrap().folder.display().to_string();
        assert_eq!(folder("/var/log/x-%Y.log"), "/var/log/");
        assert_eq!(folder("a/../b/c.log"), "a/../b/");
        assert_eq!(folder("c.log"), "");
    }

    #[test]
    fn a_symbolic_link_is_not_followed() {
        let outside = tempfile::tempdir().unwrap();
        let inside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("x"), "kept").unwrap();
        std::os::unix::fs::symlink(outside.path(), inside.path().join("folder")).unwrap();
        std::os::unix::fs::symlink(outside.path().join("x"), inside.path().join("x")).unwrap();
        let folder = Folder::open(inside.path()).unwrap();
        for path in ["folder/x", "x"] {
            assert!(folder.append_to(path, 0o640, true).is_err(), "{path}");
        }
        folder.append_to("a/b/c", 0o640, true).unwrap();
        folder.sync_to("a/b/c").unwrap();
        assert!(inside.path().join("a/b/c").exists());
    }
}
