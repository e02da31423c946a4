//! Reading and writing single values of MessagePack, for the messages themselves. Values of users go through serde.

use rmp::Marker;
use rmp::decode as read;
use rmp::encode as write;

use super::WireError;

/// A cursor over one message. The strings that it returns borrow from the message.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

#[cfg_attr(feature = "server", taskfork_macros::startup_code)]
impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The bytes that have not been read.
    pub(crate) fn rest(self) -> &'a [u8] {
        self.rest
    }

    pub(crate) fn array(&mut self) -> Result<usize, WireError> {
        read::read_array_len(&mut self.rest).map(|len| len as usize).map_err(WireError::malformed)
    }

    pub(crate) fn map(&mut self) -> Result<usize, WireError> {
        read::read_map_len(&mut self.rest).map(|len| len as usize).map_err(WireError::malformed)
    }

    pub(crate) fn int<T: TryFrom<i64>>(&mut self) -> Result<T, WireError> {
        let number: i64 = read::read_int(&mut self.rest).map_err(WireError::malformed)?;
        T::try_from(number).map_err(|_| WireError::malformed(format!("{number} is out of range")))
    }

    pub(crate) fn unsigned(&mut self) -> Result<u64, WireError> {
        read::read_int(&mut self.rest).map_err(WireError::malformed)
    }

    /// Reads a size. A value over `usize::MAX` is read as that.
    pub(crate) fn size(&mut self) -> Result<usize, WireError> {
        Ok(usize::try_from(self.unsigned()?).unwrap_or(usize::MAX))
    }

    pub(crate) fn str(&mut self) -> Result<&'a str, WireError> {
        let (text, rest) = read::read_str_from_slice(self.rest).map_err(WireError::malformed)?;
        self.rest = rest;
        Ok(text)
    }

    pub(crate) fn bool(&mut self) -> Result<bool, WireError> {
        read::read_bool(&mut self.rest).map_err(WireError::malformed)
    }

    pub(crate) fn float(&mut self) -> Result<f64, WireError> {
        read::read_f64(&mut self.rest).map_err(WireError::malformed)
    }

    /// Reads a string, or `None` for nil.
    pub(crate) fn optional_str(&mut self) -> Result<Option<&'a str>, WireError> {
        match self.rest.split_first() {
            Some((&marker, rest)) if Marker::from_u8(marker) == Marker::Null => {
                self.rest = rest;
                Ok(None)
            }
            _ => self.str().map(Some),
        }
    }

    pub(crate) fn optional_unsigned(&mut self) -> Result<Option<u64>, WireError> {
        match self.rest.split_first() {
            Some((&marker, rest)) if Marker::from_u8(marker) == Marker::Null => {
                self.rest = rest;
                Ok(None)
            }
            _ => self.unsigned().map(Some),
        }
    }

    /// Skips one value of any kind and returns its bytes. It does not recurse, so no nesting can exhaust the stack.
    pub(crate) fn value(&mut self) -> Result<&'a [u8], WireError> {
        let start = self.rest;
        let mut values: u64 = 1;
        while values > 0 {
            values = values - 1 + self.header()?;
        }
        Ok(&start[..start.len() - self.rest.len()])
    }

    /// Skips one token and returns its bytes; `None` at the end. A token is a value, or the header of an array or map.
    pub(crate) fn token(&mut self) -> Result<Option<&'a [u8]>, WireError> {
        let start = self.rest;
        if start.is_empty() {
            return Ok(None);
        }
        self.header()?;
        Ok(Some(&start[..start.len() - self.rest.len()]))
    }

    /// Skips up to `max` values of one byte each; returns how many it skipped.
    #[inline]
    pub(crate) fn skip_single_byte_values(&mut self, max: u64) -> u64 {
        let is_one_byte = |byte: u8| matches!(byte, 0..=0x7f | 0xc0 | 0xc2 | 0xc3 | 0xe0..);
        let max = usize::try_from(max).unwrap_or(usize::MAX).min(self.rest.len());
        let count = self.rest[..max].iter().take_while(|&&byte| is_one_byte(byte)).count();
        self.rest = &self.rest[count..];
        count as u64
    }

    /// Skips one token; `None` at the end. For an array or a map, it returns the number of values inside.
    pub(crate) fn enter(&mut self) -> Result<Option<Option<u64>>, WireError> {
        let Some(&first) = self.rest.first() else { return Ok(None) };
        let has_values = matches!(first, 0x80..=0x9f | 0xdc..=0xdf);
        self.header().map(|inside| Some(has_values.then_some(inside)))
    }

    /// Skips a marker, its length field and plain bytes; returns how many values follow inside.
    fn header(&mut self) -> Result<u64, WireError> {
        let marker = Marker::from_u8(self.take(1)?[0]);
        let plain = match marker {
            Marker::FixPos(_) | Marker::FixNeg(_) | Marker::Null | Marker::True | Marker::False => {
                0
            }
            Marker::U8 | Marker::I8 => 1,
            Marker::U16 | Marker::I16 | Marker::FixExt1 => 2,
            Marker::U32 | Marker::I32 | Marker::F32 => 4,
            Marker::FixExt2 => 3,
            Marker::FixExt4 => 5,
            Marker::U64 | Marker::I64 | Marker::F64 => 8,
            Marker::FixExt8 => 9,
            Marker::FixExt16 => 17,
            Marker::FixStr(len) => u64::from(len),
            Marker::Str8 | Marker::Bin8 => self.length(1)?,
            Marker::Str16 | Marker::Bin16 => self.length(2)?,
            Marker::Str32 | Marker::Bin32 => self.length(4)?,
            Marker::Ext8 => self.length(1)? + 1,
            Marker::Ext16 => self.length(2)? + 1,
            Marker::Ext32 => self.length(4)? + 1,
            Marker::FixArray(len) => return Ok(u64::from(len)),
            Marker::Array16 => return self.length(2),
            Marker::Array32 => return self.length(4),
            Marker::FixMap(len) => return Ok(2 * u64::from(len)),
            Marker::Map16 => return Ok(2 * self.length(2)?),
            Marker::Map32 => return Ok(2 * self.length(4)?),
            Marker::Reserved => return Err(WireError::malformed("the byte 0xc1 begins no value")),
        };
        self.take(plain)?;
        Ok(0)
    }

    fn length(&mut self, bytes: u64) -> Result<u64, WireError> {
        let bytes = self.take(bytes)?;
        Ok(bytes.iter().fold(0, |length, &byte| length << 8 | u64::from(byte)))
    }

    fn take(&mut self, count: u64) -> Result<&'a [u8], WireError> {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let (taken, rest) = self
            .rest
            .split_at_checked(count)
            .ok_or_else(|| WireError::malformed("it ends inside a value"))?;
        self.rest = rest;
        Ok(taken)
    }
}

/// Writing into a `Vec` cannot fail, but the encoder's types do not express that.
macro_rules! infallible {
    ($write:expr) => {
        match $write {
            Ok(_) => {}
            Err(error) => unreachable!("writing into memory failed: {error}"),
        }
    };
}

pub(crate) fn put_array(out: &mut Vec<u8>, len: u32) {
    infallible!(write::write_array_len(out, len));
}

pub(crate) fn put_map(out: &mut Vec<u8>, len: u32) {
    infallible!(write::write_map_len(out, len));
}

pub(crate) fn put_uint(out: &mut Vec<u8>, value: u64) {
    infallible!(write::write_uint(out, value));
}

pub(crate) fn put_int(out: &mut Vec<u8>, value: i64) {
    infallible!(write::write_sint(out, value));
}

pub(crate) fn put_str(out: &mut Vec<u8>, text: &str) {
    infallible!(write::write_str(out, text));
}

pub(crate) fn put_bool(out: &mut Vec<u8>, value: bool) {
    infallible!(write::write_bool(out, value));
}

pub(crate) fn put_float(out: &mut Vec<u8>, value: f64) {
    infallible!(write::write_f64(out, value));
}

#[cfg(feature = "spans")]
pub(crate) fn put_bin(out: &mut Vec<u8>, bytes: &[u8]) {
    infallible!(write::write_bin(out, bytes));
}

/// Appends the header of a byte string.
pub(crate) fn put_bin_header(out: &mut Vec<u8>, length: u32) {
    infallible!(write::write_bin_len(out, length));
}

pub(crate) fn put_nil(out: &mut Vec<u8>) {
    infallible!(write::write_nil(out));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn skipping_a_value_ends_where_decoding_it_ends(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut decoded = &bytes[..];
            let theirs = rmpv::decode::read_value(&mut decoded).map(|_| bytes.len() - decoded.len());
            let ours = Reader::new(&bytes).value().map(<[u8]>::len);
            // Strings that are not UTF-8 are skipped as well. The other decoder reads 0xc1 as nil.
            if let Some(length) = theirs.ok().filter(|&length| !bytes[..length].contains(&0xc1)) {
                prop_assert_eq!(ours, Ok(length));
            }
        }
    }

    #[test]
    fn nesting_of_any_depth_is_skipped_without_recursion() {
        let mut deep = vec![0x91; 5_000_000];
        deep.push(0xc0);
        assert_eq!(Reader::new(&deep).value().map(<[u8]>::len), Ok(deep.len()));
    }

    #[test]
    fn a_claimed_length_beyond_the_message_is_an_error() {
        assert!(Reader::new(&[0xdd, 0xff, 0xff, 0xff, 0xff]).value().is_err());
        assert!(Reader::new(&[0xc6, 0xff, 0xff, 0xff, 0xff, 1]).value().is_err());
    }
}
