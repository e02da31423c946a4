//! The first message of each side, which negotiates version and limits.

use smallvec::SmallVec;

use super::WireError;
use super::fields::{MapWriter, read_list, read_map};
use super::msgpack::{Reader, put_array, put_uint};
use super::native::kind::HELLO;
use super::peer;
use crate::peer::Peer;

/// The protocol versions that this crate speaks.
pub(crate) const VERSIONS: &[u32] = &[1];

/// The most versions that a client may offer.
const MAX_VERSIONS: usize = 32;

pub(crate) use super::wire_error::MAX_HELLO;

/// The most bytes of a name in a hello. The sender cuts longer names.
const MAX_NAME: usize = 1024;

/// The key of the interfaces that a client requires.
const INTERFACES: &str = "interfaces";

/// The key by which both sides say that they speak of `setup`.
const SETUP: &str = "setup";

/// The smallest `max_frame` that a peer may have, so that errors can be sent to it.
pub(crate) const MIN_FRAME: usize = 256;

/// A client's hello. Reading it allocates nothing: each page that a new worker writes to is copied for it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct ClientHello<'a> {
    pub(crate) versions: SmallVec<[u32; 4]>,
    pub(crate) name: &'a str,
    /// The longest frame that the client receives, in bytes; `None` for the default.
    pub(crate) max_frame: Option<usize>,
    /// The longest blob that it receives as a memfd, in bytes; `None` for the default.
    pub(crate) max_blob: Option<usize>,
    /// How many files it receives with a message.
    pub(crate) max_files: usize,
    /// How many bytes of the worker's memory it keeps mapped.
    pub(crate) shared_memory: usize,
    /// A random number that identifies the client; 0 for none.
    pub(crate) client_number: u64,
    /// The encoded interfaces that the client requires. [`compatibility`](super::compatibility) reads them.
    pub(crate) interfaces: Option<&'a [u8]>,
    /// It reads the message that `setup` has succeeded.
    pub(crate) awaits_setup: bool,
    /// The bytes in which a gateway says whose connection it relays. [`relayed_peer`](Self::relayed_peer) reads
    /// them.
    pub(crate) peer: Option<&'a [u8]>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct WorkerHello {
    pub(crate) version: u32,
    pub(crate) pid: u32,
    pub(crate) worker: u64,
    pub(crate) server: String,
    /// The longest frame that the worker receives, in bytes; `None` for the default.
    pub(crate) max_frame: Option<usize>,
    /// How many bytes of calls may be unanswered; 0 for one call at a time.
    pub(crate) pipeline_window: usize,
    /// The longest blob that it receives as a memfd, in bytes; `None` for the default.
    pub(crate) max_blob: Option<usize>,
    /// How many files it receives with a message.
    pub(crate) max_files: usize,
    /// It is a program that wants SIGALRM when a call's time is over.
    pub(crate) wants_alarm: bool,
    /// It accepts calls that end their checkouts.
    pub(crate) accepts_single_calls: bool,
    /// It streams items to callers that read them.
    pub(crate) sends_items: bool,
    /// It takes inputs that callers stream.
    pub(crate) takes_input: bool,
    /// It begins no call before it has sent the message that `setup` has succeeded.
    pub(crate) announces_setup: bool,
    /// It is a program that can serve a connection itself, with this version of the package. Empty if it cannot.
    pub(crate) takes_over: String,
}

#[cfg_attr(feature = "server", taskfork_macros::startup_code)]
impl<'a> ClientHello<'a> {
    /// Reads the part of the message after its kind.
    pub(super) fn read(reader: &mut Reader<'a>) -> Result<Self, WireError> {
        let mut hello = Self::default();
        read_map(reader, |key, reader| {
            match key {
                "versions" => hello.versions = read_list(reader, key, MAX_VERSIONS, Reader::int)?,
                "name" => hello.name = reader.str()?,
                "max_frame" => hello.max_frame = Some(reader.size()?),
                "max_blob" => hello.max_blob = Some(reader.size()?),
                "files" => hello.max_files = reader.size()?,
                "lent" => hello.shared_memory = reader.size()?,
                "client" => hello.client_number = reader.int()?,
                SETUP => hello.awaits_setup = reader.bool()?,
                INTERFACES => hello.interfaces = Some(reader.value()?),
                peer::KEY => hello.peer = Some(reader.value()?),
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok(hello)
    }

    /// Whose connection a gateway relays; `None` if this is the hello of the client that has connected.
    pub(crate) fn relayed_peer(&self) -> Result<Option<Peer>, WireError> {
        self.peer.map(peer::read).transpose()
    }

    /// Why this client cannot be served; `None` if it can.
    pub(crate) fn incompatibility(&self) -> Option<String> {
        let max_frame = self.max_frame.filter(|&limit| limit < MIN_FRAME)?;
        Some(format!(
            "the client `{}` takes frames of at most {max_frame} bytes, and at least {MIN_FRAME} are \
             needed (max_frame)",
            self.name
        ))
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        put_array(out, 2);
        put_uint(out, HELLO);
        let mut map = MapWriter::new(out);
        let out = map.key("versions");
        put_array(out, self.versions.len() as u32);
        self.versions.iter().for_each(|&version| put_uint(out, u64::from(version)));
        map.str("name", truncated(self.name));
        map.optional_uint("max_frame", self.max_frame.map(|limit| limit as u64));
        map.optional_uint("max_blob", self.max_blob.map(|limit| limit as u64));
        map.nonzero("files", self.max_files as u64);
        map.nonzero("lent", self.shared_memory as u64);
        map.nonzero("client", self.client_number);
        map.flag(SETUP, self.awaits_setup);
        if let Some(interfaces) = self.interfaces {
            map.key(INTERFACES).extend_from_slice(interfaces);
        }
        if let Some(peer) = self.peer {
            map.key(peer::KEY).extend_from_slice(peer);
        }
    }
}

#[cfg_attr(feature = "server", taskfork_macros::startup_code)]
impl WorkerHello {
    /// Reads the part of the message after its kind.
    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let mut hello = Self::default();
        read_map(reader, |key, reader| {
            match key {
                "version" => hello.version = reader.int()?,
                "pid" => hello.pid = reader.int()?,
                "worker" => hello.worker = reader.int()?,
                "server" => hello.server = reader.str()?.to_owned(),
                "max_frame" => hello.max_frame = Some(reader.size()?),
                "max_blob" => hello.max_blob = Some(reader.size()?),
                "ahead" => hello.pipeline_window = reader.size()?,
                "files" => hello.max_files = reader.size()?,
                "alarm" => hello.wants_alarm = reader.bool()?,
                "items" => hello.sends_items = reader.bool()?,
                "input" => hello.takes_input = reader.bool()?,
                SETUP => hello.announces_setup = reader.bool()?,
                "single_calls" => hello.accepts_single_calls = reader.bool()?,
                "takes_over" => hello.takes_over = reader.str()?.to_owned(),
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok(hello)
    }

    /// Why this worker cannot be used; `None` if it can.
    pub(crate) fn incompatibility(&self) -> Option<String> {
        if !VERSIONS.contains(&self.version) {
            return Some(format!(
                "the server speaks version {} of the protocol, and this client offered {VERSIONS:?}: \
                 one of them must be updated",
                self.version
            ));
        }
        let max_frame = self.max_frame.filter(|&limit| limit < MIN_FRAME)?;
        Some(format!(
            "the server takes frames of at most {max_frame} bytes, and at least {MIN_FRAME} are needed \
             (max_frame)"
        ))
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        put_array(out, 2);
        put_uint(out, HELLO);
        let mut map = MapWriter::new(out);
        map.uint("version", u64::from(self.version));
        map.uint("pid", u64::from(self.pid));
        map.uint("worker", self.worker);
        map.str("server", truncated(&self.server));
        map.optional_uint("max_frame", self.max_frame.map(|limit| limit as u64));
        map.optional_uint("max_blob", self.max_blob.map(|limit| limit as u64));
        map.nonzero("ahead", self.pipeline_window as u64);
        map.nonzero("files", self.max_files as u64);
        map.flag("single_calls", self.accepts_single_calls);
        map.flag("items", self.sends_items);
        map.flag("input", self.takes_input);
        map.flag(SETUP, self.announces_setup);
        if !self.takes_over.is_empty() {
            map.str("takes_over", &self.takes_over);
        }
    }
}

/// As much of a name as a hello may contain.
fn truncated(name: &str) -> &str {
    &name[..name.floor_char_boundary(MAX_NAME)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::native::{FromClient, FromWorker};

    #[test]
    fn the_sender_truncates_long_names() {
        let name = format!("a{}", "é".repeat(1 << 20));
        let mut out = Vec::new();
        ClientHello { name: &name, ..ClientHello::default() }.put(&mut out);
        assert!(out.len() < MAX_HELLO);
        let Ok(FromClient::Hello(hello)) = FromClient::decode(&out) else {
            panic!("it is not a hello")
        };
        assert_eq!((hello.name.len(), name.starts_with(hello.name)), (1023, true));

        let mut out = Vec::new();
        WorkerHello { server: name.clone(), ..WorkerHello::default() }.put(&mut out);
        let Ok(FromWorker::Hello(hello)) = FromWorker::decode(&out) else {
            panic!("it is not a hello")
        };
        assert_eq!((hello.server.len(), name.starts_with(&hello.server)), (1023, true));
    }

    #[test]
    fn too_many_versions_are_refused() {
        let offer = |count: u32| {
            let mut out = Vec::new();
            ClientHello { versions: (0..count).collect(), ..ClientHello::default() }.put(&mut out);
            FromClient::decode(&out).map(|_| ()).map_err(|error| error.to_string())
        };
        assert_eq!(offer(32), Ok(()));
        assert!(offer(33).unwrap_err().contains("`versions` has 33 items, and the limit is 32"));
    }
}
