//! The servers of test programs, which have no `main` of their own: [`test_support!`](crate::test_support).

use std::sync::{Mutex, PoisonError};

use super::entry::{self, Entry};
use super::environment;
use super::error::ServerError;
use super::program_file;
use crate::sys;

/// The names of the servers, each with the module that registered it.
static ENTRIES: Mutex<Vec<(&str, &str)>> = Mutex::new(Vec::new());

/// Registers the servers of one use of the macro. In a copy of the program that is to be one of them, it runs the server
/// and does not return. The loader of the program calls it before `main`, with a single thread.
pub(crate) fn register_test_servers(module: &'static str, entries: &[(&'static str, Entry)]) {
    // The path is resolved before a new version can replace the file.
    program_file::path();
    let wanted = std::env::var(environment::SERVER).ok();
    for (name, entry) in entries {
        if wanted.as_deref() == Some(name) {
            sys::take_variable(environment::SERVER);
            entry::end_as_server((*name).to_owned(), Some(*entry));
        }
        ENTRIES.lock().unwrap_or_else(PoisonError::into_inner).push((name, module));
    }
}

/// Whether a server of this name is registered.
///
/// # Errors
/// If more than one is.
pub(super) fn is_registered(name: &str) -> Result<bool, ServerError> {
    let entries = ENTRIES.lock().unwrap_or_else(PoisonError::into_inner);
    let named = entries.iter().filter(|(known, _)| *known == name);
    let modules: Vec<String> = named.map(|(_, module)| (*module).to_owned()).collect();
    match modules.len() {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(ServerError::AmbiguousEntry { name: name.to_owned(), modules }),
    }
}

/// Lets tests start servers with real worker processes: it registers the servers that [`Server::spawn`](crate::Server::spawn)
/// can start, as [`init`](crate::init) does in a program with a `main`.
///
/// Write it once in a module of the tests, beside or above them. It works in unit tests, in integration tests and in
/// documentation tests, under `cargo test` and under nextest. `Server::spawn` then works in any test, also in an async
/// one, with any number of servers side by side. Each entry is a name and a function of the type
/// [`Entry`](crate::server::Entry). A program can use the macro several times, with different names.
///
/// A server ends when its [`ServerHandle`](crate::server::ServerHandle) is dropped, also by a test that panics, and when
/// the test program ends in any way.
///
/// ```
/// use taskfork::{Client, Methods, Server, ServerBuilder, ServerError};
///
/// fn adder(server: ServerBuilder) -> Result<(), ServerError> {
///     server.interface(Methods::new().function("add", |a: i64, b: i64| Ok(a + b))).run()
/// }
///
/// #[cfg(test)]
/// mod tests {
///     use super::*;
///
///     taskfork::test_support!(("adder", adder));
///
///     #[tokio::test]
///     async fn it_adds() -> Result<(), Box<dyn std::error::Error>> {
///         let server = Server::spawn("adder")?;
///         let client = Client::builder().address(server.address()).build()?;
///         let sum: i64 = client.call("add", (2, 3)).await?;
///         assert_eq!(sum, 5);
///         Ok(())
///     }
/// }
/// ```
///
/// # How it works
///
/// `Server::spawn` executes the test program again. In the copy a constructor, which the loader calls before `main`,
/// runs the server, so the test harness never starts there. Use the macro in tests only: a constructor of a program
/// with a `main` would run before everything that `main` sets up.
#[macro_export]
macro_rules! test_support {
    ($(($name:expr, $entry:expr)),+ $(,)?) => {
        const _: () = {
            extern "C" fn register() {
                $crate::__private::register_test_servers(
                    ::core::module_path!(),
                    &[$(($name, $entry as $crate::server::Entry)),+],
                );
            }

            #[used]
            #[unsafe(link_section = ".init_array")]
            static REGISTER: extern "C" fn() = register;
        };
    };
}
