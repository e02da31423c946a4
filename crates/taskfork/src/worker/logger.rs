//! The log of the call that runs: made on demand, sent beside the answer, and meanwhile by a thread
//! of its own, so that a worker's last words survive it.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use log_defer::{Entry, Level, Log, Message};
use rustix::io::retry_on_intr;
use rustix::net::{SendFlags, send};

use super::serve::SENT_WHOLE;
use crate::sys;
use crate::wire::WireError;
use crate::wire::frame;
use crate::wire::native;

/// How often a call that runs sends what it has logged.
const INTERVAL: Duration = Duration::from_millis(50);

/// About how many bytes of logs are kept until they are sent.
const MAX_BYTES: usize = 1 << 20;

static RECORDER: Mutex<Recorder> =
    Mutex::new(Recorder { stage: Stage::Elsewhere, calls: 0, log: None, earlier: None, out: None });
static LOGGED: Condvar = Condvar::new();
/// Held while something is sent during a call; taken before the recorder is locked.
static SENDING: Mutex<()> = Mutex::new(());

struct Recorder {
    stage: Stage,
    /// How many calls have begun or ended.
    calls: u64,
    log: Option<Log>,
    /// What was logged before the call.
    earlier: Option<Message>,
    /// Where to send what a call logs while it runs, until the thread that does it has taken it.
    out: Option<Arc<OwnedFd>>,
}

#[derive(Clone, Copy)]
enum Stage {
    /// This process is no worker.
    Elsewhere,
    /// Between calls.
    Between,
    /// In a call whose caller wants lines up to this level, or none.
    Call(Option<Level>),
}

/// The log of the call that runs in this worker. What is written to it arrives in the log that the
/// caller gave to [`Checkout::log`](crate::Checkout::log), with the times at which it happened here,
/// also if the call fails. Calls that run for long send it on the way, about every 50 milliseconds,
/// so that it is not lost when they are killed; a line of more than about 4 KiB goes with the answer.
///
/// It is made on demand, with the verbosity of the caller's log; where the caller has none it takes
/// nothing. `setup` and `checkout_done` log to the call that comes next, up to info. About 1 MiB is kept until
/// it is sent, and a line says what was left out. Handles kept beyond the call take nothing.
///
/// The first use in a call whose caller has a log starts a thread in the worker, which blocks all
/// signals.
///
/// Outside of a worker what it gives takes nothing.
///
/// ```
/// use taskfork::{Methods, logger};
///
/// let methods = Methods::new().function("compute", |number: u64| {
///     logger().info(("about to compute", number));
///     let _timer = logger().timer("computing");
///     Ok(number * 2)
/// });
/// # let _: Methods<()> = methods;
/// ```
pub fn logger() -> Log {
    let mut recorder = lock();
    if let Some(log) = &recorder.log {
        return log.clone();
    }
    let verbosity = match recorder.stage {
        Stage::Elsewhere | Stage::Call(None) => None,
        Stage::Between => Some(Level::INFO),
        Stage::Call(wanted) => wanted,
    };
    let Some(verbosity) = verbosity else {
        let log = Log::builder().verbosity(Level::new(0)).start(drop);
        log.close();
        // Made once for this call.
        recorder.log = matches!(recorder.stage, Stage::Call(None)).then(|| log.clone());
        return log;
    };
    let log = Log::builder().verbosity(verbosity).max_bytes(MAX_BYTES).start(drop);
    recorder.log = Some(log.clone());
    if let Stage::Call(_) = recorder.stage {
        if let Some(out) = recorder.out.take() {
            // Without the thread, all is sent at the end.
            let _ = sys::spawn_without_signals("taskfork-logger", move || send_regularly(&out));
        }
        LOGGED.notify_one();
    }
    log
}

/// Has what calls log sent to `out` while they run.
pub(super) fn start(out: Arc<OwnedFd>) {
    let mut recorder = lock();
    recorder.stage = Stage::Between;
    recorder.out = Some(out);
}

/// A call begins, whose caller wants lines up to this level, or nothing.
pub(super) fn begin(wanted: Option<Level>) {
    let mut recorder = lock();
    recorder.stage = Stage::Call(wanted);
    recorder.calls += 1;
    let Some(log) = recorder.log.take() else { return };
    recorder.earlier = wanted.map(|wanted| {
        let mut message = log.close();
        message.logs.retain(|entry| entry.level <= wanted);
        message
    });
}

/// The call has ended: gives what its caller has not been sent yet.
pub(super) fn end() -> Vec<Message> {
    // What the thread sends is sent before the answer.
    let _sending = lock_sending();
    let mut recorder = lock();
    let wanted = matches!(recorder.stage, Stage::Call(Some(_)));
    recorder.stage = Stage::Between;
    recorder.calls += 1;
    let earlier = recorder.earlier.take();
    let log = recorder.log.take().filter(|_| wanted).map(|log| log.close());
    earlier.into_iter().chain(log).filter(|message| !is_empty(message)).collect()
}

/// Appends frames with these messages; one that is too long is replaced by a line that says so.
pub(super) fn write(out: &mut Vec<u8>, limit: usize, messages: Vec<Message>) {
    for mut message in messages {
        // A part of the caller's message has no end of its own.
        let end = message.end.take();
        if let Err(error) = write_one(out, limit, &message) {
            let note = format!("what the worker logged could not be sent: {error}");
            let time = end.unwrap_or_default();
            let entry = Entry { time, level: Level::WARN, items: vec![note.into()] };
            let note = Message { start: message.start, logs: vec![entry], ..Message::default() };
            // A limit that leaves no room for this line leaves none for anything.
            let _ = write_one(out, limit, &note);
        }
    }
}

fn write_one(out: &mut Vec<u8>, limit: usize, message: &Message) -> Result<(), WireError> {
    frame::write(out, limit, |out| native::put_notes(out, message))
}

fn send_regularly(out: &OwnedFd) {
    loop {
        let recorder = lock();
        let waited = LOGGED.wait_while(recorder, |recorder| {
            !matches!(recorder.stage, Stage::Call(Some(_))) || recorder.log.is_none()
        });
        let recorder = waited.unwrap_or_else(PoisonError::into_inner);
        let call = recorder.calls;
        let waited = LOGGED.wait_timeout_while(recorder, INTERVAL, |now| now.calls == call);
        drop(waited);
        let _sending = lock_sending();
        let recorder = lock();
        let log = recorder.log.clone().filter(|_| recorder.calls == call);
        drop(recorder);
        if let Some(log) = log {
            let mut frames = Vec::new();
            let kept = cut(log.take(), &mut frames);
            kept.into_iter().for_each(|message| log.merge(message));
            for frame in frames {
                // If it fails, the call's own answer will as well, and tell.
                let _ = retry_on_intr(|| send(out, &frame, SendFlags::NOSIGNAL));
            }
        }
    }
}

/// Cuts a message into frames that the kernel takes whole, so that a death between two of them can
/// be told on the same connection; gives back what cannot be cut.
fn cut(message: Message, frames: &mut Vec<Vec<u8>>) -> Vec<Message> {
    if is_empty(&message) {
        return Vec::new();
    }
    let mut frame = Vec::new();
    if write_one(&mut frame, SENT_WHOLE - frame::HEADER, &message).is_ok() {
        frames.push(frame);
        return Vec::new();
    }
    let Message { start, mut logs, mut timers, mut data, .. } = message;
    let part = || Message { start, ..Message::default() };
    let halves = if logs.len() > 1 || !logs.is_empty() && (timers.len() + data.len()) > 0 {
        let half = logs.len().div_ceil(2);
        let later = logs.split_off(half);
        [Message { logs, ..part() }, Message { logs: later, timers, data, ..part() }]
    } else if timers.len() > 1 || !timers.is_empty() && !data.is_empty() {
        let half = timers.len().div_ceil(2);
        let later = timers.split_off(half);
        [Message { timers, ..part() }, Message { timers: later, data, ..part() }]
    } else if data.len() > 1 {
        let half: Vec<String> = data.keys().take(data.len() / 2).cloned().collect();
        let first = half.iter().filter_map(|key| data.remove_entry(key)).collect();
        [Message { data: first, ..part() }, Message { data, ..part() }]
    } else {
        return vec![Message { logs, timers, data, ..part() }];
    };
    halves.into_iter().flat_map(|half| cut(half, frames)).collect()
}

fn is_empty(message: &Message) -> bool {
    message.logs.is_empty() && message.timers.is_empty() && message.data.is_empty()
}

fn lock() -> MutexGuard<'static, Recorder> {
    RECORDER.lock().unwrap_or_else(PoisonError::into_inner)
}

fn lock_sending() -> MutexGuard<'static, ()> {
    SENDING.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use log_defer::TimerRecord;
    use proptest::prelude::*;

    use super::*;
    use crate::wire::native::FromWorker;

    proptest! {
        #[test]
        fn a_cut_loses_nothing_and_fits(
            lines in prop::collection::vec(0..6000usize, 0..40),
            timers in prop::collection::vec(0..6000usize, 0..10),
            data in prop::collection::vec(0..6000usize, 0..10),
        ) {
            let text = |length: usize| "x".repeat(length);
            let message = Message {
                start: 1.0,
                end: None,
                logs: lines
                    .iter()
                    .map(|&length| Entry {
                        time: length as f64,
                        level: Level::INFO,
                        items: vec![text(length).into()],
                    })
                    .collect(),
                timers: timers
                    .iter()
                    .map(|&length| TimerRecord { name: text(length), from: 0.0, to: Some(1.0) })
                    .collect(),
                data: data
                    .iter()
                    .enumerate()
                    .map(|(number, &length)| (number.to_string(), text(length).into()))
                    .collect(),
            };
            let mut frames = Vec::new();
            let kept = cut(message.clone(), &mut frames);
            let mut whole = Message { start: 1.0, ..Message::default() };
            for frame in &frames {
                prop_assert!(frame.len() <= SENT_WHOLE);
                let Ok(FromWorker::Notes { log: Some(log) }) =
                    FromWorker::decode(&frame[frame::HEADER..])
                else {
                    return Err(TestCaseError::fail("it is no message of notes"));
                };
                whole.merge(rmp_serde::from_slice(log).unwrap());
            }
            for message in kept {
                let count = message.logs.len() + message.timers.len() + message.data.len();
                prop_assert_eq!(count, 1);
                whole.merge(message);
            }
            let mut expected = Message { start: 1.0, ..Message::default() };
            expected.merge(message);
            whole.timers.sort_by_key(|timer| timer.name.len());
            expected.timers.sort_by_key(|timer| timer.name.len());
            prop_assert_eq!(whole, expected);
        }
    }

    #[test]
    fn outside_of_a_worker_nothing_is_taken() {
        let log = logger();
        log.error("nobody hears this");
        assert!(is_empty(&log.message()));
    }
}
