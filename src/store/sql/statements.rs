//! The SQL, once for all databases.
//!
//! Two tables hold a store. `pleach_key` has one small row for each key, ordered by key bytes: its
//! newest row in the log, and all that compares look at. `pleach_log` has one row for each change,
//! with the value, in the order of `seq`; `prev_seq` leads to the row before it of the same key.
//!
//! ```text
//!   pleach_key  name ─┬─ seq ────────────┐     a deleted key keeps its row, with version 0,
//!                     └ revisions, lease │     until compaction has passed it
//!   pleach_log   seq 7 ── seq 12 ── seq 31     one chain of prev_seq for each key
//! ```
//!
//! A third table, `pleach_term`, is there once reads with selectors needed an index; see `index`.
//!
//! A list is a scan of `pleach_key` that fetches each value by its `seq`; a value is written once; the
//! past of a key is its chain; compaction deletes what the chain behind a row `<= revision` holds.

use super::session::{Dialect, Sql};

/// All statements of the algorithm, built once for a database.
#[derive(Clone, Debug)]
pub struct Statements {
    pub(super) key: Sql,
    pub(super) key_only: Sql,
    pub(super) each_key: Sql,
    pub(super) page: Sql,
    pub(super) page_open: Sql,
    pub(super) page_keys: Sql,
    pub(super) page_keys_open: Sql,
    pub(super) leased: Sql,
    pub(super) leases: Sql,
    pub(super) count: Sql,
    pub(super) count_open: Sql,
    pub(super) newer: Sql,
    pub(super) newer_open: Sql,
    pub(super) back: Sql,
    pub(super) log: Sql,
    pub(super) put_log: Sql,
    pub(super) put_key: Sql,
    pub(super) last: Sql,
    pub(super) garbage: Sql,
    pub(super) drop_log: Sql,
    pub(super) drop_key: Sql,
    pub(super) meta: Sql,
    pub(super) put_meta: Sql,
    pub(super) record: Sql,
    pub(super) records: Sql,
    pub(super) put_record: Sql,
    pub(super) drop_record: Sql,
    pub(super) size: Sql,
    pub(super) make_terms: Sql,
    pub(super) terms: Sql,
    pub(super) put_term: Sql,
    pub(super) drop_term: Sql,
    pub(super) terms_of: Sql,
    pub(super) drop_terms: Sql,
    pub(super) changed: Sql,
}

// === impl Statements ===

impl Statements {
    /// The statements as a dialect writes them.
    pub(super) fn new(dialect: &Dialect) -> Self {
        const KEY: &str = "k.name, k.seq, k.create_revision, k.mod_revision, k.version, k.lease";
        const LOG: &str =
            "l.seq, l.revision, l.name, l.create_revision, l.version, l.lease, l.value";
        let sql = |text: &str| dialect.write(text);
        let values = "FROM pleach_key k JOIN pleach_log l ON l.seq = k.seq WHERE";
        let keys = "FROM pleach_key k WHERE";
        let bounded = "k.name >= ? AND k.name < ?";
        let open = "k.name >= ?";
        // What was deleted after the revision asked for may have existed at it.
        let seen = "(k.version > 0 OR k.mod_revision > ?) ORDER BY k.name LIMIT ?";
        let settled = "count(CASE WHEN k.version > 0 AND k.mod_revision <= ? THEN 1 END)";
        let counts = format!("{settled}, count(CASE WHEN k.mod_revision > ? THEN 1 END)");
        let newer = |range: &str| {
            format!(
                "SELECT 0, {settled} {keys} {range} \
                 UNION ALL SELECT k.seq, 0 {keys} {range} AND k.mod_revision > ?"
            )
        };
        let (one_of, rows) = (dialect.one_of, dialect.rows);
        let (on_key, on_name) = (dialect.on_key_conflict, dialect.on_name_conflict);
        Self {
            key: sql(&format!("SELECT {KEY}, l.value {values} k.name = ?")),
            key_only: sql(&format!("SELECT {KEY} {keys} k.name = ?")),
            each_key: sql(&format!("SELECT {KEY}, l.value {values} k.name {one_of}")),
            page: sql(&format!("SELECT {KEY}, l.value {values} {bounded} AND {seen}")),
            page_open: sql(&format!("SELECT {KEY}, l.value {values} {open} AND {seen}")),
            page_keys: sql(&format!("SELECT {KEY} {keys} {bounded} AND {seen}")),
            page_keys_open: sql(&format!("SELECT {KEY} {keys} {open} AND {seen}")),
            leased: sql(&format!(
                "SELECT {KEY}, l.value {values} k.lease = ? AND k.lease <> 0 ORDER BY k.name"
            )),
            leases: sql("SELECT DISTINCT lease FROM pleach_key WHERE lease <> 0"),
            count: sql(&format!("SELECT {counts} {keys} {bounded}")),
            count_open: sql(&format!("SELECT {counts} {keys} {open}")),
            newer: sql(&newer(bounded)),
            newer_open: sql(&newer(open)),
            back: sql(&format!(
                "WITH RECURSIVE back(seq, revision, prev_seq) AS (\
                 SELECT seq, revision, prev_seq FROM pleach_log WHERE seq = ? \
                 UNION ALL SELECT p.seq, p.revision, p.prev_seq \
                 FROM back b JOIN pleach_log p ON p.seq = b.prev_seq WHERE b.revision > ?) \
                 SELECT {LOG} FROM back b JOIN pleach_log l ON l.seq = b.seq WHERE b.revision <= ?"
            )),
            log: sql(&format!(
                "SELECT {LOG}, p.revision, p.create_revision, p.version, p.lease, p.value \
                 FROM pleach_log l LEFT JOIN pleach_log p ON p.seq = l.prev_seq \
                 WHERE l.revision > ? AND l.revision <= ? ORDER BY l.revision, l.seq LIMIT ?"
            )),
            put_log: sql(&format!(
                "INSERT INTO pleach_log \
                 (seq, revision, name, prev_seq, create_revision, version, lease, value) {}",
                rows(8)
            )),
            put_key: sql(&format!(
                "INSERT INTO pleach_key \
                 (name, seq, create_revision, mod_revision, version, lease) {} {on_key}",
                rows(6)
            )),
            last: sql("SELECT coalesce(max(seq), 0), coalesce(max(revision), 0) FROM pleach_log"),
            garbage: sql("SELECT seq, revision, name, prev_seq, version FROM pleach_log \
                 WHERE revision >= ? AND revision <= ? ORDER BY revision, seq LIMIT ?"),
            drop_log: sql(&format!("DELETE FROM pleach_log WHERE seq {one_of}")),
            drop_key: sql(&format!(
                // A seq stands in one row only, so it need not be said which key has which.
                "DELETE FROM pleach_key WHERE name {one_of} AND seq {one_of}"
            )),
            meta: sql("SELECT value FROM pleach_meta WHERE name = ?"),
            put_meta: sql(&format!("INSERT INTO pleach_meta (name, value) {} {on_name}", rows(2))),
            record: sql("SELECT name, value FROM pleach_record WHERE name = ?"),
            records: sql(
                "SELECT name, value FROM pleach_record WHERE name >= ? AND name < ? ORDER BY name",
            ),
            put_record: sql(&format!(
                "INSERT INTO pleach_record (name, value) {} {on_name}",
                rows(2)
            )),
            drop_record: sql(&format!("DELETE FROM pleach_record WHERE name {one_of}")),
            size: sql(dialect.size),
            make_terms: sql(dialect.make_terms),
            terms: sql("SELECT name FROM pleach_term WHERE attribute = ? AND hash = ? \
                 AND name >= ? AND name < ? ORDER BY name LIMIT ?"),
            put_term: sql(&format!(
                "INSERT INTO pleach_term (attribute, hash, name) {} {}",
                rows(3),
                dialect.on_term_conflict
            )),
            // At once only for one attribute and one hash.
            drop_term: sql(&format!(
                "DELETE FROM pleach_term WHERE attribute {one_of} AND hash {one_of} AND name {one_of}"
            )),
            terms_of: sql("SELECT hash, name FROM pleach_term WHERE attribute = ? LIMIT ?"),
            drop_terms: sql("DROP TABLE IF EXISTS pleach_term"),
            changed: sql(
                "SELECT name FROM pleach_log WHERE revision > ? ORDER BY revision LIMIT ?",
            ),
        }
    }
}
