//! The native module of the package `taskfork` for Python: the client in Rust, for event loops and for threads, and the loop
//! of workers in Rust.
//!
//! `encode` and `decode` convert values, `copies` keeps memory for large ones, `event_loop` wakes asyncio, `client` has what both clients share, `waiting` blocks
//! threads, `stream` is for iterators of items and of reports, `input` is for what calls stream to their methods, and `error` makes
//! exceptions. `pickles` is for objects without another encoding, `interruption` for what Ctrl-C raises meanwhile, and `keys` bounds the
//! time that maps of peers take. `serving` is a server whose workers run Python, `interface` passes their calls on, and `receiver` their
//! inputs; `forking` makes a program such a server by a fork. `program` is for programs that a server has started as its workers. The package's Python files define what users see.

mod client;
mod copies;
mod decode;
mod encode;
mod error;
mod event_loop;
mod executor;
mod forking;
mod future;
mod input;
mod interface;
mod interruption;
mod keys;
mod log;
mod options;
mod passed;
mod pickles;
mod process;
mod program;
mod receiver;
mod remote;
mod serving;
mod stream;
mod sys;
mod waiting;

use pyo3::prelude::*;

/// What the module does at forks, and to the objects of calls, relies on the interpreter's lock. The package refuses free-threaded
/// interpreters before they load it.
#[pymodule(gil_used = true)]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    sys::count_forks();
    module.add_class::<client::Client>()?;
    module.add_class::<client::Checkout>()?;
    module.add_class::<event_loop::EventLoop>()?;
    module.add_class::<executor::Tasks>()?;
    module.add_class::<waiting::Queued>()?;
    module.add_class::<stream::Stream>()?;
    module.add_class::<stream::Reports>()?;
    module.add_function(wrap_pyfunction!(keys::are_colliding, module)?)?;
    module.add_function(wrap_pyfunction!(serving::serve, module)?)?;
    module.add_function(wrap_pyfunction!(forking::caught_signals, module)?)?;
    module.add_function(wrap_pyfunction!(forking::fork, module)?)?;
    module.add_function(wrap_pyfunction!(forking::end_with, module)?)?;
    module.add_function(wrap_pyfunction!(program::offer_to_serve, module)?)?;
    module.add_function(wrap_pyfunction!(program::serve_inherited, module)?)?;
    module.add_function(wrap_pyfunction!(interface::is_cancelled, module)?)?;
    module.add_function(wrap_pyfunction!(interface::peer, module)?)?;
    module.add_function(wrap_pyfunction!(interface::progress, module)?)?;
    module.add_function(wrap_pyfunction!(interface::log, module)?)
}
