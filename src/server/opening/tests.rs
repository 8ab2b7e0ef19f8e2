//! What goes on from a connection, however it is cut, and what does not begin.

use loona_hpack::{Decoder, Encoder};
use proptest::{collection::vec, prelude::*};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

const PLAIN: Shape = Shape { padding: None, has_priority: false, pieces: 1, is_packed: false };

type Headers = Vec<(Vec<u8>, Vec<u8>)>;

/// How a block of headers is cut and filled up.
#[derive(Clone, Debug)]
struct Shape {
    padding: Option<u8>,
    has_priority: bool,
    pieces: usize,
    /// Whether strings are sent in the Huffman code, and fields kept for the next requests.
    is_packed: bool,
}

fn shape() -> impl Strategy<Value = Shape> {
    (proptest::option::of(any::<u8>()), any::<bool>(), 1..4_usize, any::<bool>()).prop_map(
        |(padding, has_priority, pieces, is_packed)| Shape {
            padding,
            has_priority,
            pieces,
            is_packed,
        },
    )
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

/// Fields as Go's clients send them: in the Huffman code, with a name that is known where it is.
fn packed(fields: &Headers) -> Vec<u8> {
    let mut block = Vec::new();
    let string = |block: &mut Vec<u8>, text: &[u8]| {
        let mut code = Vec::new();
        httlib_huffman::encode(text, &mut code).expect("any byte has a code");
        assert!(code.len() < 0x7f, "it is short");
        block.push(0x80 | u8::try_from(code.len()).expect("it is short"));
        block.extend(code);
    };
    for (name, value) in fields {
        match &name[..] {
            b":authority" => block.push(0x40 | 1),
            name => {
                block.push(0x40);
                string(&mut block, name);
            }
        }
        string(&mut block, value);
    }
    block
}

/// A connection with some requests, and what lies between their headers.
fn connection(authority: &[u8], shapes: &[Shape]) -> Vec<u8> {
    // It keeps no field whose name is known, and so what is packed does not disturb it.
    let is_packed = shapes.first().is_some_and(|shape| shape.is_packed);
    let mut encoder = Encoder::new();
    let mut bytes = PREFACE.to_vec();
    bytes.extend(frame(4, 0, 0, &[]));
    for (at, shape) in shapes.iter().enumerate() {
        let fields = fields(authority, at);
        let all = fields.iter().map(|(name, value)| (&name[..], &value[..]));
        let block = if is_packed { packed(&fields) } else { encoder.encode(all) };
        let stream = 2 * u32::try_from(at).expect("they are few") + 1;
        bytes.extend(headers(&block, stream, shape));
        bytes.extend(frame(0, END_STREAM, stream, &vec![7; 300 * at]));
    }
    bytes
}

/// What goes on of `bytes`, which come in such cuts, and the most that was held ready.
fn pass(bytes: &[u8], cuts: &[usize]) -> (Vec<u8>, usize) {
    let (mut filter, mut rest, mut passed, mut most) = (Filter::default(), bytes, Vec::new(), 0);
    for cut in cuts.iter().cycle() {
        let (now, later) = rest.split_at((*cut).min(rest.len()));
        filter.unread.put_slice(now);
        while !filter.unread.is_empty() {
            filter.go_on();
            most = most.max(filter.ready.len());
            passed.extend(filter.ready.split());
        }
        rest = later;
        if rest.is_empty() {
            break;
        }
    }
    (passed, most)
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
        prop_assert_eq!(pass(&bytes, &cuts).0, bytes);
    }

    #[test]
    fn an_authority_that_is_none_is_left_out_and_nothing_else(
        shapes in vec(shape(), 1..4),
        cuts in vec(1..200_usize, 1..5),
        authority in "(|a/b/c|/run/etcd\\.sock|%2Frun%2Fetcd\\.sock/|#initially=\\[10\\.0\\.0\\.1:2379\\])",
    ) {
        let (passed, _) = pass(&connection(authority.as_bytes(), &shapes), &cuts);
        let (blocks, others) = read(&passed);
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

    /// Nothing panics or hangs, and what is no HTTP/2 goes on as it came.
    #[test]
    fn any_bytes_may_come(bytes in vec(any::<u8>(), 0..400), cuts in vec(1..99_usize, 1..5)) {
        if !PREFACE.starts_with(&bytes) {
            prop_assert_eq!(&pass(&bytes, &cuts).0, &bytes);
        }
        let first = connection(b"a/b", &[PLAIN]);
        for before in [&PREFACE[..], &first] {
            let _ = pass(&[before, &bytes].concat(), &cuts);
            let _ = pass(&[before, &headers(&bytes, 9, &PLAIN)].concat(), &cuts);
        }
        // A string in the code, as the value of an authority.
        let length = u8::try_from(bytes.len().min(0x7e)).expect("it is short");
        let coded = [&[0x41, 0x80 | length], &bytes[..usize::from(length)]].concat();
        let _ = pass(&[&first[..], &headers(&coded, 9, &PLAIN)].concat(), &cuts);
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
        // For the rest of it hyper waits.
        (b"GET /health HTTP/1.1\r\nHost: a\r\n", true),
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

/// Few bytes may stand for many, which were sent before. What is more than a server takes is not made of them, and of
/// what it takes no more is made at once than it reads.
#[test]
fn little_that_stands_for_much_makes_nobody_hold_it() {
    let mut encoder = Encoder::new();
    let long = vec![b'x'; 3_900];
    let fields: [(&[u8], &[u8]); 2] = [(b":authority", b"a/b"), (b"long", &long)];
    let first = headers(&encoder.encode(fields), 1, &PLAIN);
    // The newest of the table, some times, in each of many blocks.
    let again = headers(&[0x80 | 62; 4], 3, &PLAIN);
    let bytes = [&PREFACE[..], &first, &again.repeat(1_000)].concat();
    let (passed, most) = pass(&bytes, &[bytes.len()]);
    assert!(passed.len() > 15_000_000, "{} bytes went on", passed.len());
    assert!(most < READ_BYTES + 2 * HEADERS_BYTES_MAX, "{most} bytes were held");

    let too_often = headers(&[0x80 | 62; 10_000], 3, &PLAIN);
    let tiny = headers(&[0x80 | 2; 20_000], 3, &PLAIN);
    for block in [too_often, tiny] {
        let bytes = [&PREFACE[..], &first, &block].concat();
        let (passed, _) = pass(&bytes, &[bytes.len()]);
        assert!(passed.ends_with(&block), "it was written anew, and not left to be refused");
    }
}

/// Whoever connects costs little: of a first block that is in order nothing but its beginning is read.
#[test]
fn nothing_is_read_behind_an_authority_that_is_in_order() {
    let mut reader = Reader::new();
    let block = [packed(&vec![(b":authority".to_vec(), b"a.b".to_vec())]), vec![0xff; 20]].concat();
    let mut fields = Fields::default();
    let read = reader.read(&block, |name, value| fields.take(name, value));
    assert!(read.is_ok(), "what is behind it can't be read");
}
