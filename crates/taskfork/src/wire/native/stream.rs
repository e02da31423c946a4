//! Messages of calls that stream: items and credit, which both sides send, and the end of an input.

use rmp::Marker;

use super::kind::{CREDIT, INPUT_END, ITEM};
use crate::wire::WireError;
use crate::wire::fields::{MapWriter, read_map, skip_map};
use crate::wire::msgpack::{Reader, put_array, put_map, put_uint};

/// An item of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Item<'a> {
    pub(crate) call: Option<u64>,
    /// How much credit it uses. See [`item_cost`](crate::wire::credit::item_cost).
    pub(crate) cost: u64,
    /// The encoded item, at the end of the message.
    pub(crate) value: &'a [u8],
}

impl<'a> Item<'a> {
    pub(super) fn read(reader: &mut Reader<'a>) -> Result<Self, WireError> {
        let (mut call, mut cost) = (None, 0);
        read_map(reader, |key, reader| {
            match key {
                CALL_NUMBER => call = Some(reader.int()?),
                COST => cost = reader.unsigned()?,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        let value = reader.rest();
        let mut behind = Reader::new(value);
        // What is no value is the error of the item; the decoder says what is wrong with it.
        if behind.value().is_ok() && !behind.rest().is_empty() {
            return Err(WireError::malformed("an item has more than one value"));
        }
        Ok(Self { call, cost, value })
    }
}

/// Appends the beginning of an item. The caller appends the item, and sets its cost and the number of its call.
pub(crate) fn put_item(out: &mut Vec<u8>) {
    put_array(out, 3);
    put_uint(out, ITEM);
    let mut map = MapWriter::new(out);
    // First, and in their longest encoding, so that they can be replaced.
    for key in [COST, CALL_NUMBER] {
        let out = map.key(key);
        out.push(Marker::U64.to_u8());
        out.extend_from_slice(&[0; NUMBER]);
    }
}

/// Where the cost is in an encoded item: behind the headers of the array, the kind, the map and the key, each of one
/// byte, the key itself, and the marker of the number.
const COST_OFFSET: usize = 5 + COST.len();

/// Where the number of the call is: behind the cost, the header of the key, the key, and the marker.
const CALL_OFFSET: usize = COST_OFFSET + NUMBER + 2 + CALL_NUMBER.len();

/// The length of a number without its marker.
const NUMBER: usize = 8;

/// Sets the cost of an encoded item.
pub(crate) fn set_item_cost(item: &mut [u8], cost: u64) {
    set_number(item, COST_OFFSET, cost);
}

/// Sets the number of the call of an encoded item.
pub(crate) fn set_item_call(item: &mut [u8], call: u64) {
    set_number(item, CALL_OFFSET, call);
}

fn set_number(item: &mut [u8], offset: usize, number: u64) {
    if let Some(place) = item.get_mut(offset..offset + NUMBER) {
        place.copy_from_slice(&number.to_be_bytes());
    }
}

/// Appends how much credit the items of a call may have used in all.
pub(crate) fn put_credit(out: &mut Vec<u8>, call: u64, credit: u64) {
    put_array(out, 4);
    put_uint(out, CREDIT);
    put_map(out, 0);
    put_uint(out, call);
    put_uint(out, credit);
}

/// Reads what follows the kind of that message: the number of the call, and the credit.
pub(super) fn read_credit(reader: &mut Reader<'_>) -> Result<(u64, u64), WireError> {
    skip_map(reader)?;
    Ok((reader.int()?, reader.unsigned()?))
}

/// The end of a call's input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InputEnd<'a> {
    pub(crate) call: u64,
    /// The text of the error by which the caller's stream has ended.
    pub(crate) error: Option<&'a str>,
}

/// The most bytes of the text of an error that ends an input. The sender cuts longer ones.
const MAX_ERROR: usize = 4096;

impl<'a> InputEnd<'a> {
    pub(super) fn read(reader: &mut Reader<'a>) -> Result<Self, WireError> {
        let mut error = None;
        read_map(reader, |key, reader| {
            if key == ERROR {
                error = Some(reader.str()?);
            }
            Ok(key == ERROR)
        })?;
        let error = error.map(|text: &str| &text[..text.floor_char_boundary(MAX_ERROR)]);
        Ok(Self { call: reader.int()?, error })
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        put_array(out, 3);
        put_uint(out, INPUT_END);
        let error = self.error.map(|text| &text[..text.floor_char_boundary(MAX_ERROR)]);
        MapWriter::new(out).optional_str(ERROR, error);
        put_uint(out, self.call);
    }
}

const COST: &str = "cost";
const ERROR: &str = "error";

/// The key of the call's number in the metadata of answers and items.
pub(super) const CALL_NUMBER: &str = "call";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::native::{FromClient, FromWorker};

    #[test]
    fn an_encoded_item_gets_its_cost_and_its_call() {
        let mut out = Vec::new();
        put_item(&mut out);
        out.push(7);
        set_item_cost(&mut out, u64::MAX);
        set_item_call(&mut out, 3);
        let expected = Item { call: Some(3), cost: u64::MAX, value: &[7] };
        assert!(matches!(FromWorker::decode(&out), Ok(FromWorker::Item(item)) if item == expected));
        assert!(matches!(FromClient::decode(&out), Ok(FromClient::Item(item)) if item == expected));
    }

    #[test]
    fn an_item_is_one_value() {
        let mut out = Vec::new();
        put_item(&mut out);
        out.extend([0x92, 7, 8]);
        assert!(FromWorker::decode(&out).is_ok() && FromClient::decode(&out).is_ok());
        out.push(7);
        let refusals = [FromWorker::decode(&out).err(), FromClient::decode(&out).err()];
        for error in refusals.map(Option::unwrap) {
            assert!(error.to_string().contains("more than one value"), "{error}");
        }
    }

    #[test]
    fn a_long_error_of_an_input_is_cut() {
        let long = "é".repeat(MAX_ERROR);
        let mut out = Vec::new();
        InputEnd { call: 1, error: Some(&long) }.put(&mut out);
        assert!(out.len() < MAX_ERROR + 100);
        let Ok(FromClient::InputEnd(end)) = FromClient::decode(&out) else { panic!("{out:?}") };
        assert_eq!((end.call, end.error.map(str::len)), (1, Some(MAX_ERROR)));
    }
}
