//! The sandboxes under which attempts run.

use std::fmt;

use serde::{Deserialize, Serialize};
use taskfork::sandbox::{Feature, KernelSupport, Sandbox};

use crate::attempt::{Opening, Surroundings};
use crate::attempts::PROGRAM;

/// How the workers of a server are confined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Confinement {
    Compute,
    /// `compute()` with one opening.
    Opened(Opening),
    /// `compute().kill()`.
    Kill,
    /// `files([…])` of the folder that `Write` opens.
    Files,
    NoNetwork,
    /// `compute()`, in a worker of another user than root, which its server is.
    OtherUser,
    /// No sandbox.
    Off,
}

impl Confinement {
    /// Those under which each attempt runs. The last one is no sandbox: what an attempt does there may last.
    pub(crate) fn all() -> Vec<Self> {
        let mut openings = Opening::ALL.to_vec();
        // A server refuses to start with what the kernel lacks.
        let support = KernelSupport::detect();
        openings.retain(|opening| {
            *opening != Opening::UnixSocket || support.has(Feature::UnixSocketRules)
        });
        let openings = openings.into_iter().map(Self::Opened);
        let mut all: Vec<Self> = [Self::Compute, Self::Kill].into_iter().chain(openings).collect();
        all.extend([Self::Files, Self::NoNetwork, Self::OtherUser, Self::Off]);
        all.retain(|it| it.is_possible());
        all
    }

    /// Whether this process can make such workers.
    pub(crate) fn is_possible(self) -> bool {
        self != Self::OtherUser || rustix::process::geteuid().is_root()
    }

    /// What it is opened for.
    pub(crate) fn opening(self) -> Option<Opening> {
        match self {
            Self::Opened(opening) => Some(opening),
            Self::Files => Some(Opening::Write),
            _ => None,
        }
    }

    pub(crate) fn sandbox(self, with: &Surroundings) -> Sandbox {
        let compute = Sandbox::compute();
        match self {
            Self::Compute | Self::OtherUser => compute,
            Self::Kill => compute.kill(),
            Self::Files => Sandbox::files([with.outside.join("writable")]),
            Self::NoNetwork => Sandbox::no_network(),
            Self::Off => Sandbox::off(),
            Self::Opened(opening) => match opening {
                Opening::Read => compute.read("/etc/passwd"),
                Opening::Write => compute.write(with.outside.join("writable")),
                Opening::Execute => compute.execute(PROGRAM),
                Opening::ConnectTcp => compute.connect_tcp(with.tcp),
                Opening::UnixSocket => compute.unix_socket(with.outside.join("stream")),
                Opening::SpawnPrograms => compute.spawn_programs(),
                Opening::Programs => compute.execute(PROGRAM).spawn_programs(),
            },
        }
    }
}

impl fmt::Display for Confinement {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Compute => out.write_str("under compute()"),
            Self::Kill => out.write_str("under compute().kill()"),
            Self::Opened(opening) => write!(out, "under compute() with {opening:?}"),
            Self::Files => out.write_str("under files([…])"),
            Self::NoNetwork => out.write_str("under no_network()"),
            Self::OtherUser => out.write_str("under compute() as another user"),
            Self::Off => out.write_str("without a sandbox"),
        }
    }
}
