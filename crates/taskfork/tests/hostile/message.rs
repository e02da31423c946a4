//! Messages as bytes.

use taskfork::client::Value;

pub(crate) const PREAMBLE: &[u8] = b"taskfork";

pub(crate) fn text(text: &str) -> Value {
    Value::from(text)
}

pub(crate) fn list(values: &[Value]) -> Value {
    Value::Array(values.to_vec())
}

pub(crate) fn map(entries: &[(&str, Value)]) -> Value {
    Value::Map(entries.iter().map(|(key, value)| (text(key), value.clone())).collect())
}

pub(crate) fn encoded(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    rmpv::encode::write_value(&mut out, value).unwrap();
    out
}

/// A frame with this body.
pub(crate) fn framed(body: &[u8]) -> Vec<u8> {
    [&(body.len() as u32).to_le_bytes(), body].concat()
}

pub(crate) fn frame(message: &[Value]) -> Vec<u8> {
    framed(&encoded(&list(message)))
}

/// A message whose last element is these bytes.
pub(crate) fn frame_ending(kind: u8, more: &[Value], last: &[u8]) -> Vec<u8> {
    let fields = 3 + more.len() as u8;
    let mut body = vec![0x90 | fields, kind, 0x80];
    more.iter().for_each(|value| body.extend(encoded(value)));
    body.extend(last);
    framed(&body)
}

/// A message of a kind and meta whose one key has these bytes as its value.
pub(crate) fn frame_meta(kind: u8, key: &str, value: &[u8]) -> Vec<u8> {
    let mut body = vec![0x92, kind, 0x81];
    body.extend(encoded(&text(key)));
    body.extend(value);
    framed(&body)
}

pub(crate) fn client_hello(more: &[(&str, Value)]) -> Vec<u8> {
    let known = [("versions", list(&[1.into()])), ("name", text("raw"))];
    frame(&[0.into(), map(&[&known, more].concat())])
}

pub(crate) fn worker_hello(more: &[(&str, Value)]) -> Vec<u8> {
    let known = [("version", 1.into()), ("pid", 4_000_000.into())];
    frame(&[0.into(), map(&[&known, more].concat())])
}

pub(crate) fn call(method: &str, args: &[Value]) -> Vec<u8> {
    frame(&[1.into(), map(&[]), text(method), list(args)])
}

/// The result of the call of this number.
pub(crate) fn result_of(call: u64, value: Value) -> Vec<u8> {
    frame(&[1.into(), map(&[("call", call.into())]), value])
}

/// The result of the first call.
pub(crate) fn result(value: Value) -> Vec<u8> {
    result_of(1, value)
}

/// The result of the first call, with these bytes for its value.
pub(crate) fn result_ending(value: &[u8]) -> Vec<u8> {
    framed(&[b"\x93\x01\x81\xa4call\x01", value].concat())
}

/// The error of the first call.
pub(crate) fn error(entries: &[(&str, Value)]) -> Vec<u8> {
    frame(&[2.into(), map(&[("call", 1.into())]), map(entries)])
}

pub(crate) fn announce(files: u64) -> Vec<u8> {
    frame(&[6.into(), map(&[]), files.into()])
}

/// Nested arrays of this depth.
pub(crate) fn deep(levels: usize) -> Vec<u8> {
    let mut out = vec![0x91; levels];
    out.push(0xc0);
    out
}

/// An array with these bytes, repeated this many times, as its elements.
pub(crate) fn many(count: u32, each: &[u8]) -> Vec<u8> {
    let mut out = vec![0xdd];
    out.extend(count.to_be_bytes());
    (0..count).for_each(|_| out.extend(each));
    out
}

/// Values of all types but for the one named, each with a name.
pub(crate) fn wrong(right: &str) -> Vec<(&'static str, Value)> {
    let all = [
        ("nil", Value::Nil),
        ("bool", true.into()),
        ("negative", (-1).into()),
        ("huge", u64::MAX.into()),
        ("float", 1.5.into()),
        ("text", text("\u{1b}[31m\0\u{202e}")),
        ("bytes", Value::Binary(vec![0xff])),
        ("list", list(&[Value::Nil])),
        ("map", map(&[("a", Value::Nil)])),
        ("extension", Value::Ext(99, vec![0; 4])),
    ];
    all.into_iter().filter(|(name, _)| !right.split(' ').any(|right| right == *name)).collect()
}
