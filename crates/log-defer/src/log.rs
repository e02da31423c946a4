//! The handle that logs are written through while a request runs.

use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde_json::Value;

use crate::bounds;
use crate::items::{Items, to_value};
use crate::level::Level;
use crate::message::{Entry, Message, TimerRecord, sort_lines};

const DEFAULT_MAX_BYTES: usize = 16 << 20;

/// What is logged for one request. Clones are handles to the same message, cheap to make and to send
/// to other threads; when the last one is dropped the message is finished and handed to the callback.
///
/// Times are taken from a clock that only goes forward, so a clock that is set back meanwhile gives
/// no negative times.
///
/// ```
/// use log_defer::Log;
///
/// let log = Log::new(|message| println!("{}", serde_json::json!(message)));
/// log.info("begun");
/// let timer = log.timer("work");
/// // ... work ...
/// drop(timer);
/// log.data("result", 42);
/// ```
#[derive(Clone)]
pub struct Log(Arc<Inner>);

struct Inner {
    verbosity: Level,
    max_bytes: usize,
    started: Instant,
    state: Mutex<State>,
}

struct State {
    /// All but the timers.
    message: Message,
    /// How many of the first lines were there at the last merge. These are sorted when somebody looks.
    to_sort: usize,
    /// Timers by their numbers, in the order in which they were started or merged.
    timers: BTreeMap<u64, TimerRecord>,
    next_timer: u64,
    bytes: usize,
    /// How many lines, timers and values were left out.
    left_out: u64,
    callback: Option<Box<dyn FnOnce(Message) + Send>>,
    /// Nothing is taken any more.
    closed: bool,
}

/// Options of a [`Log`], made by [`Log::builder`].
#[derive(Debug, Clone)]
#[must_use]
pub struct Builder {
    verbosity: Level,
    max_bytes: usize,
}

impl Builder {
    /// Lines of this level and all more important ones are kept; all lines ([`Level::ALL`]) unless said
    /// otherwise.
    pub fn verbosity(mut self, verbosity: Level) -> Self {
        self.verbosity = verbosity;
        self
    }

    /// About how many bytes of memory the message may occupy; 16 MiB unless said otherwise. What goes
    /// beyond is left out, and a last line says how much. A short line occupies about 200 bytes, an
    /// object about 650 bytes or more.
    pub fn max_bytes(mut self, max_bytes: usize) -> Self {
        self.max_bytes = max_bytes;
        self
    }

    /// Begins a message, which `callback` will get. See [`Log::new`].
    pub fn start(self, callback: impl FnOnce(Message) + Send + 'static) -> Log {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let start = since_epoch.as_micros() as f64 / 1e6;
        let state = State {
            message: Message { start, ..Message::default() },
            to_sort: 0,
            timers: BTreeMap::new(),
            next_timer: 0,
            bytes: 0,
            left_out: 0,
            callback: Some(Box::new(callback)),
            closed: false,
        };
        Log(Arc::new(Inner {
            verbosity: self.verbosity,
            max_bytes: self.max_bytes,
            started: Instant::now(),
            state: Mutex::new(state),
        }))
    }
}

impl Log {
    /// Begins a message. `callback` gets it, once, in the thread that drops the last handle; a panic
    /// in it goes no further.
    pub fn new(callback: impl FnOnce(Message) + Send + 'static) -> Self {
        Self::builder().start(callback)
    }

    /// Begins a message with other options than [`new`](Self::new).
    ///
    /// ```
    /// use log_defer::{Level, Log};
    /// let log = Log::builder().verbosity(Level::INFO).max_bytes(1 << 20).start(drop);
    /// log.debug(|| -> String { unreachable!("no debug lines are wanted") });
    /// ```
    pub fn builder() -> Builder {
        Builder { verbosity: Level::ALL, max_bytes: DEFAULT_MAX_BYTES }
    }

    /// Adds a line of [`Level::ERROR`].
    pub fn error(&self, items: impl Items) {
        self.log(Level::ERROR, items);
    }

    /// Adds a line of [`Level::WARN`].
    pub fn warn(&self, items: impl Items) {
        self.log(Level::WARN, items);
    }

    /// Adds a line of [`Level::INFO`].
    pub fn info(&self, items: impl Items) {
        self.log(Level::INFO, items);
    }

    /// Adds a line of [`Level::DEBUG`].
    pub fn debug(&self, items: impl Items) {
        self.log(Level::DEBUG, items);
    }

    /// Adds a line of any level. Items that the verbosity excludes are not made: a closure is not
    /// called, a value not serialised.
    pub fn log(&self, level: Level, items: impl Items) {
        if !self.is_enabled(level) {
            return;
        }
        let items = items.into_items();
        let mut state = self.0.lock();
        // Taken under the lock, so that lines of several threads are in the order of their times.
        let time = self.0.now();
        if self.0.has_room(&mut state, bounds::size_of_entry(&items)) {
            state.message.logs.push(Entry { time, level, items });
        }
    }

    /// Whether a line of this level would be kept.
    pub fn is_enabled(&self, level: Level) -> bool {
        level <= self.0.verbosity || self.0.verbosity == Level::ALL
    }

    /// The verbosity given when it was begun.
    pub fn verbosity(&self) -> Level {
        self.0.verbosity
    }

    /// Starts a timer, which is stopped by its drop. It does not keep the message open: one that
    /// still runs when the message is finished ends with it. A timer takes at least a microsecond.
    ///
    /// ```
    /// # let log = log_defer::Log::new(drop);
    /// let rows = {
    ///     let _timer = log.timer("query");
    ///     vec![1, 2, 3]
    /// };
    /// # assert_eq!(rows.len(), 3);
    /// ```
    pub fn timer(&self, name: impl Into<String>) -> Timer {
        self.timer_at(name.into(), self.0.now())
    }

    /// Starts a timer that counts from an earlier instant, at the earliest from the message's start.
    ///
    /// ```
    /// # let log = log_defer::Log::new(drop);
    /// let asked_for = std::time::Instant::now();
    /// // ... only now it is known that it is worth a timer ...
    /// log.timer_since("waiting", asked_for).stop();
    /// ```
    pub fn timer_since(&self, name: impl Into<String>, since: Instant) -> Timer {
        self.timer_at(name.into(), micros(since.saturating_duration_since(self.0.started)))
    }

    fn timer_at(&self, name: String, from: f64) -> Timer {
        let mut state = self.0.lock();
        if !self.0.has_room(&mut state, Some(bounds::size_of_timer(&name))) {
            return Timer { log: Weak::new(), number: 0 };
        }
        let number = state.add_timer(TimerRecord { name, from, to: None });
        Timer { log: Arc::downgrade(&self.0), number }
    }

    /// Sets a value, in place of one that had this name.
    pub fn data(&self, name: impl Into<String>, value: impl Serialize) {
        let name = name.into();
        let value = to_value(&value);
        let mut state = self.0.lock();
        if self.0.has_room_for_data(&mut state, &name, &value) {
            state.message.data.insert(name, value);
        }
    }

    /// Adds what another message holds: see [`Message::merge`]. Lines that the verbosity excludes are left
    /// out, and so is what exceeds the bound.
    pub fn merge(&self, mut other: Message) {
        let mut state = self.0.lock();
        other.logs.retain(|entry| {
            self.is_enabled(entry.level)
                && self.0.has_room(&mut state, bounds::size_of_entry(&entry.items))
        });
        other
            .timers
            .retain(|timer| self.0.has_room(&mut state, Some(bounds::size_of_timer(&timer.name))));
        other.data.retain(|name, value| self.0.has_room_for_data(&mut state, name, value));
        if state.closed {
            return;
        }
        // Sorted once, when somebody looks.
        state.message.append(other);
        state.to_sort = state.message.logs.len();
        for timer in std::mem::take(&mut state.message.timers) {
            state.add_timer(timer);
        }
    }

    /// What has been gathered so far, without an end, as another process would send it.
    ///
    /// ```
    /// let log = log_defer::Log::new(drop);
    /// log.info("so far");
    /// assert_eq!(log.message().logs.len(), 1);
    /// ```
    pub fn message(&self) -> Message {
        let mut state = self.0.lock();
        state.sort_lines();
        let mut message = state.message.clone();
        message.timers.extend(state.timers.values().cloned());
        message.logs.extend(self.0.note_of_what_was_left_out(&mut state, false));
        message.sort_timers();
        message
    }

    /// Takes out what has been gathered so far, so that it can be sent somewhere and merged there.
    /// Timers that run go on, and are in what is taken after they were stopped.
    ///
    /// ```
    /// let log = log_defer::Log::new(drop);
    /// log.info("so far");
    /// assert_eq!(log.take().logs.len(), 1);
    /// assert_eq!(log.take().logs.len(), 0);
    /// ```
    pub fn take(&self) -> Message {
        let mut state = self.0.lock();
        let mut message = state.take_message();
        message.logs.extend(self.0.note_of_what_was_left_out(&mut state, true));
        let all = std::mem::take(&mut state.timers);
        let (stopped, running) = all.into_iter().partition(|(_, timer)| timer.to.is_some());
        state.timers = running;
        let stopped: BTreeMap<u64, TimerRecord> = stopped;
        message.timers.extend(stopped.into_values());
        state.bytes = state.timers.values().map(|timer| bounds::size_of_timer(&timer.name)).sum();
        message.sort_timers();
        message
    }

    /// Finishes the message now, whatever handles there are, and gives it instead of handing it to
    /// the callback. What is logged afterwards is lost.
    ///
    /// ```
    /// let log = log_defer::Log::new(|_| unreachable!());
    /// let timer = log.timer("work");
    /// let message = log.close();
    /// assert_eq!(message.timers[0].to, message.end);
    /// ```
    pub fn close(&self) -> Message {
        let mut state = self.0.lock();
        state.callback = None;
        state.closed = true;
        self.0.finish(&mut state)
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Seconds since the start, with microseconds.
    fn now(&self) -> f64 {
        micros(self.started.elapsed())
    }

    /// Takes room for so many bytes, or counts what is left out; what is nested too deeply has no
    /// size.
    fn has_room(&self, state: &mut State, size: Option<usize>) -> bool {
        let bytes = size.and_then(|size| state.bytes.checked_add(size));
        match bytes {
            _ if state.closed => false,
            Some(bytes) if bytes <= self.max_bytes => {
                state.bytes = bytes;
                true
            }
            _ => {
                state.left_out += 1;
                false
            }
        }
    }

    /// Takes room for a named value, and gives back the room of the one that it replaces.
    fn has_room_for_data(&self, state: &mut State, name: &String, value: &Value) -> bool {
        let replaced = state.message.data.get(name);
        let replaced = replaced.and_then(|old| bounds::size_of_data(name, old)).unwrap_or(0);
        let before = state.bytes;
        state.bytes = before.saturating_sub(replaced);
        let has_room = self.has_room(state, bounds::size_of_data(name, value));
        if !has_room {
            state.bytes = before;
        }
        has_room
    }

    /// A line that says what was left out since the last one that was `told`.
    fn note_of_what_was_left_out(&self, state: &mut State, told: bool) -> Option<Entry> {
        if state.left_out == 0 {
            return None;
        }
        let note = format!(
            "{} lines, timers or values were left out: a message takes at most {} bytes and {} \
             levels of nesting",
            state.left_out,
            self.max_bytes,
            bounds::MAX_DEPTH
        );
        let items = vec![Value::String(note)];
        if told {
            state.left_out = 0;
        }
        Some(Entry { time: self.now(), level: Level::WARN, items })
    }

    fn finish(&self, state: &mut State) -> Message {
        let mut message = state.take_message();
        message.logs.extend(self.note_of_what_was_left_out(state, true));
        message.timers.extend(std::mem::take(&mut state.timers).into_values());
        let now = self.now();
        // Not those of a worker whose clock is ahead.
        let running = |timer: &&TimerRecord| timer.to.is_none() && timer.from <= now;
        let ends = message.timers.iter().filter(running).map(|timer| after(timer.from));
        let end = ends.fold(now, f64::max);
        for timer in &mut message.timers {
            timer.to = Some(timer.to.unwrap_or(end).max(after(timer.from)));
        }
        message.sort_timers();
        message.end = Some(end);
        message
    }
}

impl State {
    /// Adds a timer behind all others; gives its number.
    fn add_timer(&mut self, timer: TimerRecord) -> u64 {
        let number = self.next_timer;
        self.next_timer += 1;
        self.timers.insert(number, timer);
        number
    }

    /// Sorts the lines that were there at the last merge.
    fn sort_lines(&mut self) {
        let to_sort = std::mem::take(&mut self.to_sort);
        if let Some(lines) = self.message.logs.get_mut(..to_sort) {
            sort_lines(lines);
        }
    }

    /// Takes out all but the timers.
    fn take_message(&mut self) -> Message {
        self.sort_lines();
        let start = self.message.start;
        std::mem::replace(&mut self.message, Message { start, ..Message::default() })
    }
}

/// The end of the shortest timer that begins at `from`: a microsecond later. Viewers divide by what
/// timers take.
fn after(from: f64) -> f64 {
    ((from * 1e6).round() + 1.0) / 1e6
}

fn micros(time: Duration) -> f64 {
    time.as_micros() as f64 / 1e6
}

impl Drop for Inner {
    fn drop(&mut self) {
        let mut state = self.lock();
        let callback = state.callback.take();
        let message = self.finish(&mut state);
        drop(state);
        if let Some(callback) = callback {
            // This is a drop, which may itself be part of a panic.
            let _ = catch_unwind(AssertUnwindSafe(|| callback(message)));
        }
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log")
            .field("verbosity", &self.0.verbosity)
            .field("message", &self.0.lock().message)
            .finish_non_exhaustive()
    }
}

/// A running timer of a [`Log`], made by [`Log::timer`] and stopped by its drop.
#[must_use = "a timer is stopped by its drop"]
pub struct Timer {
    log: Weak<Inner>,
    number: u64,
}

impl Timer {
    /// Stops it; the same as dropping it.
    pub fn stop(self) {}
}

impl Drop for Timer {
    fn drop(&mut self) {
        let Some(log) = self.log.upgrade() else { return };
        let now = log.now();
        let mut state = log.lock();
        if let Some(timer) = state.timers.get_mut(&self.number) {
            timer.to = Some(now.max(after(timer.from)));
        }
        drop(state);
    }
}

impl fmt::Debug for Timer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timer").finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "log_tests.rs"]
mod tests;
