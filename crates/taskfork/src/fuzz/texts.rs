//! What people and other programs write: addresses, and what is said at a status socket.

use crate::address::Address;
use crate::server::ServerStatus;
use crate::server::fuzz::parse_dismiss;

/// An address comes back as it was written.
pub fn addresses(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match text.parse::<Address>() {
        Ok(address) => {
            let shown = address.to_string();
            assert_eq!(shown.parse::<Address>().unwrap().to_string(), shown);
        }
        Err(error) => assert!(error.to_string().len() <= 1000 + 2 * text.len()),
    }
}

/// What a server hears at its status socket, and what a program hears there.
pub fn status(data: &[u8]) {
    if let Ok(status) = serde_json::from_slice::<ServerStatus>(data) {
        let written = serde_json::to_string(&status).unwrap();
        let again: ServerStatus = serde_json::from_str(&written).unwrap();
        assert_eq!(serde_json::to_string(&again).unwrap(), written);
    }
    let _ = parse_dismiss(data);
}
