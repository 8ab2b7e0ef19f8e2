//! The answer to COMMIT is lost, or COMMIT itself is: the clients of both databases can't tell, and
//! the rows are there, or not, as the proxy was asked for.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tokio::time::timeout;

use crate::support::{
    databases::{DatabaseServer, Kind},
    process::eventually,
    proxy::{Act, Proxy},
};

/// Longer than a commit takes, and waited for in full only where no answer is to come.
const NO_ANSWER: Duration = Duration::from_secs(1);
const FIRED_WITHIN: Duration = Duration::from_secs(30);

const INSERT: &str = "BEGIN; INSERT INTO facts VALUES (1); COMMIT;";

#[tokio::test]
async fn the_answer_to_commit_is_lost_and_the_row_is_there() -> Result<()> {
    for kind in [Kind::Postgres, Kind::MariaDb] {
        ensure!(rows_after_a_cut(kind, Act::DropAnswer).await? == "1", "{kind:?} lost the row");
    }
    Ok(())
}

#[tokio::test]
async fn commit_is_lost_and_the_row_is_not_there() -> Result<()> {
    for kind in [Kind::Postgres, Kind::MariaDb] {
        ensure!(rows_after_a_cut(kind, Act::CutBefore).await? == "0", "{kind:?} has a row");
    }
    Ok(())
}

#[tokio::test]
async fn a_cut_after_commit_leaves_the_row_or_not() -> Result<()> {
    for kind in [Kind::Postgres, Kind::MariaDb] {
        let rows = rows_after_a_cut(kind, Act::CutAfter).await?;
        ensure!(rows == "0" || rows == "1", "{kind:?} has {rows} rows");
    }
    Ok(())
}

#[tokio::test]
async fn a_commit_that_stands_still_is_done_or_not_as_asked_for() -> Result<()> {
    for kind in [Kind::Postgres, Kind::MariaDb] {
        for (act, rows) in [(Act::StallBefore, "0"), (Act::StallAfter, "1")] {
            let server = DatabaseServer::shared(kind).await?;
            let proxy = Proxy::start(server.address()).await?;
            let name = table(server).await?;
            let fired = proxy.trigger("COMMIT", act);
            let insert = server.sql_at(proxy.address(), &name, INSERT);
            let (answer, fired) = tokio::join!(timeout(NO_ANSWER, insert), fired);
            ensure!(answer.is_err(), "{kind:?}, {act:?}: {answer:?}");
            fired.context("the connection ended")?;
            ensure!(proxy.connections() == 1, "the connection is gone");
            eventually("the rows are as they must be", FIRED_WITHIN, async || {
                let found = count(server, &name).await?;
                ensure!(found == rows, "{kind:?}, {act:?}: {found} rows");
                Ok(())
            })
            .await?;
            ensure!(proxy.cut().await == 1, "nothing was cut");
        }
    }
    Ok(())
}

/// Inserts a row by the database's own client, whose commit the proxy breaks; then as many rows
/// there are.
async fn rows_after_a_cut(kind: Kind, act: Act) -> Result<String> {
    let server = DatabaseServer::shared(kind).await?;
    let proxy = Proxy::start(server.address()).await?;
    let name = table(server).await?;
    let fired = proxy.trigger("COMMIT", act);
    let answer = server.sql_at(proxy.address(), &name, INSERT).await;
    ensure!(answer.is_err(), "{kind:?}, {act:?}: the client ended well");
    timeout(FIRED_WITHIN, fired).await.context("it was another trouble")??;
    let rows = count(server, &name).await?;
    // All is well again: it happens once.
    server.sql_at(proxy.address(), &name, "BEGIN; DELETE FROM facts; COMMIT;").await?;
    ensure!(count(server, &name).await? == "0", "rows are left");
    Ok(rows)
}

async fn table(server: &DatabaseServer) -> Result<String> {
    let name = server.new_database().await?;
    let create = "CREATE TABLE facts (number INTEGER);";
    server.sql_at(server.address(), &name, create).await?;
    Ok(name)
}

async fn count(server: &DatabaseServer, database: &str) -> Result<String> {
    let count = server.sql(database, "SELECT COUNT(*) FROM facts;").await?;
    Ok(count.trim().to_owned())
}
