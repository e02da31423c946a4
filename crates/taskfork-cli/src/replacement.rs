//! A gateway that is checked because it is to replace another one, and what both have. Nothing else of the
//! present one keeps it from starting.

use crate::gateway_options::GatewayOptions;
use crate::node_options::NodeOptions;

/// What a gateway has like the one that it is to replace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Replacement {
    /// The address of TLS. The present gateway listens there.
    pub(crate) has_same_address: bool,
    /// All NATS servers of the present gateway, which cannot reach them either.
    pub(crate) has_same_nats: bool,
    /// The name of the node. The present gateway has it.
    pub(crate) has_same_name: bool,
}

/// How the text names each of them.
const WORDS: [&str; 3] = ["address", "nats", "name"];

impl Replacement {
    /// Compares the options of the present gateway with new ones.
    pub(crate) fn new(present: Option<&GatewayOptions>, new: Option<&GatewayOptions>) -> Self {
        let listen = |options: Option<&GatewayOptions>| Some(options?.tls.as_ref()?.listen.clone());
        let both_nodes = node(present).zip(node(new));
        Self {
            has_same_address: listen(present).is_some() && listen(present) == listen(new),
            has_same_nats: both_nodes.is_some_and(|(present, new)| new.has_servers_of(present)),
            has_same_name: both_nodes.is_some_and(|(present, new)| new.has_name_of(present)),
        }
    }

    /// The text for the process that checks. It has no address, since that may have a password.
    pub(crate) fn to_text(self) -> String {
        let present = WORDS.into_iter().zip(self.facts()).filter(|(_, holds)| *holds);
        present.map(|(word, _)| word).collect::<Vec<_>>().join(",")
    }

    pub(crate) fn from_text(text: &str) -> Self {
        let [has_same_address, has_same_nats, has_same_name] =
            WORDS.map(|word| text.split(',').any(|found| found == word));
        Self { has_same_address, has_same_nats, has_same_name }
    }

    fn facts(self) -> [bool; 3] {
        [self.has_same_address, self.has_same_nats, self.has_same_name]
    }
}

fn node(options: Option<&GatewayOptions>) -> Option<&NodeOptions> {
    options?.node.as_ref()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PoolOptions;
    use crate::serve::OptionSource;

    fn options(text: &str) -> Option<GatewayOptions> {
        let pool: PoolOptions = toml::from_str(&format!("listen = \"unix:/s\"\n{text}")).unwrap();
        pool.gateway(&OptionSource::File).unwrap()
    }

    fn node(url: &str, service: &str, node: &str) -> Option<GatewayOptions> {
        options(&format!("nats = \"{url}\"\nservice = \"{service}\"\nnode = \"{node}\""))
    }

    fn facts(present: Option<GatewayOptions>, new: Option<GatewayOptions>) -> String {
        let replacement = Replacement::new(present.as_ref(), new.as_ref());
        assert_eq!(Replacement::from_text(&replacement.to_text()), replacement);
        replacement.to_text()
    }

    #[test]
    fn a_node_is_the_same_at_the_same_servers_by_the_same_name() {
        let present = || node("nats://a,nats://u:p@b:4223", "s", "n");
        for (new, expected) in [
            (present(), "nats,name"),
            (node("nats://b:4223,nats://a:4222", "s", "n"), "nats,name"),
            (node("nats://a,nats://b:4223,nats://c", "s", "n"), "nats,name"),
            // One of the two may be the one that runs.
            (node("nats://a,nats://c", "s", "n"), "name"),
            (node("nats://c", "s", "n"), ""),
            (node("nats://a,nats://b", "s", "n"), "name"),
            (node("nats://a,nats://b:4223", "t", "n"), "nats"),
            (node("nats://a,nats://b:4223", "s", "m"), "nats"),
            (node("nats://a:port", "s", "n"), ""),
        ] {
            assert_eq!(facts(present(), new.clone()), expected, "{new:?}");
        }
    }

    #[test]
    fn a_gateway_without_a_node_or_without_tls_has_nothing_in_common() {
        let tls = |listen: &str| options(&format!("tls = \"{listen}\"\ncert = \"c\"\nkey = \"k\""));
        assert_eq!(facts(tls(":1"), tls(":1")), "address");
        assert_eq!(facts(tls(":1"), tls(":2")), "");
        assert_eq!(facts(tls(":1"), node("nats://a", "s", "n")), "");
        assert_eq!(facts(None, node("nats://a", "s", "n")), "");
    }
}
