//! MySQL and MariaDB.
//!
//! There are no arrays: what stands for many rows is written in brackets, and repeated for as many
//! rows as a statement takes. The counts are powers of four, so that few texts are prepared.

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures::TryStreamExt as _;
use sqlx::{
    AssertSqlSafe, Connection as _, Executor as _, MySqlConnection, Row as _, ValueRef as _,
    mysql::{MySqlArguments, MySqlConnectOptions, MySqlRow, MySqlSslMode},
};

use super::{
    remote::{Driver, Texts, failure_of_connection, failure_of_tls},
    session::{Arg, Columns, DbError, DbResult, Dialect, Each, Sql},
};
use crate::net::address::{Database, Host, TlsMode};

/// The longest key of an InnoDB index.
const KEY_BYTES_MAX: usize = 3_072;

/// The rows of one statement, greatest first.
const ROWS_OF_STATEMENT: [usize; 5] = [256, 64, 16, 4, 1];

/// The bytes of one statement, where the server takes so many.
const STATEMENT_BYTES_MAX: usize = 4 << 20;

/// What a packet has beside the values of its rows.
const PACKET_OVERHEAD_BYTES: usize = 512;

/// A MySQL or MariaDB server and how it is reached.
#[derive(Debug)]
pub struct Mysql {
    database: Database,
    /// Of the server's `max_allowed_packet`, what values may take; as it was when a connection was last made.
    row_bytes_max: AtomicUsize,
}

/// A connection, and what it takes at once.
#[derive(Debug)]
pub struct Link {
    connection: MySqlConnection,
    statement_bytes_max: usize,
}

// === impl Mysql ===

impl Mysql {
    /// The server, or the servers in turn, of an endpoint.
    pub fn new(database: Database) -> Self {
        Self { database, row_bytes_max: AtomicUsize::new(usize::MAX) }
    }

    fn options(&self, host: &Host) -> MySqlConnectOptions {
        let Database { login, tls, .. } = &self.database;
        let mut options = MySqlConnectOptions::new()
            .statement_cache_capacity(128)
            .pipes_as_concat(false)
            .ssl_mode(match tls {
                TlsMode::Disable => MySqlSslMode::Disabled,
                TlsMode::Prefer => MySqlSslMode::Preferred,
                TlsMode::Require => MySqlSslMode::Required,
                TlsMode::VerifyCa => MySqlSslMode::VerifyCa,
                TlsMode::VerifyFull => MySqlSslMode::VerifyIdentity,
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
            options = options.ssl_ca(file);
        }
        if let (Some(cert), Some(key)) = (&self.database.cert_file, &self.database.key_file) {
            options = options.ssl_client_cert(cert).ssl_client_key(key);
        }
        options
    }

    async fn connect_to(&self, host: &Host) -> Result<MySqlConnection, sqlx::Error> {
        const UNKNOWN_DATABASE: u16 = 1049;
        let (options, name) = (self.options(host), &self.database.database);
        match MySqlConnection::connect_with(&options.clone().database(name)).await {
            Err(error) if code(&error) == Some(UNKNOWN_DATABASE) && !self.database.must_exist => {
                // kine makes its database; the name is quoted as an identifier.
                let mut admin = MySqlConnection::connect_with(&options).await?;
                let create = format!("CREATE DATABASE IF NOT EXISTS `{}`", name.replace('`', "``"));
                admin.execute(sqlx::raw_sql(AssertSqlSafe(create))).await?;
                tracing::info!(database = name, "the database was made");
                MySqlConnection::connect_with(&options.database(name)).await
            }
            connected => connected,
        }
    }

    /// What each session is set to: the SQL that is spoken here, whatever the server's own mode is; nothing is ever
    /// cut, neither a value nor the way back along a key's chain; nothing waits long for a lock, nor holds one that
    /// its owner left behind. The comments are read by MySQL from 8.0.3 on, and by MariaDB from 10.2.2 on.
    fn settings(&self) -> String {
        let mut settings = "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED; \
            SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION', \
            innodb_lock_wait_timeout = 5, wait_timeout = 20, autocommit = 1 \
            /*!80003 , cte_max_recursion_depth = 4294967295 */ \
            /*M!100202 , max_recursive_iterations = 4294967295 */"
            .to_owned();
        for (name, value) in &self.database.settings {
            let value = value.expose().replace('\\', "\\\\").replace('\'', "''");
            settings.push_str(&format!(", {name} = '{value}'"));
        }
        settings
    }
}

impl Driver for Mysql {
    fn row_bytes_max(&self) -> usize {
        self.row_bytes_max.load(Ordering::Relaxed)
    }

    type Connection = Link;

    fn database(&self) -> &Database {
        &self.database
    }

    fn dialect(&self) -> Dialect {
        Dialect {
            system: "mysql",
            prefix: self.database.table_prefix.clone(),
            has_numbers: false,
            rows: |columns| format!("VALUES [({})]", vec!["?"; columns].join(", ")),
            one_of: "IN ([?])",
            on_key_conflict: "ON DUPLICATE KEY UPDATE seq = VALUES(seq), \
                create_revision = VALUES(create_revision), \
                mod_revision = VALUES(mod_revision), version = VALUES(version), \
                lease = VALUES(lease)",
            on_name_conflict: "ON DUPLICATE KEY UPDATE value = VALUES(value)",
            on_term_conflict: "ON DUPLICATE KEY UPDATE hash = VALUES(hash)",
            make_terms: "CREATE TABLE IF NOT EXISTS pleach_term (attribute BIGINT NOT NULL, \
                hash BIGINT NOT NULL, name VARBINARY(2048) NOT NULL, \
                PRIMARY KEY (attribute, hash, name)) ENGINE=InnoDB ROW_FORMAT=DYNAMIC",
            size: "SELECT CAST(coalesce(sum(data_length + index_length + data_free), 0) AS SIGNED), \
                CAST(coalesce(sum(data_length + index_length), 0) AS SIGNED) \
                FROM information_schema.tables WHERE table_schema = DATABASE() \
                AND table_name IN ('pleach_log', 'pleach_key', 'pleach_term')",
            key_bytes_max: KEY_BYTES_MAX,
            keeps_reserve: false,
            rows_come_all: true,
        }
    }

    fn texts(&self) -> Texts {
        let tables = "SELECT count(*) FROM information_schema.tables \
            WHERE table_schema = DATABASE() AND table_name =";
        let schema = [
            "CREATE TABLE IF NOT EXISTS pleach_record (name VARBINARY(512) PRIMARY KEY, \
             value LONGBLOB NOT NULL) ENGINE=InnoDB ROW_FORMAT=DYNAMIC",
            "CREATE TABLE IF NOT EXISTS pleach_key (name VARBINARY(3072) PRIMARY KEY, \
             seq BIGINT NOT NULL, create_revision BIGINT NOT NULL, mod_revision BIGINT NOT NULL, \
             version BIGINT NOT NULL, lease BIGINT NOT NULL, \
             INDEX pleach_key_lease (lease)) ENGINE=InnoDB ROW_FORMAT=DYNAMIC",
            "CREATE TABLE IF NOT EXISTS pleach_log (seq BIGINT PRIMARY KEY, \
             revision BIGINT NOT NULL, name VARBINARY(3072) NOT NULL, prev_seq BIGINT NOT NULL, \
             create_revision BIGINT NOT NULL, version BIGINT NOT NULL, lease BIGINT NOT NULL, \
             value LONGBLOB NOT NULL, INDEX pleach_log_revision (revision)) \
             ENGINE=InnoDB ROW_FORMAT=DYNAMIC",
            // The last, since it says that all are there.
            "CREATE TABLE IF NOT EXISTS pleach_meta (name VARBINARY(64) PRIMARY KEY, \
             value BIGINT NOT NULL, note VARBINARY(1024)) ENGINE=InnoDB ROW_FORMAT=DYNAMIC; \
             INSERT IGNORE INTO pleach_meta (name, value) \
             VALUES ('schema', 1), ('epoch', 0), ('until', 0)",
        ];
        Texts {
            schema: schema.map(str::to_owned).to_vec(),
            has_kine: format!("{tables} 'kine'"),
            has_tables: format!("{tables} 'pleach_meta'"),
            // In MariaDB also a time of the table's file, which no copy keeps.
            made: "SELECT CAST(UNIX_TIMESTAMP(create_time) AS SIGNED) FROM information_schema.tables \
                WHERE table_schema = DATABASE() AND table_name = 'pleach_log'",
            lock: "SELECT GET_LOCK(CONCAT('pleach ', \
                LEFT(MD5(CONCAT(DATABASE(), '/pleach_')), 24)), 0)"
                .to_owned(),
            session: "SELECT CONNECTION_ID()",
            now_ms: "CAST(UNIX_TIMESTAMP(NOW(3)) * 1000 AS SIGNED)",
            hazards: vec![
                (
                    "innodb_flush_log_at_trx_commit is not 1 in this server: \
                     a crash of its machine loses writes that were acknowledged",
                    "SELECT @@innodb_flush_log_at_trx_commit <> 1".to_owned(),
                ),
                (
                    "sync_binlog is not 1 in this server: after a crash of its machine \
                     replicas may lack writes that were acknowledged",
                    "SELECT @@log_bin = 1 AND @@sync_binlog <> 1".to_owned(),
                ),
            ],
        }
    }

    async fn connect(&self, host: &Host) -> DbResult<Link> {
        let connected = self.connect_to(host).await;
        let mut connection =
            connected.map_err(|error| failure_of_tls(&error).unwrap_or_else(|| failure(&error)))?;
        let set = connection.execute(sqlx::raw_sql(AssertSqlSafe(self.settings()))).await;
        set.map_err(|error| failure(&error))?;
        // A longer packet is not refused: it ends the connection.
        let packet = "SELECT CAST(@@max_allowed_packet AS SIGNED)";
        let packet = connection.fetch_one(sqlx::raw_sql(packet)).await;
        let packet = number(&packet.map_err(|error| failure(&error))?, 0).unwrap_or(0);
        let bytes = usize::try_from(packet).unwrap_or(0).saturating_sub(PACKET_OVERHEAD_BYTES);
        self.row_bytes_max.store(bytes, Ordering::Relaxed);
        Ok(Link { connection, statement_bytes_max: bytes.min(STATEMENT_BYTES_MAX) })
    }

    async fn run(Link { connection, .. }: &mut Link, sql: &Sql) -> DbResult<Option<i64>> {
        let mut rows = sqlx::raw_sql(AssertSqlSafe(sql.clone())).fetch(connection);
        let mut found = None;
        while let Some(row) = rows.try_next().await.map_err(|error| failure(&error))? {
            found = number(&row, 0);
        }
        Ok(found)
    }

    async fn fetch(link: &mut Link, sql: &Sql, args: &[Arg<'_>], each: Each<'_>) -> DbResult<()> {
        let mut bound = MySqlArguments::default();
        args.iter().try_for_each(|arg| add(&mut bound, arg))?;
        let mut rows =
            sqlx::query_with(AssertSqlSafe(sql.clone()), bound).fetch(&mut link.connection);
        while let Some(row) = rows.try_next().await.map_err(|error| failure(&error))? {
            if each(&MysqlRow(row)).is_break() {
                break;
            }
        }
        Ok(())
    }

    async fn fetch_each(
        link: &mut Link,
        sql: &Sql,
        values: &[Arg<'_>],
        each: Each<'_>,
    ) -> DbResult<()> {
        let rows: Vec<_> = values.iter().map(|value| vec![*value]).collect();
        for rows in pieces(&rows, link.statement_bytes_max) {
            let mut bound = MySqlArguments::default();
            rows.iter().flatten().try_for_each(|arg| add(&mut bound, arg))?;
            let sql = AssertSqlSafe(repeated(sql, rows.len()));
            let mut found = sqlx::query_with(sql, bound).fetch(&mut link.connection);
            while let Some(row) = found.try_next().await.map_err(|error| failure(&error))? {
                // One page is never too long, and another piece may follow.
                let _ = each(&MysqlRow(row));
            }
        }
        Ok(())
    }

    async fn execute_many(link: &mut Link, sql: &Sql, rows: &[Vec<Arg<'_>>]) -> DbResult<()> {
        for rows in pieces(rows, link.statement_bytes_max) {
            let mut bound = MySqlArguments::default();
            let mut from = 0;
            // Each bracket takes the next columns of every row.
            for bracket in sql.split('[').skip(1) {
                let columns = bracket.split(']').next().unwrap_or("").matches('?').count();
                for row in rows {
                    row[from..from + columns].iter().try_for_each(|arg| add(&mut bound, arg))?;
                }
                from += columns;
            }
            let statement = sqlx::query_with(AssertSqlSafe(repeated(sql, rows.len())), bound);
            statement.execute(&mut link.connection).await.map_err(|error| failure(&error))?;
        }
        Ok(())
    }
}

/// Rows in as many pieces as there are statements to be, of so many bytes each where a row is not longer.
fn pieces<'r, 'a>(mut rows: &'r [Vec<Arg<'a>>], bytes_max: usize) -> Vec<&'r [Vec<Arg<'a>>]> {
    let bytes_of = |row: &Vec<Arg<'_>>| -> usize {
        let bytes = row.iter().map(|arg| match arg {
            Arg::Bytes(bytes) => bytes.len(),
            Arg::Int(_) | Arg::Text(_) => 16,
        });
        bytes.sum()
    };
    let mut pieces = Vec::new();
    while !rows.is_empty() {
        let fits = |count: &&usize| {
            **count <= rows.len()
                && rows[..**count].iter().map(bytes_of).sum::<usize>() <= bytes_max
        };
        let count = ROWS_OF_STATEMENT.iter().find(fits).copied().unwrap_or(1);
        let (piece, rest) = rows.split_at(count);
        pieces.push(piece);
        rows = rest;
    }
    pieces
}

/// The text with each bracket repeated.
fn repeated(sql: &str, times: usize) -> String {
    let mut parts = sql.split('[');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (bracket, rest) = part.split_once(']').unwrap_or((part, ""));
        text.push_str(&vec![bracket; times].join(", "));
        text.push_str(rest);
    }
    text
}

fn add(bound: &mut MySqlArguments, arg: &Arg<'_>) -> DbResult<()> {
    use sqlx::Arguments as _;
    let added = match *arg {
        Arg::Int(number) => bound.add(number),
        Arg::Bytes(bytes) => bound.add(bytes),
        // Names are kept as bytes, whatever the connection's character set is.
        Arg::Text(text) => bound.add(text.as_bytes()),
    };
    added.map_err(|error| DbError::Failed(error.to_string()))
}

struct MysqlRow(MySqlRow);

impl Columns for MysqlRow {
    fn int(&self, column: usize) -> i64 {
        number(&self.0, column).unwrap_or(0)
    }

    fn bytes(&self, column: usize) -> Bytes {
        let value = self.0.try_get_raw(column).ok().filter(|value| !value.is_null());
        let bytes =
            value.and_then(|value| <&[u8] as sqlx::Decode<'_, sqlx::MySql>>::decode(value).ok());
        Bytes::copy_from_slice(bytes.unwrap_or_default())
    }
}

fn number(row: &MySqlRow, column: usize) -> Option<i64> {
    if column >= row.len() { None } else { row.try_get_unchecked(column).ok() }
}

fn code(error: &sqlx::Error) -> Option<u16> {
    let database = error.as_database_error()?;
    Some(database.try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>()?.number())
}

fn failure(error: &sqlx::Error) -> DbError {
    let Some(database) = error.as_database_error() else {
        return match error {
            sqlx::Error::Protocol(said) if said.contains("authentication plugin") => {
                DbError::Failed(format!(
                    "{said}; give the account a password of mysql_native_password or caching_sha2_password"
                ))
            }
            error => failure_of_connection(error),
        };
    };
    let said = database.message();
    // https://dev.mysql.com/doc/mysql-errors/8.0/en/server-error-reference.html
    match code(error).unwrap_or(0) {
        // The disk, the table, the tablespace is full.
        1021 | 1114 | 3675 => DbError::Full(said.to_owned()),
        // --read-only, --super-read-only, a transaction that only reads, InnoDB that only reads.
        1290 | 1792 | 1836 | 1874 => DbError::Lost(format!(
            "{said}; this server only reads: name the primary in the endpoint"
        )),
        // Too many connections, in all or of this user.
        1040 | 1203 | 1226 => DbError::Lost(said.to_owned()),
        // Shutdown, a killed connection.
        1053 | 1927 | 3169 | 4031 => DbError::Lost(said.to_owned()),
        1045 | 1698 => DbError::Failed(format!("{said}; check the endpoint's user and password")),
        1044 | 1142 => DbError::Failed(format!(
            "{said}; the user needs CREATE and INDEX on the database once, then SELECT, INSERT, \
             UPDATE and DELETE on its tables"
        )),
        1153 => DbError::Failed(format!("{said}; raise the server's max_allowed_packet")),
        number => DbError::Failed(format!("{said} ({number})")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brackets_are_repeated_for_each_row() {
        assert_eq!(
            repeated("INSERT INTO t (a, b) VALUES [(?, ?)] ON x", 2),
            "INSERT INTO t (a, b) VALUES (?, ?), (?, ?) ON x"
        );
        assert_eq!(
            repeated("WHERE a IN ([?]) AND b IN ([?])", 3),
            "WHERE a IN (?, ?, ?) AND b IN (?, ?, ?)"
        );
    }

    #[test]
    fn pieces_hold_all_rows_in_order_and_are_bounded() {
        let value = vec![0; 1 << 20];
        let small: Vec<_> = (0..327).map(|n| vec![Arg::Int(n)]).collect();
        let sizes: Vec<_> =
            pieces(&small, STATEMENT_BYTES_MAX).iter().map(|piece| piece.len()).collect();
        assert_eq!(sizes, [256, 64, 4, 1, 1, 1]);
        let large = vec![vec![Arg::Bytes(&value)]; 6];
        let sizes: Vec<_> =
            pieces(&large, STATEMENT_BYTES_MAX).iter().map(|piece| piece.len()).collect();
        assert_eq!(sizes, [4, 1, 1]);
    }
}
