//! Named levels of confinement for worker processes on Linux.
//!
//! A worker that decodes images, documents or archives of strangers can be taken over by its input. A
//! sandbox takes away what such code does not need: files, network, programs and other processes. It uses
//! [Landlock](https://docs.kernel.org/userspace-api/landlock.html) for files, TCP ports and signals, and a
//! [seccomp](https://docs.kernel.org/userspace-api/seccomp_filter.html) filter with a list of the allowed
//! system calls for everything else. It needs no privileges.
//!
//! The process that starts workers prepares a [`Sandbox`] once. Each worker applies it to itself, with a
//! few system calls.
//!
//! ```
//! use taskfork_sandbox::Sandbox;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let scratch = std::env::temp_dir();
//! let sandbox = Sandbox::compute().read("/usr/share").best_effort().prepare()?;
//!
//! // In the worker. This thread stands for its process here.
//! # fn in_child(_: impl FnOnce()) {}
//! # in_child(move || {
//! sandbox.apply(Some(&scratch)).expect("the kernel has accepted the same before");
//! assert!(std::fs::read("/etc/passwd").is_err());
//! # });
//! # Ok(())
//! # }
//! ```
//!
//! # Levels
//!
//! | | `off` | `no-network` | `files` | `compute` | `python`, `node`, `perl` |
//! |---|---|---|---|---|---|
//! | read files | yes | yes | the listed ones | no | the interpreter's own |
//! | write files | yes | yes | the listed ones | no | no |
//! | the scratch directory | yes | yes | yes | yes | yes |
//! | what is open already | yes | yes | yes | yes | yes |
//! | make connections, create sockets | yes | no | no | no | no |
//! | execute programs, load libraries | yes | yes | no | no | the system's libraries |
//! | start processes | yes | yes | no | no | no |
//! | start threads | yes | yes | yes | yes | yes |
//! | signal or trace other processes | yes | no | no | no | no |
//! | change access rights, owners and times of files | yes | yes | no | no | no |
//! | capabilities of root | yes | yes | no | no | no |
//! | mount, namespaces, io_uring, bpf, keys, modules | yes | no | no | no | no |
//!
//! `gateway` is `compute`, and accepts connections.
//!
//! [`read`](Sandbox::read), [`write`](Sandbox::write), [`execute`](Sandbox::execute),
//! [`connect_tcp`](Sandbox::connect_tcp), [`unix_socket`](Sandbox::unix_socket),
//! [`accept_connections`](Sandbox::accept_connections) and [`spawn_programs`](Sandbox::spawn_programs) open one
//! thing each.
//!
//! # Errors in the worker
//!
//! A forbidden operation fails with EACCES (files, ports) or EPERM (all else), so it is an error in the
//! worker's code. With [`kill`](Sandbox::kill), a forbidden system call ends the process.
//!
//! # What this does not promise
//!
//! A fault of the kernel can break a sandbox, and a confined process can still measure time, load and
//! caches. It can find out which files exist and how large they are, below directories that its user may
//! search. It keeps what it had open. A worker that is a fork of its server can read everything that the
//! server had in memory; [`Secret`] keeps a value out of such copies. Virtual machines, gVisor, or a
//! machine of its own, are stronger.

#[cfg(not(target_os = "linux"))]
compile_error!("taskfork-sandbox needs Linux: it uses Landlock and seccomp");

mod call_names;
mod decision;
mod filter;
mod kernel;
mod leaves;
mod level;
mod policy;
mod prepare;
mod rules;
mod sandbox;
mod secret;
mod sys;

pub use call_names::system_call_name;
pub use kernel::{Feature, KernelSupport};
pub use level::{Level, UnknownLevel};
pub use prepare::{ApplyError, PrepareError, PreparedSandbox};
pub use sandbox::Sandbox;
pub use secret::Secret;
