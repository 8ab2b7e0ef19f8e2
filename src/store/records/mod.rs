//! What a node keeps beside its keys, in its default store: who it is, its lanes, leases, reservations,
//! alarms, and what it knows of each route's store.
//!
//! One encoding for all (`proto/pleach/records.proto`), exact names, and a format number. What can't be
//! read is refused with its name and a remedy: a record that is damaged is never taken for one that is
//! not there, since a node that forgot its limit would hand out revisions twice.
//!
//! ```text
//!   open ──> format 2 ───────────────────────────> records
//!        ──> format 1 ──> migrated, in pieces ──> records     (v1 says what was there)
//!        ──> a later one ────────────────────────> refused
//! ```

mod v1;

use std::{fmt, sync::Arc};

use bytes::Bytes;
use prost::Message;

use super::RecordStore;
use crate::{
    model::{LeaseId, StoreError, error::Result},
    proto::records::{Alarm, Envelope, Format, Identity, Lanes, Lease, Reservation, Slot, Witness},
};

/// The format that this version reads and writes.
const FORMAT: u32 = 2;

/// The records that a migration changes at once: an etcd takes no more operations in a transaction.
const MIGRATED_AT_ONCE: usize = 50;

/// Something that is kept, under names that begin with [`Record::KIND`].
pub trait Record: Message + Default {
    /// The whole name of what there is once, else what stands before `/` and an id.
    const KIND: &'static str;
}

impl Record for Format {
    const KIND: &'static str = "format";
}
impl Record for Identity {
    const KIND: &'static str = "identity";
}
impl Record for Lanes {
    const KIND: &'static str = "lanes";
}
impl Record for Lease {
    const KIND: &'static str = "lease";
}
impl Record for Reservation {
    const KIND: &'static str = "reservation";
}
impl Record for Alarm {
    const KIND: &'static str = "alarm";
}
impl Record for Slot {
    const KIND: &'static str = "slot";
}
impl Record for Witness {
    const KIND: &'static str = "witness";
}

/// The records of a node; see the module.
#[derive(Clone)]
pub struct Records {
    store: Arc<dyn RecordStore>,
}

/// Changes that are made together.
#[derive(Debug, Default)]
pub struct Changes(Vec<(String, Option<Bytes>)>);

// === impl Changes ===

impl Changes {
    /// Keeps what there is once.
    #[must_use]
    pub fn put<R: Record>(self, record: &R) -> Self {
        self.put_named(R::KIND.to_owned(), record)
    }

    /// Keeps one of several, by its id.
    #[must_use]
    pub fn put_at<R: Record>(self, id: impl fmt::Display, record: &R) -> Self {
        self.put_named(name_of::<R>(id), record)
    }

    /// Forgets one of several.
    #[must_use]
    pub fn delete_at<R: Record>(mut self, id: impl fmt::Display) -> Self {
        self.0.push((name_of::<R>(id), None));
        self
    }

    fn put_named(mut self, name: String, record: &impl Message) -> Self {
        let bytes = sealed(&name, record);
        self.0.push((name, Some(bytes)));
        self
    }
}

fn name_of<R: Record>(id: impl fmt::Display) -> String {
    format!("{}/{id}", R::KIND)
}

fn checksum(name: &str, body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(name.as_bytes());
    hasher.update(body);
    hasher.finalize()
}

fn sealed(name: &str, record: &impl Message) -> Bytes {
    let body = Bytes::from(record.encode_to_vec());
    let checksum = checksum(name, &body);
    Envelope { name: name.to_owned(), body, checksum }.encode_to_vec().into()
}

fn is_sealed(name: &str, bytes: &Bytes) -> bool {
    let envelope = Envelope::decode(bytes.clone());
    envelope.is_ok_and(|it| it.name == name && it.checksum == checksum(name, &it.body))
}

/// The record in an envelope, or what is wrong with it.
fn unsealed<R: Message + Default>(name: &str, bytes: Bytes) -> Result<R, String> {
    let envelope = Envelope::decode(bytes).map_err(|error| error.to_string())?;
    if envelope.name != name {
        return Err(format!("it says to be `{}`", envelope.name));
    }
    if envelope.checksum != checksum(name, &envelope.body) {
        return Err("its checksum is wrong".to_owned());
    }
    R::decode(envelope.body).map_err(|error| error.to_string())
}

// === impl Records ===

impl fmt::Debug for Records {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Records").field("store", self.store.name()).finish()
    }
}

impl Records {
    /// The records in `store`, brought to this version's format where they are of the one before.
    ///
    /// # Errors
    /// `Damaged` for what can't be read, also where a later version wrote it, and those of the store.
    pub async fn open(store: Arc<dyn RecordStore>) -> Result<Self> {
        let records = Self { store };
        let found = records.store.get_record(Format::KIND).await?;
        let format: Format = match found {
            Some(bytes) => records.decoded(Format::KIND, bytes)?,
            None => return records.migrate().await,
        };
        if format.number == FORMAT {
            return Ok(records);
        }
        let reason = format!(
            "the records have format {}, and this version of Pleach knows {FORMAT}; run the version \
             that wrote them",
            format.number
        );
        Err(records.damaged(Format::KIND, &reason))
    }

    /// Brings records of format 1 to this one; fresh stores have none. All are read before the first is
    /// changed, and the format comes last, so that a migration that is cut off is gone on with.
    async fn migrate(self) -> Result<Self> {
        let old = self.store.scan_records("").await?;
        let count = old.len();
        let changes = v1::migrated(old).map_err(|(name, reason)| self.damaged(&name, &reason))?;
        for piece in changes.0.chunks(MIGRATED_AT_ONCE) {
            self.store.put_records(piece.to_vec()).await?;
        }
        self.write(Changes::default().put(&Format { number: FORMAT })).await?;
        if count > 0 {
            let store = self.store.name();
            tracing::info!(%store, records = count, format = FORMAT, "the node's records were migrated");
        }
        Ok(self)
    }

    /// The store that keeps them.
    pub fn store(&self) -> &Arc<dyn RecordStore> {
        &self.store
    }

    /// Makes changes durable, all or none.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn write(&self, changes: Changes) -> Result<()> {
        self.store.put_records(changes.0).await
    }

    /// What there is once.
    ///
    /// # Errors
    /// `Damaged` where it can't be read, and those of the store.
    pub async fn get<R: Record>(&self) -> Result<Option<R>> {
        let found = self.store.get_record(R::KIND).await?;
        found.map(|bytes| self.decoded(R::KIND, bytes)).transpose()
    }

    /// One of several.
    ///
    /// # Errors
    /// As [`Records::get`].
    pub async fn get_at<R: Record>(&self, id: impl fmt::Display) -> Result<Option<R>> {
        let name = name_of::<R>(id);
        let found = self.store.get_record(&name).await?;
        found.map(|bytes| self.decoded(&name, bytes)).transpose()
    }

    /// All of a kind of which there are several, with their ids.
    ///
    /// # Errors
    /// As [`Records::get`].
    pub async fn all<R: Record>(&self) -> Result<Vec<(String, R)>> {
        let prefix = name_of::<R>("");
        let found = self.store.scan_records(&prefix).await?;
        let decoded = found.into_iter().map(|(name, bytes)| {
            let record = self.decoded(&name, bytes)?;
            Ok((name[prefix.len()..].to_owned(), record))
        });
        decoded.collect()
    }

    /// All leases, by id.
    ///
    /// # Errors
    /// As [`Records::get`].
    pub async fn leases(&self) -> Result<Vec<(LeaseId, Lease)>> {
        let leases = self.all::<Lease>().await?.into_iter().map(|(id, lease)| {
            let parsed = id.parse().map_err(|_| {
                self.damaged(&name_of::<Lease>(&id), "its name is no number of a lease")
            });
            Ok((parsed?, lease))
        });
        leases.collect()
    }

    fn decoded<R: Message + Default>(&self, name: &str, bytes: Bytes) -> Result<R> {
        unsealed(name, bytes).map_err(|reason| self.damaged(name, &reason))
    }

    fn damaged(&self, record: &str, reason: &str) -> StoreError {
        StoreError::Damaged {
            store: self.store.name().clone(),
            record: record.into(),
            reason: reason.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::{Clock, Lane, REVISION_MAX, SharedClock},
        store::memory::Memory,
    };

    fn memory() -> Arc<Memory> {
        Memory::new("main", SharedClock::new(Clock::new(0, REVISION_MAX - 1, Lane::ALL)))
    }

    #[tokio::test]
    async fn what_is_kept_is_found_by_exactly_its_name() {
        let records = Records::open(memory()).await.expect("memory answers");
        let lease = |ttl| Lease { ttl, is_ending: false };
        let changes = Changes::default().put_at(1, &lease(10)).put_at(12, &lease(20));
        records.write(changes.put_at("nospace", &Alarm {})).await.expect("memory takes it");
        assert_eq!(records.get_at::<Lease>(1).await.expect("it is whole"), Some(lease(10)));
        assert_eq!(records.get_at::<Lease>("").await.expect("nothing is read"), None);
        let leases = records.leases().await.expect("all are whole");
        assert_eq!(leases, [(1, lease(10)), (12, lease(20))]);
        records.write(Changes::default().delete_at::<Lease>(1)).await.expect("memory takes it");
        assert_eq!(records.leases().await.expect("it is whole").len(), 1);
    }

    #[tokio::test]
    async fn what_is_damaged_is_refused_by_its_name_and_never_taken_for_missing() {
        let store = memory();
        let records = Records::open(store.clone()).await.expect("memory answers");
        let identity = Identity { cluster: 7, member: 8 };
        records.write(Changes::default().put(&identity)).await.expect("memory takes it");
        let good =
            store.get_record("identity").await.expect("memory answers").expect("it is there");
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bytes = good.to_vec();
                bytes[at] ^= 1 << bit;
                let change = vec![("identity".to_owned(), Some(bytes.into()))];
                store.put_records(change).await.expect("memory takes it");
                let error =
                    records.get::<Identity>().await.expect_err("a bit is wrong").to_string();
                assert!(error.contains("`identity`") && error.contains("backup"), "{error}");
            }
        }
        for length in 0..good.len() {
            let change = vec![("identity".to_owned(), Some(good.slice(..length)))];
            store.put_records(change).await.expect("memory takes it");
            assert!(records.get::<Identity>().await.is_err(), "{length} bytes are not whole");
        }
        let elsewhere = vec![("lanes".to_owned(), Some(good))];
        store.put_records(elsewhere).await.expect("memory takes it");
        let error = records.get::<Lanes>().await.expect_err("it is another").to_string();
        assert!(error.contains("says to be `identity`"), "{error}");
    }

    #[tokio::test]
    async fn a_later_format_is_refused() {
        let store = memory();
        let later = sealed("format", &Format { number: FORMAT + 1 });
        let change = vec![("format".to_owned(), Some(later))];
        store.put_records(change).await.expect("memory takes it");
        let error = Records::open(store).await.expect_err("it is later").to_string();
        assert!(error.contains("format 3") && error.contains("knows 2"), "{error}");
    }
}
