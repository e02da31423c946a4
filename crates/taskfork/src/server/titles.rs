//! The name of a server in process titles and file names.

/// Returns at most 64 bytes of a name, with control characters replaced.
pub(super) fn printable_name(name: &str) -> String {
    let name = &name[..name.floor_char_boundary(64)];
    name.chars().map(|letter| if letter.is_control() { '?' } else { letter }).collect()
}
