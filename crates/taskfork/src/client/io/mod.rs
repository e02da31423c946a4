//! What belongs to the runtime and to the operating system: the transports, connecting, the driver, wakers
//! and spinning.

pub(super) mod connect;
pub(super) mod driver;
pub(super) mod driver_queue;
pub(super) mod spin;
pub(super) mod time;
pub(super) mod transport;
pub(super) mod waker;
