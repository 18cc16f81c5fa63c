//! What every source must withstand, and what tests of sources share.

use std::path::{Path, PathBuf};

/// A file of the folder with published inputs, or `None` (said on stdout) where it is not on this machine.
pub(crate) fn corpus(name: &str) -> Option<Vec<u8>> {
    let folder = std::env::var_os("TOCSIN_CORPUS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data"), PathBuf::from);
    match std::fs::read(folder.join(name)) {
        Ok(bytes) => Some(bytes),
        Err(error) => {
            println!("skipped: {name}: {error}");
            None
        }
    }
}
