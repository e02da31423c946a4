//! Files of one module that import each other in a circle.

use std::collections::{BTreeMap, BTreeSet};

/// A module that is a file, such as `client::pool`. A `mod.rs` is the module of its folder.
type Module = Vec<String>;

/// What a file imports: the paths of its `use` statements, and those that it writes out.
type Imports = BTreeMap<Module, BTreeSet<String>>;

/// The modules that import themselves, directly or through others, of these files with their code. A `mod.rs`
/// declares its files and passes names on, so its own imports do not count.
pub(crate) fn circles<'s>(files: impl Iterator<Item = (&'s str, &'s str)>) -> Vec<String> {
    let (mut imports, mut folders) = (Imports::new(), BTreeSet::new());
    for (file, code) in files {
        let mut module: Module =
            file.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
        if module.pop_if(|name| *name == "mod").is_some() {
            folders.insert(module.clone());
        }
        imports.insert(module, paths(code));
    }
    let graph: BTreeMap<_, BTreeSet<_>> = imports
        .iter()
        .filter(|(module, _)| !folders.contains(*module))
        .map(|(module, paths)| {
            let imported = paths.iter().filter_map(|path| resolve(&imports, module, path, 0));
            (module.clone(), imported.filter(|imported| imported != module).collect())
        })
        .collect();
    let is_in_circle = |module: &&Module| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![*module]);
        while let Some(module) = next.pop() {
            next.extend(graph.get(module).into_iter().flatten().filter(|it| seen.insert(*it)));
        }
        seen.contains(module)
    };
    graph.keys().filter(is_in_circle).map(|module| module.join("::")).collect()
}

/// The file that has what a path in `module` names. A name that a `mod.rs` passes on is followed.
fn resolve(imports: &Imports, module: &Module, path: &str, depth: usize) -> Option<Module> {
    let mut current = module.clone();
    for (place, name) in path.split("::").enumerate() {
        match name {
            "crate" => current.clear(),
            "self" => {}
            "super" => drop(current.pop()),
            _ => {
                current.push(name.to_owned());
                if imports.contains_key(&current) {
                    continue;
                }
                current.pop();
                let is_folder = place > 0 && depth < 4 && current != *module;
                let passed_on = imports.get(&current).into_iter().flatten().filter(|_| is_folder);
                let mut passed_on = passed_on.filter(|path| path.rsplit("::").next() == Some(name));
                let found = passed_on.find_map(|path| resolve(imports, &current, path, depth + 1));
                return found.or_else(|| imports.contains_key(&current).then_some(current));
            }
        }
    }
    imports.contains_key(&current).then_some(current)
}

fn paths(code: &str) -> BTreeSet<String> {
    let statements = code.split("use ").skip(1).filter_map(|rest| rest.split_once(';'));
    let mut paths = BTreeSet::new();
    statements.for_each(|(path, _)| expand("", path, &mut paths));
    for prefix in ["crate::", "super::"] {
        for (at, _) in code.match_indices(prefix) {
            let is_of_path = |it: &char| it.is_alphanumeric() || "_:".contains(*it);
            if !code[..at].ends_with(|before| is_of_path(&before)) {
                let path: String = code[at..].chars().take_while(is_of_path).collect();
                paths.insert(path.trim_end_matches(':').to_owned());
            }
        }
    }
    paths
}

/// Adds the paths of a `use` statement, whose groups may have groups.
fn expand(prefix: &str, text: &str, paths: &mut BTreeSet<String>) {
    let text = text.trim();
    let Some((before, group)) = text.split_once('{') else {
        let path = text.split(" as ").next().unwrap_or_default();
        paths.insert(format!("{prefix}{path}"));
        return;
    };
    let prefix = format!("{prefix}{}", before.trim());
    let (mut depth, mut start) = (0, 0);
    for (at, letter) in group.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                if !group[start..at].trim().is_empty() {
                    expand(&prefix, &group[start..at], paths);
                }
                start = at + 1;
            }
            _ => {}
        }
    }
}
