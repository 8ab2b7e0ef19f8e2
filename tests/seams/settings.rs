//! Databases whose operators set them up in their own way: what can work works, and what can't is refused by a
//! sentence that says what to do.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{process::Command, time::timeout};

use crate::{
    call::{get, list, put},
    support::{
        databases::{DatabaseServer, Kind, PASSWORD, USER},
        http::Api,
        node::Node,
        pgbouncer::PgBouncer,
        process::eventually,
    },
};

const SOON: Duration = Duration::from_secs(30);

/// A node whose route `/db/` is at `url` serves it, over a restart too.
async fn ensure_served(url: &str) -> Result<()> {
    let folder = TempDir::new()?;
    let mut node = Node::new(folder.path(), &[])?.with_routes_to(&[("/db/", url.to_owned())])?;
    let channel = node.start().await?;
    let opened =
        eventually("the route serves", SOON, async || Ok(put(&channel, "/db/0", "x").await?));
    opened.await.with_context(|| node.log_tail())?;
    for at in 1..50 {
        put(&channel, &format!("/db/{at}"), "x").await?;
    }
    node.signal("TERM")?;
    node.ended().await?;
    let channel = node.start().await?;
    eventually("the route serves again", SOON, async || {
        let (_, found) = list(&channel).await?;
        ensure!(found.len() == 50, "{} keys", found.len());
        Ok(())
    })
    .await?;
    put(&channel, "/db/more", "x").await?;
    ensure!(get(&channel, "/db/more").await?.is_some(), "it is not there");
    Ok(())
}

/// A node whose route `/db/` is at `url` says why it can't be, goes on, and does not end.
async fn ensure_refused(url: &str, sentence: &str) -> Result<()> {
    let folder = TempDir::new()?;
    let mut node = Node::new(folder.path(), &[])?.with_routes_to(&[("/db/", url.to_owned())])?;
    let channel = node.start().await?;
    eventually("the reason is said", SOON, async || {
        let status = put(&channel, "/db/x", "x").await.err().context("it is taken")?;
        ensure!(status.message().contains(sentence), "{status:?}");
        Ok(())
    })
    .await?;
    put(&channel, "elsewhere", "x").await?;
    node.ensure_running()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pooler_by_sessions_serves_and_one_by_transactions_is_refused() -> Result<()> {
    let mut server = DatabaseServer::new(Kind::Postgres)?.without_sync();
    server.start().await?;
    let name = server.new_database().await?;
    let pooler = PgBouncer::start(&server, "session").await?;
    ensure_served(&pooler.url(&name)).await?;
    let name = server.new_database().await?;
    for mode in ["transaction", "statement"] {
        let pooler = PgBouncer::start(&server, mode).await?;
        ensure_refused(&pooler.url(&name), "ool").await.with_context(|| mode.to_owned())?;
    }
    let pooler = PgBouncer::start(&server, "transaction").await?;
    ensure_refused(&pooler.url(&name), "have it pool by sessions (pool_mode = session)").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_without_a_schema_is_told_what_to_name() -> Result<()> {
    let server = DatabaseServer::shared(Kind::Postgres).await?;
    let name = server.new_database().await?;
    let set = format!("ALTER ROLE {USER} IN DATABASE {name} SET search_path = '';");
    server.sql(&name, &set).await?;
    let url = server.url(&name);
    ensure_refused(&url, "say search_path=SCHEMA in the endpoint").await?;
    let mark = if url.contains('?') { '&' } else { '?' };
    ensure_served(&format!("{url}{mark}search_path=public")).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_speaks_as_oracle_serves() -> Result<()> {
    for mode in ["ORACLE", "ANSI_QUOTES,PIPES_AS_CONCAT,NO_BACKSLASH_ESCAPES", "MSSQL"] {
        let mut server =
            DatabaseServer::new(Kind::MariaDb)?.without_sync().with_setting("sql-mode", mode);
        server.start().await?;
        let name = server.new_database().await?;
        ensure_served(&server.url(&name)).await.with_context(|| mode.to_owned())?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_of_a_plugin_that_is_not_spoken_is_told_which_are() -> Result<()> {
    let mut server = DatabaseServer::new(Kind::MariaDb)?
        .without_sync()
        .with_setting("plugin-load-add", "auth_ed25519");
    server.start().await?;
    let name = server.new_database().await?;
    let account = format!(
        "CREATE USER modern IDENTIFIED VIA ed25519 USING PASSWORD('{PASSWORD}'); \
         GRANT ALL ON {name}.* TO modern;"
    );
    server.sql("", &account).await?;
    let url = server.url(&name).replace(&format!("{USER}:"), "modern:");
    ensure_refused(&url, "mysql_native_password or caching_sha2_password").await
}

/// What a server's settings may lose is said by the commands that look at a node, and in its metrics.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_does_not_make_commits_durable_is_told_of() -> Result<()> {
    for (kind, setting, value, said) in [
        (Kind::Postgres, "fsync", "off", "fsync is off"),
        (Kind::Postgres, "full-page-writes", "off", "full_page_writes is off"),
        (Kind::MariaDb, "innodb-flush-log-at-trx-commit", "0", "innodb_flush_log_at_trx_commit"),
    ] {
        let mut server = DatabaseServer::new(kind)?.with_setting(setting, value);
        server.start().await?;
        let name = server.new_database().await?;
        let folder = TempDir::new()?;
        let routes = [("/db/", server.url(&name))];
        let mut node = Node::new(folder.path(), &[])?.with_routes_to(&routes)?;
        let channel = node.start().await?;
        eventually("the route serves", SOON, async || Ok(put(&channel, "/db/0", "x").await?))
            .await?;
        let mut doctor = Command::new(env!("CARGO_BIN_EXE_pleach"));
        let doctor = doctor.args(["doctor", &node.url(), "-o", "json"]).kill_on_drop(true).output();
        let ended = timeout(SOON, doctor).await??;
        let report: Value = serde_json::from_slice(&ended.stdout).context("no JSON")?;
        let findings = report["findings"].as_array().context("there are findings")?;
        let finding = findings.iter().find(|it| it["check"] == "not-durable");
        let finding = finding.with_context(|| format!("{setting}: {report}"))?;
        ensure!(finding["what"].as_str().is_some_and(|what| what.contains(said)), "{finding}");
        ensure!(
            finding["alert"] == "PleachStoreNotDurable" && ended.status.code() == Some(1),
            "{finding}"
        );
        let metrics = Api::at_port(node.port()).get("/metrics").await?;
        let metrics = metrics.as_str().context("metrics are text")?;
        let line = "pleach_store_hazards{store=\"store-0\"} 1";
        ensure!(metrics.lines().any(|it| it == line), "{metrics}");
    }
    Ok(())
}
