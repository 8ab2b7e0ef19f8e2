//! A PgBouncer, from Debian's package, before a PostgreSQL.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result};
use tokio::net::TcpStream;

use super::{
    daemon::Daemon,
    databases::{DatabaseServer, PASSWORD, USER},
    peers::free_port,
    process::eventually,
};

const READY_WITHIN: Duration = Duration::from_secs(30);

/// A running pooler. It ends with this value.
#[derive(Debug)]
pub(crate) struct PgBouncer {
    _daemon: Daemon,
    port: u16,
}

// === impl PgBouncer ===

impl PgBouncer {
    /// Pools connections to `server` by `mode`; all else is as the package has it, but for who is admitted.
    pub(crate) async fn start(server: &DatabaseServer, mode: &str) -> Result<Self> {
        let mut daemon = Daemon::new_in(&std::env::temp_dir(), "pgbouncer", Some("postgres"))?;
        let (port, behind) = (free_port()?, server.address().port());
        let settings = format!(
            "[databases]\n\
             * = host=127.0.0.1 port={behind} user={USER} password={PASSWORD}\n\
             [pgbouncer]\n\
             listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
             auth_type = any\npool_mode = {mode}\n"
        );
        fs::write(daemon.folder().join("pgbouncer.ini"), settings)?;
        let mut command = daemon.command("/usr/sbin/pgbouncer".as_ref());
        command.arg("pgbouncer.ini");
        daemon.spawn(command).context("PgBouncer is missing: install Debian's pgbouncer")?;
        let connected = eventually("the pooler listens", READY_WITHIN, async || {
            daemon.ensure_running()?;
            Ok(TcpStream::connect(("127.0.0.1", port)).await?)
        });
        connected.await.with_context(|| daemon.log_tail())?;
        Ok(Self { _daemon: daemon, port })
    }

    /// A database behind it, as an endpoint.
    pub(crate) fn url(&self, database: &str) -> String {
        format!("postgres://{USER}:{PASSWORD}@127.0.0.1:{}/{database}", self.port)
    }
}
