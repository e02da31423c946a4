//! The only `unsafe` code of this crate.

use std::cell::RefCell;
use std::mem::ManuallyDrop;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Once, OnceLock};
use std::thread::{self, ThreadId};
use std::time::Instant;

use nix::libc::{self, c_int};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use pyo3::ffi::{
    Py_ssize_t, PyGILState_Ensure, PyGILState_Release, PyGILState_STATE, PyMemoryView_FromMemory,
};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyModule, PySlice};
use serde::Serialize;
use serde::de::DeserializeOwned;
use taskfork::__private::{InputItems, Taken, is_forking_guardian};
use taskfork::Emitter;
use taskfork::worker::{EmitError, ReceiveError};

/// A copy of a descriptor that belongs to a Python object.
#[expect(unsafe_code, reason = "a number from Python becomes a descriptor that is owned")]
pub(crate) fn duplicate(py: Python<'_>, file: i32) -> PyResult<OwnedFd> {
    let copy: i32 = PyModule::import(py, "os")?.call_method1("dup", (file,))?.extract()?;
    // SAFETY: `os.dup` has just opened this descriptor, and nothing else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Copies a contiguous memoryview of bytes to `target`, which has its length.
#[expect(unsafe_code, reason = "memory of Rust is filled by Python")]
pub(crate) fn fill_from(mut target: Vec<u8>, bytes: &Bound<'_, PyAny>) -> PyResult<Vec<u8>> {
    let py = bytes.py();
    let length = target.len().try_into().unwrap_or(Py_ssize_t::MAX);
    // SAFETY: the memory is initialized, and `target` does not free it while the view exists.
    let view = unsafe {
        let made = PyMemoryView_FromMemory(target.as_mut_ptr().cast(), length, PY_BUF_WRITE);
        Bound::from_owned_ptr_or_err(py, made)
    }?;
    let filled = view.set_item(PySlice::full(py), bytes);
    if let Err(kept) = view.call_method0("release") {
        // Something refers to the memory for ever.
        std::mem::forget(target);
        return Err(kept);
    }
    filled.map(|()| target)
}

/// From the header of Python: the view can be written to.
const PY_BUF_WRITE: c_int = 0x200;

/// Sends an item without the interpreter, so that other threads of Python run while its reader is behind.
#[expect(unsafe_code, reason = "an emitter belongs to one thread")]
pub(crate) fn send<T: Serialize + Sync>(
    py: Python<'_>,
    emitter: &mut Emitter<T>,
    item: &T,
) -> Result<(), EmitError> {
    struct SameThread<'a, T>(&'a mut Emitter<T>);
    // SAFETY: it goes to a function that `detach` calls in this thread. There are no objects of Python in an emitter.
    unsafe impl<T> Send for SameThread<'_, T> {}
    impl<T: Serialize> SameThread<'_, T> {
        fn send(self, item: &T) -> Result<(), EmitError> {
            self.0.send(item)
        }
    }
    let emitter = SameThread(emitter);
    py.detach(move || emitter.send(item))
}

/// Takes an item of a call's input without the interpreter, in the same way.
#[expect(unsafe_code, reason = "an input belongs to one thread")]
pub(crate) fn take<T: DeserializeOwned + Send>(
    py: Python<'_>,
    items: &InputItems,
    until: Option<Instant>,
) -> Result<Taken<T>, ReceiveError> {
    struct SameThread<'a>(&'a InputItems);
    // SAFETY: it goes to a function that `detach` calls in this thread. There are no objects of Python in an input.
    unsafe impl Send for SameThread<'_> {}
    impl SameThread<'_> {
        fn next<T: DeserializeOwned>(
            self,
            until: Option<Instant>,
        ) -> Result<Taken<T>, ReceiveError> {
            self.0.next(until)
        }
    }
    let items = SameThread(items);
    py.detach(move || items.next(until))
}

/// A value of one thread, in an object that any thread may drop. If another one drops it before [`end`](Self::end), it is leaked.
pub(crate) struct OfThread<T> {
    value: ManuallyDrop<RefCell<Option<T>>>,
    thread: ThreadId,
}

// SAFETY: only the thread that has made it touches the value.
#[expect(unsafe_code, reason = "a value of one thread in an object of Python")]
unsafe impl<T> Send for OfThread<T> {}

// SAFETY: only the thread that has made it touches the value.
#[expect(unsafe_code, reason = "a value of one thread in an object of Python")]
unsafe impl<T> Sync for OfThread<T> {}

impl<T> OfThread<T> {
    pub(crate) fn new(value: T) -> Self {
        let value = ManuallyDrop::new(RefCell::new(Some(value)));
        Self { value, thread: thread::current().id() }
    }

    fn is_here(&self) -> bool {
        thread::current().id() == self.thread
    }

    /// Runs a function with the value; `None` in another thread, and after its end.
    pub(crate) fn with<R>(&self, run: impl FnOnce(&T) -> R) -> Option<R> {
        if !self.is_here() {
            return None;
        }
        self.value.try_borrow().ok()?.as_ref().map(run)
    }

    /// Drops the value, in its thread.
    pub(crate) fn end(&self) {
        if self.is_here()
            && let Ok(mut value) = self.value.try_borrow_mut()
        {
            *value = None;
        }
    }
}

impl<T> Drop for OfThread<T> {
    fn drop(&mut self) {
        self.end();
    }
}

/// What runs behind a worker's own handler of SIGALRM.
static ALARM_HANDLERS: OnceLock<[Option<extern "C" fn(c_int)>; 2]> = OnceLock::new();

/// Makes workers run two handlers of SIGALRM behind their own. That of `faulthandler` writes the traceback to standard
/// error, also if the call hangs in native code. That of `signal.signal` notes the signal, and Python calls the function at
/// its next instruction.
#[expect(unsafe_code, reason = "passes on a handler of signals")]
pub(crate) fn pass_alarms_to_python(py: Python<'_>) -> PyResult<()> {
    let interrupting = alarm_handler()?;
    let options = PyDict::new(py);
    options.set_item("file", libc::STDERR_FILENO)?;
    options.set_item("all_threads", false)?;
    let faulthandler = PyModule::import(py, "faulthandler")?;
    faulthandler.call_method("register", (libc::SIGALRM,), Some(&options))?;
    let tracing = alarm_handler()?;
    let _ = ALARM_HANDLERS.set([tracing, interrupting]);
    // SAFETY: it only calls handlers of this signal.
    unsafe { taskfork::__private::set_next_alarm_handler(on_alarm) };
    Ok(())
}

extern "C" fn on_alarm(signal: c_int) {
    if let Some(handlers) = ALARM_HANDLERS.get() {
        handlers.iter().flatten().for_each(|handler| handler(signal));
    }
}

/// The handler that this process has for SIGALRM.
#[expect(unsafe_code, reason = "reads a handler of signals")]
fn alarm_handler() -> std::io::Result<Option<extern "C" fn(c_int)>> {
    let ignore = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
    // SAFETY: no handler can run.
    let present = unsafe { sigaction(Signal::SIGALRM, &ignore) }?;
    // SAFETY: this is the action that the process had.
    unsafe { sigaction(Signal::SIGALRM, &present) }?;
    Ok(match present.handler() {
        SigHandler::Handler(handler) => Some(handler),
        _ => None,
    })
}

#[expect(unsafe_code, reason = "standard output of the C library")]
unsafe extern "C" {
    static stdout: *mut libc::FILE;
    fn __fpurge(stream: *mut libc::FILE);
}

/// How many forks lie between this process and the one that has loaded the module.
static FORKS: AtomicU32 = AtomicU32::new(0);

/// A number that a forked child and its parent do not have in common. It costs no system call.
pub(crate) fn forks() -> u32 {
    FORKS.load(Relaxed)
}

/// Makes [`forks`] right in children that `fork` makes. Those that execute another program at once may be made otherwise.
#[expect(unsafe_code, reason = "a handler of forks")]
pub(crate) fn count_forks() {
    extern "C" fn in_child() {
        FORKS.fetch_add(1, Relaxed);
    }
    static REGISTER: Once = Once::new();
    REGISTER.call_once(|| {
        // SAFETY: the handler lives as long as this module, which is never unloaded.
        unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
    });
}

#[expect(unsafe_code, reason = "functions of the stable ABI that the bindings lack")]
unsafe extern "C" {
    fn PyOS_BeforeFork();
    fn PyOS_AfterFork_Parent();
    fn PyOS_AfterFork_Child();
}

/// Forks this process, and tells the interpreter, as `os.fork` does. Returns 0 in the child, which has a copy of this thread
/// alone.
#[expect(unsafe_code, reason = "a fork, and calls of the interpreter")]
pub(crate) fn fork(_: Python<'_>) -> std::io::Result<i32> {
    // SAFETY: this thread holds the interpreter.
    unsafe { PyOS_BeforeFork() };
    // SAFETY: the child may do what that of `os.fork` may. Locks of the interpreter and of the allocator are free in it, and the
    // caller has paused the thread of the clients, so those that it takes are free too.
    let child = unsafe { libc::fork() };
    let error = std::io::Error::last_os_error();
    match child {
        0 => {
            // SAFETY: this is the stream of the C library. What the program has buffered there, the program writes.
            unsafe { __fpurge(stdout) };
            // SAFETY: this thread holds the interpreter, and is the only one.
            unsafe { PyOS_AfterFork_Child() };
        }
        // SAFETY: this thread holds the interpreter since `PyOS_BeforeFork`.
        _ => unsafe { PyOS_AfterFork_Parent() },
    }
    if child < 0 { Err(error) } else { Ok(child) }
}

/// Closes a descriptor whose owner in Rust is never dropped in this process.
#[expect(unsafe_code, reason = "a descriptor is closed by its number")]
pub(crate) fn close_forgotten(number: i32) {
    // SAFETY: nothing in this process closes it again, or uses it, as the caller says.
    drop(unsafe { OwnedFd::from_raw_fd(number) });
}

/// Whether this process is a server, which forks workers without Python's `os.fork`.
static IS_SERVER: AtomicBool = AtomicBool::new(false);

/// Whether the thread held the interpreter before the fork.
static HELD: AtomicI32 = AtomicI32::new(0);

/// Makes each fork of this process tell the interpreter, so that the child can run Python. The forking thread must not hold
/// the interpreter, and must be the only one.
#[expect(unsafe_code, reason = "handlers of forks")]
pub(crate) fn tell_interpreter_of_forks(is_server: bool) {
    static REGISTER: Once = Once::new();
    REGISTER.call_once(|| {
        // SAFETY: the handlers are functions that live as long as this module, which is never unloaded.
        unsafe { libc::pthread_atfork(Some(before_fork), Some(in_parent), Some(in_child)) };
    });
    IS_SERVER.store(is_server, SeqCst);
}

#[expect(unsafe_code, reason = "calls of the interpreter")]
unsafe extern "C" fn before_fork() {
    if !is_for_python() {
        return;
    }
    // SAFETY: the interpreter runs. This thread has a state in it, which it has released before it began to serve.
    let held = unsafe { PyGILState_Ensure() };
    HELD.store(i32::from(matches!(held, PyGILState_STATE::PyGILState_LOCKED)), SeqCst);
    // SAFETY: this thread holds the interpreter.
    unsafe { PyOS_BeforeFork() };
}

#[expect(unsafe_code, reason = "calls of the interpreter")]
unsafe extern "C" fn in_parent() {
    if is_for_python() {
        // SAFETY: `before_fork` has run in this thread, so it holds the interpreter.
        unsafe { PyOS_AfterFork_Parent() };
        release();
    }
}

#[expect(unsafe_code, reason = "calls of the interpreter")]
unsafe extern "C" fn in_child() {
    let is_for_python = is_for_python();
    // The forks of workers' code are those of `os.fork`, which tells the interpreter itself.
    IS_SERVER.store(false, SeqCst);
    if is_for_python {
        // SAFETY: the child is a copy of the only thread, which held the interpreter.
        unsafe { PyOS_AfterFork_Child() };
        release();
    }
}

/// Whether the fork is that of a worker.
fn is_for_python() -> bool {
    IS_SERVER.load(SeqCst) && !is_forking_guardian()
}

/// Undoes what `before_fork` did.
#[expect(unsafe_code, reason = "a call of the interpreter")]
fn release() {
    let held = match HELD.load(SeqCst) {
        0 => PyGILState_STATE::PyGILState_UNLOCKED,
        _ => PyGILState_STATE::PyGILState_LOCKED,
    };
    // SAFETY: this ends the call of `PyGILState_Ensure` in `before_fork`, with what that returned.
    unsafe { PyGILState_Release(held) };
}
