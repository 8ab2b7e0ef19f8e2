//! Short ways to run the command to its end, and to read and write one key.

use std::{path::Path, process::Stdio, time::Duration};

use anyhow::{Context as _, Result, ensure};
use pleach::proto::etcdserverpb::{self as pb, kv_client::KvClient};
use tokio::process::Command;
use tonic::{Code, Status, transport::Channel};

/// A command that is to end by itself.
const ENDS_WITHIN: Duration = Duration::from_secs(20);

/// How a command ended, and what it said.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) is_success: bool,
    /// `None` where a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs `pleach` in a folder to its end.
pub(crate) async fn pleach(folder: &Path, arguments: &[&str]) -> Result<Ended> {
    run(Path::new(env!("CARGO_BIN_EXE_pleach")), folder, arguments).await
}

pub(crate) async fn run(program: &Path, folder: &Path, arguments: &[&str]) -> Result<Ended> {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(folder).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(ENDS_WITHIN, command.output()).await;
    let output = output.with_context(|| format!("it runs on: {arguments:?}"))??;
    Ok(Ended {
        is_success: output.status.success(),
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout)?,
        stderr: String::from_utf8(output.stderr)?,
    })
}

/// A node that must refuse to start, and what it said.
pub(crate) async fn refused(folder: &Path, arguments: &[&str]) -> Result<String> {
    let mut all = vec!["serve", "--listen-client-urls=http://127.0.0.1:0"];
    all.extend(arguments);
    let ended = pleach(folder, &all).await?;
    ensure!(!ended.is_success, "it ended well: {}", ended.stderr);
    ensure!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
    Ok(ended.stderr)
}

pub(crate) async fn put(
    channel: &Channel,
    key: impl Into<bytes::Bytes>,
    value: impl Into<bytes::Bytes>,
) -> Result<i64, Status> {
    let put = pb::PutRequest { key: key.into(), value: value.into(), ..Default::default() };
    let answer = client(channel).put(put).await?.into_inner();
    Ok(answer.header.map_or(0, |header| header.revision))
}

pub(crate) async fn get(
    channel: &Channel,
    key: impl Into<bytes::Bytes>,
) -> Result<Option<bytes::Bytes>, Status> {
    let read = pb::RangeRequest { key: key.into(), ..Default::default() };
    let mut answer = client(channel).range(read).await?.into_inner();
    Ok(answer.kvs.pop().map(|kv| kv.value))
}

pub(crate) fn client(channel: &Channel) -> KvClient<Channel> {
    KvClient::new(channel.clone()).max_decoding_message_size(usize::MAX)
}

/// An answer that must be this error, letter by letter.
pub(crate) fn ensure_error<T>(answer: Result<T, Status>, code: Code, text: &str) -> Result<()> {
    let status = answer.err().with_context(|| format!("no error where `{text}` is due"))?;
    ensure!(status.code() == code && status.message() == text, "{status:?}, not {code} {text}");
    Ok(())
}
