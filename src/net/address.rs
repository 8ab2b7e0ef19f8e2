//! Where a database is, who asks and how the connection is protected. Nothing here ever shows a
//! password.

use std::{collections::BTreeMap, fmt, path::PathBuf};

/// A database behind a socket. Formatting it shows where it is and who asks, and no settings.
#[derive(Clone, PartialEq, Eq)]
pub struct Database {
    /// Who asks; `None` for the driver's default.
    pub login: Option<Login>,
    /// Where the servers are; at least one.
    pub hosts: Vec<Host>,
    /// The database's name; `kubernetes` where none is given.
    pub database: String,
    /// Whether it must be there; else it is made.
    pub must_exist: bool,
    /// How the connection is protected.
    pub tls: TlsMode,
    /// The authority that signed the server's certificate.
    pub ca_file: Option<PathBuf>,
    /// The client's certificate.
    pub cert_file: Option<PathBuf>,
    /// The client certificate's key.
    pub key_file: Option<PathBuf>,
    /// What the names of the store's tables begin with.
    pub table_prefix: String,
    /// Settings of the session, by name, for the server. Values are as secret as a password, since
    /// nothing is known of them.
    pub settings: BTreeMap<String, Secret>,
}

/// A user, and the password if there is one. Formatting it hides a user that is no plain name, since
/// a slip in the colon makes the password a part of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// The name.
    pub user: String,
    /// The password.
    pub password: Option<Secret>,
}

/// A server's address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Host {
    /// A name or address (IPv6 in brackets), and a port.
    Tcp(String, u16),
    /// A socket in the file system.
    Unix(PathBuf),
}

/// What tables' names begin with where the endpoint does not say.
pub const TABLE_PREFIX: &str = "pleach_";

/// How a connection to a database is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsMode {
    /// Not at all.
    Disable,
    /// With TLS where the server has it.
    Prefer,
    /// With TLS, whoever the server is.
    Require,
    /// With TLS, and the server's certificate is signed as expected.
    VerifyCa,
    /// With TLS, and the certificate names the host as well.
    VerifyFull,
}

/// A password, or a value that may hold one. Formatting it prints asterisks.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

// === impl Database ===

impl Database {
    /// Names a file that can't be read. Without this a driver says only what the system does, which is
    /// the same for a socket that is not there yet.
    ///
    /// # Errors
    /// The first of such files.
    pub async fn check_files(&self) -> Result<(), String> {
        for file in [&self.ca_file, &self.cert_file, &self.key_file].into_iter().flatten() {
            if let Err(error) = tokio::fs::File::open(file).await {
                let file = file.display();
                return Err(format!("the file {file} can't be read: {error}"));
            }
        }
        Ok(())
    }

    /// What two that mean the same store share, whatever they say of logins, protection or settings.
    pub fn identity(&self) -> String {
        let mut hosts: Vec<String> =
            self.hosts.iter().map(|host| host.to_string().to_lowercase()).collect();
        hosts.sort();
        // PostgreSQL keeps separate tables per schema, so two schemas are two stores.
        let schema = self.settings.get("search_path").map_or("", Secret::expose);
        let prefix = &self.table_prefix;
        format!("{}/{}/{schema}/{prefix}", hosts.join(","), self.database)
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(login) = &self.login {
            write!(f, "{login}@")?;
        }
        let hosts: Vec<String> = self.hosts.iter().map(Host::to_string).collect();
        write!(f, "{}/{}", hosts.join(","), self.database)?;
        match &self.table_prefix[..] {
            TABLE_PREFIX => Ok(()),
            prefix => write!(f, "?table_prefix={prefix}"),
        }
    }
}

// === impl Login ===

impl fmt::Display for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        f.write_str(if self.user.chars().all(is_plain) { &self.user } else { "***" })?;
        self.password.as_ref().map_or(Ok(()), |password| write!(f, ":{password}"))
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

// === impl Host ===

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(host, port) => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix({})", path.display()),
        }
    }
}

// === impl Secret ===

impl Secret {
    /// The text itself, for the connection that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}
