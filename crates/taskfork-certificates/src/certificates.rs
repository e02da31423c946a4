//! The certificates of a server and of its clients: reading their files, and noticing that these change.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{self, RootCertStore, ServerConfig};

use crate::validity;

/// Where certificates are, all in PEM, and what they are for.
///
/// ```
/// let files = taskfork_certificates::Files {
///     what: "the dashboard's certificate",
///     protocol: b"http/1.1",
///     certificate: "cert.pem".into(),
///     key: "key.pem".into(),
///     client_ca: Some("clients.pem".into()),
/// };
/// # let _ = files;
/// ```
#[derive(Debug, Clone)]
pub struct Files {
    /// What the certificate is called in errors and logs.
    pub what: &'static str,
    /// The name of the protocol inside TLS (ALPN). Peers that offer only other ones are refused.
    pub protocol: &'static [u8],
    /// The certificate, with those that lead to its authority.
    pub certificate: PathBuf,
    /// The private key of the certificate.
    pub key: PathBuf,
    /// The authorities of clients. `None` if clients need no certificates.
    pub client_ca: Option<PathBuf>,
}

/// A file of certificates, or of a key, that cannot be used.
///
/// ```
/// use taskfork_certificates::{Certificates, Files};
///
/// let files = Files {
///     what: "the gateway's certificate",
///     protocol: b"taskfork",
///     certificate: "/none".into(),
///     key: "/none".into(),
///     client_ca: None,
/// };
/// let error = Certificates::load(files).unwrap_err();
/// assert!(error.to_string().starts_with("the file /none of the gateway's certificate cannot be used: "));
/// ```
#[derive(Debug, thiserror::Error)]
#[error("the file {} of {what} cannot be used: {reason}", file.display())]
#[non_exhaustive]
pub struct FileError {
    /// What the file must have.
    pub what: &'static str,
    /// Its path.
    pub file: PathBuf,
    /// What is wrong.
    pub reason: String,
}

/// The certificates of a server, as they were last read.
///
/// ```no_run
/// # fn example(certificates: &taskfork_certificates::Certificates) {
/// if certificates.have_changed() && let Err(error) = certificates.reload() {
///     eprintln!("the previous certificates stay in use: {error}");
/// }
/// # }
/// ```
#[derive(Debug)]
pub struct Certificates {
    files: Files,
    current: Mutex<Current>,
}

#[derive(Debug)]
struct Current {
    config: Arc<ServerConfig>,
    /// The SHA-256 of the server's certificate.
    fingerprint: Option<[u8; 32]>,
    /// What the files were when they were read, also if they could not be used then.
    stamps: Vec<Option<Stamp>>,
}

/// What tells one version of a file from another.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
    /// This changes also with the owner and the mode, without which the file may not be readable.
    changed: (i64, i64),
}

impl Certificates {
    /// Reads the files, and blocks meanwhile. Warns of a certificate that is not valid now.
    ///
    /// # Errors
    /// If a file cannot be used, or the key is not that of the certificate.
    ///
    /// ```no_run
    /// # fn example(files: taskfork_certificates::Files) -> Result<(), taskfork_certificates::FileError> {
    /// let certificates = taskfork_certificates::Certificates::load(files)?;
    /// # let _ = certificates;
    /// # Ok(())
    /// # }
    /// ```
    pub fn load(files: Files) -> Result<Self, FileError> {
        // Before the files are read: a change in between is noticed later.
        let stamps = files.stamps();
        let Read { config, fingerprint, problem } = files.read()?;
        files.warn_of(problem.as_deref());
        let current = Current { config: Arc::new(config), fingerprint, stamps };
        Ok(Self { files, current: Mutex::new(current) })
    }

    /// What new connections use.
    ///
    /// ```no_run
    /// # fn example(certificates: &taskfork_certificates::Certificates) {
    /// let acceptor = tokio_rustls::TlsAcceptor::from(certificates.config());
    /// # let _ = acceptor;
    /// # }
    /// ```
    pub fn config(&self) -> Arc<ServerConfig> {
        self.current().config.clone()
    }

    /// The SHA-256 of the certificate that new connections see.
    ///
    /// ```no_run
    /// # fn example(certificates: &taskfork_certificates::Certificates) {
    /// println!("{:?}", certificates.fingerprint());
    /// # }
    /// ```
    pub fn fingerprint(&self) -> Option<[u8; 32]> {
        self.current().fingerprint
    }

    /// Whether clients need certificates.
    ///
    /// ```no_run
    /// # fn example(certificates: &taskfork_certificates::Certificates) {
    /// println!("{}", certificates.wants_those_of_clients());
    /// # }
    /// ```
    pub fn wants_those_of_clients(&self) -> bool {
        self.files.client_ca.is_some()
    }

    /// Reads the files again, for connections that are made from now on. Blocks meanwhile. After an error nothing has changed.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    ///
    /// ```no_run
    /// # fn example(certificates: &taskfork_certificates::Certificates) -> Result<(), taskfork_certificates::FileError> {
    /// certificates.reload()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn reload(&self) -> Result<(), FileError> {
        let stamps = self.files.stamps();
        let read = self.files.read();
        let mut current = self.current();
        current.stamps = stamps;
        let Read { config, fingerprint, problem } = read?;
        if current.fingerprint != fingerprint {
            self.files.warn_of(problem.as_deref());
        }
        current.config = Arc::new(config);
        current.fingerprint = fingerprint;
        Ok(())
    }

    /// Whether a file is not what it was when it was last read. Blocks while it looks.
    ///
    /// ```no_run
    /// # fn example(certificates: &taskfork_certificates::Certificates) {
    /// println!("{}", certificates.have_changed());
    /// # }
    /// ```
    pub fn have_changed(&self) -> bool {
        let stamps = self.files.stamps();
        self.current().stamps != stamps
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        // Each change of the value is one assignment, so it is whole even after a panic.
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Files {
    fn stamps(&self) -> Vec<Option<Stamp>> {
        let files = [Some(&self.certificate), Some(&self.key), self.client_ca.as_ref()];
        files.into_iter().flatten().map(|file| Stamp::of(file)).collect()
    }

    fn read(&self) -> Result<Read, FileError> {
        let chain = certificates(self.what, &self.certificate)?;
        let fingerprint = chain.first().and_then(sha256);
        let now = SystemTime::now();
        let problem = chain.first().and_then(|certificate| validity::problem(certificate, now));
        let what = "the certificate's private key";
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|error| {
            let reason = match error {
                pem::Error::NoItemsFound => {
                    "it has no private key: give the key of the certificate in PEM, unencrypted"
                        .to_owned()
                }
                error => text(&error),
            };
            wrong(what, &self.key, reason)
        })?;
        let provider = Arc::new(ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&TLS13])
            .map_err(|error| wrong(what, &self.key, error.to_string()))?;
        let config = match &self.client_ca {
            None => config.with_no_client_auth(),
            Some(file) => {
                let what = "the authorities of clients";
                let mut roots = RootCertStore::empty();
                for authority in certificates(what, file)? {
                    let added = roots.add(authority);
                    added.map_err(|error| wrong(what, file, error.to_string()))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
                let verifier = verifier.build();
                let verifier = verifier.map_err(|error| wrong(what, file, error.to_string()))?;
                config.with_client_cert_verifier(verifier)
            }
        };
        let mut config = config.with_single_cert(chain, key).map_err(|error| {
            let reason = match error {
                rustls::Error::InconsistentKeys(_) => {
                    format!(
                        "it is not the key of the certificate in {}",
                        self.certificate.display()
                    )
                }
                error => error.to_string(),
            };
            wrong(what, &self.key, reason)
        })?;
        config.alpn_protocols = vec![self.protocol.to_vec()];
        if self.client_ca.is_some() {
            // A client that resumes a session shows no certificate, so one that has expired would stay valid.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        }
        Ok(Read { config, fingerprint, problem })
    }

    /// Clients refuse such a certificate, but it may be all there is, and their clocks may be others.
    fn warn_of(&self, problem: Option<&str>) {
        if let Some(problem) = problem {
            let (what, file) = (self.what, self.certificate.display());
            tracing::warn!(
                "{what} in {file} {problem}, so clients refuse it: replace it, or set the clock"
            );
        }
    }
}

/// What was read.
struct Read {
    config: ServerConfig,
    fingerprint: Option<[u8; 32]>,
    /// What is wrong with the dates of the server's certificate.
    problem: Option<String>,
}

/// The SHA-256 of a certificate.
fn sha256(certificate: &CertificateDer<'_>) -> Option<[u8; 32]> {
    let suite = ring::cipher_suite::TLS13_AES_128_GCM_SHA256.tls13()?;
    suite.common.hash_provider.hash(certificate).as_ref().try_into().ok()
}

impl Stamp {
    /// `None` if there is no file.
    fn of(file: &Path) -> Option<Self> {
        let file = std::fs::metadata(file).ok()?;
        Some(Self {
            device: file.dev(),
            inode: file.ino(),
            length: file.len(),
            modified: (file.mtime(), file.mtime_nsec()),
            changed: (file.ctime(), file.ctime_nsec()),
        })
    }
}

/// All certificates in a file, at least one.
fn certificates(
    what: &'static str,
    file: &Path,
) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect);
    let read: Vec<_> = read.map_err(|error| wrong(what, file, text(&error)))?;
    match read.is_empty() {
        true => Err(wrong(what, file, "it has no certificate in PEM".to_owned())),
        false => Ok(read),
    }
}

fn wrong(what: &'static str, file: &Path, reason: String) -> FileError {
    FileError { what, file: file.to_owned(), reason }
}

/// The system's own text, if the system caused the error.
fn text(error: &pem::Error) -> String {
    match error {
        pem::Error::Io(error) => error.to_string(),
        pem::Error::MissingSectionEnd { .. } => {
            "the end of a section in PEM is missing: the file may be a part of another".to_owned()
        }
        error => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    /// Files with a certificate that is its own authority.
    fn files(folder: &Path, checks_clients: bool) -> Files {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let certificate = certificate.self_signed(&key).unwrap();
        let [certificate_file, key_file] = ["cert", "key"].map(|name| folder.join(name));
        std::fs::write(&certificate_file, certificate.pem()).unwrap();
        std::fs::write(&key_file, key.serialize_pem()).unwrap();
        let client_ca = checks_clients.then(|| certificate_file.clone());
        let what = "the gateway's certificate";
        Files { what, protocol: b"p", certificate: certificate_file, key: key_file, client_ca }
    }

    #[test]
    fn no_session_is_resumed_if_clients_show_certificates() {
        let folder = tempfile::tempdir().unwrap();
        for (checks_clients, tickets) in [(true, 0), (false, 2)] {
            let config = files(folder.path(), checks_clients).read().unwrap().config;
            assert_eq!(config.send_tls13_tickets, tickets);
            assert_eq!(config.session_storage.can_cache(), !checks_clients);
        }
    }

    #[test]
    fn a_change_of_the_mode_alone_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let certificates = Certificates::load(files(folder.path(), false)).unwrap();
        assert!(!certificates.have_changed());
        let mode = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(folder.path().join("key"), mode).unwrap();
        assert!(certificates.have_changed());
    }
}
