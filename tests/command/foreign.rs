//! Files of other programs and of newer versions: refused by name, and left as they were.

use std::{fs, path::Path};

use anyhow::{Result, ensure};
use rusqlite::Connection;
use tempfile::TempDir;

use crate::{
    call::{put, refused},
    support::node::Node,
};

#[tokio::test]
async fn a_database_of_another_program_is_refused_by_its_tables() -> Result<()> {
    let folder = TempDir::new()?;
    let file = folder.path().join("pleach.db");
    Connection::open(&file)?.execute_batch("CREATE TABLE notes (text)")?;
    ensure_refused_untouched(folder.path(), &["is not a Pleach store", "notes"]).await
}

#[tokio::test]
async fn a_database_of_kine_is_refused_by_its_name() -> Result<()> {
    let folder = TempDir::new()?;
    let file = folder.path().join("pleach.db");
    Connection::open(&file)?.execute_batch("CREATE TABLE kine (id INTEGER PRIMARY KEY, name)")?;
    ensure_refused_untouched(folder.path(), &["is not a Pleach store", "kine"]).await
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused() -> Result<()> {
    let folder = TempDir::new()?;
    fs::write(folder.path().join("pleach.db"), "Dear diary,\n".repeat(200))?;
    ensure_refused_untouched(folder.path(), &["is not a Pleach store", "no SQLite database"]).await
}

#[tokio::test]
async fn a_folder_in_the_place_of_the_file_is_refused() -> Result<()> {
    let folder = TempDir::new()?;
    fs::create_dir(folder.path().join("pleach.db"))?;
    let said = refused(folder.path(), &["--data-dir=."]).await?;
    ensure!(said.contains("pleach.db can't be opened"), "{said}");
    Ok(())
}

#[tokio::test]
async fn a_store_of_a_newer_schema_is_refused_with_both_versions() -> Result<()> {
    let folder = TempDir::new()?;
    let mut node = Node::new(folder.path(), &[])?;
    put(&node.start().await?, "key", "value").await?;
    node.kill()?;
    let file = node.data_dir().join("pleach.db");
    let newer = "UPDATE pleach_meta SET value = 4 WHERE name = 'schema'";
    ensure!(Connection::open(file)?.execute(newer, [])? == 1, "there is no schema version");
    ensure_refused_untouched(node.data_dir(), &["schema version 4", "none above 3"]).await
}

async fn ensure_refused_untouched(data_dir: &Path, parts: &[&str]) -> Result<()> {
    let file = data_dir.join("pleach.db");
    let before = fs::read(&file)?;
    let said = refused(data_dir, &["--data-dir=."]).await?;
    for part in parts.iter().chain(&["pleach.db"]) {
        ensure!(said.contains(part), "{part} is not in: {said}");
    }
    ensure!(fs::read(&file)? == before, "the file was changed");
    Ok(())
}
