//! Taking a store: its tables are there or are made, and nobody else owns it.

use std::{ops::ControlFlow, sync::Arc, time::Duration};

use prost::Message as _;
use tokio::time::Instant;

use super::{
    super::{
        self as sql, Indexing, Witnessed,
        index::{SCHEMA_INDEXED, SCHEMA_VERSION},
        session::{Arg, Columns, DbError, DbResult, Session, Sql},
    },
    Driver, LEASE, Readers, Remote, RemoteSession, Role,
};
use crate::{
    clock::{Entropy, SharedClock},
    proto::records::Owner,
    store::{RecordStore, led::process},
};

/// How long to wait for the lock of an owner that died a moment ago: its server ends the connection
/// when it notices.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(3);
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// How often is looked whether an owner whose connection is gone says that it lives.
const LEASE_PAUSE: Duration = Duration::from_millis(200);

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
         {SCHEMA_INDEXED}; run a newer one"
    )]
    TooNew {
        /// The database.
        place: String,
        /// Its version.
        found: i64,
    },
    /// It is another store than the one that was here.
    #[error(
        "{place} is another store than before: it was {expected:x} and is {}; put the endpoint right, or say \
         with --adopt ROUTE that it is meant",
        match found { 0 => "an empty database".to_owned(), found => format!("{found:x}") }
    )]
    Another {
        /// The database.
        place: String,
        /// The incarnation that was here.
        expected: u64,
        /// The incarnation that is here; 0 where there is none yet.
        found: u64,
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

/// How a node uses a database.
#[derive(Debug)]
pub struct Usage {
    /// The connections that read.
    pub readers: Readers,
    /// The indexes that it has.
    pub indexing: Indexing,
}

struct Opening<'a, D> {
    place: &'a str,
    driver: Arc<D>,
    owner: &'a str,
    /// The store that it must be; `None` for any.
    incarnation: Option<u64>,
}

/// What the database says about who has the store.
#[derive(Clone, Debug, PartialEq)]
struct Claim {
    epoch: i64,
    owner: Owner,
    /// Grows whenever the owner says that it lives; 0 where it has let the store go.
    beat: i64,
}

/// How an attempt to take the store ended.
enum Taken {
    /// It is this node's, from this epoch on.
    Ours { epoch: i64, incarnation: u64, made_anew: Option<i64> },
    /// Somebody has it.
    Held(Claim),
    /// It is another one, of this incarnation; 0 where it was never used.
    Another(u64),
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
) -> Result<Arc<dyn RecordStore>, OpenError> {
    let usage = Usage { readers, indexing: Indexing::default() };
    open_known(name, place, driver, usage, owner, clock, None).await
}

/// The same, where it must be the store of this incarnation: else nothing of it is changed.
///
/// # Errors
/// Those of [`OpenError`].
pub async fn open_known<D: Driver>(
    name: &str,
    place: &str,
    driver: D,
    usage: Usage,
    owner: &str,
    clock: SharedClock,
    incarnation: Option<u64>,
) -> Result<Arc<dyn RecordStore>, OpenError> {
    let opening = Opening { place, driver: Arc::new(driver), owner, incarnation };
    let failed = |error| OpenError::new(place, error);
    let (mut session, hazards) = opening.prepare().await?;
    let made_anew = opening.take(&mut session).await?;
    let remote = Remote::new(&session, usage.readers, hazards).map_err(failed)?;
    let witnessed = Witnessed { made_anew, ..Witnessed::default() };
    sql::open(name, remote, session, clock, witnessed, usage.indexing).await.map_err(failed)
}

/// What an owner wrote about itself; versions before this wrote a text.
fn owner_of(bytes: &[u8]) -> Owner {
    let is_record = bytes.first() == Some(&0x0a);
    let record = is_record.then(|| Owner::decode(bytes).ok()).flatten();
    record.unwrap_or_else(|| Owner {
        note: String::from_utf8_lossy(bytes).into(),
        process: String::new(),
    })
}

// === impl OpenError ===

impl OpenError {
    /// Whether it may be open later with no change to the node.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::InUse { .. } | Self::Unreachable { .. } => true,
            Self::Foreign { .. }
            | Self::TooNew { .. }
            | Self::Another { .. }
            | Self::Failed { .. } => false,
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

    /// Has a session own the store. Where that may have been made from a copy since it was owned last, returns the
    /// number by which the database says so.
    async fn take(&self, session: &mut RemoteSession<D>) -> Result<Option<i64>, OpenError> {
        // What is no database of its own kind quite may not say.
        let made = session.number(&self.sql(self.driver.texts().made)).await.ok().flatten();
        let begun = Instant::now();
        // What was seen first, and since when it has not changed, by this node's own clock: that of the
        // database may be set back and forth.
        let mut seen: Option<(Claim, Instant)> = None;
        loop {
            let started = Instant::now();
            let is_free = session.number(&self.sql(&self.driver.texts().lock)).await;
            let is_free = is_free.map_err(|error| self.failed(error))? == Some(1);
            let is_over = |claim: &Claim| {
                claim.beat == 0
                    || process::is_dead(&claim.owner.process)
                    || seen.as_ref().is_some_and(|(before, since)| {
                        is_free && before == claim && since.elapsed() >= LEASE
                    })
            };
            let taken = self.claim(session, made, is_over).await;
            let claim = match taken.map_err(|error| self.failed(error))? {
                Taken::Ours { epoch, incarnation, made_anew } => {
                    session.own(epoch, incarnation, started);
                    return Ok(made_anew);
                }
                Taken::Another(found) => {
                    let expected = self.incarnation.unwrap_or(0);
                    return Err(OpenError::Another {
                        place: self.place.to_owned(),
                        expected,
                        found,
                    });
                }
                Taken::Held(claim) => claim,
            };
            let read = Instant::now();
            let lives = seen.as_ref().is_some_and(|(before, _)| *before != claim);
            if lives || (!is_free && begun.elapsed() >= LOCK_WAIT_MAX) {
                let (place, owner) = (self.place.to_owned(), claim.owner.note);
                return Err(OpenError::InUse { place, owner });
            }
            if seen.is_none() {
                if is_free {
                    // Its connection is gone, so it is most likely dead; but it may come back.
                    let (place, owner) = (self.place, &claim.owner.note);
                    tracing::info!(place, owner, "waiting until the last owner's lease runs out");
                }
                seen = Some((claim, read));
            }
            tokio::time::sleep(if is_free { LEASE_PAUSE } else { LOCK_PAUSE }).await;
        }
    }

    fn sql(&self, text: &str) -> Sql {
        self.driver.dialect().write(text)
    }

    /// Refuses connections whose statements run in several sessions: while another one is in a transaction, each
    /// must be in the session that it was in before, and in one of its own.
    async fn check_session(&self, session: &mut RemoteSession<D>) -> Result<(), OpenError> {
        let which = self.sql(self.driver.texts().session);
        let before = session.number(&which).await.map_err(|error| self.failed(error))?;
        let mut other = RemoteSession::new(self.driver.clone(), Role::Opens);
        let begin = self.sql(&format!("BEGIN; {which}"));
        // Where the server takes no more connections, nothing is known.
        let others = other.number(&begin).await.ok().flatten();
        let after = session.number(&which).await;
        other.rollback().await;
        match after.map_err(|error| self.failed(error))? {
            after if after == before && (others.is_none() || others != before) => Ok(()),
            _ => Err(self.failed(DbError::Failed(sql::remote::POOLED.to_owned()))),
        }
    }

    /// A session in a database that has the tables; refuses what is not ours before anything is written. With it
    /// come the settings under which a commit is not durable.
    async fn prepare(&self) -> Result<(RemoteSession<D>, Vec<&'static str>), OpenError> {
        let files = self.driver.database().check_files().await;
        files.map_err(|reason| self.failed(DbError::Failed(reason)))?;
        let mut session = RemoteSession::new(self.driver.clone(), Role::Opens);
        self.check_session(&mut session).await?;
        let texts = self.driver.texts();
        let mut ask = async |text: &str| {
            session.number(&self.sql(text)).await.map_err(|error| self.failed(error))
        };
        if ask(&texts.has_kine).await? == Some(1) {
            return Err(OpenError::Foreign { place: self.place.to_owned() });
        }
        if ask(&texts.has_tables).await? != Some(1) {
            if let Some(expected) = self.incarnation {
                let place = self.place.to_owned();
                return Err(OpenError::Another { place, expected, found: 0 });
            }
            tracing::info!(place = self.place, "a new, empty store is made");
            for statement in &texts.schema {
                ask(statement).await?;
            }
        }
        let found = ask("SELECT value FROM pleach_meta WHERE name = 'schema'").await?;
        if let Some(found) = found.filter(|found| *found > SCHEMA_INDEXED) {
            return Err(OpenError::TooNew { place: self.place.to_owned(), found });
        }
        let mut hazards = Vec::new();
        for (advice, query) in &texts.hazards {
            if ask(query).await? == Some(1) {
                tracing::warn!(place = self.place, "{advice}");
                hazards.push(*advice);
            }
        }
        Ok((session, hazards))
    }

    /// Takes the store, where it is the one that is expected and its owner's time is over.
    async fn claim(
        &self,
        session: &mut RemoteSession<D>,
        made: Option<i64>,
        is_over: impl Fn(&Claim) -> bool,
    ) -> DbResult<Taken> {
        session.number(&self.sql("BEGIN")).await?;
        let epoch = "SELECT value FROM pleach_meta WHERE name = 'epoch' FOR UPDATE";
        let epoch = session.number(&self.sql(epoch)).await?.unwrap_or(0);
        let meta =
            |name: &str| self.sql(&format!("SELECT value FROM pleach_meta WHERE name = '{name}'"));
        let beat = session.number(&meta("until")).await?.unwrap_or(0);
        let incarnation = session.number(&meta("incarnation")).await?;
        let schema = session.number(&meta("schema")).await?.unwrap_or(1);
        let made_before = session.number(&meta("made")).await?;
        let mut owner = Owner::default();
        let mut each = |columns: &dyn Columns| {
            owner = owner_of(&columns.bytes(0));
            ControlFlow::Continue(())
        };
        let sql = self.sql("SELECT note FROM pleach_meta WHERE name = ?");
        session.fetch(&sql, &[Arg::Text("epoch")], &mut each).await?;
        let found = incarnation.and_then(|it| u64::try_from(it).ok()).unwrap_or(0);
        // One of a version that had none is taken for the one that is expected, unless it is new.
        let is_another = match found {
            0 => epoch == 0,
            found => self.incarnation.is_some_and(|expected| expected != found),
        };
        if is_another && self.incarnation.is_some() {
            session.rollback().await;
            return Ok(Taken::Another(found));
        }
        let claim = Claim { epoch, owner, beat };
        if !is_over(&claim) {
            session.rollback().await;
            return Ok(Taken::Held(claim));
        }
        let owner = Owner { note: self.owner.to_owned(), process: process::this() }.encode_to_vec();
        let sql = self.sql("UPDATE pleach_meta SET note = ? WHERE name = ?");
        let note = [Arg::Bytes(&owner), Arg::Text("epoch")];
        session.fetch(&sql, &note, &mut |_| ControlFlow::Continue(())).await?;
        let epoch = epoch + 1;
        let mut take = format!(
            "UPDATE pleach_meta SET value = {epoch} WHERE name = 'epoch'; \
             UPDATE pleach_meta SET value = {} WHERE name = 'until'",
            session.beat()
        );
        let mut incarnation = found;
        if schema < SCHEMA_VERSION {
            incarnation = self.incarnation.unwrap_or_else(|| Entropy::system().id());
            take += &format!(
                "; INSERT INTO pleach_meta (name, value) VALUES ('incarnation', {incarnation}); \
                 UPDATE pleach_meta SET value = {SCHEMA_VERSION} WHERE name = 'schema'"
            );
        }
        // Where it is another, it is kept when what was before is broken off: a start that fails forgets nothing.
        let made_anew = made.filter(|made| made_before.is_some_and(|before| before != *made));
        if let Some(made) = made.filter(|_| made_before.is_none()) {
            let on_conflict = session.driver.dialect().on_name_conflict;
            take += &format!(
                "; INSERT INTO pleach_meta (name, value) VALUES ('made', {made}) {on_conflict}"
            );
        }
        session.number(&self.sql(&take)).await?;
        session.commit().await?;
        Ok(Taken::Ours { epoch, incarnation, made_anew })
    }
}
