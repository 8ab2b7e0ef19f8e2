//! When the certificates end that a node shows, and those of the authorities that it believes.

use std::{
    fmt, fs,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
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
    /// Whether it holds those whose signatures are believed, and not the node's own chain.
    pub is_authority: bool,
    /// Whether the node goes on with what was in it at the start.
    pub is_read_once: bool,
}

/// What a file is as good as: of a chain the certificate that ends first; of authorities the one that ends last, since
/// some are kept beside their successors.
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
    /// Of each file; `None` of one that can't be read, which who needs it says.
    seen: Mutex<Vec<Option<Validity>>>,
    looked: Mutex<Option<Instant>>,
}

// === impl Certificates ===

impl Certificates {
    pub(super) fn new(files: Vec<CertificateFile>) -> Self {
        let seen = Mutex::new(files.iter().map(validity_of).collect());
        let looked = Mutex::new(Some(Instant::now()));
        Self(Arc::new(Inner { files, seen, looked }))
    }

    /// When they end, as it was found a minute ago or so: nobody waits for a disk.
    pub(super) fn validities(&self) -> Vec<Validity> {
        if self.is_due() {
            let inner = self.0.clone();
            tokio::task::spawn_blocking(move || inner.look());
        }
        self.0.lock().iter().flatten().cloned().collect()
    }

    /// Says so once for each time.
    fn is_due(&self) -> bool {
        // Nothing panics while it holds the lock.
        let mut looked = self.0.looked.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = looked.is_some_and(|at| at.elapsed() >= LOOK_EVERY);
        if is_due {
            *looked = Some(Instant::now());
        }
        is_due
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Vec<Option<Validity>>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look(&self) {
        for (at, file) in self.files.iter().enumerate().filter(|(_, file)| !file.is_read_once) {
            let found = validity_of(file);
            self.lock()[at] = found;
        }
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.0.files).finish()
    }
}

/// The time since 1970, which certificates end by and people compare.
#[expect(
    clippy::disallowed_methods,
    reason = "certificates end by the wall clock; it decides nothing"
)]
pub fn unix_time() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn validity_of(file: &CertificateFile) -> Option<Validity> {
    let pem = fs::read(&file.path).ok()?;
    let all = CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok);
    let validities = all.filter_map(|der| {
        let (_, certificate) = parse_x509_certificate(&der).ok()?;
        let subject = names_in(&certificate);
        let validity = certificate.validity();
        Some(Validity {
            file: file.clone(),
            subject: subject.unwrap_or_else(|| certificate.subject().to_string()),
            not_before: validity.not_before.timestamp(),
            not_after: validity.not_after.timestamp(),
        })
    });
    match file.is_authority {
        true => validities.max_by_key(|validity| validity.not_after),
        false => validities.min_by_key(|validity| validity.not_after),
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

    fn file(setting: &str, path: PathBuf) -> CertificateFile {
        CertificateFile {
            setting: setting.to_owned(),
            path,
            is_authority: setting.contains("ca"),
            is_read_once: setting.contains("once"),
        }
    }

    fn ends(certificates: &Certificates) -> Vec<(String, i64)> {
        let found = certificates.validities().into_iter();
        found.map(|it| (it.file.setting, it.not_after)).collect()
    }

    fn year(year: i32) -> i64 {
        date_time_ymd(year, 1, 1).unix_timestamp()
    }

    #[test]
    fn a_chain_is_as_good_as_its_first_to_end_and_authorities_as_their_last() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("several.pem");
        fs::write(&path, pem(2041) + &pem(2031)).unwrap();
        let missing = file("--trusted-ca-file", folder.path().join("none.pem"));
        let files = vec![file("--cert-file", path.clone()), file("ca", path), missing];
        let certificates = Certificates::new(files);
        assert_eq!(
            ends(&certificates),
            [("--cert-file".to_owned(), year(2031)), ("ca".to_owned(), year(2041))]
        );
        assert_eq!(certificates.validities()[0].subject, "a.example");
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_is_read_anew_after_a_minute_where_the_node_does_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("chain.pem");
        fs::write(&path, pem(2031)).unwrap();
        let files = vec![file("--cert-file", path.clone()), file("once", path.clone())];
        let certificates = Certificates::new(files);
        let ends = || ends(&certificates).into_iter().map(|(_, end)| end).collect::<Vec<_>>();
        fs::write(&path, pem(2051)).unwrap();
        assert_eq!(ends(), [year(2031), year(2031)]);
        tokio::time::advance(LOOK_EVERY).await;
        while ends() == [year(2031), year(2031)] {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(ends(), [year(2051), year(2031)]);
    }
}
