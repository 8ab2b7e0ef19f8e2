//! A certificate authority of a test's own.

use std::{fs, path::Path};

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use time::{Duration, OffsetDateTime};

pub(crate) type Authority = CertifiedIssuer<'static, KeyPair>;

pub(crate) fn authority() -> Result<Authority> {
    let mut parameters = CertificateParams::new(Vec::new())?;
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    Ok(CertifiedIssuer::self_signed(parameters, KeyPair::generate()?)?)
}

/// A certificate for `name` and its key, as PEM.
pub(crate) fn certificate(authority: &Authority, name: &str) -> Result<(String, String)> {
    signed(authority, parameters(name)?)
}

/// One of a year that ends at `end`.
pub(crate) fn certificate_until(
    authority: &Authority,
    name: &str,
    end: OffsetDateTime,
) -> Result<(String, String)> {
    let mut parameters = parameters(name)?;
    (parameters.not_before, parameters.not_after) = (end - Duration::days(365), end);
    signed(authority, parameters)
}

fn parameters(name: &str) -> Result<CertificateParams> {
    Ok(CertificateParams::new(vec![name.to_owned(), "127.0.0.1".to_owned()])?)
}

fn signed(authority: &Authority, parameters: CertificateParams) -> Result<(String, String)> {
    let key = KeyPair::generate()?;
    let certificate = parameters.signed_by(&key, authority)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

/// Keeps the authority's certificate, and one with its key for a server on this machine and for a client.
pub(crate) fn write_certificates(folder: &Path, authority: &Authority) -> Result<()> {
    fs::write(folder.join("ca.pem"), authority.pem())?;
    for name in ["localhost", "client"] {
        let (certificate, key) = certificate(authority, name)?;
        fs::write(folder.join(format!("{name}.pem")), certificate)?;
        fs::write(folder.join(format!("{name}.key")), key)?;
    }
    Ok(())
}
