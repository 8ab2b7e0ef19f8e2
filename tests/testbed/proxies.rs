//! The proxy, byte by byte, in front of a server that repeats what it hears.

use std::{
    io::ErrorKind,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_util::task::AbortOnDropHandle;

use crate::support::{
    peers::free_port,
    process::eventually,
    proxy::{Act, Mode, Proxy, Way},
    rng::Rng,
};

/// Longer than an answer takes, and waited for in full only where none is to come.
const NO_ANSWER: Duration = Duration::from_millis(300);
const ANSWERS_WITHIN: Duration = Duration::from_secs(20);

/// A server that repeats what it hears, and remembers it.
struct Echo {
    address: SocketAddr,
    heard: Arc<Mutex<Vec<u8>>>,
    _task: AbortOnDropHandle<()>,
}

// === impl Echo ===

impl Echo {
    async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let heard = Arc::default();
        let task = tokio::spawn(listen(listener, Arc::clone(&heard)));
        Ok(Self { address, heard, _task: AbortOnDropHandle::new(task) })
    }

    fn heard(&self) -> String {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&heard).into_owned()
    }

    async fn hears(&self, text: &str) -> Result<()> {
        eventually("the upstream hears it", ANSWERS_WITHIN, async || {
            let heard = self.heard();
            ensure!(heard == text, "it heard {heard}, not {text}");
            Ok(())
        })
        .await
    }
}

async fn listen(listener: TcpListener, heard: Arc<Mutex<Vec<u8>>>) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(echo(stream, heard.clone()));
    }
}

async fn echo(mut stream: TcpStream, heard: Arc<Mutex<Vec<u8>>>) {
    let mut buffer = [0; 1 << 10];
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        heard.lock().unwrap_or_else(PoisonError::into_inner).extend(&buffer[..count]);
        if stream.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

async fn bed() -> Result<(Echo, Proxy)> {
    let echo = Echo::start().await?;
    let proxy = Proxy::start(echo.address).await?;
    Ok((echo, proxy))
}

async fn connect(proxy: &Proxy) -> Result<TcpStream> {
    Ok(TcpStream::connect(proxy.address()).await?)
}

/// Sends a word, which must come back.
async fn ask(stream: &mut TcpStream, word: &str) -> Result<()> {
    stream.write_all(word.as_bytes()).await?;
    hear(stream, word).await
}

async fn hear(stream: &mut TcpStream, word: &str) -> Result<()> {
    let mut answer = vec![0; word.len()];
    timeout(ANSWERS_WITHIN, stream.read_exact(&mut answer)).await??;
    ensure!(answer == word.as_bytes(), "{} came back", String::from_utf8_lossy(&answer));
    Ok(())
}

async fn ensure_silence(stream: &mut TcpStream) -> Result<()> {
    let said = timeout(NO_ANSWER, stream.read_u8()).await;
    ensure!(said.is_err(), "it said {said:?}");
    Ok(())
}

async fn ensure_reset(stream: &mut TcpStream) -> Result<()> {
    let end = timeout(ANSWERS_WITHIN, stream.read(&mut [0])).await?;
    ensure!(end.as_ref().is_err_and(|error| error.kind() == ErrorKind::ConnectionReset), "{end:?}");
    Ok(())
}

#[tokio::test]
async fn bytes_and_ends_pass_both_ways() -> Result<()> {
    let (_echo, proxy) = bed().await?;
    let mut stream = connect(&proxy).await?;
    ask(&mut stream, "one").await?;
    ask(&mut stream, &"much ".repeat(100_000)).await?;
    stream.write_all(b"last words").await?;
    stream.shutdown().await?;
    let mut rest = String::new();
    timeout(ANSWERS_WITHIN, stream.read_to_string(&mut rest)).await??;
    ensure!(rest == "last words", "{rest}");
    eventually("the connection is gone", ANSWERS_WITHIN, async || {
        ensure!(proxy.connections() == 0, "it is still there");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn delayed_bytes_come_later() -> Result<()> {
    let (_echo, proxy) = bed().await?;
    let mut stream = connect(&proxy).await?;
    ask(&mut stream, "fast").await?;
    proxy.set(Mode::Delay(Duration::from_millis(150))).await?;
    let begin = Instant::now();
    ask(&mut stream, "slow").await?;
    ensure!(begin.elapsed() >= Duration::from_millis(300), "only {:?}", begin.elapsed());
    proxy.set(Mode::Pass).await?;
    ask(&mut stream, "fast").await
}

#[tokio::test]
async fn a_stall_holds_open_and_new_connections_and_loses_nothing() -> Result<()> {
    let (echo, proxy) = bed().await?;
    let mut open = connect(&proxy).await?;
    ask(&mut open, "a").await?;
    proxy.set(Mode::Stall).await?;
    let mut new = connect(&proxy).await?;
    open.write_all(b"b").await?;
    new.write_all(b"b").await?;
    ensure_silence(&mut open).await?;
    ensure_silence(&mut new).await?;
    echo.hears("a").await?;
    proxy.set(Mode::Pass).await?;
    hear(&mut open, "b").await?;
    hear(&mut new, "b").await?;
    echo.hears("abb").await
}

#[tokio::test]
async fn a_stall_of_one_way_lets_the_other_pass() -> Result<()> {
    let (echo, proxy) = bed().await?;
    let mut stream = connect(&proxy).await?;
    proxy.set(Mode::StallOf(Way::Answers)).await?;
    stream.write_all(b"a").await?;
    echo.hears("a").await?;
    ensure_silence(&mut stream).await?;
    proxy.set(Mode::StallOf(Way::Requests)).await?;
    hear(&mut stream, "a").await?;
    stream.write_all(b"b").await?;
    ensure_silence(&mut stream).await?;
    echo.hears("a").await?;
    proxy.set(Mode::Pass).await?;
    hear(&mut stream, "b").await
}

#[tokio::test]
async fn a_cut_resets_all_that_are_open_even_in_a_stall_and_none_that_come_after() -> Result<()> {
    let (_echo, proxy) = bed().await?;
    let (mut first, mut second) = (connect(&proxy).await?, connect(&proxy).await?);
    ask(&mut first, "a").await?;
    ask(&mut second, "b").await?;
    proxy.set(Mode::Stall).await?;
    second.write_all(b"held").await?;
    ensure!(proxy.cut().await == 2, "not two were cut");
    ensure!(proxy.connections() == 0, "some are left");
    ensure_reset(&mut first).await?;
    ensure_reset(&mut second).await?;
    proxy.set(Mode::Pass).await?;
    ask(&mut connect(&proxy).await?, "c").await
}

#[tokio::test]
async fn new_connections_are_refused_while_open_ones_go_on() -> Result<()> {
    let (_echo, proxy) = bed().await?;
    let mut open = connect(&proxy).await?;
    ask(&mut open, "a").await?;
    for _ in 0..3 {
        proxy.set(Mode::Refuse).await?;
        let refused = TcpStream::connect(proxy.address()).await;
        let kind = refused.err().map(|error| error.kind());
        ensure!(kind == Some(ErrorKind::ConnectionRefused), "{kind:?}");
        ask(&mut open, "b").await?;
        proxy.set(Mode::Pass).await?;
        ask(&mut connect(&proxy).await?, "c").await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_truncated_way_ends_after_the_last_byte_that_may_pass() -> Result<()> {
    for bytes in [0, 1, 7, 12] {
        let (_echo, proxy) = bed().await?;
        let mut stream = connect(&proxy).await?;
        ask(&mut stream, "whole").await?;
        proxy.truncate(Way::Answers, bytes);
        // As far as it passes in two pieces, it is counted over both.
        stream.write_all(b"first ").await?;
        let mut answer = vec![0; bytes.min(6)];
        timeout(ANSWERS_WITHIN, stream.read_exact(&mut answer)).await??;
        if bytes > 6 {
            stream.write_all(b"second").await?;
        }
        timeout(ANSWERS_WITHIN, stream.read_to_end(&mut answer)).await??;
        ensure!(answer == b"first second"[..bytes], "{bytes}: {answer:?}");
        ask(&mut connect(&proxy).await?, "whole").await?;
    }
    let (echo, proxy) = bed().await?;
    let mut stream = connect(&proxy).await?;
    proxy.truncate(Way::Requests, 3);
    stream.write_all(b"request").await?;
    stream.read_to_end(&mut Vec::new()).await?;
    echo.hears("req").await
}

#[tokio::test]
async fn a_needle_is_found_once_also_where_it_comes_in_pieces() -> Result<()> {
    for (act, heard) in [(Act::CutBefore, "a NEE"), (Act::DropAnswer, "a NEEDLE")] {
        let (echo, proxy) = bed().await?;
        let mut stream = connect(&proxy).await?;
        let fired = proxy.trigger("NEEDLE", act);
        ask(&mut stream, "a ").await?;
        ask(&mut stream, "NEE").await?;
        stream.write_all(b"DLE").await?;
        timeout(ANSWERS_WITHIN, fired).await??;
        ensure_reset(&mut stream).await?;
        echo.hears(heard).await?;
        ask(&mut connect(&proxy).await?, "NEEDLE").await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_needle_cuts_or_holds_its_own_connection_and_no_other() -> Result<()> {
    for act in [Act::CutBefore, Act::CutAfter, Act::DropAnswer, Act::StallBefore, Act::StallAfter] {
        let (echo, proxy) = bed().await?;
        let (mut own, mut other) = (connect(&proxy).await?, connect(&proxy).await?);
        ask(&mut own, "a").await?;
        let fired = proxy.trigger("b", act);
        ask(&mut other, "c").await?;
        own.write_all(b"b").await?;
        timeout(ANSWERS_WITHIN, fired).await??;
        match act {
            Act::StallBefore | Act::StallAfter => ensure_silence(&mut own).await?,
            Act::CutBefore | Act::CutAfter | Act::DropAnswer => ensure_reset(&mut own).await?,
        }
        ask(&mut other, "d").await?;
        let has_heard = echo.heard().contains('b');
        match act {
            Act::CutBefore | Act::StallBefore => ensure!(!has_heard, "{act:?}: it was forwarded"),
            Act::DropAnswer => ensure!(has_heard, "{act:?}: it was not forwarded"),
            Act::StallAfter => echo.hears("acbd").await?,
            Act::CutAfter => {}
        }
    }
    Ok(())
}

#[tokio::test]
async fn new_connections_go_where_they_are_redirected() -> Result<()> {
    let (first, proxy) = bed().await?;
    let second = Echo::start().await?;
    let mut open = connect(&proxy).await?;
    ask(&mut open, "a").await?;
    proxy.redirect(second.address);
    ask(&mut connect(&proxy).await?, "b").await?;
    ask(&mut open, "c").await?;
    ensure!((first.heard(), second.heard()) == ("ac".into(), "b".into()), "{}", second.heard());
    Ok(())
}

#[tokio::test]
async fn where_no_upstream_runs_connections_are_reset() -> Result<()> {
    let proxy = Proxy::start((Ipv4Addr::LOCALHOST, free_port()?).into()).await?;
    ensure_reset(&mut connect(&proxy).await?).await?;
    let echo = Echo::start().await?;
    proxy.redirect(echo.address);
    ask(&mut connect(&proxy).await?, "a").await
}

#[tokio::test]
async fn after_random_trouble_all_is_well_again() -> Result<()> {
    let (_echo, proxy) = bed().await?;
    let mut rng = Rng::new(7);
    let mut seen = Vec::new();
    for _ in 0..40 {
        let busy = async {
            let mut stream = connect(&proxy).await?;
            for _ in 0..1_000 {
                ask(&mut stream, "word").await?;
            }
            anyhow::Ok(())
        };
        let (trouble, _) = tokio::join!(proxy.trouble(&mut rng), timeout(NO_ANSWER, busy));
        seen.push(trouble?);
        ask(&mut connect(&proxy).await?, "well").await?;
    }
    for kind in ["Delay", "Stall for", "StallOf", "Refuse", "truncated", "cut"] {
        ensure!(seen.iter().any(|trouble| trouble.contains(kind)), "no {kind} in {seen:?}");
    }
    Ok(())
}
