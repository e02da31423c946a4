//! What the documents say: the table of modules, the state diagrams, and names in code spans.

use std::collections::{BTreeMap, BTreeSet};

use crate::source::root;

/// The documents whose names and diagrams are checked.
const DOCUMENTS: [&str; 4] = ["ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"];
const DESIGN: &str = "docs/design";

pub(crate) struct Document {
    pub(crate) path: String,
    text: String,
}

pub(crate) fn all() -> Vec<Document> {
    let notes = std::fs::read_dir(root().join(DESIGN)).unwrap();
    let notes = notes.map(|note| format!("{DESIGN}/{}", note.unwrap().file_name().display()));
    let paths = DOCUMENTS.into_iter().map(str::to_owned).chain(notes);
    paths.map(|path| Document::read(&path)).collect()
}

impl Document {
    pub(crate) fn read(path: &str) -> Self {
        let text = std::fs::read_to_string(root().join(path)).unwrap();
        Self { path: path.to_owned(), text }
    }

    /// The modules of the table, each with what it may import.
    pub(crate) fn modules(&self) -> BTreeMap<String, BTreeSet<String>> {
        let rows = self.under("## Modules").filter(|line| line.starts_with("| `"));
        rows.map(|row| {
            let cells: Vec<_> = row.split('|').collect();
            let module = code_spans(cells[1]).next().unwrap();
            (module, code_spans(cells[3]).collect())
        })
        .collect()
    }

    /// What stands in code spans under a heading.
    pub(crate) fn names_under(&self, heading: &str) -> BTreeSet<String> {
        self.under(heading).flat_map(code_spans).collect()
    }

    fn under(&self, heading: &str) -> impl Iterator<Item = &str> {
        let lines = self.text.lines().skip_while(move |line| *line != heading).skip(1);
        lines.take_while(|line| !line.starts_with("## "))
    }

    /// The diagrams that name an enum (`%% enum NAME`), with their states.
    pub(crate) fn diagrams(&self) -> Vec<(String, BTreeSet<String>)> {
        let diagrams = self.blocks().into_iter().filter_map(|block| {
            let name = block.iter().find_map(|line| line.trim().strip_prefix("%% enum "))?;
            let states = block.iter().filter_map(|line| line.split_once("-->"));
            let states = states.flat_map(|(from, to)| [from, to.split(':').next().unwrap()]);
            let states = states.map(str::trim).filter(|state| *state != "[*]");
            Some((name.to_owned(), states.map(str::to_owned).collect()))
        });
        diagrams.collect()
    }

    /// The code spans, and those words of diagrams that can only be names.
    pub(crate) fn names(&self) -> BTreeSet<String> {
        let mut is_block = false;
        let lines = self.text.lines().filter(|line| {
            let is_fence = line.starts_with("```");
            is_block ^= is_fence;
            !is_block && !is_fence
        });
        let text = lines.collect::<Vec<_>>().join("\n");
        let diagrams = self.blocks().concat().join("\n");
        let words = diagrams.split(|it: char| !(it.is_alphanumeric() || it == '_'));
        let words = words.filter(|word| word.contains('_')).map(str::to_owned);
        code_spans(&text).chain(words).collect()
    }

    /// Links to files of this repository, or to headings in them, that are not there.
    pub(crate) fn broken_links(&self) -> Vec<&str> {
        let targets = self.text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap());
        targets.filter(|target| !target.contains("://") && !self.has(target)).collect()
    }

    fn has(&self, target: &str) -> bool {
        let (file, heading) = target.split_once('#').unwrap_or((target, ""));
        let own = root().join(&self.path);
        let path = if file.is_empty() { own } else { own.with_file_name(file) };
        if heading.is_empty() {
            return path.exists();
        }
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines().any(|line| line.starts_with('#') && anchor(line) == heading)
    }

    /// The lines of each mermaid block.
    fn blocks(&self) -> Vec<Vec<&str>> {
        let blocks = self.text.split("```mermaid\n").skip(1);
        blocks.map(|block| block.split("```").next().unwrap().lines().collect()).collect()
    }
}

/// The name of a heading in a link, as GitHub makes it.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
    text.chars().filter(|it| it.is_alphanumeric() || "-_".contains(*it)).collect()
}

/// What stands in code spans; a span may go on in the next line.
fn code_spans(text: &str) -> impl Iterator<Item = String> {
    let spans = text.split('`').skip(1).step_by(2);
    spans.map(|span| span.split_whitespace().collect::<Vec<_>>().join(" "))
}
