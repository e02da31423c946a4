//! A thread-local variable that is set while a function runs.

use std::cell::RefCell;
use std::thread::LocalKey;

/// Sets `variable` to `value` while `run` runs; returns what it returned and the value at its end.
#[taskfork_macros::startup_code]
pub(super) fn with<T, R>(
    variable: &'static LocalKey<RefCell<Option<T>>>,
    value: T,
    run: impl FnOnce() -> R,
) -> (R, Option<T>) {
    let _restore = Restore(variable, variable.replace(Some(value)));
    let returned = run();
    (returned, variable.take())
}

/// Restores the previous value, also after a panic.
struct Restore<T: 'static>(&'static LocalKey<RefCell<Option<T>>>, Option<T>);

impl<T> Drop for Restore<T> {
    fn drop(&mut self) {
        self.0.set(self.1.take());
    }
}
