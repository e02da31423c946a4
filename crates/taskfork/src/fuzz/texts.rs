//! Texts of people and other programs: addresses, and messages at a status socket.

use crate::address::Address;
use crate::server::ServerStatus;
use crate::server::fuzz::StatusRequest;

/// The text of an address is parsed as the same address.
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

/// Requests and responses at a status socket.
pub fn status(data: &[u8]) {
    if let Ok(status) = serde_json::from_slice::<ServerStatus>(data) {
        let written = serde_json::to_string(&status).unwrap();
        let again: ServerStatus = serde_json::from_str(&written).unwrap();
        assert_eq!(serde_json::to_string(&again).unwrap(), written);
    }
    let _ = StatusRequest::parse(data);
}
