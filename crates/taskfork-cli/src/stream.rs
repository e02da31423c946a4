//! The items of a call that streams, printed as they come.

use taskfork::client::{StreamCall, Value};
use taskfork::error::CallError;
use taskfork::{__private::READS_NO_ITEMS, Error};

use crate::call::{Format, print};
use crate::error::CommandError;
use crate::progress_bar::Bar;

/// Whether a call has failed because its method streams. The method has not run.
pub(crate) fn is_wanted(outcome: &Result<Value, Error>) -> bool {
    let Err(Error::Call { error: CallError::Arguments { message }, .. }) = outcome else {
        return false;
    };
    message.ends_with(READS_NO_ITEMS)
}

/// Prints each item in a line when it comes, and returns the result.
pub(crate) async fn print_items(
    mut items: StreamCall<Value, Value>,
    format: Format,
) -> Result<Result<Value, Error>, CommandError> {
    let (mut bar, mut progress) = (Bar::new(), items.progress());
    loop {
        let next = tokio::select! {
            biased;
            next = items.next() => next,
            Some(progress) = progress.changed() => {
                bar.show(&progress);
                continue;
            }
        };
        bar.clear();
        match next {
            Ok(Some(item)) => print(&item, format)?,
            Ok(None) => return Ok(items.finish().await),
            Err(error) => return Ok(Err(error)),
        }
    }
}
