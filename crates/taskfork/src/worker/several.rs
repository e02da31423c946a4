//! A server with several typed interfaces, as a tuple.

use super::interface::{Interface, Reply, Request};
use super::replace_after::ReplaceAfter;
use crate::wire::interface_description::{Described, InterfaceDescription};

type Descriptions = [&'static InterfaceDescription];

macro_rules! tuples {
    ($($count:literal: $($name:ident $index:tt)+;)+) => {$(
        impl<State, $($name: Interface<State> + Described),+> Interface<State> for ($($name,)+) {
            fn call(&self, state: &mut State, request: Request<'_>) -> Reply {
                const { assert_different(&[$($name::DESCRIPTION),+]) };
                let descriptions = [$($name::DESCRIPTION),+];
                match choose(&descriptions, request.method(), request.interface()) {
                    $(Some(($index, method)) => self.$index.call(state, request.renamed(method)),)+
                    _ => unknown(&descriptions, &request),
                }
            }

            fn descriptions(&self) -> Vec<&'static InterfaceDescription> {
                vec![$($name::DESCRIPTION),+]
            }

            fn replaced_after(&self) -> ReplaceAfter {
                ReplaceAfter::Panic
            }

            fn streams(&self, method: Option<&str>, interface: Option<&str>) -> bool {
                match choose(&[$($name::DESCRIPTION),+], method, interface) {
                    $(Some(($index, method)) => self.$index.streams(Some(method), None),)+
                    _ => false,
                }
            }

            fn has_method(&self, method: Option<&str>, interface: Option<&str>) -> bool {
                match choose(&[$($name::DESCRIPTION),+], method, interface) {
                    $(Some(($index, method)) => self.$index.has_method(Some(method), None),)+
                    _ => false,
                }
            }

            fn takes_input(&self, method: Option<&str>, interface: Option<&str>) -> bool {
                match choose(&[$($name::DESCRIPTION),+], method, interface) {
                    $(Some(($index, method)) => self.$index.takes_input(Some(method), None),)+
                    _ => false,
                }
            }

            fn method_names(&self) -> Vec<String> {
                names(&[$($name::DESCRIPTION),+])
            }
        }
    )+};
}

tuples! {
    2: A 0 B 1; 3: A 0 B 1 C 2; 4: A 0 B 1 C 2 D 3; 5: A 0 B 1 C 2 D 3 E 4;
    6: A 0 B 1 C 2 D 3 E 4 F 5; 7: A 0 B 1 C 2 D 3 E 4 F 5 G 6;
    8: A 0 B 1 C 2 D 3 E 4 F 5 G 6 H 7;
}

/// The index of the interface that a request is for, and the method's name there.
///
/// That is the interface that the call names, or else the only one with such a method, or else the one that is in front
/// of a point in the method's name.
fn choose<'a>(
    all: &Descriptions,
    method: Option<&'a str>,
    interface: Option<&str>,
) -> Option<(usize, &'a str)> {
    let method = method?;
    let is_called = |name: &str, interface: &InterfaceDescription| interface.name == name;
    let named = interface.and_then(|name| all.iter().position(|it| is_called(name, it)));
    if let Some(index) = named {
        return Some((index, method));
    }
    let mut having = (0..all.len()).filter(|&index| has(all[index], method));
    if let (Some(index), None) = (having.next(), having.next()) {
        return Some((index, method));
    }
    let (name, method) = method.split_once('.')?;
    let index = all.iter().position(|it| is_called(name, it) && has(it, method))?;
    Some((index, method))
}

fn has(interface: &InterfaceDescription, method: &str) -> bool {
    interface.methods.iter().any(|known| known.name == method)
}

/// The answer to a call of a method that no interface has, or several have.
fn unknown(all: &Descriptions, request: &Request<'_>) -> Reply {
    request.unknown_method(names(all).iter().map(String::as_str))
}

/// The names by which methods can be called without their interface.
fn names(all: &Descriptions) -> Vec<String> {
    let names = all.iter().flat_map(|interface| {
        interface.methods.iter().map(move |method| {
            match all.iter().filter(|it| has(it, method.name)).count() {
                1 => method.name.to_owned(),
                _ => format!("{}.{}", interface.name, method.name),
            }
        })
    });
    names.collect()
}

/// Fails to compile if two interfaces have the same name, by which clients require them.
const fn assert_different(all: &Descriptions) {
    let mut one = 0;
    while one < all.len() {
        let mut other = 0;
        while other < one {
            let is_same = is_equal(all[one].name.as_bytes(), all[other].name.as_bytes());
            assert!(
                !is_same,
                "two interfaces of a server have the same name: rename one of the traits"
            );
            other += 1;
        }
        one += 1;
    }
}

const fn is_equal(one: &[u8], other: &[u8]) -> bool {
    let mut index = 0;
    while index < one.len() && index < other.len() && one[index] == other[index] {
        index += 1;
    }
    index == one.len() && index == other.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    static ONE: InterfaceDescription = InterfaceDescription::new("One", &[]);
    static ONE_MORE: InterfaceDescription = InterfaceDescription::new("OneMore", &[]);

    #[test]
    fn interfaces_with_different_names_can_be_served_together() {
        assert_different(&[&ONE, &ONE_MORE]);
        assert_different(&[&ONE_MORE, &ONE]);
    }

    #[test]
    #[should_panic(expected = "rename one of the traits")]
    fn two_interfaces_with_one_name_cannot() {
        assert_different(&[&ONE, &ONE_MORE, &ONE]);
    }
}
