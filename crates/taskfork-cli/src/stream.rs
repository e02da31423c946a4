//! Calls that stream: their items are printed as they come, and their input is read from standard input.

use std::io::{self, BufRead};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::thread;

use futures_core::Stream;
use taskfork::client::{Checkout, Input, StreamCall, Value};
use taskfork::error::{CallError, Needs};
use taskfork::{BoxError, Error};
use tokio::sync::mpsc;

use crate::call::{Format, print};
use crate::error::CommandError;
use crate::progress_bar::{self, Bar};
use crate::values;

/// What a call has failed for, because its method streams and it did not. The method has not run.
fn missing(outcome: &Result<Value, Error>) -> Needs {
    match outcome {
        Err(Error::Call { error: CallError::Arguments { needs, .. }, .. }) => *needs,
        _ => Needs::default(),
    }
}

/// Makes the call whose first attempt ended with `outcome` again as long as it lacks something that its method streams.
/// `checkout` is for each attempt. `standard_input` says why standard input cannot be the input, if so. It is read once the
/// method has begun.
pub(crate) async fn call_again(
    mut outcome: Result<Value, Error>,
    checkout: impl Fn() -> Checkout,
    method: &str,
    args: &[Value],
    standard_input: Result<(), CommandError>,
    format: Format,
) -> Result<Result<Value, Error>, CommandError> {
    let mut has = Needs::default();
    let mut standard_input = Some(standard_input);
    loop {
        let needs = missing(&outcome);
        if (has.items || !needs.items) && (has.input || !needs.input) {
            return Ok(outcome);
        }
        has.items |= needs.items;
        has.input |= needs.input;
        if needs.input {
            standard_input.take().transpose()?;
        }
        let checkout = checkout();
        outcome = match (has.items, has.input) {
            (true, true) => {
                let input = Input::fallible(Lines::default());
                print_items(checkout.stream_with_input(method, args, input), format).await?
            }
            (true, false) => print_items(checkout.stream(method, args), format).await?,
            (false, _) => {
                let input = Input::fallible(Lines::default());
                progress_bar::await_with_bar(checkout.call_with_input(method, args, input)).await
            }
        };
    }
}

/// Prints each item in a line when it comes, and returns the result.
async fn print_items(
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

/// The values in the lines of standard input. A thread reads them, at most two lines ahead, because reading blocks. It is
/// started when the first value is wanted, so that a call which does not run takes nothing.
#[derive(Default)]
struct Lines(Option<mpsc::Receiver<Result<Value, BoxError>>>);

impl Stream for Lines {
    type Item = Result<Value, BoxError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let lines = self.0.get_or_insert_with(|| {
            let (sender, receiver) = mpsc::channel(1);
            // It ends with the process if it still waits for a line then.
            thread::spawn(move || {
                let values = read_lines(io::stdin().lock(), MAX_LINE);
                // The call no longer wants any if this fails.
                for value in values {
                    if sender.blocking_send(value).is_err() {
                        return;
                    }
                }
            });
            receiver
        });
        lines.poll_recv(context)
    }
}

/// The most bytes of a line, because no message can be longer.
const MAX_LINE: usize = 64 << 20;

/// The values in the lines of a text, a JSON value each. Blank lines are skipped. It ends with the first error.
fn read_lines(
    mut text: impl BufRead,
    max_line: usize,
) -> impl Iterator<Item = Result<Value, BoxError>> {
    let mut number = 0_u64;
    let mut is_over = false;
    std::iter::from_fn(move || {
        while !is_over {
            number += 1;
            let value = read_line(&mut text, max_line).and_then(|line| match line {
                Some(line) if line.trim_ascii().is_empty() => Ok(None),
                Some(line) => values::value_of_line(&line).map(Some),
                None => {
                    is_over = true;
                    Ok(None)
                }
            });
            if let Some(value) = value.transpose() {
                is_over |= value.is_err();
                let place =
                    |reason: String| format!("line {number} of standard input{reason}").into();
                return Some(value.map_err(place));
            }
        }
        None
    })
}

/// Reads a line. `None` at the end.
fn read_line(text: &mut impl BufRead, max_line: usize) -> Result<Option<Vec<u8>>, String> {
    let mut line = Vec::new();
    let limit = max_line as u64 + 1;
    let read = io::Read::take(text, limit).read_until(b'\n', &mut line);
    match read.map_err(|error| format!(" cannot be read: {error}"))? {
        0 => Ok(None),
        length if length > max_line && !line.ends_with(b"\n") => {
            Err(format!(" has more than the {max_line} bytes that an item can have"))
        }
        _ => Ok(Some(line)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &[u8]) -> (Vec<String>, Option<String>) {
        let mut values = Vec::new();
        for value in read_lines(text, 20) {
            match value {
                Ok(value) => values.push(values::json(&value).to_string()),
                Err(error) => return (values, Some(error.to_string())),
            }
        }
        (values, None)
    }

    #[test]
    fn each_line_is_a_value_and_blank_ones_are_skipped() {
        assert_eq!(lines(b""), (vec![], None));
        let (values, error) = lines(b"1\n\n \"two\" \r\n  \n[3, null]");
        assert_eq!((values.join(" "), error), ("1 \"two\" [3,null]".to_owned(), None));
        let (values, _) = lines(b"{\"base64\": \"/w==\"}");
        assert_eq!(values, ["{\"base64\":\"/w==\"}"]);
    }

    #[test]
    fn an_error_names_its_line_and_is_the_last_one() {
        for (text, said) in [
            (&b"1\n\n{\"a\":\n4\n"[..], "line 3 of standard input is no JSON value: "),
            (b"1\n\ntext\n4\n", "line 3 of standard input is no JSON value: expected ident"),
            (b"1\n\n2 3\n4\n", "line 3 of standard input is no JSON value: trailing"),
            (b"1\n\n\"\xff\"\n4\n", "line 3 of standard input is not UTF-8"),
            (b"1\n\n{\"base64\": \"?\"}\n", "line 3 of standard input: what stands after"),
            (b"1\n\n\"123456789012345678901\"\n", "line 3 of standard input has more than the 20"),
        ] {
            let mut all = read_lines(text, 20);
            assert_eq!(all.next().map(Result::ok), Some(Some(1.into())));
            let error = all.next().and_then(Result::err).map(|error| error.to_string());
            let error = error.unwrap_or_default();
            assert!(error.starts_with(said), "{error}");
            assert!(all.next().is_none());
        }
    }
}
