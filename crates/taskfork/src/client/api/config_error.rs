//! Why a client cannot be built.

use crate::address::AddressError;
use crate::display::debug_as_text;

/// Why a client cannot be built.
///
/// ```
/// use taskfork::Client;
/// use taskfork::client::ConfigError;
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let error = Client::builder().address("unix:/run/adder.sock").max_workers(0).build().unwrap_err();
/// assert!(matches!(error, ConfigError::NoWorkers));
/// # });
/// ```
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// No address was set.
    #[error(
        "the client has no address: set one with `address`, as in address(\"unix:/run/app.sock\")"
    )]
    NoAddress,
    /// An address cannot be parsed.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The address is an inherited listening descriptor, to which a client cannot connect.
    #[error(
        "{address} is a listening descriptor, to which a client cannot connect: use unix:PATH or tcp:HOST:PORT"
    )]
    NotConnectable {
        /// The address.
        address: String,
    },
    /// `max_workers` is 0.
    #[error("max_workers is 0, so that no checkout could ever be served: set it to 1 or more")]
    NoWorkers,
    /// `max_workers` is below `min_workers`.
    #[error("max_workers is {max_workers}, which is less than min_workers, {min_workers}")]
    MaxBelowMin {
        /// The value of `min_workers`.
        min_workers: usize,
        /// The value of `max_workers`.
        max_workers: usize,
    },
    /// `max_checkouts` is 0.
    #[error("max_checkouts is 0, so that no worker could serve anything: set it to 1 or more")]
    NoCheckouts,
    /// An option has a value with which no call can succeed.
    #[error("the option `{option}` cannot be so: {reason}")]
    Option {
        /// The option's name.
        option: &'static str,
        /// Why its value is not allowed.
        reason: String,
    },
    /// `build` was called outside a tokio runtime.
    #[error(
        "a client is built inside a tokio runtime: call `build` from async code, or use \
         `taskfork::blocking::Client` in a program without async"
    )]
    NoRuntime,
}

debug_as_text!(ConfigError);

/// Checks how many workers a client is to have.
pub(super) fn check_workers(min_workers: usize, max_workers: usize) -> Result<(), ConfigError> {
    if max_workers == 0 {
        return Err(ConfigError::NoWorkers);
    }
    if max_workers < min_workers {
        return Err(ConfigError::MaxBelowMin { min_workers, max_workers });
    }
    Ok(())
}
