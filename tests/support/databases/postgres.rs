//! What is PostgreSQL's own.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::{super::daemon::Daemon, DatabaseServer, PASSWORD, USER, run};

/// Where Debian puts the programs of each version.
const VERSIONS: &str = "/usr/lib/postgresql";
const ADMINISTRATOR: &str = "administrator";

pub(super) fn daemon(parent: &Path) -> Result<Daemon> {
    program("postgres")?;
    Daemon::new_in(parent, "postgres", Some("postgres"))
}

/// Makes a cluster whose default order of text is not that of its bytes. The local administrator
/// is trusted, and all others are asked for what `authentication` says.
pub(super) fn install(daemon: &Daemon, authentication: &str) -> Result<()> {
    let mut initdb = daemon.command(&program("initdb")?);
    initdb.args(["--pgdata=data", "--username", ADMINISTRATOR, "--auth=trust"]);
    initdb.args(["--encoding=UTF8", "--no-locale", "--locale-provider=icu", "--icu-locale=en-US"]);
    // The data of a test need not survive the machine until the server itself writes them.
    initdb.args(["--no-sync", "--no-instructions"]);
    run(initdb)?;
    let rules = format!(
        "local all {ADMINISTRATOR} trust\n\
         local all all {authentication}\n\
         host all all 127.0.0.1/32 {authentication}\n"
    );
    fs::write(daemon.folder().join("data/pg_hba.conf"), rules)?;
    Ok(())
}

pub(super) fn server(daemon: &Daemon, port: u16, flags: &[String]) -> Result<Command> {
    let mut postgres = daemon.command(&program("postgres")?);
    postgres.args(["-D", "data", "--listen_addresses=127.0.0.1"]);
    postgres.arg(format!("--port={port}"));
    postgres.arg(format!("--unix_socket_directories={}", daemon.folder().display()));
    // What is shared lies in the folder, where it goes with it even after a kill.
    postgres.arg("--dynamic_shared_memory_type=mmap").args(flags);
    Ok(postgres)
}

pub(super) fn user() -> String {
    format!("CREATE ROLE {USER} LOGIN PASSWORD '{PASSWORD}';")
}

pub(super) fn administrator(server: &DatabaseServer, database: &str) -> tokio::process::Command {
    let mut psql = psql(if database.is_empty() { "postgres" } else { database });
    psql.arg("--host").arg(server.folder()).arg(format!("--port={}", server.port));
    psql.args(["--username", ADMINISTRATOR]);
    psql
}

pub(super) fn dump(server: &DatabaseServer, database: &str) -> Result<tokio::process::Command> {
    let mut dump = tokio::process::Command::new(program("pg_dump")?);
    dump.args(["--clean", "--if-exists", "--no-password", "--username", ADMINISTRATOR]);
    dump.arg("--host").arg(server.folder()).arg(format!("--port={}", server.port)).arg(database);
    Ok(dump)
}

pub(super) fn user_at(address: SocketAddr, database: &str) -> tokio::process::Command {
    let mut psql = psql(database);
    psql.arg(format!("--host={}", address.ip())).arg(format!("--port={}", address.port()));
    // In clear, so that a proxy can read along.
    psql.args(["--username", USER]).env("PGPASSWORD", PASSWORD).env("PGSSLMODE", "disable");
    psql
}

fn psql(database: &str) -> tokio::process::Command {
    let mut psql = tokio::process::Command::new("psql");
    psql.args(["--no-psqlrc", "--quiet", "--no-align", "--tuples-only", "--no-password"]);
    psql.args(["--field-separator=\t", "--set=ON_ERROR_STOP=1", "--dbname", database]);
    psql
}

/// A program of the newest version that is installed.
pub(super) fn program(name: &str) -> Result<PathBuf> {
    let versions = fs::read_dir(VERSIONS).into_iter().flatten().flatten();
    let number = |path: &Path| path.file_name()?.to_str()?.parse::<u32>().ok();
    versions
        .filter_map(|version| Some((number(&version.path())?, version.path())))
        .map(|(number, version)| (number, version.join("bin").join(name)))
        .filter(|(_, program)| program.exists())
        .max()
        .map(|(_, program)| program)
        .with_context(|| format!("PostgreSQL's `{name}` is missing: install Debian's postgresql"))
}
