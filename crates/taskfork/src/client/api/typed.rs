//! Clients that have the methods of one interface.

use super::builder::{ClientBuilder, ConfigError};
use super::handle::Client;
use crate::wire::interface_description::Described;

/// A client with the methods of one interface: the type `…Client` that the attribute
/// [`interface`](macro@crate::interface) makes of a trait. Programs do not implement it.
///
/// It tells the server what it requires when it connects a worker, and the server compares that with what it serves.
/// If they differ, all calls fail with [`FatalError::WrongInterface`](crate::error::FatalError::WrongInterface). A client of
/// a service at NATS first tries other nodes, for some 2 seconds.
///
/// ```no_run
/// use taskfork::Client;
/// use taskfork::client::{ConfigError, TypedClient};
///
/// /// A client of any interface, with the options of this program.
/// fn connect<C: TypedClient>() -> Result<C, ConfigError> {
///     Client::builder().address("unix:/run/app.sock").max_workers(8).build_as()
/// }
/// # #[taskfork::interface]
/// # trait Nothing {}
/// # let _ = connect::<NothingClient>;
/// ```
pub trait TypedClient: From<Client> {
    #[doc(hidden)]
    type Interface: Described;
}

impl ClientBuilder {
    /// Builds a client with the methods of one interface: the type `…Client` that the attribute
    /// [`interface`](macro@crate::interface) has made of a trait. Otherwise the same as [`build`](Self::build).
    ///
    /// # Errors
    /// As for [`build`](Self::build). Whether the server serves the interface shows at the first call:
    /// [`FatalError::WrongInterface`](crate::error::FatalError::WrongInterface).
    ///
    /// ```no_run
    /// use taskfork::Client;
    ///
    /// #[taskfork::interface]
    /// trait Passwords {
    ///     fn hash(&mut self, plain: String) -> String;
    /// }
    ///
    /// # async fn example() -> Result<(), taskfork::BoxError> {
    /// let passwords: PasswordsClient =
    ///     Client::builder().address("unix:/run/passwords.sock").build_as()?;
    /// println!("{}", passwords.hash("secret").await?);
    /// # Ok(())
    /// # }
    /// ```
    pub fn build_as<C: TypedClient>(self) -> Result<C, ConfigError> {
        self.requiring::<C::Interface>().build().map(C::from)
    }

    /// Requires an interface of the server.
    pub(crate) fn requiring<I: Described>(mut self) -> Self {
        self.required.push(I::DESCRIPTION);
        self
    }
}

impl Client {
    /// Requires an interface of the servers, from the next connection on.
    pub(crate) fn require<I: Described>(&self) {
        self.core().require(I::DESCRIPTION);
    }
}

/// An untyped client, of which a typed one is made.
#[doc(hidden)]
pub trait Requires {
    fn require_interface<I: Described>(&self);
}

impl Requires for Client {
    fn require_interface<I: Described>(&self) {
        self.require::<I>();
    }
}
