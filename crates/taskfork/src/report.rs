//! The call that an error belongs to, and the detailed report of an error.

use std::fmt::{self, Write};
use std::panic::{Location, RefUnwindSafe, UnwindSafe};

use crate::display::seconds;
use crate::error::{CallError, Death, Error, Failure, FatalError, Panic};

/// The call that an error belongs to: its client, method, and the line that made it.
///
/// ```no_run
/// # async fn example(client: taskfork::Client) {
/// if let Err(error) = client.call::<i64>("add", (2, 3)).await {
///     let site = error.site();
///     eprintln!("{site} failed, called at line {}", site.location().line());
///     eprintln!("client {}, method {:?}", site.client(), site.method());
///     eprintln!("{}", site.stack().unwrap_or("the worker sent no stack"));
/// }
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct CallSite(Box<Inner>);

// Nothing can be changed through a `CallSite`, so that a panic cannot leave it half changed. Without
// these lines the trace of the feature `spans` would make errors lose the two traits.
impl UnwindSafe for CallSite {}
impl RefUnwindSafe for CallSite {}

#[derive(Debug, Clone)]
struct Inner {
    client: String,
    method: Option<String>,
    location: &'static Location<'static>,
    /// The causes of the interface's own error, as texts from the worker. A typed error is serialized
    /// as a value, which need not contain its sources.
    causes: Vec<String>,
    /// The worker's stack where the error was raised, if the worker sent it.
    stack: Option<String>,
    /// The error's type there, if the worker sent it.
    type_name: Option<String>,
    /// What the worker's code has added to it.
    notes: Vec<String>,
    #[cfg(feature = "spans")]
    spans: tracing_error::SpanTrace,
}

impl CallSite {
    /// Captures the current spans. Must be called in the task that awaits the call.
    pub(crate) fn new(
        client: &str,
        method: Option<&str>,
        location: &'static Location<'static>,
    ) -> Self {
        Self(Box::new(Inner {
            client: client.to_owned(),
            method: method.map(str::to_owned),
            location,
            causes: Vec::new(),
            stack: None,
            type_name: None,
            notes: Vec::new(),
            #[cfg(feature = "spans")]
            spans: tracing_error::SpanTrace::capture(),
        }))
    }

    pub(crate) fn with_causes(mut self, failure: &Failure) -> Self {
        self.0.causes = failure.causes().map(str::to_owned).collect();
        self
    }

    /// Where the interface's own error was raised, its type there, and its notes.
    pub(crate) fn raised(
        mut self,
        stack: Option<String>,
        type_name: Option<String>,
        notes: Vec<String>,
    ) -> Self {
        (self.0.stack, self.0.type_name, self.0.notes) = (stack, type_name, notes);
        self
    }

    /// The stack of the worker where the interface's own error was raised, in several lines, if the
    /// worker sent one. Workers in Python send the traceback of the exception.
    pub fn stack(&self) -> Option<&str> {
        self.0.stack.as_deref()
    }

    /// The type of the interface's own error in the worker, if the worker sent it. Workers in Python send the name of the
    /// exception's class, with its module unless that is `builtins`.
    ///
    /// ```
    /// /// Whether a worker in Python has raised a `KeyError`.
    /// fn is_key_error(error: &taskfork::Error) -> bool {
    ///     error.site().error_type() == Some("KeyError")
    /// }
    /// # let _ = is_key_error;
    /// ```
    pub fn error_type(&self) -> Option<&str> {
        self.0.type_name.as_deref()
    }

    /// What the worker's code has added to the interface's own error, in order: at most 64 texts. Workers in Python send what
    /// `add_note` has added to the exception.
    ///
    /// ```
    /// fn print_notes(error: &taskfork::Error) {
    ///     error.site().notes().for_each(|note| eprintln!("{note}"));
    /// }
    /// # let _ = print_notes;
    /// ```
    pub fn notes(&self) -> impl Iterator<Item = &str> {
        self.0.notes.iter().map(String::as_str)
    }

    /// The client's name.
    pub fn client(&self) -> &str {
        &self.0.client
    }

    /// The method, or `None` if the call named none.
    pub fn method(&self) -> Option<&str> {
        self.0.method.as_deref()
    }

    /// The line of the program that made the call.
    pub fn location(&self) -> &'static Location<'static> {
        self.0.location
    }

    /// The `tracing` spans around the task that awaited the call. Empty unless the subscriber has the
    /// `ErrorLayer` of the crate `tracing-error`.
    ///
    /// ```no_run
    /// # async fn example(client: taskfork::Client) {
    /// if let Err(error) = client.call::<i64>("add", (2, 3)).await {
    ///     eprintln!("{}", error.site().spans());
    /// }
    /// # }
    /// ```
    #[cfg(feature = "spans")]
    pub fn spans(&self) -> &tracing_error::SpanTrace {
        &self.0.spans
    }
}

impl fmt::Display for CallSite {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} -> {}", self.client(), self.method().unwrap_or("(no method)"))
    }
}

/// A detailed report of an error, in several lines. Returned by [`Error::report`].
///
/// It begins with the error's text, its causes in the worker, and the worker's stack if there is one.
/// Then follow the call, the line that made it, and the `tracing` spans around it.
///
/// ```no_run
/// # async fn example(client: taskfork::Client) {
/// if let Err(error) = client.call::<i64>("add", (2, 3)).await {
///     let text = error.report().to_string();
///     eprintln!("{text}");
/// }
/// # }
/// ```
pub struct Report<'a, E>(pub(crate) &'a Error<E>);

impl<E: fmt::Display> fmt::Display for Report<'_, E> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let site = self.0.site();
        write!(out, "{}", self.0)?;
        match self.0 {
            Error::Call { error: CallError::Interface(_), .. } => {
                causes(out, site.0.causes.iter().map(String::as_str))?;
            }
            Error::Call { error, .. } => details_of_call(error, out)?,
            Error::Fatal { cause, .. } => details_of_end(cause, out)?,
        }
        for note in site.notes() {
            write!(out, "\n{}", note.trim_end())?;
        }
        if let Some(stack) = site.stack() {
            write!(out, "\n{}", stack.trim_end())?;
        }
        write!(out, "\n{site}\n  at {}", site.location())?;
        #[cfg(feature = "spans")]
        if site.spans().status() == tracing_error::SpanTraceStatus::CAPTURED {
            write!(Indented(out), "\n{}", site.spans())?;
        }
        Ok(())
    }
}

impl<E> fmt::Debug for Report<'_, E> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_tuple("Report").field(self.0.site()).finish()
    }
}

/// Writes the details of an error of a call after its text.
pub(crate) fn details_of_call<E>(
    error: &CallError<E>,
    out: &mut fmt::Formatter<'_>,
) -> fmt::Result {
    match error {
        CallError::Setup { failure } | CallError::Input(failure) => causes(out, failure.causes()),
        CallError::Panic(Panic { stack: Some(stack), .. }) => {
            write!(out, "\n{}", stack.trim_end())
        }
        _ => Ok(()),
    }
}

/// Writes the details of a fatal error after its text.
pub(crate) fn details_of_end(cause: &FatalError, out: &mut fmt::Formatter<'_>) -> fmt::Result {
    match cause {
        FatalError::WorkerDied(Death { stderr: Some(text), hung: None, .. }) => {
            write!(Indented(out), "\nstandard error:\n{text}")
        }
        FatalError::TimedOut { hung: Some(hung), .. }
        | FatalError::WorkerDied(Death { hung: Some(hung), .. }) => {
            write!(Indented(out), "\nit had run for {}", seconds(hung.ran_for))?;
            if let Some(stack) = &hung.stack {
                write!(out, ", and was at\n{}", stack.trim_end())?;
            } else if let Some(reason) = &hung.no_stack {
                write!(Indented(out), "; its stack is not known: {reason}")?;
            }
            match &hung.stderr {
                Some(text) => write!(Indented(out), "\nstandard error:\n{text}"),
                None => Ok(()),
            }
        }
        FatalError::ServerEnded { reason: Some(failure), .. } => causes(out, failure.causes()),
        _ => Ok(()),
    }
}

fn causes<'a>(out: &mut fmt::Formatter<'_>, causes: impl Iterator<Item = &'a str>) -> fmt::Result {
    for cause in causes {
        write!(Indented(out), "\ncaused by: {cause}")?;
    }
    Ok(())
}

impl<E: fmt::Display> fmt::Display for Error<E> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if out.alternate() {
            return write!(out, "{}", self.report());
        }
        match self {
            Self::Call { error, .. } => write!(out, "{error}"),
            Self::Fatal { cause, .. } => write!(out, "{cause}"),
        }
    }
}

impl<E: std::error::Error + 'static> std::error::Error for Error<E> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Call { error, .. } => error.source(),
            Self::Fatal { cause, .. } => cause.source(),
        }
    }
}

/// Indents all lines but the first by two columns.
struct Indented<'a, W>(&'a mut W);

impl<W: Write> Write for Indented<'_, W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for (number, line) in text.split('\n').enumerate() {
            if number > 0 {
                self.0.write_str("\n  ")?;
            }
            self.0.write_str(line)?;
        }
        Ok(())
    }
}
