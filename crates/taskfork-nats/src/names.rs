//! Names of services, nodes and labels, and the subjects made of them. No I/O.

use std::fmt;
use std::str::FromStr;

use crate::error::Error;

/// The longest name.
const MAX_NAME: usize = 64;

/// The longest key and the longest value of a label.
const MAX_LABEL_PART: usize = 32;

/// How many labels a node may have. It has a subject for each set of them, so that a request for any
/// set is one message.
pub(crate) const MAX_LABELS: usize = 5;

/// A property of a node, such as `gpu=a100`, that clients can ask for.
///
/// Key and value have 1 to 32 letters, digits, `-` or `_` each.
///
/// ```
/// use taskfork_nats::Label;
///
/// let label: Label = "gpu=a100".parse()?;
/// assert_eq!(label.key(), "gpu");
/// assert!("gpu".parse::<Label>().is_err());
/// # Ok::<(), taskfork_nats::Error>(())
/// ```
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Label {
    text: String,
    equals: usize,
}

impl Label {
    /// What is before the `=`.
    pub fn key(&self) -> &str {
        &self.text[..self.equals]
    }

    /// What is after the `=`.
    pub fn value(&self) -> &str {
        &self.text[self.equals + 1..]
    }
}

impl FromStr for Label {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let invalid = |why: &str| Error::InvalidName {
            what: "label",
            name: crate::wire::shortened(text),
            why: why.into(),
        };
        let (key, value) = text
            .split_once('=')
            .ok_or_else(|| invalid("a label is KEY=VALUE, such as gpu=a100"))?;
        for part in [key, value] {
            if part.is_empty() || part.len() > MAX_LABEL_PART || !part.bytes().all(is_name_byte) {
                return Err(invalid("key and value have 1 to 32 letters, digits, '-' or '_' each"));
            }
        }
        Ok(Self { text: text.into(), equals: key.len() })
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Whether a text can be the name of a service: 1 to 64 letters, digits, `-` or `_`.
///
/// # Errors
///
/// [`Error::InvalidName`] says why not.
///
/// ```
/// assert!(taskfork_nats::check_service_name("resize").is_ok());
/// assert!(taskfork_nats::check_service_name("resize.images").is_err());
/// ```
pub fn check_service_name(name: &str) -> Result<(), Error> {
    Name::service(name).map(drop)
}

/// Whether a node can have all of these labels, or a client can want them. Each counts once.
///
/// # Errors
///
/// [`Error::TooManyLabels`] if they are more than 5.
///
/// ```
/// assert!(taskfork_nats::check_labels(&["gpu=a100".parse()?]).is_ok());
/// # Ok::<(), taskfork_nats::Error>(())
/// ```
pub fn check_labels(labels: &[Label]) -> Result<(), Error> {
    Labels::new(labels).map(drop)
}

/// The name of a service or a node: one token of a subject.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct Name(String);

impl Name {
    pub(crate) fn service(name: &str) -> Result<Self, Error> {
        Self::new("service", name)
    }

    pub(crate) fn node(name: &str) -> Result<Self, Error> {
        Self::new("node", name)
    }

    fn new(what: &'static str, name: &str) -> Result<Self, Error> {
        let why = if name.is_empty() {
            "it is empty"
        } else if name.len() > MAX_NAME {
            "it is longer than 64 bytes"
        } else if !name.bytes().all(is_name_byte) {
            "it may only have letters, digits, '-' and '_', because it is a part of NATS subjects"
        } else {
            return Ok(Self(name.into()));
        };
        Err(Error::InvalidName { what, name: crate::wire::shortened(name), why: why.into() })
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')
}

/// The labels of a node or of a request: sorted, each once.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Labels(Vec<Label>);

impl Labels {
    pub(crate) fn new(labels: &[Label]) -> Result<Self, Error> {
        let mut labels = labels.to_vec();
        labels.sort();
        labels.dedup();
        if labels.len() > MAX_LABELS {
            return Err(Error::TooManyLabels { count: labels.len(), most: MAX_LABELS });
        }
        Ok(Self(labels))
    }

    pub(crate) fn texts(&self) -> Vec<String> {
        self.0.iter().map(Label::to_string).collect()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether each of these texts is one of the labels.
    pub(crate) fn have(&self, wanted: &[String]) -> bool {
        wanted.iter().all(|wanted| self.0.iter().any(|label| label.text == *wanted))
    }

    /// Each set of at least one of the labels.
    fn sets(&self) -> impl Iterator<Item = Self> {
        (1..1u32 << self.0.len()).map(|set| {
            let chosen = self.0.iter().enumerate().filter(|(index, _)| set >> index & 1 == 1);
            Self(chosen.map(|(_, label)| label.clone()).collect())
        })
    }
}

/// All sets of these labels, with the empty one.
fn label_sets(labels: &Labels) -> impl Iterator<Item = Labels> {
    std::iter::once(Labels::default()).chain(labels.sets())
}

/// The subjects of a service.
#[derive(Clone, Debug)]
pub(crate) struct Subjects {
    service: Name,
}

impl Subjects {
    pub(crate) fn new(service: Name) -> Self {
        Self { service }
    }

    /// Where a client asks for a session with any node that has these labels.
    pub(crate) fn acquire(&self, labels: &Labels) -> String {
        self.with_labels("any", labels)
    }

    fn with_labels(&self, name: &str, labels: &Labels) -> String {
        let mut subject = format!("{}.acquire.{name}", self.service);
        for label in &labels.0 {
            subject.push('.');
            subject.push_str(&label.text);
        }
        subject
    }

    /// Where a client asks one node for a session.
    pub(crate) fn acquire_from(&self, node: &Name) -> String {
        format!("{}.acquire.node.{node}", self.service)
    }

    /// Where a node with these labels is asked for sessions, besides its own subject.
    pub(crate) fn acquire_all(&self, labels: &Labels) -> Vec<String> {
        label_sets(labels).map(|set| self.acquire(&set)).collect()
    }

    /// Where a client that waits asks one of the nodes with these labels to make room.
    pub(crate) fn room(&self, labels: &Labels) -> String {
        self.with_labels("room", labels)
    }

    /// Where a node with these labels is asked to make room.
    pub(crate) fn room_all(&self, labels: &Labels) -> Vec<String> {
        label_sets(labels).map(|set| self.room(&set)).collect()
    }

    /// Where clients ask all nodes for a place in their queues.
    pub(crate) fn wait(&self) -> String {
        format!("{}.wait", self.service)
    }

    /// Where nodes tell each other of their loads.
    pub(crate) fn load(&self) -> String {
        format!("{}.load", self.service)
    }

    /// Where a node with this name answers another one that starts.
    pub(crate) fn node(&self, node: &Name) -> String {
        format!("{}.node.{node}", self.service)
    }

    /// Where all nodes are asked for their status.
    pub(crate) fn status(&self) -> String {
        format!("{}.status", self.service)
    }

    /// Where one node is asked for its status.
    pub(crate) fn status_of(&self, node: &Name) -> String {
        format!("{}.status.{node}", self.service)
    }

    /// Where calls in JSON come.
    pub(crate) fn calls(&self) -> String {
        format!("{}.call.*", self.service)
    }

    /// The method of a call in JSON.
    pub(crate) fn method<'s>(&self, subject: &'s str) -> Option<&'s str> {
        subject.strip_prefix(self.service.as_str())?.strip_prefix(".call.")
    }

    /// The queue group of all nodes.
    pub(crate) fn group(&self) -> String {
        self.service.to_string()
    }

    /// Where a micro service with this id is asked by a verb: all services, this one, this instance.
    pub(crate) fn micro(&self, verb: &str, id: &str) -> [String; 3] {
        let service = &self.service;
        [
            format!("$SRV.{verb}"),
            format!("$SRV.{verb}.{service}"),
            format!("$SRV.{verb}.{service}.{id}"),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(texts: &[&str]) -> Labels {
        let labels: Vec<Label> = texts.iter().map(|text| text.parse().unwrap()).collect();
        Labels::new(&labels).unwrap()
    }

    #[test]
    fn names_that_are_no_token_are_errors_that_say_why() {
        for (name, why) in [
            ("", "it is empty"),
            ("a.b", "letters, digits"),
            ("a b", "letters, digits"),
            ("a*", "letters, digits"),
            (">", "letters, digits"),
            ("näme", "letters, digits"),
            (&"x".repeat(65), "longer than 64"),
        ] {
            let error = Name::service(name).unwrap_err().to_string();

            assert!(error.contains(why) && error.contains("service"), "{error}");
        }
        assert!(Name::node("node-1_A").is_ok());
    }

    #[test]
    fn labels_that_are_no_pair_are_errors() {
        for label in ["", "gpu", "=", "gpu=", "=a100", "gpu=a 100", "a.b=c", "gpu=a=b"] {
            assert!(label.parse::<Label>().is_err(), "{label:?}");
        }
    }

    #[test]
    fn a_node_is_asked_by_each_set_of_its_labels() {
        let subjects = Subjects::new(Name::service("resize").unwrap());
        let node = labels(&["zone=b", "gpu=a100", "arch=arm"]);
        let asked = subjects.acquire_all(&node);

        assert_eq!(asked.len(), 8);
        for wanted in [&[][..], &["gpu=a100"], &["gpu=a100", "zone=b"], &["zone=b", "arch=arm"]] {
            assert!(asked.contains(&subjects.acquire(&labels(wanted))), "{wanted:?}");
        }
        assert!(!asked.contains(&subjects.acquire(&labels(&["gpu=h100"]))));
    }

    #[test]
    fn the_order_of_labels_does_not_matter() {
        let subjects = Subjects::new(Name::service("resize").unwrap());

        let one = subjects.acquire(&labels(&["a=1", "b=2", "a=1"]));

        assert_eq!(one, subjects.acquire(&labels(&["b=2", "a=1"])));
    }

    #[test]
    fn a_node_has_at_most_five_labels() {
        let many: Vec<Label> = (0..6).map(|n| format!("l{n}=x").parse().unwrap()).collect();

        let error = Labels::new(&many).unwrap_err();

        assert!(matches!(error, Error::TooManyLabels { count: 6, most: 5 }));
    }
}
