//! The fuzzers: see `README.md`.

mod targets;

pub use targets::TARGETS;

/// Runs the target of this name.
///
/// # Panics
/// When there is none, and where it finds something.
pub fn run(name: &str, data: &[u8]) {
    let (_, target) = TARGETS.iter().find(|(known, _)| *known == name).expect("a target of this name");
    target(data);
}
