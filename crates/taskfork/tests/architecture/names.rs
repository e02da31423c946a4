//! What names there are: words of the source, files and folders.

use std::collections::BTreeSet;
use std::path::Path;

use crate::source::{root, without_comments};

/// Where a path in the documents may begin.
const BASES: [&str; 5] = [
    "",
    "crates/taskfork",
    "crates/taskfork/src",
    "crates/taskfork/tests/behaviour",
    "crates/taskfork-cli/src",
];

/// The folders that have what documents name.
const FOLDERS: [&str; 5] = ["crates", "python", "fuzz", "bench", "examples"];

/// The files that have words that documents use.
const SOURCES: [&str; 6] = ["rs", "py", "toml", "pm", "pl", "mjs"];

pub(crate) struct Names(BTreeSet<String>);

impl Names {
    pub(crate) fn read() -> Self {
        let mut words = BTreeSet::new();
        FOLDERS.iter().for_each(|folder| add_words(&root().join(folder), &mut words));
        Self(words)
    }

    /// Whether the names and paths in a code span exist. Other text counts as there.
    pub(crate) fn has(&self, span: &str) -> bool {
        if span.contains(' ') {
            return span.split(' ').all(|word| !is_below_root(word) || exists(word));
        }
        if span.starts_with('/') {
            return true;
        }
        if span.contains('/') || span.ends_with(".rs") {
            return exists(span);
        }
        let name = span.trim_end_matches("()").trim_end_matches('!');
        let is_name = |segment: &str| {
            segment.starts_with(|first: char| first.is_alphabetic() || first == '_')
                && segment.chars().all(is_of_word)
        };
        let segments: Vec<_> = name.split("::").collect();
        !segments.iter().all(|it| is_name(it)) || segments.iter().all(|it| self.0.contains(*it))
    }
}

fn exists(path: &str) -> bool {
    let path = path.split('#').next().unwrap().trim_end_matches('/');
    BASES.iter().any(|base| root().join(base).join(path).exists())
}

/// Whether a word of a command is a path of this repository.
fn is_below_root(word: &str) -> bool {
    word.split_once('/').is_some_and(|(first, _)| !first.is_empty() && root().join(first).is_dir())
}

fn is_of_word(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_'
}

/// Adds the words of all source files below a folder, and the names of files and folders.
fn add_words(folder: &Path, words: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        if name == "target" || name == "corpus" || name.starts_with('.') {
            continue;
        }
        words.insert(name);
        if path.is_dir() {
            add_words(&path, words);
        } else if path.extension().is_some_and(|it| SOURCES.iter().any(|source| it == *source)) {
            let text = without_comments(&path);
            let new = text.split(|letter| !is_of_word(letter)).filter(|it| !words.contains(*it));
            let new: Vec<_> = new.map(str::to_owned).collect();
            words.extend(new);
        }
    }
}
