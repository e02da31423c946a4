//! What a typed interface looks like to its callers: names and types as texts. A client sends it in its hello.

use super::WireError;
use super::fields::MapWriter;
use super::msgpack::{put_array, put_nil, put_str};

/// The most interfaces in a hello.
pub(crate) const MAX_INTERFACES: usize = 64;

/// The most bytes of descriptions with methods in a hello. The rest of the hello needs room too. A gateway adds up to
/// half of it.
const MAX_DESCRIPTIONS: usize = 7 << 10;

/// A typed interface.
#[doc(hidden)]
#[derive(Debug, PartialEq, Eq)]
pub struct InterfaceDescription {
    pub(crate) name: &'static str,
    pub(crate) methods: &'static [MethodDescription],
    /// Two interfaces with the same methods have the same.
    fingerprint: u64,
}

/// A method of a typed interface.
#[doc(hidden)]
#[derive(Debug, PartialEq, Eq)]
pub struct MethodDescription {
    /// What calls name it by.
    pub name: &'static str,
    /// Names and types of the parameters.
    pub parameters: &'static [(&'static str, &'static str)],
    pub result: &'static str,
    /// `None` if it cannot fail.
    pub error: Option<&'static str>,
}

/// An interface that the attribute [`interface`](macro@crate::interface) has made.
#[doc(hidden)]
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be one of several interfaces of a server",
    note = "a server serves several interfaces if `#[taskfork::interface]` has made all of them"
)]
pub trait Described {
    const DESCRIPTION: &'static InterfaceDescription;
}

/// The error type of a method whose caller gets the text and the causes of any error.
#[doc(hidden)]
pub const UNTYPED_ERROR: &str = "Failure";

impl InterfaceDescription {
    /// Describes an interface with these methods.
    pub const fn new(name: &'static str, methods: &'static [MethodDescription]) -> Self {
        let mut hash = Fnv::new();
        let mut method = 0;
        while method < methods.len() {
            hash = hash.method(&methods[method]);
            method += 1;
        }
        Self { name, methods, fingerprint: hash.0 }
    }

    pub(super) fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    fn put(&self, out: &mut Vec<u8>, with_methods: bool) {
        let mut map = MapWriter::new(out);
        map.str("name", self.name);
        map.uint("fingerprint", self.fingerprint);
        if with_methods {
            let out = map.key("methods");
            put_array(out, self.methods.len() as u32);
            self.methods.iter().for_each(|method| method.put(out));
        }
    }
}

impl MethodDescription {
    fn put(&self, out: &mut Vec<u8>) {
        put_array(out, 4);
        put_str(out, self.name);
        put_array(out, self.parameters.len() as u32);
        for (name, ty) in self.parameters {
            put_array(out, 2);
            put_str(out, name);
            put_str(out, ty);
        }
        put_str(out, self.result);
        match self.error {
            Some(error) => put_str(out, error),
            None => put_nil(out),
        }
    }
}

/// Encodes what a client requires of its server, for the key `interfaces` of its hello. If the methods of all are too
/// long, the longest interfaces go without them: of those the server compares fingerprints. Of those in `named` it compares
/// the names alone.
///
/// # Errors
/// If there are more interfaces than a server reads.
pub(crate) fn encode(
    interfaces: &[&InterfaceDescription],
    named: &[String],
) -> Result<Vec<u8>, WireError> {
    let count = interfaces.len() + named.len();
    if count > MAX_INTERFACES {
        return Err(WireError::Malformed(format!(
            "a client requires {count} interfaces, and the limit is {MAX_INTERFACES}"
        )));
    }
    let encoded = |interface: &InterfaceDescription, with_methods| {
        let mut out = Vec::new();
        interface.put(&mut out, with_methods);
        out
    };
    let mut whole: Vec<_> = interfaces.iter().map(|interface| encoded(interface, true)).collect();
    let mut by_length: Vec<_> = (0..whole.len()).collect();
    by_length.sort_by_key(|&index| whole[index].len());
    let mut room = MAX_DESCRIPTIONS;
    for index in by_length {
        match room.checked_sub(whole[index].len()) {
            Some(rest) => room = rest,
            None => whole[index] = encoded(interfaces[index], false),
        }
    }
    let mut out = Vec::new();
    put_array(&mut out, count as u32);
    whole.iter().for_each(|interface| out.extend_from_slice(interface));
    for name in named {
        MapWriter::new(&mut out).str("name", name);
    }
    Ok(out)
}

/// The hash FNV-1a, which can be computed while a program is compiled.
#[derive(Clone, Copy)]
struct Fnv(u64);

impl Fnv {
    const fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    const fn byte(self, byte: u8) -> Self {
        Self((self.0 ^ byte as u64).wrapping_mul(0x0100_0000_01b3))
    }

    /// A text and a byte that is in no text.
    const fn text(mut self, text: &str) -> Self {
        let bytes = text.as_bytes();
        let mut index = 0;
        while index < bytes.len() {
            self = self.byte(bytes[index]);
            index += 1;
        }
        self.byte(0xff)
    }

    const fn method(mut self, method: &MethodDescription) -> Self {
        self = self.text(method.name);
        let mut index = 0;
        while index < method.parameters.len() {
            let (name, ty) = method.parameters[index];
            self = self.text(name).text(ty);
            index += 1;
        }
        // A byte that begins no text: without it, a parameter could be taken for a method.
        self = self.byte(0xfe).text(method.result);
        match method.error {
            Some(error) => self.byte(0xfd).text(error),
            None => self.byte(0xfc),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn method(name: &'static str, result: &'static str) -> MethodDescription {
        MethodDescription { name, parameters: &[("a", "u8")], result, error: None }
    }

    #[test]
    fn each_part_of_a_method_changes_the_fingerprint() {
        static METHODS: [[MethodDescription; 1]; 6] = [
            [method("a", "u8")],
            [method("b", "u8")],
            [method("a", "u16")],
            [MethodDescription { parameters: &[("a", "u8"), ("b", "u8")], ..method("a", "u8") }],
            [MethodDescription { parameters: &[("b", "u8")], ..method("a", "u8") }],
            [MethodDescription { error: Some(""), ..method("a", "u8") }],
        ];
        let prints: Vec<_> =
            METHODS.iter().map(|one| InterfaceDescription::new("x", one).fingerprint).collect();
        let different: std::collections::BTreeSet<_> = prints.iter().collect();
        assert_eq!(different.len(), prints.len());
        assert_eq!(InterfaceDescription::new("another name", &METHODS[0]).fingerprint, prints[0]);
    }

    #[test]
    fn the_longest_interfaces_go_without_their_methods() {
        static SHORT: [MethodDescription; 1] = [method("short", "u8")];
        static LONG: [MethodDescription; 300] =
            [const { method("a_method_with_a_long_name", "u8") }; 300];
        let short = InterfaceDescription::new("Short", &SHORT);
        let long = InterfaceDescription::new("Long", &LONG);
        let encoded = encode(&[&long, &short], &[]).unwrap();
        let contains = |text: &str| encoded.windows(text.len()).any(|it| it == text.as_bytes());
        assert!(contains("Long") && !contains("a_method_with_a_long_name"));
        assert!(contains("Short") && contains("short"));
        // Those that fit together all go with them.
        let encoded = encode(&[&short, &short], &[]).unwrap();
        assert_eq!(encoded.windows(5).filter(|it| it == b"short").count(), 2);
    }
}
