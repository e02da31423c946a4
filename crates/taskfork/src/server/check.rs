//! Whether a server could run, as far as that can be known before it does.

use super::builder::Server;
use super::error::ServerError;
use super::handshakes::Handshakes;

impl Server {
    /// Whether [`run`](Self::run) would accept the options. Nothing is started, and no address is opened: another
    /// server may listen at it already.
    ///
    /// # Errors
    /// Those of `run` that the options alone can cause: [`ServerError::Option`] and [`ServerError::Address`].
    ///
    /// ```
    /// use taskfork::{Methods, Server, ServerError};
    ///
    /// let server = Server::builder().max_calls(0).interface(Methods::<()>::new());
    /// assert!(matches!(server.check(), Err(ServerError::Option { option: "max_calls", .. })));
    /// ```
    pub fn check(&self) -> Result<(), ServerError> {
        self.options.check()?;
        let rules = self.options.access.rules()?;
        Handshakes::new(&self.options.handshakes, &rules)?;
        match &self.options.address {
            Some(Err(error)) => Err(error.clone().into()),
            _ => Ok(()),
        }
    }
}
