//! Lists of objects by their labels, by one client. A peer that does not know selectors answers with all objects, and
//! the client looks at each: what an API server does on it, at the least that it could cost.

use std::time::Duration;

use anyhow::{Result, ensure};
use bytes::{Bytes, BytesMut};
use pleach::proto::etcdserverpb::{RangeRequest, RangeResponse, kv_client::KvClient};
use tokio::time::{Instant, sleep};
use tonic::transport::Channel;

use crate::{
    client::{Connections, Trouble},
    keys::{HALF, HUNDREDTH, Set, prefix_end, scatter},
    load::Work,
    rows::{PAGE, Row},
};

/// The pages of who has to look for what he wants: an API server's, which doubles them up to there.
const PAGE_MAX: usize = 10_000;

/// How long an index may take to be built before anything is measured.
const INDEXED_WITHIN: Duration = Duration::from_secs(30);

/// A read of this many in a hundred of the time that the first one took has an index.
const INDEXED_PERCENT: u32 = 20;

/// A reader of the selected objects.
pub(crate) struct Reader {
    kv: KvClient<Channel>,
    row: Row,
    keys: u64,
    /// How many objects have the label.
    held: usize,
    next: u64,
}

pub(crate) fn reader(connections: &Connections, row: Row, keys: usize) -> Reader {
    let keys = keys as u64;
    let has_it = if row == Row::SelectHalf { HALF } else { HUNDREDTH };
    let held = (0..keys).filter(|number| has_it(scatter(*number))).count();
    Reader { kv: connections.kv(0), row, keys, held, next: 0 }
}

/// Has the peer make what indexes it makes by itself.
pub(crate) async fn prepare(connections: &Connections, keys: usize) -> Result<()> {
    for row in [Row::SelectOne, Row::SelectHundredth, Row::SelectHalf] {
        let mut reader = reader(connections, row, keys);
        let begun = Instant::now();
        reader.turn().await.map_err(Trouble::into_error)?;
        let first = begun.elapsed();
        if !reader.knows_selectors().await? {
            return Ok(());
        }
        while begun.elapsed() < INDEXED_WITHIN {
            let again = Instant::now();
            reader.turn().await.map_err(Trouble::into_error)?;
            // Half of all is looked up in an index hardly faster; that of before is built first.
            if again.elapsed() < first * INDEXED_PERCENT / 100 || row == Row::SelectHalf {
                break;
            }
            sleep(Duration::from_millis(50)).await;
        }
    }
    // What half of all is selected by is built as well before writes are measured.
    sleep(Duration::from_secs(5)).await;
    Ok(())
}

// === impl Reader ===

impl Reader {
    async fn knows_selectors(&mut self) -> Result<bool> {
        let request = RangeRequest { limit: 1, ..self.request("name=none", 1) };
        Ok(self.kv.range(request).await?.into_inner().kvs.is_empty())
    }

    fn request(&self, selector: &str, limit: usize) -> RangeRequest {
        let prefix = Set::Selected.prefix();
        RangeRequest {
            key: prefix.clone().into(),
            range_end: prefix_end(&prefix),
            limit: limit as i64,
            label_selector: selector.to_owned(),
            ..RangeRequest::default()
        }
    }

    async fn ask(&mut self, request: RangeRequest) -> Result<RangeResponse, Trouble> {
        Ok(self.kv.range(request).await?.into_inner())
    }

    /// All that a label selects; `mark` is what the value of such an object has.
    async fn all(&mut self, selector: &str, mark: &str, expected: usize) -> Result<(), Trouble> {
        let answer = self.ask(self.request(selector, 0)).await?;
        let found = answer.kvs.iter().filter(|kv| has(&kv.value, mark)).count();
        check(found == expected, || format!("{selector}: {found} instead of {expected}"))?;
        Ok(())
    }

    /// The first page of what a label selects.
    async fn page(&mut self, selector: &str, mark: &str) -> Result<(), Trouble> {
        let (mut found, mut limit, wanted) = (0, PAGE, PAGE.min(self.held));
        let mut request = self.request(selector, limit);
        loop {
            let answer = self.ask(request.clone()).await?;
            found += answer.kvs.iter().filter(|kv| has(&kv.value, mark)).count();
            if found >= wanted || !answer.more {
                break;
            }
            let last = answer.kvs.last().map(|kv| kv.key.clone()).unwrap_or_default();
            request.key = successor(&last);
            limit = (limit * 2).min(PAGE_MAX);
            request.limit = limit as i64;
        }
        check(found >= wanted, || format!("{selector}: {found} instead of {wanted}"))?;
        Ok(())
    }
}

impl Work for Reader {
    async fn turn(&mut self) -> Result<(), Trouble> {
        match self.row {
            Row::SelectOne => {
                let mark = scatter(scatter(self.next) % self.keys);
                self.next += 1;
                let name = format!("{mark:016x}");
                self.all(&format!("name={name}"), &format!("\"name\":\"{name}\""), 1).await
            }
            Row::SelectHundredth => {
                self.all("share=hundredth", "\"share\":\"hundredth\"", self.held).await
            }
            Row::SelectHalf => self.all("half=yes", "\"half\":\"yes\"", self.held).await,
            _ => self.page("share=hundredth", "\"share\":\"hundredth\"").await,
        }
    }
}

fn has(value: &[u8], mark: &str) -> bool {
    value.windows(mark.len()).any(|window| window == mark.as_bytes())
}

fn check(is_right: bool, wrong: impl Fn() -> String) -> Result<()> {
    ensure!(is_right, "{}", wrong());
    Ok(())
}

fn successor(key: &[u8]) -> Bytes {
    let mut successor = BytesMut::from(key);
    successor.extend_from_slice(&[0]);
    successor.freeze()
}
