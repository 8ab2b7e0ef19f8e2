//! PostgreSQL, and what speaks its protocol.
//!
//! Many rows go in one statement as arrays, so that each statement has one text whatever their number.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
};

use bytes::Bytes;
use futures::TryStreamExt as _;
use sqlx::{
    AssertSqlSafe, Connection as _, Executor as _, PgConnection, Row as _, ValueRef as _,
    postgres::{PgArguments, PgConnectOptions, PgRow, PgSslMode, PgValueFormat},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{
    remote::{Driver, Texts, failure_of_connection, failure_of_tls},
    session::{Arg, Columns, DbError, DbResult, Dialect, Each, Sql},
};
use crate::net::address::{Database, Host, Login, TlsMode};

/// A third of a page of an index: the longest key that fits.
const KEY_BYTES_MAX: usize = 2_600;

/// A PostgreSQL server and how it is reached.
#[derive(Debug)]
pub struct Postgres {
    database: Database,
    /// The servers that were found not to ask for passwords in clear.
    discreet: Mutex<BTreeSet<Host>>,
}

// === impl Postgres ===

impl Postgres {
    /// The server, or the servers in turn, of an endpoint.
    pub fn new(database: Database) -> Self {
        Self { database, discreet: Mutex::default() }
    }

    fn options(&self, host: &Host, database: &str) -> PgConnectOptions {
        let Database { login, tls, .. } = &self.database;
        let mut options = PgConnectOptions::new_without_pgpass()
            .application_name("pleach")
            // Poolers let few parameters pass when a connection begins; what is wanted is set afterwards.
            .extra_float_digits(None)
            .database(database)
            .statement_cache_capacity(64)
            .ssl_mode(match tls {
                TlsMode::Disable => PgSslMode::Disable,
                TlsMode::Prefer => PgSslMode::Prefer,
                TlsMode::Require => PgSslMode::Require,
                TlsMode::VerifyCa => PgSslMode::VerifyCa,
                TlsMode::VerifyFull => PgSslMode::VerifyFull,
            });
        options = match host {
            Host::Tcp(host, port) => options.host(host.trim_matches(['[', ']'])).port(*port),
            Host::Unix(path) => options.socket(path),
        };
        if let Some(login) = login {
            options = options.username(&login.user);
            if let Some(password) = &login.password {
                options = options.password(password.expose());
            }
        }
        if let Some(file) = &self.database.ca_file {
            options = options.ssl_root_cert(file);
        }
        if let (Some(cert), Some(key)) = (&self.database.cert_file, &self.database.key_file) {
            options = options.ssl_client_cert(cert).ssl_client_key(key);
        }
        options
    }

    /// Refuses a server that would have the password in clear. The driver would send it without a
    /// word, so a connection without a password asks first.
    async fn check_discretion(&self, host: &Host) -> DbResult<()> {
        let (Some(Login { user, password: Some(_) }), Host::Tcp(name, port)) =
            (&self.database.login, host)
        else {
            return Ok(());
        };
        let may_be_clear = matches!(self.database.tls, TlsMode::Disable | TlsMode::Prefer);
        let discreet = || self.discreet.lock().unwrap_or_else(PoisonError::into_inner);
        if !may_be_clear || discreet().contains(host) {
            return Ok(());
        }
        let prefers_tls = self.database.tls == TlsMode::Prefer;
        let name = name.trim_matches(['[', ']']);
        let asked = asks_in_clear((name, *port), prefers_tls, user, &self.database.database).await;
        match asked {
            Ok(true) => Err(DbError::Failed(
                "the server asks for the password in clear, and this connection is not encrypted; \
                 set sslmode=require or verify-full in the endpoint, or have the server use \
                 scram-sha-256"
                    .to_owned(),
            )),
            Ok(false) => {
                discreet().insert(host.clone());
                Ok(())
            }
            Err(error) => Err(DbError::Lost(error.to_string())),
        }
    }

    async fn connect_to(&self, host: &Host) -> Result<PgConnection, sqlx::Error> {
        let name = &self.database.database;
        match PgConnection::connect_with(&self.options(host, name)).await {
            Err(error) if code(&error) == "3D000" && !self.database.must_exist => {
                // kine makes its database; the name is quoted as an identifier.
                let mut admin = PgConnection::connect_with(&self.options(host, "postgres")).await?;
                let create = format!("CREATE DATABASE \"{}\"", name.replace('"', "\"\""));
                admin.execute(sqlx::raw_sql(AssertSqlSafe(create))).await?;
                tracing::info!(database = name, "the database was made");
                PgConnection::connect_with(&self.options(host, name)).await
            }
            connected => connected,
        }
    }
}

impl Driver for Postgres {
    /// What a request may be is far below.
    fn row_bytes_max(&self) -> usize {
        usize::MAX
    }

    type Connection = PgConnection;

    fn database(&self) -> &Database {
        &self.database
    }

    fn dialect(&self) -> Dialect {
        Dialect {
            system: "postgresql",
            prefix: self.database.table_prefix.clone(),
            has_numbers: true,
            rows: |columns| format!("SELECT * FROM unnest({})", vec!["?"; columns].join(", ")),
            one_of: "= ANY(?)",
            on_key_conflict: "ON CONFLICT (name) DO UPDATE SET seq = excluded.seq, \
                create_revision = excluded.create_revision, \
                mod_revision = excluded.mod_revision, version = excluded.version, \
                lease = excluded.lease",
            on_name_conflict: "ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            on_term_conflict: "ON CONFLICT DO NOTHING",
            make_terms: "CREATE TABLE IF NOT EXISTS pleach_term (attribute bigint NOT NULL, \
                hash bigint NOT NULL, name bytea NOT NULL, PRIMARY KEY (attribute, hash, name))",
            size: "SELECT s.size, s.size FROM (SELECT pg_total_relation_size('pleach_log') \
                + pg_total_relation_size('pleach_key') \
                + coalesce(pg_total_relation_size(to_regclass('pleach_term')), 0) AS size) s",
            key_bytes_max: KEY_BYTES_MAX,
            keeps_reserve: false,
            rows_come_all: true,
        }
    }

    fn texts(&self) -> Texts {
        let schema = self.database.settings.get("search_path").map(|path| {
            let first = path.expose().split(',').next().unwrap_or_default();
            let name = first.trim().trim_matches('"').replace('"', "\"\"").replace('$', "");
            format!(
                "DO $$ BEGIN IF current_schema() IS NULL THEN CREATE SCHEMA \"{name}\"; \
                 END IF; END $$"
            )
        });
        // Unlike information_schema this shows tables that the user may not touch, too.
        let tables = "SELECT count(*) FROM pg_catalog.pg_tables \
            WHERE schemaname = current_schema() AND tablename =";
        let schema = schema.into_iter().chain([
            "CREATE TABLE IF NOT EXISTS pleach_record (\
             name text COLLATE \"C\" PRIMARY KEY, value bytea NOT NULL)"
                .to_owned(),
            "CREATE TABLE IF NOT EXISTS pleach_key (name bytea PRIMARY KEY, seq bigint NOT NULL, \
             create_revision bigint NOT NULL, mod_revision bigint NOT NULL, \
             version bigint NOT NULL, lease bigint NOT NULL)"
                .to_owned(),
            "CREATE INDEX IF NOT EXISTS pleach_key_lease ON pleach_key (lease) WHERE lease <> 0"
                .to_owned(),
            "CREATE TABLE IF NOT EXISTS pleach_log (seq bigint PRIMARY KEY, \
             revision bigint NOT NULL, name bytea NOT NULL, prev_seq bigint NOT NULL, \
             create_revision bigint NOT NULL, version bigint NOT NULL, lease bigint NOT NULL, \
             value bytea NOT NULL)"
                .to_owned(),
            "CREATE INDEX IF NOT EXISTS pleach_log_revision ON pleach_log (revision)".to_owned(),
            // The last, since it says that all are there.
            "CREATE TABLE IF NOT EXISTS pleach_meta (\
             name text COLLATE \"C\" PRIMARY KEY, value bigint NOT NULL, note bytea); \
             INSERT INTO pleach_meta (name, value) \
             VALUES ('schema', 1), ('epoch', 0), ('until', 0) ON CONFLICT (name) DO NOTHING"
                .to_owned(),
        ]);
        Texts {
            schema: schema.collect(),
            has_kine: format!("{tables} 'kine'"),
            has_tables: format!("{tables} 'pleach_meta'"),
            // The table, the cluster, and its timeline.
            made: "SELECT 'pleach_log'::regclass::oid::bigint # \
                (SELECT system_identifier FROM pg_control_system()) # \
                (('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::bigint << 31)",
            lock: "SELECT pg_try_advisory_lock(\
                hashtextextended(current_schema() || '/pleach_', 0))::int"
                .to_owned(),
            session: "SELECT pg_backend_pid()",
            now_ms: "(extract(epoch FROM clock_timestamp()) * 1000)::bigint",
            hazards: vec![
                (
                    "fsync is off in this server: a crash of its machine loses or damages the store",
                    "SELECT count(*) FROM pg_settings WHERE name = 'fsync' AND setting = 'off'"
                        .to_owned(),
                ),
                (
                    "full_page_writes is off in this server: a crash of its machine may damage the store",
                    "SELECT count(*) FROM pg_settings \
                        WHERE name = 'full_page_writes' AND setting = 'off'"
                        .to_owned(),
                ),
            ],
        }
    }

    async fn connect(&self, host: &Host) -> DbResult<PgConnection> {
        self.check_discretion(host).await?;
        let connected = self.connect_to(host).await;
        let mut connection =
            connected.map_err(|error| failure_of_tls(&error).unwrap_or_else(|| failure(&error)))?;
        // A transaction that its owner left behind must not hold up the next one for long. Plans are
        // kept, and made before anybody has counted the rows: one that scans a table that was small
        // then would go on scanning it. Every statement has an index that fits.
        let settings = "SET synchronous_commit = on; SET lock_timeout = '5s'; \
            SET idle_in_transaction_session_timeout = '20s'; \
            SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off";
        let set = connection.execute(sqlx::raw_sql(settings)).await;
        set.map_err(|error| failure(&error))?;
        for (name, value) in &self.database.settings {
            let set = sqlx::query("SELECT set_config($1, $2, false)").persistent(false);
            let set = set.bind(name).bind(value.expose()).execute(&mut connection).await;
            set.map_err(|error| failure(&error))?;
        }
        Ok(connection)
    }

    async fn run(connection: &mut PgConnection, sql: &Sql) -> DbResult<Option<i64>> {
        let mut rows = sqlx::raw_sql(AssertSqlSafe(sql.clone())).fetch(connection);
        let mut found = None;
        while let Some(row) = rows.try_next().await.map_err(|error| failure(&error))? {
            found = number(&row, 0);
        }
        Ok(found)
    }

    async fn fetch(
        connection: &mut PgConnection,
        sql: &Sql,
        args: &[Arg<'_>],
        each: Each<'_>,
    ) -> DbResult<()> {
        let mut bound = PgArguments::default();
        for arg in args {
            use sqlx::Arguments as _;
            let added = match *arg {
                Arg::Int(number) => bound.add(number),
                Arg::Bytes(bytes) => bound.add(bytes),
                Arg::Text(text) => bound.add(text),
            };
            added.map_err(|error| DbError::Failed(error.to_string()))?;
        }
        fetch(connection, sql, bound, each).await
    }

    async fn fetch_each(
        connection: &mut PgConnection,
        sql: &Sql,
        values: &[Arg<'_>],
        each: Each<'_>,
    ) -> DbResult<()> {
        let mut bound = PgArguments::default();
        add_column(&mut bound, values.iter().copied())?;
        fetch(connection, sql, bound, each).await
    }

    async fn execute_many(
        connection: &mut PgConnection,
        sql: &Sql,
        rows: &[Vec<Arg<'_>>],
    ) -> DbResult<()> {
        let mut bound = PgArguments::default();
        for column in 0..rows.first().map_or(0, Vec::len) {
            add_column(&mut bound, rows.iter().map(|row| row[column]))?;
        }
        let statement = sqlx::query_with(AssertSqlSafe(sql.clone()), bound);
        statement.execute(connection).await.map(drop).map_err(|error| failure(&error))
    }
}

/// Whether a server asks this user for a password in clear, on a connection without TLS.
/// <https://www.postgresql.org/docs/current/protocol-message-formats.html> has the messages.
async fn asks_in_clear(
    address: (&str, u16),
    prefers_tls: bool,
    user: &str,
    database: &str,
) -> std::io::Result<bool> {
    const SSL_REQUEST: i32 = 80_877_103;
    const PROTOCOL_3: i32 = 196_608;
    const AUTHENTICATION: u8 = b'R';
    const CLEARTEXT_PASSWORD: i32 = 3;
    let mut stream = TcpStream::connect(address).await?;
    if prefers_tls {
        stream.write_i32(8).await?;
        stream.write_i32(SSL_REQUEST).await?;
        if stream.read_u8().await? == b'S' {
            return Ok(false);
        }
    }
    let parameters = format!("user\0{user}\0database\0{database}\0\0");
    let length = i32::try_from(8 + parameters.len()).unwrap_or(i32::MAX);
    stream.write_i32(length).await?;
    stream.write_i32(PROTOCOL_3).await?;
    stream.write_all(parameters.as_bytes()).await?;
    let (kind, _, method) =
        (stream.read_u8().await?, stream.read_i32().await?, stream.read_i32().await?);
    Ok(kind == AUTHENTICATION && method == CLEARTEXT_PASSWORD)
}

async fn fetch(
    connection: &mut PgConnection,
    sql: &Sql,
    bound: PgArguments,
    each: Each<'_>,
) -> DbResult<()> {
    let mut rows = sqlx::query_with(AssertSqlSafe(sql.clone()), bound).fetch(connection);
    while let Some(row) = rows.try_next().await.map_err(|error| failure(&error))? {
        if each(&PostgresRow(row)).is_break() {
            break;
        }
    }
    Ok(())
}

/// Binds an array of what one column has in all rows.
fn add_column<'a>(bound: &mut PgArguments, column: impl Iterator<Item = Arg<'a>>) -> DbResult<()> {
    use sqlx::Arguments as _;
    let (mut ints, mut bytes, mut texts) = (Vec::new(), Vec::new(), Vec::new());
    for arg in column {
        match arg {
            Arg::Int(number) => ints.push(number),
            Arg::Bytes(value) => bytes.push(value),
            Arg::Text(text) => texts.push(text),
        }
    }
    // A column has one type.
    let added = if !bytes.is_empty() {
        bound.add(bytes)
    } else if !texts.is_empty() {
        bound.add(texts)
    } else {
        bound.add(ints)
    };
    added.map_err(|error| DbError::Failed(error.to_string()))
}

struct PostgresRow(PgRow);

impl Columns for PostgresRow {
    fn int(&self, column: usize) -> i64 {
        number(&self.0, column).unwrap_or(0)
    }

    fn bytes(&self, column: usize) -> Bytes {
        let value = self.0.try_get_raw(column).ok().filter(|value| !value.is_null());
        let bytes = value.and_then(|value| value.as_bytes().ok()).unwrap_or_default();
        Bytes::copy_from_slice(bytes)
    }
}

/// An integer of any width, in either of the protocol's formats.
fn number(row: &PgRow, column: usize) -> Option<i64> {
    if column >= row.len() {
        return None;
    }
    let value = row.try_get_raw(column).ok().filter(|value| !value.is_null())?;
    match (value.format(), value.as_bytes().ok()?) {
        (PgValueFormat::Text, text) => std::str::from_utf8(text).ok()?.parse().ok(),
        (PgValueFormat::Binary, bytes) => match bytes.len() {
            8 => Some(i64::from_be_bytes(bytes.try_into().ok()?)),
            4 => Some(i32::from_be_bytes(bytes.try_into().ok()?).into()),
            _ => None,
        },
    }
}

fn code(error: &sqlx::Error) -> String {
    let code = error.as_database_error().and_then(|error| error.code());
    code.map_or_else(String::new, |code| code.into_owned())
}

fn failure(error: &sqlx::Error) -> DbError {
    let Some(database) = error.as_database_error() else { return failure_of_connection(error) };
    let code = code(error);
    let said = database.message();
    // https://www.postgresql.org/docs/current/errcodes-appendix.html
    match (&code[..code.len().min(2)], &code[..]) {
        (_, "3F000") => DbError::Failed(format!(
            "{said}; say search_path=SCHEMA in the endpoint, or give the role a search_path"
        )),
        // Statements that were prepared lie in another session than they are used in.
        (_, "26000" | "42P05") => DbError::Failed(format!("{said}; {}", super::remote::POOLED)),
        (_, "53100") => DbError::Full(said.to_owned()),
        // Told to who connects.
        (_, "53300") => DbError::Lost(said.to_owned()),
        (_, "25006") => DbError::Lost(format!(
            "{said}; this server only reads: name the primary in the endpoint"
        )),
        ("08" | "57", _) if code != "57014" => DbError::Lost(said.to_owned()),
        ("28", _) => DbError::Failed(format!("{said}; check the endpoint's user and password")),
        (_, "42501") => DbError::Failed(format!(
            "{said}; the user needs CREATE on the schema once, then SELECT, INSERT, UPDATE and \
             DELETE on its tables"
        )),
        _ => DbError::Failed(format!("{said} ({code})")),
    }
}
