//! Where a panic was raised, which only the panic hook is told.

use std::any::Any;
use std::cell::RefCell;
use std::panic::PanicHookInfo;

use crate::error::{Location, Panic};

thread_local! {
    static LAST_PLACE: RefCell<Option<Location>> = const { RefCell::new(None) };
}

/// Has every panic remember its place, and then do what it did before.
pub(crate) fn remember_places() {
    let previous = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        LAST_PLACE.set(place(info));
        previous(info);
    }));
}

/// What a caught panic said, and where.
pub(crate) fn describe(payload: Box<dyn Any + Send>) -> Panic {
    let message = match payload.downcast::<String>() {
        Ok(text) => *text,
        Err(payload) => match payload.downcast_ref::<&'static str>() {
            Some(text) => (*text).to_owned(),
            None => "a value that is no text".to_owned(),
        },
    };
    Panic { message, location: LAST_PLACE.take() }
}

fn place(info: &PanicHookInfo<'_>) -> Option<Location> {
    let place = info.location()?;
    Some(Location { file: place.file().to_owned(), line: place.line(), column: place.column() })
}
