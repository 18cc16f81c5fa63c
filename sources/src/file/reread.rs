//! Reading records again that were read before, by where they stood.

use std::io;
use std::path::{Path, PathBuf};

use super::content::{Content, open};
use super::find;

/// No record is longer, whatever a damaged coordinate says.
const LENGTH_MAX: u64 = 64 << 20;

/// The bytes at a place of the content of a file, which is decompressed where it is compressed; `None` where it ends before
/// them.
pub fn reread(path: &Path, offset: u64, length: u64) -> io::Result<Option<Vec<u8>>> {
    let (file, _) = open(path)?;
    let mut content = Content::new(file)?;
    if length > LENGTH_MAX || content.size()?.is_some_and(|size| size < offset.saturating_add(length)) {
        return Ok(None);
    }
    let bytes = content.slice(offset, offset + length)?;
    Ok((bytes.len() as u64 == length).then_some(bytes))
}

/// The other files of a rotation that may hold now what a file held, the newest first.
pub fn rotated(path: &Path) -> Vec<PathBuf> {
    let path = if path.parent() == Some(Path::new("")) { Path::new(".").join(path) } else { path.to_owned() };
    let mut others = find::siblings(&path);
    others.retain(|other| *other != path);
    others.sort_by_cached_key(|other| find::order(other));
    others.reverse();
    others.into_iter().map(|other| other.strip_prefix(".").map(Path::to_owned).unwrap_or(other)).collect()
}
