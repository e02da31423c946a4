//! Completions and the manual page, generated from the options.

use std::io;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::error::CommandError;
use crate::output;

/// The options of `completions`.
#[derive(Debug, clap::Args)]
pub(crate) struct Completions {
    /// The shell
    shell: Shell,
}

pub(crate) fn completions(options: &Completions) -> Result<(), CommandError> {
    let mut out = Vec::new();
    clap_complete::generate(
        options.shell,
        &mut crate::CommandLine::command(),
        "taskfork",
        &mut out,
    );
    output::write(|to| io::Write::write_all(to, &out))
}

/// Prints the page of the command, followed by those of its subcommands.
pub(crate) fn man() -> Result<(), CommandError> {
    let mut out = Vec::new();
    let command = crate::CommandLine::command();
    clap_mangen::Man::new(command.clone()).render(&mut out)?;
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        let name = format!("taskfork-{}", sub.get_name());
        clap_mangen::Man::new(sub.clone().name(name)).render(&mut out)?;
    }
    output::write(|to| io::Write::write_all(to, &out))
}
