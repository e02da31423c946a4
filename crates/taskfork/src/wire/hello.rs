//! What the two sides of a connection say first.

use smallvec::SmallVec;

use super::WireError;
use super::msgpack::{Reader, put_array, put_map, put_str, put_uint};
use super::native::{HELLO, VERSIONS, list, meta};

/// The most protocol versions that a client may offer. There is one today.
const MAX_VERSIONS: usize = 32;

/// The most bytes of a hello, and of an error in its place. It comes from a stranger, and a few hundred
/// are needed.
pub(crate) const MAX_HELLO: usize = 16 << 10;

/// The most bytes of a name in a hello. The sender cuts longer ones.
const MAX_NAME: usize = 1024;

/// The least limit of a frame that a peer may have, so that errors can be told to it.
pub(crate) const MIN_FRAME: usize = 256;

/// Read without taking memory, as a new worker would have to have a page copied for it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct ClientHello<'a> {
    pub(crate) versions: SmallVec<[u32; 4]>,
    pub(crate) name: &'a str,
    /// The longest frame that the client takes; nothing said is the default limit.
    pub(crate) max_frame: Option<usize>,
    /// The most bytes of a blob that it takes as memory; nothing said is the default.
    pub(crate) max_blob: Option<usize>,
    /// How many files it takes with a message.
    pub(crate) files: usize,
    /// How many bytes of the worker's memory it keeps mapped.
    pub(crate) lent: usize,
    /// A number that no other client has; 0 if none is said.
    pub(crate) client: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct WorkerHello {
    pub(crate) version: u32,
    pub(crate) pid: u32,
    pub(crate) worker: u64,
    pub(crate) server: String,
    pub(crate) max_frame: Option<usize>,
    /// How many bytes of calls may be sent to it before it has answered; none is one call at a time.
    pub(crate) ahead: usize,
    /// The most bytes of a blob that it takes as memory; nothing said is the default.
    pub(crate) max_blob: Option<usize>,
    /// How many files it takes with a message.
    pub(crate) files: usize,
    /// It is a program that wants SIGALRM when the time of a call is over.
    pub(crate) alarm: bool,
}

impl<'a> ClientHello<'a> {
    /// Reads what follows the kind.
    pub(super) fn read(reader: &mut Reader<'a>) -> Result<Self, WireError> {
        let mut hello = Self::default();
        meta(reader, |key, reader| {
            match key {
                "versions" => hello.versions = list(reader, key, MAX_VERSIONS, Reader::int)?,
                "name" => hello.name = reader.str()?,
                "max_frame" => hello.max_frame = Some(reader.size()?),
                "max_blob" => hello.max_blob = Some(reader.size()?),
                "files" => hello.files = reader.size()?,
                "lent" => hello.lent = reader.size()?,
                "client" => hello.client = reader.int()?,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok(hello)
    }

    /// Why this client cannot be served, if so.
    pub(crate) fn incompatibility(&self) -> Option<String> {
        let least = self.max_frame.filter(|&most| most < MIN_FRAME)?;
        Some(format!(
            "the client `{}` takes frames of at most {least} bytes, and at least {MIN_FRAME} are \
             needed (max_frame)",
            self.name
        ))
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        let optional = [
            self.max_frame.is_some(),
            self.max_blob.is_some(),
            self.files > 0,
            self.lent > 0,
            self.client > 0,
        ];
        put_array(out, 2);
        put_uint(out, HELLO);
        put_map(out, 2 + optional.iter().map(|&there| u32::from(there)).sum::<u32>());
        put_str(out, "versions");
        put_array(out, self.versions.len() as u32);
        self.versions.iter().for_each(|&version| put_uint(out, u64::from(version)));
        put_str(out, "name");
        put_str(out, cut(self.name));
        put_limit(out, "max_frame", self.max_frame);
        put_limit(out, "max_blob", self.max_blob);
        put_number(out, "files", self.files as u64);
        put_number(out, "lent", self.lent as u64);
        put_number(out, "client", self.client);
    }
}

impl WorkerHello {
    /// Reads what follows the kind.
    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let mut hello = Self::default();
        meta(reader, |key, reader| {
            match key {
                "version" => hello.version = reader.int()?,
                "pid" => hello.pid = reader.int()?,
                "worker" => hello.worker = reader.int()?,
                "server" => hello.server = reader.str()?.to_owned(),
                "max_frame" => hello.max_frame = Some(reader.size()?),
                "max_blob" => hello.max_blob = Some(reader.size()?),
                "ahead" => hello.ahead = reader.size()?,
                "files" => hello.files = reader.size()?,
                "alarm" => hello.alarm = reader.bool()?,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok(hello)
    }

    /// Why this worker cannot be used, if so.
    pub(crate) fn incompatibility(&self) -> Option<String> {
        if !VERSIONS.contains(&self.version) {
            return Some(format!(
                "the server speaks version {} of the protocol, and this client offered {VERSIONS:?}: \
                 one of them must be updated",
                self.version
            ));
        }
        let least = self.max_frame.filter(|&most| most < MIN_FRAME)?;
        Some(format!(
            "the server takes frames of at most {least} bytes, and at least {MIN_FRAME} are needed \
             (max_frame)"
        ))
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        put_array(out, 2);
        put_uint(out, HELLO);
        let optional =
            [self.max_frame.is_some(), self.max_blob.is_some(), self.ahead > 0, self.files > 0];
        put_map(out, 4 + optional.iter().map(|&there| u32::from(there)).sum::<u32>());
        put_str(out, "version");
        put_uint(out, u64::from(self.version));
        put_str(out, "pid");
        put_uint(out, u64::from(self.pid));
        put_str(out, "worker");
        put_uint(out, self.worker);
        put_str(out, "server");
        put_str(out, cut(&self.server));
        put_limit(out, "max_frame", self.max_frame);
        put_limit(out, "max_blob", self.max_blob);
        put_number(out, "ahead", self.ahead as u64);
        put_number(out, "files", self.files as u64);
    }
}

/// A number that is left out if it is nothing.
fn put_number(out: &mut Vec<u8>, key: &str, number: u64) {
    if number > 0 {
        put_str(out, key);
        put_uint(out, number);
    }
}

fn put_limit(out: &mut Vec<u8>, key: &str, limit: Option<usize>) {
    if let Some(limit) = limit {
        put_str(out, key);
        put_uint(out, limit as u64);
    }
}

/// The beginning of a name, if it is too long.
fn cut(name: &str) -> &str {
    &name[..name.floor_char_boundary(MAX_NAME)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::native::{FromClient, FromWorker};

    #[test]
    fn long_names_are_cut_by_the_sender() {
        let name = format!("a{}", "é".repeat(1 << 20));
        let mut out = Vec::new();
        ClientHello { name: &name, ..ClientHello::default() }.put(&mut out);
        assert!(out.len() < MAX_HELLO);
        let Ok(FromClient::Hello(hello)) = FromClient::decode(&out) else { panic!("no hello") };
        assert_eq!((hello.name.len(), name.starts_with(hello.name)), (1023, true));

        let mut out = Vec::new();
        WorkerHello { server: name.clone(), ..WorkerHello::default() }.put(&mut out);
        let Ok(FromWorker::Hello(hello)) = FromWorker::decode(&out) else { panic!("no hello") };
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
