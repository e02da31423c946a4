//! The key `peer` of a client's hello, in which a gateway says whose connection it relays.

use super::WireError;
use super::fields::{read_list, read_map};
use super::msgpack::Reader;
use crate::peer::Peer;

/// The most names of a peer, and the most bytes of each of them, of its own name and of its address.
pub const MAX_PEER_NAMES: usize = 64;
/// See [`MAX_PEER_NAMES`].
pub const MAX_PEER_TEXT: usize = 256;

/// The key.
pub(super) const KEY: &str = "peer";

/// Reads the value of the key.
pub(super) fn read(value: &[u8]) -> Result<Peer, WireError> {
    let (mut kind, mut names) = (None, Vec::new());
    let (mut name, mut address) = (None, None);
    read_map(&mut Reader::new(value), |key, reader| {
        match key {
            "kind" => kind = Some(reader.str()?),
            "names" => {
                names = read_list(reader, key, MAX_PEER_NAMES, |reader| text("a name", reader))?;
            }
            "name" => name = Some(text(key, reader)?),
            "address" => address = Some(text(key, reader)?),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    match kind {
        Some("tls") => Ok(Peer::Tls { names, address }),
        Some("nats") => Ok(Peer::Nats { name, address }),
        // It may be long.
        Some(_) => Err(WireError::Malformed("its `kind` is neither `tls` nor `nats`".into())),
        None => Err(WireError::Malformed("it has no `kind`".into())),
    }
}

fn text(called: &str, reader: &mut Reader<'_>) -> Result<String, WireError> {
    let text = reader.str()?;
    if text.len() > MAX_PEER_TEXT {
        let length = text.len();
        return Err(WireError::Malformed(format!(
            "`{called}` has {length} bytes, and the limit is {MAX_PEER_TEXT}"
        )));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rmpv::Value;

    use super::*;

    fn read_value(value: &Value) -> Result<Peer, String> {
        let mut bytes = Vec::new();
        rmpv::encode::write_value(&mut bytes, value).unwrap();
        read(&bytes).map_err(|error| error.to_string())
    }

    fn map(entries: &[(&str, Value)]) -> Value {
        Value::Map(entries.iter().map(|(key, value)| ((*key).into(), value.clone())).collect())
    }

    fn list(items: impl IntoIterator<Item = String>) -> Value {
        Value::Array(items.into_iter().map(Value::from).collect())
    }

    #[test]
    fn both_kinds_are_read_and_unknown_keys_ignored() {
        let later = ("later", Value::Array(vec![map(&[("a", Value::Nil)])]));
        let names = list(["a.example".to_owned(), "10.0.0.1".to_owned()]);
        let address = ("address", "10.0.0.1:99".into());
        let tls = map(&[
            ("names", names),
            later.clone(),
            address.clone(),
            ("user", "ignored".into()),
            ("kind", "tls".into()),
        ]);
        let names = vec!["a.example".to_owned(), "10.0.0.1".to_owned()];
        let address = Some("10.0.0.1:99".to_owned());
        assert_eq!(read_value(&tls), Ok(Peer::Tls { names, address }));

        let nats = map(&[("kind", "nats".into()), ("name", "web".into()), later]);
        let name = Some("web".to_owned());
        assert_eq!(read_value(&nats), Ok(Peer::Nats { name, address: None }));
        let least = Peer::Tls { names: Vec::new(), address: None };
        assert_eq!(read_value(&map(&[("kind", "tls".into())])), Ok(least));
    }

    #[test]
    fn limits_hold_to_the_byte() {
        let tls = |key, value| read_value(&map(&[("kind", "tls".into()), (key, value)]));
        let names = |count, length| tls("names", list((0..count).map(|_| "n".repeat(length))));
        assert!(names(64, 256).is_ok());
        assert!(names(65, 1).unwrap_err().contains("`names` has 65 items, and the limit is 64"));
        assert!(
            names(1, 257).unwrap_err().contains("`a name` has 257 bytes, and the limit is 256")
        );
        for key in ["name", "address"] {
            assert!(tls(key, "x".repeat(256).into()).is_ok());
            let error = tls(key, "x".repeat(257).into()).unwrap_err();
            assert!(error.contains(&format!("`{key}` has 257 bytes")), "{error}");
        }
    }

    #[test]
    fn what_is_no_such_peer_is_an_error() {
        let kind = |kind: Value| read_value(&map(&[("kind", kind)]));
        assert!(kind("unix".into()).unwrap_err().contains("neither `tls` nor `nats`"));
        assert!(read_value(&map(&[])).unwrap_err().contains("it has no `kind`"));
        for wrong in [Value::Nil, 5.into(), "tls".into(), Value::Array(vec![]), true.into()] {
            assert!(read_value(&wrong).is_err(), "{wrong}");
        }
        assert!(kind(Value::Nil).is_err());
        let names = map(&[("kind", "tls".into()), ("names", Value::Array(vec![Value::Nil]))]);
        assert!(read_value(&names).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_cause_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = read(&bytes);
        }
    }
}
