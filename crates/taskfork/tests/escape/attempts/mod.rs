//! The table of attempts, by subject. Add an attempt to the file of its subject.

mod descriptors;
mod files;
mod kernel;
mod limits;
mod network;
mod processes;
mod programs;

use crate::attempt::Attempt;

pub(crate) use programs::PROGRAM;

pub(crate) fn all() -> Vec<Attempt> {
    [
        files::attempts(),
        programs::attempts(),
        processes::attempts(),
        network::attempts().into_iter().map(Attempt::needs_network).collect(),
        descriptors::attempts(),
        limits::attempts(),
        kernel::attempts(),
    ]
    .concat()
}
