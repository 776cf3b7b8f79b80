"""Folder destination: DICOM files as `<study>/<series>/<sop instance>.dcm`, whole or not at all."""

import errno
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from dicomai.config import FolderDestination
from dicomai.destinations.base import Accepted, Outgoing, Refused, offer
from dicomai.destinations.filing import Filed, Files, same
from dicomai.errors import RejectedError, UnreachableError

_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


class Folder(Files[FolderDestination]):
    """A folder, local or mounted, into which others look."""

    def reach(self) -> None:
        """Do nothing: whether a folder can be written, writing shows."""

    def send(self, objects: Sequence[Outgoing], accepted: Accepted, refused: Refused | None = None) -> None:
        """Write objects in the order given, each under a temporary name first; one that is there already is left.

        Raises:
            UnreachableError: the folder cannot be written for now.
            RejectedError: a UID cannot be a file name, or another object has this one's UID.
        """
        for outgoing in objects:
            offer(outgoing, self._store, accepted, refused)

    def _store(self, outgoing: Outgoing) -> tuple[int, str]:
        target = self._target(outgoing)
        try:
            self._write(outgoing, target)
        except OSError as error:
            raise UnreachableError(
                f"Destination '{self.name}' could not write {outgoing.sop_instance_uid} into its folder"
                f" ({error.strerror or type(error).__name__}): check that it is mounted, writable and not full."
            ) from error
        return 0x0000, ""

    def _target(self, outgoing: Outgoing) -> Path:
        return self._settings.path.joinpath(*Filed.of(outgoing, self.name).parts)

    def _write(self, outgoing: Outgoing, target: Path) -> None:
        if target.exists():
            self._compare(outgoing, target)
            return
        _make(target.parent)
        temporary = target.with_name(f".{uuid.uuid4().hex}.part")
        try:
            with outgoing.open() as file, temporary.open("xb") as stream:
                shutil.copyfileobj(file, stream)
                stream.flush()
                os.fsync(stream.fileno())
            _name(temporary, target)
        except FileExistsError:  # it came between the look and the writing
            self._compare(outgoing, target)
        finally:
            temporary.unlink(missing_ok=True)
        _sync(target.parent)

    def _compare(self, outgoing: Outgoing, target: Path) -> None:
        with outgoing.open() as file, target.open("rb") as there:
            is_same = same(file, there)
        if not is_same:
            raise RejectedError(
                f"Destination '{self.name}' holds another object with the UID {outgoing.sop_instance_uid}:"
                " move that file away, then retry."
            )
        _sync(target.parent)  # an attempt before this one may have ended between the two


def _name(temporary: Path, target: Path) -> None:
    """Give a whole file its name.

    Raises:
        FileExistsError: there is one of that name. Where the file system has no hard links, it is only looked for.
    """
    try:
        os.link(temporary, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if target.exists():
            raise FileExistsError(target) from error
        temporary.replace(target)


def _make(folder: Path) -> None:
    """Make a folder and its parents, and sync the entry of each new one."""
    missing = list(_missing(folder))
    for new in reversed(missing):
        new.mkdir(exist_ok=True)
        _sync(new.parent)


def _missing(folder: Path) -> Iterator[Path]:
    while not folder.exists():
        yield folder
        folder = folder.parent


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:  # network file systems order such changes themselves
            raise
    finally:
        os.close(descriptor)
