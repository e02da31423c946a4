//! Texts of the library in terms of the command's options: users of the command have no builder.

use std::borrow::Cow;

/// The options of clients: as texts of the library name them, and as the command does.
const NAMES: [(&str, &str); 9] = [
    ("`tls_ca`", "--ca"),
    ("`tls_identity`", "--cert and --key"),
    ("`tls_name`", "--tls-name"),
    ("`nats`", "--creds, --nats-ca, --nats-cert and --nats-key"),
    ("`add_client_certificate`", "--nats-cert and --nats-key"),
    ("`NatsRoute::Auto`", "--route auto"),
    ("`with_labels`", "--label"),
    ("`by_key`", "--by-key"),
    ("`protocol`", "--protocol"),
];

/// How the command names an option of the library's clients, if it has this option.
pub(crate) fn of_client(option: &str) -> Option<&'static str> {
    let option = format!("`{option}`");
    match &*option {
        "`nats_route`" => Some("--route"),
        option => NAMES.iter().find(|(name, _)| *name == option).map(|(_, own)| *own),
    }
}

/// The text with the command's names of options.
pub(crate) fn in_text(text: &str) -> Cow<'_, str> {
    let is_named = |(name, _): &&(&str, &str)| text.contains(name);
    match NAMES.iter().any(|names| is_named(&names)) {
        false => Cow::Borrowed(text),
        true => Cow::Owned(
            NAMES.iter().fold(text.to_owned(), |text, (name, own)| text.replace(name, own)),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_of_the_library_becomes_one_of_the_command() {
        let text = "set it with `tls_identity`, or `tls_ca`, or `NatsRoute::Auto`";
        assert_eq!(in_text(text), "set it with --cert and --key, or --ca, or --route auto");
        assert!(matches!(in_text("nothing `else`"), Cow::Borrowed("nothing `else`")));
        assert_eq!(of_client("tls_name"), Some("--tls-name"));
        assert_eq!((of_client("nats_route"), of_client("max_queue")), (Some("--route"), None));
    }
}
