//! A call's error on the wire.

use super::WireError;
use super::native::{list, meta};
use super::pack::{Reader, put_array, put_map, put_str, put_uint};

/// A call's error as it stands in its message.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct ErrorBody<'a> {
    pub(crate) kind: &'a str,
    pub(crate) message: &'a str,
    pub(crate) causes: Vec<&'a str>,
    /// A typed error, still encoded.
    pub(crate) value: Option<&'a [u8]>,
    pub(crate) location: Option<(&'a str, u32, u32)>,
    pub(crate) known: Vec<&'a str>,
    /// The worker's stack at a panic, as text.
    pub(crate) stack: Option<&'a str>,
}

/// The kinds of a call's error on the wire.
pub(crate) mod kind {
    pub(crate) const INTERFACE: &str = "interface";
    pub(crate) const PANIC: &str = "panic";
    pub(crate) const METHOD: &str = "method";
    pub(crate) const ARGUMENTS: &str = "arguments";
    pub(crate) const RESULT: &str = "result";
    pub(crate) const SETUP: &str = "setup";
    pub(crate) const VERSION: &str = "version";
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
                "causes" => error.causes = list(reader, Reader::str)?,
                "known" => error.known = list(reader, Reader::str)?,
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
