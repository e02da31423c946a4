//! Destinations of finished messages.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use crate::message::Message;

/// Writes messages as JSON, one a line. Clones share the writer; each writes whole lines.
///
/// ```no_run
/// use log_defer::{JsonLines, Log};
///
/// let lines = JsonLines::append("requests.ndjson")?;
/// let log = Log::new(lines.callback());
/// log.info("one request");
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct JsonLines<W>(Arc<Mutex<W>>);

impl<W> Clone for JsonLines<W> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl JsonLines<std::fs::File> {
    /// Appends to a file, and creates it if it does not exist.
    ///
    /// # Errors
    /// Fails if the file cannot be opened or created.
    ///
    /// ```no_run
    /// let lines = log_defer::JsonLines::append("/var/log/requests.ndjson")?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn append(path: impl AsRef<Path>) -> io::Result<Self> {
        OpenOptions::new().create(true).append(true).open(path).map(Self::new)
    }
}

impl<W: Write> JsonLines<W> {
    /// Writes to `writer`, with one `write_all` and one `flush` for each message.
    ///
    /// ```
    /// use log_defer::{JsonLines, Log};
    /// let log = Log::new(JsonLines::new(std::io::stdout()).callback());
    /// log.info("one line of JSON at the end");
    /// ```
    pub fn new(writer: W) -> Self {
        Self(Arc::new(Mutex::new(writer)))
    }

    /// Writes one message.
    ///
    /// # Errors
    /// The error of the writer.
    ///
    /// ```
    /// use log_defer::{JsonLines, Message};
    /// let lines = JsonLines::new(Vec::new());
    /// lines.write(&serde_json::from_str::<Message>(r#"{"start": 100}"#)?)?;
    /// assert_eq!(lines.into_inner().unwrap(), b"{\"start\":100.0}\n");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn write(&self, message: &Message) -> io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        let mut writer = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        writer.write_all(&line)?;
        writer.flush()
    }

    /// Returns the writer, or `None` while other clones or callbacks exist.
    ///
    /// ```
    /// use log_defer::JsonLines;
    /// let lines = JsonLines::new(Vec::new());
    /// assert!(lines.clone().into_inner().is_none());
    /// assert_eq!(lines.into_inner(), Some(Vec::new()));
    /// ```
    pub fn into_inner(self) -> Option<W> {
        let writer = Arc::into_inner(self.0)?;
        Some(writer.into_inner().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<W: Write + Send + 'static> JsonLines<W> {
    /// Returns a callback for [`Log::new`](crate::Log::new). If a message cannot be written, the callback prints the error
    /// and the message to standard error.
    ///
    /// ```
    /// use log_defer::{JsonLines, Log};
    /// let lines = JsonLines::new(std::io::stderr());
    /// // All requests write to the same place.
    /// let logs = [Log::new(lines.callback()), Log::new(lines.callback())];
    /// ```
    pub fn callback(&self) -> impl FnOnce(Message) + Send + 'static {
        let lines = self.clone();
        move |message| {
            if let Err(error) = lines.write(&message) {
                let message = serde_json::to_string(&message).unwrap_or_default();
                // Standard error may be closed as well; there is no other place to report it.
                let _ =
                    writeln!(io::stderr(), "a log message cannot be written: {error}: {message}");
            }
        }
    }
}

/// Emits a message as one event of `tracing`.
///
/// The event has the level of the message's most important line: trace for levels beyond debug, and info for a message
/// without lines. Its fields are `start`, `end` and `log`, the whole message as JSON.
///
/// ```
/// let log = log_defer::Log::new(|message| log_defer::emit(&message));
/// log.info("told as a tracing event");
/// ```
#[cfg(feature = "tracing")]
pub fn emit(message: &Message) {
    use crate::level::Level;

    let log = serde_json::to_string(message).unwrap_or_default();
    let (start, end) = (message.start, message.end.unwrap_or_else(|| message.last_time()));
    macro_rules! event {
        ($level:ident) => {
            tracing::event!(tracing::Level::$level, start, end, log)
        };
    }
    match message.logs.iter().map(|entry| entry.level).min().unwrap_or(Level::INFO) {
        level if level <= Level::ERROR => event!(ERROR),
        level if level <= Level::WARN => event!(WARN),
        level if level <= Level::INFO => event!(INFO),
        level if level <= Level::DEBUG => event!(DEBUG),
        _ => event!(TRACE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Log;

    #[test]
    fn messages_are_appended_to_a_file_a_line_each() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        for number in 0..3 {
            let lines = JsonLines::append(&path).unwrap();
            let log = Log::new(lines.callback());
            log.info(("line\nfeed", number));
        }
        let written = std::fs::read_to_string(&path).unwrap();
        let messages: Vec<Message> =
            written.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(messages.len(), 3);
        assert_eq!(messages[2].logs[0].items, ["line\nfeed".into(), serde_json::json!(2)]);
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        assert!(JsonLines::append(folder.path().join("missing/log")).is_err());
    }

    #[cfg(feature = "tracing")]
    #[test]
    fn a_message_is_an_event_of_its_most_important_line() {
        use crate::Level;

        #[derive(Clone, Default)]
        struct Written(Arc<Mutex<Vec<u8>>>);
        impl Write for Written {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.lock().unwrap().write(bytes)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }

        let written = Written::default();
        let writer = written.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_max_level(tracing::Level::TRACE)
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            let log = Log::new(|message| emit(&message));
            log.info("plain");
            log.log(Level::new(15), "bad");
            drop(log);
            let log = Log::builder().verbosity(Level::new(99)).start(|message| emit(&message));
            log.log(Level::new(50), "chatter");
        });
        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].contains(" WARN ") && lines[0].contains("bad"), "{text}");
        assert!(lines[1].contains("TRACE") && lines[1].contains("chatter"), "{text}");
    }
}
