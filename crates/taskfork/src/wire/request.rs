//! The arguments of a call as the worker sees them: encoded still, decoded to what a method wants.

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::WireError;
use super::byte_text::{self, FromJson};
use super::enclosed;
use super::pack::Reader;

/// The arguments of a call, not decoded yet.
///
/// A [`Function`](crate::worker::Function) gets them as they came and decodes them to what it wants:
///
/// ```
/// use taskfork::worker::{Arguments, Function};
///
/// let interface = Function::new(|_state: &mut (), method: Option<&str>, args: Arguments<'_>| {
///     let (a, b): (i64, i64) = args.parse()?;
///     match method {
///         Some("add") => Ok(a + b),
///         other => Err(format!("no method {other:?}").into()),
///     }
/// });
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Arguments<'a> {
    count: usize,
    encoded: &'a [u8],
    source: Source,
}

/// As what values were sent first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// MessagePack, which has binary data.
    Native,
    /// JSON, in which a string of one character for each byte stands for binary data.
    Json,
}

impl Source {
    /// JSON or not.
    pub(crate) fn of(is_json: bool) -> Self {
        if is_json { Self::Json } else { Self::Native }
    }
}

/// What is wrong with a call's arguments: too many, too few, or one of the wrong type.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ArgumentsError {
    message: String,
}

crate::display::debug_as_text!(ArgumentsError);

impl From<String> for ArgumentsError {
    fn from(message: String) -> Self {
        Self { message }
    }
}

impl<'a> Arguments<'a> {
    /// Reads an array that ends its message.
    pub(crate) fn read(reader: &mut Reader<'a>) -> Result<Self, WireError> {
        let count = reader.array()?;
        Ok(Self::new(count, reader.rest()))
    }

    /// Of so many values, encoded one behind the other.
    pub(crate) fn new(count: usize, encoded: &'a [u8]) -> Self {
        Self { count, encoded, source: Source::Native }
    }

    /// The same arguments, sent first as this.
    pub(crate) fn sent_as(self, source: Source) -> Self {
        Self { source, ..self }
    }

    pub(crate) fn source(&self) -> Source {
        self.source
    }

    pub(crate) fn encoded(&self) -> &'a [u8] {
        self.encoded
    }

    /// How many arguments there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Decodes them as a tuple of as many elements as there must be arguments, or as a `Vec` of
    /// however many there are.
    ///
    /// # Errors
    /// When their number or the type of one does not fit; the error says which.
    pub fn parse<T: FromArguments>(self) -> Result<T, ArgumentsError> {
        let decode = |encoded: &[u8]| T::from_arguments(Arguments { encoded, ..self });
        enclosed::read(self.encoded, decode)
    }
}

/// What a call's arguments can be decoded to: a tuple or a `Vec`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no list of arguments",
    note = "take a tuple with one deserializable element an argument, as in `(i64,)`, or a `Vec`"
)]
pub trait FromArguments: Sized {
    /// Decodes the arguments; see [`Arguments::parse`].
    ///
    /// # Errors
    /// When their number or the type of one does not fit.
    fn from_arguments(args: Arguments<'_>) -> Result<Self, ArgumentsError>;
}

impl<T: DeserializeOwned> FromArguments for Vec<T> {
    fn from_arguments(args: Arguments<'_>) -> Result<Self, ArgumentsError> {
        let mut list = Decoder::new(args);
        let mut values = Vec::new();
        for _ in 0..args.count {
            values.push(list.next()?);
        }
        Ok(values)
    }
}

impl FromArguments for () {
    fn from_arguments(args: Arguments<'_>) -> Result<Self, ArgumentsError> {
        expect(args, 0)
    }
}

macro_rules! tuples {
    ($($count:literal: $($name:ident)+;)+) => {$(
        impl<$($name: DeserializeOwned),+> FromArguments for ($($name,)+) {
            fn from_arguments(args: Arguments<'_>) -> Result<Self, ArgumentsError> {
                expect(args, $count)?;
                let mut list = Decoder::new(args);
                Ok(($(list.next::<$name>()?,)+))
            }
        }
    )+};
}

tuples! {
    1: A; 2: A B; 3: A B C; 4: A B C D; 5: A B C D E; 6: A B C D E F;
    7: A B C D E F G; 8: A B C D E F G H; 9: A B C D E F G H I; 10: A B C D E F G H I J;
    11: A B C D E F G H I J K; 12: A B C D E F G H I J K L;
}

fn expect(args: Arguments<'_>, count: usize) -> Result<(), ArgumentsError> {
    if args.count == count {
        return Ok(());
    }
    let plural = if count == 1 { "" } else { "s" };
    let message = format!("expected {count} argument{plural}, got {}", args.count);
    Err(ArgumentsError { message })
}

struct Decoder<'a> {
    inner: rmp_serde::Deserializer<rmp_serde::decode::ReadRefReader<'a, [u8]>>,
    index: usize,
    source: Source,
}

impl<'a> Decoder<'a> {
    fn new(args: Arguments<'a>) -> Self {
        let inner = rmp_serde::Deserializer::from_read_ref(args.encoded);
        Self { inner, index: 0, source: args.source }
    }

    fn next<T: DeserializeOwned>(&mut self) -> Result<T, ArgumentsError> {
        self.index += 1;
        let decoded = match self.source {
            Source::Native => T::deserialize(&mut self.inner),
            Source::Json => byte_text::within(|| T::deserialize(FromJson(&mut self.inner))),
        };
        decoded.map_err(|error| ArgumentsError {
            message: format!("argument {}: {error}", self.index),
        })
    }
}

/// Decodes the whole of `encoded` as one value.
pub(crate) fn decode<'a, T: Deserialize<'a>>(
    encoded: &'a [u8],
    source: Source,
) -> Result<T, String> {
    let mut decoder = rmp_serde::Deserializer::from_read_ref(encoded);
    let decoded = match source {
        Source::Native => T::deserialize(&mut decoder),
        Source::Json => byte_text::within(|| T::deserialize(FromJson(&mut decoder))),
    };
    decoded.map_err(|error| error.to_string())
}
