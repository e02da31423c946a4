//! Whether a server serves the interfaces that a client requires. `docs/PROTOCOL.md` has the rules.

use super::WireError;
use super::fields::{read_list, read_map};
use super::interface_description::{
    InterfaceDescription, MAX_INTERFACES, MethodDescription, UNTYPED_ERROR,
};
use super::msgpack::Reader;

/// The most methods of an interface, and parameters of a method, that a server reads.
const MAX_METHODS: usize = 1000;
const MAX_PARAMETERS: usize = 64;

/// How many differences a refusal names. Others are counted.
const MAX_TOLD: usize = 4;

/// The most bytes of a difference. The client's texts are in it.
const MAX_DIFFERENCE: usize = 512;

/// Compares what a client requires, the value of `interfaces` in its hello, with what is `served`. Returns why the
/// client cannot be served; `None` if it can. A server that does not know the types of its parameters serves nothing
/// here, and can serve all clients.
///
/// # Errors
/// If the value is of another form, or exceeds a limit.
pub(crate) fn difference(
    required: &[u8],
    served: &[&InterfaceDescription],
) -> Result<Option<String>, WireError> {
    let interfaces: Vec<_> =
        read_list(&mut Reader::new(required), "interfaces", MAX_INTERFACES, Required::read)?;
    if served.is_empty() {
        return Ok(None);
    }
    Ok(interfaces.iter().find_map(|interface| interface.difference(served)))
}

/// An interface that a client requires.
#[derive(Debug, Default)]
struct Required<'a> {
    name: &'a str,
    fingerprint: Option<u64>,
    methods: Option<Vec<Method<'a>>>,
}

#[derive(Debug)]
struct Method<'a> {
    name: &'a str,
    parameters: Vec<(&'a str, &'a str)>,
    result: &'a str,
    error: Option<&'a str>,
}

impl<'a> Required<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, WireError> {
        let mut interface = Self::default();
        read_map(reader, |key, reader| {
            match key {
                "name" => interface.name = reader.str()?,
                "fingerprint" => interface.fingerprint = Some(reader.unsigned()?),
                "methods" => {
                    interface.methods = Some(read_list(reader, key, MAX_METHODS, Method::read)?);
                }
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok(interface)
    }

    fn difference(&self, served: &[&InterfaceDescription]) -> Option<String> {
        let name = cut(self.name);
        let Some(interface) = served.iter().find(|interface| interface.name == self.name) else {
            let names: Vec<_> = served.iter().map(|it| format!("`{}`", it.name)).collect();
            return Some(format!(
                "the server does not serve the interface `{name}`: it serves {}",
                names.join(", ")
            ));
        };
        if self.fingerprint == Some(interface.fingerprint()) {
            return None;
        }
        let Some(methods) = &self.methods else {
            // Without both, the client only asks for the name.
            return self.fingerprint.map(|_| {
                format!(
                    "the interface `{name}` is not the same on both sides, and it is too long to tell the \
                     difference: build client and server from the same version of it"
                )
            });
        };
        let mut differences = methods.iter().filter_map(|method| method.difference(interface));
        let told: Vec<_> = differences.by_ref().take(MAX_TOLD).collect();
        if told.is_empty() {
            return None;
        }
        let more = match differences.count() {
            0 => String::new(),
            1 => "; and 1 more method differs".to_owned(),
            more => format!("; and {more} more methods differ"),
        };
        Some(format!("the interface `{name}` differs: {}{more}", told.join("; ")))
    }
}

impl<'a> Method<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, WireError> {
        let elements = reader.array()?;
        if elements < 4 {
            return Err(WireError::Malformed(format!("a method has {elements} elements, not 4")));
        }
        let method = Self {
            name: reader.str()?,
            parameters: read_list(reader, "parameters", MAX_PARAMETERS, parameter)?,
            result: reader.str()?,
            error: reader.optional_str()?,
        };
        for _ in 4..elements {
            reader.value()?;
        }
        Ok(method)
    }

    fn difference(&self, interface: &InterfaceDescription) -> Option<String> {
        let name = self.name;
        let served = interface.methods.iter().find(|method| method.name == name);
        let what = match served {
            None => "the server does not have it".to_owned(),
            Some(served) if !fits(&self.parameters, served.parameters) => format!(
                "the server takes ({}), this client gives ({})",
                list(served.parameters),
                list(&self.parameters)
            ),
            Some(MethodDescription { result, .. }) if *result != self.result => {
                format!("the server returns {result}, this client expects {}", self.result)
            }
            Some(served) => {
                let (sent, expected) = (served.error?, self.error?);
                // Any error has a text, which is all that such a client wants.
                if expected == UNTYPED_ERROR || sent == expected {
                    return None;
                }
                format!("its error is {sent} at the server, and {expected} at this client")
            }
        };
        Some(cut(&format!("method `{name}`: {what}")).to_owned())
    }
}

fn parameter<'a>(reader: &mut Reader<'a>) -> Result<(&'a str, &'a str), WireError> {
    match reader.array()? {
        2 => Ok((reader.str()?, reader.str()?)),
        elements => {
            Err(WireError::Malformed(format!("a parameter has {elements} elements, not 2")))
        }
    }
}

/// Whether a server with the parameters `taken` can be called with those that are `given`.
fn fits(given: &[(&str, &str)], taken: &[(&str, &str)]) -> bool {
    // Arguments travel without names. So a new name is no difference, but another order is, even of the same types.
    let has_moved = |name: &str| taken.iter().any(|(taken, _)| *taken == name);
    given.len() <= taken.len()
        && given
            .iter()
            .zip(taken)
            .all(|(given, taken)| given.1 == taken.1 && (given.0 == taken.0 || !has_moved(given.0)))
        && taken[given.len()..].iter().all(|(_, ty)| is_optional(ty))
}

/// Whether a call may leave out the last arguments if they have this type.
fn is_optional(ty: &str) -> bool {
    ty.starts_with("Option<")
}

fn list(parameters: &[(&str, &str)]) -> String {
    let parameters: Vec<_> = parameters.iter().map(|(name, ty)| format!("{name}: {ty}")).collect();
    parameters.join(", ")
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_DIFFERENCE)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::interface_description::encode;
    use crate::wire::msgpack::{put_array, put_map, put_str};

    const HASH: MethodDescription = MethodDescription {
        name: "hash",
        parameters: &[("plain", "String"), ("salt", "Blob")],
        result: "String",
        error: Some("Weak"),
    };

    /// Why a server with `served` refuses a client with `required`, as methods of one interface.
    fn refusal(
        required: &'static [MethodDescription],
        served: &'static [MethodDescription],
    ) -> Option<String> {
        let required = InterfaceDescription::new("Passwords", required);
        let served = InterfaceDescription::new("Passwords", served);
        difference(&encode(&[&required], &[]).unwrap(), &[&served]).unwrap()
    }

    #[test]
    fn an_interface_that_is_required_by_name_fits_whatever_its_methods_are() {
        let served = InterfaceDescription::new("Passwords", &[HASH]);
        let names = ["Passwords".to_owned(), "Reports".to_owned()];
        let fits = difference(&encode(&[], &names[..1]).unwrap(), &[&served]).unwrap();
        assert_eq!(fits, None);
        assert_eq!(
            difference(&encode(&[], &names).unwrap(), &[&served]).unwrap().unwrap(),
            "the server does not serve the interface `Reports`: it serves `Passwords`"
        );
    }

    #[test]
    fn the_same_methods_fit_and_so_do_more_of_the_server() {
        const OTHER: MethodDescription = MethodDescription { name: "other", ..HASH };
        assert_eq!(refusal(&[HASH], &[HASH]), None);
        assert_eq!(refusal(&[HASH], &[OTHER, HASH]), None);
        assert_eq!(
            refusal(&[OTHER, HASH], &[HASH]).unwrap(),
            "the interface `Passwords` differs: method `other`: the server does not have it"
        );
    }

    #[test]
    fn parameters_fit_by_type_and_order() {
        const ONE: MethodDescription =
            MethodDescription { parameters: &[("plain", "String")], ..HASH };
        const RENAMED: MethodDescription =
            MethodDescription { parameters: &[("plain", "String"), ("pepper", "Blob")], ..HASH };
        const OPTIONAL: MethodDescription =
            MethodDescription { parameters: &[("plain", "String"), ("x", "Option<u8>")], ..HASH };
        const SWAPPED: [MethodDescription; 2] = [
            MethodDescription { parameters: &[("a", "u8"), ("b", "u8")], ..HASH },
            MethodDescription { parameters: &[("b", "u8"), ("a", "u8")], ..HASH },
        ];
        assert_eq!(
            refusal(&[HASH], &[ONE]).unwrap(),
            "the interface `Passwords` differs: method `hash`: the server takes (plain: String), this \
             client gives (plain: String, salt: Blob)"
        );
        assert!(refusal(&[ONE], &[HASH]).is_some());
        assert_eq!(refusal(&[RENAMED], &[HASH]), None);
        assert_eq!(refusal(&[ONE], &[OPTIONAL]), None);
        assert!(refusal(&[OPTIONAL], &[ONE]).is_some());
        let [one, other] = SWAPPED;
        let (one, other) = (Box::leak(Box::new([one])), Box::leak(Box::new([other])));
        assert!(refusal(one, other).is_some());
    }

    #[test]
    fn results_and_errors_have_the_same_types() {
        const NUMBER: MethodDescription = MethodDescription { result: "u64", ..HASH };
        const INFALLIBLE: MethodDescription = MethodDescription { error: None, ..HASH };
        const UNTYPED: MethodDescription = MethodDescription { error: Some(UNTYPED_ERROR), ..HASH };
        const OTHER: MethodDescription = MethodDescription { error: Some("Other"), ..HASH };
        assert_eq!(
            refusal(&[NUMBER], &[HASH]).unwrap(),
            "the interface `Passwords` differs: method `hash`: the server returns String, this client \
             expects u64"
        );
        assert_eq!(
            refusal(&[OTHER], &[HASH]).unwrap(),
            "the interface `Passwords` differs: method `hash`: its error is Weak at the server, and Other \
             at this client"
        );
        for (client, server, fits) in [
            (INFALLIBLE, HASH, true),
            (HASH, INFALLIBLE, true),
            (UNTYPED, HASH, true),
            (HASH, UNTYPED, false),
        ] {
            let (client, server) = (Box::leak(Box::new([client])), Box::leak(Box::new([server])));
            assert_eq!(refusal(client, server).is_none(), fits);
        }
    }

    #[test]
    fn an_interface_that_is_not_served_is_named() {
        let other = InterfaceDescription::new("Other", &[HASH]);
        let served = InterfaceDescription::new("Passwords", &[HASH]);
        assert_eq!(
            difference(&encode(&[&served, &other], &[]).unwrap(), &[&served]).unwrap().unwrap(),
            "the server does not serve the interface `Other`: it serves `Passwords`"
        );
    }

    #[test]
    fn a_long_interface_is_compared_as_a_whole() {
        let methods = |result| -> &'static [MethodDescription] {
            (0..400).map(|_| MethodDescription { result, ..HASH }).collect::<Vec<_>>().leak()
        };
        assert_eq!(refusal(methods("u8"), methods("u8")), None);
        assert!(refusal(methods("u8"), methods("u16")).unwrap().contains("too long to tell"));
        let long = InterfaceDescription::new("Passwords", methods("u8"));
        assert!(encode(&[&long], &[]).unwrap().len() < 100);
    }

    #[test]
    fn what_a_stranger_sends_is_bounded() {
        let served = InterfaceDescription::new("Passwords", &[HASH]);
        let too_many = |count: usize| {
            let mut out = Vec::new();
            put_array(&mut out, count as u32);
            (0..count).for_each(|_| put_map(&mut out, 0));
            difference(&out, &[&served])
        };
        assert!(too_many(MAX_INTERFACES + 1).is_err());
        assert!(too_many(1).unwrap().is_some());

        // Names of any length and number are cut in the answer.
        let mut out = Vec::new();
        put_array(&mut out, 1);
        put_map(&mut out, 2);
        put_str(&mut out, "name");
        put_str(&mut out, "Passwords");
        put_str(&mut out, "methods");
        put_array(&mut out, 50);
        for _ in 0..50 {
            put_array(&mut out, 4);
            put_str(&mut out, &"é".repeat(100_000));
            put_array(&mut out, 0);
            put_str(&mut out, "");
            put_str(&mut out, "");
        }
        let text = difference(&out, &[&served]).unwrap().unwrap();
        assert!(text.len() < 4096 && text.ends_with("and 46 more methods differ"), "{text}");
        for length in 0..out.len().min(300) {
            assert!(difference(&out[..length], &[&served]).is_err());
        }
    }
}
