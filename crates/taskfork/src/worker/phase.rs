//! The phases of a worker, which its slot of the scoreboard contains.

use crate::error::Activity;

/// What a worker does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Phase {
    /// Waiting for its client to introduce itself.
    Handshake = 1,
    /// Running `setup` before the first call.
    Setup = 2,
    /// Waiting for a checkout.
    Idle = 3,
    /// Waiting for the next call of a checkout.
    Held = 4,
    /// Running a call.
    Busy = 5,
    /// Writing an answer that the kernel sends whole or not at all.
    Answering = 6,
    /// Running `checkout_done`.
    CheckoutDone = 7,
    /// Waiting for the SIGKILL that the server sends. The worker begins no call.
    KillPending = 8,
    /// Exiting in order, at the request of the server or after the client has left. The worker begins no
    /// call, and drops the user's state.
    Retired = 9,
    /// Writing a long answer, of which a part may have been sent.
    AnsweringLong = 10,
    /// Waiting for a client after `setup`.
    Spare = 11,
    /// Writing a long item of a stream, of which a part may have been sent. The call goes on behind it.
    SendingItem = 12,
}

impl Phase {
    const ALL: [Self; 12] = [
        Self::Handshake,
        Self::Setup,
        Self::Idle,
        Self::Held,
        Self::Busy,
        Self::Answering,
        Self::CheckoutDone,
        Self::KillPending,
        Self::Retired,
        Self::AnsweringLong,
        Self::Spare,
        Self::SendingItem,
    ];

    /// The phase with this number.
    pub(super) fn of(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|&phase| phase as u8 == number)
    }

    /// What errors call this phase.
    pub(crate) fn activity(self) -> Option<Activity> {
        match self {
            Self::Setup => Some(Activity::Setup),
            Self::Handshake | Self::Idle | Self::Held | Self::Retired | Self::Spare => {
                Some(Activity::Idle)
            }
            Self::Busy | Self::Answering | Self::AnsweringLong | Self::SendingItem => {
                Some(Activity::Call)
            }
            Self::CheckoutDone => Some(Activity::CheckoutDone),
            Self::KillPending => None,
        }
    }

    /// Whether the time counts from the beginning of this phase. Otherwise it counts from the beginning
    /// of the last call.
    pub(super) fn resets_clock(self) -> bool {
        !matches!(self, Self::Answering | Self::AnsweringLong | Self::SendingItem | Self::Held)
    }

    /// Whether a call runs, whose time is limited.
    pub(crate) fn is_running(self) -> bool {
        matches!(self, Self::Busy | Self::SendingItem)
    }

    /// Whether user code or a write can take an unlimited time in this phase.
    pub(crate) fn can_hang(self) -> bool {
        match self {
            Self::Setup
            | Self::Busy
            | Self::Answering
            | Self::AnsweringLong
            | Self::SendingItem
            | Self::CheckoutDone => true,
            Self::Handshake
            | Self::Idle
            | Self::Held
            | Self::KillPending
            | Self::Retired
            | Self::Spare => false,
        }
    }
}
