//! How a connection begins: what must come in time, and clients whose `:authority` is no host.
//!
//! A connection ends where HTTP/2 has not begun in time, with its preface and a frame; a request of HTTP/1, hyper waits
//! for as long. What then comes of a request is [`super::patience`]'s.
//!
//! gRPC's clients send as `:authority` what they were told to reach, and for some targets that is no host and
//! port: `#initially=[10.0.0.1:2379]` (Go's etcd client 3.5.0), the path of a socket, plain or percent-encoded,
//! `a/b/c`, nothing at all. RFC 9113 (8.3.1) forbids it, `h2` resets such a stream with PROTOCOL_ERROR, and etcd
//! does not look at it. So a connection is read up to its first block of headers; where the authority of that can't be
//! parsed, all its blocks are written anew without it, and else it is left alone from there on: most clients have one
//! authority for all requests of a connection, and to look at all of them would cost everybody.
//!
//! Anybody may send anything here, before it is known who that is. So what is read at once, what the headers of a
//! request may be and what is held ready are bounded. A value that a client sends once and refers to later is written
//! each time: of few bytes as much is made as of headers that are sent in full, and no more.

mod hpack;

use std::{
    future::Future as _,
    io::{self, IoSlice},
    ops::ControlFlow,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf as _, BufMut as _, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};
use tonic::transport::server::{Connected, TcpConnectInfo};

use self::hpack::{Reader, Unreadable};
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

/// The headers of a request, as HTTP/2 counts them (RFC 9113, 6.5.2): what `hyper` takes.
const HEADERS_BYTES_MAX: usize = 16 << 10;
/// What HTTP/2 counts for each field besides its text.
const FIELD_BYTES: usize = 32;

/// The frames of a block: as much, and padding.
const BLOCK_BYTES_MAX: usize = HEADERS_BYTES_MAX + (8 << 10);

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
    reader: Reader,
    /// Whether the first block has shown that blocks are written anew.
    rewrites: bool,
    /// What has come and was not looked at.
    unread: BytesMut,
    /// What goes on.
    ready: BytesMut,
    has_begun: bool,
}

/// Which part of a connection comes next.
#[derive(Clone, Copy, Debug)]
enum At {
    Preface,
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

/// The headers of a block, written anew but for an authority that is none.
#[derive(Default)]
struct Fields {
    encoded: BytesMut,
    /// As HTTP/2 counts them.
    bytes: usize,
    /// Whether all are wanted. Until an authority has shown to be none, only authorities are looked for.
    is_whole: bool,
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
            if !filter.unread.is_empty() {
                filter.go_on();
                continue;
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
            filter.unread.put_slice(read.filled());
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
        Self {
            at: At::Preface,
            part: BytesMut::new(),
            block: None,
            reader: Reader::new(),
            rewrites: false,
            unread: BytesMut::new(),
            ready: BytesMut::new(),
            has_begun: false,
        }
    }
}

impl std::fmt::Debug for Filter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("Filter");
        shown.field("at", &self.at).field("rewrites", &self.rewrites).finish_non_exhaustive()
    }
}

impl Filter {
    /// Goes on by what is unread, until something is ready or there is no more.
    fn go_on(&mut self) {
        while self.ready.len() < READ_BYTES {
            let wanted = match self.at {
                At::Preface => PREFACE.len(),
                At::FrameHead => FRAME_HEAD_BYTES,
                At::Fragment(frame) => frame.length,
                At::Other(left) => {
                    let count = left.min(self.unread.len());
                    self.ready.put_slice(&self.unread.split_to(count));
                    self.at = At::Other(left - count);
                    if left > count {
                        return;
                    }
                    self.at = At::FrameHead;
                    self.has_begun = true;
                    continue;
                }
                At::Rest => {
                    self.ready.put_slice(&self.unread.split());
                    return;
                }
            };
            let count = (wanted - self.part.len()).min(self.unread.len());
            self.part.put_slice(&self.unread.split_to(count));
            if matches!(self.at, At::Preface) && !PREFACE.starts_with(&self.part) {
                // HTTP/1, or nothing that is known here.
                self.leave();
            } else if self.part.len() < wanted {
                return;
            } else {
                self.take_part();
            }
        }
    }

    /// Goes on by a part that is whole.
    fn take_part(&mut self) {
        let part = self.part.split();
        match (self.at, &mut self.block) {
            (At::FrameHead, None) => {
                let frame = Frame::read(&part);
                if frame.kind != HEADERS {
                    self.ready.put_slice(&part);
                    self.at = At::Other(frame.length);
                    return;
                }
                self.block = Some(Block {
                    stream: frame.stream,
                    ends_stream: frame.has(END_STREAM),
                    frames: part,
                    fragments: BytesMut::new(),
                });
                self.expect_fragment(frame);
            }
            (At::FrameHead, Some(block)) => {
                let frame = Frame::read(&part);
                block.frames.put_slice(&part);
                if frame.kind != CONTINUATION || frame.stream != block.stream {
                    return self.leave();
                }
                self.expect_fragment(frame);
            }
            (At::Fragment(frame), Some(block)) => {
                block.frames.put_slice(&part);
                let Some(fragment) = frame.fragment(&part) else {
                    return self.leave();
                };
                block.fragments.put_slice(fragment);
                self.at = At::FrameHead;
                if frame.has(END_HEADERS) {
                    self.take_block();
                }
            }
            // The preface; of no other part it is said that it is whole.
            _ => {
                self.ready.put_slice(&part);
                self.at = At::FrameHead;
            }
        }
    }

    fn expect_fragment(&mut self, frame: Frame) {
        let before = self.block.as_ref().map_or(0, |block| block.frames.len());
        if before + frame.length > BLOCK_BYTES_MAX {
            return self.leave();
        }
        self.at = At::Fragment(frame);
    }

    fn take_block(&mut self) {
        let Some(block) = &self.block else { return };
        let mut fields = Fields { is_whole: self.rewrites, ..Fields::default() };
        let read = self.reader.read(&block.fragments, |name, value| fields.take(name, value));
        let is_beyond = fields.bytes > HEADERS_BYTES_MAX;
        if matches!(read, Err(Unreadable)) || is_beyond || !fields.is_whole {
            return self.leave();
        }
        self.rewrites = true;
        block.write(&fields.encoded, &mut self.ready);
        self.block = None;
    }

    /// Lets all that comes go on as it is: nothing is to be done, or what is wrong by HTTP/2's own rules is for `h2` to
    /// refuse. What it can't know of what a client said before, it refuses too.
    fn leave(&mut self) {
        if let Some(block) = self.block.take() {
            self.ready.put_slice(&block.frames);
        }
        self.ready.put_slice(&self.part.split());
        self.has_begun = true;
        self.at = At::Rest;
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
    /// Takes a field, and says whether the next is wanted.
    fn take(&mut self, name: &[u8], value: &[u8]) -> ControlFlow<()> {
        self.bytes += name.len() + value.len() + FIELD_BYTES;
        let is_authority = name == b":authority";
        if is_authority && http::uri::Authority::try_from(value).is_err() {
            self.is_whole = true;
            return ControlFlow::Continue(());
        }
        // Behind the first that is no pseudo-header comes no authority.
        let is_seen = is_authority || !name.starts_with(b":");
        if self.bytes > HEADERS_BYTES_MAX || is_seen && !self.is_whole {
            return ControlFlow::Break(());
        }
        hpack::write(name, value, &mut self.encoded);
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests;
