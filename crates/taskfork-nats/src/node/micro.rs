//! A node as a NATS micro service: what it answers to `$SRV.PING`, `$SRV.INFO` and `$SRV.STATS`.
//!
//! async-nats' own services have metadata that cannot change, and are always in their queue group. A node's
//! metadata says how much room it has, and a full node leaves the group.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde::Serialize;

use crate::error::Error;
use crate::names::{Labels, Name, Subjects};
use crate::node::Settings;

/// How many bytes of the names of methods are told. An answer must fit a message.
const MAX_METHODS: usize = 4096;

/// What a node tells about itself.
#[derive(Debug)]
pub(super) struct Micro {
    service: Name,
    id: String,
    version: String,
    started: SystemTime,
    metadata: Metadata,
    endpoints: Vec<Endpoint>,
}

type Metadata = BTreeMap<&'static str, String>;

/// Something that a node can be asked for.
#[derive(Debug)]
pub(super) struct Endpoint {
    name: &'static str,
    subject: String,
    group: String,
    counts: Mutex<Counts>,
}

#[derive(Clone, Debug, Default)]
struct Counts {
    requests: u64,
    errors: u64,
    last_error: String,
    time: Duration,
}

/// What a micro service is asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Verb {
    Ping,
    Info,
    Stats,
}

impl Verb {
    pub(super) const ALL: [Self; 3] = [Self::Ping, Self::Info, Self::Stats];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ping => "PING",
            Self::Info => "INFO",
            Self::Stats => "STATS",
        }
    }
}

/// The answers share these fields.
#[derive(Serialize)]
struct Answer<'a, E> {
    r#type: &'static str,
    name: &'a str,
    id: &'a str,
    version: &'a str,
    metadata: Metadata,
    #[serde(flatten)]
    more: E,
}

#[derive(Serialize)]
struct NoMore {}

#[derive(Serialize)]
struct Info<'a> {
    description: &'static str,
    endpoints: Vec<EndpointInfo<'a>>,
}

#[derive(Serialize)]
struct EndpointInfo<'a> {
    name: &'static str,
    subject: &'a str,
    queue_group: &'a str,
    metadata: Metadata,
}

#[derive(Serialize)]
struct Stats<'a> {
    started: String,
    endpoints: Vec<EndpointStats<'a>>,
}

#[derive(Serialize)]
struct EndpointStats<'a> {
    name: &'static str,
    subject: &'a str,
    queue_group: &'a str,
    num_requests: u64,
    num_errors: u64,
    last_error: String,
    /// In nanoseconds, as the next one.
    processing_time: u64,
    average_processing_time: u64,
}

impl Micro {
    pub(super) fn new(
        service: Name,
        node: &Name,
        id: String,
        labels: &Labels,
        settings: &Settings,
        subjects: &Subjects,
    ) -> Self {
        let mut metadata = Metadata::new();
        metadata.insert("node", node.to_string());
        metadata.insert("sessions", settings.sessions.to_string());
        metadata.insert("methods", listed(&settings.methods));
        metadata.insert("labels", labels.texts().join(","));
        if let Some(workers) = settings.workers {
            metadata.insert("workers", workers.to_string());
        }
        let group = subjects.group();
        let endpoint = |name, subject| Endpoint {
            name,
            subject,
            group: group.clone(),
            counts: Mutex::default(),
        };
        let endpoints = vec![
            endpoint("acquire", subjects.acquire(&Labels::default())),
            endpoint("call", subjects.calls()),
        ];
        let (version, started) = (settings.version.clone(), SystemTime::now());
        Self { service, id, version, started, metadata, endpoints }
    }

    /// Where requests for sessions are counted.
    pub(super) fn acquire(&self) -> &Endpoint {
        &self.endpoints[0]
    }

    /// Where calls are counted.
    pub(super) fn call(&self) -> &Endpoint {
        &self.endpoints[1]
    }

    /// The answer of a node with this much room. It leaves the methods out if it would have more bytes than `most`.
    pub(super) fn answer(&self, verb: Verb, free: usize, most: usize) -> Bytes {
        let mut metadata = self.metadata.clone();
        metadata.insert("free", free.to_string());
        let answer = self.answer_with(verb, metadata.clone());
        if answer.len() <= most {
            return answer;
        }
        metadata.insert("methods", String::new());
        self.answer_with(verb, metadata)
    }

    fn answer_with(&self, verb: Verb, metadata: Metadata) -> Bytes {
        let json = match verb {
            Verb::Ping => self.json("io.nats.micro.v1.ping_response", metadata, NoMore {}),
            Verb::Info => {
                let endpoints = self.endpoints.iter().map(Endpoint::info).collect();
                let description = "workers of taskfork, by sessions over NATS and calls in JSON";
                let info = Info { description, endpoints };
                self.json("io.nats.micro.v1.info_response", metadata, info)
            }
            Verb::Stats => {
                let started = humantime::format_rfc3339_nanos(self.started).to_string();
                let endpoints = self.endpoints.iter().map(Endpoint::stats).collect();
                let stats = Stats { started, endpoints };
                self.json("io.nats.micro.v1.stats_response", metadata, stats)
            }
        };
        // These types have no map with keys that JSON lacks, and no float: serializing them cannot fail.
        json.unwrap_or_default().into()
    }

    fn json(
        &self,
        r#type: &'static str,
        metadata: Metadata,
        more: impl Serialize,
    ) -> Result<Vec<u8>, serde_json::Error> {
        let (name, id, version) = (self.service.as_str(), &*self.id, &*self.version);
        serde_json::to_vec(&Answer { r#type, name, id, version, metadata, more })
    }
}

impl Endpoint {
    /// Counts a request that took this long, and its error.
    pub(super) fn count(&self, time: Duration, error: Option<String>) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.requests += 1;
        counts.time += time;
        if let Some(error) = error {
            counts.errors += 1;
            counts.last_error = error;
        }
    }

    fn info(&self) -> EndpointInfo<'_> {
        EndpointInfo {
            name: self.name,
            subject: &self.subject,
            queue_group: &self.group,
            metadata: Metadata::new(),
        }
    }

    fn stats(&self) -> EndpointStats<'_> {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let time = u64::try_from(counts.time.as_nanos()).unwrap_or(u64::MAX);
        EndpointStats {
            name: self.name,
            subject: &self.subject,
            queue_group: &self.group,
            num_requests: counts.requests,
            num_errors: counts.errors,
            last_error: counts.last_error,
            processing_time: time,
            average_processing_time: time.checked_div(counts.requests).unwrap_or(0),
        }
    }
}

/// The names of methods with commas, as many as fit.
fn listed(methods: &[String]) -> String {
    let mut list = String::new();
    for method in methods {
        if list.len() + method.len() > MAX_METHODS {
            break;
        }
        list.push_str(method);
        list.push(',');
    }
    list.pop();
    list
}

/// Tools expect three numbers, perhaps with more after them.
pub(super) fn check_version(version: &str) -> Result<(), Error> {
    let numbers = version.split(['-', '+']).next().unwrap_or_default();
    let valid = numbers.split('.').count() == 3
        && numbers.split('.').all(|number| number.parse::<u64>().is_ok())
        && version.len() <= 64
        && version.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-+".contains(&byte));
    if valid {
        return Ok(());
    }
    Err(Error::InvalidVersion { version: crate::wire::shortened(version) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_that_do_not_fit_are_left_out() {
        let names = |count| (0..count).map(|number| format!("m{number:03}")).collect::<Vec<_>>();
        assert_eq!((listed(&[]), listed(&names(2))), (String::new(), "m000,m001".to_owned()));
        let many = listed(&names(1000));
        assert!((MAX_METHODS - 5..=MAX_METHODS).contains(&many.len()), "{}", many.len());
        assert_eq!(many.split(',').next_back(), Some(&*format!("m{:03}", many.len() / 5)));
        assert_eq!(listed(&["m".repeat(MAX_METHODS + 1)]), "");
    }

    #[test]
    fn versions_have_three_numbers() {
        for version in ["1.2.0", "0.1.0-rc.1", "10.0.3+build"] {
            assert!(check_version(version).is_ok(), "{version}");
        }
        for version in ["", "1", "1.2", "1.2.x", "v1.2.3", "1.2.3 4", "1.2.3.4"] {
            assert!(check_version(version).is_err(), "{version}");
        }
    }
}
