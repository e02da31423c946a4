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

use super::core::lock;
use super::sites::{BUSY, CLOSED, ENTERED, PID, Site, TIME};
use crate::wire::trace::{self, MAX_FIELDS, Record, Value, Values};

/// The fields of a worker's span or event, and those of ours.
const FIELDS: usize = MAX_FIELDS + 5;

/// So many spans of one call can be open.
const MAX_OPEN: usize = 10_000;

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
    open: HashMap<u64, Open>,
}

/// A span of the worker's that has not been closed.
struct Open {
    /// What stands for it here: nothing if nobody wants it.
    here: Option<Here>,
    parent: Option<u64>,
    /// How often it has been entered and not left.
    inside: usize,
    entered_at: u64,
    busy: Duration,
}

struct Here {
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
        let player = self.player.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
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
        for span in self.entered() {
            self.with(span, |dispatch, open| (0..open.inside).for_each(|_| open.enter(dispatch)));
        }
        match trace::records(records) {
            Ok(_) if records.len() > MAX_RECORDS => {
                self.warn(pid, "what the worker recorded is too long to be read", None);
            }
            Ok(records) => records.for_each(|record| self.replay(pid, record)),
            Err(_) => self.warn(pid, "what the worker recorded cannot be read", None),
        }
        for span in self.entered().into_iter().rev() {
            self.with(span, |dispatch, open| (0..open.inside).for_each(|_| open.exit(dispatch)));
        }
        caller.iter().for_each(|id| self.dispatch.exit(id));
    }

    fn replay(&mut self, pid: u32, record: Record<'_>) {
        match record {
            Record::Site { number, site } => {
                self.sites.extend(Site::of(site).map(|site| (number, site)));
            }
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
                let Some(Here { id: other, .. }) =
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
            Record::Enter { span, time } => self.with(span, |dispatch, open| {
                if open.inside == 0 {
                    open.entered_at = time;
                }
                if open.inside == 0 && open.busy.is_zero() {
                    open.say(dispatch, &[(ENTERED, Own::Time(time))]);
                }
                open.inside += 1;
                open.enter(dispatch);
            }),
            Record::Exit { span, time } => self.with(span, |dispatch, open| {
                if open.inside > 0 {
                    open.leave(time);
                    open.exit(dispatch);
                }
            }),
            Record::Close { span, time } => {
                let Some(open) = self.open.remove(&span) else { return };
                for _ in 0..open.inside {
                    open.exit(&self.dispatch);
                }
                open.close(&self.dispatch, Some(time));
            }
            Record::Event { site, parent, time, values } => {
                let Some(site) = self.sites.get(&site) else { return };
                if self.dispatch.enabled(site.known()) && site.known().is_event() {
                    let parent = self.place(parent);
                    let own = [(PID, Own::Number(pid)), (TIME, Own::Time(time))];
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
        if self.open.len() >= MAX_OPEN || self.open.contains_key(&span) || !site.known().is_span() {
            return;
        }
        let here = self.dispatch.enabled(site.known()).then(|| {
            let parent = self.place(parent);
            let is_current = self.is_current(parent.as_ref());
            let own = [(PID, Own::Number(pid)), (TIME, Own::Time(time))];
            let id = with_fields(site, values, &own, |fields| {
                let attributes = match parent {
                    _ if is_current => Attributes::new(site.known(), fields),
                    Some(parent) => Attributes::child_of(parent, site.known(), fields),
                    None => Attributes::new_root(site.known(), fields),
                };
                self.dispatch.new_span(&attributes)
            });
            Here { id, site }
        });
        let busy = Duration::ZERO;
        self.open.insert(span, Open { here, parent, inside: 0, entered_at: 0, busy });
    }

    /// The span here that stands for one of the worker's, or for the nearest around it.
    fn place(&self, mut span: Option<u64>) -> Option<Id> {
        // As many steps as there are spans, as a peer may have put them into a ring.
        for _ in 0..=self.open.len() {
            let Some(open) = span.and_then(|span| self.open.get(&span)) else { break };
            if let Some(here) = &open.here {
                return Some(here.id.clone());
            }
            span = open.parent;
        }
        self.caller.id()
    }

    /// Whether this thread is in this span, or in none: a span or event within it needs not be told
    /// where it belongs then, which subscribers with filters know better.
    fn is_current(&self, place: Option<&Id>) -> bool {
        self.dispatch.current_span().id() == place
    }

    fn with(&mut self, span: u64, change: impl FnOnce(&Dispatch, &mut Open)) {
        if let Some(open) = self.open.get_mut(&span) {
            change(&self.dispatch, open);
        }
    }

    fn entered(&self) -> Vec<u64> {
        self.sorted(|open| open.inside > 0)
    }

    /// The numbers of some of the open spans, outer ones first.
    fn sorted(&self, wanted: impl Fn(&Open) -> bool) -> Vec<u64> {
        let wanted = self.open.iter().filter(|(_, open)| wanted(open));
        let mut spans: Vec<u64> = wanted.map(|(span, _)| *span).collect();
        spans.sort_unstable();
        spans
    }

    fn close_all(&mut self) {
        for span in self.sorted(|_| true).into_iter().rev() {
            if let Some(open) = self.open.remove(&span) {
                open.close(&self.dispatch, None);
            }
        }
    }

    fn warn(&self, pid: u32, what: &str, dropped: Option<u64>) {
        tracing::warn!(worker.pid = pid, dropped, "{what}");
    }
}

impl Open {
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

    fn say(&self, dispatch: &Dispatch, own: &[(&'static str, Own)]) {
        let Some(here) = &self.here else { return };
        with_fields(here.site, &Values::default(), own, |fields| {
            dispatch.record(&here.id, &SpanRecord::new(fields));
        });
    }

    fn close(self, dispatch: &Dispatch, time: Option<u64>) {
        if let Some(time) = time {
            let busy = Own::Seconds(self.busy.as_secs_f64());
            self.say(dispatch, &[(CLOSED, Own::Time(time)), (BUSY, busy)]);
        }
        if let Some(here) = self.here {
            dispatch.try_close(here.id);
        }
    }
}

/// A value of a field of ours.
#[derive(Clone, Copy)]
enum Own {
    Number(u32),
    Seconds(f64),
    /// In nanoseconds since 1970.
    Time(u64),
}

/// A value as `tracing` takes it.
enum Held<'a> {
    Plain(Value<'a>),
    Shown(DisplayValue<&'a str>),
    Time(DisplayValue<humantime::Rfc3339Timestamp>),
}

impl Held<'_> {
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

impl From<Own> for Held<'_> {
    fn from(own: Own) -> Self {
        match own {
            Own::Number(number) => Self::Plain(Value::Uint(number.into())),
            Own::Seconds(seconds) => Self::Plain(Value::Float(seconds)),
            Own::Time(nanoseconds) => {
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
    own: &[(&'static str, Own)],
    then: impl FnOnce(&ValueSet<'_>) -> T,
) -> T {
    let fields = site.known().fields();
    let names: Vec<Field> = fields.iter().collect();
    let theirs = values.0.iter().filter_map(|&(index, value)| {
        let value = match value {
            Value::Shown(text) => Held::Shown(display(text)),
            plain => Held::Plain(plain),
        };
        Some((names.get(index)?, value))
    });
    let ours = own.iter().filter_map(|&(name, value)| {
        let mut places = names.iter().skip(site.theirs());
        Some((places.find(|field| field.name() == name)?, Held::from(value)))
    });
    let held: Vec<(&Field, Held<'_>)> = theirs.chain(ours).collect();
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
