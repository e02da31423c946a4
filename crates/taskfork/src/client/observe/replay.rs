//! Replaying what a worker recorded of its spans and events: the subscriber of the call's caller gets
//! them, within the span that made the call.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tracing::level_filters::{LevelFilter, STATIC_MAX_LEVEL};
use tracing::span::{Attributes, Id, Record as SpanRecord};
use tracing::subscriber::NoSubscriber;
use tracing::{Dispatch, Event, Level, Span, dispatcher};

use super::replay_fields::{OwnValue, memory_of, with_fields};
use super::sites::{BUSY, CLOSED, ENTERED, PID, Site, SiteError, TIME};
use crate::sync::{ignore_poison, lock};
use crate::wire::trace::{self, Record, Values};

/// The most open spans of one call.
const MAX_OPEN: usize = 10_000;

/// The most sites that the records of one call name.
const MAX_SITES_OF_CALL: usize = 10_000;

/// The most entries into spans at one time. Each piece of records enters them again, so this bounds
/// the cost of a small piece.
const MAX_ENTERED: usize = 128;

/// The most spans within each other. For each event subscribers visit all ancestors of its span, and
/// `tracing-subscriber` closes parents recursively.
const MAX_DEPTH: usize = 128;

/// The longest piece of records, in bytes.
const MAX_RECORDS: usize = 4 << 20;

/// The most memory that the values of a call's open spans may occupy in a subscriber, in bytes.
/// Subscribers keep them until a span is closed.
const MAX_VALUES: usize = 16 << 20;

/// What a relation to another span occupies in a subscriber, in bytes.
const RELATION: usize = 64;

/// The replay of one call. Dropping it closes the spans that are still open.
pub(crate) struct Replay {
    /// Pieces that have not been replayed, each with the process id of its worker.
    pending: Mutex<VecDeque<(u32, Bytes)>>,
    state: Mutex<State>,
}

struct State {
    dispatch: Dispatch,
    /// The span that made the call.
    caller: Span,
    sites: HashMap<u64, &'static Site>,
    open: HashMap<u64, OpenSpan>,
    /// The spans that the subscriber has entered and not exited, in this order; once for each entry.
    entered: Vec<u64>,
    /// About how many bytes the values of open spans occupy in the subscriber.
    value_bytes: usize,
    /// How many spans, entries, values and sites exceeded a limit.
    omitted: u64,
    /// The worker that sent the last of them.
    omitted_by: u32,
}

/// A span of the worker that has not been closed.
struct OpenSpan {
    /// Its counterpart in this process; `None` if the subscriber does not want it.
    local: Option<LocalSpan>,
    /// The nearest ancestor that has a counterpart.
    known_parent: Option<u64>,
    /// How many ancestors have a counterpart.
    depth: usize,
    /// How often the worker has entered it and not exited.
    entries: usize,
    /// How many of these entries the subscriber knows.
    known_entries: usize,
    /// When the worker entered it last while it had no other entry.
    entered_at: Option<u64>,
    busy: Duration,
    /// Its part of [`State::value_bytes`].
    value_bytes: usize,
}

#[derive(Clone)]
struct LocalSpan {
    id: Id,
    site: &'static Site,
}

impl Replay {
    /// Begins the replay of a call that this thread makes. Also returns the level up to which its
    /// subscriber wants spans and events. `None` if there is no subscriber.
    pub(crate) fn for_caller() -> Option<(u8, Arc<Self>)> {
        let level = LevelFilter::current().min(STATIC_MAX_LEVEL).into_level()?;
        let dispatch = dispatcher::get_default(Clone::clone);
        if dispatch.is::<NoSubscriber>() {
            return None;
        }
        let state = State {
            dispatch,
            caller: Span::current(),
            sites: HashMap::new(),
            open: HashMap::new(),
            entered: Vec::new(),
            value_bytes: 0,
            omitted: 0,
            omitted_by: 0,
        };
        let replay = Self { pending: Mutex::default(), state: Mutex::new(state) };
        Some((level_number(level), Arc::new(replay)))
    }

    /// Keeps records of a worker until [`play`](Self::play) replays them.
    pub(crate) fn push(&self, pid: u32, records: Bytes) {
        lock(&self.pending).push_back((pid, records));
    }

    /// Replays all pending records. Waits for another thread that replays some of them.
    pub(crate) fn play(&self) {
        let mut state = lock(&self.state);
        let dispatch = state.dispatch.clone();
        loop {
            let Some((pid, records)) = lock(&self.pending).pop_front() else { return };
            dispatcher::with_default(&dispatch, || state.play(pid, &records));
        }
    }
}

impl Drop for Replay {
    fn drop(&mut self) {
        let state = ignore_poison(self.state.get_mut());
        let dispatch = state.dispatch.clone();
        dispatcher::with_default(&dispatch, || state.close_all());
    }
}

impl fmt::Debug for Replay {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Replay")
    }
}

impl State {
    fn play(&mut self, pid: u32, records: &[u8]) {
        // Each thread has its own current span, and another thread may replay the next records. So
        // all entries are made again for each piece.
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
            Record::Site { .. } if self.sites.len() >= MAX_SITES_OF_CALL => self.omit(pid),
            Record::Site { number, site } => match Site::of(site) {
                Ok(site) => drop(self.sites.insert(number, site)),
                Err(SiteError::OverLimit) => self.omit(pid),
                Err(SiteError::Unreadable) => {}
            },
            Record::Span { span, site, parent, time, values } => {
                self.open_span(pid, span, site, parent, time, &values);
            }
            Record::Values { span, values } => {
                let Some(LocalSpan { id, site }) = self.local(span) else { return };
                if self.reserve(pid, span, memory_of(site, &values)) {
                    with_fields(site, &values, &[], |fields| {
                        self.dispatch.record(&id, &SpanRecord::new(fields));
                    });
                }
            }
            Record::Follows { span, other } => {
                let (Some(local), Some(other)) = (self.local(span), self.local(other)) else {
                    return;
                };
                if self.reserve(pid, span, RELATION) {
                    self.dispatch.record_follows_from(&local.id, &other.id);
                }
            }
            Record::Enter { span, time } => self.enter(pid, span, time),
            Record::Exit { span, time } => self.exit(span, time),
            Record::Close { span, time } => {
                let Some(open) = self.open.remove(&span) else { return };
                self.value_bytes -= open.value_bytes;
                if open.known_entries > 0 {
                    self.entered.retain(|entered| *entered != span);
                    (0..open.known_entries).for_each(|_| open.exit(&self.dispatch));
                }
                open.close(&self.dispatch, Some(time));
            }
            Record::Event { site, parent, time, values } => {
                let Some(site) = self.sites.get(&site) else { return };
                if self.dispatch.enabled(site.known()) && site.known().is_event() {
                    let parent = self.local_parent(parent);
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
            return self.omit(pid);
        }
        let known_parent = self.nearest_known(parent);
        let depth = known_parent.and_then(|span| self.open.get(&span));
        let depth = depth.map_or(0, |open| open.depth + 1);
        let is_wanted = self.dispatch.enabled(site.known());
        if is_wanted && depth >= MAX_DEPTH {
            self.omit(pid);
        }
        let value_bytes = memory_of(site, values);
        let has_room = self.value_bytes.saturating_add(value_bytes) <= MAX_VALUES;
        let (value_bytes, values) =
            if has_room { (value_bytes, values) } else { (0, &Values::default()) };
        let local = (is_wanted && depth < MAX_DEPTH).then(|| {
            let parent = self.local_parent(parent);
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
        let value_bytes = if local.is_some() { value_bytes } else { 0 };
        self.value_bytes += value_bytes;
        if local.is_some() && !has_room {
            self.omit(pid);
        }
        self.open.insert(
            span,
            OpenSpan {
                local,
                known_parent,
                depth,
                entries: 0,
                known_entries: 0,
                entered_at: None,
                busy: Duration::ZERO,
                value_bytes,
            },
        );
    }

    fn enter(&mut self, pid: u32, span: u64, time: u64) {
        let Some(open) = self.open.get_mut(&span) else { return };
        if open.entered_at.is_none() {
            // Only once, because a subscriber may append each value.
            open.record_own(&self.dispatch, &[(ENTERED, OwnValue::Time(time))]);
        }
        if open.entries == 0 {
            open.entered_at = Some(time);
        }
        open.entries += 1;
        if open.local.is_none() {
            return;
        }
        if self.entered.len() >= MAX_ENTERED {
            return self.omit(pid);
        }
        open.known_entries += 1;
        open.enter(&self.dispatch);
        self.entered.push(span);
    }

    fn exit(&mut self, span: u64, time: u64) {
        let Some(open) = self.open.get_mut(&span) else { return };
        if open.entries == 0 {
            return;
        }
        open.count_exit(time);
        // The omitted entries are the inner ones, so they end first.
        if open.known_entries > open.entries {
            open.known_entries -= 1;
            open.exit(&self.dispatch);
            if let Some(index) = self.entered.iter().rposition(|entered| *entered == span) {
                self.entered.remove(index);
            }
        }
    }

    /// The counterpart of a span of the worker, or of its nearest ancestor that has one, or else the
    /// span that made the call.
    fn local_parent(&self, span: Option<u64>) -> Option<Id> {
        let known = self.nearest_known(span).and_then(|span| self.local(span));
        known.map(|local| local.id).or_else(|| self.caller.id())
    }

    /// The span itself if it has a counterpart, else its nearest ancestor that has one.
    fn nearest_known(&self, span: Option<u64>) -> Option<u64> {
        let open = self.open.get(&span?)?;
        if open.local.is_some() { span } else { open.known_parent }
    }

    /// The counterpart of an open span.
    fn local(&self, span: u64) -> Option<LocalSpan> {
        self.open.get(&span)?.local.clone()
    }

    /// Whether this is the thread's current span. Then a new span or event names no parent: filtered
    /// layers find the next enabled ancestor only of the current span.
    fn is_current(&self, parent: Option<&Id>) -> bool {
        self.dispatch.current_span().id() == parent
    }

    /// Reserves memory for values of an open span and returns true, or counts an omission.
    fn reserve(&mut self, pid: u32, span: u64, bytes: usize) -> bool {
        let total = self.value_bytes.saturating_add(bytes);
        match self.open.get_mut(&span) {
            Some(open) if total <= MAX_VALUES => {
                self.value_bytes = total;
                open.value_bytes += bytes;
                true
            }
            _ => {
                self.omit(pid);
                false
            }
        }
    }

    /// Counts something that exceeded a limit.
    fn omit(&mut self, pid: u32) {
        self.omitted += 1;
        self.omitted_by = pid;
    }

    /// Closes all spans, inner ones first, and reports how much was omitted.
    fn close_all(&mut self) {
        let mut spans: Vec<u64> = self.open.keys().copied().collect();
        spans.sort_unstable();
        for span in spans.into_iter().rev() {
            if let Some(open) = self.open.remove(&span) {
                open.close(&self.dispatch, None);
            }
        }
        if self.omitted > 0 {
            let what = "spans, their values, entries into spans or call sites exceeded a limit and \
                        were omitted";
            self.caller.in_scope(|| self.warn(self.omitted_by, what, Some(self.omitted)));
        }
    }

    fn warn(&self, pid: u32, what: &str, dropped: Option<u64>) {
        tracing::warn!(worker.pid = pid, dropped, "{what}");
    }
}

impl OpenSpan {
    fn enter(&self, dispatch: &Dispatch) {
        if let Some(local) = &self.local {
            dispatch.enter(&local.id);
        }
    }

    fn exit(&self, dispatch: &Dispatch) {
        if let Some(local) = &self.local {
            dispatch.exit(&local.id);
        }
    }

    fn count_exit(&mut self, time: u64) {
        self.entries -= 1;
        if let (0, Some(entered_at)) = (self.entries, self.entered_at) {
            let spent = Duration::from_nanos(time.saturating_sub(entered_at));
            self.busy = self.busy.saturating_add(spent);
        }
    }

    /// Records values of fields that the client adds.
    fn record_own(&self, dispatch: &Dispatch, own: &[(&'static str, OwnValue)]) {
        let Some(local) = &self.local else { return };
        with_fields(local.site, &Values::default(), own, |fields| {
            dispatch.record(&local.id, &SpanRecord::new(fields));
        });
    }

    fn close(self, dispatch: &Dispatch, time: Option<u64>) {
        if let Some(time) = time {
            let busy = OwnValue::Seconds(self.busy.as_secs_f64());
            self.record_own(dispatch, &[(CLOSED, OwnValue::Time(time)), (BUSY, busy)]);
        }
        if let Some(local) = self.local {
            dispatch.try_close(local.id);
        }
    }
}

/// The number of a level on the wire.
fn level_number(level: Level) -> u8 {
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
