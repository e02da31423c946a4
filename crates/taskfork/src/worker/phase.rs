//! The phases of a worker's life, as its slot of the scoreboard has them.

use crate::error::Activity;

/// What a worker is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Phase {
    /// Waiting for its client to introduce itself.
    Handshake = 1,
    /// Running `setup` before the first call.
    Setup = 2,
    /// In nobody's hands.
    Idle = 3,
    /// Between two calls of a checkout.
    Held = 4,
    /// Running a call.
    Busy = 5,
    /// Writing an answer so short that it is sent whole or not at all.
    Answering = 6,
    /// Running `checkout_done`.
    CheckoutDone = 7,
    /// About to be killed by the server: it must begin nothing.
    KillPending = 8,
    /// Asked by the server to leave: it must begin nothing, and ends by itself.
    Retired = 9,
    /// Writing an answer of which a part may have been sent.
    AnsweringLong = 10,
    /// Set up, and without a client to serve.
    Spare = 11,
}

impl Phase {
    const ALL: [Self; 11] = [
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
    ];

    /// The phase of this number, if there is one.
    pub(super) fn of(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|&phase| phase as u8 == number)
    }

    /// How the phase is called in errors.
    pub(crate) fn activity(self) -> Option<Activity> {
        match self {
            Self::Setup => Some(Activity::Setup),
            Self::Handshake | Self::Idle | Self::Held | Self::Retired | Self::Spare => {
                Some(Activity::Idle)
            }
            Self::Busy | Self::Answering | Self::AnsweringLong => Some(Activity::Call),
            Self::CheckoutDone => Some(Activity::CheckoutDone),
            Self::KillPending => None,
        }
    }

    /// Whether time is counted from its beginning, and not from that of the call before it.
    pub(super) fn resets_clock(self) -> bool {
        !matches!(self, Self::Answering | Self::AnsweringLong | Self::Held)
    }

    /// Whether user code or a write can keep the worker in this phase for ever.
    pub(crate) fn can_hang(self) -> bool {
        match self {
            Self::Setup
            | Self::Busy
            | Self::Answering
            | Self::AnsweringLong
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
