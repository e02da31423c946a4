//! The error that a worker sends instead of a result.

use std::error::Error;
use std::time::Duration;

use serde::Serialize;

use crate::error::{Failure, Needs, Panic};
use crate::wire::error_body::{ErrorBody, MAX_KNOWN_METHODS, MAX_NOTES, kind};
use crate::wire::values::encode_to_vec;

/// An error that an interpreter has raised, as the interface's own error.
#[doc(hidden)]
#[derive(Debug, Default)]
pub struct Raised {
    pub message: String,
    /// The messages of its causes, nearest first.
    pub causes: Vec<String>,
    /// How many causes are left out.
    pub more: u64,
    /// The stack where it was raised.
    pub stack: Option<String>,
    /// The name of its type.
    pub type_name: Option<String>,
    /// What the code that it passed has added to it.
    pub notes: Vec<String>,
    /// It has interrupted the call because the time was over, and the call had run so long.
    pub ran_for: Option<Duration>,
}

/// An error reply. It is boxed to keep the results of frequent functions small.
#[derive(Debug)]
pub(crate) struct ErrorReply(Box<Details>);

#[derive(Debug)]
struct Details {
    kind: &'static str,
    failure: Failure,
    value: Option<Vec<u8>>,
    /// The client may use the worker again.
    keeps_worker: bool,
    panic: Option<Panic>,
    /// The methods that exist, for an unknown method.
    known: Vec<String>,
    /// The stack of an error that a program in another language raised.
    stack: Option<String>,
    /// What the method streams and the call did not.
    needs: Needs,
    /// The type of such an error.
    type_name: Option<String>,
    /// What the code that it passed has added to it.
    notes: Vec<String>,
    /// The call stopped because its time was over; how many microseconds it had run.
    timed_out: Option<u64>,
}

impl ErrorReply {
    /// An error that an interpreter has raised.
    pub(crate) fn raised(raised: Raised) -> Self {
        let Raised { message, causes, more, stack, type_name, notes, ran_for } = raised;
        let mut reply = Self::new(kind::INTERFACE, Failure::with_causes(&message, causes, more));
        (reply.0.stack, reply.0.type_name, reply.0.notes) = (stack, type_name, notes);
        reply.0.timed_out = ran_for.map(|ran| u64::try_from(ran.as_micros()).unwrap_or(u64::MAX));
        reply
    }

    fn new(kind: &'static str, failure: Failure) -> Self {
        let (value, panic, known, stack) = (None, None, Vec::new(), None);
        let (keeps_worker, needs) = (false, Needs::default());
        let (timed_out, type_name, notes) = (None, None, Vec::new());
        Self(Box::new(Details {
            kind,
            failure,
            value,
            keeps_worker,
            panic,
            known,
            stack,
            type_name,
            notes,
            timed_out,
            needs,
        }))
    }

    /// Whether the interface has no such method.
    pub(super) fn is_unknown_method(&self) -> bool {
        self.0.kind == kind::METHOD
    }

    pub(crate) fn arguments(error: &dyn std::fmt::Display) -> Self {
        Self::new(kind::ARGUMENTS, Failure::new(error.to_string()))
    }

    /// The call must stream what the method does.
    pub(super) fn needs(needs: Needs, message: String) -> Self {
        let mut reply = Self::new(kind::ARGUMENTS, Failure::new(message));
        reply.0.needs = needs;
        reply
    }

    pub(crate) fn result(error: &dyn std::fmt::Display) -> Self {
        Self::new(kind::RESULT, Failure::new(error.to_string()))
    }

    pub(crate) fn interface(error: &(dyn Error + 'static)) -> Self {
        Self::new(kind::INTERFACE, Failure::of(error))
    }

    pub(crate) fn typed<E: Error + Serialize + 'static>(error: &E) -> Self {
        match encode_to_vec(error) {
            Ok(value) => {
                let mut reply = Self::interface(error);
                reply.0.value = Some(value);
                reply
            }
            Err(problem) => Self::new(
                kind::RESULT,
                Failure::new(format!("the error `{error}` cannot be encoded: {problem}")),
            ),
        }
    }

    pub(crate) fn method<'n>(
        method: Option<&str>,
        known: impl IntoIterator<Item = &'n str>,
    ) -> Self {
        let message = match method {
            Some(method) => format!("unknown method `{method}`"),
            None => "a call must name a method".to_owned(),
        };
        let mut reply = Self::new(kind::METHOD, Failure::new(message));
        reply.0.known = known.into_iter().take(MAX_KNOWN_METHODS).map(str::to_owned).collect();
        reply
    }

    pub(crate) fn panic(panic: Panic) -> Self {
        let mut reply = Self::new(kind::PANIC, Failure::new(panic.message.clone()));
        reply.0.panic = Some(panic);
        reply
    }

    pub(crate) fn setup(failure: Failure) -> Self {
        Self::new(kind::SETUP, failure)
    }

    pub(crate) fn version(message: String) -> Self {
        Self::new(kind::VERSION, Failure::new(message))
    }

    pub(crate) fn hello(message: String) -> Self {
        Self::new(kind::HELLO, Failure::new(message))
    }

    pub(crate) fn wrong_interface(difference: String) -> Self {
        Self::new(kind::WRONG_INTERFACE, Failure::new(difference))
    }

    /// The message of an error of `setup`, followed by its causes.
    pub(crate) fn setup_reason(&self) -> String {
        let (causes, _) = self.0.failure.kept_causes();
        let causes = causes.into_iter().map(|cause| format!(": {cause}"));
        [self.0.failure.message().to_owned()].into_iter().chain(causes).collect()
    }

    /// An error that a program has sent.
    pub(crate) fn received(body: &ErrorBody<'_>) -> Self {
        const KINDS: [&str; 6] = [
            kind::INTERFACE,
            kind::PANIC,
            kind::METHOD,
            kind::ARGUMENTS,
            kind::RESULT,
            kind::SETUP,
        ];
        let known = KINDS.into_iter().find(|known| *known == body.kind);
        let mut reply = Self::new(known.unwrap_or(kind::INTERFACE), body.failure());
        reply.0.value = body.value.map(<[u8]>::to_vec);
        reply.0.known = body.known.iter().map(|&name| name.to_owned()).collect();
        reply.0.stack = body.stack.map(str::to_owned);
        reply.0.needs = body.needs;
        reply.0.type_name = body.type_name.map(str::to_owned);
        reply.0.notes = body.notes.iter().map(|&note| note.to_owned()).collect();
        reply.0.timed_out = body.timed_out;
        reply.0.panic = (body.kind == kind::PANIC).then(|| Panic {
            message: body.message.to_owned(),
            location: body.panic_location(),
            stack: body.stack.map(str::to_owned),
        });
        reply
    }

    pub(super) fn kind(&self) -> &'static str {
        self.0.kind
    }

    /// Tells the client whether it may use the worker again.
    pub(super) fn keeping_worker(mut self, keeps: bool) -> Self {
        self.0.keeps_worker = keeps;
        self
    }

    /// Removes source files, stacks, and the message of an error of `setup`. The log contains them.
    pub(crate) fn without_details(mut self) -> Self {
        let details = &mut self.0;
        if details.kind == kind::SETUP {
            let message = "it failed, and the server's log says why (share_details)";
            details.failure = Failure::new(message);
        }
        details.stack = None;
        if let Some(panic) = &mut details.panic {
            // The panic hook has written them to standard error.
            (panic.location, panic.stack) = (None, None);
        }
        self
    }

    /// The body of the message that contains this error.
    pub(crate) fn body(&self) -> ErrorBody<'_> {
        let (causes, more_causes) = self.0.failure.kept_causes();
        ErrorBody {
            kind: self.0.kind,
            message: self.0.failure.message(),
            causes,
            more_causes,
            value: self.0.value.as_deref(),
            keeps_worker: self.0.keeps_worker,
            needs: self.0.needs,
            location: self
                .0
                .panic
                .as_ref()
                .and_then(|panic| panic.location.as_ref())
                .map(|place| (place.file.as_str(), place.line, place.column)),
            known: self.0.known.iter().map(String::as_str).take(MAX_KNOWN_METHODS).collect(),
            stack: self
                .0
                .panic
                .as_ref()
                .and_then(|panic| panic.stack.as_deref())
                .or(self.0.stack.as_deref()),
            type_name: self.0.type_name.as_deref(),
            notes: self.0.notes.iter().map(String::as_str).take(MAX_NOTES).collect(),
            timed_out: self.0.timed_out,
        }
    }
}
