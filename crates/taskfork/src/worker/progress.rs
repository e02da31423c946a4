//! Reports how far the current call has got: to its caller, and in the status of the server.

use super::{on_thread, telemetry};
use crate::context::Context;
use crate::progress::Progress;
use crate::sys;

impl Context {
    /// Reports how far the current call has got: `done` of `total`, in any unit. `what` says what is counted, or what
    /// is being done; it is cut to [`Progress::MAX_TEXT`] bytes. `total` is a number, or `None` if it is not known.
    ///
    /// The caller sees it at [`Call::progress`](crate::Call::progress), and operators in the status of the server. A later
    /// report replaces an earlier one. A caller gets at most one every 50 milliseconds, the latest; one that comes
    /// just before the end of the call may not be sent. The function never waits for the caller, so it can be called
    /// as often as is convenient. Callers with the protocol of AnyEvent::Task get no reports.
    ///
    /// It does nothing outside of calls, and in a process that the worker has forked.
    ///
    /// ```
    /// use taskfork::Methods;
    /// use taskfork::worker::context;
    ///
    /// let methods = Methods::<()>::new().function("import", |files: Vec<String>| {
    ///     let total = files.len() as u64;
    ///     for (number, file) in files.iter().enumerate() {
    ///         context().progress(number as u64, total, file);
    ///         // …
    ///     }
    ///     Ok(total)
    /// });
    /// # let _ = methods;
    /// ```
    pub fn progress(&self, done: u64, total: impl Into<Option<u64>>, what: &str) {
        if !sys::is_forked() {
            let what = &what[..what.floor_char_boundary(Progress::MAX_TEXT)];
            let progress = Progress::new(done, total, what);
            if !on_thread::progress::record(&progress) {
                telemetry::record_progress(progress);
            }
        }
    }
}
