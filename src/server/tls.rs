//! What a node shows of itself over TLS, whom it admits, and the handshake.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

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
const KEYS: &str = "RSA of 2,048 bits or more, P-256, P-384 or Ed25519";

/// A public key of RSA with 2,048 bits is longer, in DER; a shorter one is not.
const RSA_KEY_BYTES_MIN: usize = 257;

/// The object identifiers of these, in DER.
const KEY_OIDS: [&[u8]; 4] = [
    &[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01],
    &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07],
    &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22],
    &[0x06, 0x03, 0x2b, 0x65, 0x70],
];

/// And the certificates: those that `webpki` knows.
const VERSION: &str = "X.509 version 3";

/// Certificates that connections can be taken with. They are read anew when their files change, as etcd does, which
/// looks at them in each handshake. Clones share them.
#[derive(Clone, Debug)]
pub struct Tls(Arc<Source>);

/// The files that certificates are in, each in PEM.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The node's certificate chain.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Clients must show a certificate of an authority in this.
    pub client_authority: Option<PathBuf>,
}

#[derive(Debug)]
struct Source {
    files: TlsFiles,
    current: Mutex<Current>,
}

struct Current {
    config: Arc<ServerConfig>,
    seen: Stamps,
}

/// Of each file which it is, when it was changed last, and how long it is.
type Stamps = [Option<(u64, i64, i64, u64)>; 3];

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

impl TlsFiles {
    /// The file of a part.
    pub fn of(&self, part: TlsPart) -> &Path {
        match part {
            TlsPart::Certificate => &self.certificate,
            TlsPart::Key => &self.key,
            TlsPart::Authority => self.client_authority.as_deref().unwrap_or(Path::new("")),
        }
    }

    fn stamps(&self) -> Stamps {
        let stamp = |path: &Path| {
            let file = fs::metadata(path).ok()?;
            // What is copied with its times has the time of the copy here.
            Some((file.ino(), file.ctime(), file.ctime_nsec(), file.len()))
        };
        let authority = self.client_authority.as_deref();
        [stamp(&self.certificate), stamp(&self.key), authority.and_then(stamp)]
    }

    fn read(&self) -> Result<Arc<ServerConfig>, WrongTls> {
        let wrong = |part, reason: String| WrongTls { part, reason };
        let bytes =
            |path: &Path, part| fs::read(path).map_err(|error| wrong(part, error.to_string()));
        let provider = Arc::new(ring::default_provider());
        let chain = certificates(&bytes(&self.certificate, TlsPart::Certificate)?)
            .map_err(|reason| wrong(TlsPart::Certificate, reason))?;
        let key = PrivateKeyDer::from_pem_slice(&bytes(&self.key, TlsPart::Key)?);
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
        let clients = match &self.client_authority {
            Some(path) => {
                let known = authorities(&bytes(path, TlsPart::Authority)?)
                    .map_err(|reason| wrong(TlsPart::Authority, reason))?;
                WebPkiClientVerifier::builder_with_provider(known.into(), provider.clone())
                    .build()
                    .map_err(|error| wrong(TlsPart::Authority, error.to_string()))?
            }
            None => WebPkiClientVerifier::no_client_auth(),
        };
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| wrong(TlsPart::Certificate, unusable(&error)))?;
        let mut config = config
            .with_client_cert_verifier(clients)
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(own)));
        // etcd offers h2 alone, and Go lets clients of HTTP/1.1 in without any; rustls would not.
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

// === impl Current ===

impl std::fmt::Debug for Current {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The key must not reach a log.
        f.debug_struct("Current").field("seen", &self.seen).finish_non_exhaustive()
    }
}

// === impl Tls ===

impl Tls {
    /// Looks whether connections can be taken with `files`, before anyone comes.
    ///
    /// # Errors
    /// The first file that can't be used.
    pub fn new(files: TlsFiles) -> Result<Self, WrongTls> {
        let (seen, config) = (files.stamps(), files.read()?);
        let current = Mutex::new(Current { config, seen });
        Ok(Self(Arc::new(Source { files, current })))
    }

    /// What a handshake is made with: the files as they are now, or as they were when they could be used.
    fn config(&self) -> Arc<ServerConfig> {
        let Source { files, current } = &*self.0;
        let seen = files.stamps();
        // Nothing panics while it holds the lock.
        let mut current = current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.seen != seen {
            current.seen = seen;
            match files.read() {
                Ok(config) => {
                    tracing::info!(file = %files.certificate.display(), "certificates were read anew");
                    current.config = config;
                }
                Err(WrongTls { part, reason }) => {
                    let file = files.of(part).display();
                    tracing::warn!(%file, reason, "certificates changed and can't be used: the old ones go on");
                }
            }
        }
        current.config.clone()
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
    let agreeing = incoming.map(move |stream| {
        let tls = tls.clone();
        async move {
            let (stream, tls) = match (stream, tls) {
                (Ok(stream), Some(tls)) => (stream, tls),
                (stream, _) => return Some(stream.map(Either::Left)),
            };
            // A task of its own: it costs a thousandth of a second, and who comes next does not wait for that.
            let agreed = tokio::spawn(agree(stream, tls)).await;
            agreed.ok().flatten().map(|stream| Ok(Either::Right(stream)))
        }
    });
    agreeing.buffer_unordered(usize::MAX).filter_map(std::future::ready)
}

/// A handshake; `None` where it failed, which is said.
async fn agree<S>(stream: S, tls: Tls) -> Option<tokio_rustls::server::TlsStream<S>>
where
    S: AsyncRead + AsyncWrite + Connected<ConnectInfo = TcpConnectInfo> + Unpin,
{
    let client = stream.connect_info().remote_addr();
    let acceptor = TlsAcceptor::from(tls.config());
    let reason = match timeout(HANDSHAKE_TIME_MAX, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => return Some(stream),
        // A balancer that looks whether the port is open says nothing and goes.
        Ok(Err(error))
            if matches!(
                error.kind(),
                io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset
            ) =>
        {
            return None;
        }
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
        // webpki's word for a certificate that is in the file itself.
        Some(rustls::Error::InvalidCertificate(CertificateError::Other(other)))
            if format!("{other:?}").contains("CaUsedAsEndEntity") =>
        {
            "its certificate is an authority's own; show one that an authority in --trusted-ca-file has issued"
                .to_owned()
        }
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

/// The authorities of clients, whose keys must be such that what they sign can be checked.
fn authorities(pem: &[u8]) -> Result<RootCertStore, String> {
    let mut known = RootCertStore::empty();
    for (at, authority) in certificates(pem)?.into_iter().enumerate() {
        known.add(authority).map_err(|error| unusable(&error))?;
        let key = known.roots.last().map(|root| root.subject_public_key_info.as_ref());
        let has = |oid: &&[u8]| key.is_some_and(|key| key.windows(oid.len()).any(|it| it == *oid));
        let is_short = key.is_some_and(|key| key.len() < RSA_KEY_BYTES_MIN);
        if !KEY_OIDS.iter().any(has) || has(&KEY_OIDS[0]) && is_short {
            return Err(format!(
                "certificate {} in it has a key that can't be used; it must be of {KEYS}",
                at + 1
            ));
        }
    }
    Ok(known)
}

fn unusable(error: &rustls::Error) -> String {
    format!("the certificate can't be used: {error}; it must be {VERSION}, with a key of {KEYS}")
}
