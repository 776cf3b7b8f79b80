"""Instances and results on disk: atomic, durable, opened by key.

Keys are relative names with `/` between the parts; callers get streams, never paths, so that object storage can
follow. Every file name of an instance ends in its digest, so a key always means the same bytes:

    incoming/<way in>/<random>                                 being received; each way in sweeps its own at start
    incoming/<way in>/<random>.<association>.<digest>          received whole; its row is not known to be durable yet
    instances/<study>/<series>/<sop instance>.<digest>.dcm     acknowledged, in the index
    results/<workitem>/<attempt>/<sop instance>.dcm            frozen before the first send
"""

import contextlib
import hashlib
import os
import re
import shutil
import threading
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from dicomai.errors import StorageFullError, StoreError, UnreadableError

_FOLDERS_REMEMBERED = 10_000
_BEGINNING = 32 * 1024
_BLOCK = 512 * 1024
_thread = threading.local()

_WHOLE = re.compile(r"[0-9a-f]{32}\.(?P<association>[0-9]{1,18})\.(?P<digest>[0-9a-f]{64})")
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")


def checked_uid(uid: str, keyword: str) -> str:
    """Give a UID back if it may be part of a key.

    Components may begin with a zero, as scanners write them in spite of PS3.5 9.1; anything but digits and dots, or
    more than 64 characters, may not.

    Raises:
        UnreadableError: it is no UID.
    """
    if len(uid) > 64 or not _UID.fullmatch(uid):
        shown = re.sub(r"[^0-9A-Za-z._-]", "?", uid)[:64]
        raise UnreadableError(f"{keyword} '{shown}' is no UID (PS3.5 9.1); correct the instance at its source.")
    return uid


def instance_key(study_instance_uid: str, series_instance_uid: str, sop_instance_uid: str, digest: str) -> str:
    """Name the place of an instance; the digest is that of its content, in hexadecimal."""
    return (
        f"instances/{checked_uid(study_instance_uid, 'StudyInstanceUID')}"
        f"/{checked_uid(series_instance_uid, 'SeriesInstanceUID')}"
        f"/{checked_uid(sop_instance_uid, 'SOPInstanceUID')}.{digest[:16]}.dcm"
    )


def result_key(workitem: int, attempt: int, sop_instance_uid: str) -> str:
    """Name the place of a result object of one attempt."""
    return f"results/{workitem}/{attempt}/{checked_uid(sop_instance_uid, 'SOPInstanceUID')}.dcm"


@dataclass(frozen=True, slots=True)
class Incoming:
    """A file that was written and synced under a temporary name.

    Attributes:
        name: its name in `incoming/`, of three parts: random, the association (0 for none), the digest.
        digest: SHA-256 of the data set's bytes, without preamble and file meta information.
        size: bytes in all.
        offset: where in the file the data set begins.
        beginning: the data set's first bytes, from which a header can mostly be read without the disk.
    """

    name: str
    digest: str
    size: int
    offset: int
    beginning: bytes = field(repr=False)

    @property
    def association(self) -> int | None:
        """What brought it."""
        whole = _WHOLE.fullmatch(self.name)
        return int(whole["association"]) or None if whole else None


class Store:
    """The node's storage folder.

    Attributes:
        way_in: which process brings instances through this object, if any.
    """

    def __init__(self, root: Path, way_in: str = "receiver") -> None:
        """Open the storage; its folders are made where they are missing.

        Args:
            root: the storage folder.
            way_in: which process brings instances through this object, if any; no two may have the same name.
        """
        self._root = root
        self.way_in = way_in
        self._incoming = root / "incoming" / way_in
        self._durable: set[Path] = set()
        with _translated("open the storage"):
            for folder in (self._incoming, root / "instances", root / "results"):
                for new in (f for f in (*reversed(folder.parents), folder) if not f.exists()):
                    new.mkdir(exist_ok=True)
                    _sync_folder(new.parent)

    def free_bytes(self) -> int:
        """Say how many bytes are free on the storage's disk."""
        return shutil.disk_usage(self._root).free

    def receive(self, head: bytes, fragments: Iterable[bytes | memoryview], association: int | None = None) -> Incoming:
        """Write an instance under a temporary name and sync it.

        Args:
            head: the preamble with the file meta information.
            fragments: the data set.
            association: what brings it; known from the name after an end without warning.

        Raises:
            StorageFullError: there is no room.
            StoreError: the write failed. Nothing is left behind in either case.
        """
        name = uuid.uuid4().hex
        path = f"{self._incoming}/{name}"
        digest = hashlib.sha256()
        size = 0
        beginning = bytearray()
        try:
            with _translated("store an instance"), open(path, "xb", buffering=0) as stream:  # noqa: PTH123  often
                _write(stream, head)
                for block in _blocks(fragments):
                    _write(stream, block)
                    digest.update(block)
                    size += len(block)
                    if len(beginning) < _BEGINNING:
                        beginning += block[:_BEGINNING]
                name = f"{name}.{association or 0}.{digest.hexdigest()}"
                whole = f"{self._incoming}/{name}"
                os.rename(path, whole)  # noqa: PTH104  often
                path = whole
                os.fsync(stream.fileno())
                _sync_folder(self._incoming)
        except BaseException:
            Path(path).unlink(missing_ok=True)
            raise
        return Incoming(name, digest.hexdigest(), len(head) + size, len(head), bytes(beginning))

    def open_incoming(self, incoming: Incoming) -> BinaryIO:
        """Open a file that is not published yet, at its data set.

        Raises:
            OSError: it cannot be read.
        """
        stream = (self._incoming / incoming.name).open("rb")
        stream.seek(incoming.offset)
        return stream

    def publish(self, incoming: Incoming, key: str) -> bool:
        """Give a received file its lasting name; until `settle` has made that durable the temporary one stands for it.

        A file of that key has the same data set, so it is left as it is.

        Returns:
            Whether the lasting name is new.
        """
        with _translated("store an instance"):
            return self._link(self._incoming / incoming.name, key)

    def drop(self, incoming: Incoming) -> None:
        """Take the temporary name away: there is no lasting one, or it is somebody else's to clear up."""
        with _translated("store an instance"):
            (self._incoming / incoming.name).unlink(missing_ok=True)

    def disown(self, incoming: Incoming) -> None:
        """Let the temporary name say that nobody was told that this file is here."""
        random, _, digest = incoming.name.split(".")
        with _translated("store an instance"):
            (self._incoming / incoming.name).rename(self._incoming / f"{random}.0.{digest}")

    def settle(self, published: Iterable[tuple[Incoming, str]]) -> None:
        """Make lasting names durable and take the temporary ones away; call it once the rows are durable.

        Args:
            published: files and their keys.
        """
        files = list(published)
        with _translated("store an instance"):
            for incoming, key in files:
                path = self._incoming / incoming.name
                if path.exists():  # else it is settled: a sync of another one failed then
                    self._link(path, key)  # again, if somebody has taken it away
            for folder in {(self._root / key).parent for _, key in files}:
                _sync_folder(folder)
            for incoming, _ in files:
                (self._incoming / incoming.name).unlink(missing_ok=True)

    def put(self, key: str, data: bytes) -> None:
        """Write a file whole and durably, in place of one of the same key.

        Raises:
            StorageFullError: there is no room.
            StoreError: the write failed.
        """
        target = self._root / key
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        with _translated("store a result"):
            self._make_folder(target.parent)
            try:
                with temporary.open("xb") as stream:
                    stream.write(data)
                    stream.flush()
                    os.fsync(stream.fileno())
                temporary.replace(target)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            _sync_folder(target.parent)

    def open(self, key: str) -> BinaryIO:
        """Open a file for reading.

        Raises:
            StoreError: it is not there or cannot be read.
        """
        with _translated(f"read {key}"):
            return (self._root / key).open("rb")

    def get(self, key: str) -> bytes:
        """Read a file whole."""
        with self.open(key) as stream:
            return stream.read()

    def exists(self, key: str) -> bool:
        """Tell whether there is a file of that key."""
        return (self._root / key).is_file()

    def _link(self, path: Path, key: str) -> bool:
        """Give a file a lasting name; tells whether that was not taken."""
        target = self._root / key
        self._make_folder(target.parent)
        try:
            os.link(path, target)
        except FileExistsError:
            return False
        return True

    def _make_folder(self, folder: Path) -> None:
        """Make a folder durably: returns when its entry and those of its parents are synced, whoever made them."""
        if folder in self._durable and folder.is_dir():
            return
        folder.mkdir(parents=True, exist_ok=True)
        for parent in folder.relative_to(self._root).parents:
            _sync_folder(self._root / parent)
        if len(self._durable) >= _FOLDERS_REMEMBERED:
            self._durable.clear()
        self._durable.add(folder)

    def left_over(self) -> list[Incoming]:
        """List what an end without warning left in `incoming/`; call it while nothing is being received.

        The digest is what the name promises, and empty where the file was not received whole.
        """
        with _translated("clear up the storage"):
            names = sorted(path.name for path in self._incoming.iterdir() if path.is_file())
        wholes = {name: _WHOLE.fullmatch(name) for name in names}
        return [Incoming(name, whole["digest"] if whole else "", 0, 0, b"") for name, whole in wholes.items()]

    def withdraw(self, incoming: Incoming, key: str) -> None:
        """Take a lasting name away if this file alone stands behind it."""
        path, target = self._incoming / incoming.name, self._root / key
        with _translated("clear up the storage"):
            if target.exists() and path.samefile(target):
                target.unlink()


def _blocks(fragments: Iterable[bytes | memoryview]) -> Iterator[memoryview]:
    """Join fragments; a block is good until the next one is asked for.

    With each call that writes or hashes, another thread may take the interpreter, and it has to be waited for.
    """
    if not hasattr(_thread, "block"):
        _thread.block = memoryview(bytearray(_BLOCK))  # once: new memory costs more than what is copied into it
    block, filled = _thread.block, 0
    for fragment in fragments:
        if filled + len(fragment) > _BLOCK:
            yield block[:filled]
            filled = 0
        if len(fragment) > _BLOCK:
            yield memoryview(fragment)
        else:
            block[filled : filled + len(fragment)] = fragment
            filled += len(fragment)
    yield block[:filled]


def _write(stream: FileIO, data: bytes | memoryview) -> None:
    """Write all of it: an unbuffered write may end early."""
    while (written := stream.write(data) or 0) < len(data):
        data = data[written:]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _translated(action: str) -> Iterator[None]:
    """Turn an OSError into ours."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        if error.errno in {28, 122}:  # ENOSPC, EDQUOT
            raise StorageFullError(f"Cannot {action}: {reason}; free some room on the storage's disk.") from error
        raise StoreError(f"Cannot {action}: {reason}; check the storage folder.") from error
