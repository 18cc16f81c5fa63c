//! Reading the files of a configuration: the only I/O beside what `${…}` asks for.

use std::path::{Path, PathBuf};

use crate::check::SourceFile;
use crate::report::Report;
use crate::substitute::read_text;

/// Nobody writes so much by hand, and whatever wrote it can write several files.
const FILE_BYTES: u64 = 16 << 20;

/// Reads the files at these paths; a folder stands for its `*.toml`, ordered by name. A file named twice is read once.
///
/// # Errors
/// Every path that cannot be read.
pub fn load(paths: &[PathBuf]) -> Result<Vec<SourceFile>, Report> {
    let (mut files, mut report, mut seen) = (Vec::new(), Report::default(), Vec::new());
    for path in paths {
        let named = if path.is_dir() { folder(path) } else { Ok(vec![path.clone()]) };
        match named {
            Ok(named) => {
                for path in named {
                    let identity = std::fs::canonicalize(&path).unwrap_or_else(|_| path.clone());
                    if seen.contains(&identity) {
                        continue;
                    }
                    seen.push(identity);
                    let name = path.display().to_string();
                    match read_text(&path, FILE_BYTES) {
                        Ok(text) => files.push(SourceFile { name, text }),
                        Err(reason) => report.problems.extend(Report::of_file(name, reason, None).problems),
                    }
                }
            }
            Err(problem) => report.problems.extend(problem.problems),
        }
    }
    if report.problems.is_empty() { Ok(files) } else { Err(report) }
}

/// The configuration files in a folder.
fn folder(path: &Path) -> Result<Vec<PathBuf>, Report> {
    let name = path.display().to_string();
    let entries = std::fs::read_dir(path).map_err(|error| Report::of_file(&name, error.to_string(), None))?;
    let mut files = Vec::new();
    for entry in entries {
        let file = entry.map_err(|error| Report::of_file(&name, error.to_string(), None))?.path();
        let is_hidden = file.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        if file.extension().is_some_and(|extension| extension == "toml") && !is_hidden && !file.is_dir() {
            files.push(file);
        }
    }
    if files.is_empty() {
        let help = Some("a folder stands for the files in it whose names end in `.toml`".to_owned());
        return Err(Report::of_file(name, "there is no configuration in this folder", help));
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn a_folder_stands_for_its_files_by_name_and_every_path_that_fails_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["b.toml", "a.toml", "notes.txt", ".hidden.toml"] {
            std::fs::write(at(name), name).unwrap();
        }
        std::fs::write(at("latin.toml.txt"), [b'a', 0xe9]).unwrap();
        std::fs::create_dir(at("empty")).unwrap();
        let names = |files: Vec<SourceFile>| files.into_iter().map(|file| file.text).collect::<Vec<_>>();
        assert_eq!(names(load(&[at("notes.txt"), at("")]).unwrap()), ["notes.txt", "a.toml", "b.toml"]);
        assert_eq!(names(load(&[at("b.toml"), at(""), at("a.toml")]).unwrap()), ["b.toml", "a.toml"]);
        let report = load(&[at("gone"), at("a.toml"), at("empty"), at("latin.toml.txt")]).unwrap_err();
        let text = report.render(false).replace(&folder.path().display().to_string(), "FOLDER");
        expect![[r#"
            FOLDER/gone: error: no such file

            FOLDER/empty: error: there is no configuration in this folder
            help: a folder stands for the files in it whose names end in `.toml`

            FOLDER/latin.toml.txt: error: not UTF-8 from byte 1 on

            3 problems
        "#]]
        .assert_eq(&text);
    }
}
