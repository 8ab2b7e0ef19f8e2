//! What a node shows of itself over TLS, whom it admits, and the handshake.

use std::{io, sync::Arc, time::Duration};

use futures::{Stream, StreamExt as _};
use rustls::{
    CertificateError, RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
    sign::{CertifiedKey, SingleCertAndKey},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::either::Either;
use tonic::transport::server::{Connected, TcpConnectInfo};

/// A connection in clear or over TLS.
pub(super) type Secured<S> = Either<S, tokio_rustls::server::TlsStream<S>>;

/// What a client may take to agree on TLS.
const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(10);

/// The keys that are taken: those that `ring` knows.
const KEYS: &str = "RSA, P-256, P-384 or Ed25519";

/// And the certificates: those that `webpki` knows.
const VERSION: &str = "X.509 version 3";

/// Certificates that connections can be taken with. Clones share them.
#[derive(Clone)]
pub struct Tls(Arc<ServerConfig>);

/// What certificates are made from, each as PEM.
#[derive(Clone, Copy)]
pub struct TlsFiles<'a> {
    /// The node's certificate chain.
    pub certificate: &'a [u8],
    /// Its key.
    pub key: &'a [u8],
    /// Clients must show a certificate of this authority.
    pub client_authority: Option<&'a [u8]>,
}

/// One of the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsPart {
    /// The node's certificate chain.
    Certificate,
    /// Its key.
    Key,
    /// The authority of clients.
    Authority,
}

/// What can't be used, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrongTls {
    /// Which file.
    pub part: TlsPart,
    /// The reason, and what to do where that is known.
    pub reason: String,
}

// === impl TlsFiles ===

impl std::fmt::Debug for TlsFiles<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The key must not reach a log.
        let is_mutual = self.client_authority.is_some();
        f.debug_struct("TlsFiles").field("is_mutual", &is_mutual).finish_non_exhaustive()
    }
}

// === impl Tls ===

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

impl Tls {
    /// Looks whether connections can be taken with `files`, before anyone comes.
    ///
    /// # Errors
    /// The first file that can't be used.
    pub fn new(files: TlsFiles<'_>) -> Result<Self, WrongTls> {
        let wrong = |part, reason: String| WrongTls { part, reason };
        let provider = Arc::new(ring::default_provider());
        let chain = certificates(files.certificate)
            .map_err(|reason| wrong(TlsPart::Certificate, reason))?;
        let key = PrivateKeyDer::from_pem_slice(files.key);
        let key = key.map_err(|error| {
            wrong(TlsPart::Key, format!("it holds no private key in PEM: {error}"))
        })?;
        let key = provider.key_provider.load_private_key(key);
        let key = key.map_err(|error| {
            wrong(TlsPart::Key, format!("the key can't be used: {error}; it must be of {KEYS}"))
        })?;
        let own = CertifiedKey::new(chain, key);
        own.keys_match().map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => wrong(
                TlsPart::Key,
                "it is not the key of the certificate in --cert-file".to_owned(),
            ),
            error => wrong(TlsPart::Certificate, unusable(&error)),
        })?;
        let of_authority = |error: String| wrong(TlsPart::Authority, error);
        let clients = match files.client_authority {
            Some(pem) => {
                let mut known = RootCertStore::empty();
                for authority in certificates(pem).map_err(of_authority)? {
                    known.add(authority).map_err(|error| of_authority(unusable(&error)))?;
                }
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(known.into(), provider.clone());
                verifier.build().map_err(|error| of_authority(error.to_string()))?
            }
            None => WebPkiClientVerifier::no_client_auth(),
        };
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| wrong(TlsPart::Certificate, unusable(&error)))?;
        let mut config = config
            .with_client_cert_verifier(clients)
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(own)));
        // What etcd offers: its clients speak the one, probes the other.
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self(Arc::new(config)))
    }
}

/// The connections of `incoming`, over TLS if there is any: those that agree on it, each as soon as it has.
pub(super) fn secured<S>(
    incoming: impl Stream<Item = io::Result<S>>,
    tls: Option<Tls>,
) -> impl Stream<Item = io::Result<Secured<S>>>
where
    S: AsyncRead + AsyncWrite + Connected<ConnectInfo = TcpConnectInfo> + Unpin + Send + 'static,
{
    let acceptor = tls.map(|tls| TlsAcceptor::from(tls.0));
    let agreeing = incoming.map(move |stream| {
        let acceptor = acceptor.clone();
        async move {
            let (stream, acceptor) = match (stream, acceptor) {
                (Ok(stream), Some(acceptor)) => (stream, acceptor),
                (stream, _) => return Some(stream.map(Either::Left)),
            };
            // A task of its own: it costs a thousandth of a second, and who comes next does not wait for that.
            let agreed = tokio::spawn(agree(stream, acceptor)).await;
            agreed.ok().flatten().map(|stream| Ok(Either::Right(stream)))
        }
    });
    agreeing.buffer_unordered(usize::MAX).filter_map(std::future::ready)
}

/// A handshake; `None` where it failed, which is said.
async fn agree<S>(stream: S, acceptor: TlsAcceptor) -> Option<tokio_rustls::server::TlsStream<S>>
where
    S: AsyncRead + AsyncWrite + Connected<ConnectInfo = TcpConnectInfo> + Unpin,
{
    let client = stream.connect_info().remote_addr();
    let reason = match timeout(HANDSHAKE_TIME_MAX, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => return Some(stream),
        // A balancer that looks whether the port is open says nothing and goes.
        Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return None,
        Ok(Err(error)) => reason(&error),
        Err(_) => "it took too long".to_owned(),
    };
    tracing::warn!(client = client.map(tracing::field::display), reason, "no TLS with a client");
    None
}

/// Why a handshake failed, and what to do where that is known.
fn reason(error: &io::Error) -> String {
    let cause = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
    match cause {
        Some(rustls::Error::NoCertificatesPresented) => {
            format!(
                "it has shown no certificate with a key of {KEYS}, and --trusted-ca-file asks for one"
            )
        }
        // A bad signature is of an authority that calls itself as one of these.
        Some(rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        )) => "its certificate is not of an authority in --trusted-ca-file".to_owned(),
        Some(rustls::Error::InvalidCertificate(wrong)) => {
            format!(
                "its certificate can't be used: {wrong}; {VERSION} and a key of {KEYS} are taken"
            )
        }
        Some(rustls::Error::InvalidMessage(_)) => {
            format!("what it sent is no TLS; does it ask for http:// here? ({error})")
        }
        _ => error.to_string(),
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    let found = found.map_err(|error| format!("it is no PEM: {error}"))?;
    if found.is_empty() {
        return Err("it holds no certificate in PEM".to_owned());
    }
    Ok(found)
}

fn unusable(error: &rustls::Error) -> String {
    format!("the certificate can't be used: {error}; it must be {VERSION}, with a key of {KEYS}")
}
