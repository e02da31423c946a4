//! What a worker can be asked, as the serve loop sees it: a request in, an encoded reply out.

use serde::Serialize;

use super::error_reply::ErrorReply;
use crate::blob;
use crate::error::Failure;
use crate::wire::arguments::{Arguments, ArgumentsError, FromArguments};
use crate::wire::values::encode;

/// The error that functions of an untyped interface return: anything that is an error, or a text.
/// Its message and those of its causes reach the caller as a [`Failure`](crate::error::Failure).
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What a server's workers can be asked: [`Methods`](crate::Methods), a
/// [`Function`](crate::worker::Function), or what [`interface`](macro@crate::interface) makes of a trait.
///
/// `S` is the state that `setup` makes in each new worker.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no interface of a worker whose state is `{S}`",
    note = "use `Methods`, `Function`, or the `…Interface` that `#[taskfork::interface]` made; the \
            state is what `setup` returns, `()` without it"
)]
pub trait Interface<S>: 'static {
    /// Runs one request.
    #[doc(hidden)]
    fn call(&self, state: &mut S, request: Request<'_>) -> Reply;

    /// The answer of a call has been sent.
    #[doc(hidden)]
    fn on_answer_sent(&self) {}

    /// Whether arguments may lie in memory that the client lends.
    #[doc(hidden)]
    fn accepts_shared_memory(&self) -> bool {
        true
    }

    /// Whether results were sent first as JSON, in which strings stand for binary data.
    #[doc(hidden)]
    fn returns_json(&self) -> bool {
        false
    }

    /// Whether a call whose first argument is this text is a call of the method of that name, where
    /// the protocol does not tell the two apart.
    #[doc(hidden)]
    fn is_method_name(&self, _first: &str) -> bool {
        true
    }
}

/// One call, with the place for its answer.
#[doc(hidden)]
#[derive(Debug)]
pub struct Request<'a> {
    method: Option<&'a str>,
    args: Arguments<'a>,
    /// Where an encoded result goes.
    out: &'a mut Vec<u8>,
}

/// What came of a request.
#[doc(hidden)]
#[derive(Debug)]
pub struct Reply(pub(crate) Result<(), ErrorReply>);

impl<'a> Request<'a> {
    pub(crate) fn new(method: Option<&'a str>, args: Arguments<'a>, out: &'a mut Vec<u8>) -> Self {
        Self { method, args, out }
    }

    /// The method asked for.
    pub fn method(&self) -> Option<&'a str> {
        self.method
    }

    /// The arguments as they came.
    pub(crate) fn args(&self) -> Arguments<'a> {
        self.args
    }

    /// Decodes the arguments, or says in the reply why they do not fit.
    pub fn parse<T: FromArguments>(&self) -> Result<T, Reply> {
        self.args.parse().map_err(|error| Reply(Err(ErrorReply::arguments(&error))))
    }

    /// Answers with a value.
    pub fn value<T: Serialize + ?Sized>(self, value: &T) -> Reply {
        Reply(encode(value, self.out).map_err(|error| ErrorReply::result(&error)))
    }

    /// Answers with a value or with an error that keeps its type.
    pub fn typed<T, E>(self, result: Result<T, E>) -> Reply
    where
        T: Serialize,
        E: std::error::Error + Serialize + 'static,
    {
        match result {
            Ok(value) => self.value(&value),
            Err(error) => Reply(Err(ErrorReply::typed(&error))),
        }
    }

    /// Answers with a value that is encoded already, in the message that is being read.
    pub(crate) fn forward(self, value: &[u8]) -> Reply {
        Reply(
            blob::pass_on(value, self.out)
                .map_err(|reason| ErrorReply::result(&Failure::new(reason))),
        )
    }

    /// Answers with a value or with any error.
    pub(crate) fn untyped<T: Serialize>(self, result: Result<T, BoxError>) -> Reply {
        match result {
            Ok(value) => self.value(&value),
            Err(error) => Reply(Err(match error.downcast_ref::<ArgumentsError>() {
                Some(misfit) => ErrorReply::arguments(misfit),
                None => ErrorReply::interface(&*error),
            })),
        }
    }

    /// Answers that there is no such method.
    pub fn unknown_method<'n>(&self, known: impl IntoIterator<Item = &'n str>) -> Reply {
        Reply(Err(ErrorReply::method(self.method, known)))
    }
}
