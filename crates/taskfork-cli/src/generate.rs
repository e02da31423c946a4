//! Completions and the manual page, made of the command's own description.

use std::io;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::failure::Failure;
use crate::output;

/// Which shell.
#[derive(Debug, clap::Args)]
pub(crate) struct Completions {
    /// The shell
    shell: Shell,
}

pub(crate) fn completions(options: &Completions) -> Result<(), Failure> {
    let mut out = Vec::new();
    clap_complete::generate(options.shell, &mut crate::Command::command(), "taskfork", &mut out);
    output::write(|to| io::Write::write_all(to, &out))
}

/// The page of the command and, behind it, those of its subcommands.
pub(crate) fn man() -> Result<(), Failure> {
    let mut out = Vec::new();
    let command = crate::Command::command();
    clap_mangen::Man::new(command.clone()).render(&mut out)?;
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        let name = format!("taskfork-{}", sub.get_name());
        clap_mangen::Man::new(sub.clone().name(name)).render(&mut out)?;
    }
    output::write(|to| io::Write::write_all(to, &out))
}
