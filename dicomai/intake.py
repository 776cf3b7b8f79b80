"""One instance into store and index: the receiver comes through here, and whatever else will bring images.

An instance is acknowledged only after this order of steps: written and synced under a temporary name that holds its
digest; linked to its lasting name; committed in the index. Until lasting name and row are known to be durable, which
costs one sync for many instances, the temporary name stands for both: from it the next start restores what an end
without warning took away, and clears up what was never acknowledged.
"""

import hashlib
import sys
import threading
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from io import BytesIO

import structlog

from dicomai.association import AssociationEnd
from dicomai.database.associations import Associations
from dicomai.database.engine import Database
from dicomai.database.index import Arrival, Outcome, Recorded
from dicomai.database.recorder import Recorder
from dicomai.errors import NotAcceptedError, TooLargeError, UnreadableError
from dicomai.filemeta import FileMeta, identify, read_head
from dicomai.header import Header, read_beginning, read_header
from dicomai.store import Incoming, Store, checked_uid, instance_key
from dicomai.study import UNREADABLE

log = structlog.get_logger()

_MOST_UNSETTLED, _LARGE = 256, 1024 * 1024  # files and bytes: the next start reads all that is not settled
_MOST_ANNOUNCED = 1000  # studies of one association, or of another way in


class Intake:
    """The way in."""

    def __init__(
        self,
        store: Store,
        database: Database,
        quiet_period: float,
        min_free_bytes: int,
        max_instance_bytes: int = sys.maxsize,
    ) -> None:
        """Make the way in.

        Args:
            store: where files go.
            database: where rows go.
            quiet_period: the shortest quiet period of any route, in seconds: when to look at a series first.
            min_free_bytes: the low-water mark of the storage's disk.
            max_instance_bytes: how many bytes a data set may have.
        """
        self._store = store
        self._database = database
        self._associations = Associations(database, store.way_in)
        self._recorder = Recorder(database)
        self._quiet_period = quiet_period
        self._min_free_bytes = min_free_bytes
        self._max_instance_bytes = max_instance_bytes
        self._announced: dict[int | None, set[str]] = {}  # studies in the log, by association
        self._settling = threading.Lock()
        self._unsettled: list[tuple[Incoming, str]] = []  # with their keys

    def has_room(self) -> bool:
        """Tell whether the disk is above its low-water mark."""
        return self._store.free_bytes() >= self._min_free_bytes

    def elsewhere(self, address: str) -> tuple[int, int]:
        """Count the associations that other processes have open: in all, and from an address."""
        return self._associations.elsewhere(address)

    def open_association(self, calling_ae: str, address: str) -> int:
        """Write down an accepted association; gives its number."""
        return self._associations.open(calling_ae, address)

    def close_association(self, association: int, outcome: AssociationEnd) -> None:
        """Write down how an association ended."""
        self._announced.pop(association, None)
        try:
            self._settle()
        finally:
            self._associations.close(association, outcome)

    def renew(self, associations: Collection[int]) -> None:
        """Keep the leases of open associations."""
        self._associations.renew(associations)

    def recover(self) -> None:
        """Restore and clear up after an end without warning; call it before the first association."""
        kept: list[tuple[Incoming, str]] = []
        restored = gone = 0
        for incoming in self._store.left_over():
            try:
                arrival = self._found(incoming)
            except OSError as error:
                log.error(
                    "a received file cannot be read; it is left where it is",
                    remedy="check the storage's disk, then start again",
                    file=incoming.name,
                    error=error.strerror,
                )
                continue
            if arrival is not None and self._may_have_been_acknowledged(arrival, incoming):
                self._record(arrival, incoming.association)
                restored += 1
            key = arrival.key if arrival is not None else None
            if key is not None and not self._recorder.is_known(key):
                self._store.withdraw(incoming, key)
            # Another way in may have found that name taken by the same bytes, and commit its row at this moment: then
            # the name comes back, here or there (see `accept`).
            if key is not None and self._recorder.is_known(key):
                self._store.publish(incoming, key)
                kept.append((incoming, key))
            else:
                self._store.drop(incoming)
                gone += 1
        if kept:
            self._database.sync()
            self._store.settle(kept)
        lost = self._associations.lose_all()
        if kept or gone or lost:
            log.info(
                "cleared up after the last run",
                acknowledged=len(kept),
                restored=restored,
                unacknowledged=gone,
                lost_associations=lost,
            )

    def accept(
        self,
        meta: FileMeta,
        fragments: Iterable[bytes | memoryview],
        association: int | None,
        study_instance_uid: str | None = None,
    ) -> Recorded:
        """Take in one instance; returns when it is durable and indexed.

        Args:
            meta: what was announced of it.
            fragments: the data set's bytes as received.
            association: the association that brings it, None for another way in.
            study_instance_uid: of the one study that may be brought; None for any.

        Raises:
            StorageFullError: there is no room.
            StoreError: disk or database failed.
            UnreadableError: it cannot be understood.
            TooLargeError: it has more bytes than any that is taken.
            NotAcceptedError: the data set is not of the SOP class or instance that was announced, or of another study.
        """
        incoming = self._store.receive(meta.encode(), self._limited(fragments), association)
        try:
            arrival = _arrival(meta, self._header(meta, incoming), incoming)
            _refuse_stray(arrival, study_instance_uid)
        except BaseException:
            self._store.drop(incoming)
            raise
        new = self._published(incoming, arrival.key)
        try:
            outcome = self._record(arrival, association)
        except BaseException:
            if new:  # the commit may have worked all the same, so that the file has to stay
                self._store.disown(incoming)
            else:  # the lasting name is somebody else's to clear up, or has its row already
                self._store.drop(incoming)
            raise
        self._unsettled.append((incoming, arrival.key))
        if not new:  # whose the lasting name was may have ended and cleared it up before there was a row
            self._store.publish(incoming, arrival.key)
        if association is None or len(self._unsettled) >= _MOST_UNSETTLED or incoming.size >= _LARGE:
            self._settle()
        if outcome.recorded is Recorded.CONFLICT:
            log.warning(
                "an instance contradicts a known one; its study is held for a person",
                study=outcome.trace,
                sop_instance_uid=arrival.sop_instance_uid,
            )
        else:
            self._announce(outcome.trace, association)
        return outcome.recorded

    def _published(self, incoming: Incoming, key: str) -> bool:
        try:
            return self._store.publish(incoming, key)
        except BaseException:  # each further try would leave one more file on a disk that may be full
            self._store.drop(incoming)
            raise

    def _settle(self) -> None:
        """Make lasting names and rows durable, then let the temporary names go.

        At the end of an association, or when they are many; at once for what is large or has no association that ends.
        """
        with self._settling:
            files = self._unsettled[:]
            if files:
                self._database.sync()
                self._store.settle(files)
                del self._unsettled[: len(files)]

    def _limited(self, fragments: Iterable[bytes | memoryview]) -> Iterator[bytes | memoryview]:
        """Count what comes, and break off where it is too much."""
        size = 0
        for fragment in fragments:
            size += len(fragment)
            if size > self._max_instance_bytes:
                raise TooLargeError(
                    f"An instance has more than {self._max_instance_bytes} bytes; raise receiver.max_instance_bytes."
                )
            yield fragment

    def _announce(self, trace: str, association: int | None) -> None:
        """Log one line for each study and association, so that a study can be followed from where it came."""
        traces = self._announced.setdefault(association, set())
        if trace not in traces:
            if len(traces) >= _MOST_ANNOUNCED:  # the other ways in have no association that ends
                traces.clear()
            traces.add(trace)
            log.info("images arrive", study=trace, association=association)

    def _record(self, arrival: Arrival, association: int | None) -> Outcome:
        outcome = self._recorder.record(arrival, association, self._quiet_period)
        if outcome.recorded is Recorded.UNDECIDED:
            one, other = self._fingerprint(arrival.key), self._fingerprint(outcome.rival)
            same = one is not None and one == other
            outcome = self._recorder.record(arrival, association, self._quiet_period, same_pixels=same)
        return outcome

    def _may_have_been_acknowledged(self, arrival: Arrival, incoming: Incoming) -> bool:
        """Tell whether a row may have been lost with the end of the database's log: only such are not durable at once.

        They are of instances that nobody knew, and of series that their association had brought images of.
        """
        return self._database.syncs_later and self._recorder.may_restore(arrival, incoming.association)

    def _found(self, incoming: Incoming) -> Arrival | None:
        """Read a file found in `incoming/`; None if it was not received whole, or would not have been taken.

        Raises:
            OSError: it cannot be read.
        """
        if not incoming.digest:
            return None
        with self._store.open_incoming(incoming) as stream:
            try:
                meta = read_head(stream)
            except UNREADABLE as error:
                if isinstance(error, OSError) and error.errno is not None:
                    raise
                return None
            offset = stream.tell()
            if hashlib.file_digest(stream, "sha256").hexdigest() != incoming.digest:  # type: ignore[arg-type]
                return None
            size = stream.tell()
            stream.seek(offset)
            try:
                return _arrival(meta, read_header(stream, meta.transfer_syntax_uid), replace(incoming, size=size))
            except (NotAcceptedError, UnreadableError):
                return None

    def _header(self, meta: FileMeta, incoming: Incoming) -> Header:
        """Read the header, from memory where the data set's beginning holds it whole."""
        plain = read_beginning(incoming.beginning, meta.transfer_syntax_uid)
        if plain is not None:
            return plain
        beginning = BytesIO(incoming.beginning)
        if incoming.offset + len(incoming.beginning) == incoming.size:
            return read_header(beginning, meta.transfer_syntax_uid)
        try:
            header = read_header(beginning, meta.transfer_syntax_uid)
            if beginning.tell() < len(incoming.beginning):  # it stopped at the pixels
                return header
        except UnreadableError:
            pass  # it may only be longer
        with self._store.open_incoming(incoming) as stream:
            return read_header(stream, meta.transfer_syntax_uid)

    def _fingerprint(self, key: str) -> str | None:
        """Hash pixels and geometry; None where they cannot be read, so that nobody can call them equal."""
        # Seldom needed, and what decodes pixels would take the start of the receiver's time.
        from dicomai.fingerprint import fingerprint_of  # noqa: PLC0415  see above

        with self._store.open(key) as stream:
            try:
                return fingerprint_of(stream)
            except UNREADABLE:
                return None


def _arrival(meta: FileMeta, header: Header, incoming: Incoming) -> Arrival:
    for keyword, announced, found in (
        ("SOPClassUID", meta.sop_class_uid, header.sop_class_uid),
        ("SOPInstanceUID", meta.sop_instance_uid, header.sop_instance_uid),
    ):
        if announced != found:
            raise NotAcceptedError(f"The data set's {keyword} is not the one that was announced; correct the sender.")
    _refuse_unwritable(header)
    digest = identify(meta.transfer_syntax_uid, incoming.digest)
    return Arrival(
        study_instance_uid=header.study_instance_uid,
        series_instance_uid=header.series_instance_uid,
        sop_instance_uid=header.sop_instance_uid,
        sop_class_uid=checked_uid(header.sop_class_uid, "SOPClassUID"),
        is_image=header.is_image,
        modality=header.modality,
        description=header.description,
        identity=header.identity,
        key=_key(header, digest),
        digest=digest,
        size=incoming.size,
    )


def _refuse_unwritable(header: Header) -> None:
    """Refuse what no database can write: some encodings of text (PS3.5 6.1) can be bent into half a character."""
    whose = header.identity
    texts = (header.modality, header.description, whose.patient_id, whose.issuer_of_patient_id, whose.patient_name)
    try:
        for text in (*texts, whose.patient_birth_date):
            text.encode()
    except UnicodeEncodeError:
        raise UnreadableError(
            "The data set's text is not of the character set that it names; correct the instance at its source."
        ) from None


def _refuse_stray(arrival: Arrival, study_instance_uid: str | None) -> None:
    if study_instance_uid not in {None, arrival.study_instance_uid}:
        raise NotAcceptedError("The instance is of another study than it was sent to; correct the sender.")


def _key(header: Header, digest: str) -> str:
    return instance_key(header.study_instance_uid, header.series_instance_uid, header.sop_instance_uid, digest)
