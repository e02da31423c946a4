//! What a worker recorded of its spans and events, given to the subscriber of the call's caller,
//! within the span that made the call.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tracing::field::{DisplayValue, Field, ValueSet, display};
use tracing::level_filters::{LevelFilter, STATIC_MAX_LEVEL};
use tracing::span::{Attributes, Id, Record as SpanRecord};
use tracing::subscriber::NoSubscriber;
use tracing::{Dispatch, Event, Level, Span, dispatcher};

use super::sites::{BUSY, CLOSED, ENTERED, PID, Site, SiteError, TIME};
use crate::sync::{ignore_poison, lock};
use crate::wire::trace::{self, MAX_FIELDS, Record, Value, Values};

/// The fields of a worker's span or event, and those of ours.
const FIELDS: usize = MAX_FIELDS + 5;

/// So many spans of one call can be open.
const MAX_OPEN: usize = 10_000;

/// The most sites that the records of one call name.
const MAX_SITES_OF_CALL: usize = 10_000;

/// The most entries into spans that last at one time. Each piece of records enters them again, so
/// this bounds what a small piece costs.
const MAX_ENTERED: usize = 128;

/// The most spans within each other. Subscribers walk outwards from a span for each event, and
/// `tracing-subscriber` closes parents recursively.
const MAX_DEPTH: usize = 128;

/// So many bytes of records are read at a time.
const MAX_RECORDS: usize = 4 << 20;

/// The replay of one call. What it has begun is ended when it is dropped.
pub(crate) struct Replay {
    /// What has arrived, with the worker's process id.
    arrived: Mutex<VecDeque<(u32, Bytes)>>,
    player: Mutex<Player>,
}

struct Player {
    dispatch: Dispatch,
    /// The span that made the call.
    caller: Span,
    sites: HashMap<u64, &'static Site>,
    open: HashMap<u64, OpenSpan>,
    /// The spans that the subscriber has been told to enter and not to leave, in this order. A span
    /// stands here once for each entry.
    entered: Vec<u64>,
    /// How many spans, entries and sites were over a limit, and the worker that sent the last one.
    left_out: u64,
    left_out_by: u32,
}

/// A span of the worker's that has not been closed.
struct OpenSpan {
    /// What stands for it here: nothing if nobody wants it.
    here: Option<LocalSpan>,
    /// The nearest span around it that the subscriber knows.
    around: Option<u64>,
    /// How many spans that the subscriber knows lie around it.
    depth: usize,
    /// How often it has been entered and not left.
    inside: usize,
    /// How many of these entries the subscriber knows.
    told: usize,
    entered_at: u64,
    busy: Duration,
}

struct LocalSpan {
    id: Id,
    site: &'static Site,
}

impl Replay {
    /// For a call that is made now, and the level up to which its caller wants to have the worker's
    /// spans and events; nothing if nobody listens.
    pub(crate) fn for_caller() -> Option<(u8, Arc<Self>)> {
        let level = LevelFilter::current().min(STATIC_MAX_LEVEL).into_level()?;
        let dispatch = dispatcher::get_default(Clone::clone);
        if dispatch.is::<NoSubscriber>() {
            return None;
        }
        let player = Player {
            dispatch,
            caller: Span::current(),
            sites: HashMap::new(),
            open: HashMap::new(),
            entered: Vec::new(),
            left_out: 0,
            left_out_by: 0,
        };
        let replay = Self { arrived: Mutex::default(), player: Mutex::new(player) };
        Some((number_of(level), Arc::new(replay)))
    }

    /// Keeps records of a worker until they are played.
    pub(crate) fn push(&self, pid: u32, records: Bytes) {
        lock(&self.arrived).push_back((pid, records));
    }

    /// Gives the subscriber what has arrived. When it returns, all that had arrived before has been
    /// given, whoever did it.
    pub(crate) fn play(&self) {
        let mut player = lock(&self.player);
        let dispatch = player.dispatch.clone();
        loop {
            let Some((pid, records)) = lock(&self.arrived).pop_front() else { return };
            dispatcher::with_default(&dispatch, || player.play(pid, &records));
        }
    }
}

impl Drop for Replay {
    fn drop(&mut self) {
        let player = ignore_poison(self.player.get_mut());
        let dispatch = player.dispatch.clone();
        dispatcher::with_default(&dispatch, || player.close_all());
    }
}

impl fmt::Debug for Replay {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Replay")
    }
}

impl Player {
    fn play(&mut self, pid: u32, records: &[u8]) {
        // A thread's spans are its own: none stays entered here, as the next records may be
        // replayed by another thread.
        let caller = self.caller.id().filter(|id| self.dispatch.current_span().id() != Some(id));
        caller.iter().for_each(|id| self.dispatch.enter(id));
        for span in &self.entered {
            self.open.get(span).iter().for_each(|open| open.enter(&self.dispatch));
        }
        match trace::records(records) {
            Ok(_) if records.len() > MAX_RECORDS => {
                self.warn(pid, "what the worker recorded is too long to be read", None);
            }
            Ok(records) => records.for_each(|record| self.replay(pid, record)),
            Err(_) => self.warn(pid, "what the worker recorded cannot be read", None),
        }
        for span in self.entered.iter().rev() {
            self.open.get(span).iter().for_each(|open| open.exit(&self.dispatch));
        }
        caller.iter().for_each(|id| self.dispatch.exit(id));
    }

    fn replay(&mut self, pid: u32, record: Record<'_>) {
        match record {
            Record::Site { .. } if self.sites.len() >= MAX_SITES_OF_CALL => self.leave_out(pid),
            Record::Site { number, site } => match Site::of(site) {
                Ok(site) => drop(self.sites.insert(number, site)),
                Err(SiteError::OverLimit) => self.leave_out(pid),
                Err(SiteError::Unreadable) => {}
            },
            Record::Span { span, site, parent, time, values } => {
                self.open_span(pid, span, site, parent, time, &values);
            }
            Record::Values { span, values } => self.with(span, |dispatch, open| {
                let Some(here) = &open.here else { return };
                with_fields(here.site, &values, &[], |fields| {
                    dispatch.record(&here.id, &SpanRecord::new(fields));
                });
            }),
            Record::Follows { span, other } => {
                let Some(LocalSpan { id: other, .. }) =
                    self.open.get(&other).and_then(|open| open.here.as_ref())
                else {
                    return;
                };
                let other = other.clone();
                self.with(span, |dispatch, open| {
                    if let Some(here) = &open.here {
                        dispatch.record_follows_from(&here.id, &other);
                    }
                });
            }
            Record::Enter { span, time } => self.enter(pid, span, time),
            Record::Exit { span, time } => self.exit(span, time),
            Record::Close { span, time } => {
                let Some(open) = self.open.remove(&span) else { return };
                if open.told > 0 {
                    self.entered.retain(|entered| *entered != span);
                    (0..open.told).for_each(|_| open.exit(&self.dispatch));
                }
                open.close(&self.dispatch, Some(time));
            }
            Record::Event { site, parent, time, values } => {
                let Some(site) = self.sites.get(&site) else { return };
                if self.dispatch.enabled(site.known()) && site.known().is_event() {
                    let parent = self.place(parent);
                    let own = [(PID, OwnValue::Number(pid)), (TIME, OwnValue::Time(time))];
                    let is_current = self.is_current(parent.as_ref());
                    with_fields(site, &values, &own, |fields| {
                        self.dispatch.event(&match parent {
                            _ if is_current => Event::new(site.known(), fields),
                            parent => Event::new_child_of(parent, site.known(), fields),
                        });
                    });
                }
            }
            Record::Dropped { count } => {
                self.warn(pid, "the worker recorded more than it could keep", Some(count));
            }
            Record::Unknown => {}
        }
    }

    fn open_span(
        &mut self,
        pid: u32,
        span: u64,
        site: u64,
        parent: Option<u64>,
        time: u64,
        values: &Values<'_>,
    ) {
        let Some(site) = self.sites.get(&site).copied() else { return };
        if self.open.contains_key(&span) || !site.known().is_span() {
            return;
        }
        if self.open.len() >= MAX_OPEN {
            return self.leave_out(pid);
        }
        let around = self.nearest(parent);
        let depth = around.and_then(|span| self.open.get(&span)).map_or(0, |open| open.depth + 1);
        let is_wanted = self.dispatch.enabled(site.known());
        if is_wanted && depth >= MAX_DEPTH {
            self.leave_out(pid);
        }
        let here = (is_wanted && depth < MAX_DEPTH).then(|| {
            let parent = self.place(parent);
            let is_current = self.is_current(parent.as_ref());
            let own = [(PID, OwnValue::Number(pid)), (TIME, OwnValue::Time(time))];
            let id = with_fields(site, values, &own, |fields| {
                let attributes = match parent {
                    _ if is_current => Attributes::new(site.known(), fields),
                    Some(parent) => Attributes::child_of(parent, site.known(), fields),
                    None => Attributes::new_root(site.known(), fields),
                };
                self.dispatch.new_span(&attributes)
            });
            LocalSpan { id, site }
        });
        let (inside, told, entered_at, busy) = (0, 0, 0, Duration::ZERO);
        self.open.insert(span, OpenSpan { here, around, depth, inside, told, entered_at, busy });
    }

    fn enter(&mut self, pid: u32, span: u64, time: u64) {
        let Some(open) = self.open.get_mut(&span) else { return };
        if open.inside == 0 {
            open.entered_at = time;
        }
        if open.inside == 0 && open.busy.is_zero() {
            open.say(&self.dispatch, &[(ENTERED, OwnValue::Time(time))]);
        }
        open.inside += 1;
        if open.here.is_none() {
            return;
        }
        if self.entered.len() >= MAX_ENTERED {
            return self.leave_out(pid);
        }
        open.told += 1;
        open.enter(&self.dispatch);
        self.entered.push(span);
    }

    fn exit(&mut self, span: u64, time: u64) {
        let Some(open) = self.open.get_mut(&span) else { return };
        if open.inside == 0 {
            return;
        }
        open.leave(time);
        // The entries that were left out are the inner ones.
        if open.told > open.inside {
            open.told -= 1;
            open.exit(&self.dispatch);
            if let Some(place) = self.entered.iter().rposition(|entered| *entered == span) {
                self.entered.remove(place);
            }
        }
    }

    /// The span here that stands for one of the worker's, or for the nearest around it.
    fn place(&self, span: Option<u64>) -> Option<Id> {
        let known = self.nearest(span).and_then(|span| self.open.get(&span)?.here.as_ref());
        known.map(|here| here.id.clone()).or_else(|| self.caller.id())
    }

    /// A span if the subscriber knows it, else the nearest around it that the subscriber knows.
    fn nearest(&self, span: Option<u64>) -> Option<u64> {
        let open = self.open.get(&span?)?;
        if open.here.is_some() { span } else { open.around }
    }

    /// Whether this thread is in this span, or in none: a span or event within it needs not be told
    /// where it belongs then, which subscribers with filters know better.
    fn is_current(&self, place: Option<&Id>) -> bool {
        self.dispatch.current_span().id() == place
    }

    fn with(&mut self, span: u64, change: impl FnOnce(&Dispatch, &mut OpenSpan)) {
        if let Some(open) = self.open.get_mut(&span) {
            change(&self.dispatch, open);
        }
    }

    fn leave_out(&mut self, pid: u32) {
        self.left_out += 1;
        self.left_out_by = pid;
    }

    /// Closes all spans, inner ones first, and reports what was left out.
    fn close_all(&mut self) {
        let mut spans: Vec<u64> = self.open.keys().copied().collect();
        spans.sort_unstable();
        for span in spans.into_iter().rev() {
            if let Some(open) = self.open.remove(&span) {
                open.close(&self.dispatch, None);
            }
        }
        if self.left_out > 0 {
            let what = "spans, entries into spans or call sites were over a limit and left out";
            self.caller.in_scope(|| self.warn(self.left_out_by, what, Some(self.left_out)));
        }
    }

    fn warn(&self, pid: u32, what: &str, dropped: Option<u64>) {
        tracing::warn!(worker.pid = pid, dropped, "{what}");
    }
}

impl OpenSpan {
    fn enter(&self, dispatch: &Dispatch) {
        if let Some(here) = &self.here {
            dispatch.enter(&here.id);
        }
    }

    fn exit(&self, dispatch: &Dispatch) {
        if let Some(here) = &self.here {
            dispatch.exit(&here.id);
        }
    }

    fn leave(&mut self, time: u64) {
        self.inside -= 1;
        if self.inside == 0 {
            self.busy += Duration::from_nanos(time.saturating_sub(self.entered_at));
        }
    }

    fn say(&self, dispatch: &Dispatch, own: &[(&'static str, OwnValue)]) {
        let Some(here) = &self.here else { return };
        with_fields(here.site, &Values::default(), own, |fields| {
            dispatch.record(&here.id, &SpanRecord::new(fields));
        });
    }

    fn close(self, dispatch: &Dispatch, time: Option<u64>) {
        if let Some(time) = time {
            let busy = OwnValue::Seconds(self.busy.as_secs_f64());
            self.say(dispatch, &[(CLOSED, OwnValue::Time(time)), (BUSY, busy)]);
        }
        if let Some(here) = self.here {
            dispatch.try_close(here.id);
        }
    }
}

/// A value of a field of ours.
#[derive(Clone, Copy)]
enum OwnValue {
    Number(u32),
    Seconds(f64),
    /// In nanoseconds since 1970.
    Time(u64),
}

/// A value as `tracing` takes it.
enum FieldValue<'a> {
    Plain(Value<'a>),
    Shown(DisplayValue<&'a str>),
    Time(DisplayValue<humantime::Rfc3339Timestamp>),
}

impl FieldValue<'_> {
    fn as_value(&self) -> &dyn tracing::Value {
        match self {
            Self::Plain(Value::Bool(value)) => value,
            Self::Plain(Value::Int(value)) => value,
            Self::Plain(Value::Uint(value)) => value,
            Self::Plain(Value::Float(value)) => value,
            Self::Plain(Value::Str(value) | Value::Shown(value)) => value,
            Self::Shown(value) => value,
            Self::Time(value) => value,
        }
    }
}

impl From<OwnValue> for FieldValue<'_> {
    fn from(own: OwnValue) -> Self {
        match own {
            OwnValue::Number(number) => Self::Plain(Value::Uint(number.into())),
            OwnValue::Seconds(seconds) => Self::Plain(Value::Float(seconds)),
            OwnValue::Time(nanoseconds) => {
                let time = SystemTime::UNIX_EPOCH + Duration::from_nanos(nanoseconds);
                Self::Time(display(humantime::format_rfc3339_micros(time)))
            }
        }
    }
}

/// Gives `then` the values of a worker's fields, and of ours.
fn with_fields<T>(
    site: &'static Site,
    values: &Values<'_>,
    own: &[(&'static str, OwnValue)],
    then: impl FnOnce(&ValueSet<'_>) -> T,
) -> T {
    let fields = site.known().fields();
    let names: Vec<Field> = fields.iter().collect();
    let worker_fields = values.0.iter().filter_map(|&(index, value)| {
        let value = match value {
            Value::Shown(text) => FieldValue::Shown(display(text)),
            plain => FieldValue::Plain(plain),
        };
        Some((names.get(index)?, value))
    });
    let ours = own.iter().filter_map(|&(name, value)| {
        let mut places = names.iter().skip(site.worker_fields());
        Some((places.find(|field| field.name() == name)?, FieldValue::from(value)))
    });
    let held: Vec<(&Field, FieldValue<'_>)> = worker_fields.chain(ours).collect();
    let set: [(&Field, Option<&dyn tracing::Value>); FIELDS] =
        std::array::from_fn(|place| match held.get(place) {
            Some((field, value)) => (*field, Some(value.as_value())),
            None => (&names[0], None),
        });
    then(&fields.value_set(&set))
}

/// A level as the wire has it.
fn number_of(level: Level) -> u8 {
    match level {
        Level::ERROR => 1,
        Level::WARN => 2,
        Level::INFO => 3,
        Level::DEBUG => 4,
        Level::TRACE => 5,
    }
}

#[cfg(test)]
#[path = "replay_tests.rs"]
mod tests;
