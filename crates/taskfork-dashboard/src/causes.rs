//! The causes of deaths that servers tell.

/// Workers that have left in order: they were replaced, were not needed any more, or their client has gone.
pub(crate) const REGULAR: [&str; 9] = [
    "finished",
    "client_gone",
    "shutdown",
    "max_calls",
    "max_age",
    "max_idle",
    "max_memory",
    "dismissed",
    "made_room",
];

/// Workers that have died.
pub(crate) const IRREGULAR: [&str; 9] = [
    "exited",
    "signaled",
    "timed_out",
    "hung",
    "limit",
    "out_of_memory",
    "setup_failed",
    "sandbox",
    "corrupt",
];

/// What is neither: a cause of a newer server.
const OTHER: &str = "other";

/// The cause, if it is that of a death.
pub(crate) fn irregular(cause: &str) -> Option<&'static str> {
    if REGULAR.contains(&cause) {
        return None;
    }
    Some(IRREGULAR.into_iter().find(|known| *known == cause).unwrap_or(OTHER))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_causes_are_those_that_servers_document() {
        let status = std::fs::read_to_string(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../taskfork/src/server/status.rs"
        ));
        let status = status.unwrap();
        let rows = status.lines().filter_map(|line| line.trim().strip_prefix("/// | `"));
        let documented: BTreeSet<_> = rows
            .flat_map(|row| row.split(" |").next().unwrap_or_default().split(", "))
            .map(|cause| cause.trim_matches('`'))
            .collect();
        let known: BTreeSet<_> = REGULAR.into_iter().chain(IRREGULAR).collect();
        assert_eq!(documented, known);
        assert_eq!(irregular("hung"), Some("hung"));
        assert_eq!((irregular("max_calls"), irregular("a new one")), (None, Some("other")));
    }
}
