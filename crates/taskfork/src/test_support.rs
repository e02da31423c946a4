//! Servers in test programs, which have no `main` of their own.

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
