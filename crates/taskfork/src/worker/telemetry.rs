//! What a call records for its caller. It is sent in front of the answer. While the call runs, a thread
//! sends it, so that it arrives even if the worker is killed.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

use log_defer::{Level, Log, Message};
use rustix::io::retry_on_intr;
use rustix::net::{SendFlags, send};

use super::log_frames;
use super::records::Records;
use super::scoreboard::WorkerSlot;
use crate::progress::Progress;
use crate::wire::frame::{self, ATOMIC_WRITE, HEADER_LEN};
use crate::wire::native;
use crate::{sync, sys};

/// How often the thread sends what the call has recorded.
pub(super) const INTERVAL: Duration = Duration::from_millis(50);

/// All statics that each worker writes to are in one section, so that few pages are copied.
#[expect(unsafe_code, reason = "the section is plain data, and nothing runs because of its name")]
#[unsafe(link_section = "taskfork_worker")]
static RECORDER: Mutex<Recorder> = Mutex::new(Recorder {
    state: RecorderState::Inactive,
    calls: 0,
    log: None,
    earlier: None,
    records: Records::new(),
    progress: None,
    out: None,
    slot: None,
});
/// Notified when there is something to send.
static CHANGED: Condvar = Condvar::new();
/// Held while the thread sends. It is locked before the recorder.
static SENDING: Mutex<()> = Mutex::new(());

/// How many bytes the thread has sent since [`take_sent_bytes`].
static SENT_BYTES: AtomicUsize = AtomicUsize::new(0);

/// Returns how many bytes the thread has sent since the last call of this function.
pub(super) fn take_sent_bytes() -> usize {
    match SENT_BYTES.load(Ordering::Relaxed) {
        0 => 0,
        _ => SENT_BYTES.swap(0, Ordering::Relaxed),
    }
}

pub(super) struct Recorder {
    pub(super) state: RecorderState,
    /// How many calls have begun or ended.
    pub(super) calls: u64,
    /// The log of the current call, or the log between two calls.
    pub(super) log: Option<Log>,
    /// What was logged before the current call.
    earlier: Option<Message>,
    /// Spans and events of the current call.
    pub(super) records: Records,
    /// How far the current call has got, until the thread has sent it.
    progress: Option<Progress>,
    /// The connection, until the thread takes it.
    out: Option<BorrowedFd<'static>>,
    /// Where the server sees how far the current call has got.
    slot: Option<WorkerSlot>,
}

#[derive(Clone, Copy)]
pub(super) enum RecorderState {
    /// This process is not a worker.
    Inactive,
    /// Between calls.
    BetweenCalls,
    InCall(RequestedTelemetry),
}

/// What the caller has requested of a call's records.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct RequestedTelemetry {
    /// Log lines up to this level.
    pub(super) log: Option<Level>,
    /// Spans and events up to this level: 1 error, 5 trace.
    #[cfg_attr(not(feature = "spans"), expect(dead_code, reason = "there are no spans"))]
    pub(super) trace: Option<u8>,
    /// Whether spans and events include their source files and lines.
    #[cfg_attr(not(feature = "spans"), expect(dead_code, reason = "there are no spans"))]
    pub(super) places: bool,
}

/// What a call has recorded and the thread has not sent.
#[derive(Default)]
pub(super) struct Telemetry {
    messages: Vec<Message>,
    records: Records,
}

impl Recorder {
    /// Wakes the thread, which then sends the current call's records soon. The first use starts it.
    pub(super) fn schedule_send(&mut self) {
        if let RecorderState::InCall(_) = self.state {
            if let Some(out) = self.out.take() {
                // Without the thread, everything is sent with the answer.
                let _ = sys::spawn_without_signals("taskfork-notes", move || send_regularly(out));
            }
            CHANGED.notify_one();
        }
    }

    fn needs_sending(&self) -> bool {
        let RecorderState::InCall(requested) = self.state else { return false };
        requested.log.is_some() && self.log.is_some()
            || !self.records.is_empty()
            || self.progress.is_some()
    }
}

/// Starts recording for the first call, before the worker has a client.
pub(super) fn record_for_first_call() {
    lock().state = RecorderState::BetweenCalls;
}

/// Starts recording. The thread sends to `out`.
#[taskfork_macros::startup_code]
pub(super) fn start(out: BorrowedFd<'static>) {
    let mut recorder = lock();
    recorder.state = RecorderState::BetweenCalls;
    recorder.out = Some(out);
}

/// Lets the thread send to `out`, if it is needed.
pub(super) fn set_output(out: BorrowedFd<'static>) {
    lock().out = Some(out);
}

/// Shows the server which program the worker runs.
pub(super) fn set_program(pid: u32) {
    if let Some(slot) = &lock().slot {
        slot.set_program(pid);
    }
}

/// Sets where the server sees how far a call has got.
#[taskfork_macros::startup_code]
pub(super) fn set_slot(slot: WorkerSlot) {
    lock().slot = Some(slot);
}

/// Records how far the current call has got.
pub(super) fn record_progress(progress: Progress) {
    let mut recorder = lock();
    let RecorderState::InCall(_) = recorder.state else { return };
    if let Some(slot) = &recorder.slot {
        slot.set_progress(&progress);
    }
    recorder.progress = Some(progress);
    recorder.schedule_send();
}

/// Begins the records of a call.
#[taskfork_macros::startup_code]
pub(super) fn begin_call(requested: RequestedTelemetry) {
    let mut recorder = lock();
    recorder.state = RecorderState::InCall(requested);
    recorder.calls += 1;
    let Some(log) = recorder.log.take() else { return };
    recorder.earlier = requested.log.map(|requested| {
        let mut message = log.close();
        message.logs.retain(|entry| entry.level <= requested);
        message
    });
}

/// The log level that the current call's caller has requested.
pub(super) fn requested_log_level() -> Option<Level> {
    match lock().state {
        RecorderState::InCall(requested) => requested.log,
        _ => None,
    }
}

/// Ends the records of a call. Returns those that have not been sent.
#[taskfork_macros::startup_code]
pub(super) fn end_call() -> Telemetry {
    // This waits until the thread has sent its frames, which must precede the answer.
    let _sending = lock_sending();
    let mut recorder = lock();
    let RecorderState::InCall(requested) = recorder.state else { return Telemetry::default() };
    recorder.state = RecorderState::BetweenCalls;
    recorder.calls += 1;
    // The answer says that all is done.
    recorder.progress = None;
    let earlier = recorder.earlier.take();
    let log = recorder.log.take().filter(|_| requested.log.is_some()).map(|log| log.close());
    // A loop, because the code of `collect` is not among that of a worker's start.
    let mut messages = Vec::new();
    for log in earlier.into_iter().chain(log) {
        if !log_frames::is_empty(&log) {
            messages.push(log);
        }
    }
    Telemetry { messages, records: recorder.records.take() }
}

impl Telemetry {
    /// Merges the log into one message. `None` if it is empty.
    pub(super) fn into_log(self) -> Option<Message> {
        self.messages.into_iter().reduce(|mut all, message| {
            all.merge(message);
            all
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty() && self.records.is_empty()
    }

    /// Appends frames with these records.
    pub(super) fn write(mut self, out: &mut Vec<u8>, limit: usize) {
        log_frames::write(out, limit, self.messages);
        self.records.frames(limit).iter().for_each(|frame| out.extend_from_slice(frame));
    }
}

fn send_regularly(out: BorrowedFd<'_>) {
    loop {
        let waited = CHANGED.wait_while(lock(), |recorder| !recorder.needs_sending());
        let recorder = sync::ignore_poison(waited);
        let call = recorder.calls;
        let waited = CHANGED.wait_timeout_while(recorder, INTERVAL, |now| now.calls == call);
        drop(waited);
        if sys::is_forked() {
            // A process that user code has forked must not send on the worker's connection.
            return;
        }
        let _sending = lock_sending();
        let mut recorder = lock();
        if recorder.calls != call {
            continue;
        }
        let log = recorder.log.clone();
        let mut frames = recorder.records.frames(ATOMIC_WRITE - HEADER_LEN);
        if let Some(progress) = recorder.progress.take() {
            let mut frame = Vec::new();
            frame::put(&mut frame, |out| native::put_progress(out, &progress));
            frames.push(frame);
        }
        drop(recorder);
        if let Some(log) = log {
            let kept = log_frames::split(log.take(), &mut frames);
            kept.into_iter().for_each(|message| log.merge(message));
        }
        for frame in frames {
            // If this fails, sending the answer fails as well.
            let sent = retry_on_intr(|| send(out, &frame, SendFlags::NOSIGNAL)).unwrap_or(0);
            SENT_BYTES.fetch_add(sent, Ordering::Relaxed);
        }
    }
}

pub(super) fn lock() -> MutexGuard<'static, Recorder> {
    sync::lock(&RECORDER)
}

/// Keeps the thread from sending meanwhile.
pub(super) fn lock_sending() -> MutexGuard<'static, ()> {
    sync::lock(&SENDING)
}
