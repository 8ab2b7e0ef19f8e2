//! What goes on from a connection, however it is cut, and what does not begin.

use proptest::{collection::vec, prelude::*};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

type Headers = Vec<(Vec<u8>, Vec<u8>)>;

/// How a block of headers is cut and filled up.
#[derive(Clone, Debug)]
struct Shape {
    padding: Option<u8>,
    has_priority: bool,
    pieces: usize,
}

fn shape() -> impl Strategy<Value = Shape> {
    (proptest::option::of(any::<u8>()), any::<bool>(), 1..4_usize)
        .prop_map(|(padding, has_priority, pieces)| Shape { padding, has_priority, pieces })
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    bytes.put_uint(payload.len() as u64, 3);
    bytes.put_u8(kind);
    bytes.put_u8(flags);
    bytes.put_u32(stream);
    bytes.put_slice(payload);
    bytes.to_vec()
}

/// The frames of a block.
fn headers(block: &[u8], stream: u32, shape: &Shape) -> Vec<u8> {
    let mut bytes = Vec::new();
    let pieces: Vec<&[u8]> = block.chunks(block.len().div_ceil(shape.pieces).max(1)).collect();
    for (at, piece) in pieces.iter().enumerate() {
        let last = if at + 1 == pieces.len() { END_HEADERS } else { 0 };
        if at > 0 {
            bytes.extend(frame(CONTINUATION, last, stream, piece));
            continue;
        }
        let (mut flags, mut payload) = (last | END_STREAM, Vec::new());
        if let Some(padding) = shape.padding {
            flags |= PADDED;
            payload.push(padding);
        }
        if shape.has_priority {
            flags |= PRIORITY;
            payload.extend([0; 5]);
        }
        payload.extend(*piece);
        payload.extend(vec![0; usize::from(shape.padding.unwrap_or(0))]);
        bytes.extend(frame(HEADERS, flags, stream, &payload));
    }
    bytes
}

fn fields(authority: &[u8], at: usize) -> Headers {
    let number = at.to_string();
    let fields: [(&[u8], &[u8]); 5] = [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", b"/etcdserverpb.KV/Range"),
        (b":authority", authority),
        (b"number", number.as_bytes()),
    ];
    fields.map(|(name, value)| (name.to_vec(), value.to_vec())).to_vec()
}

/// A connection with some requests, and what lies between their headers.
fn connection(authority: &[u8], shapes: &[Shape]) -> Vec<u8> {
    let mut encoder = Encoder::new();
    let mut bytes = PREFACE.to_vec();
    bytes.extend(frame(4, 0, 0, &[]));
    for (at, shape) in shapes.iter().enumerate() {
        let fields = fields(authority, at);
        let block = encoder.encode(fields.iter().map(|(name, value)| (&name[..], &value[..])));
        let stream = 2 * u32::try_from(at).expect("they are few") + 1;
        bytes.extend(headers(&block, stream, shape));
        bytes.extend(frame(0, END_STREAM, stream, &vec![7; 300 * at]));
    }
    bytes
}

fn pass(bytes: &[u8], cuts: &[usize]) -> io::Result<Vec<u8>> {
    let (mut filter, mut rest) = (Filter::default(), bytes);
    for cut in cuts.iter().cycle() {
        let (now, later) = rest.split_at((*cut).min(rest.len()));
        filter.take(now)?;
        rest = later;
        if rest.is_empty() {
            break;
        }
    }
    Ok(filter.ready.to_vec())
}

/// The blocks of headers of a connection, and all its other frames.
fn read(bytes: &[u8]) -> (Vec<Headers>, Vec<Vec<u8>>) {
    let mut rest = bytes.strip_prefix(PREFACE).expect("it begins so");
    let (mut decoder, mut blocks, mut others) = (Decoder::new(), Vec::new(), Vec::new());
    while !rest.is_empty() {
        let (head, behind) = rest.split_at(FRAME_HEAD_BYTES);
        let frame = Frame::read(head);
        let (payload, behind) = behind.split_at(frame.length);
        rest = behind;
        if frame.kind == HEADERS {
            assert!(frame.has(END_HEADERS) && frame.has(END_STREAM));
            blocks.push(decoder.decode(payload).expect("it can be read"));
        } else {
            others.push([head, payload].concat());
        }
    }
    (blocks, others)
}

proptest! {
    #[test]
    fn what_is_in_order_goes_on_as_it_came(
        shapes in vec(shape(), 1..4),
        cuts in vec(1..200_usize, 1..5),
        authority in "(localhost|127\\.0\\.0\\.1:2379|\\[::1\\]:2379|a\\.b)",
    ) {
        let bytes = connection(authority.as_bytes(), &shapes);
        prop_assert_eq!(pass(&bytes, &cuts).expect("it is in order"), bytes);
    }

    #[test]
    fn an_authority_that_is_none_is_left_out_and_nothing_else(
        shapes in vec(shape(), 1..4),
        cuts in vec(1..200_usize, 1..5),
        authority in "(|a/b/c|/run/etcd\\.sock|%2Frun%2Fetcd\\.sock/|#initially=\\[10\\.0\\.0\\.1:2379\\])",
    ) {
        let passed = pass(&connection(authority.as_bytes(), &shapes), &cuts);
        let (blocks, others) = read(&passed.expect("it can be read"));
        prop_assert_eq!(blocks.len(), shapes.len());
        for (at, block) in blocks.into_iter().enumerate() {
            let mut meant = fields(authority.as_bytes(), at);
            meant.remove(3);
            prop_assert_eq!(block, meant);
        }
        prop_assert_eq!(others.len(), shapes.len() + 1);
        for (at, other) in others[1..].iter().enumerate() {
            prop_assert_eq!(other.len(), FRAME_HEAD_BYTES + 300 * at);
        }
    }

    /// Nothing panics, and what is no HTTP/2 goes on as it came.
    #[test]
    fn any_bytes_may_come(bytes in vec(any::<u8>(), 0..400), cuts in vec(1..99_usize, 1..5)) {
        let expected = if bytes.is_empty() { Vec::new() } else { bytes.clone() };
        if !PREFACE.starts_with(&bytes) {
            prop_assert_eq!(pass(&bytes, &cuts).expect("nobody reads it"), expected);
        }
        let first = connection(b"a/b", &[Shape { padding: None, has_priority: false, pieces: 1 }]);
        for before in [&PREFACE[..], &first] {
            let _ = pass(&[before, &bytes].concat(), &cuts);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_does_not_begin_ends_and_what_has_begun_stays() {
    let begun = [PREFACE.to_vec(), frame(4, 0, 0, &[])].concat();
    for (sent, has_begun) in [
        (&b""[..], false),
        (&PREFACE[..7], false),
        (PREFACE, false),
        (&begun[..begun.len() - 1], false),
        (&begun, true),
        (b"GET /health HTTP/1.1\r\nHost: a\r\n", false),
        (b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n", true),
        (b"PRI\n", false),
    ] {
        let (near, mut far) = tokio::io::duplex(1_000);
        let mut opening = Opening::new(Secured::Left(near));
        far.write_all(sent).await.expect("it is open");
        let mut came = vec![0; 1_000];
        let reading = async {
            loop {
                if opening.read(&mut came).await? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
        };
        let ended: Result<io::Result<std::convert::Infallible>, _> =
            tokio::time::timeout(REQUEST_TIME_MAX * 10, reading).await;
        assert_eq!(ended.is_err(), has_begun, "{:?}: {ended:?}", sent.escape_ascii());
        if let Ok(error) = ended {
            assert_eq!(error.expect_err("it goes on").kind(), io::ErrorKind::TimedOut);
        }
    }
}

/// Few bytes that stand for many are no way to have a server hold them.
#[test]
fn what_is_too_large_ends_the_connection_once_it_is_written_anew() {
    let mut encoder = Encoder::new();
    let long = vec![b'x'; 3_000];
    let fields: [(&[u8], &[u8]); 2] = [(b":authority", b"a/b"), (b"long", &long)];
    let first = encoder.encode(fields);
    // The newest of the table, again and again.
    let again = vec![0x80 | 62; 10_000];
    let plain = Shape { padding: None, has_priority: false, pieces: 1 };
    let bytes = [PREFACE.to_vec(), headers(&first, 1, &plain), headers(&again, 3, &plain)].concat();
    let error = pass(&bytes, &[100]).expect_err("30 MB of headers are taken");
    assert!(error.to_string().contains("too large"), "{error}");
}
