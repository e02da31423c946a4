//! The setters of connections through TLS.

use std::path::PathBuf;

use super::builder::ClientBuilder;

impl ClientBuilder {
    /// Sets a file in PEM with the authorities of gateways' certificates, for addresses
    /// `tls:HOST:PORT`. Defaults to the authorities that the system trusts. With this option these
    /// are not trusted.
    ///
    /// The file is read by [`build`](Self::build). A file that cannot be used is an error there, and so
    /// is a client without an address `tls:HOST:PORT`.
    ///
    /// ```
    /// let builder = taskfork::Client::builder()
    ///     .address("tls:adder.example:7000")
    ///     .tls_ca("/etc/adder/ca.pem");
    /// # let _ = builder;
    /// ```
    pub fn tls_ca(mut self, file: impl Into<PathBuf>) -> Self {
        self.tls.authorities = Some(file.into());
        self
    }

    /// Sets two files in PEM. The first has the certificate by which a gateway recognizes this client, followed by the
    /// intermediate certificates up to its authority. The second has the certificate's private key. Defaults to none.
    ///
    /// The files are read by [`build`](Self::build). Files that cannot be used, and a key that does not
    /// belong to the certificate, are errors there. So is a client without an address
    /// `tls:HOST:PORT`.
    ///
    /// ```
    /// let builder = taskfork::Client::builder()
    ///     .address("tls:adder.example:7000")
    ///     .tls_identity("/etc/web/cert.pem", "/etc/web/key.pem");
    /// # let _ = builder;
    /// ```
    pub fn tls_identity(
        mut self,
        certificate: impl Into<PathBuf>,
        key: impl Into<PathBuf>,
    ) -> Self {
        self.tls.identity = Some((certificate.into(), key.into()));
        self
    }

    /// Sets the name, or the IP address, that the gateway's certificate must have. Defaults to the host
    /// in the address.
    ///
    /// A text that is neither is an error of [`build`](Self::build), and so is a client without an
    /// address `tls:HOST:PORT`.
    ///
    /// ```
    /// let builder = taskfork::Client::builder()
    ///     .address("tls:10.0.0.2:7000")
    ///     .tls_name("adder.example");
    /// # let _ = builder;
    /// ```
    pub fn tls_name(mut self, name: impl Into<String>) -> Self {
        self.tls.name = Some(name.into());
        self
    }
}
