"""What a careless or hostile peer, a full disk and a closed pipe can do to the way in: little."""

import contextlib
import errno
import http.client
import io
import json
import logging
import resource
import socket
import struct
import sys
import threading
import time
import urllib.request
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from pydicom.uid import CTImageStorage, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian
from structlog.testing import capture_logs

from dicomai import log
from dicomai.config import Settings
from dicomai.console import Console
from dicomai.database import Database
from dicomai.errors import ConfigurationError, StorageFullError, StoreError, UnreadableError
from dicomai.store import Store
from tests.beds import Bed, announced, as_received, parts_of
from tests.dimse import HOST, associate, free_port, node, store, wait_until
from tests.fuzz import datasets
from tests.synthetic import encode, series

CT = [(CTImageStorage, [ExplicitVRLittleEndian])]
ECHO = [("1.2.840.10008.1.1", ["1.2.840.10008.1.2"])]


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[Bed]:
    made = Bed(tmp_path, f"sqlite:///{tmp_path / 'worklist.db'}")
    yield made
    made.close()


def closes(sock: socket.socket, within: float) -> bool:
    """Tell whether the other side ends a connection within some seconds."""
    sock.settimeout(within)
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False


class TestConnections:
    def test_more_than_there_is_room_for_are_closed_and_the_others_served(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("dicomai.receiver.scp.MAX_WAITING", 4)
        with capture_logs() as logs, node(max_associations=2) as n, associate(n.port, CT) as assoc:
            strangers = [socket.create_connection((HOST, n.port)) for _ in range(30)]
            try:
                assert sum(closes(s, 0.5) for s in strangers[5:]) == 25
                assert not closes(strangers[0], 0.1)
                assert store(assoc, CTImageStorage, "1.2.3", b"\x08\x00\x18\x00").Status == 0x0000
            finally:
                for stranger in strangers:
                    stranger.close()
            wait_until(lambda: echoes(n.port))
        assert sum("too many" in line["event"] for line in logs) == 1

    def test_a_stranger_may_neither_wait_nor_drip(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("dicomai.receiver.connections.ARTIM_SECONDS", 0.6)
        with node() as n:
            with socket.create_connection((HOST, n.port)) as silent:
                assert closes(silent, 3)
            with socket.create_connection((HOST, n.port)) as half:
                half.sendall(struct.pack(">BBL", 1, 0, 300) + b"\0\1")
                assert closes(half, 3)
            with socket.create_connection((HOST, n.port)) as drip:
                drip.sendall(struct.pack(">BBL", 1, 0, 300))
                done = threading.Event()
                threading.Thread(target=self._drip, args=(drip, done), daemon=True).start()
                assert closes(drip, 3)
                done.set()
            with associate(n.port, CT) as assoc:  # has more time than that
                assert not threading.Event().wait(1.0)
                assert store(assoc, CTImageStorage, "1.2.3", b"\x08\x00\x18\x00").Status == 0x0000

    @staticmethod
    def _drip(sock: socket.socket, done: threading.Event) -> None:
        try:
            while not done.wait(0.2):
                sock.sendall(b"\0")
        except OSError:
            pass

    def test_a_pdu_of_gigabytes_is_not_read(self) -> None:
        with node() as n:
            with socket.create_connection((HOST, n.port)) as stranger:
                stranger.sendall(struct.pack(">BBL", 1, 0, 0xFFFFFFF0) + bytes(4096))
                assert closes(stranger, 3)
            with associate(n.port, CT) as assoc:
                wrapper = assoc.dul.socket
                assert wrapper is not None
                assert wrapper.socket is not None
                wrapper.socket.sendall(struct.pack(">BBL", 4, 0, 0x7FFFFFFF))
                wait_until(lambda: n.intake.closed == [(1, "lost")])


def echoes(port: int) -> bool:
    with associate(port, ECHO) as assoc:
        return assoc.is_established and assoc.send_c_echo().Status == 0x0000


class TestOwedInstances:
    """An association that is released is not whole if the node itself could not store some of it."""

    @pytest.mark.parametrize("failure", [StorageFullError("No room."), StoreError("Broken."), RuntimeError("x")])
    def test_what_could_not_be_stored_makes_the_series_wait(self, failure: Exception) -> None:
        with node() as n:
            with associate(n.port, CT) as assoc:
                assert store(assoc, CTImageStorage, "1.2.3", b"\x08\x00\x18\x00").Status == 0x0000
                n.intake.failure = failure
                assert store(assoc, CTImageStorage, "1.2.4", b"\x08\x00\x18\x00").Status != 0x0000
            wait_until(lambda: n.intake.closed == [(1, "lost")])

    def test_one_that_came_again_is_owed_no_more(self) -> None:
        with node() as n:
            with associate(n.port, CT) as assoc:
                n.intake.failure = StoreError("Broken.")
                store(assoc, CTImageStorage, "1.2.4", b"\x08\x00\x18\x00")
                n.intake.failure = None
                store(assoc, CTImageStorage, "1.2.4", b"\x08\x00\x18\x00")
            wait_until(lambda: n.intake.closed == [(1, "released")])

    def test_one_that_nobody_can_read_is_not_waited_for(self) -> None:
        with node() as n:
            with associate(n.port, CT) as assoc:
                n.intake.failure = UnreadableError("No DICOM.")
                store(assoc, CTImageStorage, "1.2.4", b"\x08\x00\x18\x00")
            wait_until(lambda: n.intake.closed == [(1, "released")])


class TestStart:
    """What lies in `incoming/` after an end without warning never keeps the node from starting."""

    def test_a_uid_that_is_a_path(self, bed: Bed) -> None:
        (image,) = series(shape=(1, 4, 4))
        uid = str(image.StudyInstanceUID).encode()
        bed.store.receive(encode(image).replace(uid, (b"../../x" + b"1" * 64)[: len(uid)]), ())
        with as_received():
            bed.intake.recover()
        assert bed.files("") == set()

    def test_a_bomb(self, bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("dicomai.header.MOST_INFLATED", 4 * 1024**2)
        bed.store.receive(bomb(), ())
        with as_received():
            bed.intake.recover()
        assert bed.files("") == set()


def bomb() -> bytes:
    """A deflated image of a few kilobytes that is five megabytes large."""
    (image,) = series(shape=(1, 4, 4))
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.PixelData = bytes(5 * 1024**2)
    image["PixelData"].VR = "OW"
    plain = encode(image)
    offset = 144 + int.from_bytes(plain[140:144], "little")
    (image,) = series(shape=(1, 4, 4))
    image.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    head = encode(image)
    head = head[: 144 + int.from_bytes(head[140:144], "little")]
    deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return head + deflate.compress(plain[offset:]) + deflate.flush()


def test_a_bomb_is_refused_before_it_fills_the_memory(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dicomai.header.MOST_INFLATED", 4 * 1024**2)
    file = announced(parts_of(bomb()))
    with pytest.raises(UnreadableError, match="another transfer syntax"), as_received():
        bed.intake.accept(*file, None)
    assert bed.files("") == set()
    monkeypatch.setattr("dicomai.header.MOST_INFLATED", 8 * 1024**2)
    with as_received(), pytest.raises(Exception, match="announced"):  # looked through, read, and judged as usual
        bed.intake.accept(*file, None)


def hostile(name: str) -> bytes:
    """Make a data set that nobody should send."""
    elements = [element for element in datasets.decoded() if element[0] < 0x7FE00010]
    if name == "sequences nested 10,000 deep":
        deep = datasets.nested(10_000, ExplicitVRLittleEndian, closed=True)
        return datasets.encode([*elements[:6], (0x00081140, "SQ", deep)], ExplicitVRLittleEndian, {0x00081140: -1})
    if name.startswith("four gigabytes"):
        size = 200_000 if "200 KB" in name else 500  # what is longer than 128 KB is read from its file
        elements = [one for one in elements if one[0] != 0x0008103E]
        return datasets.encode(
            sorted([*elements, (0x0008103E, "UT", bytes(size))]), ExplicitVRLittleEndian, {0x0008103E: 0xFFFFFFF0}
        )
    path = [(tag, vr, b"../../../x" if tag == 0x0020000E else value) for tag, vr, value in elements]
    return datasets.encode(path, ExplicitVRLittleEndian)


@pytest.mark.parametrize(
    "name",
    ["sequences nested 10,000 deep", "four gigabytes in 1 KB", "four gigabytes in 200 KB", "a UID that is a path"],
)
def test_a_hostile_data_set_is_refused_and_leaves_nothing(bed: Bed, name: str) -> None:
    with node(bed.intake) as n, associate(n.port, CT) as assoc:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert store(assoc, CTImageStorage, "1.2.826.1", hostile(name)).Status == 0xC000
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB
        began = time.monotonic()
        assert echoes(n.port)
        assert time.monotonic() - began < 1.0
    assert bed.files("") == set()
    assert {path.name for path in bed.folder.iterdir() if "worklist.db" not in path.name} == {"storage", "models"}


@pytest.mark.parametrize("step", ["mkdir", "link"])
def test_a_disk_that_fills_between_writing_and_naming_keeps_nothing(
    bed: Bed, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.mkdir" if step == "mkdir" else "os.link", full)
        with pytest.raises(StorageFullError):
            bed.take(series(shape=(1, 4, 4)))
    assert bed.files("") == set()


def test_a_new_storage_folder_is_synced_into_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr("dicomai.store._sync_folder", synced.append)
    Store(tmp_path / "var" / "node")
    assert {tmp_path, tmp_path / "var", tmp_path / "var" / "node"} <= set(synced)


class _Full(io.StringIO):
    def write(self, _text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def logging_restored() -> Iterator[None]:
    root = logging.getLogger()
    before = (root.handlers[:], root.level, warnings.showwarning, sys.excepthook, threading.excepthook)
    names = ("pydicom", "highdicom", "pynetdicom", "alembic", "apscheduler")
    levels = {name: logging.getLogger(name).level for name in names}
    yield
    root.handlers[:], root.level, warnings.showwarning, sys.excepthook, threading.excepthook = before
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    structlog.reset_defaults()


@pytest.mark.usefixtures("logging_restored")
class TestLog:
    @pytest.mark.parametrize("closed", [False, True])
    def test_a_log_that_cannot_be_written_stops_nothing(self, closed: bool) -> None:
        stream = _Full()
        log.configure("json", stream=stream)
        if closed:
            stream.close()
        with node() as n:
            with associate(n.port, CT) as assoc:
                assert store(assoc, CTImageStorage, "1.2.3", b"\x08\x00\x18\x00").Status == 0x0000
            wait_until(lambda: n.intake.closed == [(1, "released")])

    def test_an_exception_that_a_library_logs_by_its_text_is_named_only(self) -> None:
        stream = io.StringIO()
        log.configure("json", stream=stream)
        logging.getLogger("pynetdicom.dul").error(ValueError("Doe^Jane"))
        assert "ValueError" in stream.getvalue()
        assert "Doe" not in stream.getvalue()


@pytest.mark.usefixtures("logging_restored")
class TestConsole:
    @pytest.fixture
    def console(self, bed: Bed) -> Iterator[Console]:
        made = Console(Settings(node={"storage": bed.folder, "worklist": bed.url}, console={"port": free_port()}))
        stop = threading.Event()
        thread = threading.Thread(target=made.run, args=(stop,))
        thread.start()
        yield made
        stop.set()
        thread.join()

    def test_what_goes_wrong_with_a_request_is_logged_without_its_text(
        self, console: Console, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def fail(*_: object) -> Any:
            raise RuntimeError("^".join(("Doe", "Jane")))  # a traceback quotes the source as well

        monkeypatch.setattr("dicomai.database.overview.Overview.entries", fail)
        stream = io.StringIO()
        log.configure("json", stream=stream)
        with pytest.raises(OSError, match=r"closed|reset"):
            urllib.request.urlopen(f"http://{HOST}:{console.port}/", timeout=5)
        wait_until(lambda: "a request failed" in stream.getvalue())
        assert all(json.loads(line) for line in stream.getvalue().splitlines())
        assert "Doe^Jane" not in stream.getvalue() + capsys.readouterr().err

    @pytest.mark.parametrize(("host", "status"), [("localhost", 200), ("[::1]:80", 200), ("evil.example", 421)])
    def test_the_port_may_be_left_out_of_the_host(self, console: Console, host: str, status: int) -> None:
        with contextlib.closing(http.client.HTTPConnection(HOST, console.port, timeout=5)) as connection:
            connection.request("GET", "/health", headers={"Host": host})
            assert connection.getresponse().status == status


def test_a_database_url_with_a_wrong_port_is_said_without_its_password() -> None:
    with pytest.raises(ConfigurationError) as said:
        Database("postgresql+psycopg://user:secret@host:abc/name")
    assert "secret" not in str(said.value)
    assert "abc" not in str(said.value)
