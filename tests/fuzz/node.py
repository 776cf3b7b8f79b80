"""A real node under fire: whole associations over sockets, and what it is like after each batch of them."""

import contextlib
import re
import socket
import struct
import time
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tests.acceptance.node import Node, node
from tests.dimse import HOST, free_port
from tests.fuzz import datasets, wire
from tests.fuzz.bending import bent, number
from tests.fuzz.wire import element, pdu, pdv
from tests.stored import faults

_SECONDS = 1.0  # within which a C-ECHO is answered
_PATIENCE = 10.0  # until a connection has ended, and what came over it is stored or gone
_GROWTH, _WARMING_UP = 0.1, 10  # of the memory; batches

# Nothing of a patient, and nothing that the receiver did not reckon with.
_UNFORESEEN = re.compile(r"nobody foresaw|nobody expected|Error at |Exception at |Traceback|Fuzz\^Sample|FUZZ-1\b")

# How an input ends, by its first byte.
_FINISHED, _CLOSED, _RESET, _LEFT_OPEN = range(4)

_VERSION = b"\0\1\0\0"


def _item(kind: int, content: bytes, length: int | None = None) -> bytes:
    return struct.pack(">BBH", kind, 0, (len(content) if length is None else length) & 0xFFFF) + content


def request(rng: Random, wrong: float) -> bytes:
    """Make an A-ASSOCIATE-RQ (PS3.8 9.3.2), a wrong one with some probability."""

    def lie() -> int | None:
        return number(rng, 2) if rng.random() < wrong / 20 else None

    contexts = []
    for context_id, abstract_syntax in wire.CONTEXTS.items():
        uid = rng.choice(wire.UIDS).encode() if rng.random() < wrong / 10 else abstract_syntax.encode()
        syntaxes = rng.sample(datasets.SYNTAXES, rng.choice((1, 1, 2, 6)))
        offered = b"".join(_item(0x40, str(syntax).encode(), lie()) for syntax in syntaxes)
        shown_id = number(rng, 1) if rng.random() < wrong / 10 else context_id
        contexts.append(_item(0x20, bytes((shown_id, 0, 0, 0)) + _item(0x30, uid, lie()) + offered, lie()))
    largest = number(rng, 4) if rng.random() < wrong else rng.choice((0, 16384, 131072))
    user = [
        _item(0x51, struct.pack(">L", largest), lie()),
        _item(0x52, b"1.2.826.0.1.3680043.10.1", lie()),
        _item(0x55, b"FUZZ"),
    ]
    if rng.random() < wrong:
        user.append(
            rng.choice(
                (
                    _item(0x53, struct.pack(">HH", 5, number(rng, 2))),
                    _item(0x54, struct.pack(">H", 25) + wire.CT.encode() + rng.randbytes(2)),
                    _item(0x56, struct.pack(">H", number(rng, 2)) + wire.CT.encode() + rng.randbytes(10)),
                    _item(0x57, struct.pack(">H", 25) + wire.CT.encode() + rng.randbytes(20)),
                    _item(0x58, bytes((rng.randrange(6), 1)) + struct.pack(">H", 4) + b"user\0\4pass"),
                    _item(0x58, rng.randbytes(rng.randrange(40)), lie()),
                    _item(rng.getrandbits(8), rng.randbytes(rng.randrange(40)), lie()),
                )
            )
        )
        rng.shuffle(user)
    called = b"DICOMAI".ljust(16) if rng.random() > wrong / 10 else rng.randbytes(16)
    calling = b"FUZZ".ljust(16) if rng.random() > wrong / 5 else rng.randbytes(16)
    items = [_item(0x10, b"1.2.840.10008.3.1.1.1", lie()), *contexts, _item(0x50, b"".join(user), lie())]
    if rng.random() < wrong / 4:
        rng.shuffle(items)
    if rng.random() < wrong / 4:
        items *= 3
    return pdu(1, _VERSION + called + calling + bytes(32) + b"".join(items), number(rng, 4) if lie() else None)


def association(rng: Random) -> bytes:
    """Make all that comes over one connection: how it ends, and what is sent."""
    end = rng.choice((_FINISHED,) * 12 + (_CLOSED, _CLOSED, _RESET, _LEFT_OPEN))
    way = rng.random()
    if way < 0.05:
        return bytes((end,)) + rng.randbytes(rng.choice((1, 5, 6, 100, 5000)))
    wrong = rng.choice((0.0, 0.0, 1.0))
    sent = request(rng, wrong)
    if rng.random() < wrong / 3:
        sent = bent(rng, sent)
    if way > 0.2:
        data = datasets.data_set(rng, rng.choice(datasets.SYNTAXES)) if rng.random() < 0.8 else None
        sent += wire.stream(rng, data)
    sent += rng.choice((pdu(5, bytes(4)), pdu(5, bytes(4)), pdu(7, bytes(4)), b"", pdu(6, bytes(4)), rng.randbytes(9)))
    return bytes((end,)) + sent


@dataclass
class RunningNode:
    """The node as people run it, with every service that takes something in; an input is a batch of associations."""

    folder: Path
    name: str = "node"
    share: float = 0.006
    batch: int = 50
    _stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _node: Node | None = None
    _processes: list[int] = field(default_factory=list)
    _beside: set[str] = field(default_factory=set)
    _batches: int = 0
    _read: int = 0  # of the log
    _memory: int = 0

    def make(self, rng: Random) -> bytes:
        """Make a batch."""
        made = [association(rng) for _ in range(self.batch)]
        return b"".join(struct.pack(">L", len(one)) + one for one in made)

    def run(self, data: bytes) -> None:
        """The node is as it was before, and what it stored is in its index."""
        one = self._node or self._start()
        with contextlib.ExitStack() as left_open:
            while data:
                (size,) = struct.unpack_from(">L", data)
                _send(one.port, data[4], data[5 : 4 + size], left_open)
                data = data[4 + size :]
            began = time.monotonic()
            assert echoes(one.port), "a C-ECHO is not answered with success"
            assert time.monotonic() - began < _SECONDS, "a C-ECHO took longer than a second"
        self._batches += 1
        self._look(one)

    def close(self) -> None:
        """Stop the node."""
        if self._node is not None:
            self._node.stop()
        self._stack.close()

    def _start(self) -> Node:
        self.folder.mkdir(parents=True, exist_ok=True)
        more = {"procedure_steps": True, "availability": True, "commitment": True, "max_instance_bytes": 1_000_000}
        console = {"dicomweb": True, "port": free_port()}  # what commitment promises; it is not started
        one = self._stack.enter_context(node(self.folder, receiver=more, console=console))
        one.start("--only", "receiver")
        self._node, self._processes, self._beside = one, one.processes(), self._outside()
        return one

    def _look(self, one: Node) -> None:
        """See that nothing has come of the batch but what may."""
        assert one.processes() == self._processes, "a process has ended"
        url, end = f"sqlite:///{one.storage / 'worklist.db'}", time.monotonic() + _PATIENCE
        while found := faults(one.storage, url, {}):  # what came last may still be on its way
            assert time.monotonic() < end, found
            time.sleep(0.05)
        assert self._outside() == self._beside, "something lies outside of the storage"
        log, self._read = one.log[self._read :], len(one.log)
        for line in log.splitlines():
            assert not _UNFORESEEN.search(line), line
        memory = sum(map(_resident, self._processes))
        if self._batches <= _WARMING_UP:
            self._memory = max(memory, self._memory)
        else:
            assert memory <= self._memory * (1 + _GROWTH), f"memory went from {self._memory} to {memory} KiB"

    def _outside(self) -> set[str]:
        """Name what lies around the store."""
        folders = self.folder.parent, self.folder, self.folder / "storage"
        return {path.name for folder in folders for path in folder.iterdir() if "worklist.db" not in path.name}


def _send(port: int, end: int, data: bytes, left_open: contextlib.ExitStack) -> None:
    """Send what comes over one connection; what the node does with it is seen at the end."""
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(socket.create_connection((HOST, port), timeout=_PATIENCE))
        try:
            connection.sendall(data)
            if end == _LEFT_OPEN:
                left_open.push(stack.pop_all())
            elif end == _FINISHED:
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):
                    pass
        except TimeoutError as error:
            raise AssertionError("the node does not end a connection that its peer has ended") from error
        except OSError:  # it may end it at any time
            pass
        if end == _RESET:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def echoes(port: int) -> bool:
    """Tell whether a C-ECHO is answered with success, over an association of its own."""
    echo = element(0x0002, wire.ECHO.encode() + b"\0") + element(0x0100, b"\x30\0")
    echo += element(0x0110, b"\1\0") + element(0x0800, b"\1\1")
    sent = request(Random(0), 0.0), pdu(4, pdv(3, 3, element(0, struct.pack("<L", len(echo))) + echo))
    with socket.create_connection((HOST, port), timeout=_PATIENCE) as connection:
        for data in sent:
            connection.sendall(data)
            kind, answer = _answer(connection)
            if kind not in {2, 4}:
                return False
        connection.sendall(pdu(5, bytes(4)))
        return element(0x0900, b"\0\0") in answer and _answer(connection)[0] == 6


def _answer(connection: socket.socket) -> tuple[int, bytes]:
    head = connection.recv(6, socket.MSG_WAITALL)
    return (head[0], connection.recv(int.from_bytes(head[2:]), socket.MSG_WAITALL)) if len(head) == 6 else (0, b"")


def _resident(process: int) -> int:
    """Resident memory in KiB."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process}/status").read_text(encoding="ascii"))
    return int(found[1]) if found else 0
