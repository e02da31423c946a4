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
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| Error::Random(error.into()))?;
    Ok(bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    }))
}
