//! A thread-local variable that is set while a function runs.

use std::cell::Cell;
use std::thread::LocalKey;

/// Sets `variable` to `value` while `run` runs; returns what it returned and the value at its end. It takes a few
/// instructions if `T` is as small as a pointer.
#[cfg_attr(feature = "server", taskfork_macros::startup_code)]
#[inline]
pub(super) fn with<T, R>(
    variable: &'static LocalKey<Cell<Option<T>>>,
    value: T,
    run: impl FnOnce() -> R,
) -> (R, Option<T>) {
    let _restore = Restore(variable, variable.replace(Some(value)));
    let returned = run();
    (returned, variable.take())
}

/// Restores the previous value, also after a panic.
struct Restore<T: 'static>(&'static LocalKey<Cell<Option<T>>>, Option<T>);

impl<T> Drop for Restore<T> {
    #[inline]
    fn drop(&mut self) {
        self.0.set(self.1.take());
    }
}
