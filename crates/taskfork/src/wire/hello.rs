//! What the two sides of a connection say first.

use smallvec::SmallVec;

use super::WireError;
use super::native::{HELLO, list, meta};
use super::pack::{Reader, put_array, put_bool, put_map, put_str, put_uint};

/// The most protocol versions that a client may offer. There is one today.
const MOST_VERSIONS: usize = 32;

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
    /// How many bytes of the client's memory it keeps mapped.
    pub(crate) lent: usize,
    /// It takes memory for two rings.
    pub(crate) rings: bool,
    /// It is a program that wants SIGALRM when the time of a call is over.
    pub(crate) alarm: bool,
}

impl<'a> ClientHello<'a> {
    /// Reads what follows the kind.
    pub(super) fn read(reader: &mut Reader<'a>) -> Result<Self, WireError> {
        let mut hello = Self::default();
        meta(reader, |key, reader| {
            match key {
                "versions" => hello.versions = list(reader, key, MOST_VERSIONS, Reader::int)?,
                "name" => hello.name = reader.str()?,
                "max_frame" => hello.max_frame = Some(reader.int()?),
                "max_blob" => hello.max_blob = Some(reader.int()?),
                "files" => hello.files = reader.int()?,
                "lent" => hello.lent = reader.int()?,
                "client" => hello.client = reader.int()?,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok(hello)
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
        put_str(out, self.name);
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
                "max_frame" => hello.max_frame = Some(reader.int()?),
                "max_blob" => hello.max_blob = Some(reader.int()?),
                "ahead" => hello.ahead = reader.int()?,
                "files" => hello.files = reader.int()?,
                "lent" => hello.lent = reader.int()?,
                "rings" => hello.rings = reader.bool()?,
                "alarm" => hello.alarm = reader.bool()?,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok(hello)
    }

    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        put_array(out, 2);
        put_uint(out, HELLO);
        let optional = [
            self.max_frame.is_some(),
            self.max_blob.is_some(),
            self.ahead > 0,
            self.files > 0,
            self.lent > 0,
            self.rings,
        ];
        put_map(out, 4 + optional.iter().map(|&there| u32::from(there)).sum::<u32>());
        put_str(out, "version");
        put_uint(out, u64::from(self.version));
        put_str(out, "pid");
        put_uint(out, u64::from(self.pid));
        put_str(out, "worker");
        put_uint(out, self.worker);
        put_str(out, "server");
        put_str(out, &self.server);
        put_limit(out, "max_frame", self.max_frame);
        put_limit(out, "max_blob", self.max_blob);
        put_number(out, "ahead", self.ahead as u64);
        put_number(out, "files", self.files as u64);
        put_number(out, "lent", self.lent as u64);
        if self.rings {
            put_str(out, "rings");
            put_bool(out, true);
        }
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
