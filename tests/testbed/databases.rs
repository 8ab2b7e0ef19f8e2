//! PostgreSQL and MariaDB.

use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::{io::AsyncReadExt as _, net::TcpStream, time::timeout};

use crate::support::databases::{DatabaseServer, Kind, PASSWORD, USER};

const KINDS: [Kind; 2] = [Kind::Postgres, Kind::MariaDb];
/// Longer than an answer takes, and waited for in full only where none is to come.
const NO_ANSWER: Duration = Duration::from_secs(1);

async fn ask(server: &DatabaseServer, database: &str, text: &str) -> Result<String> {
    server.sql_at(server.address(), database, text).await
}

#[tokio::test]
async fn a_server_keeps_what_it_acknowledged_through_kills_on_the_same_port() -> Result<()> {
    for kind in KINDS {
        let mut server = DatabaseServer::new(kind)?;
        server.start().await?;
        let address = server.address();
        server.create_database("kept").await?;
        ask(&server, "kept", "CREATE TABLE lives (number INTEGER);").await?;
        for life in 0..3 {
            ask(&server, "kept", &format!("INSERT INTO lives VALUES ({life});")).await?;
            server.kill().await?;
            ensure!(ask(&server, "kept", "SELECT 1;").await.is_err(), "a dead {kind:?} answers");
            server.start().await?;
            let lives = ask(&server, "kept", "SELECT COUNT(*) FROM lives;").await?;
            ensure!(lives.trim() == (life + 1).to_string(), "{kind:?}: {lives}");
        }
        server.stop().await?;
        server.start().await?;
        let lives = ask(&server, "kept", "SELECT COUNT(*) FROM lives;").await?;
        ensure!(lives.trim() == "3" && server.address() == address, "{kind:?}: {lives}");
    }
    Ok(())
}

#[tokio::test]
async fn a_paused_server_accepts_connections_and_says_nothing() -> Result<()> {
    for kind in KINDS {
        let mut server = DatabaseServer::new(kind)?.without_sync();
        server.start().await?;
        let name = server.new_database().await?;
        server.pause()?;
        let mut stream = TcpStream::connect(server.address()).await?;
        let said = timeout(NO_ANSWER, stream.read_u8()).await;
        ensure!(said.is_err(), "a paused {kind:?} said {said:?}");
        server.resume()?;
        ask(&server, &name, "SELECT 1;").await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_paused_server_can_be_killed() -> Result<()> {
    for kind in KINDS {
        let mut server = DatabaseServer::new(kind)?.without_sync();
        server.start().await?;
        server.pause()?;
        server.kill().await?;
        server.start().await?;
    }
    Ok(())
}

#[tokio::test]
async fn the_stores_user_needs_its_password_and_owns_only_its_databases() -> Result<()> {
    for kind in KINDS {
        let server = DatabaseServer::shared(kind).await?;
        let (own, other) = (server.new_database().await?, server.new_database().await?);
        ask(server, &own, "CREATE TABLE mine (number INTEGER);").await?;
        ensure!(ask(server, &own, "CREATE DATABASE more;").await.is_err(), "{kind:?}: rights");
        let tables = "SELECT table_name FROM information_schema.tables WHERE table_name = 'mine';";
        ensure!(server.sql(&own, tables).await?.trim() == "mine", "{kind:?}: no table");
        if kind == Kind::Postgres {
            ensure!(server.sql(&other, tables).await?.is_empty(), "a table is in two databases");
        }
        let change = match kind {
            Kind::Postgres => format!("ALTER ROLE {USER} PASSWORD"),
            Kind::MariaDb => format!("SET PASSWORD FOR {USER} ="),
        };
        // A server of its own, since the others are in need of the password.
        let mut server = DatabaseServer::new(kind)?.without_sync();
        server.start().await?;
        let name = server.new_database().await?;
        let set = |password: &str| match kind {
            Kind::Postgres => format!("{change} '{password}';"),
            Kind::MariaDb => format!("{change} PASSWORD('{password}');"),
        };
        server.sql("", &set("another")).await?;
        let refused = ask(&server, &name, "SELECT 1;").await;
        ensure!(refused.is_err(), "{kind:?} takes a wrong password");
        server.sql("", &set(PASSWORD)).await?;
        ask(&server, &name, "SELECT 1;").await?;
    }
    Ok(())
}

#[tokio::test]
async fn settings_and_tls_are_as_asked_for() -> Result<()> {
    let mut server = DatabaseServer::new(Kind::Postgres)?
        .without_sync()
        .with_tls()?
        .with_setting("max_connections", "7");
    server.start().await?;
    let shown = "SHOW fsync; SHOW max_connections; SHOW ssl; SHOW synchronous_commit;";
    ensure!(server.sql("", shown).await? == "off\n7\non\non\n", "{}", server.sql("", shown).await?);

    let mut server = DatabaseServer::new(Kind::MariaDb)?
        .without_sync()
        .with_tls()?
        .with_setting("max-connections", "11");
    server.start().await?;
    let shown = "SELECT @@innodb_flush_method, @@max_connections, @@have_ssl, \
                 @@innodb_flush_log_at_trx_commit;";
    let said = server.sql("", shown).await?;
    ensure!(said == "nosync\t11\tYES\t1\n", "{said}");
    Ok(())
}

/// The servers that are started here are the worst case for a store: the order and the equality of
/// text are not those of its bytes.
#[tokio::test]
async fn text_is_not_ordered_as_its_bytes_are() -> Result<()> {
    let postgres = DatabaseServer::shared(Kind::Postgres).await?;
    ensure!(postgres.sql("", "SELECT 'a' < 'B';").await? == "t\n", "bytes in PostgreSQL");
    let mariadb = DatabaseServer::shared(Kind::MariaDb).await?;
    ensure!(mariadb.sql("", "SELECT 'a' = 'A';").await? == "1\n", "bytes in MariaDB");
    Ok(())
}
