//! The names of the servers of a test program: [`test_support!`](crate::test_support).

use std::sync::{Mutex, PoisonError};

use super::error::ServerError;

/// The names of the servers, each with the module that registered it.
static ENTRIES: Mutex<Vec<(&str, &str)>> = Mutex::new(Vec::new());

/// Adds the name of a server.
pub(super) fn add(name: &'static str, module: &'static str) {
    ENTRIES.lock().unwrap_or_else(PoisonError::into_inner).push((name, module));
}

/// Whether a server of this name is registered.
///
/// # Errors
/// If more than one is.
pub(super) fn is_registered(name: &str) -> Result<bool, ServerError> {
    let entries = ENTRIES.lock().unwrap_or_else(PoisonError::into_inner);
    let named = entries.iter().filter(|(known, _)| *known == name);
    let mut modules: Vec<String> = named.map(|(_, module)| (*module).to_owned()).collect();
    // The linker decides which constructor runs first.
    modules.sort_unstable();
    match modules.len() {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(ServerError::AmbiguousEntry { name: name.to_owned(), modules }),
    }
}
