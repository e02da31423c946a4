//! The log of a request while the request runs.

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

/// The default of [`Builder::max_bytes`].
const DEFAULT_MAX_BYTES: usize = 16 << 20;

/// The log of one request. Clones are cheap handles to the same message, and can be sent to other threads. When the last
/// handle is dropped, the message is finished and passed to the callback.
///
/// Times come from a monotonic clock, so setting the system's clock does not affect them.
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
    /// The message without its timers.
    message: Message,
    /// How many lines existed at the last merge. They are sorted when the message is read.
    to_sort: usize,
    /// The timers by number, in the order in which they were started or merged.
    timers: BTreeMap<u64, TimerRecord>,
    next_timer: u64,
    bytes: usize,
    /// How many lines, timers and values were omitted.
    left_out: u64,
    callback: Option<Box<dyn FnOnce(Message) + Send>>,
    /// Further lines, timers and values are ignored.
    closed: bool,
}

/// Options of a [`Log`], made by [`Log::builder`].
///
/// ```
/// use log_defer::{Level, Log};
/// let log = Log::builder().verbosity(Level::WARN).max_bytes(64 << 10).start(|message| {
///     assert_eq!(message.logs.len(), 1);
/// });
/// log.info("left out");
/// log.warn("kept");
/// ```
#[derive(Debug, Clone)]
#[must_use]
pub struct Builder {
    verbosity: Level,
    max_bytes: usize,
}

impl Builder {
    /// The least important level that is kept. Defaults to [`Level::ALL`].
    ///
    /// ```
    /// use log_defer::{Level, Log};
    /// let log = Log::builder().verbosity(Level::WARN).start(drop);
    /// assert!(!log.is_enabled(Level::INFO));
    /// ```
    pub fn verbosity(mut self, verbosity: Level) -> Self {
        self.verbosity = verbosity;
        self
    }

    /// Approximately how many bytes of memory the message may occupy. Defaults to 16 MiB.
    ///
    /// Lines, timers and values beyond that are omitted, and a last line says how many. A short line occupies about
    /// 200 bytes, and a JSON object at least about 650 bytes.
    ///
    /// ```
    /// use log_defer::Log;
    /// let log = Log::builder().max_bytes(1000).start(|message| assert!(message.logs.len() < 100));
    /// (0..1000).for_each(|number| log.info(format!("line {number}")));
    /// ```
    pub fn max_bytes(mut self, max_bytes: usize) -> Self {
        self.max_bytes = max_bytes;
        self
    }

    /// Begins a message. `callback` gets it when it is finished; see [`Log::new`].
    ///
    /// ```
    /// use log_defer::Log;
    /// let log = Log::builder().start(|message| println!("{} lines", message.logs.len()));
    /// log.info("begun");
    /// ```
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
    /// Begins a message with the default options. `callback` gets the finished message, once, in the thread that drops
    /// the last handle. A panic of the callback is caught and ignored.
    ///
    /// ```
    /// let log = log_defer::Log::new(|message| println!("{} lines", message.logs.len()));
    /// let clone = log.clone();
    /// drop(log);
    /// clone.info("the message is still open");
    /// ```
    pub fn new(callback: impl FnOnce(Message) + Send + 'static) -> Self {
        Self::builder().start(callback)
    }

    /// Returns a builder for a message with other options.
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
    ///
    /// ```
    /// # let log = log_defer::Log::new(drop);
    /// log.error("the disk is full");
    /// ```
    pub fn error(&self, items: impl Items) {
        self.log(Level::ERROR, items);
    }

    /// Adds a line of [`Level::WARN`].
    ///
    /// ```
    /// # let log = log_defer::Log::new(drop);
    /// log.warn("the cache is cold");
    /// ```
    pub fn warn(&self, items: impl Items) {
        self.log(Level::WARN, items);
    }

    /// Adds a line of [`Level::INFO`].
    ///
    /// ```
    /// # let log = log_defer::Log::new(drop);
    /// log.info("request received");
    /// ```
    pub fn info(&self, items: impl Items) {
        self.log(Level::INFO, items);
    }

    /// Adds a line of [`Level::DEBUG`].
    ///
    /// ```
    /// # let log = log_defer::Log::new(drop);
    /// // The closure is called only if the verbosity includes the line.
    /// log.debug(|| format!("the cache has {} entries", 3));
    /// ```
    pub fn debug(&self, items: impl Items) {
        self.log(Level::DEBUG, items);
    }

    /// Adds a line of any level. If the verbosity excludes the line, closures are not called and values are not
    /// serialized.
    ///
    /// ```
    /// use log_defer::Level;
    /// # let log = log_defer::Log::new(drop);
    /// log.log(Level::new(25), ("between info and warn", 7));
    /// ```
    pub fn log(&self, level: Level, items: impl Items) {
        if !self.is_enabled(level) {
            return;
        }
        let items = items.into_items();
        let mut state = self.0.lock();
        // Read under the lock, so that lines of several threads are in the order of their times.
        let time = self.0.now();
        if self.0.reserve(&mut state, bounds::size_of_entry(&items)) {
            state.message.logs.push(Entry { time, level, items });
        }
    }

    /// Whether the verbosity includes lines of this level.
    ///
    /// ```
    /// use log_defer::{Level, Log};
    /// let log = Log::builder().verbosity(Level::INFO).start(drop);
    /// assert!(log.is_enabled(Level::WARN) && !log.is_enabled(Level::DEBUG));
    /// ```
    pub fn is_enabled(&self, level: Level) -> bool {
        level <= self.0.verbosity || self.0.verbosity == Level::ALL
    }

    /// The verbosity of the log.
    ///
    /// ```
    /// use log_defer::{Level, Log};
    /// assert_eq!(Log::new(drop).verbosity(), Level::ALL);
    /// ```
    pub fn verbosity(&self) -> Level {
        self.0.verbosity
    }

    /// Starts a timer, which stops when it is dropped. A timer does not keep the message open: if it still runs when the
    /// message is finished, it ends then. A timer takes at least a microsecond.
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

    /// Starts a timer at an earlier instant, at the earliest at the message's start.
    ///
    /// ```
    /// # let log = log_defer::Log::new(drop);
    /// let asked_for = std::time::Instant::now();
    /// // ... later it turns out that the time matters ...
    /// log.timer_since("waiting", asked_for).stop();
    /// ```
    pub fn timer_since(&self, name: impl Into<String>, since: Instant) -> Timer {
        self.timer_at(name.into(), micros(since.saturating_duration_since(self.0.started)))
    }

    fn timer_at(&self, name: String, from: f64) -> Timer {
        let mut state = self.0.lock();
        if !self.0.reserve(&mut state, Some(bounds::size_of_timer(&name))) {
            return Timer { log: Weak::new(), number: 0 };
        }
        let number = state.add_timer(TimerRecord { name, from, to: None });
        Timer { log: Arc::downgrade(&self.0), number }
    }

    /// Sets a named value, and replaces an earlier one of this name. A value that JSON cannot express is replaced by a
    /// text that says why.
    ///
    /// ```
    /// # let log = log_defer::Log::new(drop);
    /// log.data("user", 17);
    /// log.data("query", serde_json::json!({ "rows": 3 }));
    /// ```
    pub fn data(&self, name: impl Into<String>, value: impl Serialize) {
        let name = name.into();
        let value = to_value(&value);
        let mut state = self.0.lock();
        if self.0.reserve_data(&mut state, &name, &value) {
            state.message.data.insert(name, value);
        }
    }

    /// Adds the content of another message; see [`Message::merge`]. Lines that the verbosity excludes, and parts that
    /// exceed the limit of memory, are omitted.
    ///
    /// ```
    /// use log_defer::Log;
    /// let log = Log::new(|message| assert_eq!(message.logs.len(), 2));
    /// let part = Log::new(drop);
    /// part.info("of another process");
    /// log.info("our own");
    /// log.merge(part.take());
    /// ```
    pub fn merge(&self, mut other: Message) {
        let mut state = self.0.lock();
        other.logs.retain(|entry| {
            self.is_enabled(entry.level)
                && self.0.reserve(&mut state, bounds::size_of_entry(&entry.items))
        });
        other
            .timers
            .retain(|timer| self.0.reserve(&mut state, Some(bounds::size_of_timer(&timer.name))));
        other.data.retain(|name, value| self.0.reserve_data(&mut state, name, value));
        if state.closed {
            return;
        }
        // The lines are sorted once, when the message is read.
        state.message.append(other);
        state.to_sort = state.message.logs.len();
        for timer in std::mem::take(&mut state.message.timers) {
            state.add_timer(timer);
        }
    }

    /// A copy of the message so far, without an end.
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
        message.logs.extend(self.0.omission_notice(&mut state, false));
        message.sort_timers();
        message
    }

    /// Removes and returns the message so far, for sending and merging elsewhere. Running timers continue; a later call
    /// returns them when they have stopped.
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
        message.logs.extend(self.0.omission_notice(&mut state, true));
        let all = std::mem::take(&mut state.timers);
        let (stopped, running) = all.into_iter().partition(|(_, timer)| timer.to.is_some());
        state.timers = running;
        let stopped: BTreeMap<u64, TimerRecord> = stopped;
        message.timers.extend(stopped.into_values());
        state.bytes = state.timers.values().map(|timer| bounds::size_of_timer(&timer.name)).sum();
        message.sort_timers();
        message
    }

    /// Finishes the message now and returns it; the callback is not called. Later lines, timers and values are ignored.
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

    /// Seconds since the start, with a precision of microseconds.
    fn now(&self) -> f64 {
        micros(self.started.elapsed())
    }

    /// Reserves `size` bytes and returns true, or counts an omitted part. Values that nest too deeply have no size.
    fn reserve(&self, state: &mut State, size: Option<usize>) -> bool {
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

    /// As `reserve`, for a named value; releases the bytes of the value that it replaces.
    fn reserve_data(&self, state: &mut State, name: &String, value: &Value) -> bool {
        let replaced = state.message.data.get(name);
        let replaced = replaced.and_then(|old| bounds::size_of_data(name, old)).unwrap_or(0);
        let before = state.bytes;
        state.bytes = before.saturating_sub(replaced);
        let is_reserved = self.reserve(state, bounds::size_of_data(name, value));
        if !is_reserved {
            state.bytes = before;
        }
        is_reserved
    }

    /// A line with the number of omitted parts, if there are any. `reset` sets that number to 0.
    fn omission_notice(&self, state: &mut State, reset: bool) -> Option<Entry> {
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
        if reset {
            state.left_out = 0;
        }
        Some(Entry { time: self.now(), level: Level::WARN, items })
    }

    fn finish(&self, state: &mut State) -> Message {
        let mut message = state.take_message();
        message.logs.extend(self.omission_notice(state, true));
        message.timers.extend(std::mem::take(&mut state.timers).into_values());
        let now = self.now();
        // Timers of a worker whose clock is ahead do not count.
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
    /// Adds a timer after all others; returns its number.
    fn add_timer(&mut self, timer: TimerRecord) -> u64 {
        let number = self.next_timer;
        self.next_timer += 1;
        self.timers.insert(number, timer);
        number
    }

    /// Sorts the lines that existed at the last merge.
    fn sort_lines(&mut self) {
        let to_sort = std::mem::take(&mut self.to_sort);
        if let Some(lines) = self.message.logs.get_mut(..to_sort) {
            sort_lines(lines);
        }
    }

    /// Removes and returns everything but the timers.
    fn take_message(&mut self) -> Message {
        self.sort_lines();
        let start = self.message.start;
        std::mem::replace(&mut self.message, Message { start, ..Message::default() })
    }
}

/// The earliest end of a timer that began at `from`: a microsecond later. Viewers divide by the duration.
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
            // The drop may be part of a panic; a second panic would abort the process.
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

/// A running timer of a [`Log`], made by [`Log::timer`]. It stops when it is dropped.
///
/// ```
/// # let log = log_defer::Log::new(drop);
/// let timer = log.timer("query");
/// // ... work ...
/// timer.stop();
/// ```
#[must_use = "a timer stops when it is dropped"]
pub struct Timer {
    log: Weak<Inner>,
    number: u64,
}

impl Timer {
    /// Stops the timer, as dropping it does.
    ///
    /// ```
    /// # let log = log_defer::Log::new(drop);
    /// log.timer("setup").stop();
    /// ```
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
