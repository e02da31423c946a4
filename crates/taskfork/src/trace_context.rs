//! W3C Trace Context of calls: which distributed trace a call belongs to.
//!
//! With the feature `opentelemetry`, a call carries the context of the caller's span. Without the feature,
//! [`Checkout::trace_context`](crate::Checkout::trace_context) sets one. In the worker, [`current`]
//! returns it.

use std::cell::RefCell;
use std::sync::{Mutex, MutexGuard};

use crate::sync;

/// The longest `tracestate`, in bytes. W3C requires support for 512.
const MAX_STATE: usize = 512;

/// A W3C Trace Context: the headers `traceparent` and `tracestate`.
///
/// With the feature `opentelemetry`, every call made within a span of `tracing-opentelemetry` carries
/// the span's context. To set another context, for example that of an incoming request, pass it to
/// [`Checkout::trace_context`](crate::Checkout::trace_context). In the worker, [`current`] returns it.
///
/// ```
/// use taskfork::trace_context::TraceContext;
///
/// let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
/// let context = TraceContext::new(parent).unwrap().with_state("vendor=value");
/// assert_eq!(context.traceparent(), parent);
/// assert_eq!(context.tracestate(), Some("vendor=value"));
/// assert_eq!(TraceContext::new("something else"), None);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceContext {
    traceparent: String,
    tracestate: Option<String>,
}

impl TraceContext {
    /// Parses the header `traceparent` of version 00. Returns `None` for any other text, and if the
    /// trace id or the parent id is zero.
    ///
    /// ```
    /// use taskfork::trace_context::TraceContext;
    ///
    /// // Version ff does not exist.
    /// let other = "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    /// assert_eq!(TraceContext::new(other), None);
    /// ```
    pub fn new(traceparent: &str) -> Option<Self> {
        let hex = |part: &str, length: usize| {
            let digits = part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
            part.len() == length && digits
        };
        let is_nonzero = |part: &str| part.bytes().any(|byte| byte != b'0');
        let mut parts = traceparent.split('-');
        let (Some("00"), Some(trace), Some(span), Some(flags), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return None;
        };
        let valid = hex(trace, 32)
            && is_nonzero(trace)
            && hex(span, 16)
            && is_nonzero(span)
            && hex(flags, 2);
        valid.then(|| Self { traceparent: traceparent.to_owned(), tracestate: None })
    }

    /// Sets the header `tracestate`. Defaults to none. A text that is empty or longer than 512 bytes
    /// removes it.
    ///
    /// ```
    /// use taskfork::trace_context::TraceContext;
    ///
    /// let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    /// let context = TraceContext::new(parent).unwrap().with_state(&"long".repeat(200));
    /// assert_eq!(context.tracestate(), None);
    /// ```
    #[must_use]
    pub fn with_state(mut self, tracestate: &str) -> Self {
        let fits = (1..=MAX_STATE).contains(&tracestate.len());
        self.tracestate = fits.then(|| tracestate.to_owned());
        self
    }

    /// The header `traceparent`.
    ///
    /// ```
    /// use taskfork::trace_context::TraceContext;
    ///
    /// let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    /// assert_eq!(TraceContext::new(parent).unwrap().traceparent(), parent);
    /// ```
    pub fn traceparent(&self) -> &str {
        &self.traceparent
    }

    /// The header `tracestate`, or `None` without one.
    ///
    /// ```
    /// use taskfork::trace_context::TraceContext;
    ///
    /// let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    /// let context = TraceContext::new(parent).unwrap();
    /// assert_eq!(context.tracestate(), None);
    /// assert_eq!(context.with_state("vendor=value").tracestate(), Some("vendor=value"));
    /// ```
    pub fn tracestate(&self) -> Option<&str> {
        self.tracestate.as_deref()
    }

    /// Parses the headers of a received call. An invalid `traceparent` counts as none.
    #[cfg_attr(feature = "server", taskfork_macros::startup_code)]
    pub(crate) fn received(traceparent: Option<&str>, tracestate: Option<&str>) -> Option<Self> {
        let context = Self::new(traceparent?)?;
        Some(tracestate.map_or(context.clone(), |state| context.with_state(state)))
    }

    /// The context of the current span, if OpenTelemetry records it.
    #[cfg(feature = "opentelemetry")]
    pub(crate) fn of_caller() -> Option<Self> {
        use opentelemetry::trace::TraceContextExt;
        use tracing_opentelemetry::OpenTelemetrySpanExt;

        let span = tracing::Span::current();
        if span.is_disabled() {
            return None;
        }
        let context = span.context();
        let span = context.span();
        let span = span.span_context();
        let flags = span.trace_flags().to_u8();
        let traceparent = format!("00-{}-{}-{flags:02x}", span.trace_id(), span.span_id());
        Some(Self::new(&traceparent)?.with_state(&span.trace_state().header()))
    }

    #[cfg(not(feature = "opentelemetry"))]
    pub(crate) fn of_caller() -> Option<Self> {
        None
    }
}

/// Converts the context to a parent of the worker's spans, which continue the caller's trace:
///
/// ```
/// use tracing_opentelemetry::OpenTelemetrySpanExt;
///
/// # fn method() {
/// let span = tracing::info_span!("method");
/// if let Some(context) = taskfork::trace_context::current() {
///     // Fails if the subscriber has no OpenTelemetry layer.
///     let _ = span.set_parent(context.into());
/// }
/// # }
/// ```
#[cfg(feature = "opentelemetry")]
impl From<TraceContext> for opentelemetry::Context {
    fn from(context: TraceContext) -> Self {
        use std::str::FromStr;

        use opentelemetry::trace::{
            SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState,
        };

        let mut parts = context.traceparent.split('-').skip(1);
        let mut next = || parts.next().unwrap_or_default();
        let (trace, span, flags) = (next(), next(), next());
        let state = TraceState::from_str(context.tracestate().unwrap_or_default());
        let parent = SpanContext::new(
            TraceId::from_hex(trace).unwrap_or(TraceId::INVALID),
            SpanId::from_hex(span).unwrap_or(SpanId::INVALID),
            TraceFlags::new(u8::from_str_radix(flags, 16).unwrap_or_default()),
            true,
            state.unwrap_or_default(),
        );
        Self::new().with_remote_span_context(parent)
    }
}

#[expect(unsafe_code, reason = "the section is plain data, and nothing runs because of its name")]
#[unsafe(link_section = "taskfork_worker")]
static CURRENT: Mutex<Option<TraceContext>> = Mutex::new(None);

fn stored() -> MutexGuard<'static, Option<TraceContext>> {
    sync::lock(&CURRENT)
}

thread_local! {
    /// That of the call that this thread runs, if it is a worker in the process of its client.
    static ON_THREAD: RefCell<Option<TraceContext>> = const { RefCell::new(None) };
}

/// Returns the trace context of the call that this worker runs, on any thread of it. Returns `None`
/// outside calls and workers, and if the caller sent none.
///
/// ```
/// assert_eq!(taskfork::trace_context::current(), None);
/// ```
pub fn current() -> Option<TraceContext> {
    ON_THREAD.with_borrow(Option::clone).or_else(|| stored().clone())
}

/// Sets the context of the call that begins on this thread of a client's process, or clears it after a call.
pub(crate) fn set_on_thread(context: Option<TraceContext>) {
    ON_THREAD.set(context);
}

/// Sets the context of the call that begins, or clears it after a call.
#[cfg_attr(feature = "server", taskfork_macros::startup_code)]
pub(crate) fn set(context: Option<TraceContext>) {
    *stored() = context;
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn an_invalid_traceparent_is_refused() {
        assert!(TraceContext::new(PARENT).is_some());
        let wrong = [
            "",
            "00",
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b716920333-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-1",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
        ];
        for wrong in wrong {
            assert_eq!(TraceContext::new(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_state_beyond_the_limit_is_left_out() {
        let context = TraceContext::new(PARENT).unwrap();
        assert_eq!(context.clone().with_state(&"x".repeat(513)).tracestate(), None);
        assert_eq!(context.clone().with_state("").tracestate(), None);
        assert_eq!(context.with_state("a=b").tracestate(), Some("a=b"));
    }

    #[cfg(feature = "opentelemetry")]
    #[test]
    fn it_is_the_same_as_a_context_of_opentelemetry() {
        use opentelemetry::trace::TraceContextExt;

        let context = TraceContext::new(PARENT).unwrap().with_state("a=b");
        let context = opentelemetry::Context::from(context);
        let span = context.span().span_context().clone();
        assert_eq!(span.trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(span.span_id().to_string(), "b7ad6b7169203331");
        assert!(span.is_sampled() && span.is_remote());
        assert_eq!(span.trace_state().header(), "a=b");
    }
}
