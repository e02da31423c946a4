//! Typed interfaces.

use serde::{Deserialize, Serialize};
use taskfork::client::Value;
use taskfork::error::CallError;
use taskfork::{BoxError, Error, ServerBuilder, ServerError};

use crate::support::{start, trial};

#[derive(Debug, PartialEq, thiserror::Error, Serialize, Deserialize)]
#[error("{text} is not a number")]
pub(crate) struct NotANumber {
    pub(crate) text: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Shape {
    Point,
    Circle { radius: f64 },
    Polygon(Vec<(i32, i32)>),
}

#[derive(Debug, thiserror::Error, Deserialize)]
#[error("a secret")]
pub(crate) struct Secret;

impl Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("must not leave"))
    }
}

#[taskfork::interface]
pub(crate) trait Adder {
    /// Adds a number given as text to the sum.
    fn add(&mut self, number: String) -> Result<i64, NotANumber>;
    fn sum(&mut self) -> i64;
    fn reset(&mut self);
    fn shapes(&mut self, shapes: Vec<Shape>, name: Option<String>) -> (usize, Vec<Shape>, String);
    fn secret(&mut self) -> Result<(), Secret>;
    fn r#move(&mut self, by: i64) -> Result<i64, NotANumber> {
        self.add(by.to_string())
    }
}

struct Sum(i64);

impl Adder for Sum {
    fn add(&mut self, number: String) -> Result<i64, NotANumber> {
        self.0 += number.parse::<i64>().map_err(|_| NotANumber { text: number })?;
        Ok(self.0)
    }

    fn sum(&mut self) -> i64 {
        self.0
    }

    fn reset(&mut self) {
        self.0 = 0;
    }

    fn shapes(&mut self, shapes: Vec<Shape>, name: Option<String>) -> (usize, Vec<Shape>, String) {
        (shapes.len(), shapes, name.unwrap_or_default())
    }

    fn secret(&mut self) -> Result<(), Secret> {
        Err(Secret)
    }
}

pub(crate) fn server(server: ServerBuilder) -> Result<(), ServerError> {
    server.setup(|| Ok::<_, BoxError>(Sum(0))).interface(AdderInterface).run()
}

trial!(typed_calls_on_a_checkout_and_on_a_client, async || {
    let (_server, client) = start("typed");
    let checkout = client.checkout();
    let calls = (checkout.add("1"), checkout.add(String::from("2")), checkout.r#move(3));
    assert_eq!((calls.0.await.unwrap(), calls.1.await.unwrap(), calls.2.await.unwrap()), (1, 3, 6));
    assert_eq!(client.add("5").await.unwrap(), 5);
});

trial!(the_interfaces_own_error_arrives_as_its_type, async || {
    let (_server, client) = start("typed");
    match client.add("five").await {
        Err(Error::Call { error: CallError::Interface(NotANumber { text }), .. }) => {
            assert_eq!(text, "five")
        }
        other => panic!("{other:?}"),
    }
});

trial!(structs_and_enums_cross, async || {
    let (_server, client) = start("typed");
    let shapes =
        vec![Shape::Point, Shape::Circle { radius: 1.5 }, Shape::Polygon(vec![(1, 2), (-3, 4)])];
    let (count, back, name) = client.shapes(shapes.clone(), Some("all".into())).await.unwrap();
    assert_eq!((count, back, name), (3, shapes, "all".to_owned()));
});

trial!(plain_results_need_no_error_type, async || {
    let (_server, client) = start("typed");
    let checkout = client.checkout();
    checkout.add("7").await.unwrap();
    checkout.reset().await.unwrap();
    assert_eq!(checkout.sum().await.unwrap(), 0);
});

trial!(a_typed_interface_can_be_called_untyped, async || {
    let (_server, client) = start("typed");
    assert_eq!(client.call::<i64>("add", ("4",)).await.unwrap(), 4);
    let error = client.call::<i64>("add", ("four",)).await.unwrap_err();
    assert_eq!(error.to_string(), "four is not a number");
    let error = client.call::<Value>("subtract", ("4",)).await.unwrap_err().to_string();
    assert_eq!(error, "unknown method `subtract`: there is add, sum, reset, shapes, secret, move");
});

trial!(question_marks_carry_errors_through_nested_handlers, async || {
    let (_server, client) = start("typed");
    let checkout = client.checkout();
    let inner = async |text: &str| Ok::<_, Error<NotANumber>>(checkout.add(text).await? + 1);
    let outer = async |text: &str| match inner(text).await {
        Err(Error::Call { error: CallError::Interface(_), .. }) => inner("1").await,
        other => other,
    };
    assert_eq!(outer("x").await.unwrap(), 2);
});

trial!(an_error_that_cannot_be_encoded_is_reported, async || {
    let (_server, client) = start("typed");
    let error = client.secret().await.unwrap_err();
    assert!(matches!(error, Error::Call { error: CallError::Result { .. }, .. }), "{error}");
    assert!(error.to_string().contains("must not leave"), "{error}");
});

/// Everything that an interface's trait may contain. It only has to compile.
#[allow(dead_code, unreachable_pub, unused_qualifications, reason = "it only has to compile")]
mod everything_allowed {
    use serde::{Deserialize, Serialize};

    #[derive(Debug, thiserror::Error, Serialize, Deserialize)]
    #[error("no")]
    pub struct No;

    #[taskfork::interface]
    pub trait Service {
        /// Documented.
        fn plain(
            &mut self,
            list: Vec<Option<(u8, String)>>,
        ) -> std::collections::BTreeMap<String, f64>;
        fn fallible(&mut self) -> Result<(), No>;
        fn qualified(&mut self, text: String) -> std::result::Result<String, No>;
        fn nothing(&mut self);
        fn r#type(&mut self) -> u8 {
            1
        }
    }
}
