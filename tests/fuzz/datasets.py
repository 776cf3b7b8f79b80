"""Hostile data sets: headers of every encoding with values, lengths, VRs and nesting that nobody should send."""

import struct
import zlib
from functools import cache
from random import Random

from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from tests.fuzz.bending import bent, number
from tests.fuzz.wire import UIDS

SYNTAXES = (
    ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian,
    "1.2.840.10008.1.2.4.90", "1.2.840.113619.5.2",
)  # fmt: skip
"""The encodings, and two of which only the name is another."""

_LONG = {"OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"}  # PS3.5 7.1.2
_VRS = (
    *sorted(_LONG),
    "UI",
    "PN",
    "LO",
    "SH",
    "US",
    "SL",
    "DS",
    "IS",
    "DA",
    "AT",
    "FD",
    "CS",
    "AE",
    "xx",
    "\0\0",
    "ZZ",
)

Element = tuple[int, str, bytes]

_HEADER: dict[int, tuple[str, bytes]] = {
    0x00080005: ("CS", b"ISO_IR 100"),
    0x00080008: ("CS", b"ORIGINAL\\PRIMARY\\AXIAL "),
    0x00080016: ("UI", CTImageStorage.encode() + b"\0"),
    0x00080018: ("UI", b"1.2.826.1\0"),
    0x00080060: ("CS", b"CT"),
    0x0008103E: ("LO", b"Head "),
    0x00081140: ("SQ", b""),
    0x00100010: ("PN", b"Fuzz^Sample "),
    0x00100020: ("LO", b"FUZZ-1"),
    0x00100021: ("LO", b"HOSPITAL"),
    0x00100030: ("DA", b"19700101"),
    0x00190010: ("LO", b"PRIVATE "),
    0x00191001: ("UN", b"\1\2\3\4"),
    0x0020000D: ("UI", b"1.2.826.2\0"),
    0x0020000E: ("UI", b"1.2.826.3\0"),
    0x00280002: ("US", struct.pack("<H", 1)),
    0x00280010: ("US", struct.pack("<H", 4)),
    0x00280011: ("US", struct.pack("<H", 4)),
    0x00280100: ("US", struct.pack("<H", 16)),
    0x7FE00010: ("OW", bytes(32)),
}
_LATE = (0x00020010, 0x00000002, 0x7FE00008, 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD, 0xFFFCFFFC, 0x00080005, 0xFFFFFFFF)

_VALUES = (
    b"", b"\0", b"\0\0", b" ", b"\\", b"\\\\\\", b"../../x ", b"/etc/passwd ", b"\x1b$B\x1b(B", b"\xff\xfe\xfd\xfc",
    "ÄÖÜ山田^太郎".encode(), b"ISO 2022 IR 87\\ISO 2022 IR 159", b"\\ISO 2022 IR 149", b"ISO_IR 192",
    b"no such charset ", b"GB18030 ", b"\xed\xa0\x80 ", b"a\0b\0c\0", b"\n\r\t\x1b", b"'; DROP TABLE instance; --",
    b"{}%s%n${jndi:x}",
    b"\xfe\xff\0\xe0\xff\xff\xff\xff", b"\xfe\xff\xdd\xe0\0\0\0\0", b"99999999999999999999", b"1e999 ", b"nan ", b"-0",
)  # fmt: skip
_CHARSETS = (
    b"ISO_IR 192", b"ISO 2022 IR 6\\ISO 2022 IR 87", b"\\ISO 2022 IR 58", b"GB18030 ", b"GBK ", b"ISO_IR 13 ",
    b"utf-7 ", b"rot13 ", b"zlib", b"idna", b"punycode", b"undefined ", b"base64", b"ISO_IR 1000", b"\\\\", b"\0\0",
    b"unicode_escape",
)  # fmt: skip


def encode(elements: list[Element], syntax: str, lies: dict[int, int] | None = None) -> bytes:
    """Encode elements, each of which may say another length; values are little endian whatever the syntax."""
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    out = []
    for tag, vr, value in elements:
        length = (lies or {}).get(tag, len(value))
        group, number_ = tag >> 16, tag & 0xFFFF
        if syntax == ImplicitVRLittleEndian or group == 0xFFFE:
            out.append(struct.pack(f"{order}HHL", group, number_, length & 0xFFFFFFFF))
        elif vr in _LONG:
            out.append(struct.pack(f"{order}HH2sHL", group, number_, vr.encode(), 0, length & 0xFFFFFFFF))
        else:
            out.append(struct.pack(f"{order}HH2sH", group, number_, vr.encode("latin-1"), length & 0xFFFF))
        out.append(value[::-1] if order == ">" and vr == "US" else value)
    encoded = b"".join(out)
    return _deflated(encoded) if syntax == DeflatedExplicitVRLittleEndian else encoded


def nested(depth: int, syntax: str, *, closed: bool, vr: str = "SQ") -> bytes:
    """Encode the value of a sequence in whose one item there is a sequence, and so on; undefined lengths throughout."""
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    item = struct.pack(f"{order}HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)
    head = struct.pack(f"{order}HH", 0x0008, 0x1140)
    if syntax == ImplicitVRLittleEndian:
        head += b"\xff\xff\xff\xff"
    else:
        head += vr.encode() + b"\0\0\xff\xff\xff\xff"
    ends = struct.pack(f"{order}HHLHHL", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
    return (item + head) * depth + item + (ends * (depth + 1) if closed else b"")


@cache
def _deep(depth: int, syntax: str, closed: bool, vr: str) -> bytes:
    return nested(depth, syntax, closed=closed, vr=vr)


def decoded() -> list[Element]:
    """The elements of a data set as it should be."""
    return [(tag, vr, value) for tag, (vr, value) in _HEADER.items()]


def valid(syntax: str) -> bytes:
    """A data set as it should be."""
    return encode(decoded(), syntax)


def data_set(rng: Random, syntax: str) -> bytes:
    """Make a data set; most are wrong in one way or some, few in none."""
    own = b"1.2.826.%d\0" % (rng.getrandbits(24) | 0x1000000)
    elements = [(tag, vr, own if tag == 0x00080018 else value) for tag, vr, value in decoded()]
    lies: dict[int, int] = {}
    for _ in range(rng.choice((0, 1, 1, 2, 3, 5))):
        _spoil(rng, elements, lies, syntax)
    encoded = encode(elements, syntax, lies)
    if rng.random() < 0.2:
        encoded = bent(rng, encoded)
    if rng.random() < 0.02:
        encoded = encoded[: rng.randrange(len(encoded) + 1)]
    return encoded


def _spoil(rng: Random, elements: list[Element], lies: dict[int, int], syntax: str) -> None:
    at = rng.randrange(len(elements)) if elements else 0
    tag, vr, value = elements[at] if elements else (0x00080018, "UI", b"")
    match rng.randrange(12):
        case 0 | 1:
            uids = [uid.encode() + b"\0" * (len(uid.encode()) % 2) for uid in UIDS]
            elements[at : at + 1] = [(tag, vr, rng.choice((*_VALUES, *uids)))]
        case 2:
            elements[at : at + 1] = [(tag, vr, bent(rng, value))]
        case 3:
            elements[at : at + 1] = [(tag, rng.choice(_VRS), value)]
        case 4:
            lies[tag] = number(rng, 4)
        case 5:
            del elements[at : at + 1]
        case 6:
            elements.insert(at, (rng.choice((tag, *_LATE, rng.getrandbits(32))), rng.choice(_VRS), rng.randbytes(4)))
        case 7:
            elements.insert(at, (0x00080005, "CS", rng.choice(_CHARSETS)))
        case 8:
            other = rng.randrange(len(elements) + 1)
            elements.insert(other, (tag, vr, value))
        case 9:
            depth = rng.choice((1, 2, 3, 10, 100)) if rng.random() < 0.97 else 10_000
            inside = rng.choice(("SQ", "UN"))
            tag = rng.choice((0x00081140, 0x00091001, tag))
            elements.insert(at, (tag, inside, _deep(depth, syntax, rng.random() < 0.7, inside)))
            lies[tag] = rng.choice((0xFFFFFFFF, 0xFFFFFFFF, 0, 1000))
        case 10:
            elements.insert(at, (tag, vr, rng.randbytes(rng.choice((1, 2, 100, 5000)))))
        case _:
            rng.shuffle(elements)


def _deflated(data: bytes) -> bytes:
    deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return deflate.compress(data) + deflate.flush()
