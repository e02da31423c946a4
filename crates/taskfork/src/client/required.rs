//! The interfaces that a client requires of its servers.

use std::sync::{Arc, Mutex};

use crate::sync::lock;
use crate::wire::WireError;
use crate::wire::interface_description::{self, InterfaceDescription};

/// The interfaces that a client requires. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct RequiredInterfaces(Arc<Mutex<Required>>);

#[derive(Debug, Clone, Default)]
struct Required {
    described: Vec<&'static InterfaceDescription>,
    /// Those of which only the name is known.
    named: Vec<String>,
}

impl RequiredInterfaces {
    pub(crate) fn new(described: Vec<&'static InterfaceDescription>, named: Vec<String>) -> Self {
        Self(Arc::new(Mutex::new(Required { described, named })))
    }

    /// Adds an interface. Returns whether it was missing.
    pub(crate) fn add(&self, interface: &'static InterfaceDescription) -> bool {
        let mut all = lock(&self.0);
        let is_missing = !all.described.contains(&interface);
        if is_missing {
            all.described.push(interface);
        }
        is_missing
    }

    /// The same interfaces, for a client of its own.
    #[cfg(feature = "nats")]
    pub(crate) fn copy(&self) -> Self {
        Self(Arc::new(Mutex::new(lock(&self.0).clone())))
    }

    /// The value for the hello; `None` if the client requires no interface.
    pub(crate) fn encode(&self) -> Result<Option<Vec<u8>>, WireError> {
        let all = lock(&self.0);
        if all.described.is_empty() && all.named.is_empty() {
            return Ok(None);
        }
        interface_description::encode(&all.described, &all.named).map(Some)
    }
}
