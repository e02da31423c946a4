//! The builder of a server. Its setters are grouped by subject: `connections` (addresses, access,
//! handshakes, messages), `workers` (number, lifetime, limits), `privileges` (user, groups,
//! environment), `operation` (name, status, log, shutdown, restart) and `preload`.

mod connections;
mod operation;
mod preload;
mod privileges;
mod workers;

use std::fmt;

use serde::de::DeserializeOwned;

pub use self::preload::Preloaded;
use super::error::ServerError;
use super::options::{Options, PreloadFn};
use super::run::Server;
use crate::error::BoxError;
use crate::error::Failure;
use crate::wire::error_body::MAX_KNOWN_METHODS;
use crate::wire::values::{ValueFormat, decode};
use crate::worker::executable::{Executable, Program};
use crate::worker::interface::Interface;
use crate::worker::{Handlers, Made, serve};

/// Collects the options of a server. [`interface`](Self::interface) or
/// [`executable`](Self::executable) turns it into a [`Server`].
///
/// `S` is the state that each worker keeps between calls. It is `()` until [`setup`](Self::setup) is
/// called.
///
/// A setter never fails. Mistakes are errors of [`Server::run`] and [`Server::check`], which name the
/// option.
///
/// ```
/// use std::time::Duration;
/// use taskfork::{Methods, Server, ServerBuilder};
///
/// /// The options that all of a program's servers share.
/// fn with_defaults(server: ServerBuilder) -> ServerBuilder {
///     server.max_calls(1000).hung_worker_timeout(Duration::from_secs(60))
/// }
///
/// let server = with_defaults(Server::builder().listen("unix:/run/adder.sock"))
///     .interface(Methods::new().function("add", |a: i64, b: i64| Ok(a + b)));
/// # let _ = server;
/// ```
#[must_use = "a server does nothing before `interface` and `run`"]
pub struct ServerBuilder<S = ()> {
    pub(super) options: Options,
    handlers: Handlers<S>,
    preload: Option<PreloadFn>,
}

impl Server {
    /// Returns a builder with every option at its default.
    ///
    /// ```
    /// use taskfork::{Methods, Server};
    ///
    /// let server = Server::builder()
    ///     .listen("unix:/run/adder.sock")
    ///     .interface(Methods::new().function("add", |a: i64, b: i64| Ok(a + b)));
    /// assert!(server.check().is_ok());
    /// ```
    pub fn builder() -> ServerBuilder {
        ServerBuilder::with(Options::default())
    }
}

impl ServerBuilder {
    pub(crate) fn with(options: Options) -> Self {
        let handlers = Handlers {
            setup: Box::new(|_| Ok(Made::State(()))),
            has_setup: false,
            checkout_done: None,
            program: None,
        };
        Self { options, handlers, preload: None }
    }

    /// Sets the function that makes the state of a worker. It runs once in each worker, before the
    /// first call. Defaults to a state of `()`.
    ///
    /// If it returns an error or panics, the first call fails with
    /// [`CallError::Setup`](crate::error::CallError::Setup), shown as `setup exception: …`. The next
    /// call on that worker runs `setup` again.
    ///
    /// A random generator that was seeded before the server started yields the same numbers in every
    /// worker. Seed one in `setup` instead.
    ///
    /// ```
    /// use taskfork::{BoxError, Methods, Server};
    ///
    /// let server = Server::builder()
    ///     .setup(|| Ok::<_, BoxError>(Vec::<String>::new()))
    ///     .interface(Methods::new().method("keep", |kept: &mut Vec<String>, text: String| {
    ///         kept.push(text);
    ///         Ok(kept.len())
    ///     }));
    /// # let _ = server;
    /// ```
    pub fn setup<S: 'static, E: Into<BoxError>>(
        self,
        setup: impl Fn() -> Result<S, E> + 'static,
    ) -> ServerBuilder<S> {
        let done = self.handlers.checkout_done;
        let handlers = Handlers {
            setup: Box::new(move |_| setup().map(Made::State).map_err(failure)),
            has_setup: true,
            checkout_done: done.map(|done| Box::new(move |_: &mut S| done(&mut ())) as _),
            program: None,
        };
        ServerBuilder { options: self.options, handlers, preload: self.preload }
    }

    /// Makes each worker run a program in any language, and returns the server. The program does its
    /// own setup, and its own cleanup after a checkout.
    ///
    /// ```
    /// use taskfork::Server;
    /// use taskfork::worker::Executable;
    ///
    /// let server = Server::builder()
    ///     .listen("unix:/run/resize.sock")
    ///     .executable(Executable::new("/usr/bin/python3").arg("resize.py"));
    /// # let _ = server;
    /// ```
    pub fn executable(self, executable: Executable) -> Server {
        let Options { name, max_frame, max_blob, .. } = &self.options;
        let executable = executable.with_options(name, *max_frame, *max_blob);
        let interface = executable.interface();
        let mut options = self.options;
        options.programs_may_take_over = executable.may_take_over();
        let program = Some(executable.clone());
        let handlers = Handlers {
            setup: Box::new(move |sandbox| executable.start(sandbox).map_err(failure)),
            has_setup: true,
            checkout_done: Some(Box::new(Program::checkout_done)),
            program,
        };
        ServerBuilder { options, handlers, preload: self.preload }.interface(interface)
    }
}

impl<S: 'static> ServerBuilder<S> {
    /// Sets a function that cleans up after each checkout, in the worker, before the next checkout
    /// uses it. Defaults to none.
    ///
    /// If it returns an error or panics, the server logs that and the worker ends. No client gets a
    /// worker that was not cleaned up.
    ///
    /// ```
    /// use taskfork::{BoxError, Methods, Server};
    ///
    /// let server = Server::builder()
    ///     .setup(|| Ok::<_, BoxError>(Vec::<u8>::new()))
    ///     .checkout_done(|buffer| {
    ///         buffer.clear();
    ///         Ok::<_, BoxError>(())
    ///     })
    ///     .interface(Methods::new());
    /// # let _ = server;
    /// ```
    pub fn checkout_done<E: Into<BoxError>>(
        mut self,
        done: impl Fn(&mut S) -> Result<(), E> + 'static,
    ) -> Self {
        self.handlers.checkout_done = Some(Box::new(move |state| done(state).map_err(failure)));
        self
    }

    /// Sets the methods that clients can call, and returns the server. A tuple of up to eight typed interfaces has the
    /// methods of all of them.
    ///
    /// ```
    /// use taskfork::{Methods, Server};
    ///
    /// let server = Server::builder()
    ///     .interface(Methods::new().function("add", |a: i64, b: i64| Ok(a + b)));
    /// # let _ = server;
    /// ```
    pub fn interface(mut self, interface: impl Interface<S>) -> Server {
        self.options.methods = interface.method_names();
        self.options.methods.truncate(MAX_KNOWN_METHODS);
        let handlers = self.handlers;
        let program = Box::new(move |init| serve(init, &interface, &handlers));
        Server { options: self.options, program, preload: self.preload }
    }

    /// Decodes the configuration that was passed to [`Server::spawn_with`] or
    /// [`Spawn::config`](crate::server::Spawn::config). `T` may be another type of the same shape.
    ///
    /// # Errors
    ///
    /// Returns [`ServerError::NotConfigured`] if the server was started without a configuration, and
    /// [`ServerError::Misconfigured`] if the configuration does not decode as `T`. If the entry
    /// function returns that error, the program that started the server gets the same error.
    ///
    /// ```
    /// use taskfork::{Methods, ServerBuilder, ServerError};
    ///
    /// fn greeter(server: ServerBuilder) -> Result<(), ServerError> {
    ///     let greeting: String = server.config()?;
    ///     let greet = move |name: String| Ok(format!("{greeting}, {name}"));
    ///     server.interface(Methods::new().function("greet", greet)).run()
    /// }
    /// # let _ = greeter;
    /// ```
    pub fn config<T: DeserializeOwned>(&self) -> Result<T, ServerError> {
        let config = self.options.spawn_data.config.as_ref().ok_or(ServerError::NotConfigured)?;
        decode(config, ValueFormat::MessagePack).map_err(|text| ServerError::Misconfigured {
            expected: std::any::type_name::<T>().to_owned(),
            source: Failure::new(text),
        })
    }
}

fn failure(error: impl Into<BoxError>) -> Failure {
    Failure::of(&*error.into())
}

impl<S> fmt::Debug for ServerBuilder<S> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("ServerBuilder").field("options", &self.options).finish_non_exhaustive()
    }
}
