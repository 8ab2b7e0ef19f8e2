//! A certificate authority of a test's own.

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

pub(crate) type Authority = CertifiedIssuer<'static, KeyPair>;

pub(crate) fn authority() -> Result<Authority> {
    let mut parameters = CertificateParams::new(Vec::new())?;
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    Ok(CertifiedIssuer::self_signed(parameters, KeyPair::generate()?)?)
}

/// A certificate for `name` and its key, as PEM.
pub(crate) fn certificate(authority: &Authority, name: &str) -> Result<(String, String)> {
    let key = KeyPair::generate()?;
    let names = vec![name.to_owned(), "127.0.0.1".to_owned()];
    let certificate = CertificateParams::new(names)?.signed_by(&key, authority)?;
    Ok((certificate.pem(), key.serialize_pem()))
}
