"""Pictures of text have few colours: the same picture with 256 of them takes a third of the bytes."""

import struct
import zlib
from collections import Counter

SIGNATURE = b"\x89PNG\r\n\x1a\n"
COLOURS_MAX = 256


def chunks(data):
    at = len(SIGNATURE)
    while at < len(data):
        length, = struct.unpack(">I", data[at:at + 4])
        yield data[at + 4:at + 8], data[at + 8:at + 8 + length]
        at += 12 + length


def paeth(left, above, corner):
    guess = left + above - corner
    far = (abs(guess - left), abs(guess - above), abs(guess - corner))
    return (left, above, corner)[far.index(min(far))]


def lines(data):
    """The lines of a picture with 8 bits a channel, as Chromium takes them: lists of colours, without alpha."""
    width, height, channels, packed = 0, 0, 0, b""
    for kind, chunk in chunks(data):
        if kind == b"IHDR":
            width, height, _, colour = struct.unpack(">IIBB", chunk[:10])
            channels = {2: 3, 6: 4}[colour]
        elif kind == b"IDAT":
            packed += chunk
    raw, length, above = zlib.decompress(packed), width * channels, bytes(width * channels)
    for start in range(0, height * (length + 1), length + 1):
        how, line = raw[start], bytearray(raw[start + 1:start + 1 + length])
        # What was said is the difference from what stands left, above, or both.
        for at in range(length if how else 0):
            left, corner = (line[at - channels], above[at - channels]) if at >= channels else (0, 0)
            base = (left, above[at], (left + above[at]) // 2, paeth(left, above[at], corner))[how - 1]
            line[at] = (line[at] + base) & 255
        yield [bytes(line[at:at + 3]) for at in range(0, length, channels)]
        above = line


def palette(counts):
    """For each colour the one that stands for it: the commonest of those that are about the same."""
    for step in range(1, 256):
        commonest = {}
        for colour, count in counts.items():
            about = tuple(part // step for part in colour)
            commonest[about] = max(commonest.get(about, (0, b"")), (count, colour))
        if len(commonest) <= COLOURS_MAX:
            return {colour: commonest[tuple(part // step for part in colour)][1] for colour in counts}


def small(data):
    """The same picture with few colours, and a list of these."""
    picture = list(lines(data))
    chosen = palette(Counter(colour for line in picture for colour in line))
    listed = sorted(set(chosen.values()))
    places = {colour: listed.index(instead) for colour, instead in chosen.items()}
    body = zlib.compress(b"".join(b"\0" + bytes(places[colour] for colour in line) for line in picture), 9)
    head = struct.pack(">IIBBBBB", len(picture[0]), len(picture), 8, 3, 0, 0, 0)
    said = SIGNATURE
    for kind, chunk in ((b"IHDR", head), (b"PLTE", b"".join(listed)), (b"IDAT", body), (b"IEND", b"")):
        said += struct.pack(">I", len(chunk)) + kind + chunk + struct.pack(">I", zlib.crc32(kind + chunk))
    return said
