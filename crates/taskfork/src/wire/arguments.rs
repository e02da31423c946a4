//! The arguments of a call: what a caller passes, and what a worker receives.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::WireError;
use super::attachments;
use super::json_bytes::{self, FromJson};
use super::mismatch;
use super::msgpack::{Reader, put_array};
use super::nested_option;
use super::values::{self, EncodeError, ValueFormat, encode};

/// A caller's list of arguments: a tuple of up to 12 serializable values, a `Vec`, an array or a slice.
///
/// Write `(value,)` for one argument and `()` for none.
///
/// ```
/// fn takes(_: impl taskfork::client::IntoArguments) {}
///
/// takes(());
/// takes((2, 3));
/// takes(("one",));
/// takes(vec![1, 2, 3]);
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a list of arguments",
    label = "write it as a tuple: `(value,)` for one argument, `()` for none",
    note = "a tuple of up to 12 serializable elements, a `Vec`, an array or a slice can be sent"
)]
pub trait IntoArguments {
    /// Appends the arguments as a MessagePack array.
    #[doc(hidden)]
    fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError>;
}

impl IntoArguments for () {
    fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        put_array(out, 0);
        Ok(())
    }
}

impl<T: Serialize> IntoArguments for [T] {
    fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        put_array(out, self.len() as u32);
        elements(self, out)
    }
}

impl<T: Serialize, const N: usize> IntoArguments for [T; N] {
    fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        IntoArguments::encode(&self[..], out)
    }
}

impl<T: Serialize> IntoArguments for Vec<T> {
    fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        IntoArguments::encode(&self[..], out)
    }
}

impl<T: IntoArguments + ?Sized> IntoArguments for &T {
    fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        (**self).encode(out)
    }
}

fn elements<T: Serialize>(values: &[T], out: &mut Vec<u8>) -> Result<(), EncodeError> {
    for (index, value) in values.iter().enumerate() {
        element(index + 1, value, out)?;
    }
    Ok(())
}

fn element<T: Serialize>(index: usize, value: &T, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    encode(value, out).map_err(|error| EncodeError(format!("argument {index}: {error}")))
}

macro_rules! tuples {
    ($($count:literal: $($name:ident $index:tt)+;)+) => {$(
        impl<$($name: Serialize),+> IntoArguments for ($($name,)+) {
            fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
                put_array(out, $count);
                $(element($index + 1, &self.$index, out)?;)+
                Ok(())
            }
        }
    )+};
}

tuples! {
    1: A 0; 2: A 0 B 1; 3: A 0 B 1 C 2; 4: A 0 B 1 C 2 D 3; 5: A 0 B 1 C 2 D 3 E 4;
    6: A 0 B 1 C 2 D 3 E 4 F 5; 7: A 0 B 1 C 2 D 3 E 4 F 5 G 6;
    8: A 0 B 1 C 2 D 3 E 4 F 5 G 6 H 7; 9: A 0 B 1 C 2 D 3 E 4 F 5 G 6 H 7 I 8;
    10: A 0 B 1 C 2 D 3 E 4 F 5 G 6 H 7 I 8 J 9;
    11: A 0 B 1 C 2 D 3 E 4 F 5 G 6 H 7 I 8 J 9 K 10;
    12: A 0 B 1 C 2 D 3 E 4 F 5 G 6 H 7 I 8 J 9 K 10 L 11;
}

/// The encoded arguments of a call, as a worker receives them.
///
/// A [`Function`](crate::worker::Function) decodes them to the types that it wants:
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
    format: ValueFormat,
    /// The method that they are for, which errors name.
    method: Option<&'a str>,
    /// Whether they are decoded in the way for options within options.
    has_nested_options: bool,
    /// How many of the last parameters may have no argument. They are options.
    optional: usize,
}

/// The number of a call's arguments, or the type of one, does not match. The text says which.
///
/// A function that returns it as its error fails the call with
/// [`CallError::Arguments`](crate::error::CallError::Arguments).
///
/// ```
/// use taskfork::worker::{Arguments, ArgumentsError};
///
/// fn width(args: Arguments<'_>) -> Result<u32, ArgumentsError> {
///     let (width, _height): (u32, u32) = args.parse()?;
///     Ok(width)
/// }
/// # let _ = width;
/// ```
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
    /// Reads the array of arguments at the end of a message.
    pub(crate) fn read(reader: &mut Reader<'a>) -> Result<Self, WireError> {
        let count = reader.array()?;
        Ok(Self::new(count, reader.rest()))
    }

    /// From a sequence of `count` encoded values.
    pub(crate) fn new(count: usize, encoded: &'a [u8]) -> Self {
        let format = ValueFormat::MessagePack;
        Self { count, encoded, format, method: None, has_nested_options: false, optional: 0 }
    }

    /// The same arguments, first encoded in `format`.
    pub(crate) fn with_format(self, format: ValueFormat) -> Self {
        Self { format, ..self }
    }

    /// The same arguments, as those of `method`.
    pub(crate) fn of_method(self, method: Option<&'a str>) -> Self {
        Self { method, ..self }
    }

    /// The same arguments, of which the last `optional` may be missing.
    pub(crate) fn with_optional(self, optional: usize) -> Self {
        Self { optional, ..self }
    }

    pub(crate) fn format(&self) -> ValueFormat {
        self.format
    }

    pub(crate) fn encoded(&self) -> &'a [u8] {
        self.encoded
    }

    /// The number of arguments.
    ///
    /// ```
    /// use taskfork::Methods;
    ///
    /// let interface = Methods::<()>::new().variadic("count", |_, args| Ok(args.len()));
    /// # let _ = interface;
    /// ```
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are no arguments.
    ///
    /// ```
    /// use taskfork::Methods;
    ///
    /// let interface = Methods::<()>::new().variadic("sum", |_, args| {
    ///     if args.is_empty() {
    ///         return Err("there is nothing to add".into());
    ///     }
    ///     Ok(args.parse::<Vec<i64>>()?.into_iter().sum::<i64>())
    /// });
    /// # let _ = interface;
    /// ```
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Decodes the arguments as a tuple, whose length must be their number, or as a `Vec` of any length.
    ///
    /// # Errors
    /// Fails if the number of arguments or the type of one does not match. The error names the argument, the type
    /// that was expected and the type that came.
    ///
    /// ```
    /// use taskfork::Methods;
    ///
    /// let interface = Methods::<()>::new().variadic("join", |_, args| {
    ///     let parts: Vec<String> = args.parse()?;
    ///     Ok(parts.concat())
    /// });
    /// # let _ = interface;
    /// ```
    pub fn parse<T: FromArguments>(self) -> Result<T, ArgumentsError> {
        attachments::decode(self.encoded, |encoded: &[u8]| {
            let args = Arguments { encoded, ..self };
            T::from_arguments(args).or_else(|error| match nested_option::is_in(encoded) {
                true => {
                    attachments::release();
                    T::from_arguments(Arguments { has_nested_options: true, ..args })
                }
                false => Err(error),
            })
        })
    }
}

/// A type that a worker can decode arguments to: a tuple of up to 12 deserializable values, or a `Vec`.
///
/// ```
/// use taskfork::worker::{Arguments, ArgumentsError, FromArguments};
///
/// /// Any arguments that fit `T`.
/// fn decode<T: FromArguments>(args: Arguments<'_>) -> Result<T, ArgumentsError> {
///     args.parse()
/// }
/// # let _ = decode::<(u8, String)>;
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a list of arguments",
    note = "take a tuple with one deserializable element an argument, as in `(i64,)`, or a `Vec`"
)]
pub trait FromArguments: Sized {
    /// Decodes the arguments; see [`Arguments::parse`].
    ///
    /// # Errors
    /// Fails if the number of arguments or the type of one does not match.
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

#[cfg_attr(feature = "server", taskfork_macros::startup_code)]
impl FromArguments for () {
    fn from_arguments(args: Arguments<'_>) -> Result<Self, ArgumentsError> {
        expect(args, 0)
    }
}

macro_rules! decode_tuples {
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

decode_tuples! {
    1: A; 2: A B; 3: A B C; 4: A B C D; 5: A B C D E; 6: A B C D E F;
    7: A B C D E F G; 8: A B C D E F G H; 9: A B C D E F G H I; 10: A B C D E F G H I J;
    11: A B C D E F G H I J K; 12: A B C D E F G H I J K L;
}

fn expect(args: Arguments<'_>, count: usize) -> Result<(), ArgumentsError> {
    let needed = count.saturating_sub(args.optional);
    if (needed..=count).contains(&args.count) {
        return Ok(());
    }
    let plural = if count == 1 { "" } else { "s" };
    let expected = if needed == count { count.to_string() } else { format!("{needed} to {count}") };
    let message = format!("expected {expected} argument{plural}, got {}", args.count);
    Err(ArgumentsError { message })
}

/// The encoded value of an argument that is missing.
const NIL: &[u8] = &[0xc0];

struct Decoder<'a> {
    inner: rmp_serde::Deserializer<rmp_serde::decode::ReadRefReader<'a, [u8]>>,
    /// The values that `inner` does not decode.
    values: Reader<'a>,
    /// The number of the argument that was decoded last, from 1.
    index: usize,
    args: Arguments<'a>,
}

impl<'a> Decoder<'a> {
    fn new(args: Arguments<'a>) -> Self {
        let inner = rmp_serde::Deserializer::from_read_ref(args.encoded);
        Self { inner, values: Reader::new(args.encoded), index: 0, args }
    }

    fn next<T: DeserializeOwned>(&mut self) -> Result<T, ArgumentsError> {
        self.index += 1;
        if self.index > self.args.count {
            return values::decode(NIL, ValueFormat::MessagePack)
                .map_err(|reason| self.error(reason));
        }
        if self.args.has_nested_options {
            let value = self.values.value().map_err(|error| error.to_string());
            let decoded = value.and_then(nested_option::decode);
            return decoded.map_err(|reason| self.error(reason));
        }
        let decoded = match self.args.format {
            ValueFormat::MessagePack => T::deserialize(&mut self.inner),
            ValueFormat::Json => {
                json_bytes::with_json_strings(|| T::deserialize(FromJson(&mut self.inner)))
            }
        };
        decoded.map_err(|error| self.error(self.reason::<T>(&error)))
    }

    /// Why the argument that was decoded last is no `T`.
    #[cold]
    fn reason<T: DeserializeOwned>(&self, error: &rmp_serde::decode::Error) -> String {
        let mut values = self.values;
        match (0..self.index).map(|_| values.value()).last() {
            Some(Ok(value)) => mismatch::describe::<T>(value, error),
            _ => error.to_string(),
        }
    }

    /// The error of the argument that was decoded last.
    #[cold]
    fn error(&self, reason: String) -> ArgumentsError {
        let index = self.index;
        let message = match self.args.method {
            Some(method) => format!("argument {index} of `{method}`: {reason}"),
            None => format!("argument {index}: {reason}"),
        };
        ArgumentsError { message }
    }
}
