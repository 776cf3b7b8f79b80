"""Hostile STOW-RS requests: head and body as they stand on the wire (PS3.18 10.5, RFC 9112, RFC 2046)."""

import struct
from random import Random

from tests.fuzz.bending import bent, number
from tests.fuzz.datasets import SYNTAXES, data_set
from tests.fuzz.wire import CT, uid

_HEADERS = (
    b"Content-Length: 5\r\n", b"Content-Length: -1\r\n", b"Content-Length: 99999999999999999999\r\n",
    b"Content-Length: 1_0\r\n", b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip, chunked\r\n",
    b"Content-Encoding: gzip\r\n", b"Content-Type: text/plain\r\n", b"\r\n", b" folded\r\n", b"\0: \0\r\n",
)  # fmt: skip
_PART_HEADERS = (
    b"Content-Type: application/dicom", b"Content-Type: application/dicom; transfer-syntax=1.2", b"content-type:",
    b"Content-Type: image/jpeg", b"Content-Transfer-Encoding: base64", b"Content-Type: \xff\xfe", b"nonsense", b"",
    b"X: " + b"y" * 20_000,
)  # fmt: skip


def file(rng: Random) -> bytes:
    """Make a DICOM file (PS3.10) with a hostile head or data set."""
    syntax = rng.choice(SYNTAXES)
    pairs = ((2, CT.encode() + b"\0"), (3, uid(rng)), (0x10, syntax.encode() + b"\0" * (len(syntax) % 2)))
    group = b"".join(struct.pack("<HH2sH", 2, tag, b"UI", len(value)) + value for tag, value in pairs)
    size = len(group) if rng.random() < 0.9 else number(rng, 4)
    head = bytes(128) + b"DICM" + struct.pack("<HH2sHL", 2, 0, b"UL", 4, size) + group
    if rng.random() < 0.2:
        head = bent(rng, head)
    return head + data_set(rng, syntax)


def request(rng: Random) -> bytes:
    """Make a request's headers and body."""
    boundary = rng.choice((b"cut", b"-", b"--", b"a b", b"x" * 70, b"+'()"))
    pieces = []
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        head = rng.choice(_PART_HEADERS) if rng.random() < 0.3 else _PART_HEADERS[0]
        body = file(rng) if rng.random() < 0.8 else rng.randbytes(rng.randrange(200))
        pieces.append(b"\r\n--" + boundary + b"\r\n" + head + b"\r\n\r\n" + body)
    body = b"".join(pieces)[2:] + b"\r\n--" + boundary + b"--\r\n"
    if rng.random() < 0.2:
        body = bent(rng, body)
    if rng.random() < 0.3:
        chunks = []
        for start in range(0, len(body), step := rng.choice((1000, 4096, max(1, len(body))))):
            chunk = body[start : start + step]
            chunks.append(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        body = b"".join(chunks) + b"0\r\n\r\n"
        if rng.random() < 0.3:
            body = bent(rng, body)
        framing = b"Transfer-Encoding: chunked\r\n"
    else:
        framing = b"Content-Length: %d\r\n" % (len(body) if rng.random() < 0.9 else number(rng, 4))
    head = b'Content-Type: multipart/related; type="application/dicom"; boundary="' + boundary + b'"\r\n' + framing
    if rng.random() < 0.15:
        head += rng.choice(_HEADERS)
    if rng.random() < 0.1:
        head = bent(rng, head)
    return head + b"\r\n" + body
