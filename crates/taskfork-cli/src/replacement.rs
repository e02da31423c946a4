//! A gateway that is checked because it is to replace another one, and what both have. Nothing else of the
//! present one keeps it from starting.

use std::net::SocketAddr;

use crate::gateway_options::GatewayOptions;
use crate::listeners::is_taken_by;
use crate::node_options::NodeOptions;

/// What a gateway has like the one that it is to replace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Replacement {
    /// The process of the present gateway, if it runs. It may listen where the new one is to listen.
    pub(crate) process: Option<u32>,
    /// All NATS servers of the present gateway, which cannot reach them either.
    pub(crate) has_same_nats: bool,
    /// The name of the node. The present gateway has it.
    pub(crate) has_same_name: bool,
}

/// How the text names each of them.
const WORDS: [&str; 2] = ["nats", "name"];

/// What stands in front of the process.
const PROCESS: &str = "process=";

impl Replacement {
    /// Compares the options of the present gateway, which is this process, with new ones.
    pub(crate) fn new(
        process: Option<u32>,
        present: Option<&GatewayOptions>,
        new: Option<&GatewayOptions>,
    ) -> Self {
        let both_nodes = node(present).zip(node(new));
        Self {
            process,
            has_same_nats: both_nodes.is_some_and(|(present, new)| new.has_servers_of(present)),
            has_same_name: both_nodes.is_some_and(|(present, new)| new.has_name_of(present)),
        }
    }

    /// The text for the process that checks. It has no address, since that may have a password.
    pub(crate) fn to_text(self) -> String {
        let facts = [self.has_same_nats, self.has_same_name];
        let words = WORDS.into_iter().zip(facts).filter(|(_, holds)| *holds);
        let words = words.map(|(word, _)| word.to_owned());
        let process = self.process.map(|process| format!("{PROCESS}{process}"));
        words.chain(process).collect::<Vec<_>>().join(",")
    }

    pub(crate) fn from_text(text: &str) -> Self {
        let [has_same_nats, has_same_name] =
            WORDS.map(|word| text.split(',').any(|found| found == word));
        let process = text.split(',').find_map(|found| found.strip_prefix(PROCESS)?.parse().ok());
        Self { process, has_same_nats, has_same_name }
    }

    /// Whether the present gateway alone keeps the new one from listening at this address.
    pub(crate) fn listens_at(self, address: SocketAddr) -> bool {
        self.process.is_some_and(|process| is_taken_by(process, address))
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
        let replacement = Replacement::new(None, present.as_ref(), new.as_ref());
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
    fn a_gateway_without_a_node_has_no_node_in_common() {
        let tls = || options("tls = \":1\"\ncert = \"c\"\nkey = \"k\"");
        assert_eq!(facts(tls(), tls()), "");
        assert_eq!(facts(tls(), node("nats://a", "s", "n")), "");
        assert_eq!(facts(None, node("nats://a", "s", "n")), "");
    }

    #[test]
    fn the_process_of_the_present_gateway_is_known_to_the_check() {
        let present = node("nats://a", "s", "n");
        let replacement = Replacement::new(Some(77), present.as_ref(), present.as_ref());
        assert_eq!(replacement.to_text(), "nats,name,process=77");
        assert_eq!(Replacement::from_text("nats,name,process=77"), replacement);
    }
}
