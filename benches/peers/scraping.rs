//! What a scrape of `/metrics` costs, as Prometheus makes it.

use anyhow::{Context as _, Result, ensure};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{client::Trouble, load::Work};

/// Scrapes a server without a pause.
pub(crate) struct Scraper {
    pub(crate) port: u16,
    /// The watchers that the answer must tell of.
    pub(crate) watchers: usize,
}

// === impl Scraper ===

impl Scraper {
    async fn scrape(&self) -> Result<()> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        let request = "GET /metrics HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        ensure!(text.starts_with("HTTP/1.1 200"), "{}", text.lines().next().unwrap_or_default());
        let told =
            text.lines().find_map(|line| line.strip_prefix("etcd_debugging_mvcc_watcher_total "));
        let told: f64 = told.context("watchers are not counted")?.trim().parse()?;
        ensure!(told >= self.watchers as f64, "{told} of {} watchers are told of", self.watchers);
        Ok(())
    }
}

impl Work for Scraper {
    async fn turn(&mut self) -> Result<(), Trouble> {
        Ok(self.scrape().await?)
    }
}
