//! What a worker passes on to a program that it executes in its own place, as bytes. Both sides have the same version of this
//! crate, so it has no other format.

use std::fmt::Display;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::init::WorkerConfig;
use super::replace_after::ReplaceAfter;
use crate::busy_poll::BusyPoll;
use crate::sys;
use crate::time_limit::TimeLimit;
use crate::wire::values::{self, ValueFormat};

/// The environment variable with the number of the descriptor of the state.
pub(super) const STATE_VARIABLE: &str = "TASKFORK_WORKER";

/// Programs and servers fit if they have the same version of this crate: the state and the slot have no other format.
pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The longest state in bytes, without what has been received from the client.
const MAX_STATE: usize = 1 << 16;

/// The longest version that is looked for, in bytes.
const MAX_VERSION: usize = 64;

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct State {
    /// The process that takes the worker over.
    pub(super) pid: u32,
    pub(super) number: u64,
    pub(super) server: String,
    pub(super) scratch: Option<Vec<u8>>,
    pub(super) config: Config,
    /// `None` before there is one.
    pub(super) client: Option<Client>,
    pub(super) slot: RawFd,
    pub(super) published: RawFd,
    pub(super) wake: RawFd,
    /// The files of [`OccupiedMemory`].
    pub(super) memory: Option<[RawFd; 2]>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Client {
    /// A client, to which the hello has been sent if it `is_greeted`. It has sent `files` for later messages.
    Connection { socket: RawFd, files: Vec<RawFd>, is_greeted: bool },
    /// A spare worker gets its client here.
    Channel(RawFd),
}

/// [`WorkerConfig`]. Times are in microseconds.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Config {
    max_frame: usize,
    max_blob: usize,
    shared_memory: usize,
    stall_timeout: Option<u64>,
    busy_poll: Polling,
    cores: usize,
    max_result: usize,
    max_calls: Option<u64>,
    max_memory: Option<u64>,
    replace_after: Option<Replacing>,
    share_details: bool,
    server_user: Option<u32>,
}

#[derive(Debug, Serialize, Deserialize)]
enum Polling {
    Adaptive,
    Off,
    Fixed(u64),
}

#[derive(Debug, Serialize, Deserialize)]
enum Replacing {
    Panic,
    AnyError,
    Never,
}

impl Config {
    pub(super) fn of(config: &WorkerConfig) -> Self {
        Self {
            max_frame: config.max_frame,
            max_blob: config.max_blob,
            shared_memory: config.shared_memory,
            stall_timeout: config.stall_timeout.microseconds(),
            busy_poll: match config.busy_poll {
                BusyPoll::Adaptive => Polling::Adaptive,
                BusyPoll::Fixed(time) => {
                    Polling::Fixed(u64::try_from(time.as_micros()).unwrap_or(u64::MAX))
                }
                _ => Polling::Off,
            },
            cores: config.cores,
            max_result: config.max_result,
            max_calls: config.max_calls,
            max_memory: config.max_memory,
            replace_after: config.replace_after.map(|after| match after {
                ReplaceAfter::Panic => Replacing::Panic,
                ReplaceAfter::AnyError => Replacing::AnyError,
                ReplaceAfter::Never => Replacing::Never,
            }),
            share_details: config.share_details,
            server_user: config.server_user,
        }
    }

    pub(super) fn into_config(self) -> WorkerConfig {
        WorkerConfig {
            max_frame: self.max_frame,
            max_blob: self.max_blob,
            shared_memory: self.shared_memory,
            stall_timeout: self
                .stall_timeout
                .map_or(TimeLimit::NEVER, TimeLimit::from_microseconds),
            busy_poll: match self.busy_poll {
                Polling::Adaptive => BusyPoll::Adaptive,
                Polling::Off => BusyPoll::Off,
                Polling::Fixed(time) => BusyPoll::Fixed(Duration::from_micros(time)),
            },
            cores: self.cores,
            max_result: self.max_result,
            max_calls: self.max_calls,
            max_memory: self.max_memory,
            replace_after: self.replace_after.map(|after| match after {
                Replacing::Panic => ReplaceAfter::Panic,
                Replacing::AnyError => ReplaceAfter::AnyError,
                Replacing::Never => ReplaceAfter::Never,
            }),
            share_details: self.share_details,
            server_user: self.server_user,
        }
    }
}

impl State {
    /// Writes the state, and what has been received from the client, to a file in memory. Its parts are the version, the length of
    /// the state, the state, and what has been received.
    pub(super) fn write(&self, received: &[u8]) -> io::Result<OwnedFd> {
        let state = values::encode_to_vec(self).map_err(io::Error::other)?;
        let length = u32::try_from(state.len()).map_err(io::Error::other)?;
        let version = [VERSION.as_bytes(), b"\n"].concat();
        let parts = [&version[..], &length.to_le_bytes(), &state, received];
        sys::memory_with("taskfork-state", &parts)
    }

    /// Reads what [`write`](Self::write) has written.
    pub(super) fn read(content: &[u8]) -> Result<(Self, &[u8]), String> {
        let failed =
            |error: &dyn Display| format!("the state of the worker cannot be read: {error}");
        let end = content.iter().take(MAX_VERSION).position(|&byte| byte == b'\n');
        let version = end.and_then(|end| std::str::from_utf8(&content[..end]).ok());
        if version != Some(VERSION) {
            return Err(version_error(version.unwrap_or("unknown")));
        }
        let (state, received) =
            split(&content[VERSION.len() + 1..]).ok_or_else(|| failed(&"it is incomplete"))?;
        let state =
            values::decode(state, ValueFormat::MessagePack).map_err(|error| failed(&error))?;
        Ok((state, received))
    }
}

/// Why a server does not pass its connections to a program of this version.
pub(super) fn version_error(other: &str) -> String {
    format!(
        "this side has version {VERSION} of taskfork, and the other one {other}: the package of the program and the command or crate of \
         the server must have the same version"
    )
}

/// The state, and what follows it.
fn split(content: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = content.split_first_chunk()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    if length > MAX_STATE {
        return None;
    }
    rest.split_at_checked(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(busy_poll: BusyPoll, replace_after: Option<ReplaceAfter>) -> WorkerConfig {
        WorkerConfig {
            max_frame: 1,
            max_blob: 2,
            shared_memory: 3,
            stall_timeout: TimeLimit::new(Duration::from_micros(4)),
            busy_poll,
            cores: 5,
            max_result: usize::MAX,
            max_calls: Some(6),
            max_memory: None,
            replace_after,
            share_details: true,
            server_user: Some(7),
        }
    }

    #[test]
    fn options_arrive_as_they_were() {
        let polls = [BusyPoll::Adaptive, BusyPoll::Off, BusyPoll::Fixed(Duration::from_micros(8))];
        let after = [ReplaceAfter::Panic, ReplaceAfter::AnyError, ReplaceAfter::Never];
        let after: Vec<_> = after.into_iter().map(Some).chain([None]).collect();
        for (poll, after) in polls
            .into_iter()
            .flat_map(|poll| after.iter().map(move |&after| (poll, after)).collect::<Vec<_>>())
        {
            let config = config(poll, after);
            let encoded = values::encode_to_vec(&Config::of(&config)).unwrap();
            let read: Config = values::decode(&encoded, ValueFormat::MessagePack).unwrap();
            assert_eq!(format!("{:?}", read.into_config()), format!("{config:?}"));
        }
    }

    #[test]
    fn a_state_ends_within_its_file_and_has_a_limit() {
        let with = |length: u32, rest: &[u8]| [&length.to_le_bytes()[..], rest].concat();
        assert_eq!(split(&with(2, b"abc")), Some((&b"ab"[..], &b"c"[..])));
        assert_eq!(split(&with(0, b"")), Some((&b""[..], &b""[..])));
        for content in [with(4, b"abc"), vec![], vec![1, 0, 0], with(1 << 17, &[0; 1 << 18])] {
            assert_eq!(split(&content), None);
        }
    }
}
