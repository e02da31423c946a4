//! The documents for contributors say what is true of the source: each module imports what the table of
//! modules allows, each state diagram has the states of its enum, and each name and link exists.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(missing_docs, reason = "nothing here is for users")]

mod circles;
mod documents;
mod names;
mod source;

use std::collections::BTreeSet;

use documents::Document;
use names::Names;
use source::Source;

/// Names in the documents that are not in the source: those of the kernel, of comments, and of what is
/// made when a tool runs.
const FOREIGN: [&str; 8] = [
    "AT_EXECFN",
    "F_SEAL_FUTURE_WRITE",
    "MADV_DONTFORK",
    "MADV_WIPEONFORK",
    "O_NONBLOCK",
    "SAFETY",
    "fuzz/artifacts",
    "tostop",
];

/// What a file without I/O and without a clock does not contain.
const IMPURE: [&str; 11] = [
    "Mutex",
    "::now(",
    "rustix::event",
    "rustix::fs",
    "rustix::net",
    "rustix::process",
    "nix::",
    "std::fs",
    "std::net",
    "thread_local!",
    "tokio::",
];

/// Fails with all complaints at once.
fn assert_none(complaints: Vec<String>) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

#[test]
fn modules_import_what_the_table_allows() {
    let source = Source::read();
    let rows = Document::read("ARCHITECTURE.md").modules();
    let mut complaints = Vec::new();
    let known: BTreeSet<_> = rows.keys().cloned().collect();
    for module in source.modules().difference(&known) {
        complaints.push(format!("`{module}` has no row in the table of ARCHITECTURE.md"));
    }
    for module in known.difference(&source.modules()) {
        complaints.push(format!("the row of `{module}` is stale: there is no such module"));
    }
    for (module, allowed) in &rows {
        let imports = source.imports(module);
        for (import, files) in &imports {
            if !allowed.contains(import) {
                complaints.push(format!("`{module}` must not import `{import}`: {files:?}"));
            }
        }
        for import in allowed.iter().filter(|import| !imports.contains_key(*import)) {
            complaints
                .push(format!("the row of `{module}` is stale: it does not import `{import}`"));
        }
    }
    assert_none(complaints);
}

#[test]
fn files_import_each_other_in_no_circle() {
    let source = Source::read();
    let modules = Document::read("ARCHITECTURE.md").names_under("## Modules without circles");
    assert!(!modules.is_empty());
    let circles = modules.iter().flat_map(|module| circles::circles(source.files(module)));
    assert_none(circles.map(|file| format!("`{file}` imports itself through others")).collect());
}

#[test]
fn pure_files_have_no_io_and_no_clock() {
    let source = Source::read();
    let files = Document::read("ARCHITECTURE.md").names_under("## Pure files");
    assert!(!files.is_empty());
    let mut complaints = Vec::new();
    for file in files {
        let Some(code) = source.code(&file) else {
            complaints.push(format!("there is no {file}"));
            continue;
        };
        let impure = IMPURE.iter().filter(|it| code.contains(**it));
        complaints.extend(impure.map(|it| format!("{file} has `{it}`")));
    }
    assert_none(complaints);
}

#[test]
fn state_diagrams_have_the_states_of_their_enums() {
    let source = Source::read();
    let (mut complaints, mut count) = (Vec::new(), 0);
    for document in documents::all() {
        for (name, states) in document.diagrams() {
            count += 1;
            let enums = source.enums(&name);
            if !enums.contains(&states) {
                let path = &document.path;
                complaints
                    .push(format!("{path}: the diagram of `{name}` has {states:?}: {enums:?}"));
            }
        }
    }
    assert!(count > 0);
    assert_none(complaints);
}

#[test]
fn names_in_documents_exist() {
    let names = Names::read();
    let mut complaints = Vec::new();
    let mut foreign: BTreeSet<_> = FOREIGN.iter().copied().collect();
    for document in documents::all() {
        for name in document.names() {
            if FOREIGN.contains(&&*name) {
                foreign.remove(&*name);
            } else if !names.has(&name) {
                complaints.push(format!("{}: there is no `{name}`", document.path));
            }
        }
    }
    complaints.extend(foreign.iter().map(|name| format!("no document names `{name}`")));
    assert_none(complaints);
}

#[test]
fn links_lead_to_documents_and_headings() {
    let mut complaints = Vec::new();
    for document in documents::all() {
        for link in document.broken_links() {
            complaints.push(format!("{}: the link to {link} leads nowhere", document.path));
        }
    }
    assert_none(complaints);
}
