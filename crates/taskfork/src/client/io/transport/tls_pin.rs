//! Trusting one certificate of a gateway, whoever has issued it.

use std::io;
use std::sync::Arc;

use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::crypto::ring::{cipher_suite, default_provider};
use tokio_rustls::rustls::crypto::{CryptoProvider, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
};

use super::tls::{PROTOCOL, TlsContext};

/// What the gateway is asked for, as it has one certificate. It is in messages.
const NAME: &str = "direct.invalid";

impl TlsContext {
    /// What connects to the one gateway whose certificate has this SHA-256 (of its DER), whatever names and times
    /// the certificate has. The client's own certificate is that of `base`, if there is one.
    pub(crate) fn pinned(base: Option<&Self>, sha256: [u8; 32]) -> io::Result<Self> {
        let provider = Arc::new(default_provider());
        let verifier = Arc::new(Pinned { sha256, provider: provider.clone() });
        let mut config = match base {
            Some(base) => {
                let mut config = (*base.config).clone();
                config.dangerous().set_certificate_verifier(verifier);
                config
            }
            None => ClientConfig::builder_with_provider(provider)
                .with_protocol_versions(&[&TLS13])
                .map_err(io::Error::other)?
                .dangerous()
                .with_custom_certificate_verifier(verifier)
                .with_no_client_auth(),
        };
        // A session of another context would be resumed without a look at the certificate.
        config.resumption = Resumption::disabled();
        config.enable_sni = false;
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        let name = ServerName::try_from(NAME).map_err(io::Error::other)?;
        Ok(Self { config: Arc::new(config), name: Some(name) })
    }
}

/// Trusts one certificate. The gateway still has to prove that it has the key.
#[derive(Debug)]
struct Pinned {
    sha256: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match cipher_suite::TLS13_AES_128_GCM_SHA256.tls13() {
            Some(suite) if suite.common.hash_provider.hash(certificate).as_ref() == self.sha256 => {
                Ok(ServerCertVerified::assertion())
            }
            _ => Err(CertificateError::ApplicationVerificationFailure.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.3 is the only version".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;
    use tokio_rustls::rustls::ServerConfig;
    use tokio_rustls::rustls::crypto::ring::sign::any_supported_type;
    use tokio_rustls::rustls::pki_types::PrivateKeyDer;
    use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
    use tokio_rustls::rustls::sign::CertifiedKey;

    use super::*;

    /// A gateway that shows a certificate, with this key or another one.
    #[derive(Debug)]
    struct Shown(Arc<CertifiedKey>);

    impl ResolvesServerCert for Shown {
        fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
            Some(self.0.clone())
        }
    }

    /// A certificate that no authority has issued and that has expired, with its key.
    fn certificate() -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(["other.example".to_owned()]).unwrap();
        params.not_after = date_time_ymd(2020, 1, 1);
        let certificate = params.self_signed(&key).unwrap();
        let der = key.serialize_der().try_into().unwrap();
        (certificate.der().clone(), der)
    }

    async fn listen(certificate: &CertificateDer<'static>, key: &PrivateKeyDer<'static>) -> u16 {
        let key = any_supported_type(key).unwrap();
        let shown = Shown(Arc::new(CertifiedKey::new(vec![certificate.clone()], key)));
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()));
        let config = config.with_protocol_versions(&[&TLS13]).unwrap().with_no_client_auth();
        let mut config = config.with_cert_resolver(Arc::new(shown));
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let acceptor = TlsAcceptor::from(Arc::new(config));
            while let Ok((stream, _)) = listener.accept().await {
                let _ = acceptor.accept(stream).await;
            }
        });
        port
    }

    async fn connect(sha256: [u8; 32], port: u16) -> Result<(), String> {
        let context = TlsContext::pinned(None, sha256).unwrap();
        // Also with the options of a client.
        let context = TlsContext::pinned(Some(&context), sha256).unwrap();
        let connected = context.connect("127.0.0.1", port).await;
        connected.map(drop).map_err(|error| error.to_string())
    }

    fn sha256(certificate: &CertificateDer<'_>) -> [u8; 32] {
        let suite = cipher_suite::TLS13_AES_128_GCM_SHA256.tls13().unwrap();
        suite.common.hash_provider.hash(certificate).as_ref().try_into().unwrap()
    }

    #[tokio::test]
    async fn one_certificate_is_trusted_whatever_is_in_it() {
        let (certificate, key) = certificate();
        let port = listen(&certificate, &key).await;
        connect(sha256(&certificate), port).await.unwrap();
        let (other, _) = self::certificate();
        let error = connect(sha256(&other), port).await.unwrap_err();
        assert!(error.contains("not the one that its node has named"), "{error}");
    }

    #[tokio::test]
    async fn a_certificate_without_its_key_is_not_trusted() {
        let ((certificate, _), (_, key)) = (certificate(), certificate());
        let port = listen(&certificate, &key).await;
        let error = connect(sha256(&certificate), port).await.unwrap_err();
        assert!(error.contains("does not have its key"), "{error}");
    }

    #[test]
    fn no_session_of_another_context_is_resumed() {
        let context = TlsContext::pinned(None, [0; 32]).unwrap();
        let text = format!("{:?}", context.config.resumption);
        assert_eq!(text, format!("{:?}", Resumption::disabled()));
        assert_ne!(text, format!("{:?}", Resumption::default()));
    }
}
