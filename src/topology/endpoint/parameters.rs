//! What stands behind the `?` of an endpoint.
//!
//! Each kind of store has a table of the parameters that are known. What Go's drivers need and our
//! stores do not is known and ignored, so that files written for them run as they are.

use super::{Database, EndpointError, Login, Secret};
use crate::model::nearest::nearest;

/// What is done with a parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Meaning {
    Ignored,
    User,
    Password,
    Host,
    Port,
    Database,
    TlsMode,
    CaFile,
    CertFile,
    KeyFile,
    TablePrefix,
    /// SQLite's ways to open a file that no store can work with, unless the value is the one given.
    MustBe(&'static str),
}

use Meaning::*;

type Table = &'static [(&'static str, Meaning)];

/// Of mattn/go-sqlite3 and modernc.org/sqlite, and of SQLite's own file URIs.
pub(super) const SQLITE: Table = &[
    ("_auth", Ignored),
    ("_auth_crypt", Ignored),
    ("_auth_pass", Ignored),
    ("_auth_salt", Ignored),
    ("_auth_user", Ignored),
    ("_auto_vacuum", Ignored),
    ("_busy_timeout", Ignored),
    ("_cache_size", Ignored),
    ("_case_sensitive_like", Ignored),
    ("_cslike", Ignored),
    ("_defer_fk", Ignored),
    ("_defer_foreign_keys", Ignored),
    ("_dqs", Ignored),
    ("_fk", Ignored),
    ("_foreign_keys", Ignored),
    ("_ignore_check_constraints", Ignored),
    ("_inttotime", Ignored),
    ("_journal", Ignored),
    ("_journal_mode", Ignored),
    ("_loc", Ignored),
    ("_locking", Ignored),
    ("_locking_mode", Ignored),
    ("_mutex", Ignored),
    ("_pragma", Ignored),
    ("_query_only", MustBe("0")),
    ("_recursive_triggers", Ignored),
    ("_rt", Ignored),
    ("_secure_delete", Ignored),
    ("_stmt_cache_size", Ignored),
    ("_sync", Ignored),
    ("_synchronous", Ignored),
    ("_texttotime", Ignored),
    ("_time_format", Ignored),
    ("_time_integer_format", Ignored),
    ("_timeout", Ignored),
    ("_timezone", Ignored),
    ("_txlock", Ignored),
    ("_vacuum", Ignored),
    ("_writable_schema", Ignored),
    ("cache", Ignored),
    ("immutable", MustBe("0")),
    ("mode", MustBe("rwc")),
    ("modeof", Ignored),
    ("nolock", MustBe("0")),
    ("psow", Ignored),
    ("vfs", Ignored),
];

/// Of libpq and jackc/pgx.
pub(super) const POSTGRES: Table = &[
    ("channel_binding", Ignored),
    ("connect_timeout", Ignored),
    ("database", Database),
    ("dbname", Database),
    ("default_query_exec_mode", Ignored),
    ("description_cache_capacity", Ignored),
    ("gssencmode", Ignored),
    ("host", Host),
    ("keepalives", Ignored),
    ("keepalives_count", Ignored),
    ("keepalives_idle", Ignored),
    ("keepalives_interval", Ignored),
    ("krbspn", Ignored),
    ("krbsrvname", Ignored),
    ("load_balance_hosts", Ignored),
    ("max_protocol_version", Ignored),
    ("min_protocol_version", Ignored),
    ("min_read_buffer_size", Ignored),
    ("passfile", Ignored),
    ("password", Password),
    ("pool_max_conns", Ignored),
    ("pool_min_conns", Ignored),
    ("port", Port),
    ("require_auth", Ignored),
    ("service", Ignored),
    ("servicefile", Ignored),
    ("sslcert", CertFile),
    ("sslcompression", Ignored),
    ("sslinline", Ignored),
    ("sslkey", KeyFile),
    ("sslmode", TlsMode),
    ("sslnegotiation", Ignored),
    ("sslpassword", Ignored),
    ("sslrootcert", CaFile),
    ("sslsni", Ignored),
    ("statement_cache_capacity", Ignored),
    ("statement_cache_mode", Ignored),
    ("table_prefix", TablePrefix),
    ("target_session_attrs", Ignored),
    ("tcp_user_timeout", Ignored),
    ("user", User),
];

/// Of go-sql-driver/mysql, and `ssl-*` of the URL form.
pub(super) const MYSQL: Table = &[
    ("allowAllFiles", Ignored),
    ("allowCleartextPasswords", Ignored),
    ("allowFallbackToPlaintext", Ignored),
    ("allowNativePasswords", Ignored),
    ("allowOldPasswords", Ignored),
    ("charset", Ignored),
    ("checkConnLiveness", Ignored),
    ("clientFoundRows", Ignored),
    ("collation", Ignored),
    ("columnsWithAlias", Ignored),
    ("compress", Ignored),
    ("connectionAttributes", Ignored),
    ("interpolateParams", Ignored),
    ("loc", Ignored),
    ("maxAllowedPacket", Ignored),
    ("multiStatements", Ignored),
    ("parseTime", Ignored),
    ("readTimeout", Ignored),
    ("rejectReadOnly", Ignored),
    ("serverPubKey", Ignored),
    ("ssl-ca", CaFile),
    ("ssl-cert", CertFile),
    ("ssl-key", KeyFile),
    ("ssl-mode", TlsMode),
    ("strict", Ignored),
    ("table_prefix", TablePrefix),
    ("timeTruncate", Ignored),
    ("timeout", Ignored),
    ("tls", TlsMode),
    ("writeTimeout", Ignored),
];

const TLS_MODES: &[(&str, super::TlsMode)] = &[
    ("allow", super::TlsMode::Prefer),
    ("disable", super::TlsMode::Disable),
    ("disabled", super::TlsMode::Disable),
    ("false", super::TlsMode::Disable),
    ("prefer", super::TlsMode::Prefer),
    ("preferred", super::TlsMode::Prefer),
    ("require", super::TlsMode::Require),
    ("required", super::TlsMode::Require),
    ("skip-verify", super::TlsMode::Require),
    ("true", super::TlsMode::VerifyFull),
    ("verify-ca", super::TlsMode::VerifyCa),
    ("verify_ca", super::TlsMode::VerifyCa),
    ("verify-full", super::TlsMode::VerifyFull),
    ("verify_identity", super::TlsMode::VerifyFull),
];

/// SQLite's parameters: their names, since none has a meaning.
pub(super) fn sqlite(query: &str) -> Result<Vec<String>, EndpointError> {
    let mut names = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let Some((known, meaning)) = find(SQLITE, name) else {
            return Err(unknown(SQLITE, name, query));
        };
        if let MustBe(expected) = meaning
            && value != expected
        {
            let expected = "the parameter's default: a store reads and writes its file";
            return Err(EndpointError::BadValue { name: known, expected });
        }
        names.push(known.to_owned());
    }
    Ok(names)
}

/// A database's parameters. Those that no table knows are settings of the session, unless they look
/// like a known one misspelt or have no value, as the rest of a password with an `&` in it.
pub(super) fn database(
    table: Table,
    query: &str,
    database: &mut Database,
) -> Result<(), EndpointError> {
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = super::parse::decoded(value)?;
        if let Some((name, meaning)) = find(table, name) {
            set(database, name, meaning, value)?;
            continue;
        }
        let error = unknown(table, name, query);
        let is_misspelt = matches!(error, EndpointError::UnknownParameter { name: Some(_), .. });
        let is_setting = name.chars().all(|c| c.is_ascii_alphanumeric() || "_.".contains(c));
        if is_misspelt || !is_setting || name.is_empty() || !pair.contains('=') {
            return Err(error);
        }
        database.settings.insert(name.to_owned(), Secret::from(value));
    }
    Ok(())
}

fn set(
    database: &mut Database,
    name: &'static str,
    meaning: Meaning,
    value: String,
) -> Result<(), EndpointError> {
    let bad = |expected| Err(EndpointError::BadValue { name, expected });
    match meaning {
        Ignored | MustBe(_) => {}
        User => login(database).user = value,
        Password => login(database).password = Some(Secret::from(value)),
        Database => database.database = value,
        CaFile => database.ca_file = Some(value.into()),
        CertFile => database.cert_file = Some(value.into()),
        KeyFile => database.key_file = Some(value.into()),
        TablePrefix => {
            let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            if value.is_empty() || value.len() > 32 || !value.chars().all(is_plain) {
                return bad("1 to 32 of the characters a-z, 0-9 and _");
            }
            database.table_prefix = value;
        }
        TlsMode => {
            let mode = TLS_MODES.iter().find(|(text, _)| value.eq_ignore_ascii_case(text));
            let Some((_, mode)) = mode else {
                return bad("`disable`, `prefer`, `require`, `verify-ca` or `verify-full`; with \
                            Go's MySQL driver `true`, `false`, `skip-verify` or `preferred`");
            };
            database.tls = *mode;
        }
        Host if value.starts_with('/') => database.hosts = vec![super::Host::Unix(value.into())],
        Host => match super::parse::host(&value, super::parse::POSTGRES_PORT) {
            Ok(host) => database.hosts = vec![host],
            Err(_) => return bad("a host name, or the directory of the server's socket"),
        },
        Port => {
            let Some(port) = value.parse().ok().filter(|port| *port != 0) else {
                return bad("a port from 1 to 65535");
            };
            for host in &mut database.hosts {
                if let super::Host::Tcp(_, old) = host {
                    *old = port;
                }
            }
        }
    }
    Ok(())
}

fn login(database: &mut Database) -> &mut Login {
    database.login.get_or_insert_with(|| Login { user: String::new(), password: None })
}

fn find(table: Table, name: &str) -> Option<(&'static str, Meaning)> {
    table.iter().find(|(known, _)| *known == name).copied()
}

/// A piece of a password that a `?` or an `&` cut off looks like a parameter, so a name is shown only
/// where it resembles a known one, and not beside an `@` or a password.
fn unknown(table: Table, name: &str, query: &str) -> EndpointError {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    let has_password = query.contains('@') || query.to_lowercase().contains("pass");
    let nearest = nearest(name, table.iter().map(|(known, _)| *known));
    let nearest = nearest.filter(|_| !has_password && name.chars().all(is_plain));
    EndpointError::UnknownParameter { name: nearest.map(|_| name.to_owned()), nearest }
}
