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

#[taskfork::interface]
pub(crate) trait Files {
    /// Takes references only.
    fn describe(
        &mut self,
        text: &str,
        bytes: &[u8],
        shapes: &[Shape],
        path: &std::path::Path,
        map: &std::collections::BTreeMap<String, u8>,
    ) -> String;
    fn read(&mut self, path: &std::path::Path) -> std::io::Result<Vec<u8>>;
    fn text(&mut self, fails: bool) -> Result<(), String>;
    fn boxed(&mut self) -> Result<u8, BoxError>;
    fn options(
        &mut self,
        nested: Option<Option<u8>>,
        unit: Option<()>,
    ) -> (Option<Option<u8>>, Option<()>);
    #[taskfork(name = "file.name")]
    fn named(&mut self) -> String;
    #[cfg(windows)]
    fn absent(&mut self, value: NoSuchType) -> NoSuchType;
    #[cfg(unix)]
    fn present(&mut self) -> u8 {
        1
    }
}

impl Files for () {
    fn describe(
        &mut self,
        text: &str,
        bytes: &[u8],
        shapes: &[Shape],
        path: &std::path::Path,
        map: &std::collections::BTreeMap<String, u8>,
    ) -> String {
        format!("{text} {bytes:?} {} {} {map:?}", shapes.len(), path.display())
    }

    fn read(&mut self, path: &std::path::Path) -> std::io::Result<Vec<u8>> {
        std::fs::read(path)
    }

    fn text(&mut self, fails: bool) -> Result<(), String> {
        if fails { Err("as asked".to_owned()) } else { Ok(()) }
    }

    fn boxed(&mut self) -> Result<u8, BoxError> {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot parse")]
        struct Outer(#[source] std::num::ParseIntError);
        Ok("x".parse().map_err(Outer)?)
    }

    fn options(
        &mut self,
        nested: Option<Option<u8>>,
        unit: Option<()>,
    ) -> (Option<Option<u8>>, Option<()>) {
        (nested, unit)
    }

    fn named(&mut self) -> String {
        "named".to_owned()
    }
}

pub(crate) fn files_server(server: ServerBuilder) -> Result<(), ServerError> {
    server.interface(FilesInterface).run()
}

trial!(references_are_passed_without_a_clone, async || {
    let (_server, client) = start("typed files");
    // None of these can be cloned into a call.
    let (text, bytes) = (String::from("text"), vec![7; 40_000]);
    let (shapes, map) = ([Shape::Point], [("a".to_owned(), 1)].into());
    let call = client.describe(&text, &bytes[..2], &shapes, "/some/path".as_ref(), &map);
    drop((shapes, map));
    assert_eq!(call.await.unwrap(), "text [7, 7] 1 /some/path {\"a\": 1}");
    // Other programs have no references: they send a text and a list of numbers.
    let untyped: String = client
        .call(
            "describe",
            (
                "t",
                vec![1, 2],
                [Shape::Point; 0],
                "p",
                [("b", 2)]
                    .map(|(a, b)| (a.to_owned(), b))
                    .into_iter()
                    .collect::<std::collections::BTreeMap<_, _>>(),
            ),
        )
        .await
        .unwrap();
    assert_eq!(untyped, "t [1, 2] 0 p {\"b\": 2}");
});

trial!(errors_without_a_type_of_their_own_arrive_with_text_and_causes, async || {
    let (_server, client) = start("typed files");
    let error = client.read("/no/such/file".as_ref()).await.unwrap_err();
    let Error::Call { error: CallError::Interface(failure), .. } = &error else {
        panic!("{error:?}")
    };
    assert_eq!(failure.to_string(), "No such file or directory (os error 2)");
    assert_eq!(client.text(true).await.unwrap_err().to_string(), "as asked");
    client.text(false).await.unwrap();
    let error = client.boxed().await.unwrap_err();
    let Error::Call { error: CallError::Interface(failure), .. } = &error else {
        panic!("{error:?}")
    };
    assert_eq!(failure.to_string(), "cannot parse");
    let cause = std::error::Error::source(failure).unwrap();
    assert_eq!(cause.to_string(), "invalid digit found in string");
});

trial!(options_within_options_arrive_unchanged, async || {
    let (_server, client) = start("typed files");
    for nested in [None, Some(None), Some(Some(1))] {
        for unit in [None, Some(())] {
            assert_eq!(client.options(nested, unit).await.unwrap(), (nested, unit));
        }
    }
});

trial!(a_method_can_have_another_name_in_calls, async || {
    let (_server, client) = start("typed files");
    assert_eq!(client.named().await.unwrap(), "named");
    assert_eq!(client.call::<String>("file.name", ()).await.unwrap(), "named");
    let error = client.call::<String>("named", ()).await.unwrap_err().to_string();
    assert_eq!(
        error,
        "unknown method `named`: there is describe, read, text, boxed, options, file.name, present"
    );
    assert_eq!(client.present().await.unwrap(), 1);
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
