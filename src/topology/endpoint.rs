//! Endpoints: where a store is, as kine, HariKube and Go's drivers write it.
//!
//! Whatever is wrong with an endpoint, neither its message nor any other form of it ever shows a
//! password. A text that does not parse may have its password anywhere, so messages quote nothing of
//! it but the scheme and the names of parameters.

use std::{fmt, net::IpAddr, path::PathBuf};

use http::Uri;

pub use crate::net::address::{Database, Host, Login, Secret, TABLE_PREFIX, TlsMode};

mod parameters;
mod parse;
#[cfg(test)]
mod tests;

/// Where a store is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// An embedded SQLite file.
    Sqlite {
        /// The file; `None` for the default of whoever opens it.
        path: Option<PathBuf>,
        /// Parameters for Go's drivers. They are known and mean nothing here: the store decides
        /// its journal, locks and caches itself.
        ignored: Vec<String>,
    },
    /// PostgreSQL, or what speaks its protocol.
    Postgres(Database),
    /// MySQL or MariaDB, or what speaks their protocol.
    Mysql(Database),
    /// An etcd or a node; which of the two is found out when it is reached.
    Etcd {
        /// `http://host:port` each, all with the same scheme.
        urls: Vec<String>,
        /// Whether the scheme is https.
        tls: bool,
        /// Who asks, where the etcd wants to know.
        login: Option<Login>,
    },
}

/// Why a text is no endpoint. Shows nothing that could be a password.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// The text does not say what is there.
    #[error("no scheme; expected {}", parse::SCHEMES)]
    NoScheme,
    /// A scheme that nothing answers to.
    #[error("unknown scheme{}; expected {}{}", quoted(.scheme), parse::SCHEMES, meant(.nearest))]
    UnknownScheme {
        /// The scheme, where it can be shown.
        scheme: Option<String>,
        /// The scheme that was most likely meant.
        nearest: Option<&'static str>,
    },
    /// A part is missing or has the wrong form.
    #[error("{problem}; expected {expected}")]
    Malformed {
        /// What is wrong.
        problem: &'static str,
        /// The form that was expected.
        expected: &'static str,
    },
    /// A parameter that is not known.
    #[error("unknown parameter{}{}", quoted(.name), meant(.nearest))]
    UnknownParameter {
        /// The name, where it can be shown.
        name: Option<String>,
        /// The parameter that was most likely meant.
        nearest: Option<&'static str>,
    },
    /// A known parameter whose value has no meaning.
    #[error("bad value of parameter `{name}`; expected {expected}")]
    BadValue {
        /// The parameter.
        name: &'static str,
        /// What it can be.
        expected: &'static str,
    },
}

// === impl Endpoint ===

impl Endpoint {
    /// Reads an endpoint, with or without `multi://` in front of it.
    pub fn parse(text: &str) -> Result<Self, EndpointError> {
        parse::endpoint(text)
    }

    /// Whether an etcd on another machine would be told its password in clear. A database is not: its
    /// store refuses to.
    pub fn tells_in_clear(&self) -> bool {
        let Self::Etcd { urls, tls: false, login: Some(Login { password: Some(_), .. }) } = self
        else {
            return false;
        };
        let mut hosts =
            urls.iter().filter_map(|url| url.parse::<Uri>().ok()?.host().map(str::to_owned));
        hosts.any(|host| {
            let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
            !host.eq_ignore_ascii_case("localhost")
                && !address.is_ok_and(|address| address.is_loopback())
        })
    }

    /// What two endpoints share that mean the same store, whatever they say of logins, protection
    /// or settings. Holds no password, but is not meant to be read.
    pub fn identity(&self) -> String {
        match self {
            Self::Sqlite { path: None, .. } => "sqlite".to_owned(),
            Self::Sqlite { path: Some(path), .. } => {
                // `components` drops inner `.` and double slashes; a leading `./` stays.
                let clean: PathBuf = path.components().collect();
                let clean = clean.strip_prefix(".").map(PathBuf::from).unwrap_or(clean);
                format!("sqlite:{}", clean.display())
            }
            Self::Postgres(database) => format!("postgres:{}", database.identity()),
            Self::Mysql(database) => format!("mysql:{}", database.identity()),
            Self::Etcd { urls, .. } => {
                let hosts = urls.iter().map(|url| url.split_once("://").map_or(&url[..], |u| u.1));
                let mut hosts: Vec<String> = hosts.map(str::to_lowercase).collect();
                hosts.sort();
                hosts.dedup();
                format!("etcd:{}", hosts.join(","))
            }
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite { path: None, .. } => f.write_str("sqlite"),
            Self::Sqlite { path: Some(path), .. } => write!(f, "sqlite://{}", path.display()),
            Self::Postgres(database) => write!(f, "postgres://{database}"),
            Self::Mysql(database) => write!(f, "mysql://{database}"),
            Self::Etcd { urls, login, .. } => {
                let urls = urls.join(",");
                match (login, urls.split_once("://")) {
                    (Some(login), Some((scheme, hosts))) => {
                        write!(f, "{scheme}://{login}@{hosts}")
                    }
                    _ => f.write_str(&urls),
                }
            }
        }
    }
}

fn quoted(name: &Option<String>) -> String {
    name.as_ref().map_or_else(String::new, |name| format!(" `{name}`"))
}

fn meant(nearest: &Option<&'static str>) -> String {
    nearest.map_or_else(String::new, |name| format!("; did you mean `{name}`?"))
}
