//! When the certificates end that a node shows, and those of the authorities that it believes.

use std::{
    fmt, fs,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use tokio::time::Instant;
use x509_parser::{extensions::GeneralName, parse_x509_certificate, prelude::X509Certificate};

/// Files are looked at this often at most: they change once in days.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// Of the hosts that a certificate names.
const NAMES_SHOWN: usize = 3;

/// A file of a node's that holds certificates in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFile {
    /// What names the file: a flag, or a route and a field of the topology.
    pub setting: String,
    /// The file.
    pub path: PathBuf,
}

/// The certificate of a file that ends first: a chain is as good as its worst link, and so is what an authority's
/// successor is not in yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Validity {
    pub file: CertificateFile,
    /// Whom it names.
    pub subject: String,
    /// From when on it is good: seconds since 1970.
    pub not_before: i64,
    /// Until when it is good: seconds since 1970.
    pub not_after: i64,
}

/// The certificates of a node. Clones share what was read.
#[derive(Clone, Default)]
pub(super) struct Certificates(Arc<Inner>);

#[derive(Default)]
struct Inner {
    files: Vec<CertificateFile>,
    seen: Mutex<Option<(Instant, Vec<Validity>)>>,
}

// === impl Certificates ===

impl Certificates {
    pub(super) fn new(files: Vec<CertificateFile>) -> Self {
        Self(Arc::new(Inner { files, seen: Mutex::default() }))
    }

    /// When they end, as of a minute ago at most. What can't be read is left out: who needs it says so.
    pub(super) fn validities(&self) -> Vec<Validity> {
        // Nothing panics while it holds the lock.
        let mut seen = self.0.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, found)) = &*seen
            && at.elapsed() < LOOK_EVERY
        {
            return found.clone();
        }
        let found: Vec<_> = self.0.files.iter().filter_map(first_to_end).collect();
        *seen = Some((Instant::now(), found.clone()));
        found
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.0.files).finish()
    }
}

/// Seconds since 1970.
pub(super) fn unix_time() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn first_to_end(file: &CertificateFile) -> Option<Validity> {
    let pem = fs::read(&file.path).ok()?;
    let all = CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok);
    let validities = all.filter_map(|der| {
        let (_, certificate) = parse_x509_certificate(&der).ok()?;
        Some(validity_of(&certificate, file.clone()))
    });
    validities.min_by_key(|validity| validity.not_after)
}

fn validity_of(certificate: &X509Certificate<'_>, file: CertificateFile) -> Validity {
    let validity = certificate.validity();
    Validity {
        file,
        subject: names_in(certificate).unwrap_or_else(|| certificate.subject().to_string()),
        not_before: validity.not_before.timestamp(),
        not_after: validity.not_after.timestamp(),
    }
}

/// The hosts that it is for, which count instead of its subject where they are said.
fn names_in(certificate: &X509Certificate<'_>) -> Option<String> {
    let names = certificate.subject_alternative_name().ok()??;
    let hosts = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::DNSName(host) => Some(*host),
        _ => None,
    });
    let hosts: Vec<&str> = hosts.take(NAMES_SHOWN).collect();
    (!hosts.is_empty()).then(|| hosts.join(", "))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    fn pem(year: i32) -> String {
        let mut params = CertificateParams::new(["a.example".to_owned()]).unwrap();
        (params.not_before, params.not_after) =
            (date_time_ymd(2020, 1, 1), date_time_ymd(year, 1, 1));
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem()
    }

    #[tokio::test(start_paused = true)]
    async fn the_one_that_ends_first_counts_and_a_file_is_read_anew_after_a_minute() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("chain.pem");
        fs::write(&path, pem(2041) + &pem(2031)).unwrap();
        let file = |name: &str, path: PathBuf| CertificateFile { setting: name.to_owned(), path };
        let missing = file("--trusted-ca-file", folder.path().join("none.pem"));
        let certificates = Certificates::new(vec![file("--cert-file", path.clone()), missing]);

        let ends = || {
            let found = certificates.validities();
            assert_eq!(found.len(), 1, "{found:?}");
            assert_eq!(found[0].file.setting, "--cert-file");
            assert_eq!(found[0].subject, "a.example");
            found[0].not_after
        };
        assert_eq!(ends(), date_time_ymd(2031, 1, 1).unix_timestamp());
        fs::write(&path, pem(2051)).unwrap();
        assert_eq!(ends(), date_time_ymd(2031, 1, 1).unix_timestamp());
        tokio::time::advance(LOOK_EVERY).await;
        assert_eq!(ends(), date_time_ymd(2051, 1, 1).unix_timestamp());
    }
}
