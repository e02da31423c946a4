//! A subscriber that remembers what it is told.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Dispatch, Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::prelude::*;
use tracing_subscriber::registry::LookupSpan;

/// What a subscriber was told.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    pub(crate) what: &'static str,
    pub(crate) name: String,
    pub(crate) target: String,
    pub(crate) level: Option<Level>,
    pub(crate) file: Option<String>,
    pub(crate) line: Option<u32>,
    pub(crate) parent: Option<String>,
    pub(crate) fields: BTreeMap<String, String>,
    pub(crate) open: bool,
}

#[derive(Clone, Default)]
pub(crate) struct Capture(Arc<Mutex<Vec<Seen>>>);

impl Capture {
    pub(crate) fn all(&self) -> Vec<Seen> {
        self.0.lock().unwrap().clone()
    }

    pub(crate) fn one(&self, name: &str) -> Seen {
        let named = |seen: &Seen| seen.name == name || seen.message() == name;
        let all = self.all();
        all.iter().find(|seen| named(seen)).unwrap_or_else(|| panic!("{name}: {all:?}")).clone()
    }

    pub(crate) fn messages(&self) -> Vec<String> {
        let all = self.all();
        all.iter().filter(|seen| seen.what == "event").map(Seen::message).collect()
    }

    fn push(&self, what: &'static str, metadata: &Metadata<'_>, parent: Option<String>) -> usize {
        let mut all = self.0.lock().unwrap();
        all.push(Seen {
            what,
            name: metadata.name().to_owned(),
            target: metadata.target().to_owned(),
            level: Some(*metadata.level()),
            file: metadata.file().map(str::to_owned),
            line: metadata.line(),
            parent,
            fields: BTreeMap::new(),
            open: what == "span",
        });
        all.len() - 1
    }
}

impl Seen {
    pub(crate) fn message(&self) -> String {
        self.fields.get("message").cloned().unwrap_or_default()
    }

    pub(crate) fn field(&self, name: &str) -> &str {
        self.fields.get(name).map_or("(none)", String::as_str)
    }
}

/// Fields with the names of the types they were given as.
impl Visit for Seen {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.fields.insert(field.name().to_owned(), format!("{value:?}"));
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.fields.insert(field.name().to_owned(), format!("str {value}"));
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.fields.insert(field.name().to_owned(), format!("u64 {value}"));
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.fields.insert(field.name().to_owned(), format!("i64 {value}"));
    }
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.fields.insert(field.name().to_owned(), format!("f64 {value}"));
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.fields.insert(field.name().to_owned(), format!("bool {value}"));
    }
}

struct Place(usize);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Capture {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let span = context.span(id).unwrap();
        let parent = span.parent().map(|parent| parent.name().to_owned());
        let place = self.push("span", attributes.metadata(), parent);
        attributes.record(&mut self.0.lock().unwrap()[place]);
        span.extensions_mut().insert(Place(place));
    }
    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let span = context.span(id).unwrap();
        let place = span.extensions().get::<Place>().unwrap().0;
        values.record(&mut self.0.lock().unwrap()[place]);
    }
    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        // The runtime's own events arrive through the crate `log`, at any time.
        if event.metadata().target() == "log" {
            return;
        }
        let parent = context.event_span(event).map(|span| span.name().to_owned());
        let place = self.push("event", event.metadata(), parent);
        event.record(&mut self.0.lock().unwrap()[place]);
    }
    fn on_enter(&self, id: &Id, context: Context<'_, S>) {
        self.push("enter", context.metadata(id).unwrap(), None);
    }
    fn on_exit(&self, id: &Id, context: Context<'_, S>) {
        self.push("exit", context.metadata(id).unwrap(), None);
    }
    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let span = context.span(&id).unwrap();
        let place = span.extensions().get::<Place>().unwrap().0;
        self.0.lock().unwrap()[place].open = false;
    }
}

pub(crate) fn capture() -> (Capture, Dispatch) {
    let capture = Capture::default();
    (capture.clone(), tracing_subscriber::registry().with(capture).into())
}

pub(crate) fn listen() -> (Capture, tracing::dispatcher::DefaultGuard) {
    let (capture, dispatch) = capture();
    (capture, tracing::dispatcher::set_default(&dispatch))
}
