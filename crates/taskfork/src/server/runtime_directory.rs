//! The runtime directory, for sockets whose address has no folder.

use std::path::PathBuf;

/// Returns `RUNTIME_DIRECTORY` (the first one of several), else `XDG_RUNTIME_DIR`, else `/run` for
/// root, else `/run/user/UID` if it exists.
pub(super) fn runtime_directory() -> Option<PathBuf> {
    let user = rustix::process::geteuid();
    let of_user = PathBuf::from(format!("/run/user/{}", user.as_raw()));
    choose(|name| std::env::var_os(name).map(PathBuf::from), user.is_root())
        .or_else(|| Some(of_user).filter(|path| path.is_dir()))
}

fn choose(variable: impl Fn(&str) -> Option<PathBuf>, is_root: bool) -> Option<PathBuf> {
    let first = |list: PathBuf| std::env::split_paths(&list).next();
    let of_service = variable("RUNTIME_DIRECTORY").and_then(first);
    [of_service, variable("XDG_RUNTIME_DIR")]
        .into_iter()
        .flatten()
        .find(|path| path.is_absolute())
        .or_else(|| is_root.then(|| "/run".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_service_comes_before_the_session_and_that_before_the_machine() {
        let choose = |service: &str, session: &str, is_root| {
            let value = |text: &str| (!text.is_empty()).then(|| PathBuf::from(text));
            choose(
                |name| value(if name == "RUNTIME_DIRECTORY" { service } else { session }),
                is_root,
            )
        };
        let path = |text: &str| Some(PathBuf::from(text));
        assert_eq!(choose("/run/a:/run/b", "/run/user/7", true), path("/run/a"));
        assert_eq!(choose("", "/run/user/7", true), path("/run/user/7"));
        assert_eq!(choose("relative", "/run/user/7", false), path("/run/user/7"));
        assert_eq!(choose("", "", true), path("/run"));
        assert_eq!(choose("", "relative", false), None);
    }
}
