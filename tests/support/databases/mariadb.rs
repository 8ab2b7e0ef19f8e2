//! What is MariaDB's own.

use std::{
    env,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::{super::daemon::Daemon, DatabaseServer, PASSWORD, USER, run};

const ADMINISTRATOR: &str = "root";

pub(super) fn daemon(parent: &Path) -> Result<Daemon> {
    program("mariadbd")?;
    Daemon::new_in(parent, "mariadb", Some("mysql"))
}

/// The local administrator is trusted.
pub(super) fn install(daemon: &Daemon) -> Result<()> {
    let mut install = daemon.command(&program("mariadb-install-db")?);
    install.args(["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"]);
    install.arg(format!("--datadir={}", daemon.file("data")));
    run(install)
}

pub(super) fn server(daemon: &Daemon, port: u16, flags: &[String]) -> Result<Command> {
    let mut mariadbd = daemon.command(&program("mariadbd")?);
    mariadbd.args(["--no-defaults", "--bind-address=127.0.0.1", "--skip-name-resolve"]);
    mariadbd.arg(format!("--port={port}"));
    for (flag, name) in [("datadir", "data"), ("socket", "socket"), ("pid-file", "pid")] {
        mariadbd.arg(format!("--{flag}={}", daemon.file(name)));
    }
    mariadbd.args(flags);
    Ok(mariadbd)
}

pub(super) fn user(authentication: &str) -> String {
    format!("CREATE USER {USER}@'%' IDENTIFIED VIA {authentication} USING PASSWORD('{PASSWORD}');")
}

pub(super) fn administrator(server: &DatabaseServer, database: &str) -> tokio::process::Command {
    let mut mariadb = mariadb(if database.is_empty() { "mysql" } else { database });
    mariadb.arg(format!("--socket={}", socket(server))).args(["--user", ADMINISTRATOR]);
    mariadb
}

pub(super) fn dump(server: &DatabaseServer, database: &str) -> tokio::process::Command {
    let mut dump = tokio::process::Command::new("mariadb-dump");
    dump.args(["--no-defaults", "--hex-blob", "--user", ADMINISTRATOR]);
    dump.arg(format!("--socket={}", socket(server))).arg(database);
    dump
}

pub(super) fn user_at(address: SocketAddr, database: &str) -> tokio::process::Command {
    let mut mariadb = mariadb(database);
    mariadb.args(["--protocol=tcp", "--user", USER]).env("MYSQL_PWD", PASSWORD);
    mariadb.arg(format!("--host={}", address.ip())).arg(format!("--port={}", address.port()));
    mariadb
}

pub(super) fn socket(server: &DatabaseServer) -> String {
    server.daemon.file("socket")
}

fn mariadb(database: &str) -> tokio::process::Command {
    let mut mariadb = tokio::process::Command::new("mariadb");
    mariadb.args(["--no-defaults", "--batch", "--skip-column-names", "--database", database]);
    mariadb
}

/// Servers lie in a folder that only root searches.
pub(super) fn program(name: &str) -> Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin".into()])
        .map(|folder| folder.join(name))
        .find(|program| program.exists())
        .with_context(|| format!("MariaDB's `{name}` is missing: install Debian's mariadb-server"))
}
