//! HPACK (RFC 7541), as far as blocks of headers are read here and written anew: who reads stops where it has seen
//! enough, and what is written refers to nothing that was written before.

use std::ops::ControlFlow;

use bytes::{BufMut as _, BytesMut};
use httlib_hpack::Decoder;

/// What may be kept of headers from one request to the next, unless a server says otherwise.
const TABLE_BYTES_MAX: u32 = 4_096;

/// Integers may be longer by so many bytes than their prefix: 28 bits are more than anything here is.
const INTEGER_BYTES_MAX: usize = 4;

/// Reads the blocks of one connection, in their order.
pub(super) struct Reader(Decoder<'static>);

/// A block that breaks the rules.
#[derive(Debug)]
pub(super) struct Unreadable;

// === impl Reader ===

impl Reader {
    pub(super) fn new() -> Self {
        Self(Decoder::with_dynamic_size(TABLE_BYTES_MAX))
    }

    /// Reads a block, field by field, for as long as `take` wants more. Who has broken off reads no other block.
    ///
    /// # Errors
    /// Where it can't be read.
    pub(super) fn read(
        &mut self,
        mut block: &[u8],
        mut take: impl FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), Unreadable> {
        while !block.is_empty() {
            // The decoder takes for granted that what it is given is whole, and moves all that it is not asked for.
            let (field, rest) = block.split_at(length(block)?);
            block = rest;
            let mut read = Vec::with_capacity(1);
            let decoded = self.0.decode_exact(&mut field.to_vec(), &mut read);
            decoded.map_err(|_| Unreadable)?;
            // A new size of its table is no field.
            if read.iter().any(|(name, value, _)| take(name, value).is_break()) {
                break;
            }
        }
        Ok(())
    }
}

/// How many bytes the first field of a block takes (6).
fn length(block: &[u8]) -> Result<usize, Unreadable> {
    let mut rest = block;
    let first = block.first().ok_or(Unreadable)?;
    match first {
        // An indexed field.
        0x80.. => _ = integer(&mut rest, 7)?,
        // A new size of the table.
        0x20..0x40 => _ = integer(&mut rest, 5)?,
        // A literal: kept, not kept, never to be kept.
        _ => {
            if integer(&mut rest, if first & 0x40 != 0 { 6 } else { 4 })? == 0 {
                string(&mut rest)?;
            }
            string(&mut rest)?;
        }
    }
    Ok(block.len() - rest.len())
}

/// Writes a field as a literal that is not kept.
pub(super) fn write(name: &[u8], value: &[u8], to: &mut BytesMut) {
    to.put_u8(0);
    for text in [name, value] {
        let mut length = text.len();
        if length < 0x7f {
            to.put_u8(length as u8);
        } else {
            to.put_u8(0x7f);
            length -= 0x7f;
            while length >= 0x80 {
                to.put_u8(length as u8 | 0x80);
                length >>= 7;
            }
            to.put_u8(length as u8);
        }
        to.put_slice(text);
    }
}

/// An integer with a prefix of so many bits (5.1).
fn integer(from: &mut &[u8], prefix: u8) -> Result<u32, Unreadable> {
    let (first, mut rest) = from.split_first().ok_or(Unreadable)?;
    let mask = 0xff >> (8 - prefix);
    let mut value = u32::from(first & mask);
    if value == u32::from(mask) {
        for at in 0.. {
            let (byte, behind) = rest.split_first().ok_or(Unreadable)?;
            rest = behind;
            value += u32::from(byte & 0x7f) << (7 * at);
            if byte & 0x80 == 0 {
                break;
            }
            if at + 1 == INTEGER_BYTES_MAX {
                return Err(Unreadable);
            }
        }
    }
    *from = rest;
    Ok(value)
}

/// Goes past a string (5.2).
fn string(from: &mut &[u8]) -> Result<(), Unreadable> {
    let length = usize::try_from(integer(from, 7)?).map_err(|_| Unreadable)?;
    *from = from.get(length..).ok_or(Unreadable)?;
    Ok(())
}
