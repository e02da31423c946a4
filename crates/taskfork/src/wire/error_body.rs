//! The error of a call in its message.

use super::WireError;
use super::fields::{MapWriter, read_first, read_map};
use super::msgpack::{Reader, put_array, put_str};
use crate::error::{MAX_CAUSES, Needs};

/// The error of a call. All texts borrow from the message.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct ErrorBody<'a> {
    pub(crate) kind: &'a str,
    pub(crate) message: &'a str,
    pub(crate) causes: Vec<&'a str>,
    /// How many causes were omitted.
    pub(crate) more_causes: u64,
    /// The encoded error of a typed interface.
    pub(crate) value: Option<&'a [u8]>,
    /// The client may use the worker again.
    pub(crate) keeps_worker: bool,
    pub(crate) location: Option<(&'a str, u32, u32)>,
    /// The names of the interface's methods, or the first of them.
    pub(crate) known: Vec<&'a str>,
    /// The worker's stack when the error was raised, as text.
    pub(crate) stack: Option<&'a str>,
    /// What the method streams and the call did not.
    pub(crate) needs: Needs,
    /// The error's type in the worker's language.
    pub(crate) type_name: Option<&'a str>,
    /// What the code that the error passed has added to it.
    pub(crate) notes: Vec<&'a str>,
    /// The call stopped because its time was over; how many microseconds it had run.
    pub(crate) timed_out: Option<u64>,
}

/// The most notes of an error. Others are omitted.
pub(crate) const MAX_NOTES: usize = 64;

/// The most entries of `needs` that are read.
const MAX_NEEDS: usize = 16;

const ITEMS: &str = "items";
const INPUT: &str = "input";

/// The most names of methods in an error. Others are omitted.
pub(crate) const MAX_KNOWN_METHODS: usize = 1000;

/// The values of [`ErrorBody::kind`].
pub(crate) mod kind {
    pub(crate) const INTERFACE: &str = "interface";
    pub(crate) const PANIC: &str = "panic";
    pub(crate) const METHOD: &str = "method";
    pub(crate) const ARGUMENTS: &str = "arguments";
    pub(crate) const RESULT: &str = "result";
    pub(crate) const SETUP: &str = "setup";
    pub(crate) const VERSION: &str = "version";
    pub(crate) const HELLO: &str = "hello";
    pub(crate) const WRONG_INTERFACE: &str = "wrong_interface";
    pub(crate) const BUSY: &str = "busy";
    pub(crate) const REFUSED: &str = "refused";
}

impl<'a> ErrorBody<'a> {
    pub(super) fn read(reader: &mut Reader<'a>) -> Result<Self, WireError> {
        let mut error = Self::default();
        let (mut file, mut line, mut column) = (None, 0, 0);
        read_map(reader, |key, reader| {
            match key {
                "kind" => error.kind = reader.str()?,
                "message" => error.message = reader.str()?,
                "causes" => {
                    let more;
                    (error.causes, more) = read_first(reader, MAX_CAUSES, Reader::str)?;
                    error.more_causes = error.more_causes.saturating_add(more);
                }
                "more_causes" => {
                    error.more_causes =
                        error.more_causes.saturating_add(reader.int::<u32>()?.into())
                }
                "known" => (error.known, _) = read_first(reader, MAX_KNOWN_METHODS, Reader::str)?,
                "keep" => error.keeps_worker = reader.bool()?,
                "value" => error.value = Some(reader.value()?),
                "stack" => error.stack = Some(reader.str()?),
                "needs" => {
                    let (needs, _) = read_first(reader, MAX_NEEDS, Reader::str)?;
                    error.needs.items |= needs.contains(&ITEMS);
                    error.needs.input |= needs.contains(&INPUT);
                }
                "type" => error.type_name = Some(reader.str()?),
                "notes" => (error.notes, _) = read_first(reader, MAX_NOTES, Reader::str)?,
                "timed_out" => error.timed_out = Some(reader.unsigned()?),
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
        let mut map = MapWriter::new(out);
        map.str("kind", self.kind);
        map.str("message", self.message);
        let needs = [(self.needs.items, ITEMS), (self.needs.input, INPUT)];
        let needs = needs.into_iter().filter_map(|(is_needed, name)| is_needed.then_some(name));
        let needs: Vec<_> = needs.collect();
        let lists = [
            ("causes", &self.causes),
            ("known", &self.known),
            ("needs", &needs),
            ("notes", &self.notes),
        ];
        for (key, texts) in lists {
            if !texts.is_empty() {
                let out = map.key(key);
                put_array(out, texts.len() as u32);
                texts.iter().for_each(|text| put_str(out, text));
            }
        }
        map.nonzero("more_causes", self.more_causes.min(u32::MAX.into()));
        if let Some(value) = self.value {
            map.key("value").extend_from_slice(value);
        }
        map.flag("keep", self.keeps_worker);
        map.optional_str("stack", self.stack);
        map.optional_str("type", self.type_name);
        map.optional_uint("timed_out", self.timed_out);
        if let Some((file, line, column)) = self.location {
            map.str("file", file);
            map.uint("line", u64::from(line));
            map.uint("column", u64::from(column));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::Location;

    use super::*;
    use crate::error::{CallError, Error};
    use crate::report::CallSite;
    use crate::wire::msgpack::put_map;
    use crate::wire::native::{FromWorker, put_error};

    /// A message of an error with a list of `length` empty texts, which may exceed the limit.
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
            other => panic!("it is not an error: {other:?}"),
        }
    }

    #[test]
    fn a_million_causes_are_counted_and_the_first_are_kept() {
        for kind in [kind::INTERFACE, kind::SETUP] {
            let message = message(kind, "causes", 1_000_000);
            let body = read(&message);
            assert_eq!((body.causes.len(), body.more_causes), (64, 999_936));
            // On a small stack, because dropping the error recurses over its causes.
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
    fn only_the_first_known_methods_are_kept() {
        assert_eq!(read(&message(kind::METHOD, "known", 1_000_000)).known.len(), MAX_KNOWN_METHODS);
    }

    #[test]
    fn notes_arrive_and_only_the_first_are_kept() {
        let sent = ErrorBody { notes: vec!["row 7", "of a.csv"], ..ErrorBody::default() };
        let mut out = Vec::new();
        put_error(&mut out, Some(1), &sent);
        assert_eq!(read(&out), sent);
        let message = message(kind::INTERFACE, "notes", 1_000_000);
        let site = CallSite::new("", None, Location::caller());
        let error: Error = read(&message).into_error(site);
        assert_eq!(error.site().notes().count(), MAX_NOTES);
    }

    #[test]
    fn what_a_call_needs_is_read_and_unknown_needs_are_ignored() {
        for (items, input) in [(true, false), (false, true), (true, true)] {
            let needs = Needs { items, input };
            let sent = ErrorBody { kind: kind::ARGUMENTS, needs, ..ErrorBody::default() };
            let mut out = Vec::new();
            put_error(&mut out, Some(1), &sent);
            assert_eq!(read(&out), sent);
        }
        // Texts that this version does not know.
        assert_eq!(read(&message(kind::ARGUMENTS, "needs", 1_000_000)).needs, Needs::default());
    }

    #[test]
    fn the_number_of_omitted_causes_is_forwarded() {
        let sent = ErrorBody { causes: vec!["a"; 64], more_causes: 936, ..ErrorBody::default() };
        let mut out = Vec::new();
        put_error(&mut out, Some(1), &sent);
        assert_eq!(read(&out), sent);
    }
}
