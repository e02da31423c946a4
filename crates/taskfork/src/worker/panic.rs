//! The location and the stack of a panic, which only the panic hook gets.

use std::any::Any;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::cell::RefCell;
use std::panic::PanicHookInfo;

use crate::error::{Location, Panic};

/// The maximum length of a stack as text, in bytes.
const MAX_STACK: usize = 32 << 10;

thread_local! {
    static LAST: RefCell<Option<Raised>> = const { RefCell::new(None) };
}

struct Raised {
    place: Option<Location>,
    stack: Option<String>,
}

/// Makes each panic record its location and stack before it runs the previous hook.
pub(crate) fn install_panic_hook() {
    let previous = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        LAST.set(Some(Raised { place: place(info), stack: stack() }));
        previous(info);
    }));
}

/// Reads the program's debug information now, if backtraces of panics are requested, because a confined worker
/// may not open files. Processes that are forked later have what was read.
pub(crate) fn load_symbols() {
    let _ = stack();
}

/// The message of a caught panic, with the location and stack that the hook has recorded.
pub(crate) fn take_panic(payload: Box<dyn Any + Send>) -> Panic {
    let message = match payload.downcast::<String>() {
        Ok(text) => *text,
        Err(payload) => match payload.downcast_ref::<&'static str>() {
            Some(text) => (*text).to_owned(),
            None => "a value that is no text".to_owned(),
        },
    };
    // `resume_unwind` does not run the hook.
    let raised = LAST.take().unwrap_or(Raised { place: None, stack: None });
    Panic { message, location: raised.place, stack: raised.stack }
}

fn place(info: &PanicHookInfo<'_>) -> Option<Location> {
    let place = info.location()?;
    Some(Location { file: place.file().to_owned(), line: place.line(), column: place.column() })
}

/// The stack as text, if `RUST_BACKTRACE` asks for it. Frames of the panic and of the worker's loop are
/// left out, unless its value is `full`.
fn stack() -> Option<String> {
    let stack = Backtrace::capture();
    if stack.status() != BacktraceStatus::Captured {
        return None;
    }
    let text = stack.to_string();
    let wants_all = std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value == "full");
    let mut text = if wants_all { text } else { own_frames(&text) };
    text.truncate(text.floor_char_boundary(MAX_STACK));
    Some(text)
}

/// The frames of user code, which are between those of the panic and those of the worker. A frame starts
/// with a line that has a number and a name. A line with its source location may follow.
fn own_frames(stack: &str) -> String {
    let mut frames: Vec<Vec<&str>> = Vec::new();
    for line in stack.lines() {
        let begins = line.trim_start().starts_with(|first: char| first.is_ascii_digit());
        match frames.last_mut() {
            Some(frame) if !begins => frame.push(line),
            _ => frames.push(vec![line]),
        }
    }
    let is = |frame: &[&str], names: &[&str]| names.iter().any(|name| frame[0].contains(name));
    let end = frames.iter().position(|frame| {
        is(frame, &["taskfork::worker::"]) && !is(frame, &["taskfork::worker::panic::"])
    });
    frames.truncate(end.unwrap_or(frames.len()));
    // The frames between `catch_panic` and user code.
    if end.is_some() {
        const CATCHING: [&str; 4] =
            ["std::panic::catch_unwind", "std::panicking::", "__rust_try", "AssertUnwindSafe"];
        while frames.last().is_some_and(|frame| is(frame, &CATCHING)) {
            frames.pop();
        }
    }
    const RAISING: [&str; 4] =
        ["core::panicking::", "std::panicking::", "rust_begin_unwind", "::unwrap_failed"];
    let raised = frames.iter().rposition(|frame| is(frame, &RAISING));
    let own = raised.map_or(0, |last| last + 1);
    let kept = if own < frames.len() { &frames[own..] } else { &frames[..] };
    kept.iter().flatten().fold(String::new(), |text, line| text + line + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_stack_the_frames_of_user_code_are_kept() {
        let stack = "\
   0: taskfork::worker::panic::stack
             at ./src/worker/panic.rs:1:1
   1: std::panicking::panic_with_hook
   2: core::panicking::panic_fmt
             at /rustc/panicking.rs:5:5
   3: app::inner
             at ./src/app.rs:3:3
   4: app::method
   5: core::ops::function::FnOnce::call_once
   6: <core::panic::unwind_safe::AssertUnwindSafe<F> as core::ops::function::FnOnce<()>>::call_once
   7: std::panicking::catch_unwind
   8: std::panic::catch_unwind
   9: taskfork::worker::fault::catch_panic
  10: main
";
        let own = "   3: app::inner\n             at ./src/app.rs:3:3\n   4: app::method\n   \
                   5: core::ops::function::FnOnce::call_once\n";
        assert_eq!(own_frames(stack), own);
    }

    #[test]
    fn a_stack_of_unknown_shape_is_kept_whole() {
        assert_eq!(own_frames("something else"), "something else\n");
        assert_eq!(own_frames("0: core::panicking::panic"), "0: core::panicking::panic\n");
    }
}
