//! What a call that runs has to say beside its answer: sent in front of the answer, and meanwhile by
//! a thread of its own, so that a worker's last words survive it.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

use log_defer::{Level, Log, Message};
use rustix::io::retry_on_intr;
use rustix::net::{SendFlags, send};

use super::log_frames;
use super::records::Records;
use crate::wire::frame::{ATOMIC_WRITE, HEADER_LEN};
use crate::{sync, sys};

/// How often a call that runs sends what it has.
const INTERVAL: Duration = Duration::from_millis(50);

/// It lies with the others that each worker writes to, so that one page is copied for all of them.
#[expect(unsafe_code, reason = "the section is plain data, and nothing runs because of its name")]
#[unsafe(link_section = "taskfork_worker")]
static RECORDER: Mutex<Recorder> = Mutex::new(Recorder {
    state: RecorderState::Inactive,
    calls: 0,
    log: None,
    earlier: None,
    records: Records::new(),
    out: None,
});
static CHANGED: Condvar = Condvar::new();
/// Held while something is sent during a call; taken before the recorder is locked.
static SENDING: Mutex<()> = Mutex::new(());

/// How many bytes have been sent during calls since that was last asked.
static SENT_BYTES: AtomicUsize = AtomicUsize::new(0);

/// How many bytes have been sent during calls since this was last asked.
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
    /// What is logged now, in a call or before the next.
    pub(super) log: Option<Log>,
    /// What was logged before the call.
    earlier: Option<Message>,
    /// Spans and events of the call that runs.
    pub(super) records: Records,
    /// Where to send what a call has while it runs, until the thread that does it has taken it.
    out: Option<BorrowedFd<'static>>,
}

#[derive(Clone, Copy)]
pub(super) enum RecorderState {
    /// This process is no worker.
    Inactive,
    /// Between calls.
    BetweenCalls,
    InCall(RequestedTelemetry),
}

/// What a caller wants to have of what its call records.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct RequestedTelemetry {
    /// Lines up to this level.
    pub(super) log: Option<Level>,
    /// Spans and events up to this level: 1 error, 5 trace.
    #[cfg_attr(not(feature = "spans"), expect(dead_code, reason = "there are no spans"))]
    pub(super) trace: Option<u8>,
    /// The source files and lines of these.
    #[cfg_attr(not(feature = "spans"), expect(dead_code, reason = "there are no spans"))]
    pub(super) places: bool,
}

/// What a call has to say when it ends.
#[derive(Default)]
pub(super) struct Telemetry {
    messages: Vec<Message>,
    records: Records,
}

impl Recorder {
    /// What has just begun to be recorded in a call is to be sent before long.
    pub(super) fn schedule_send(&mut self) {
        if let RecorderState::InCall(_) = self.state {
            if let Some(out) = self.out.take() {
                // Without the thread, all is sent at the end.
                let _ = sys::spawn_without_signals("taskfork-notes", move || send_regularly(out));
            }
            CHANGED.notify_one();
        }
    }

    fn needs_sending(&self) -> bool {
        let RecorderState::InCall(wanted) = self.state else { return false };
        wanted.log.is_some() && self.log.is_some() || !self.records.is_empty()
    }
}

/// Has what is recorded kept for the first call, before there is anybody to send it to.
pub(super) fn record_for_first_call() {
    lock().state = RecorderState::BetweenCalls;
}

/// Has what calls record sent to `out` while they run.
pub(super) fn start(out: BorrowedFd<'static>) {
    let mut recorder = lock();
    recorder.state = RecorderState::BetweenCalls;
    recorder.out = Some(out);
}

/// A call begins.
pub(super) fn begin_call(wanted: RequestedTelemetry) {
    let mut recorder = lock();
    recorder.state = RecorderState::InCall(wanted);
    recorder.calls += 1;
    let Some(log) = recorder.log.take() else { return };
    recorder.earlier = wanted.log.map(|wanted| {
        let mut message = log.close();
        message.logs.retain(|entry| entry.level <= wanted);
        message
    });
}

/// Up to which level the caller of the call that runs wants what is logged.
pub(super) fn requested_log_level() -> Option<Level> {
    match lock().state {
        RecorderState::InCall(wanted) => wanted.log,
        _ => None,
    }
}

/// The call has ended: gives what its caller has not been sent yet.
pub(super) fn end_call() -> Telemetry {
    // What the thread sends is sent before the answer.
    let _sending = lock_sending();
    let mut recorder = lock();
    let RecorderState::InCall(wanted) = recorder.state else { return Telemetry::default() };
    recorder.state = RecorderState::BetweenCalls;
    recorder.calls += 1;
    let earlier = recorder.earlier.take();
    let log = recorder.log.take().filter(|_| wanted.log.is_some()).map(|log| log.close());
    Telemetry {
        messages: earlier.into_iter().chain(log).filter(|log| !log_frames::is_empty(log)).collect(),
        records: recorder.records.take(),
    }
}

impl Telemetry {
    /// What was logged, as one message; nothing if there is nothing.
    pub(super) fn into_log(self) -> Option<Message> {
        self.messages.into_iter().reduce(|mut all, message| {
            all.merge(message);
            all
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty() && self.records.is_empty()
    }

    /// Appends frames with these notes.
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
            // What a child says is nobody's.
            return;
        }
        let _sending = lock_sending();
        let mut recorder = lock();
        if recorder.calls != call {
            continue;
        }
        let log = recorder.log.clone();
        let mut frames = recorder.records.frames(ATOMIC_WRITE - HEADER_LEN);
        drop(recorder);
        if let Some(log) = log {
            let kept = log_frames::cut(log.take(), &mut frames);
            kept.into_iter().for_each(|message| log.merge(message));
        }
        for frame in frames {
            // If it fails, the call's own answer will as well, and tell.
            let sent = retry_on_intr(|| send(out, &frame, SendFlags::NOSIGNAL)).unwrap_or(0);
            SENT_BYTES.fetch_add(sent, Ordering::Relaxed);
        }
    }
}

pub(super) fn lock() -> MutexGuard<'static, Recorder> {
    sync::lock(&RECORDER)
}

fn lock_sending() -> MutexGuard<'static, ()> {
    sync::lock(&SENDING)
}
