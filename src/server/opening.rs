//! How a connection begins: what must come in time, and clients whose `:authority` is no host.
//!
//! A connection ends where it has not begun in time: with HTTP/2's preface and a frame, or with the head of a
//! request of HTTP/1. What then comes of a request is [`super::patience`]'s.
//!
//! gRPC's clients send as `:authority` what they were told to reach, and for some targets that is no host and
//! port: `#initially=[10.0.0.1:2379]` (Go's etcd client 3.5.0), the path of a socket, plain or percent-encoded,
//! `a/b/c`, nothing at all. RFC 9113 (8.3.1) forbids it, `h2` resets such a stream with PROTOCOL_ERROR, and etcd
//! does not look at it. So a connection is read up to its first block of headers; where the authority of that can't be
//! parsed, all its blocks are written anew without it, and else it is left alone from there on: a client has one
//! authority for all requests of a connection.

use std::{
    future::Future as _,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf as _, BufMut as _, BytesMut};
use loona_hpack::{Decoder, Encoder};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};
use tonic::transport::server::{Connected, TcpConnectInfo};

use super::{patience::REQUEST_TIME_MAX, tls::Secured};

/// What an HTTP/2 connection begins with (RFC 9113, 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Length, type, flags, stream.
const FRAME_HEAD_BYTES: usize = 9;

const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// What is written anew is cut in frames of this length, which everyone takes.
const FRAME_BYTES_MAX: usize = 16 << 10;

/// A block of headers, as it is sent and as it is read. `h2` takes 16 KiB of the latter.
const BLOCK_BYTES_MAX: usize = 64 << 10;

/// What may be kept of headers from one request to the next, unless a server says otherwise.
const TABLE_BYTES_MAX: usize = 4_096;

/// How much is read at once.
const READ_BYTES: usize = 16 << 10;

/// A connection that must begin in time, and whose requests may have any `:authority`.
#[derive(Debug)]
pub(super) struct Opening<S> {
    stream: Secured<S>,
    /// Until it is known that nothing is to be done.
    filter: Option<Box<Filter>>,
    /// Until it has begun.
    waiting: Option<Pin<Box<Sleep>>>,
}

/// What has come of a connection, and what goes on from it.
struct Filter {
    at: At,
    /// The bytes of the part that is being read.
    part: BytesMut,
    block: Option<Block>,
    decoder: Decoder<'static>,
    /// There once the first block has shown that blocks are written anew.
    encoder: Option<Encoder<'static>>,
    ready: BytesMut,
    has_begun: bool,
}

/// Which part of a connection comes next.
#[derive(Clone, Copy, Debug)]
enum At {
    Preface,
    /// The head of a request of HTTP/1, of which so many line ends came last.
    Http1Head(usize),
    FrameHead,
    /// A frame of a block of headers.
    Fragment(Frame),
    /// So many bytes that are nobody's business here.
    Other(usize),
    /// All bytes are.
    Rest,
}

#[derive(Clone, Copy, Debug)]
struct Frame {
    length: usize,
    kind: u8,
    flags: u8,
    stream: u32,
}

/// A block of headers that is not whole.
#[derive(Debug)]
struct Block {
    stream: u32,
    ends_stream: bool,
    /// Its frames, as they came.
    frames: BytesMut,
    fragments: BytesMut,
}

/// The headers of a block, in their order.
#[derive(Default)]
struct Fields {
    fields: Vec<(Vec<u8>, Vec<u8>)>,
    bytes: usize,
    has_wrong_authority: bool,
}

// === impl Opening ===

impl<S> Opening<S> {
    pub(super) fn new(stream: Secured<S>) -> Self {
        let waiting = Some(Box::pin(sleep(REQUEST_TIME_MAX)));
        Self { stream, filter: Some(Box::default()), waiting }
    }
}

impl<S: Connected<ConnectInfo = TcpConnectInfo>> Connected for Opening<S> {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        match &self.stream {
            Secured::Left(plain) => plain.connect_info(),
            Secured::Right(tls) => tls.get_ref().0.connect_info(),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Opening<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while let Some(filter) = &mut this.filter {
            if !filter.ready.is_empty() {
                let count = filter.ready.len().min(buffer.remaining());
                buffer.put_slice(&filter.ready.split_to(count));
                return Poll::Ready(Ok(()));
            }
            if filter.has_begun {
                this.waiting = None;
            }
            if matches!(filter.at, At::Rest) {
                this.filter = None;
                break;
            }
            let mut read = [0; READ_BYTES];
            let mut read = ReadBuf::new(&mut read);
            match (Pin::new(&mut this.stream).poll_read(context, &mut read), &mut this.waiting) {
                (Poll::Ready(read), _) => read?,
                (Poll::Pending, Some(waiting)) => {
                    return waiting
                        .as_mut()
                        .poll(context)
                        .map(|()| Err(io::ErrorKind::TimedOut.into()));
                }
                (Poll::Pending, None) => return Poll::Pending,
            }
            if read.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            filter.take(read.filled())?;
        }
        Pin::new(&mut this.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Opening<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

// === impl Filter ===

impl Default for Filter {
    fn default() -> Self {
        let mut decoder = Decoder::new();
        decoder.set_max_allowed_table_size(TABLE_BYTES_MAX);
        Self {
            at: At::Preface,
            part: BytesMut::new(),
            block: None,
            decoder,
            encoder: None,
            ready: BytesMut::new(),
            has_begun: false,
        }
    }
}

impl std::fmt::Debug for Filter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let rewrites = self.encoder.is_some();
        f.debug_struct("Filter").field("at", &self.at).field("rewrites", &rewrites).finish()
    }
}

impl Filter {
    /// Goes on by `bytes`. What goes on from here is in `ready`.
    ///
    /// # Errors
    /// Where blocks are written anew and one can't be read.
    fn take(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        loop {
            let wanted = match self.at {
                At::Preface => PREFACE.len(),
                At::FrameHead => FRAME_HEAD_BYTES,
                At::Fragment(frame) => frame.length,
                At::Other(left) => {
                    let count = left.min(bytes.len());
                    self.ready.put_slice(&bytes[..count]);
                    bytes.advance(count);
                    self.at = At::Other(left - count);
                    if left > count {
                        return Ok(());
                    }
                    self.at = At::FrameHead;
                    self.has_begun = true;
                    continue;
                }
                At::Http1Head(ends) => {
                    let Some((byte, rest)) = bytes.split_first() else { return Ok(()) };
                    self.ready.put_u8(*byte);
                    bytes = rest;
                    match byte {
                        b'\n' if ends == 1 => self.leave(),
                        b'\n' => self.at = At::Http1Head(1),
                        b'\r' => {}
                        _ => self.at = At::Http1Head(0),
                    }
                    continue;
                }
                At::Rest => {
                    self.ready.put_slice(bytes);
                    return Ok(());
                }
            };
            let count = (wanted - self.part.len()).min(bytes.len());
            self.part.put_slice(&bytes[..count]);
            bytes.advance(count);
            if matches!(self.at, At::Preface) && !PREFACE.starts_with(&self.part) {
                // No more of it than one line end can have come.
                let ends = self.part.iter().filter(|byte| **byte == b'\n').count();
                self.ready.put_slice(&self.part.split());
                self.at = At::Http1Head(ends.min(1));
            } else if self.part.len() < wanted {
                return Ok(());
            } else {
                self.take_part()?;
            }
        }
    }

    /// Goes on by a part that is whole.
    fn take_part(&mut self) -> io::Result<()> {
        let part = self.part.split();
        match (self.at, &mut self.block) {
            (At::FrameHead, None) => {
                let frame = Frame::read(&part);
                if frame.kind != HEADERS {
                    self.ready.put_slice(&part);
                    self.at = At::Other(frame.length);
                    return Ok(());
                }
                self.block = Some(Block {
                    stream: frame.stream,
                    ends_stream: frame.has(END_STREAM),
                    frames: part,
                    fragments: BytesMut::new(),
                });
                self.expect_fragment(frame)
            }
            (At::FrameHead, Some(block)) => {
                let frame = Frame::read(&part);
                block.frames.put_slice(&part);
                if frame.kind != CONTINUATION || frame.stream != block.stream {
                    return self.give_up("a block of headers is broken off");
                }
                self.expect_fragment(frame)
            }
            (At::Fragment(frame), Some(block)) => {
                block.frames.put_slice(&part);
                let Some(fragment) = frame.fragment(&part) else {
                    return self.give_up("a frame is padded beyond its end");
                };
                block.fragments.put_slice(fragment);
                self.at = At::FrameHead;
                if frame.has(END_HEADERS) { self.take_block() } else { Ok(()) }
            }
            // The preface; of no other part it is said that it is whole.
            _ => {
                self.ready.put_slice(&part);
                self.at = At::FrameHead;
                Ok(())
            }
        }
    }

    fn expect_fragment(&mut self, frame: Frame) -> io::Result<()> {
        let before = self.block.as_ref().map_or(0, |block| block.frames.len());
        if before + frame.length > BLOCK_BYTES_MAX {
            return self.give_up("a block of headers is too large");
        }
        self.at = At::Fragment(frame);
        Ok(())
    }

    fn take_block(&mut self) -> io::Result<()> {
        let Some(block) = &self.block else { return Ok(()) };
        let mut fields = Fields::default();
        let read = self.decoder.decode_with_cb(&block.fragments, |name, value| {
            fields.take(&name, &value);
        });
        if read.is_err() {
            return self.give_up("a block of headers can't be read");
        }
        if fields.bytes > BLOCK_BYTES_MAX {
            return self.give_up("a block of headers is too large");
        }
        if self.encoder.is_none() && !fields.has_wrong_authority {
            self.leave();
            return Ok(());
        }
        let encoder = self.encoder.get_or_insert_default();
        let fields = fields.fields.iter().map(|(name, value)| (name.as_slice(), value.as_slice()));
        let encoded = encoder.encode(fields);
        block.write(&encoded, &mut self.ready);
        self.block = None;
        Ok(())
    }

    /// Lets all that comes go on as it is.
    fn leave(&mut self) {
        if let Some(block) = self.block.take() {
            self.ready.put_slice(&block.frames);
        }
        self.has_begun = true;
        self.at = At::Rest;
    }

    /// What is wrong by HTTP/2's own rules is for `h2` to refuse, as long as it knows what the client knows.
    fn give_up(&mut self, reason: &'static str) -> io::Result<()> {
        if self.encoder.is_some() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
        self.leave();
        Ok(())
    }
}

// === impl Frame ===

impl Frame {
    fn read(mut head: &[u8]) -> Self {
        let length = usize::try_from(head.get_uint(3)).unwrap_or(usize::MAX);
        Self { length, kind: head.get_u8(), flags: head.get_u8(), stream: head.get_u32() }
    }

    fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// The part of `payload` that is of the block. `None` where it is not as its flags say.
    fn fragment(self, mut payload: &[u8]) -> Option<&[u8]> {
        if self.kind == HEADERS && self.has(PADDED) {
            let padding = usize::from(payload.try_get_u8().ok()?);
            payload = &payload[..payload.len().checked_sub(padding)?];
        }
        let priority = if self.kind == HEADERS && self.has(PRIORITY) { 5 } else { 0 };
        payload.get(priority..)
    }
}

// === impl Block ===

impl Block {
    /// Writes its frames anew, with `encoded` for what was in them.
    fn write(&self, encoded: &[u8], to: &mut BytesMut) {
        let count = encoded.len().div_ceil(FRAME_BYTES_MAX).max(1);
        for at in 0..count {
            let rest = &encoded[at * FRAME_BYTES_MAX..];
            let piece = &rest[..rest.len().min(FRAME_BYTES_MAX)];
            let (kind, of_stream) = match at {
                0 if self.ends_stream => (HEADERS, END_STREAM),
                0 => (HEADERS, 0),
                _ => (CONTINUATION, 0),
            };
            let of_block = if at + 1 == count { END_HEADERS } else { 0 };
            to.put_uint(piece.len() as u64, 3);
            to.put_u8(kind);
            to.put_u8(of_stream | of_block);
            to.put_u32(self.stream);
            to.put_slice(piece);
        }
    }
}

// === impl Fields ===

impl Fields {
    fn take(&mut self, name: &[u8], value: &[u8]) {
        if name == b":authority" && http::uri::Authority::try_from(value).is_err() {
            self.has_wrong_authority = true;
            return;
        }
        // A few bytes may stand for many that were sent before: what is too much is not kept.
        self.bytes += name.len() + value.len();
        if self.bytes <= BLOCK_BYTES_MAX {
            self.fields.push((name.to_vec(), value.to_vec()));
        }
    }
}

#[cfg(test)]
mod tests;
