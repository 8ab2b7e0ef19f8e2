//! What a node shows of itself over TLS, and whom it admits.

use std::sync::Arc;

use rustls::{
    RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    sign::CertifiedKey,
};
use tonic::transport::{Certificate, Identity, ServerTlsConfig};

/// Certificates, as PEM.
#[derive(Clone)]
pub struct Tls {
    /// The node's certificate chain.
    pub certificate: Vec<u8>,
    /// Its key.
    pub key: Vec<u8>,
    /// Clients must show a certificate of this authority.
    pub client_authority: Option<Vec<u8>>,
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

// === impl Tls ===

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The key must not reach a log.
        let is_mutual = self.client_authority.is_some();
        f.debug_struct("Tls").field("is_mutual", &is_mutual).finish_non_exhaustive()
    }
}

impl Tls {
    /// Looks whether connections can be taken with these, before anyone comes.
    ///
    /// # Errors
    /// The first that can't be used.
    pub fn check(&self) -> Result<(), WrongTls> {
        let wrong = |part, reason: String| WrongTls { part, reason };
        let certificates = certificates(&self.certificate)
            .map_err(|reason| wrong(TlsPart::Certificate, reason))?;
        let key = PrivateKeyDer::from_pem_slice(&self.key);
        let key = key.map_err(|error| {
            wrong(TlsPart::Key, format!("it holds no private key in PEM: {error}"))
        })?;
        let key = ring::default_provider().key_provider.load_private_key(key);
        let key = key.map_err(|error| {
            let taken = "RSA, P-256, P-384 and Ed25519 are taken";
            wrong(TlsPart::Key, format!("the key can't be used: {error}; {taken}"))
        })?;
        let own = CertifiedKey::new(certificates, key);
        own.keys_match().map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => wrong(
                TlsPart::Key,
                "it is not the key of the certificate in --cert-file".to_owned(),
            ),
            error => wrong(TlsPart::Certificate, unusable(&error)),
        })?;
        let Some(authority) = &self.client_authority else { return Ok(()) };
        let authorities =
            self::certificates(authority).map_err(|reason| wrong(TlsPart::Authority, reason))?;
        let mut known = RootCertStore::empty();
        for authority in authorities {
            let added = known.add(authority);
            added.map_err(|error| wrong(TlsPart::Authority, unusable(&error)))?;
        }
        rustls::server::WebPkiClientVerifier::builder_with_provider(
            Arc::new(known),
            Arc::new(ring::default_provider()),
        )
        .build()
        .map_err(|error| wrong(TlsPart::Authority, error.to_string()))?;
        Ok(())
    }

    pub(super) fn config(self) -> ServerTlsConfig {
        let identity = Identity::from_pem(self.certificate, self.key);
        let config = ServerTlsConfig::new().identity(identity);
        match self.client_authority {
            Some(authority) => config.client_ca_root(Certificate::from_pem(authority)),
            None => config,
        }
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
    format!(
        "the certificate can't be used: {error}; it must be X.509 version 3, with a key of RSA, P-256, P-384 or \
         Ed25519"
    )
}
