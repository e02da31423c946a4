//! The only `unsafe` code of this crate.

use std::borrow::Cow;
use std::cell::RefCell;
use std::ffi::{CStr, c_char, c_uint, c_void};
use std::mem::{ManuallyDrop, MaybeUninit};
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;
use std::slice;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Once, OnceLock};
use std::thread::{self, ThreadId};
use std::time::Instant;

use bytes::Bytes;
use nix::libc::{self, c_int};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use pyo3::ffi::{
    Py_DECREF, Py_TPFLAGS_DEFAULT, Py_TYPE, Py_ssize_t, Py_tp_dealloc, PyByteArray_AsString,
    PyByteArray_FromStringAndSize, PyBytes_AsString, PyBytes_FromStringAndSize, PyGILState_Ensure,
    PyGILState_Release, PyGILState_STATE, PyObject, PyObject_Free, PyType_FromSpec,
    PyType_GenericAlloc, PyType_Slot, PyType_Spec,
};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyMemoryView, PyModule};
use serde::Serialize;
use serde::de::DeserializeOwned;
use taskfork::__private::{Inherited, InputItems, Taken, is_forking_guardian};
use taskfork::Emitter;
use taskfork::worker::{EmitError, ReceiveError};

/// A copy of a descriptor that belongs to a Python object.
#[expect(unsafe_code, reason = "a number from Python becomes a descriptor that is owned")]
pub(crate) fn duplicate(py: Python<'_>, file: i32) -> PyResult<OwnedFd> {
    let copy: i32 = PyModule::import(py, "os")?.call_method1("dup", (file,))?.extract()?;
    // SAFETY: `os.dup` has just opened this descriptor, and nothing else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// A descriptor that this program has inherited, and that an environment variable names: the package takes the variable away.
#[expect(unsafe_code, reason = "a number from Python becomes a descriptor that is owned")]
pub(crate) fn inherited_descriptor(number: i32) -> std::io::Result<OwnedFd> {
    // SAFETY: the borrow ends with this statement. If the number is not open, the call only returns EBADF.
    rustix::io::fcntl_getfd(unsafe { BorrowedFd::borrow_raw(number) })?;
    // SAFETY: it is open, and nothing else in this process knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// The worker whose state has this descriptor, which an environment variable names: the package takes the variable away.
#[expect(unsafe_code, reason = "descriptors are passed on by their numbers")]
pub(crate) fn inherited_worker(state: i32) -> Result<Inherited, String> {
    // SAFETY: nothing else in this process knows its number.
    unsafe { Inherited::take(state) }
}

/// A buffer of a Python object, as `PyObject_GetBuffer` describes it. The functions are in the stable ABI from Python 3.11 on, with
/// this structure. Those of 3.9 and 3.10, which do not change any more, are the same.
#[repr(C)]
struct RawBuffer {
    start: *mut c_void,
    object: *mut PyObject,
    length: Py_ssize_t,
    item_size: Py_ssize_t,
    is_read_only: c_int,
    dimensions: c_int,
    format: *mut c_char,
    shape: *mut Py_ssize_t,
    strides: *mut Py_ssize_t,
    suboffsets: *mut Py_ssize_t,
    internal: *mut c_void,
}

#[expect(
    unsafe_code,
    reason = "functions of the stable ABI that the bindings lack for this version"
)]
unsafe extern "C" {
    fn PyObject_GetBuffer(object: *mut PyObject, buffer: *mut RawBuffer, flags: c_int) -> c_int;
    fn PyBuffer_Release(buffer: *mut RawBuffer);
    fn PyBuffer_IsContiguous(buffer: *const RawBuffer, order: c_char) -> c_int;
    fn PyBuffer_ToContiguous(
        to: *mut c_void,
        buffer: *const RawBuffer,
        length: Py_ssize_t,
        order: c_char,
    ) -> c_int;
}

/// From the header of Python: a buffer of any form, which is only read.
const PY_BUF_FULL_RO: c_int = 0x11c;

/// The order in which elements are sent.
const ROWS_FIRST: c_char = b'C' as c_char;

/// The memory of a Python object that has some. The object cannot free or move it while this exists.
pub(crate) struct Buffer<'py> {
    /// In a place of its own: what has made it may refer to it.
    raw: Box<RawBuffer>,
    py: Python<'py>,
}

impl<'py> Buffer<'py> {
    /// An error if the object has no memory that can be read.
    #[expect(unsafe_code, reason = "a call of the interpreter")]
    pub(crate) fn of(value: &Bound<'py, PyAny>) -> PyResult<Self> {
        let (py, null) = (value.py(), ptr::null_mut());
        let mut raw = Box::new(RawBuffer {
            start: null,
            object: ptr::null_mut(),
            length: 0,
            item_size: 0,
            is_read_only: 0,
            dimensions: 0,
            format: ptr::null_mut(),
            shape: ptr::null_mut(),
            strides: ptr::null_mut(),
            suboffsets: ptr::null_mut(),
            internal: null,
        });
        // SAFETY: this thread has the interpreter, the object is alive, and the structure is that of this function.
        match unsafe { PyObject_GetBuffer(value.as_ptr(), &raw mut *raw, PY_BUF_FULL_RO) } {
            0 => Ok(Self { raw, py }),
            _ => Err(PyErr::fetch(py)),
        }
    }

    pub(crate) fn py(&self) -> Python<'py> {
        self.py
    }

    /// Where the elements are, if they are next to each other.
    pub(crate) fn start(&self) -> *const u8 {
        self.raw.start.cast_const().cast()
    }

    /// How many bytes the elements have.
    pub(crate) fn len(&self) -> usize {
        self.raw.length.try_into().unwrap_or_default()
    }

    /// The types of the elements, as the module `struct` writes them.
    #[expect(unsafe_code, reason = "a text of the interpreter")]
    pub(crate) fn format(&self) -> Cow<'_, str> {
        if self.raw.format.is_null() {
            return "B".into();
        }
        // SAFETY: it is a text that ends with a zero and lives as long as the buffer.
        unsafe { CStr::from_ptr(self.raw.format) }.to_string_lossy()
    }

    /// Whether the elements are next to each other, in their order.
    #[expect(unsafe_code, reason = "a call of the interpreter")]
    pub(crate) fn is_contiguous(&self) -> bool {
        // SAFETY: the buffer is valid.
        unsafe { PyBuffer_IsContiguous(&raw const *self.raw, ROWS_FIRST) != 0 }
    }

    /// Copies the elements, in their order.
    #[expect(unsafe_code, reason = "memory of Rust is filled by Python")]
    fn copy_to_start(&self, target: &mut [MaybeUninit<u8>]) -> PyResult<()> {
        assert_eq!(target.len(), self.len(), "a copy of another length");
        let to = target.as_mut_ptr().cast();
        // SAFETY: the buffer is valid, the target has its length, and this thread has the interpreter.
        match unsafe {
            PyBuffer_ToContiguous(to, &raw const *self.raw, self.raw.length, ROWS_FIRST)
        } {
            0 => Ok(()),
            _ => Err(PyErr::fetch(self.py)),
        }
    }

    /// Copies the elements, in their order, to a target of their length.
    #[expect(unsafe_code, reason = "only initialized bytes are written there")]
    pub(crate) fn copy_to(&self, target: &mut [u8]) -> PyResult<()> {
        let (start, length) = (target.as_mut_ptr().cast(), target.len());
        // SAFETY: it is the memory of `target`, and `copy_to_start` writes no byte that is not initialized.
        self.copy_to_start(unsafe { slice::from_raw_parts_mut(start, length) })
    }

    /// Appends the elements, in their order.
    #[expect(unsafe_code, reason = "memory of Rust is filled by Python")]
    pub(crate) fn append_to(&self, mut target: Vec<u8>) -> PyResult<Vec<u8>> {
        let (before, length) = (target.len(), self.len());
        target.reserve_exact(length);
        self.copy_to_start(&mut target.spare_capacity_mut()[..length])?;
        // SAFETY: these bytes have just been written.
        unsafe { target.set_len(before + length) };
        Ok(target)
    }

    /// The memory of a contiguous buffer. Whoever drops the buffer makes sure that the view, which has the token, does not exist any more.
    pub(crate) fn view(&self, token: Arc<()>) -> impl AsRef<[u8]> + Send + 'static {
        View { start: self.raw.start.cast(), length: self.len(), _token: token }
    }
}

impl Drop for Buffer<'_> {
    #[expect(unsafe_code, reason = "a call of the interpreter")]
    fn drop(&mut self) {
        // SAFETY: the buffer is valid, and this thread has the interpreter.
        unsafe { PyBuffer_Release(&raw mut *self.raw) };
    }
}

/// See [`Buffer::view`].
struct View {
    start: *const u8,
    length: usize,
    _token: Arc<()>,
}

// SAFETY: it is memory, which any thread may read.
#[expect(unsafe_code, reason = "memory of a Python object")]
unsafe impl Send for View {}

impl AsRef<[u8]> for View {
    #[expect(unsafe_code, reason = "memory of a Python object")]
    fn as_ref(&self) -> &[u8] {
        if self.length == 0 {
            return &[];
        }
        // SAFETY: the buffer is contiguous and exists. It is read in `own_arguments` and when the call is sent, while the caller, who
        // has the interpreter, waits for that. Another thread that writes to it without the interpreter makes its own race.
        unsafe { slice::from_raw_parts(self.start, self.length) }
    }
}

/// `bytes` of this length, which `fill` writes.
#[expect(unsafe_code, reason = "memory of Python is filled by Rust")]
pub(crate) fn new_bytes<'py>(
    py: Python<'py>,
    length: usize,
    fill: impl FnOnce(&mut [MaybeUninit<u8>]),
) -> PyResult<Bound<'py, PyAny>> {
    // SAFETY: both functions are those of `bytes`.
    unsafe { filled(py, PyBytes_FromStringAndSize, PyBytes_AsString, length, fill) }
}

/// A `bytearray` in the same way.
#[expect(unsafe_code, reason = "memory of Python is filled by Rust")]
pub(crate) fn new_bytearray<'py>(
    py: Python<'py>,
    length: usize,
    fill: impl FnOnce(&mut [MaybeUninit<u8>]),
) -> PyResult<Bound<'py, PyAny>> {
    // SAFETY: both functions are those of `bytearray`.
    unsafe { filled(py, PyByteArray_FromStringAndSize, PyByteArray_AsString, length, fill) }
}

/// # Safety
/// Without a pointer `make` makes an object of this length, and leaves its memory as it is; `start` returns that memory.
#[expect(unsafe_code, reason = "memory of Python is filled by Rust")]
unsafe fn filled<'py>(
    py: Python<'py>,
    make: unsafe extern "C" fn(*const c_char, Py_ssize_t) -> *mut PyObject,
    start: unsafe extern "C" fn(*mut PyObject) -> *mut c_char,
    length: usize,
    fill: impl FnOnce(&mut [MaybeUninit<u8>]),
) -> PyResult<Bound<'py, PyAny>> {
    let size = length.try_into().unwrap_or(Py_ssize_t::MAX);
    // SAFETY: this thread has the interpreter.
    let made = unsafe { Bound::from_owned_ptr_or_err(py, make(ptr::null(), size)) }?;
    // SAFETY: it is an object of that type, which nobody else knows, so it can be written to. It has this length.
    let memory = unsafe { slice::from_raw_parts_mut(start(made.as_ptr()).cast(), length) };
    fill(memory);
    Ok(made)
}

/// An object of Python with memory that can be read as long as it exists.
#[repr(C)]
struct Memory {
    head: PyObject,
    /// Null in an object that Python code has made.
    bytes: *mut Bytes,
}

/// From the header of Python. Python 3.9 and 3.10 know these slots too.
const PY_BF_GETBUFFER: c_int = 1;

#[expect(
    unsafe_code,
    reason = "a function of the stable ABI that the bindings lack for this version"
)]
unsafe extern "C" {
    fn PyBuffer_FillInfo(
        buffer: *mut RawBuffer,
        object: *mut PyObject,
        start: *mut c_void,
        length: Py_ssize_t,
        is_read_only: c_int,
        flags: c_int,
    ) -> c_int;
}

#[expect(unsafe_code, reason = "a function that the interpreter calls")]
unsafe extern "C" fn buffer_of_memory(
    object: *mut PyObject,
    buffer: *mut RawBuffer,
    flags: c_int,
) -> c_int {
    // SAFETY: the object has this type, and its bytes live as long as it does.
    let bytes =
        unsafe { (*object.cast::<Memory>()).bytes.as_ref() }.map_or(&[][..], |bytes| &bytes[..]);
    let length = bytes.len().try_into().unwrap_or(Py_ssize_t::MAX);
    // SAFETY: the arguments are those of the interpreter. Nobody writes to a buffer that is read-only.
    unsafe { PyBuffer_FillInfo(buffer, object, bytes.as_ptr().cast_mut().cast(), length, 1, flags) }
}

#[expect(unsafe_code, reason = "a function that the interpreter calls")]
unsafe extern "C" fn drop_memory(object: *mut PyObject) {
    // SAFETY: the object has this type, and nothing refers to it any more.
    unsafe {
        let bytes = (*object.cast::<Memory>()).bytes;
        if !bytes.is_null() {
            drop(Box::from_raw(bytes));
        }
        // A type that is made at run time is kept by its objects.
        let kind = Py_TYPE(object);
        PyObject_Free(object.cast());
        Py_DECREF(kind.cast());
    }
}

/// The type of such objects.
#[expect(unsafe_code, reason = "a type is made by calls of the interpreter")]
fn memory_type(py: Python<'_>) -> PyResult<&Py<PyAny>> {
    static TYPE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    TYPE.get_or_try_init(py, || {
        let slot = |slot, function| PyType_Slot { slot, pfunc: function };
        let mut slots = [
            slot(PY_BF_GETBUFFER, buffer_of_memory as *mut c_void),
            slot(Py_tp_dealloc, drop_memory as *mut c_void),
            slot(0, ptr::null_mut()),
        ];
        let mut spec = PyType_Spec {
            name: c"taskfork._native.Memory".as_ptr(),
            basicsize: size_of::<Memory>() as c_int,
            itemsize: 0,
            flags: Py_TPFLAGS_DEFAULT as c_uint,
            slots: slots.as_mut_ptr(),
        };
        // SAFETY: the interpreter copies what the specification has.
        unsafe { Bound::from_owned_ptr_or_err(py, PyType_FromSpec(&raw mut spec)) }
            .map(Bound::unbind)
    })
}

/// A view of memory that nobody changes while the view, or what has been made from it, exists.
#[expect(unsafe_code, reason = "an object of Python that owns memory of Rust")]
pub(crate) fn view<'py>(py: Python<'py>, bytes: Bytes) -> PyResult<Bound<'py, PyAny>> {
    let kind = memory_type(py)?;
    // SAFETY: it is a type, and its objects begin as zeros.
    let made =
        unsafe { Bound::from_owned_ptr_or_err(py, PyType_GenericAlloc(kind.as_ptr().cast(), 0)) }?;
    // SAFETY: the object has this type, and nobody else knows it.
    unsafe { (*made.as_ptr().cast::<Memory>()).bytes = Box::into_raw(Box::new(bytes)) };
    PyMemoryView::from(&made).map(Bound::into_any)
}

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

/// The signals that have a handler.
#[expect(unsafe_code, reason = "reads the actions of signals")]
pub(crate) fn caught_signals() -> Vec<i32> {
    let is_caught = |number: &i32| {
        let mut action = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: the new action is null, so the call only writes the present action to the local variable.
        let known = unsafe { libc::sigaction(*number, ptr::null(), action.as_mut_ptr()) } == 0;
        // SAFETY: all zeros are a valid `sigaction`, and a successful call has overwritten them with another.
        let action = unsafe { action.assume_init() };
        known && ![libc::SIG_DFL, libc::SIG_IGN].contains(&action.sa_sigaction)
    };
    (1..=libc::SIGRTMAX()).filter(is_caught).collect()
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

/// Not in the bindings of the C library.
const F_SETSIG: c_int = 10;

/// Lets SIGTERM come to this process once nobody has the other end of a pipe. Returns false if nobody has it now.
#[expect(unsafe_code, reason = "options of a descriptor that is known by its number")]
pub(crate) fn signal_at_end(pipe: i32) -> std::io::Result<bool> {
    let process = std::process::id().cast_signed();
    let set = |what, value: c_int| {
        // SAFETY: the call accesses no memory.
        match unsafe { libc::fcntl(pipe, what, value) } {
            -1 => Err(std::io::Error::last_os_error()),
            result => Ok(result),
        }
    };
    set(libc::F_SETOWN, process)?;
    set(F_SETSIG, libc::SIGTERM)?;
    let flags = set(libc::F_GETFL, 0)?;
    set(libc::F_SETFL, flags | libc::O_ASYNC)?;
    let mut polled = libc::pollfd { fd: pipe, events: 0, revents: 0 };
    // SAFETY: the kernel reads and writes one entry, the local variable.
    match unsafe { libc::poll(&raw mut polled, 1, 0) } {
        -1 => Err(std::io::Error::last_os_error()),
        _ => Ok(polled.revents & libc::POLLHUP == 0),
    }
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
