//! The trait that the main loop of a worker calls: it takes a request and writes an encoded reply.

use std::rc::Rc;

use serde::Serialize;

use super::error_reply::{ErrorReply, Raised};
use super::replace_after::ReplaceAfter;
use super::shared_memory::SharedMemory;
use crate::blob;
use crate::emitter::{Emitter, Port};
use crate::error::{BoxError, Failure, Needs};
use crate::receiver::{InputPort, Receiver};
use crate::wire::arguments::{Arguments, ArgumentsError, FromArguments};
use crate::wire::attachments;
use crate::wire::gather_frame::MIN_SEGMENT;
use crate::wire::interface_description::InterfaceDescription;
use crate::wire::values::encode;

/// The calls that a server's workers answer: [`Methods`](crate::Methods), a
/// [`Function`](crate::worker::Function), or the type that [`interface`](macro@crate::interface) defines
/// for a trait. A tuple of up to eight of the latter is an interface with the methods of all.
///
/// `S` is the state that `setup` returns in each new worker. The methods of this trait are for the crate
/// only.
///
/// ```
/// use taskfork::worker::Interface;
/// use taskfork::{BoxError, Methods, Server};
///
/// fn server(interface: impl Interface<Vec<String>>) -> Server {
///     Server::builder().setup(|| Ok::<_, BoxError>(Vec::new())).interface(interface)
/// }
///
/// let server = server(Methods::new().method("len", |lines: &mut Vec<String>| Ok(lines.len())));
/// # let _ = server;
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no interface of a worker whose state is `{S}`",
    note = "use `Methods`, `Function`, or the `…Interface` that `#[taskfork::interface]` made; the \
            state is what `setup` returns, `()` without it"
)]
pub trait Interface<S>: 'static {
    /// Runs one request.
    #[doc(hidden)]
    fn call(&self, state: &mut S, request: Request<'_>) -> Reply;

    /// What a client that requires interfaces is compared with. Empty if the types of the parameters are unknown.
    #[doc(hidden)]
    fn descriptions(&self) -> Vec<&'static InterfaceDescription> {
        Vec::new()
    }

    /// After which errors the worker is replaced, unless the server's option says so.
    #[doc(hidden)]
    fn replaced_after(&self) -> ReplaceAfter {
        ReplaceAfter::AnyError
    }

    /// Runs after the answer of a call has been sent.
    #[doc(hidden)]
    fn on_answer_sent(&self) {}

    /// Whether arguments may be in memory that the client shares.
    #[doc(hidden)]
    fn accepts_shared_memory(&self) -> bool {
        true
    }

    /// Whether results come from JSON, which has no type for binary data and uses strings.
    #[doc(hidden)]
    fn returns_json(&self) -> bool {
        false
    }

    /// Whether this method sends items to a caller that reads them.
    #[doc(hidden)]
    fn streams(&self, _method: Option<&str>, _interface: Option<&str>) -> bool {
        false
    }

    /// Whether there is such a method, as far as that is known.
    #[doc(hidden)]
    fn has_method(&self, method: Option<&str>, _interface: Option<&str>) -> bool {
        let names = self.method_names();
        names.is_empty() || method.is_none_or(|method| names.iter().any(|name| name == method))
    }

    /// Whether this method takes items of a caller that streams them.
    #[doc(hidden)]
    fn takes_input(&self, _method: Option<&str>, _interface: Option<&str>) -> bool {
        false
    }

    /// Whether this first argument is a method's name. Only the JSON protocol does not distinguish the
    /// two.
    #[doc(hidden)]
    fn is_method_name(&self, _first: &str) -> bool {
        true
    }

    /// The names of the methods, as far as they are known.
    #[doc(hidden)]
    fn method_names(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Checks that a method of which a caller wants a stream is one that streams.
///
/// A method that does not exist passes: the interface itself answers that, and says what there is.
///
/// # Errors
/// The reply for a method that streams nothing, which must not run.
pub(super) fn check_streams<S>(
    interface: &(impl Interface<S> + ?Sized),
    method: Option<&str>,
    of: Option<&str>,
    reads_items: bool,
    has_input: bool,
) -> Result<(), ErrorReply> {
    let wrong = if reads_items && !interface.streams(method, of) {
        "streams no items: make a call, and no stream"
    } else if has_input && !interface.takes_input(method, of) {
        "takes no input: make a call without one"
    } else {
        return Ok(());
    };
    if !interface.has_method(method, of) {
        return Ok(());
    }
    let reason = format!("{} {wrong}", quoted(method));
    Err(ErrorReply::arguments(&Failure::new(reason)))
}

/// The method of a call, for an error.
fn quoted(method: Option<&str>) -> String {
    method.map_or_else(|| "a call without a method".to_owned(), |method| format!("`{method}`"))
}

/// An error of a method of a typed interface that keeps its type.
#[doc(hidden)]
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be the error of a method",
    label = "an error that the caller gets with its type",
    note = "implement `std::error::Error` for it and derive `serde::Serialize` and `serde::Deserialize`",
    note = "or return `taskfork::BoxError`, whose text and causes the caller gets"
)]
pub trait TypedError: std::error::Error + Serialize + 'static {}

impl<E: std::error::Error + Serialize + 'static> TypedError for E {}

/// One call, with the place for its answer.
#[doc(hidden)]
#[derive(Debug)]
pub struct Request<'a> {
    method: Option<&'a str>,
    /// The interface that the method belongs to, if the call says so.
    interface: Option<&'a str>,
    args: Arguments<'a>,
    /// The buffer for the encoded result.
    out: &'a mut Vec<u8>,
    /// Where items go, if the caller reads them.
    port: Option<Rc<dyn Port>>,
    /// Where the items of the input come from, if the caller streams one.
    input: Option<Rc<dyn InputPort>>,
    /// The memory that is shared with the client.
    memory: Option<&'a mut SharedMemory>,
}

/// The outcome of a request. A value has been written to its buffer.
#[doc(hidden)]
#[derive(Debug)]
pub struct Reply(pub(crate) Result<(), ErrorReply>);

#[taskfork_macros::startup_code]
impl<'a> Request<'a> {
    pub(crate) fn new(
        method: Option<&'a str>,
        interface: Option<&'a str>,
        args: Arguments<'a>,
        out: &'a mut Vec<u8>,
        port: Option<Rc<dyn Port>>,
    ) -> Self {
        let args = args.of_method(method);
        Self { method, interface, args, out, port, input: None, memory: None }
    }

    /// The same request with an input.
    pub(crate) fn with_input(self, input: Option<Rc<dyn InputPort>>) -> Self {
        Self { input, ..self }
    }

    /// The same request with memory for its result.
    pub(super) fn with_memory(self, memory: Option<&'a mut SharedMemory>) -> Self {
        Self { memory, ..self }
    }

    /// Takes the memory for the result.
    pub(super) fn take_memory(&mut self) -> Option<&'a mut SharedMemory> {
        self.memory.take()
    }

    /// The interface that the method belongs to, if the call says so.
    pub(super) fn interface(&self) -> Option<&'a str> {
        self.interface
    }

    /// The same request by another name of its method.
    pub(super) fn renamed(self, method: &'a str) -> Self {
        Self { method: Some(method), ..self }
    }

    /// The method that the call names.
    pub fn method(&self) -> Option<&'a str> {
        self.method
    }

    /// The undecoded arguments.
    pub(crate) fn args(&self) -> Arguments<'a> {
        self.args
    }

    /// Where items go, if the caller reads them.
    pub(crate) fn port(&self) -> Option<Rc<dyn Port>> {
        self.port.clone()
    }

    /// Where the items of the input come from, if the caller streams one.
    pub(crate) fn input(&self) -> Option<Rc<dyn InputPort>> {
        self.input.clone()
    }

    /// Whether the caller reads items.
    pub fn reads_items(&self) -> bool {
        self.port.is_some()
    }

    /// Whether the arguments may have a byte string that is long enough to stay where it is.
    pub fn may_have_long_bytes(&self) -> bool {
        self.args.encoded().len() >= MIN_SEGMENT || attachments::is_any()
    }

    /// Decodes the arguments. The error is a reply that says why they do not fit.
    pub fn parse<T: FromArguments>(&self) -> Result<T, Reply> {
        self.args.parse().map_err(|error| Reply(Err(ErrorReply::arguments(&error))))
    }

    /// Decodes the arguments, of which the last `optional` may be missing.
    pub fn parse_optional<T: FromArguments>(&self, optional: usize) -> Result<T, Reply> {
        let args = self.args.with_optional(optional);
        args.parse().map_err(|error| Reply(Err(ErrorReply::arguments(&error))))
    }

    /// Where the items of a method that streams go. The error is a reply for a caller that does not read them.
    pub fn emitter<T>(&self) -> Result<Emitter<T>, Reply> {
        let port = self.port().ok_or_else(|| {
            let method = quoted(self.method);
            let reason = format!(
                "{method} streams items, which this call does not read: make a stream, and no call \
                 (clients that speak JSON cannot)"
            );
            let needs = Needs { items: true, ..Needs::default() };
            Reply(Err(ErrorReply::needs(needs, reason)))
        });
        port.map(Emitter::to_caller)
    }

    /// Where the items of the input of a method come from. The error is a reply for a caller that streams none.
    pub fn receiver<T>(&self) -> Result<Receiver<T>, Reply> {
        let port = self.input().ok_or_else(|| {
            let method = quoted(self.method);
            let reason = format!(
                "{method} takes an input, which this call does not stream: call it by a typed client in \
                 Rust, with `call_with_input`, or in Python with `input=` (clients that speak JSON cannot)"
            );
            let needs = Needs { input: true, ..Needs::default() };
            Reply(Err(ErrorReply::needs(needs, reason)))
        });
        port.map(Receiver::from_caller)
    }

    /// Answers with a value.
    pub fn value<T: Serialize + ?Sized>(self, value: &T) -> Reply {
        Reply(encode(value, self.out).map_err(|error| ErrorReply::result(&error)))
    }

    /// Answers with a value or with an error that keeps its type.
    pub fn typed<T: Serialize, E: TypedError>(self, result: Result<T, E>) -> Reply {
        match result {
            Ok(value) => self.value(&value),
            Err(error) => Reply(Err(ErrorReply::typed(&error))),
        }
    }

    /// Answers with an encoded value from the message that is being decoded.
    pub(crate) fn forward(self, value: &[u8]) -> Reply {
        Reply(
            blob::pass_on(value, self.out)
                .map_err(|reason| ErrorReply::result(&Failure::new(reason))),
        )
    }

    /// Answers with a value, or with the text and the causes of any error.
    pub fn untyped<T: Serialize, E: Into<BoxError>>(self, result: Result<T, E>) -> Reply {
        match result.map_err(Into::into) {
            Ok(value) => self.value(&value),
            Err(error) => Reply(Err(match error.downcast_ref::<ArgumentsError>() {
                Some(error) => ErrorReply::arguments(error),
                None => ErrorReply::interface(&*error),
            })),
        }
    }

    /// Fails the call with the interface's own error, which an interpreter has raised.
    pub fn failed(self, raised: Raised) -> Reply {
        Reply(Err(ErrorReply::raised(raised)))
    }

    /// Answers that there is no such method.
    pub fn unknown_method<'n>(&self, known: impl IntoIterator<Item = &'n str>) -> Reply {
        Reply(Err(ErrorReply::method(self.method, known)))
    }
}
