//! A worker's part in the lending of memory between it and its client: when there is any, and when it is
//! given back.

use std::time::Duration;

use bytes::Bytes;

use super::connection::{Broken, Connection};
use super::scoreboard::now;
use crate::loans::Loans;
use crate::sys::{self, User};
use crate::wire::WireError;
use crate::wire::gather_frame::GatherFrame;
use crate::wire::shm::{BufferOwner, Origin, PlacedBytes, SharedBytes, ShmMessage};

/// After so long without use memory is given back.
const KEPT_FOR: Duration = Duration::from_secs(5);

/// Nothing is written to for it until there is something to lend, as each page that a new worker writes to is
/// copied for it.
#[derive(Debug, Default)]
pub(super) struct Lending {
    /// What the client has asked for, until that is decided.
    asked: Option<Asked>,
    agreed: Option<Agreed>,
    loans: Option<Loans>,
    /// When something was lent last, on the clock of the scoreboard.
    used: Duration,
    /// The client has been told that nothing is being lent, and nothing has been since.
    resting: bool,
}

#[derive(Debug, Clone, Copy)]
struct Asked {
    /// How much memory of this side the client keeps.
    theirs: usize,
    /// How much of the client's may be kept here.
    ours: usize,
}

#[derive(Debug, Clone, Copy)]
struct Agreed {
    /// How much memory of this side the client keeps.
    room: usize,
    /// How much of the client's is kept here.
    most: usize,
    user: User,
}

impl Lending {
    /// The client keeps `theirs` bytes of this side's memory; this side would keep `ours` of the client's.
    pub(super) fn ask(&mut self, theirs: usize, ours: usize) {
        self.asked = (theirs > 0 && ours > 0).then_some(Asked { theirs, ours });
    }

    /// Whether it is still to be decided if memory is shared.
    pub(super) fn is_asked(&self) -> bool {
        self.asked.is_some()
    }

    /// Decides whether memory is shared, by the user that this process has now, and appends that it is.
    pub(super) fn agree(&mut self, connection: &Connection, out: &mut Vec<u8>) {
        let Some(Asked { theirs, ours }) = self.asked.take() else { return };
        let Some(user) = connection.common_user() else { return };
        self.agreed = Some(Agreed { room: theirs.min(ours), most: ours, user });
        ShmMessage { agreed: Some(ours), ..ShmMessage::default() }.put(out);
    }

    /// Whether the client may offer rings: memory is shared, and this process still has the user that it had then.
    pub(super) fn takes_rings(&self) -> Option<bool> {
        self.agreed.map(|agreed| sys::only_user() == Some(agreed.user))
    }

    fn loans(&mut self) -> Option<&mut Loans> {
        let Agreed { room, most, user } = self.agreed?;
        Some(self.loans.get_or_insert_with(|| Loans::new(room, most, user)))
    }

    /// Whether anything has been lent so far.
    pub(super) fn has_begun(&self) -> bool {
        self.loans.is_some()
    }

    /// See [`Loans::place`].
    pub(super) fn place(
        &mut self,
        bytes: &Bytes,
        home: Option<Origin>,
        may_add: bool,
    ) -> Option<PlacedBytes> {
        let mut placed = self.loans()?.place(bytes, home, may_add)?;
        if placed.place.owner == BufferOwner::Receiver {
            // What is being answered is sent, so that it need not be kept until then.
            placed.bytes = Bytes::new();
        }
        (self.used, self.resting) = (now(), false);
        Some(placed)
    }

    /// Appends what is to be said with an answer at this time.
    pub(super) fn say(&mut self, now: Duration, out: &mut Vec<u8>) {
        let Some(loans) = &mut self.loans else { return };
        if !self.resting && !loans.is_empty() && now.saturating_sub(self.used) > KEPT_FOR {
            // It is used, but not for this.
            loans.rest();
            self.resting = true;
        }
        loans.say(out);
    }

    /// An answer has been sent that refers to these.
    pub(super) fn sent(&mut self, placed: &[PlacedBytes], connection: &mut Connection) {
        let Some(loans) = &mut self.loans else { return };
        loans.sent(placed);
        connection.rest_after((!self.resting && !loans.is_empty()).then_some(KEPT_FOR));
    }

    pub(super) fn take_uses(&mut self) -> Result<Vec<SharedBytes>, WireError> {
        self.loans.as_mut().map_or(Ok(Vec::new()), Loans::take_uses)
    }

    pub(super) fn hear(
        &mut self,
        said: ShmMessage,
        connection: &mut Connection,
    ) -> Result<(), Broken> {
        if said.agreed.is_some() {
            let what = "a client said that it agrees to share memory, which only a worker decides";
            return Err(WireError::Malformed(what.to_owned()).into());
        }
        let (lends, resting) = (!said.uses.is_empty(), self.resting);
        let Some(loans) = self.loans() else {
            let what = "no memory was to be lent";
            return Err(WireError::Malformed(what.to_owned()).into());
        };
        loans.hear(said, connection.files())?;
        if lends {
            (self.used, self.resting) = (now(), false);
        } else if resting {
            loans.go_on_resting()?;
            self.tell(connection)?;
        }
        Ok(())
    }

    /// Nothing has come for a while.
    pub(super) fn rest(&mut self, connection: &mut Connection) -> Result<(), Broken> {
        if let Some(loans) = self.loans.as_mut().filter(|_| !self.resting) {
            loans.rest();
            self.resting = true;
            self.tell(connection)?;
        }
        connection.rest_after(None);
        Ok(())
    }

    fn tell(&mut self, connection: &mut Connection) -> Result<(), Broken> {
        let mut out = GatherFrame::default();
        self.loans.iter_mut().for_each(|loans| loans.say(&mut out.bytes));
        connection.write(&out)
    }
}
