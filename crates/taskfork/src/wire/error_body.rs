//! A call's error on the wire.

use super::WireError;
use super::msgpack::{Reader, put_array, put_map, put_str, put_uint};
use super::native::{first, meta};
use crate::error::MOST_CAUSES;

/// A call's error as it stands in its message.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct ErrorBody<'a> {
    pub(crate) kind: &'a str,
    pub(crate) message: &'a str,
    pub(crate) causes: Vec<&'a str>,
    /// How many further causes are left out.
    pub(crate) more_causes: u64,
    /// A typed error, still encoded.
    pub(crate) value: Option<&'a [u8]>,
    pub(crate) location: Option<(&'a str, u32, u32)>,
    /// The methods that there are, or the first of them.
    pub(crate) known: Vec<&'a str>,
    /// The worker's stack at a panic, as text.
    pub(crate) stack: Option<&'a str>,
}

/// The most names of methods in an error: more than a person reads. Others are left out.
pub(crate) const MAX_KNOWN_METHODS: usize = 1000;

/// The kinds of a call's error on the wire.
pub(crate) mod kind {
    pub(crate) const INTERFACE: &str = "interface";
    pub(crate) const PANIC: &str = "panic";
    pub(crate) const METHOD: &str = "method";
    pub(crate) const ARGUMENTS: &str = "arguments";
    pub(crate) const RESULT: &str = "result";
    pub(crate) const SETUP: &str = "setup";
    pub(crate) const VERSION: &str = "version";
    pub(crate) const HELLO: &str = "hello";
    pub(crate) const BUSY: &str = "busy";
    pub(crate) const REFUSED: &str = "refused";
}

impl<'a> ErrorBody<'a> {
    pub(super) fn read(reader: &mut Reader<'a>) -> Result<Self, WireError> {
        let mut error = Self::default();
        let (mut file, mut line, mut column) = (None, 0, 0);
        meta(reader, |key, reader| {
            match key {
                "kind" => error.kind = reader.str()?,
                "message" => error.message = reader.str()?,
                "causes" => {
                    let more;
                    (error.causes, more) = first(reader, MOST_CAUSES, Reader::str)?;
                    error.more_causes = error.more_causes.saturating_add(more);
                }
                "more_causes" => {
                    error.more_causes =
                        error.more_causes.saturating_add(reader.int::<u32>()?.into())
                }
                "known" => (error.known, _) = first(reader, MAX_KNOWN_METHODS, Reader::str)?,
                "value" => error.value = Some(reader.value()?),
                "stack" => error.stack = Some(reader.str()?),
                "file" => file = Some(reader.str()?),
                "line" => line = reader.int()?,
                "column" => column = reader.int()?,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        error.location = file.map(|file| (file, line, column));
        Ok(error)
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let optional = [
            !self.causes.is_empty(),
            self.more_causes > 0,
            !self.known.is_empty(),
            self.value.is_some(),
            self.stack.is_some(),
            self.location.is_some(),
            self.location.is_some(),
            self.location.is_some(),
        ];
        put_map(out, 2 + optional.iter().map(|&there| u32::from(there)).sum::<u32>());
        put_str(out, "kind");
        put_str(out, self.kind);
        put_str(out, "message");
        put_str(out, self.message);
        for (key, texts) in [("causes", &self.causes), ("known", &self.known)] {
            if !texts.is_empty() {
                put_str(out, key);
                put_array(out, texts.len() as u32);
                texts.iter().for_each(|text| put_str(out, text));
            }
        }
        if self.more_causes > 0 {
            put_str(out, "more_causes");
            put_uint(out, self.more_causes.min(u32::MAX.into()));
        }
        if let Some(value) = self.value {
            put_str(out, "value");
            out.extend_from_slice(value);
        }
        if let Some(stack) = self.stack {
            put_str(out, "stack");
            put_str(out, stack);
        }
        if let Some((file, line, column)) = self.location {
            put_str(out, "file");
            put_str(out, file);
            put_str(out, "line");
            put_uint(out, u64::from(line));
            put_str(out, "column");
            put_uint(out, u64::from(column));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::Location;

    use super::*;
    use crate::error::{CallError, Error};
    use crate::report::CallSite;
    use crate::wire::native::{FromWorker, put_error};

    /// A message of an error with so many empty texts in one list, in which no limit is kept.
    fn message(kind: &str, list: &str, length: u32) -> Vec<u8> {
        let mut out = vec![0x93, 2, 0x80];
        put_map(&mut out, 3);
        for text in ["kind", kind, "message", "top", list] {
            put_str(&mut out, text);
        }
        put_array(&mut out, length);
        out.resize(out.len() + length as usize, 0xa0);
        out
    }

    fn read(message: &[u8]) -> ErrorBody<'_> {
        match FromWorker::decode(message) {
            Ok(FromWorker::Error { body, .. }) => body,
            other => panic!("no error: {other:?}"),
        }
    }

    #[test]
    fn a_million_causes_are_counted_and_the_first_are_kept() {
        for kind in [kind::INTERFACE, kind::SETUP] {
            let message = message(kind, "causes", 1_000_000);
            let body = read(&message);
            assert_eq!((body.causes.len(), body.more_causes), (64, 999_936));
            // On a small stack, as each cause is a level of recursion when the error is dropped.
            let run = || {
                let site = CallSite::new("", None, Location::caller());
                let error: Error = read(&message).into_error(site);
                let failure = match &error {
                    Error::Call { error: CallError::Interface(failure), .. }
                    | Error::Call { error: CallError::Setup { failure }, .. } => failure,
                    other => panic!("another error: {other}"),
                };
                assert_eq!(failure.causes().last(), Some("999936 more causes are left out"));
                assert_eq!(failure, &failure.clone());
                assert!(error.report().to_string().contains("999936 more causes"));
            };
            std::thread::scope(|scope| {
                let thread = std::thread::Builder::new().stack_size(256 << 10);
                thread.spawn_scoped(scope, run).unwrap().join().unwrap();
            });
        }
    }

    #[test]
    fn of_many_known_methods_the_first_are_kept() {
        assert_eq!(read(&message(kind::METHOD, "known", 1_000_000)).known.len(), MAX_KNOWN_METHODS);
    }

    #[test]
    fn how_many_causes_are_left_out_is_sent_on() {
        let sent = ErrorBody { causes: vec!["a"; 64], more_causes: 936, ..ErrorBody::default() };
        let mut out = Vec::new();
        put_error(&mut out, Some(1), &sent);
        assert_eq!(read(&out), sent);
    }
}
