//! A worker's side of its connection: the socket, the rings beside it, open files and shared memory.

use std::os::fd::OwnedFd;

use bytes::{Bytes, BytesMut};

use super::monitor::Monitor;
use super::slot::Slot;
use super::worker::{Exit, MAX_FRAME};
use crate::client::memory::Memory;
use crate::ring::{DOORBELL, Put, Rings};
use crate::shm_pool::ShmPool;
use crate::sys;
use crate::wire::attachments::Attachments;
use crate::wire::frame::{self, ATOMIC_WRITE, HEADER_LEN};
use crate::wire::gather_frame::{GatherFrame, ReceiverLimits};
use crate::wire::hello::ClientHello;
use crate::wire::native;
use crate::wire::shm::ShmMessage;

/// How many bytes of calls a worker reads ahead to find cancellations.
const READ_AHEAD: usize = 128 << 10;

/// The longest blob in memory of its own.
const MAX_BLOB: usize = 1 << 20;

/// How many bytes of each side's memory the other one maps.
const MAX_SHARED: usize = 1 << 20;

/// How a worker uses its connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Options {
    /// Whether messages carry files, and both sides share memory.
    pub(super) shares: bool,
    /// Whether it accepts rings.
    pub(super) accepts_rings: bool,
    /// How often it looks for a message before it sleeps.
    pub(super) polls: u64,
    /// Whether it runs on a core of its own, so that it need not sleep for its client to run.
    pub(super) has_core: bool,
}

/// A worker's side of its connection.
pub(super) struct Link {
    options: Options,
    slot: Slot,
    monitor: Monitor,
    stream: Memory,
    inbox: BytesMut,
    files: Vec<OwnedFd>,
    /// How many files accompany the next message.
    announced: usize,
    /// The most files that the client takes with a message.
    client_files: usize,
    /// Whether the client's wish to share memory is unanswered.
    is_sharing_requested: bool,
    pool: Option<ShmPool>,
    rings: Option<Box<Rings>>,
}

impl Link {
    pub(super) fn new(options: Options, slot: Slot, monitor: Monitor, stream: Memory) -> Self {
        Self {
            options,
            slot,
            monitor,
            stream,
            inbox: BytesMut::new(),
            files: Vec::new(),
            announced: 0,
            client_files: 0,
            is_sharing_requested: false,
            pool: None,
            rings: None,
        }
    }

    pub(super) async fn take_preamble(&mut self) -> Result<(), Exit> {
        while !frame::take_preamble(&mut self.inbox).map_err(|_| Exit::PROTOCOL)? {
            self.receive().await?;
        }
        Ok(())
    }

    /// Notes what the client accepts.
    pub(super) fn accept_hello(&mut self, hello: &ClientHello<'_>) {
        if self.options.shares {
            self.client_files = hello.max_files;
            self.is_sharing_requested = hello.shared_memory > 0;
        }
    }

    pub(super) fn max_files(&self) -> usize {
        if self.options.shares { sys::MAX_FILES } else { 0 }
    }

    /// Waits for the next message.
    pub(super) async fn take(&mut self) -> Result<Bytes, Exit> {
        loop {
            self.slot.running().await;
            if let Some(message) = self.take_received()? {
                return Ok(message);
            }
            self.receive().await?;
        }
    }

    fn take_received(&mut self) -> Result<Option<Bytes>, Exit> {
        loop {
            if let Some(rings) = &mut self.rings {
                let unread = self.inbox.len();
                while let Some(place) = rings.take(unread, MAX_FRAME).map_err(|_| Exit::PROTOCOL)? {
                    if !place.is_empty() {
                        self.monitor.used_ring();
                        return Ok(Some(Bytes::copy_from_slice(rings.body(place))));
                    }
                }
            }
            match frame::take(&mut self.inbox, MAX_FRAME).map_err(|_| Exit::PROTOCOL)? {
                // An empty frame only wakes this side.
                Some(message) if message.is_empty() && self.rings.is_some() => {}
                message => return Ok(message),
            }
        }
    }

    /// Receives what has arrived, so that cancellations are found.
    pub(super) fn read_ahead(&mut self) {
        if self.inbox.len() < READ_AHEAD {
            self.receive_ready();
        }
    }

    fn receive_ready(&mut self) -> usize {
        let received = self.stream.receive_ready(&mut self.inbox, &mut self.files);
        self.rings.iter_mut().for_each(|rings| rings.record_received(received));
        received
    }

    pub(super) fn is_cancelled(&self, number: u64) -> bool {
        let mut rest = &self.inbox[..];
        while let Ok(Some(body)) = frame::find(rest, MAX_FRAME) {
            if native::cancelled_call(&rest[body.clone()]) == Some(number) {
                return true;
            }
            rest = &rest[body.end..];
        }
        false
    }

    /// Waits for more. Within a frame of the socket, nothing else can come.
    async fn receive(&mut self) -> Result<(), Exit> {
        if self.inbox.is_empty() && (self.poll_often().await || !self.prepare_sleep()) {
            return Ok(());
        }
        let received = self.stream.receive(&mut self.inbox, &mut self.files).await;
        let received = received.ok_or(Exit::REGULAR)?;
        if let Some(rings) = &mut self.rings {
            rings.record_received(received);
            rings.set_awake();
        }
        Ok(())
    }

    /// Looks for messages a few times while others run. Returns whether something has come.
    async fn poll_often(&mut self) -> bool {
        for _ in 0..self.options.polls {
            let Some(rings) = &self.rings else { return false };
            if rings.has_next(self.inbox.len()) || self.receive_ready() > 0 {
                return true;
            }
            tokio::task::yield_now().await;
        }
        false
    }

    /// Announces that this side is about to sleep. Returns false if it must not.
    fn prepare_sleep(&mut self) -> bool {
        let Some(rings) = &mut self.rings else { return true };
        if !rings.prepare_sleep(self.inbox.len()) {
            return false;
        }
        if rings.has_unread() {
            self.wake_client();
        }
        true
    }

    fn wake_client(&mut self) {
        if let (true, Some(rings)) = (self.stream.send_at_once(&DOORBELL), &mut self.rings) {
            rings.record_sent(DOORBELL.len());
        }
    }

    /// Sends a message: a short one whole or not at all, as the kernel does.
    pub(super) async fn send(&mut self, message: &GatherFrame) -> Result<(), Exit> {
        self.slot.running().await;
        if self.send_in_ring(message) {
            return Ok(());
        }
        self.send_part(message, message.len()).await
    }

    /// Sends the first bytes of a message through the socket, and its files.
    pub(super) async fn send_part(
        &mut self,
        message: &GatherFrame,
        length: usize,
    ) -> Result<(), Exit> {
        let mut bytes = message.copy_from(0);
        bytes.truncate(length);
        let sent = match message.len() <= ATOMIC_WRITE {
            true => self.stream.send_whole(&bytes, &message.files).await,
            false => self.stream.send(&bytes, &message.files).await,
        };
        self.rings.iter_mut().for_each(|rings| rings.record_sent(length));
        sent.ok_or(Exit::REGULAR)
    }

    fn send_in_ring(&mut self, message: &GatherFrame) -> bool {
        let Some(rings) = &mut self.rings else { return false };
        let is_plain = message.segments.is_empty() && message.files.is_empty();
        // Without a core of its own, it would have to wake the client by the socket right after this.
        let stays_awake = self.options.has_core || !self.inbox.is_empty() || rings.has_records();
        if !is_plain || !stays_awake {
            return false;
        }
        match rings.put(&message.bytes) {
            Put::Refused => return false,
            Put::PeerAsleep => self.wake_client(),
            Put::Done => {}
        }
        self.monitor.used_ring();
        true
    }

    /// Maps the rings that the client offers, or refuses them.
    pub(super) async fn accept_rings(&mut self) -> Result<(), Exit> {
        if self.pool.is_none() || self.rings.is_some() || self.files.is_empty() {
            return Err(Exit::PROTOCOL);
        }
        let file = self.files.remove(0);
        if !self.options.accepts_rings {
            return Ok(());
        }
        let mut rings = Rings::accept(&file).map_err(|_| Exit::PROTOCOL)?;
        let mut out = GatherFrame::default();
        frame::put(&mut out.bytes, native::put_rings);
        self.send(&out).await?;
        // The rings count bytes of the socket from here on.
        rings.activate(self.inbox.len());
        rings.set_awake();
        self.rings = Some(Box::new(rings));
        Ok(())
    }

    /// So many files accompany the next message.
    pub(super) fn announce_files(&mut self, count: usize) {
        self.announced = count;
    }

    /// Takes the files of the message that has been taken last.
    pub(super) fn take_files(&mut self) -> Result<Vec<OwnedFd>, Exit> {
        let count = std::mem::take(&mut self.announced);
        match count <= self.files.len() {
            true => Ok(self.files.drain(..count).collect()),
            false => Err(Exit::PROTOCOL),
        }
    }

    pub(super) fn handle_shared(&mut self, message: ShmMessage) -> Result<(), Exit> {
        let Some(pool) = &mut self.pool else { return Err(Exit::PROTOCOL) };
        pool.handle_message(message, &mut self.files).map_err(|_| Exit::PROTOCOL)
    }

    /// What accompanies a call that has these files.
    pub(super) fn attachments(&mut self, files: Vec<OwnedFd>) -> Result<Attachments, Exit> {
        let shared = match &mut self.pool {
            Some(pool) => pool.take_received().map_err(|_| Exit::PROTOCOL)?,
            None => Vec::new(),
        };
        self.monitor.attached(files.len() + shared.len());
        Ok(Attachments { files, shared, max_blob: MAX_BLOB, max_inlined: MAX_FRAME })
    }

    /// Changes an answer so that the client can receive it. Returns whether it can.
    pub(super) fn fit(&mut self, answer: &mut GatherFrame) -> bool {
        let client = ReceiverLimits {
            max_frame: MAX_FRAME,
            max_blob: MAX_BLOB,
            max_files: self.client_files,
        };
        let pool = &mut self.pool;
        let fits = answer.fit_with(client, |bytes, origin, may_add| {
            pool.as_mut()?.store(bytes, origin, may_add)
        });
        fits.is_ok() && answer.len() - HEADER_LEN <= MAX_FRAME
    }

    /// Puts what concerns shared memory in front of an answer. The first answer has the agreement.
    pub(super) fn put_control(&mut self, answer: &mut GatherFrame) {
        let mut front = Vec::new();
        self.pool.iter_mut().for_each(|pool| pool.write_control(&mut front));
        if std::mem::take(&mut self.is_sharing_requested)
            && let Some(user) = sys::sole_user()
        {
            self.pool = Some(ShmPool::new(MAX_SHARED, MAX_SHARED, user));
            ShmMessage { agreed: Some(MAX_SHARED), ..ShmMessage::default() }.put(&mut front);
        }
        answer.segments.iter_mut().for_each(|segment| segment.offset += front.len());
        answer.bytes.splice(..0, front);
    }

    /// Appends which memory the client may reuse.
    pub(super) fn put_released(&mut self, out: &mut Vec<u8>) {
        self.pool.iter_mut().for_each(|pool| pool.write_control(out));
    }

    /// An answer, or an item, has been sent.
    pub(super) fn answered(&mut self, answer: &GatherFrame) {
        self.monitor.attached(answer.files.len() + answer.references.len());
        self.pool.iter_mut().for_each(|pool| pool.mark_sent(&answer.references));
    }
}
