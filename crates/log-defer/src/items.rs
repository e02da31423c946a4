//! The types that a log line can be made from.

use std::fmt;

use serde::Serialize;
use serde_json::Value;

/// The content of a log line: a text, a [`Value`], a tuple of up to eight serializable values, or a closure that returns
/// one of these.
///
/// The log calls a closure only if its verbosity includes the line. A value that JSON cannot express, such as a map
/// whose keys are maps, is replaced by a text that says why.
///
/// ```
/// use serde_json::json;
/// # let log = log_defer::Log::new(drop);
/// log.info("text");
/// log.info(format_args!("{} of {}", 1, 2));
/// log.info(("text", 1.5, json!({ "key": [1, 2] })));
/// log.info(|| ("made when wanted", 7));
/// ```
pub trait Items {
    /// Returns the items in order. The log calls it once, and only for a line that it keeps.
    ///
    /// ```
    /// use log_defer::Items;
    /// assert_eq!(("text", 7).into_items(), [serde_json::json!("text"), serde_json::json!(7)]);
    /// ```
    fn into_items(self) -> Vec<Value>;
}

pub(crate) fn to_value(value: &impl Serialize) -> Value {
    serde_json::to_value(value)
        .unwrap_or_else(|error| Value::String(format!("(cannot be expressed in JSON: {error})")))
}

impl Items for &str {
    fn into_items(self) -> Vec<Value> {
        vec![self.into()]
    }
}

impl Items for String {
    fn into_items(self) -> Vec<Value> {
        vec![self.into()]
    }
}

impl Items for &String {
    fn into_items(self) -> Vec<Value> {
        vec![self.as_str().into()]
    }
}

impl Items for fmt::Arguments<'_> {
    fn into_items(self) -> Vec<Value> {
        vec![self.to_string().into()]
    }
}

impl Items for Value {
    fn into_items(self) -> Vec<Value> {
        vec![self]
    }
}

impl Items for Vec<Value> {
    fn into_items(self) -> Vec<Value> {
        self
    }
}

impl<F, I> Items for F
where
    F: FnOnce() -> I,
    I: Items,
{
    fn into_items(self) -> Vec<Value> {
        self().into_items()
    }
}

macro_rules! tuples {
    ($(($($name:ident)+))+) => {$(
        impl<$($name: Serialize),+> Items for ($($name,)+) {
            fn into_items(self) -> Vec<Value> {
                #[allow(non_snake_case, reason = "one name serves the type and the value")]
                let ($($name,)+) = self;
                vec![$(to_value(&$name)),+]
            }
        }
    )+};
}

tuples! {
    (A)
    (A B)
    (A B C)
    (A B C D)
    (A B C D E)
    (A B C D E F)
    (A B C D E F G)
    (A B C D E F G H)
}

/// The items of a line: texts unchanged, values as JSON.
pub(crate) fn line_of(items: &[Value]) -> String {
    let texts: Vec<String> = items
        .iter()
        .map(|item| item.as_str().map_or_else(|| item.to_string(), str::to_owned))
        .collect();
    texts.join(" ")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_value_that_json_cannot_express_becomes_a_text() {
        let odd = BTreeMap::from([(vec![1], "value")]);
        let items = ("before", odd, f64::NAN).into_items();
        assert_eq!(items[0], "before");
        let told = items[1].as_str().unwrap();
        assert!(told.starts_with("(cannot be expressed in JSON: "), "{told}");
        assert_eq!(items[2], Value::Null);
    }
}
