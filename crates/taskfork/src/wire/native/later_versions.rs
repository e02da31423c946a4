//! What a peer of a later version 1.x may send, and what it may not: the rules of docs/PROTOCOL.md, for every kind of
//! message.

use rmpv::Value;

use super::{FromClient, FromWorker};

fn map(entries: &[(&str, Value)]) -> Value {
    let entries = entries.iter().map(|(key, value)| (Value::from(*key), value.clone()));
    Value::Map(entries.collect())
}

/// A message of each kind from a client.
fn from_client() -> Vec<Vec<Value>> {
    let (none, number) = (map(&[]), Value::from(7));
    let call = |kind: u64| {
        let meta = map(&[("timeout", 5.into()), ("log", 30.into()), ("items", 9.into())]);
        vec![kind.into(), meta, "method".into(), Value::Array(vec![1.into()])]
    };
    let hello = map(&[("versions", Value::Array(vec![1.into()])), ("name", "a client".into())]);
    vec![
        vec![0.into(), hello],
        call(1),
        vec![2.into(), none.clone()],
        call(3),
        vec![4.into(), none.clone(), number.clone()],
        vec![5.into(), none.clone(), number.clone()],
        vec![6.into(), none.clone(), number.clone()],
        vec![7.into(), none.clone()],
        vec![8.into(), none.clone()],
        call(9),
        vec![11.into(), map(&[("call", 1.into()), ("cost", 300.into())]), "item".into()],
        vec![12.into(), none, number.clone(), number.clone()],
        vec![13.into(), map(&[("error", "no more rows".into())]), number],
    ]
}

/// A message of each kind from a worker, a server or a gateway.
fn from_worker() -> Vec<Vec<Value>> {
    let (none, answer) = (map(&[]), map(&[("call", 1.into())]));
    let hello = [("version", 1), ("pid", 2), ("worker", 3), ("ahead", 4)];
    let mut hello: Vec<_> = hello.map(|(key, number)| (key, Value::from(number))).into();
    hello.push(("server", "a server".into()));
    let error = map(&[("kind", "panic".into()), ("message", "no such row".into())]);
    let death = map(&[("pid", 2.into()), ("signal", 9.into()), ("calls", 1.into())]);
    let end = map(&[("passed", 5.into())]);
    vec![
        vec![0.into(), map(&hello)],
        vec![1.into(), answer.clone(), "value".into()],
        vec![2.into(), answer.clone(), error],
        vec![3.into(), death],
        vec![4.into(), map(&[("progress", Value::Array(vec![1.into(), 2.into(), "x".into()]))])],
        vec![5.into(), answer.clone()],
        vec![6.into(), none.clone(), 1.into()],
        vec![7.into(), none.clone()],
        vec![8.into(), none.clone()],
        vec![9.into(), map(&[("reason", "all are busy".into())])],
        vec![10.into(), end],
        vec![11.into(), answer, "item".into()],
        vec![12.into(), none.clone(), 1.into(), 2.into()],
        vec![14.into(), none],
    ]
}

/// What a receiver reads.
fn read(is_from_client: bool, message: &[Value]) -> Result<String, String> {
    let mut bytes = Vec::new();
    rmpv::encode::write_value(&mut bytes, &Value::Array(message.to_vec())).unwrap();
    if is_from_client {
        FromClient::decode(&bytes)
            .map(|read| format!("{read:?}"))
            .map_err(|error| error.to_string())
    } else {
        FromWorker::decode(&bytes)
            .map(|read| format!("{read:?}"))
            .map_err(|error| error.to_string())
    }
}

fn messages() -> impl Iterator<Item = (bool, Vec<Value>)> {
    let from_client = from_client().into_iter().map(|message| (true, message));
    from_client.chain(from_worker().into_iter().map(|message| (false, message)))
}

/// Adds a key that no version has so far, with values in it, in front of the others and behind them.
fn with_later_key(meta: &Value) -> Value {
    let Value::Map(mut entries) = meta.clone() else { panic!("{meta} is no map") };
    let later = map(&[("more", Value::Array(vec![Value::Nil, Value::Binary(vec![0; 3])]))]);
    entries.insert(0, ("later".into(), later.clone()));
    entries.push(("even_later".into(), later));
    Value::Map(entries)
}

#[test]
fn later_keys_change_nothing() {
    for (is_from_client, message) in messages() {
        let mut later = message.clone();
        later[1] = with_later_key(&later[1]);
        let expected = read(is_from_client, &message);
        assert!(expected.is_ok(), "{message:?}: {expected:?}");
        assert_eq!(read(is_from_client, &later), expected, "{message:?}");
    }
}

#[test]
fn later_keys_of_errors_change_nothing() {
    let messages = from_worker();
    let error = messages.iter().find(|message| message[0] == Value::from(2)).unwrap();
    let mut later = error.clone();
    later[2] = with_later_key(&later[2]);
    assert_eq!(read(false, &later), read(false, error));
}

#[test]
fn later_kinds_and_other_numbers_of_elements_are_violations() {
    for kind in 14..300 {
        let message = [kind.into(), map(&[])];
        assert!(read(true, &message).is_err(), "{kind}");
        assert!(kind == 14 || read(false, &message).is_err(), "{kind}");
    }
    for (is_from_client, message) in messages() {
        let more = [&message[..], &[Value::Nil]].concat();
        assert!(read(is_from_client, &more).is_err(), "{more:?}");
        let fewer = &message[..message.len() - 1];
        assert!(read(is_from_client, fewer).is_err(), "{fewer:?}");
    }
}

#[test]
fn a_death_in_a_later_activity_is_a_death() {
    let death = |during: Option<&str>| {
        let mut entries = vec![("pid", 2.into()), ("exit", 0.into()), ("calls", 1.into())];
        entries.extend(during.map(|during| ("during", Value::from(during))));
        read(false, &[3.into(), map(&entries)])
    };
    assert!(death(None).is_ok());
    assert_eq!(death(Some("migration")), death(None));
}
