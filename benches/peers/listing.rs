//! Pages, whole lists and counts over one prefix, by one client.

use anyhow::{Context as _, Result, ensure};
use bytes::{Bytes, BytesMut};
use pleach::proto::etcdserverpb::{RangeRequest, RangeResponse, kv_client::KvClient};
use tonic::transport::Channel;

use crate::{
    client::{Connections, Trouble, revision},
    keys::{Set, VALUE_BYTES, prefix_end},
    load::Work,
    rows::{PAGE, Row},
    shapes,
};

/// A reader of the listed keys.
pub(crate) struct Reader {
    kv: KvClient<Channel>,
    row: Row,
    keys: usize,
    start: Bytes,
    end: Bytes,
    walk: Walk,
}

/// Where a walk through the later pages stands.
struct Walk {
    from: Bytes,
    revision: i64,
    seen: usize,
}

pub(crate) fn reader(connections: &Connections, row: Row, keys: usize) -> Reader {
    let prefix = Set::Listed.prefix();
    let start: Bytes = prefix.clone().into();
    let walk = Walk { from: start.clone(), revision: 0, seen: 0 };
    Reader { kv: connections.kv(0), row, keys, end: prefix_end(&prefix), start, walk }
}

// === impl Reader ===

impl Reader {
    async fn ask(&mut self, request: RangeRequest) -> Result<RangeResponse, Trouble> {
        Ok(self.kv.range(request).await?.into_inner())
    }

    async fn page(&mut self, limit: usize) -> Result<(), Trouble> {
        let request = shapes::list(self.start.clone(), self.end.clone(), limit, 0);
        let answer = self.ask(request).await?;
        check(&answer, limit, self.keys)?;
        Ok(())
    }

    /// The next page of a walk at one revision, which the walk's first page fixes.
    async fn next_page(&mut self) -> Result<(), Trouble> {
        if self.walk.seen >= self.keys {
            self.walk = Walk { from: self.start.clone(), revision: 0, seen: 0 };
        }
        let Walk { from, revision: at, seen } = &self.walk;
        let left = self.keys - seen;
        let request = shapes::list(from.clone(), self.end.clone(), PAGE, *at);
        let answer = self.ask(request).await?;
        check(&answer, PAGE, left)?;
        if self.walk.revision == 0 {
            self.walk.revision = revision(answer.header.as_ref())?;
        }
        self.walk.seen += answer.kvs.len();
        let last = answer.kvs.last().context("an empty page")?;
        let mut from = BytesMut::from(last.key.as_ref());
        from.extend_from_slice(&[0]);
        self.walk.from = from.freeze();
        Ok(())
    }

    async fn count(&mut self) -> Result<(), Trouble> {
        let answer = self.ask(shapes::count(self.start.clone(), self.end.clone())).await?;
        let counted = answer.count;
        if counted != self.keys as i64 || !answer.kvs.is_empty() {
            return Err(anyhow::anyhow!("{counted} keys counted of {}", self.keys).into());
        }
        Ok(())
    }
}

/// A list at `limit` (0 is none) of a range that holds `held` keys.
fn check(answer: &RangeResponse, limit: usize, held: usize) -> Result<()> {
    let expected = if limit == 0 { held } else { held.min(limit) };
    let found = answer.kvs.len();
    ensure!(found == expected, "a list of {found} keys instead of {expected}");
    ensure!(answer.count == held as i64, "a list that counts {} of {held}", answer.count);
    ensure!(answer.more == (held > expected), "a list with more={}", answer.more);
    let ordered = answer.kvs.is_sorted_by(|one, other| one.key < other.key);
    ensure!(ordered, "a list out of order");
    let whole = answer.kvs.iter().all(|kv| kv.value.len() == VALUE_BYTES);
    ensure!(whole, "a list with a value of another size");
    Ok(())
}

impl Work for Reader {
    async fn turn(&mut self) -> Result<(), Trouble> {
        match self.row {
            Row::ListAll => self.page(0).await,
            Row::ListNext => self.next_page().await,
            Row::Count => self.count().await,
            _ => self.page(PAGE).await,
        }
    }
}
