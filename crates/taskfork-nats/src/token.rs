//! Subjects that nobody can guess.

use std::fmt::Write;

use async_nats::Client;

use crate::error::Error;

/// An inbox with 128 random bits from the system. Who knows it can send to it, so it is told to the
/// other side only. async-nats' own inboxes come from generators that need not be unpredictable.
pub(crate) fn inbox(client: &Client) -> Result<String, Error> {
    let inbox = client.new_inbox();
    let prefix = inbox.rsplit_once('.').map_or("_INBOX", |(prefix, _)| prefix);
    Ok(format!("{prefix}.{}", random()?))
}

/// 128 random bits as 32 hexadecimal digits.
pub(crate) fn random() -> Result<String, Error> {
    Ok(hex(&bytes()?))
}

/// 128 random bits.
pub(crate) fn bytes() -> Result<[u8; 16], Error> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| Error::Random(error.into()))?;
    Ok(bytes)
}

/// Two hexadecimal digits for each byte.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// So many bytes, from two hexadecimal digits for each.
pub(crate) fn from_hex<const BYTES: usize>(text: &str) -> Option<[u8; BYTES]> {
    let mut bytes = [0; BYTES];
    // `from_str_radix` alone would take a sign.
    if text.len() != 2 * BYTES || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn bytes_are_read_from_the_digits_that_they_were_written_as(bytes: [u8; 16], text in ".{0,40}") {
            prop_assert_eq!(from_hex(&hex(&bytes)), Some(bytes));
            if let Some(read) = from_hex::<16>(&text) {
                prop_assert_eq!(hex(&read), text.to_lowercase());
            }
        }
    }
}
