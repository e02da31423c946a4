//! What a worker says of the program that it has executed in its own place.

/// How far the program is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProgramStage {
    /// It is executed, and has not taken the worker over.
    Executed = 1,
    /// It serves the worker's connection.
    Serving = 2,
}

impl ProgramStage {
    pub(super) fn of(number: u64) -> Option<Self> {
        [Self::Executed, Self::Serving].into_iter().find(|stage| *stage as u64 == number)
    }
}
