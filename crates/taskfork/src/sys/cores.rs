//! The processors of the machine.

/// Returns the number of CPUs that this process may use.
pub(crate) fn available_cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
