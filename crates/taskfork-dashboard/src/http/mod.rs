//! HTTP: `connections` accepts and bounds them, `guard` decides who may ask, `routes` answers, `events` streams updates.

mod connections;
mod events;
mod guard;
mod routes;

pub(crate) use connections::{Encryption, serve};
