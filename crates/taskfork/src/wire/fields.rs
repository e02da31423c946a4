//! Maps and lists in messages: reading them within limits, and writing maps whose entries are optional.

use super::WireError;
use super::msgpack::{Reader, put_bool, put_float, put_map, put_str, put_uint};

/// The most entries of a map in a message. The largest map that is sent has fewer than 20; the rest is reserved for
/// later versions.
pub(super) const MAX_ENTRIES: usize = 256;

/// Reads a map. `field` gets each key, and returns whether it has read the value; other values are skipped.
#[cfg_attr(feature = "server", taskfork_macros::startup_code)]
pub(super) fn read_map<'a>(
    reader: &mut Reader<'a>,
    mut field: impl FnMut(&'a str, &mut Reader<'a>) -> Result<bool, WireError>,
) -> Result<(), WireError> {
    let entries = reader.map()?;
    if entries > MAX_ENTRIES {
        return Err(WireError::Malformed(format!(
            "a map has {entries} entries, and the limit is {MAX_ENTRIES}"
        )));
    }
    for _ in 0..entries {
        let key = reader.str()?;
        if !field(key, reader)? {
            reader.value()?;
        }
    }
    Ok(())
}

/// Reads a map of which no key is known.
#[cfg_attr(feature = "server", taskfork_macros::startup_code)]
pub(super) fn skip_map(reader: &mut Reader<'_>) -> Result<(), WireError> {
    read_map(reader, |_, _| Ok(false))
}

/// Reads a list of at most `max` items; the error for a longer one contains `name`.
pub(super) fn read_list<'a, T, L: Default + Extend<T>>(
    reader: &mut Reader<'a>,
    name: &str,
    max: usize,
    mut item: impl FnMut(&mut Reader<'a>) -> Result<T, WireError>,
) -> Result<L, WireError> {
    let length = reader.array()?;
    if length > max {
        let detail = format!("the list `{name}` has {length} items, and the limit is {max}");
        return Err(WireError::Malformed(detail));
    }
    let mut items = L::default();
    for _ in 0..length {
        items.extend([item(reader)?]);
    }
    Ok(items)
}

/// Reads the first `max` items of a list and skips the others; returns the items and the number of skipped ones.
pub(super) fn read_first<'a, T>(
    reader: &mut Reader<'a>,
    max: usize,
    mut item: impl FnMut(&mut Reader<'a>) -> Result<T, WireError>,
) -> Result<(Vec<T>, u64), WireError> {
    let length = reader.array()?;
    let mut items = Vec::new();
    for _ in 0..length.min(max) {
        items.push(item(reader)?);
    }
    let skipped = length.saturating_sub(max);
    for _ in 0..skipped {
        reader.value()?;
    }
    Ok((items, skipped as u64))
}

/// Appends a map of at most 15 entries. Its header is one byte, which counts the entries as they are written.
pub(super) struct MapWriter<'a> {
    out: &'a mut Vec<u8>,
    header: usize,
}

#[cfg_attr(feature = "server", taskfork_macros::startup_code)]
impl<'a> MapWriter<'a> {
    pub(super) fn new(out: &'a mut Vec<u8>) -> Self {
        let header = out.len();
        put_map(out, 0);
        Self { out, header }
    }

    /// Appends a key. The caller appends its value to the returned buffer.
    pub(super) fn key(&mut self, key: &str) -> &mut Vec<u8> {
        debug_assert!(self.out[self.header] < 0x8f, "a map of 16 entries has a longer header");
        self.out[self.header] += 1;
        put_str(self.out, key);
        self.out
    }

    pub(super) fn uint(&mut self, key: &str, value: u64) {
        put_uint(self.key(key), value);
    }

    pub(super) fn str(&mut self, key: &str, value: &str) {
        put_str(self.key(key), value);
    }

    pub(super) fn optional_uint(&mut self, key: &str, value: Option<u64>) {
        if let Some(value) = value {
            self.uint(key, value);
        }
    }

    pub(super) fn optional_str(&mut self, key: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.str(key, value);
        }
    }

    pub(super) fn optional_float(&mut self, key: &str, value: Option<f64>) {
        if let Some(value) = value {
            put_float(self.key(key), value);
        }
    }

    /// An entry for a number other than 0.
    pub(super) fn nonzero(&mut self, key: &str, value: u64) {
        self.optional_uint(key, Some(value).filter(|&value| value > 0));
    }

    /// An entry with the value true; none for false.
    pub(super) fn flag(&mut self, key: &str, is_set: bool) {
        if is_set {
            put_bool(self.key(key), true);
        }
    }
}
