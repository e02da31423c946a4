//! The options of a client, from keyword arguments.

use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use taskfork::__private::binding;
use taskfork::client::{ClientBuilder, ConfigError};

use crate::pickles::Terms;
use crate::process::runtime;
use crate::remote::{self, Remote};

/// Longer than this, in seconds, is no limit: 100 years.
const LONGEST: f64 = 100.0 * 365.0 * 86400.0;

/// A time limit in seconds; `None` means no limit.
pub(crate) fn limit(option: &str, seconds: Option<f64>) -> PyResult<Option<Duration>> {
    match seconds {
        None => Ok(None),
        Some(seconds) if seconds >= LONGEST => Ok(None),
        Some(seconds) if seconds >= 0.0 => Ok(Some(Duration::from_secs_f64(seconds))),
        Some(seconds) => {
            Err(PyValueError::new_err(format!("{option} is {seconds}: a time is 0 or more")))
        }
    }
}

/// The options that a client is made with.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct Options {
    name: String,
    interfaces: Vec<String>,
    min_workers: Option<usize>,
    max_workers: usize,
    timeout: Option<f64>,
    grace: Option<f64>,
    max_checkouts: Option<u64>,
    max_queue: Option<usize>,
    reuse_after_error: bool,
    connect_timeout: Option<f64>,
    max_frame: usize,
    pickle: bool,
    writable: bool,
}

impl Options {
    pub(crate) fn terms(&self) -> Terms {
        Terms { pickles: self.pickle, writable: self.writable }
    }

    /// Builds the client. `ValueError` if an option or the address is wrong.
    pub(crate) fn build(self, remote: &Remote, address: &str) -> PyResult<taskfork::Client> {
        let unlimited = |time: Option<Duration>| time.unwrap_or(Duration::MAX);
        let mut builder: ClientBuilder = taskfork::Client::builder()
            .address(address)
            .name(self.name)
            .max_workers(self.max_workers)
            .timeout(limit("timeout", self.timeout)?)
            .grace(unlimited(limit("grace", self.grace)?))
            .max_checkouts(self.max_checkouts)
            .max_queue(self.max_queue)
            .reuse_after_error(self.reuse_after_error)
            .connect_timeout(unlimited(limit("connect_timeout", self.connect_timeout)?))
            .max_frame(self.max_frame)
            // A worker with an attacker's code could change them, and `bytes` never change.
            .copy_shared_memory(true);
        builder = binding::requiring(builder, self.interfaces);
        if let Some(workers) = self.min_workers {
            builder = builder.min_workers(workers);
        }
        builder = remote.connecting(builder)?;
        let runtime = runtime()?;
        let _in_runtime = runtime.enter();
        let client = builder.build().map_err(wrong)?;
        remote.placed(client).map_err(wrong)
    }
}

/// The error of options that do not go together, or that cannot be used.
fn wrong(error: ConfigError) -> PyErr {
    PyValueError::new_err(match error {
        ConfigError::Option { option, reason } => {
            format!("{} cannot be so: {reason}", remote::own_name(option))
        }
        error => error.to_string(),
    })
}
