//! Terms: who writes a chain of checkpoints that changes hands.
//!
//! Such a chain is in a place that several daemons share, and has owners one after the other. Each takes a term, a number that
//! nobody has had, by making the file `term-N` beside the checkpoints: that is the one step that two cannot both succeed in.
//! Epochs are numbered by term first, so all of a later owner's are greater than all of an earlier one's, and the rule that the
//! newest whole epoch counts needs no clock, no lock and no lease. An owner that does not know yet that it is none any more
//! can write only epochs of its own term: they count for as long as no later owner has written any, and not at all after that.

use std::io;
use std::path::Path;

use super::Storage;

/// The folder of a chain's files: those of terms are beside the checkpoints, so that one listing tells of both, and so that
/// making a file there makes a shared file system forget what it has cached of the folder.
const FOLDER: &str = "checkpoints";
/// How many epochs a term has numbers for: at a hundred a second those of three centuries.
const EPOCHS: u64 = 1_000_000_000_000;
/// The last term that all numbers of epochs are there for.
const LAST: u64 = u64::MAX / EPOCHS - 1;
/// How often a taker looks again. Each time somebody else has taken a term meanwhile, so whoever gives up has lost to so many.
const LOOKS: usize = 100;
/// What must be there once: see [`check`].
const PROBE: &str = "exclusive";

/// A term that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Term(u64);

impl Term {
    /// Takes the next term of the chain in a folder. `who` is told to whoever was there before, and to people.
    pub fn take(storage: &dyn Storage, folder: &Path, who: &str) -> io::Result<Self> {
        let folder = folder.join(FOLDER);
        storage.create_dir(&folder)?;
        let mut highest = highest(&storage.list(&folder)?);
        for _ in 0..LOOKS {
            let term = Self(highest + 1);
            if term.0 > LAST {
                return Err(io::Error::other(format!("{} has had its last term", folder.display())));
            }
            let is_made = match storage.create_new(&folder.join(term.name()), who.as_bytes()) {
                Ok(()) => true,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
                Err(error) => return Err(error),
            };
            storage.sync_dir(&folder)?;
            highest = self::highest(&storage.list(&folder)?).max(term.0);
            // Where the look before was long ago, the file of this number has been there and was deleted, and making it again
            // has taken nothing. An owner never deletes its own, so there is one of a higher number then.
            if is_made && highest == term.0 {
                return Ok(term);
            }
        }
        Err(io::Error::other(format!("others were faster to take {} each time", folder.display())))
    }

    pub fn number(self) -> u64 {
        self.0
    }

    /// The term that an epoch is of; 0: written where there are no terms.
    pub fn of(epoch: u64) -> u64 {
        epoch / EPOCHS
    }

    /// The number of the first epoch of this term.
    pub fn first_epoch(self) -> u64 {
        self.0 * EPOCHS + 1
    }

    fn name(self) -> String {
        format!("term-{:08}", self.0)
    }
}

/// The newest term of the chain in a folder and who has taken it, for people. `None`: nobody has taken one.
pub fn newest(storage: &dyn Storage, folder: &Path) -> io::Result<Option<(u64, String)>> {
    let folder = folder.join(FOLDER);
    let highest = match storage.list(&folder) {
        Ok(names) => highest(&names),
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(error),
    };
    Ok((highest > 0).then(|| (highest, owner(storage, &folder, Term(highest)))))
}

/// Who has taken over from the owner of `term` whose chain has its files in `folder`; `None`: nobody.
pub(crate) fn successor(storage: &dyn Storage, folder: &Path, term: Term) -> io::Result<Option<(u64, String)>> {
    let highest = highest(&storage.list(folder)?);
    Ok((highest > term.0).then(|| (highest, owner(storage, folder, Term(highest)))))
}

/// Whether a file of a chain is of an earlier term than `term`, so that its owner may delete it.
pub(crate) fn is_earlier(name: &str, term: Term) -> bool {
    of(name.strip_suffix(".tmp").unwrap_or(name)).is_some_and(|of| of < term.0)
}

/// Finds out whether a storage makes a file only where there is none, which all of this rests on: some servers that speak the
/// protocol of an object store ignore that condition, and with them a chain would have two owners of one term. Leaves a small
/// file behind.
///
/// # Errors
/// When it does not, or nothing can be written.
pub fn check(storage: &dyn Storage, folder: &Path) -> io::Result<()> {
    storage.create_dir(folder)?;
    // The second attempt is not the first one of all, whoever else does the same at this moment.
    for _ in 0..2 {
        match storage.create_new(&folder.join(PROBE), b"made once, to see that it is not made again\n") {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
            made => made?,
        }
    }
    Err(io::Error::new(
        io::ErrorKind::Unsupported,
        "it overwrites what is to be made only where there is nothing, so it cannot be shared; does the server know the header \
         If-None-Match?",
    ))
}

/// The highest term that the files of a chain speak of; 0: none does. Epochs count as well, so that a term is not taken again
/// where only they were brought back from a backup.
fn highest(names: &[String]) -> u64 {
    names.iter().filter_map(|name| of(name)).max().unwrap_or(0)
}

/// The term of a file by its name; `None`: it is not one of a chain.
fn of(name: &str) -> Option<u64> {
    let (kind, number) = name.rsplit_once('-')?;
    let number = number.parse().ok()?;
    match kind {
        "term" => Some(number),
        "manifest" | "segment" => Some(Term::of(number)),
        _ => None,
    }
}

fn owner(storage: &dyn Storage, folder: &Path, term: Term) -> String {
    // It is not there yet between the making of the file and the writing, and not any more after a still later owner.
    let who = storage.read(&folder.join(term.name())).unwrap_or_default();
    match String::from_utf8_lossy(&who).trim() {
        "" => "another daemon".to_owned(),
        who => who.to_owned(),
    }
}

#[cfg(test)]
mod tests;
