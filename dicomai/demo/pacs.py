"""The demo's PACS: the receiver of this package in front of a folder."""

import io
import itertools
from collections.abc import Collection, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pydicom

from dicomai.config import DicomDestination, FolderDestination, NodeSettings, ReceiverSettings, Settings
from dicomai.destinations import Folder, Outgoing
from dicomai.filemeta import FileMeta
from dicomai.receiver import Receiver


class Pacs:
    """A Storage SCP that keeps what it gets as `<study>/<series>/<sop instance>.dcm`; a context manager."""

    def __init__(self, path: Path, address: DicomDestination) -> None:
        """Make it; it listens inside the `with` block.

        Args:
            path: the folder.
            address: the entry of the configuration that leads to it.
        """
        self._intake = _FolderIntake(path)
        node = NodeSettings(ae_title=address.ae_title, host=address.host, port=address.port)
        self._receiver = Receiver(Settings.model_construct(node=node, receiver=ReceiverSettings()), self._intake)

    def __enter__(self) -> "Pacs":
        self._receiver.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._receiver.shutdown(grace=1.0)

    def received(self) -> tuple[Path, ...]:
        """The files received so far, in the order in which they came."""
        return tuple(self._intake.files)


class _FolderIntake:
    """What the receiver hands instances to; the folder destination knows how to write them whole or not at all."""

    def __init__(self, path: Path) -> None:
        self.files: list[Path] = []
        self._path = path
        self._folder = Folder(FolderDestination(type="folder", name="pacs", path=path))
        self._numbers = itertools.count(1)

    def has_room(self) -> bool:
        return True

    def elsewhere(self, address: str) -> tuple[int, int]:
        del address
        return 0, 0

    def open_association(self, calling_ae: str, address: str) -> int:
        del calling_ae, address
        return next(self._numbers)

    def close_association(self, association: int, outcome: Any) -> None:
        pass

    def renew(self, associations: Collection[int]) -> None:
        pass

    def accept(self, meta: FileMeta, fragments: Iterable[bytes | memoryview], association: int) -> None:
        del association
        data = b"".join((meta.encode(), *map(bytes, fragments)))
        header = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True)
        uids = [str(header[keyword].value) for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")]
        outgoing = Outgoing(meta.sop_class_uid, uids[2], partial(io.BytesIO, data))
        self._folder.send([outgoing], lambda *_: None)
        self.files.append(self._path.joinpath(*uids[:2], f"{uids[2]}.dcm"))
