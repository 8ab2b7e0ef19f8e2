//! Private servers of PostgreSQL and MariaDB, from Debian's packages.
//!
//! A server listens on a loopback port and on a socket in its folder, and takes the store's user
//! only by password. That user owns the databases that are made for it, and has no other right.
//! What a test asks for beside the store, such as to end the store's connections, it asks as the
//! administrator through `sql`.

mod mariadb;
mod postgres;

use std::{
    env,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::Stdio,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::{io::AsyncWriteExt as _, process::Command, sync::OnceCell};

use super::{certificates, daemon::Daemon, peers::free_port, process::eventually};

/// The store's user.
pub(crate) const USER: &str = "pleach";
pub(crate) const PASSWORD: &str = "the-password-of-the-store";
/// A start takes a second, and longer after a kill under load; the rest is for a busy machine.
const READY_WITHIN: Duration = Duration::from_secs(60);
const ANSWERS_WITHIN: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Postgres,
    MariaDb,
}

/// A server that can be stopped, and started again on the same port and data. It is killed and its
/// data deleted when it is dropped, and at the latest when the test process ends.
#[derive(Debug)]
pub(crate) struct DatabaseServer {
    kind: Kind,
    daemon: Daemon,
    port: u16,
    authentication: &'static str,
    flags: Vec<String>,
    is_installed: bool,
}

// === impl Kind ===

impl Kind {
    /// What the server's program says of itself. An error where it is not installed.
    pub(crate) fn version(self) -> Result<String> {
        let program = match self {
            Kind::Postgres => postgres::program("postgres")?,
            Kind::MariaDb => mariadb::program("mariadbd")?,
        };
        let output = std::process::Command::new(program).arg("--version").output()?;
        ensure!(output.status.success(), "{self:?} does not say its version: {}", output.status);
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}

// === impl DatabaseServer ===

impl DatabaseServer {
    /// A server that runs with its defaults. Nothing is installed and nothing runs yet.
    pub(crate) fn new(kind: Kind) -> Result<Self> {
        Self::new_in(&env::temp_dir(), kind)
    }

    /// One that keeps its data in a new folder of `parent`.
    pub(crate) fn new_in(parent: &Path, kind: Kind) -> Result<Self> {
        let (daemon, authentication) = match kind {
            Kind::Postgres => (postgres::daemon(parent)?, "scram-sha-256"),
            Kind::MariaDb => (mariadb::daemon(parent)?, "mysql_native_password"),
        };
        let port = free_port()?;
        Ok(Self { kind, daemon, port, authentication, flags: Vec::new(), is_installed: false })
    }

    /// The server that the tests of this process share, each in databases of its own. It does not wait
    /// for the disk, and runs until the process ends.
    pub(crate) async fn shared(kind: Kind) -> Result<&'static Self> {
        static POSTGRES: OnceCell<DatabaseServer> = OnceCell::const_new();
        static MARIADB: OnceCell<DatabaseServer> = OnceCell::const_new();
        let server = match kind {
            Kind::Postgres => &POSTGRES,
            Kind::MariaDb => &MARIADB,
        };
        server
            .get_or_try_init(|| async move {
                let mut server = Self::new(kind)?.without_sync();
                server.start().await?;
                Ok(server)
            })
            .await
    }

    /// Sets one of the server's own settings. A start after this has it.
    pub(crate) fn with_setting(mut self, name: &str, value: &str) -> Self {
        self.flags.push(format!("--{name}={value}"));
        self
    }

    /// Spares it the waits for the disk. What it acknowledged survives a kill of the server, though
    /// not of the machine.
    pub(crate) fn without_sync(self) -> Self {
        match self.kind {
            Kind::Postgres => self.with_setting("fsync", "off"),
            Kind::MariaDb => self.with_setting("innodb-flush-method", "nosync"),
        }
    }

    /// Admits the store's user by another method: one of `pg_hba.conf`, or a plugin of MariaDB. To
    /// be called before the first start.
    pub(crate) fn with_authentication(mut self, method: &'static str) -> Self {
        self.authentication = method;
        self
    }

    /// Offers TLS, with a certificate for 127.0.0.1 and `localhost` by the authority in
    /// `authority()`. Connections without TLS are still taken.
    pub(crate) fn with_tls(self) -> Result<Self> {
        let authority = certificates::authority()?;
        let (certificate, key) = certificates::certificate(&authority, "localhost")?;
        self.daemon.write_private("ca.pem", &authority.pem())?;
        self.daemon.write_private("server.pem", &certificate)?;
        self.daemon.write_private("server.key", &key)?;
        let file = |name: &str| self.daemon.file(name);
        let (certificate, key) = (file("server.pem"), file("server.key"));
        Ok(match self.kind {
            Kind::Postgres => self
                .with_setting("ssl", "on")
                .with_setting("ssl_cert_file", &certificate)
                .with_setting("ssl_key_file", &key),
            Kind::MariaDb => {
                self.with_setting("ssl-cert", &certificate).with_setting("ssl-key", &key)
            }
        })
    }

    /// Starts the server, installing its data first where there are none, and waits until it
    /// answers.
    pub(crate) async fn start(&mut self) -> Result<()> {
        if !self.is_installed {
            match self.kind {
                Kind::Postgres => postgres::install(&self.daemon, self.authentication)?,
                Kind::MariaDb => mariadb::install(&self.daemon)?,
            }
        }
        self.daemon.spawn(match self.kind {
            Kind::Postgres => postgres::server(&self.daemon, self.port, &self.flags)?,
            Kind::MariaDb => mariadb::server(&self.daemon, self.port, &self.flags)?,
        })?;
        eventually("the database server answers", READY_WITHIN, async || {
            self.daemon.ensure_running()?;
            self.sql("", "SELECT 1;").await
        })
        .await
        .with_context(|| self.daemon.log_tail())?;
        if !self.is_installed {
            let user = match self.kind {
                Kind::Postgres => postgres::user(),
                Kind::MariaDb => mariadb::user(self.authentication),
            };
            self.sql("", &user).await?;
            self.is_installed = true;
        }
        Ok(())
    }

    /// SIGKILL to all its processes, which are gone when this returns. `start` brings it back.
    pub(crate) async fn kill(&mut self) -> Result<()> {
        self.daemon.kill().await
    }

    /// Ends it as its operator would. PostgreSQL's fast shutdown, which clients do not hold up.
    pub(crate) async fn stop(&mut self) -> Result<()> {
        let signal = match self.kind {
            Kind::Postgres => "INT",
            Kind::MariaDb => "TERM",
        };
        self.daemon.stop(signal).await.map(drop)
    }

    /// SIGSTOP to all its processes: connections stay open and new ones are accepted by the system,
    /// and nothing answers.
    pub(crate) fn pause(&self) -> Result<()> {
        self.daemon.pause()
    }

    pub(crate) fn resume(&self) -> Result<()> {
        self.daemon.resume()
    }

    pub(crate) fn ensure_running(&mut self) -> Result<()> {
        self.daemon.ensure_running()
    }

    /// The id of its first process.
    pub(crate) fn id(&self) -> Result<u32> {
        self.daemon.id()
    }

    /// Where its data, its socket and its log are.
    pub(crate) fn folder(&self) -> &Path {
        self.daemon.folder()
    }

    pub(crate) fn log_tail(&self) -> String {
        self.daemon.log_tail()
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    pub(crate) fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// The file with the authority that signed the certificate of a server with TLS.
    pub(crate) fn authority(&self) -> String {
        self.daemon.file("ca.pem")
    }

    /// Makes an empty database for the store's user, in the server's character set and collation.
    pub(crate) async fn create_database(&self, name: &str) -> Result<()> {
        let create = match self.kind {
            Kind::Postgres => format!("CREATE DATABASE {name} OWNER {USER};"),
            Kind::MariaDb => {
                format!("CREATE DATABASE {name}; GRANT ALL ON {name}.* TO {USER}@'%';")
            }
        };
        self.sql("", &create).await.map(drop)
    }

    /// Makes a database of a new name.
    pub(crate) async fn new_database(&self) -> Result<String> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let name = format!("store{}", COUNT.fetch_add(1, Ordering::Relaxed));
        self.create_database(&name).await?;
        Ok(name)
    }

    /// The endpoint of a database, in kine's form.
    pub(crate) fn url(&self, database: &str) -> String {
        self.url_at(self.address(), database)
    }

    /// The same at another address, behind which the server is.
    pub(crate) fn url_at(&self, address: SocketAddr, database: &str) -> String {
        match self.kind {
            Kind::Postgres => {
                format!("postgres://{USER}:{PASSWORD}@{address}/{database}?sslmode=disable")
            }
            Kind::MariaDb => format!("mysql://{USER}:{PASSWORD}@tcp({address})/{database}"),
        }
    }

    /// The endpoint of a database through the server's socket, in kine's form.
    pub(crate) fn socket_url(&self, database: &str) -> String {
        let login = format!("{USER}:{PASSWORD}");
        match self.kind {
            Kind::Postgres => {
                let folder = self.folder().display();
                format!("postgres://{login}@/{database}?host={folder}&port={}", self.port)
            }
            Kind::MariaDb => format!("mysql://{login}@unix({})/{database}", mariadb::socket(self)),
        }
    }

    /// What the server answers to its administrator, a row a line, with tabs between the fields.
    /// Each statement ends with a semicolon. The database may be empty: then it is the server's own.
    pub(crate) async fn sql(&self, database: &str, text: &str) -> Result<String> {
        let client = match self.kind {
            Kind::Postgres => postgres::administrator(self, database),
            Kind::MariaDb => mariadb::administrator(self, database),
        };
        ask(client, text).await
    }

    /// What `sql` brings a database back by, whatever is in it then.
    pub(crate) async fn dump(&self, database: &str) -> Result<String> {
        let client = match self.kind {
            Kind::Postgres => postgres::dump(self, database)?,
            Kind::MariaDb => mariadb::dump(self, database),
        };
        ask(client, "").await
    }

    /// What the server behind `address` answers to the store's user, by the database's own client.
    pub(crate) async fn sql_at(
        &self,
        address: SocketAddr,
        database: &str,
        text: &str,
    ) -> Result<String> {
        let client = match self.kind {
            Kind::Postgres => postgres::user_at(address, database),
            Kind::MariaDb => mariadb::user_at(address, database),
        };
        ask(client, text).await
    }
}

/// Runs a client whose input is `text`, and that must end well.
async fn ask(mut client: Command, text: &str) -> Result<String> {
    client.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let talk = async {
        let mut child = client.spawn()?;
        // A client that gave up already says why in its output.
        let _ = child.stdin.take().context("no input")?.write_all(text.as_bytes()).await;
        anyhow::Ok(child.wait_with_output().await?)
    };
    let output = tokio::time::timeout(ANSWERS_WITHIN, talk).await;
    let output = output.with_context(|| format!("no answer in {ANSWERS_WITHIN:?}: {text}"))??;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{text}: {}: {said}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}

/// Runs a program that installs a server's data.
fn run(mut program: std::process::Command) -> Result<()> {
    let output = program.output().with_context(|| format!("{program:?} does not start"))?;
    if !output.status.success() {
        let printed = [output.stdout, output.stderr].concat();
        bail!("{program:?}: {}: {}", output.status, String::from_utf8_lossy(&printed));
    }
    Ok(())
}
