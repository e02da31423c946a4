//! What belongs to the runtime and to the operating system: the transports, connecting, the driver, wakers,
//! spinning, locks and timers. It carries out what the state machines in `session`, `proto` and `pool` decide.

pub(super) mod connect;
pub(super) mod connection;
pub(super) mod core;
pub(super) mod driver;
pub(super) mod driver_queue;
pub(super) mod effects;
pub(super) mod session_input;
pub(super) mod shared_session;
pub(super) mod spin;
pub(super) mod time;
pub(super) mod transport;
pub(super) mod waker;
pub(super) mod watch;

#[cfg(test)]
mod driver_wake_tests;
#[cfg(test)]
mod ring_tests;
