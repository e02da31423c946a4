//! The library's source: which module imports which, and the variants of enums.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The root of the repository.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

pub(crate) struct Source {
    /// The files by their path in `src`: without comments and without tests.
    files: BTreeMap<String, String>,
    /// Names that the crate's root exports, each with its module.
    exports: BTreeMap<String, String>,
}

impl Source {
    pub(crate) fn read() -> Self {
        let source = root().join("crates/taskfork/src");
        let mut paths = Vec::new();
        collect(&source, &mut paths);
        let texts: Vec<_> = paths.iter().map(|path| (path, without_comments(path))).collect();
        let of_tests: BTreeSet<_> =
            texts.iter().flat_map(|(path, text)| test_files(path, text)).collect();
        let files: BTreeMap<_, _> = texts
            .iter()
            .filter(|(path, _)| !of_tests.contains(*path))
            .map(|(path, text)| {
                let name = path.strip_prefix(&source).unwrap().to_str().unwrap();
                (name.to_owned(), without_tests(text).to_owned())
            })
            .collect();
        let exports = exports(&files["lib.rs"]);
        Self { files, exports }
    }

    /// The modules at the crate's root.
    pub(crate) fn modules(&self) -> BTreeSet<String> {
        self.files.keys().map(|file| module_of(file)).filter(|module| module != "lib").collect()
    }

    /// What a module imports of the others, and in which files.
    pub(crate) fn imports(&self, module: &str) -> BTreeMap<String, BTreeSet<&str>> {
        let modules = self.modules();
        let mut imports = BTreeMap::<String, BTreeSet<&str>>::new();
        for (file, text) in self.files.iter().filter(|(file, _)| module_of(file) == module) {
            let is_at_root =
                !file.contains('/') || file.matches('/').count() == 1 && file.ends_with("/mod.rs");
            let above = if is_at_root { imported(text, "super::") } else { BTreeSet::new() };
            for name in imported(text, "crate::").into_iter().chain(above) {
                let import =
                    if modules.contains(&name) { Some(&name) } else { self.exports.get(&name) };
                if let Some(import) = import.filter(|import| *import != module) {
                    imports.entry(import.clone()).or_default().insert(file);
                }
            }
        }
        imports
    }

    /// The files of a module with their code.
    pub(crate) fn files(&self, module: &str) -> impl Iterator<Item = (&str, &str)> {
        let files = self.files.iter().filter(move |(file, _)| module_of(file) == module);
        files.map(|(file, code)| (&**file, &**code))
    }

    /// The code of a file.
    pub(crate) fn code(&self, file: &str) -> Option<&str> {
        self.files.get(file).map(String::as_str)
    }

    /// The variants of all enums of this name.
    pub(crate) fn enums(&self, name: &str) -> Vec<BTreeSet<String>> {
        let start = format!("enum {name} {{");
        self.files.values().flat_map(|text| text.split(&*start).skip(1)).map(variants).collect()
    }
}

fn module_of(file: &str) -> String {
    file.split('/').next().unwrap().trim_end_matches(".rs").to_owned()
}

/// All Rust files below a folder.
fn collect(folder: &Path, paths: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => collect(&path, paths),
            false if path.extension().is_some_and(|it| it == "rs") => paths.push(path),
            false => {}
        }
    }
}

pub(crate) fn without_comments(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    let lines: Vec<_> = text.lines().map(|line| line.split("//").next().unwrap()).collect();
    lines.join("\n")
}

/// Tests stand at the end of a file.
fn without_tests(text: &str) -> &str {
    let mut ends = text.match_indices("#[cfg(test)]").map(|(at, _)| at);
    let is_module = |at: &usize| {
        let rest = &text[*at..];
        let item = rest.lines().find(|line| !line.trim_start().starts_with("#[")).unwrap_or("");
        item.contains("mod ") && item.ends_with('{')
    };
    ends.find(is_module).map_or(text, |end| &text[..end])
}

/// The files of modules that are there for tests only.
fn test_files(path: &Path, text: &str) -> Vec<PathBuf> {
    let folder = match path.file_stem().unwrap().to_str().unwrap() {
        "mod" | "lib" => path.parent().unwrap().to_owned(),
        _ => path.with_extension(""),
    };
    let modules = text.split("#[cfg(test)]\n").skip(1).filter_map(|rest| {
        let line = rest.lines().next()?.trim();
        if let Some(name) = line.strip_prefix("#[path = \"") {
            return Some(path.with_file_name(name.strip_suffix("\"]")?));
        }
        let (_, name) = line.strip_suffix(';')?.rsplit_once("mod ")?;
        Some(folder.join(format!("{name}.rs")))
    });
    modules.collect()
}

/// The first names behind each `prefix` of paths.
fn imported(text: &str, prefix: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (at, _) in text.match_indices(prefix) {
        let before = &text[..at];
        // As in `$crate::`, or in the middle of a path.
        let is_part = before.ends_with(|it: char| it.is_alphanumeric() || "_$:".contains(it));
        // What a public module passes on, it does not use.
        if is_part || before.ends_with("pub use ") {
            continue;
        }
        let rest = &text[at + prefix.len()..];
        match rest.strip_prefix('{') {
            Some(group) => names.extend(first_names(group)),
            None => names.extend([identifier(rest)]),
        }
    }
    names
}

/// The first name of each path in a group, up to its end.
fn first_names(group: &str) -> Vec<String> {
    let (mut depth, mut start, mut names) = (0, 0, Vec::new());
    for (at, letter) in group.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                names.push(identifier(group[start..at].trim_start()));
                start = at + 1;
                if letter == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    names
}

fn identifier(text: &str) -> String {
    text.chars().take_while(|it| it.is_alphanumeric() || *it == '_').collect()
}

/// The names that the crate's root takes from its modules.
fn exports(root: &str) -> BTreeMap<String, String> {
    let statements = root.split("pub use ").skip(1).map(|rest| rest.split(';').next().unwrap());
    let names = statements.flat_map(|statement| {
        let (module, names) = statement.split_once("::").unwrap_or((statement, ""));
        let names = names.split(|it: char| !(it.is_alphanumeric() || it == '_'));
        names.map(|name| (name.to_owned(), module.to_owned())).collect::<Vec<_>>()
    });
    names.collect()
}

/// The variants of an enum, whose text begins behind its brace.
fn variants(text: &str) -> BTreeSet<String> {
    let (mut depth, mut is_next, mut variants) = (0, true, BTreeSet::new());
    for (at, letter) in text.char_indices() {
        match letter {
            '(' | '{' | '[' => depth += 1,
            '}' if depth == 0 => break,
            ')' | '}' | ']' => depth -= 1,
            ',' if depth == 0 => is_next = true,
            _ if depth == 0 && is_next && letter.is_alphabetic() => {
                variants.insert(identifier(&text[at..]));
                is_next = false;
            }
            _ => {}
        }
    }
    variants
}
