//! Taking a store: its tables are there or are made, and nobody else owns it.

use std::{ops::ControlFlow, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    super::{
        SqlStore,
        session::{Arg, Columns, DbError, DbResult, Session, Sql},
    },
    Driver, LEASE, Readers, Remote, RemoteSession, Role,
};
use crate::clock::SharedClock;

/// The schema that this version reads and writes.
const SCHEMA_VERSION: i64 = 1;

/// How long to wait for the lock of an owner that died a moment ago: its server ends the connection
/// when it notices.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(3);
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// A database that can't be a store, or can't be one now.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another node has it.
    #[error(
        "{place} is in use by {owner}; stop that node, or give this one another database \
         or table prefix"
    )]
    InUse {
        /// The database.
        place: String,
        /// What its owner wrote about itself.
        owner: String,
    },
    /// It belongs to another program.
    #[error(
        "{place} holds the table `kine`: kine or HariKube filled it, and Pleach does not read \
         their tables; point this store at another database or schema"
    )]
    Foreign {
        /// The database.
        place: String,
    },
    /// A newer version wrote it.
    #[error(
        "{place} has schema version {found}, but this version of Pleach knows none above \
         {SCHEMA_VERSION}; run a newer one"
    )]
    TooNew {
        /// The database.
        place: String,
        /// Its version.
        found: i64,
    },
    /// It can't be reached, or does not answer.
    #[error("{place} can't be reached: {reason}")]
    Unreachable {
        /// The database.
        place: String,
        /// What happened.
        reason: String,
    },
    /// Anything else: no rights, a wrong password, a bad certificate.
    #[error("{place} can't be opened: {reason}")]
    Failed {
        /// The database.
        place: String,
        /// Why, and what to do where that is known.
        reason: String,
    },
}

struct Opening<'a, D> {
    place: &'a str,
    driver: Arc<D>,
    owner: &'a str,
}

/// What the database says about who has the store.
struct Claim {
    owner: String,
    left_ms: i64,
}

/// Opens the store at `place`, making its tables where there are none, and takes it.
///
/// # Errors
/// Those of [`OpenError`].
pub async fn open<D: Driver>(
    name: &str,
    place: &str,
    driver: D,
    readers: Readers,
    owner: &str,
    clock: SharedClock,
) -> Result<Arc<SqlStore<Remote<D>>>, OpenError> {
    let opening = Opening { place, driver: Arc::new(driver), owner };
    let failed = |error| OpenError::new(place, error);
    let session = opening.take().await?;
    let remote = Remote::new(&session, readers).map_err(failed)?;
    SqlStore::open(name, remote, session, clock).await.map_err(failed)
}

/// The part of an owner's words that stays the same when its process starts anew.
fn who(owner: &str) -> &str {
    owner.split_once(" (").map_or(owner, |(who, _)| who)
}

// === impl OpenError ===

impl OpenError {
    /// Whether it may be open later with no change to the node.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::InUse { .. } | Self::Unreachable { .. } => true,
            Self::Foreign { .. } | Self::TooNew { .. } | Self::Failed { .. } => false,
        }
    }

    fn new(place: &str, error: DbError) -> Self {
        let (place, reason) = (place.to_owned(), error.to_string());
        match error {
            DbError::Lost(_) => Self::Unreachable { place, reason },
            DbError::Full(_) | DbError::Fenced(_) | DbError::Failed(_) => {
                Self::Failed { place, reason }
            }
        }
    }
}

// === impl Opening ===

impl<D: Driver> Opening<'_, D> {
    fn failed(&self, error: DbError) -> OpenError {
        OpenError::new(self.place, error)
    }

    /// A session that owns the store.
    async fn take(&self) -> Result<RemoteSession<D>, OpenError> {
        self.driver.database().check_files().await.map_err(|error| self.failed(error))?;
        let mut session = RemoteSession::new(self.driver.clone(), Role::Opens);
        self.prepare(&mut session).await?;
        let begun = Instant::now();
        loop {
            let started = Instant::now();
            let is_free = session.number(&self.sql(&self.driver.texts().lock)).await;
            let is_free = is_free.map_err(|error| self.failed(error))? == Some(1);
            let taken = self.claim(&mut session, is_free).await;
            match taken.map_err(|error| self.failed(error))? {
                Ok(epoch) => {
                    session.own(epoch, started);
                    return Ok(session);
                }
                Err(_) if !is_free && begun.elapsed() < LOCK_WAIT_MAX => {
                    tokio::time::sleep(LOCK_PAUSE).await;
                }
                Err(claim) if !is_free => {
                    let owner = claim.owner;
                    return Err(OpenError::InUse { place: self.place.to_owned(), owner });
                }
                Err(claim) => {
                    // Its connection is gone, so it is most likely dead; but it may come back.
                    let left = Duration::from_millis(u64::try_from(claim.left_ms).unwrap_or(0));
                    tracing::info!(
                        place = self.place,
                        owner = claim.owner,
                        ?left,
                        "waiting until the last owner's lease runs out"
                    );
                    tokio::time::sleep(left.min(LEASE) + Duration::from_millis(10)).await;
                }
            }
        }
    }

    fn sql(&self, text: &str) -> Sql {
        self.driver.dialect().write(text)
    }

    /// Makes the tables, and refuses what is not ours before anything is written.
    async fn prepare(&self, session: &mut RemoteSession<D>) -> Result<(), OpenError> {
        let texts = self.driver.texts();
        let mut ask = async |text: &str| {
            session.number(&self.sql(text)).await.map_err(|error| self.failed(error))
        };
        if ask(&texts.has_kine).await? == Some(1) {
            return Err(OpenError::Foreign { place: self.place.to_owned() });
        }
        if ask(&texts.has_tables).await? != Some(1) {
            for statement in &texts.schema {
                ask(statement).await?;
            }
        }
        let found = ask("SELECT value FROM pleach_meta WHERE name = 'schema'").await?;
        if let Some(found) = found.filter(|found| *found > SCHEMA_VERSION) {
            return Err(OpenError::TooNew { place: self.place.to_owned(), found });
        }
        for (advice, query) in &texts.durability {
            if ask(query).await? == Some(1) {
                tracing::warn!(place = self.place, "{advice}");
            }
        }
        Ok(())
    }

    /// Takes the store, or says who has it.
    async fn claim(
        &self,
        session: &mut RemoteSession<D>,
        is_free: bool,
    ) -> DbResult<Result<i64, Claim>> {
        let now = self.driver.texts().now_ms;
        session.number(&self.sql("BEGIN")).await?;
        let epoch = "SELECT value FROM pleach_meta WHERE name = 'epoch' FOR UPDATE";
        let epoch = session.number(&self.sql(epoch)).await?.unwrap_or(0);
        let left = format!("SELECT value - {now} FROM pleach_meta WHERE name = 'until'");
        let left_ms = session.number(&self.sql(&left)).await?.unwrap_or(0);
        let mut owner = String::new();
        let mut each = |columns: &dyn Columns| {
            owner = String::from_utf8_lossy(&columns.bytes(0)).into();
            ControlFlow::Continue(())
        };
        let sql = self.sql("SELECT note FROM pleach_meta WHERE name = ?");
        session.fetch(&sql, &[Arg::Text("epoch")], &mut each).await?;
        let is_mine = is_free && who(self.owner) == who(&owner);
        if left_ms > 0 && !is_mine {
            session.rollback().await;
            return Ok(Err(Claim { owner, left_ms }));
        }
        let sql = self.sql("UPDATE pleach_meta SET note = ? WHERE name = ?");
        let note = [Arg::Bytes(self.owner.as_bytes()), Arg::Text("epoch")];
        session.fetch(&sql, &note, &mut |_| ControlFlow::Continue(())).await?;
        let epoch = epoch + 1;
        let lease = LEASE.as_millis();
        let take = format!(
            "UPDATE pleach_meta SET value = {epoch} WHERE name = 'epoch'; \
             UPDATE pleach_meta SET value = {now} + {lease} WHERE name = 'until'"
        );
        session.number(&self.sql(&take)).await?;
        session.commit().await?;
        Ok(Ok(epoch))
    }
}
