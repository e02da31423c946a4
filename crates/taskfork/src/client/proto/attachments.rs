//! What accompanies the messages of a connection: files and shared memory.

use super::AnswerAttachments;
use super::connection::{Connection, Sharing};
use super::disconnect::Disconnect;
use super::ring_offer::{CALLS_BEFORE_RINGS, RingOffer};
use crate::shm_pool::ShmBufferMut;
use crate::wire::WireError;
use crate::wire::attachments::Attachments;
use crate::wire::gather_frame::{GatherFrame, ReceiverLimits};
use crate::wire::native::{self, FromWorker};

impl Connection {
    /// Takes what accompanied the last message.
    pub(crate) fn take_attachments(&mut self) -> Result<AnswerAttachments, Disconnect> {
        if self.announced_files == 0 && !self.shm_pool.has_received() {
            return Ok(None);
        }
        let count = std::mem::take(&mut self.announced_files);
        if count > self.files_received.len() {
            return Err(WireError::Files.into());
        }
        let files = self.files_received.drain(..count).collect();
        let shared = self.shm_pool.take_received()?;
        let attachments =
            Attachments { files, shared, max_blob: self.max_blob, max_inlined: self.max_receive };
        Ok((!attachments.is_empty()).then(|| Box::new(attachments)))
    }

    /// Applies what the worker has released, though no message of its own follows that refers to memory.
    pub(crate) fn apply_releases(&mut self) -> Result<(), Disconnect> {
        self.shm_pool.apply_releases().map_err(Disconnect::from)
    }

    /// Handles a message that concerns only the transport of others. Returns whether it was one.
    pub(super) fn handle_control(&mut self, message: &[u8]) -> Result<bool, Disconnect> {
        if !native::is_transport_message(message) {
            return Ok(self.is_doorbell(message));
        }
        if self.has_announced_files() {
            return Err(Disconnect::files_without_answer());
        }
        match FromWorker::decode(message) {
            Ok(FromWorker::Files(count)) if count > self.max_files => {
                return Err(Disconnect::violation(format!(
                    "the worker announced {count} files for a message, and the limit is {}",
                    self.max_files
                )));
            }
            Ok(FromWorker::Files(count)) => self.announced_files = count,
            Ok(FromWorker::Rings) => self.handle_rings_accepted()?,
            Ok(FromWorker::SetUp) => self.handle_set_up()?,
            Ok(FromWorker::End(end)) => return Err(self.handle_stream_end(end)),
            Ok(FromWorker::Shm(message)) => {
                self.accept_sharing(message.agreed)?;
                let idle = message.idle;
                self.shm_pool.handle_message(message, &mut self.files_received)?;
                if idle && !self.is_call_partly_sent() {
                    self.put_shm_control();
                }
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Whether files accompany the next message, which must be an answer then.
    pub(crate) fn has_announced_files(&self) -> bool {
        self.announced_files > 0
    }

    /// Begins to share memory when the worker agrees.
    ///
    /// # Errors
    /// If the worker agrees without a request, without a call or twice, or sends another message about memory before.
    fn accept_sharing(&mut self, agreed: Option<usize>) -> Result<(), WireError> {
        let what = match (self.sharing, agreed) {
            (Sharing::Agreed, None) => return Ok(()),
            (Sharing::Requested { .. }, Some(_)) if !self.calls.is_next_sent() => {
                "the worker agreed to share memory though no call runs"
            }
            (Sharing::Requested { max_shared }, Some(bytes)) => {
                self.sharing = Sharing::Agreed;
                self.shm_pool.set_capacity(bytes.min(max_shared));
                self.ring_offer = RingOffer::After(CALLS_BEFORE_RINGS);
                return Ok(());
            }
            (Sharing::Agreed, Some(_)) => "the worker agreed twice to share memory",
            (Sharing::Off, Some(_)) => "the worker agreed to share memory, which was not asked for",
            (Sharing::Off | Sharing::Requested { .. }, None) => {
                "the worker spoke of memory that is lent, but has not agreed to share any"
            }
        };
        Err(WireError::malformed(what))
    }

    /// Appends to the outbox which shared memory each side may reuse.
    pub(crate) fn put_shm_control(&mut self) {
        self.settle_item();
        self.shm_pool.write_control(self.outbox.out());
    }

    /// Changes a call so that this worker can receive it: its blobs and files become what the worker accepts.
    pub(crate) fn fit(&mut self, call: &mut GatherFrame) -> Result<Vec<usize>, String> {
        let shm_pool = &mut self.shm_pool;
        let worker = ReceiverLimits {
            max_frame: self.max_send,
            max_blob: self.max_blob_sent,
            max_files: self.files,
        };
        call.fit_with(worker, |bytes, origin, may_add| shm_pool.store(bytes, origin, may_add))
    }

    /// Allocates memory that is shared with the worker, for bytes that are written in place.
    pub(crate) fn alloc_shared(&mut self, length: usize) -> Option<ShmBufferMut> {
        // Bytes that are too long for a message could not be sent to another worker by copying.
        if length < self.max_send { self.shm_pool.alloc(length) } else { None }
    }
}
