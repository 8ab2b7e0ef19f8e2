//! The forms of an endpoint: URLs, Go's MySQL addresses, and SQLite paths.

use std::{collections::BTreeMap, path::PathBuf};

use super::{Database, Endpoint, EndpointError, Host, Login, Secret, TlsMode, parameters};
use crate::model::nearest::nearest;

pub(super) const SCHEMES: &str = "sqlite://, postgres://, mysql://, http:// or https://";
pub(super) const POSTGRES_PORT: u16 = 5432;
const MYSQL_PORT: u16 = 3306;
const ETCD_PORT: u16 = 2379;

const POSTGRES_FORM: &str = "postgres://user:password@host:port/database, with `%40` for an `@`, \
                             `%2F` for a `/` and `%3F` for a `?` in the password";
const MYSQL_FORM: &str = "mysql://user:password@tcp(host:port)/database, \
                          mysql://user:password@unix(path)/database or \
                          mysql://user:password@host:port/database";
const ETCD_FORM: &str = "http://host:port, with further `,host:port` for a cluster";
const SQLITE_FORM: &str = "sqlite://path, relative or absolute";

pub(super) fn endpoint(text: &str) -> Result<Endpoint, EndpointError> {
    let text = text.trim();
    let text = text.strip_prefix("multi://").unwrap_or(text);
    if text.is_empty() || text == "sqlite" {
        return sqlite("");
    }
    let (scheme, rest) = text.split_once("://").ok_or(EndpointError::NoScheme)?;
    match scheme.to_ascii_lowercase().as_str() {
        "sqlite" => sqlite(rest),
        "postgres" | "postgresql" => postgres(rest).map(Endpoint::Postgres),
        "mysql" => mysql(rest).map(Endpoint::Mysql),
        scheme @ ("http" | "https") => etcd(scheme, rest),
        _ => Err(unknown_scheme(scheme)),
    }
}

fn unknown_scheme(scheme: &str) -> EndpointError {
    let is_shown = scheme.len() <= 20 && scheme.chars().all(|c| c.is_ascii_alphanumeric());
    let known = ["sqlite", "postgres", "postgresql", "mysql", "http", "https"];
    let nearest = nearest(scheme, known).filter(|_| is_shown);
    EndpointError::UnknownScheme { scheme: is_shown.then(|| scheme.to_owned()), nearest }
}

fn sqlite(rest: &str) -> Result<Endpoint, EndpointError> {
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let path = path.strip_prefix("file:").unwrap_or(path);
    if path == ":memory:" || path.ends_with('/') {
        return malformed("not a file", SQLITE_FORM);
    }
    // A path is shown in logs, so what looks like a login or like parameters is not taken for one.
    if path.contains(':') && path.contains('@') || path.contains(['=', '&']) {
        return malformed("no path, but a login or parameters", SQLITE_FORM);
    }
    let path = (!path.is_empty()).then(|| PathBuf::from(path));
    Ok(Endpoint::Sqlite { path, ignored: parameters::sqlite(query)? })
}

fn postgres(rest: &str) -> Result<Database, EndpointError> {
    let (mut database, query) = url(rest, POSTGRES_PORT, POSTGRES_FORM)?;
    database.tls = TlsMode::Prefer;
    parameters::database(parameters::POSTGRES, query, &mut database)?;
    Ok(database)
}

/// Go's form is recognised by the parenthesis around its address: everything in front of the
/// address is the login, in which no character is escaped.
fn mysql(rest: &str) -> Result<Database, EndpointError> {
    let (mut database, query) = match rest.rfind(")/") {
        None if rest.ends_with(')') => return malformed("no slash behind the address", MYSQL_FORM),
        None => url(rest, MYSQL_PORT, MYSQL_FORM)?,
        Some(end) => {
            let (address, path) = (&rest[..end], &rest[end + 2..]);
            let (login, address) = match address.rfind('(').map(|open| address.split_at(open)) {
                Some((before, address)) => (before, &address[1..]),
                None => return malformed("`)` without `(`", MYSQL_FORM),
            };
            let (login, network) = match login.rsplit_once('@') {
                Some((login, network)) => (Some(go_login(login)), network),
                None => (None, login),
            };
            let host = match network {
                "tcp" | "tcp4" | "tcp6" => host(address, MYSQL_PORT)?,
                "unix" if address.starts_with('/') => Host::Unix(address.into()),
                _ => return malformed("unknown network", MYSQL_FORM),
            };
            new_database(login, vec![host], path, MYSQL_FORM)?
        }
    };
    parameters::database(parameters::MYSQL, query, &mut database)?;
    Ok(database)
}

fn etcd(scheme: &str, rest: &str) -> Result<Endpoint, EndpointError> {
    let mut login = None;
    let mut urls = Vec::new();
    for (index, part) in rest.split(',').enumerate() {
        let part = part.trim();
        let part = match part.split_once("://") {
            Some((other, part)) if index > 0 && other.eq_ignore_ascii_case(scheme) => part,
            Some(_) => return malformed("two schemes", ETCD_FORM),
            None => part,
        };
        let part = part.strip_suffix('/').unwrap_or(part);
        let address = match part.rsplit_once('@') {
            Some((user, address)) if index == 0 => {
                login = Some(url_login(user)?);
                address
            }
            Some(_) => return malformed("a login behind a comma", ETCD_FORM),
            None => part,
        };
        let Ok(host) = host(address, ETCD_PORT) else {
            return malformed("bad host or port", ETCD_FORM);
        };
        urls.push(format!("{scheme}://{host}"));
    }
    Ok(Endpoint::Etcd { urls, tls: scheme == "https", login })
}

/// `user:password@host:port,host:port/database`, and the query behind it.
fn url<'a>(
    rest: &'a str,
    port: u16,
    form: &'static str,
) -> Result<(Database, &'a str), EndpointError> {
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let (login, hosts) = match authority.rsplit_once('@') {
        Some((login, hosts)) => (Some(url_login(login)?), hosts),
        None => (None, authority),
    };
    let hosts = match hosts {
        "" => vec![Host::Tcp("localhost".to_owned(), port)],
        _ => hosts.split(',').map(|text| host(text, port)).collect::<Result<_, _>>()?,
    };
    new_database(login, hosts, path.strip_prefix('/').unwrap_or(path), form)
}

/// An `@` behind the address means that the password was cut by one of its own characters: the
/// address is then a piece of it, and no part of the text can be trusted.
fn new_database<'a>(
    login: Option<Login>,
    hosts: Vec<Host>,
    path: &'a str,
    form: &'static str,
) -> Result<(Database, &'a str), EndpointError> {
    if path.contains('@') || path.contains('#') {
        return malformed("an `@` or `#` behind the address", form);
    }
    let (name, query) = path.split_once('?').unwrap_or((path, ""));
    let name = decoded(name)?;
    // The name is shown in logs: parameters without their `?` must not pass for it.
    if name.contains(['/', ':', '=', '&', ' ', '@']) {
        return malformed("bad name of a database", form);
    }
    let database = if name.is_empty() { "kubernetes".to_owned() } else { name };
    let database = Database {
        login,
        hosts,
        database,
        must_exist: false,
        tls: TlsMode::Disable,
        ca_file: None,
        cert_file: None,
        key_file: None,
        table_prefix: super::TABLE_PREFIX.to_owned(),
        settings: BTreeMap::new(),
    };
    Ok((database, query))
}

fn url_login(text: &str) -> Result<Login, EndpointError> {
    let login = go_login(text);
    let password = match login.password {
        Some(password) => Some(Secret::from(decoded(password.expose())?)),
        None => None,
    };
    Ok(Login { user: decoded(&login.user)?, password })
}

fn go_login(text: &str) -> Login {
    match text.split_once(':') {
        Some((user, password)) => {
            Login { user: user.to_owned(), password: Some(Secret::from(password.to_owned())) }
        }
        None => Login { user: text.to_owned(), password: None },
    }
}

/// A host and its port, or `port` where it says none.
pub(super) fn host(text: &str, port: u16) -> Result<Host, EndpointError> {
    const FORM: &str = "host, host:port or [IPv6 address]:port";
    let (name, port) = match text.rsplit_once(':') {
        Some((name, digits)) if !digits.ends_with(']') => {
            match digits.parse().ok().filter(|port| *port != 0) {
                Some(port) => (name, port),
                None => return malformed("bad port", FORM),
            }
        }
        _ => (text, port),
    };
    let is_name =
        !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    let is_address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
    let is_address = is_address.is_some_and(|name| name.parse::<std::net::Ipv6Addr>().is_ok());
    match is_name || is_address {
        true => Ok(Host::Tcp(name.to_owned(), port)),
        false => malformed("bad host", FORM),
    }
}

/// A piece of a URL without its percent signs.
pub(super) fn decoded(text: &str) -> Result<String, EndpointError> {
    const FORM: &str = "two hexadecimal digits behind each `%` (`%25` for a `%`), and UTF-8";
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, behind)) = rest.split_first() {
        rest = behind;
        if *byte != b'%' {
            bytes.push(*byte);
            continue;
        }
        let digits = behind.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let digits = digits.filter(|digits| digits.chars().all(|c| c.is_ascii_hexdigit()));
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => bytes.push(byte),
            None => return malformed("bad escape", FORM),
        }
        rest = &behind[2..];
    }
    String::from_utf8(bytes).or_else(|_| malformed("bad escape", FORM))
}

fn malformed<T>(problem: &'static str, expected: &'static str) -> Result<T, EndpointError> {
    Err(EndpointError::Malformed { problem, expected })
}
