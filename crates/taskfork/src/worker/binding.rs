//! What a package for another language needs of a worker, behind `taskfork::__private`: the input of a call, whose items have
//! the type of any value, and a wait that ends at the call's deadline or takes place elsewhere.

use std::cell::RefCell;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::time::Instant;

use serde::de::DeserializeOwned;

use super::interface::Request;
use super::shared_memory::SharedMemory;
use crate::blob::BlobMut;
use crate::receiver::{InputPort, ReceiveError};
use crate::wire::values::{self, ValueFormat};

/// Memory that is shared with the client, for the result of a call.
#[derive(Debug)]
pub struct ResultMemory<'a>(RefCell<Option<&'a mut SharedMemory>>);

impl<'a> ResultMemory<'a> {
    /// That of this call.
    pub fn of(request: &mut Request<'a>) -> Self {
        Self(RefCell::new(request.take_memory()))
    }

    /// Memory to which bytes are copied that are a part of the result. `None` if there is none yet, or none that would be
    /// faster than to send them.
    pub fn alloc(&self, length: usize) -> Option<BlobMut> {
        let mut memory = self.0.try_borrow_mut().ok()?;
        memory.as_mut()?.alloc_for_copy(length).map(BlobMut::from)
    }
}

/// The input of a call. Behind the call nothing is taken from it, whoever has kept it.
#[derive(Debug)]
pub struct InputItems(Rc<dyn InputPort>);

/// What an input has had.
#[derive(Debug)]
pub enum Taken<T> {
    /// An item.
    Item(T),
    /// No item follows.
    End,
    /// The time has come.
    Nothing,
}

impl InputItems {
    /// The input of this call. `None` if its caller streams none.
    pub fn of(request: &Request<'_>) -> Option<Self> {
        request.input().map(Self)
    }

    /// Asks the caller for the first items.
    pub fn open(&self) {
        self.0.open();
    }

    /// Waits for the next item, at most until this time.
    ///
    /// # Errors
    /// As for [`Receiver::next`](crate::Receiver::next).
    pub fn next<T: DeserializeOwned>(
        &self,
        until: Option<Instant>,
    ) -> Result<Taken<T>, ReceiveError> {
        let mut item = None;
        let taken = self.0.next_or(None, until, &mut |value| {
            item = Some(values::decode(value, ValueFormat::MessagePack)?);
            Ok(())
        });
        Ok(match (taken?, item) {
            (Some(_), Some(item)) => Taken::Item(item),
            (Some(_), None) => Taken::End,
            (None, _) => Taken::Nothing,
        })
    }

    /// Prepares for a wait elsewhere. Returns the descriptor that can be read once [`next`](Self::next) may have something, and
    /// `None` if it may have something now.
    pub fn prepare_wait(&self) -> Option<BorrowedFd<'static>> {
        self.0.prepare_wait()
    }
}
