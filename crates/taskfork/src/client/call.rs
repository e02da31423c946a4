//! A call on its way: a future of its result.

use std::fmt;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use serde::de::DeserializeOwned;

use super::entries::{Outcome, Seq};
use super::lane::Lane;
use crate::error::{CallError, Error, Failure, FatalError};
use crate::wire::answer::InterfaceError;
use crate::wire::native::FromWorker;
use crate::wire::request;

/// A call that has been made. Awaiting it gives its result.
///
/// A call runs in its turn whether it is awaited or not, and its answer is kept until it is asked
/// for. Dropping it before any of it has been sent removes it; dropping it while it runs lets it
/// run on for the sake of its checkout, or, if the checkout has been dropped too, kills the worker.
#[must_use = "a call that is dropped at once is taken back"]
pub struct Call<T, E = Failure> {
    lane: Arc<Lane>,
    seq: Seq,
    told: bool,
    result: PhantomData<fn() -> (T, E)>,
}

impl<T, E> Call<T, E> {
    pub(crate) fn new(lane: Arc<Lane>, seq: Seq) -> Self {
        Self { lane, seq, told: false, result: PhantomData }
    }
}

impl<T: DeserializeOwned, E: InterfaceError> Future for Call<T, E> {
    type Output = Result<T, Error<E>>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        assert!(!self.told, "a call was polled after its result was taken");
        let Poll::Ready((method, outcome)) = self.lane.poll(self.seq, context.waker()) else {
            return Poll::Pending;
        };
        self.told = true;
        Poll::Ready(result(method.as_deref(), &outcome))
    }
}

impl<T, E> Drop for Call<T, E> {
    fn drop(&mut self) {
        if !self.told {
            self.lane.abandon(self.seq);
        }
    }
}

impl<T, E> fmt::Debug for Call<T, E> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Call").field("number", &self.seq).finish_non_exhaustive()
    }
}

fn result<T, E>(method: Option<&str>, outcome: &Outcome) -> Result<T, Error<E>>
where
    T: DeserializeOwned,
    E: InterfaceError,
{
    /// What a wait for a worker gives: nothing, encoded.
    const NIL: &[u8] = &[0xc0];
    let value = match outcome {
        Outcome::Answer(body) => match FromWorker::decode(body) {
            Ok(FromWorker::Ok(value)) => value,
            Ok(FromWorker::Error(error)) => return Err(error.into_error(method)),
            Ok(_) => return Err(broken("the answer is of another kind".to_owned())),
            Err(error) => return Err(broken(error.to_string())),
        },
        Outcome::Ready => NIL,
        Outcome::Unsendable(message) => {
            return Err(CallError::Arguments { message: message.clone() }.into());
        }
        Outcome::Dropped { behind } => {
            return Err(CallError::Dropped { behind: behind.clone() }.into());
        }
        Outcome::Fatal { cause, may_have_run } => {
            return Err(Error::Fatal { cause: cause.clone(), may_have_run: *may_have_run });
        }
    };
    request::decode(value).map_err(|message| CallError::Decode { message }.into())
}

fn broken<E>(detail: String) -> Error<E> {
    Error::Fatal { cause: FatalError::Protocol { detail }, may_have_run: true }
}
