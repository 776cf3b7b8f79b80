"""One instance into store and index: the receiver comes through here, and whatever else will bring images.

An instance is acknowledged only after this order of steps: written and synced under a temporary name; linked to
its lasting name, the folder synced; committed in the index; the temporary name dropped. An end without warning at
any point leaves either a row with its file, or a temporary name from which the next start clears up.
"""

import hashlib
import zlib
from collections.abc import Collection, Iterable
from io import BufferedReader, BytesIO
from typing import BinaryIO

import pydicom
import structlog
from pydicom.dataset import FileDataset
from pydicom.uid import DeflatedExplicitVRLittleEndian

from dicomai.association import AssociationEnd
from dicomai.database.associations import Associations
from dicomai.database.engine import Database
from dicomai.database.index import Arrival, Index, Recorded
from dicomai.errors import NotAcceptedError, StoreError, UnreadableError
from dicomai.store import Incoming, Store, checked_uid, instance_key
from dicomai.study import UNREADABLE, Identity, is_image

log = structlog.get_logger()

MOST_INFLATED = 1024**3
"""How many bytes a deflated data set may have once it is inflated, which takes this much memory."""

_BLOCK = 1024**2
_LONGEST_META = 64 * 1024


class Intake:
    """The way in."""

    def __init__(self, store: Store, database: Database, quiet_period: float, min_free_bytes: int) -> None:
        """Make the way in.

        Args:
            store: where files go.
            database: where rows go.
            quiet_period: the shortest quiet period of any route, in seconds: when to look at a series first.
            min_free_bytes: the low-water mark of the storage's disk.
        """
        self._store = store
        self._associations = Associations(database)
        self._index = Index(database)
        self._quiet_period = quiet_period
        self._min_free_bytes = min_free_bytes
        self._announced: dict[int | None, set[str]] = {}  # studies in the log, by association

    def has_room(self) -> bool:
        """Tell whether the disk is above its low-water mark."""
        return self._store.free_bytes() >= self._min_free_bytes

    def open_association(self, calling_ae: str, address: str) -> int:
        """Write down an accepted association; gives its number."""
        return self._associations.open(calling_ae, address)

    def close_association(self, association: int, outcome: AssociationEnd) -> None:
        """Write down how an association ended."""
        self._announced.pop(association, None)
        self._associations.close(association, outcome)

    def renew(self, associations: Collection[int]) -> None:
        """Keep the leases of open associations."""
        self._associations.renew(associations)

    def recover(self) -> None:
        """Clear up after an end without warning; call it before the first association."""
        kept, gone = self._store.sweep(_key_of, self._index.is_known)
        lost = self._associations.lose_all()
        if kept or gone or lost:
            log.info("cleared up after the last run", acknowledged=kept, unacknowledged=gone, lost_associations=lost)

    def accept(self, parts: Iterable[bytes | memoryview], association: int | None) -> Recorded:
        """Take in one instance; returns when it is durable and indexed.

        Args:
            parts: first the preamble with the file meta information, then the data set's bytes as received.
            association: the association that brings it, None for another way in.

        Raises:
            StorageFullError: there is no room.
            StoreError: disk or database failed.
            UnreadableError: it cannot be understood.
            NotAcceptedError: the data set is not of the SOP class or instance that the file meta information names.
        """
        incoming = self._store.receive(parts)
        try:
            header = self._header(incoming)
            arrival = _arrival(header, incoming)
        except BaseException:
            self._store.settle(incoming)
            raise
        new = self._store.publish(incoming, arrival.key)
        try:
            recorded, trace = self._record(arrival, association)
        except BaseException:
            if not new:  # the lasting name is somebody else's to clear up, or has its row already
                self._store.settle(incoming)
            raise
        self._store.settle(incoming)
        if recorded is Recorded.CONFLICT:
            log.warning(
                "an instance contradicts a known one; its study is held for a person",
                study=trace,
                sop_instance_uid=arrival.sop_instance_uid,
            )
        else:
            self._announce(trace, association)
        return recorded

    def _announce(self, trace: str, association: int | None) -> None:
        """Log one line for each study and association, so that a study can be followed from where it came."""
        traces = self._announced.setdefault(association, set())
        if trace not in traces:
            traces.add(trace)
            log.info("images arrive", study=trace, association=association)

    def _record(self, arrival: Arrival, association: int | None) -> tuple[Recorded, str]:
        recorded, trace, rival = self._index.record(arrival, association, self._quiet_period)
        if recorded is Recorded.UNDECIDED:
            one, other = self._fingerprint(arrival.key), self._fingerprint(rival)
            same = one is not None and one == other
            recorded, trace, _ = self._index.record(arrival, association, self._quiet_period, same_pixels=same)
        return recorded, trace

    def _header(self, incoming: Incoming) -> FileDataset:
        with self._store.open_incoming(incoming) as stream:
            return read_header(stream)

    def _fingerprint(self, key: str) -> str | None:
        """Hash pixels and geometry; None where they cannot be read, so that nobody can call them equal."""
        # Seldom needed, and what decodes pixels would take the start of the receiver's time.
        from dicomai.fingerprint import fingerprint  # noqa: PLC0415  see above

        with self._store.open(key) as stream:
            try:
                return fingerprint(pydicom.dcmread(stream))
            except UNREADABLE:
                return None


def read_header(stream: BinaryIO) -> FileDataset:
    """Read a received file up to its pixels.

    Raises:
        UnreadableError: it is no DICOM, or what the index needs is missing.
        StoreError: the disk does not give it back.
    """
    try:
        _refuse_bomb(stream)
        header = pydicom.dcmread(stream, stop_before_pixels=True)
        missing = [
            k for k in ("SOPInstanceUID", "SOPClassUID", "StudyInstanceUID", "SeriesInstanceUID") if not header.get(k)
        ]
        Identity.of(header)  # decodes the name: better here than after it was acknowledged
    except UNREADABLE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise StoreError(f"The storage cannot be read ({error.strerror}); check its disk.") from error
        raise UnreadableError(
            f"The data set cannot be understood ({type(error).__name__}); check the instance at its source."
        ) from error
    if missing:
        raise UnreadableError(f"The data set has no {', '.join(missing)}; correct the instance at its source.")
    return header


def _refuse_bomb(stream: BinaryIO) -> None:
    """Look through a deflated data set, which is inflated whole to read its header: some bytes can make gigabytes.

    Raises:
        UnreadableError: it is larger than any that is taken.
    """
    head = stream.read(144)
    head += stream.read(min(int.from_bytes(head[140:144], "little"), _LONGEST_META))
    is_deflated = (
        DeflatedExplicitVRLittleEndian.encode() in head
        and pydicom.dcmread(BytesIO(head)).file_meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian
    )
    inflate, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    while is_deflated and (block := inflate.unconsumed_tail or stream.read(_BLOCK)):
        size += len(inflate.decompress(block, _BLOCK))
        if size > MOST_INFLATED:
            raise UnreadableError(
                f"The deflated data set has more than {MOST_INFLATED} bytes; send it in another transfer syntax."
            )
    stream.seek(0)


def _arrival(header: FileDataset, incoming: Incoming) -> Arrival:
    meta = header.file_meta
    for keyword, meta_keyword in (
        ("SOPClassUID", "MediaStorageSOPClassUID"),
        ("SOPInstanceUID", "MediaStorageSOPInstanceUID"),
    ):
        if str(header[keyword].value) != str(meta.get(meta_keyword, "")):
            raise NotAcceptedError(f"The data set's {keyword} is not the one that was announced; correct the sender.")
    study, series, sop = (
        str(header[keyword].value) for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
    )
    digest = _identify(header, incoming.digest)
    return Arrival(
        study_instance_uid=study,
        series_instance_uid=series,
        sop_instance_uid=sop,
        sop_class_uid=checked_uid(str(header.SOPClassUID), "SOPClassUID"),
        is_image=is_image(header),
        modality=_text(header, "Modality"),
        description=_text(header, "SeriesDescription"),
        identity=Identity.of(header),
        key=instance_key(study, series, sop, digest),
        digest=digest,
        size=incoming.size,
    )


def _identify(header: FileDataset, data_set: str) -> str:
    """Tell one content from another: the same bytes in another transfer syntax mean something else."""
    return hashlib.sha256(f"{header.file_meta.TransferSyntaxUID} {data_set}".encode()).hexdigest()


def _text(header: FileDataset, keyword: str) -> str:
    """Read an attribute for people to see; without the NUL characters that PostgreSQL refuses."""
    return str(header.get(keyword) or "").replace("\0", "")


def _key_of(stream: BufferedReader) -> str | None:
    """Name the lasting place of a file found in `incoming/`; None if it is not whole."""
    try:
        header = read_header(stream)
    except UnreadableError:
        return None
    stream.seek(0)
    head = stream.read(144)
    meta_length = int.from_bytes(head[140:144], "little")
    stream.seek(144 + meta_length)
    digest = hashlib.file_digest(stream, "sha256").hexdigest()
    study, series, sop = (str(header[k].value) for k in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"))
    try:
        return instance_key(study, series, sop, _identify(header, digest))
    except UnreadableError:  # it would have been refused, had the end not come first
        return None
