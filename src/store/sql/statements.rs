//! The SQL, once for all databases.
//!
//! Two tables hold a store. `pleach_key` has one small row for each key, ordered by key bytes: its
//! newest row in the log, and all that compares look at. `pleach_log` has one row for each change,
//! with the value, in the order of `seq`; `prev_seq` leads to the row before it of the same key.
//!
//! ```text
//!   pleach_key   key ─┬─ seq ────────────┐     a deleted key keeps its row, with version 0,
//!                     └ revisions, lease │     until compaction has passed it
//!   pleach_log   seq 7 ── seq 12 ── seq 31     one chain of prev_seq for each key
//! ```
//!
//! A list is a scan of `pleach_key` that fetches each value by its `seq`; a value is written once; the
//! past of a key is its chain; compaction deletes what the chain behind a row `<= revision` holds.

use super::session::Dialect;

/// The tables, for every database. Types and bounds are those of the dialect that runs them.
pub const TABLES: [&str; 2] = ["pleach_key", "pleach_log"];

/// All statements of the algorithm, built once for a database.
#[derive(Clone, Debug)]
pub struct Statements {
    pub key: String,
    pub key_only: String,
    pub page: String,
    pub page_open: String,
    pub page_keys: String,
    pub page_keys_open: String,
    pub leased: String,
    pub count: String,
    pub count_open: String,
    pub newer: String,
    pub newer_open: String,
    pub back: String,
    pub log: String,
    pub put_log: String,
    pub put_key: String,
    pub last: String,
    pub garbage: String,
    pub drop_log: String,
    pub drop_key: String,
    pub meta: String,
    pub put_meta: String,
    pub records: String,
    pub put_record: String,
    pub drop_record: String,
    pub size: String,
}

// === impl Statements ===

impl Statements {
    pub fn new(dialect: Dialect) -> Self {
        const KEY: &str = "k.key, k.seq, k.create_revision, k.mod_revision, k.version, k.lease";
        const LOG: &str =
            "l.seq, l.revision, l.key, l.create_revision, l.version, l.lease, l.value";
        let values = "FROM pleach_key k JOIN pleach_log l ON l.seq = k.seq WHERE";
        let keys = "FROM pleach_key k WHERE";
        let bounded = "k.key >= ? AND k.key < ?";
        let open = "k.key >= ?";
        // What was deleted after the revision asked for may have existed at it.
        let seen = "(k.version > 0 OR k.mod_revision > ?) ORDER BY k.key LIMIT ?";
        let settled =
            "coalesce(sum(CASE WHEN k.version > 0 AND k.mod_revision <= ? THEN 1 ELSE 0 END), 0)";
        let counts =
            format!("{settled}, coalesce(sum(CASE WHEN k.mod_revision > ? THEN 1 ELSE 0 END), 0)");
        Self {
            key: format!("SELECT {KEY}, l.value {values} k.key = ?"),
            key_only: format!("SELECT {KEY} {keys} k.key = ?"),
            page: format!("SELECT {KEY}, l.value {values} {bounded} AND {seen}"),
            page_open: format!("SELECT {KEY}, l.value {values} {open} AND {seen}"),
            page_keys: format!("SELECT {KEY} {keys} {bounded} AND {seen}"),
            page_keys_open: format!("SELECT {KEY} {keys} {open} AND {seen}"),
            leased: format!(
                "SELECT {KEY}, l.value {values} k.lease = ? AND k.lease <> 0 ORDER BY k.key"
            ),
            count: format!("SELECT {counts} {keys} {bounded}"),
            count_open: format!("SELECT {counts} {keys} {open}"),
            newer: format!(
                "SELECT 0, {settled} {keys} {bounded} \
                 UNION ALL SELECT k.seq, 0 {keys} {bounded} AND k.mod_revision > ?"
            ),
            newer_open: format!(
                "SELECT 0, {settled} {keys} {open} \
                 UNION ALL SELECT k.seq, 0 {keys} {open} AND k.mod_revision > ?"
            ),
            back: format!(
                "WITH RECURSIVE back(seq, revision, prev_seq) AS (\
                 SELECT seq, revision, prev_seq FROM pleach_log WHERE seq = ? \
                 UNION ALL SELECT p.seq, p.revision, p.prev_seq \
                 FROM back b JOIN pleach_log p ON p.seq = b.prev_seq WHERE b.revision > ?) \
                 SELECT {LOG} FROM back b JOIN pleach_log l ON l.seq = b.seq WHERE b.revision <= ?"
            ),
            log: format!(
                "SELECT {LOG}, p.revision, p.create_revision, p.version, p.lease, p.value \
                 FROM pleach_log l LEFT JOIN pleach_log p ON p.seq = l.prev_seq \
                 WHERE l.revision > ? AND l.revision <= ? ORDER BY l.revision, l.seq LIMIT ?"
            ),
            put_log: "INSERT INTO pleach_log \
                 (seq, revision, key, prev_seq, create_revision, version, lease, value) \
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
                .to_owned(),
            put_key: format!(
                "INSERT INTO pleach_key (key, seq, create_revision, mod_revision, version, lease) \
                 VALUES (?, ?, ?, ?, ?, ?) {}",
                dialect.on_key_conflict
            ),
            last: "SELECT coalesce(max(seq), 0), coalesce(max(revision), 0) FROM pleach_log"
                .to_owned(),
            garbage: "SELECT seq, revision, key, prev_seq, version FROM pleach_log \
                 WHERE revision >= ? AND revision <= ? ORDER BY revision, seq LIMIT ?"
                .to_owned(),
            drop_log: "DELETE FROM pleach_log WHERE seq = ? AND revision < ?".to_owned(),
            drop_key: "DELETE FROM pleach_key WHERE key = ? AND seq = ?".to_owned(),
            meta: "SELECT value FROM pleach_meta WHERE name = ?".to_owned(),
            put_meta: format!(
                "INSERT INTO pleach_meta (name, value) VALUES (?, ?) {}",
                dialect.on_name_conflict
            ),
            records: "SELECT name, value FROM pleach_record WHERE name >= ? ORDER BY name"
                .to_owned(),
            put_record: format!(
                "INSERT INTO pleach_record (name, value) VALUES (?, ?) {}",
                dialect.on_name_conflict
            ),
            drop_record: "DELETE FROM pleach_record WHERE name = ?".to_owned(),
            size: dialect.size.to_owned(),
        }
    }
}
