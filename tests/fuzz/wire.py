"""Hostile P-DATA, and what is to be made of it by a second, plain reading of the standard (PS3.8 9.3, Annex E)."""

import struct
from dataclasses import dataclass
from random import Random

from tests.fuzz.bending import bent, cut, number

CT, ECHO, COMMITMENT, STEP = (
    "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.1", "1.2.840.10008.1.20.1", "1.2.840.10008.3.1.2.3.3",
)  # fmt: skip
CONTEXTS = {1: CT, 3: ECHO, 5: "1.2.840.10008.5.1.4.1.1.4", 7: COMMITMENT, 9: STEP}
"""The presentation contexts that are accepted: abstract syntax by context ID."""

C_STORE_RQ, C_STORE_RSP = 0x0001, b"\x01\x80"
_COMMAND_FIELDS = (C_STORE_RQ, 0x8001, 0x0030, 0x8030, 0x0020, 0x0010, 0x0021, 0x0100, 0x0110, 0x0120, 0x0130, 0x0140,
                   0x0150, 0x0FFF, 0x8130)  # fmt: skip
_LONGEST_PDU = 4 * 1024 * 1024

UIDS = (
    "1.2.3", "1.2.826.0.1.3680043.10.1.7", "0", "1..2", "../../../x", "/etc/passwd", "1.2.3/../../4", "1.2\0/3", ".",
    "..", "1." * 40, "9" * 64, "1" * 65, "1" * 5000, "", "1.2.3\\1.2.4", "ä.1", "\x1b$B", "1.2.3 ", "-1", "1.02", "~",
    "C:\\x", "%2e%2e%2f", "1.2.3\n", "a" * 64,
)  # fmt: skip
"""UIDs, mostly none."""


def element(tag: int, value: bytes, length: int | None = None, group: int = 0) -> bytes:
    """Encode an element in Implicit VR Little Endian; its length may be a lie."""
    return struct.pack("<HHL", group, tag, len(value) if length is None else length) + value


def uid(rng: Random) -> bytes:
    """A UID as a value."""
    encoded = rng.choice(UIDS).encode("utf-8") if rng.random() < 0.5 else b"1.2.3." + str(rng.getrandbits(30)).encode()
    return encoded + b"\0" * (len(encoded) % 2)


def command_set(rng: Random, field: int, abstract_syntax: str, *, has_data_set: bool, wrong: float) -> bytes:
    """Make a command set, a wrong one with some probability."""
    sop_class = abstract_syntax.encode() + b"\0" * (len(abstract_syntax) % 2)
    elements = {
        0x0002: sop_class,
        0x0100: struct.pack("<H", field),
        0x0110: struct.pack("<H", rng.getrandbits(16)),
        0x0700: struct.pack("<H", 0),
        0x0800: struct.pack("<H", 1 if has_data_set else 0x0101),
        0x1000: uid(rng) if rng.random() < 0.3 else b"1.2.3.%d" % (rng.getrandbits(16) | 0x10000),
    }
    if field == 0x0130:  # N-ACTION-RQ
        elements |= {0x0003: sop_class, 0x1001: b"1.2.840.10008.1.20.1.1", 0x1008: struct.pack("<H", 1)}
    elements = {tag: value + b"\0" * (len(value) % 2) for tag, value in elements.items()}
    lies: dict[int, int] = {}
    if rng.random() < wrong:
        tag = rng.choice(list(elements))
        match rng.randrange(5):
            case 0:
                del elements[tag]
            case 1:
                elements[tag] = bent(rng, elements[tag])
            case 2:
                elements[tag] = rng.choice((b"", b"\0", rng.randbytes(2), rng.randbytes(rng.randrange(40))))
            case 3:
                lies[tag] = number(rng, 4)
            case _:
                elements[rng.getrandbits(16)] = rng.randbytes(rng.randrange(20))
    body = b"".join(element(tag, value, lies.get(tag)) for tag, value in sorted(elements.items()))
    size = len(body) if rng.random() > wrong / 4 else number(rng, 4)
    encoded = element(0, struct.pack("<L", size)) + body
    return bent(rng, encoded) if rng.random() < wrong / 3 else encoded


def pdu(kind: int, body: bytes, length: int | None = None) -> bytes:
    """Encode a PDU; its length may be a lie."""
    return struct.pack(">BBL", kind, 0, len(body) if length is None else length) + body


def pdv(context_id: int, control: int, fragment: bytes, length: int | None = None) -> bytes:
    """Encode a presentation data value; its length may be a lie."""
    return struct.pack(">LBB", len(fragment) + 2 if length is None else length, context_id, control) + fragment


_INTERRUPTIONS = (
    pdu(5, bytes(4)), pdu(6, bytes(4)), pdu(7, bytes(4)), pdu(7, b"\0\0\2\1"), pdu(1, bytes(68)), pdu(2, bytes(68)),
    pdu(3, bytes(4)), pdu(4, b""), pdu(4, pdv(1, 3, b"")), pdu(0, b""), pdu(8, b"x"), pdu(255, b""), pdu(5, b""),
    pdu(4, pdv(1, 0, b"x")), pdu(7, b""),
)  # fmt: skip


def message(rng: Random, wrong: float, data: bytes | None = None) -> list[tuple[int, int, bytes]]:
    """Make a message: context ID, control header and fragment of each presentation data value."""
    field = C_STORE_RQ if rng.random() < 0.7 else rng.choice(_COMMAND_FIELDS)
    context_id = rng.choice((1, 1, 5)) if field == C_STORE_RQ else rng.choice(list(CONTEXTS))
    if rng.random() < wrong / 4:
        context_id = rng.choice((0, 2, 11, 255))
    has_data_set = rng.random() < (0.9 if field == C_STORE_RQ else 0.5)
    command = command_set(rng, field, CONTEXTS.get(context_id, CT), has_data_set=has_data_set, wrong=wrong)
    if data is None:
        data = rng.randbytes(rng.choice((0, 1, 2, 10, 100, 1000)))
    values = []
    for control, encoded in ((1, command), (0, data)) if has_data_set else ((1, command),):
        *pieces, last = cut(rng, encoded)
        values += [*((context_id, control, piece) for piece in pieces), (context_id, control | 2, last)]
    if rng.random() < wrong / 2:
        at = rng.randrange(len(values))
        context_id, control, fragment = values[at]
        match rng.randrange(6):
            case 0:
                values[at] = (context_id, rng.getrandbits(8), fragment)
            case 1:
                values[at] = (rng.getrandbits(8), control, fragment)
            case 2:
                values[at] = (context_id, control ^ rng.choice((1, 2, 3)), fragment)
            case 3:
                del values[at]
            case 4:
                values.insert(at, values[rng.randrange(len(values))])
            case _:
                values[at] = (context_id, control, b"")
    return values


def stream(rng: Random, data: bytes | None = None) -> bytes:
    """Make what follows an A-ASSOCIATE-AC: some messages in PDUs, with something wrong in most cases."""
    wrong = rng.choice((0.0, 0.1, 0.5))
    pdus: list[bytes] = []
    for _ in range(rng.choice((1, 1, 2, 3))):
        values = message(rng, wrong, data)
        while values:
            taken = rng.choice((1, 1, 1, 2, len(values)))
            lie = number(rng, 4) if rng.random() < wrong / 10 else None
            body = b"".join(pdv(*value, length=lie) for value in values[:taken])
            pdus.append(pdu(4, body, number(rng, 4) if rng.random() < wrong / 20 else None))
            del values[:taken]
    if pdus and rng.random() < wrong:
        at = rng.randrange(len(pdus))
        match rng.randrange(5):
            case 0:
                pdus.insert(at, rng.choice(_INTERRUPTIONS))
            case 1:
                pdus.insert(at, pdus[rng.randrange(len(pdus))])
            case 2:
                del pdus[at]
            case 3:
                rng.shuffle(pdus)
            case _:
                pdus[at] = bent(rng, pdus[at])
    raw = b"".join(pdus)
    return bent(rng, raw) if rng.random() < wrong / 3 else raw


@dataclass(frozen=True)
class Store:
    """A C-STORE request that came whole."""

    context_id: int
    sop_instance_uid: bytes
    data_set: bytes


class _EndError(Exception):
    """Here the peer broke the protocol, or the stream ends."""


Value = tuple[int, int, bytes]


def stores(raw: bytes) -> list[Store]:
    """Read a stream: the C-STORE requests that come whole before the first thing that is wrong."""
    reader = _Reader(raw)
    found: list[Store] = []
    try:
        while True:
            request = reader.message()
            if request is not None:
                found.append(request)
    except _EndError:
        return found


class _Reader:
    """A second reader, as plain as can be; what it may not go past is the end."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._at = 0
        self._values: list[Value] = []

    def message(self) -> Store | None:
        """Read a message, from the beginning of a PDU; None for one that goes the library's way."""
        self._values = self._pdu()
        context_id, encoded = self._command_set()
        command = fields(encoded)
        field, kind = command.get(0x0100, b""), command.get(0x0800, b"")
        if len(field) != 2 or len(kind) != 2:
            return None  # how to answer that, the library knows
        has_data_set = kind != b"\x01\x01"
        if field != b"\x01\x00" or len(command.get(0x0110, b"")) != 2:
            if has_data_set:
                self._pass_over()
            return None
        if context_id not in CONTEXTS or (self._values and not has_data_set):
            raise _EndError
        data_set = self._data_set(context_id) if has_data_set else b""
        return Store(context_id, command.get(0x1000, b"").rstrip(b"\0 "), data_set)

    def _command_set(self) -> tuple[int, bytes]:
        encoded = b""
        while True:
            while not self._values:
                self._values = self._pdu()
            context_id, control, fragment = self._values.pop(0)
            if not control & 1:
                raise _EndError
            encoded += fragment
            if control & 2:
                return context_id, encoded

    def _pass_over(self) -> None:
        while not any(control & 2 and not control & 1 for _, control, _ in self._values):
            self._values = self._pdu()

    def _data_set(self, context_id: int) -> bytes:
        data, has_ended = b"", False
        while not has_ended:
            for other_id, control, fragment in self._values:
                if has_ended or control & 1 or other_id != context_id:
                    raise _EndError
                data += fragment
                has_ended = bool(control & 2)
            if not has_ended:
                self._values = self._pdu()
        return data

    def _pdu(self) -> list[Value]:
        """Take the next PDU apart; one that is not sound is the end, whatever was good in it."""
        head, self._at = self._raw[self._at : self._at + 6], self._at + 6
        length = int.from_bytes(head[2:])
        body, self._at = self._raw[self._at : self._at + length], self._at + length
        if len(head) < 6 or head[0] != 4 or length > _LONGEST_PDU or len(body) < length:
            raise _EndError
        values = []
        while body:
            length = int.from_bytes(body[:4])
            if length < 2 or len(body) < 4 + length:
                raise _EndError
            values.append((body[4], body[5], body[6 : 4 + length]))
            body = body[4 + length :]
        return values


def fields(encoded: bytes) -> dict[int, bytes]:
    """Take a command set apart; nothing if it is none."""
    found, at = {}, 0
    while at < len(encoded):
        if at + 8 > len(encoded):
            return {}
        group, tag, length = struct.unpack_from("<HHL", encoded, at)
        if group or at + 8 + length > len(encoded):
            return {}
        found[tag] = encoded[at + 8 : at + 8 + length]
        at += 8 + length
    return found
