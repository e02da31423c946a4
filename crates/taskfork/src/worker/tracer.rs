//! Records a worker's spans and events for the caller of the current call.

use std::fmt;
use std::sync::Once;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::SystemTime;

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id};
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber, callsite, dispatcher, span};
use tracing_subscriber::layer::{Context, Filter, SubscriberExt};
use tracing_subscriber::registry::{LookupSpan, Scope};
use tracing_subscriber::{Layer, Registry};

use super::records::MAX_RECORD;
use super::telemetry::{self, Recorder, RecorderState};
use crate::wire::trace::{MAX_FIELDS, Record, Value, Values};

/// The level that the last caller has requested: 1 error, 5 trace, 0 none. It stays between calls,
/// because a change is expensive.
static LEVEL: AtomicU8 = AtomicU8::new(0);

/// The maximum length of the values of one record, in bytes.
const MAX_VALUES: usize = MAX_RECORD - 100;

/// Returns a layer that records the spans and events of this worker's current call for the subscriber of
/// its caller, up to the level of that subscriber. It records nothing outside of calls and workers.
///
/// A worker without a subscriber gets one with this layer, as its global default, at the first call that
/// requests spans. A program that sets its own subscriber, before [`run`](crate::Server::run) or in
/// `setup`, must add the layer:
///
/// ```no_run
/// use taskfork::{Methods, ServerBuilder, ServerError};
/// use tracing_subscriber::prelude::*;
///
/// fn server(server: ServerBuilder) -> Result<(), ServerError> {
///     let own = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
///     tracing_subscriber::registry().with(own).with(taskfork::worker::tracing_layer()).init();
///     server.interface(Methods::<()>::new()).run()
/// }
/// ```
///
/// A span or an event has at most 3 KiB; longer values are cut. About 1 MiB is kept until it is sent;
/// an event reports how many more were left out.
pub fn tracing_layer<S>() -> impl Layer<S> + Send + Sync + 'static
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    Recording.with_filter(CallerLevel)
}

/// Sets the level that the caller of the next call has requested.
pub(super) fn set_level(level: Option<u8>) {
    static SUBSCRIBER: Once = Once::new();
    let level = level.unwrap_or(0);
    if LEVEL.load(Ordering::Relaxed) == level {
        return;
    }
    LEVEL.store(level, Ordering::Relaxed);
    // This fails if the program has a subscriber.
    SUBSCRIBER.call_once(|| drop(dispatcher::set_global_default(subscriber())));
    callsite::rebuild_interest_cache();
}

fn subscriber() -> dispatcher::Dispatch {
    Registry::default().with(tracing_layer()).into()
}

/// Enables spans and events up to the level that the caller has requested.
struct CallerLevel;

impl CallerLevel {
    fn level() -> LevelFilter {
        match LEVEL.load(Ordering::Relaxed) {
            0 => LevelFilter::OFF,
            1 => LevelFilter::ERROR,
            2 => LevelFilter::WARN,
            3 => LevelFilter::INFO,
            4 => LevelFilter::DEBUG,
            _ => LevelFilter::TRACE,
        }
    }
}

impl<S> Filter<S> for CallerLevel {
    fn enabled(&self, metadata: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        *metadata.level() <= Self::level()
    }

    fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> Interest {
        if *metadata.level() <= Self::level() { Interest::always() } else { Interest::never() }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(Self::level())
    }
}

/// An extension of each span that has been recorded.
struct Recorded {
    /// The call that has recorded the span.
    call: u64,
    number: u64,
}

struct Recording;

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Recording {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let fields = Fields::of(|fields| attributes.record(fields));
        let mut outer = span.scope();
        outer.next();
        let recorded = record(|call, recorder| {
            let Some(site) = site(recorder, attributes.metadata()) else {
                recorder.records.drop_one();
                return None;
            };
            let (parent, time) = (recorded_in(outer, call), now());
            let number = recorder.records.next_span();
            let values = fields.values();
            let record = Record::Span { span: number, site, parent, time, values };
            recorder.records.push(&record).then_some(Recorded { call, number })
        });
        if let Some(recorded) = recorded.flatten() {
            span.extensions_mut().replace(recorded);
        }
    }

    fn on_record(&self, id: &Id, values: &span::Record<'_>, context: Context<'_, S>) {
        let fields = Fields::of(|fields| values.record(fields));
        of_span(&context, id, |span| Record::Values { span, values: fields.values() });
    }

    fn on_follows_from(&self, id: &Id, follows: &Id, context: Context<'_, S>) {
        let Some(other) = number(&context, follows) else { return };
        of_span(&context, id, |span| Record::Follows { span, other: other.number });
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let fields = Fields::of(|fields| event.record(fields));
        let scope = context.event_scope(event);
        record(|call, recorder| match site(recorder, event.metadata()) {
            Some(site) => {
                let parent = scope.and_then(|scope| recorded_in(scope, call));
                let values = fields.values();
                recorder.records.push(&Record::Event { site, parent, time: now(), values });
            }
            None => recorder.records.drop_one(),
        });
    }

    fn on_enter(&self, id: &Id, context: Context<'_, S>) {
        of_span(&context, id, |span| Record::Enter { span, time: now() });
    }

    fn on_exit(&self, id: &Id, context: Context<'_, S>) {
        of_span(&context, id, |span| Record::Exit { span, time: now() });
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        of_span(&context, &id, |span| Record::Close { span, time: now() });
    }
}

/// Runs `record` with the number of the current call, if its caller has requested spans.
fn record<T>(record: impl FnOnce(u64, &mut Recorder) -> T) -> Option<T> {
    let mut recorder = telemetry::lock();
    let RecorderState::InCall(telemetry::RequestedTelemetry { trace: Some(_), .. }) =
        recorder.state
    else {
        return None;
    };
    let was_empty = recorder.records.is_empty();
    let result = record(recorder.calls, &mut recorder);
    if was_empty && !recorder.records.is_empty() {
        recorder.schedule_send();
    }
    Some(result)
}

/// The number of a call site. `None` if it cannot be recorded.
fn site(recorder: &mut Recorder, metadata: &'static Metadata<'static>) -> Option<u64> {
    let RecorderState::InCall(telemetry::RequestedTelemetry { places, .. }) = recorder.state else {
        return None;
    };
    recorder.records.site(metadata, places)
}

/// Records a change of a span, if the current call has recorded the span.
fn of_span<'a, S>(context: &Context<'_, S>, id: &Id, what: impl FnOnce(u64) -> Record<'a>)
where
    S: Subscriber + for<'b> LookupSpan<'b>,
{
    let Some(known) = number(context, id) else { return };
    record(|call, recorder| {
        if call == known.call {
            recorder.records.push(&what(known.number));
        }
    });
}

fn number<S>(context: &Context<'_, S>, id: &Id) -> Option<Recorded>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let span = context.span(id)?;
    let extensions = span.extensions();
    let &Recorded { call, number } = extensions.get()?;
    Some(Recorded { call, number })
}

/// The innermost span that this call has recorded.
fn recorded_in<'a, S>(mut scope: Scope<'a, S>, call: u64) -> Option<u64>
where
    S: LookupSpan<'a>,
{
    scope.find_map(|span| {
        let extensions = span.extensions();
        extensions.get().filter(|known: &&Recorded| known.call == call).map(|known| known.number)
    })
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// The values of a span's or an event's fields, at most `MAX_VALUES` bytes of them.
#[derive(Default)]
struct Fields {
    found: Vec<(usize, Found)>,
    bytes: usize,
}

enum Found {
    Plain(Value<'static>),
    Str(String),
    Shown(String),
}

impl Found {
    fn value(&self) -> Value<'_> {
        match self {
            Self::Plain(value) => *value,
            Self::Str(text) => Value::Str(text),
            Self::Shown(text) => Value::Shown(text),
        }
    }
}

impl Fields {
    fn of(record: impl FnOnce(&mut dyn Visit)) -> Self {
        let mut fields = Self::default();
        record(&mut fields);
        fields
    }

    fn values(&self) -> Values<'_> {
        Values(self.found.iter().map(|(field, found)| (*field, found.value())).collect())
    }

    fn push(&mut self, field: &Field, found: Found) {
        /// The maximum length of an encoded value without its text: a field's number, a marker, and a
        /// number.
        const PLAIN: usize = 11;
        if field.index() < MAX_FIELDS && self.bytes + PLAIN <= MAX_VALUES {
            self.bytes += PLAIN;
            self.found.push((field.index(), found));
        }
    }

    /// A writer for a text of as many bytes as are left.
    fn cut(&mut self) -> Cut {
        Cut { text: String::new(), room: MAX_VALUES.saturating_sub(self.bytes + 20), full: false }
    }

    fn text(&mut self, text: fmt::Arguments<'_>) -> String {
        let mut cut = self.cut();
        // This fails if the text is cut, or if the code of the value fails.
        let _ = fmt::write(&mut cut, text);
        self.bytes += cut.text.len();
        cut.text
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = self.text(format_args!("{value:?}"));
        self.push(field, Found::Shown(text));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let text = self.text(format_args!("{value}"));
        self.push(field, Found::Str(text));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.push(field, Found::Plain(Value::Bool(value)));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.push(field, Found::Plain(Value::Int(value)));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.push(field, Found::Plain(Value::Uint(value)));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.push(field, Found::Plain(Value::Float(value)));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let mut cut = self.cut();
        let mut written = fmt::write(&mut cut, format_args!("{value}"));
        let mut cause = value.source();
        // A chain may be endless. It ends here when the text is full.
        while let (Ok(()), Some(error)) = (written, cause) {
            written = fmt::write(&mut cut, format_args!(": {error}"));
            cause = error.source();
        }
        self.bytes += cut.text.len();
        self.push(field, Found::Shown(cut.text));
    }
}

/// Text that is cut at a maximum length.
struct Cut {
    text: String,
    room: usize,
    full: bool,
}

impl fmt::Write for Cut {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.full {
            return Err(fmt::Error);
        }
        let left = self.room - self.text.len();
        if text.len() <= left {
            self.text.push_str(text);
            return Ok(());
        }
        self.text.push_str(&text[..text.floor_char_boundary(left)]);
        self.text.push('…');
        self.full = true;
        Err(fmt::Error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An error that is its own source.
    #[derive(Debug)]
    struct Endless;

    impl fmt::Display for Endless {
        fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
            out.write_str("again")
        }
    }

    impl std::error::Error for Endless {
        fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
            Some(&Endless)
        }
    }

    #[test]
    fn a_chain_of_causes_without_end_is_cut() {
        // Without a subscriber a span has no fields.
        let dispatch = tracing::Dispatch::new(tracing_subscriber::registry());
        let span = dispatcher::with_default(&dispatch, || {
            tracing::info_span!("site", error = tracing::field::Empty)
        });
        let Some(field) = span.field("error") else { panic!("it has no field") };
        let mut fields = Fields::default();
        fields.record_error(&field, &Endless);
        let values = fields.values();
        let [(0, Value::Shown(text))] = values.0[..] else { panic!("{:?}", values.0) };
        assert!(text.starts_with("again: again: ") && text.ends_with('…'), "{text}");
        assert!(text.len() <= MAX_VALUES, "{}", text.len());
    }
}
