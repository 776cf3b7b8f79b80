"""C-STORE SCU (PS3.4 Annex B) and Verification SCU (Annex A) on pynetdicom."""

import contextlib
import io
import mmap
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pydicom.datadict import keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset, read_preamble
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID
from pynetdicom import build_context
from pynetdicom.status import STORAGE_SERVICE_CLASS_STATUS

from dicomai.config import DicomDestination, TlsSettings
from dicomai.destinations.base import Accepted, Outgoing, Reported
from dicomai.destinations.dimse import commitment, stream
from dicomai.destinations.dimse.association import Link, Peer, requested
from dicomai.destinations.dimse.find import Finder, Place, finding
from dicomai.errors import (
    ConfigurationError,
    DeliveryError,
    NoAssociationError,
    NotAdmittedError,
    NotKeptError,
    RejectedError,
    UnreachableError,
)
from dicomai.tls import client_args

MAX_CONTEXTS = 128
"""Presentation contexts that one association can have (PS3.8 9.3.2.2: odd numbers up to 255)."""

_VERIFICATION = ("1.2.840.10008.1.1", "1.2.840.10008.1.2")
_WARNINGS = frozenset({0x0001, 0x0107, 0x0116, *range(0xB000, 0xC000)})  # PS3.7 Annex C
_FOR_GOOD = frozenset(
    {
        *range(0xA900, 0xAA00),  # data set does not match SOP class
        0x0105,  # no such attribute
        0x0106,  # invalid attribute value
        0x0111,  # duplicate SOP instance: it may be ours, whose answer was lost; not if C-FIND does not show it
        0x0115,  # invalid argument value
        0x0117,  # invalid object instance
        0x0118,  # no such SOP class
        0x0119,  # class-instance conflict
        0x0120,  # missing attribute
        0x0121,  # missing attribute value
        0x0122,  # SOP class not supported
        0x0124,  # not authorized
        0x0211,  # unrecognized operation
        0x0212,  # mistyped argument
    }
)


_DUPLICATE = 0x0111
_BEGINNING = b"DICM\x02\0\0\0UL\x04\0"  # and FileMetaInformationGroupLength


@dataclass(frozen=True, slots=True)
class Answer:
    """A C-STORE or C-ECHO response.

    Attributes:
        status: Status (0000,0900).
        elements: Offending Element (0000,0901), as keywords: what was coerced, or does not fit (PS3.4 B.2.3).
    """

    status: int
    elements: tuple[str, ...] = ()

    @classmethod
    def of(cls, response: Dataset) -> "Answer":
        """Read a response; its Error Comment (0000,0902) is left out, for it may name a patient."""
        found = response.get("OffendingElement") or []
        tags = found if isinstance(found, MultiValue | list) else [found]
        return cls(int(response.Status), tuple(_named(Tag(tag)) for tag in tags))

    @classmethod
    def read(cls, elements: Mapping[int, bytes]) -> "Answer | None":
        """Read a response by its encoded elements (PS3.7 E.1); None where it has no status."""
        status, offending = elements.get(0x0900, b""), elements.get(0x0901, b"")
        if len(status) != 2:
            return None
        tags = [struct.unpack_from("<HH", offending, at) for at in range(0, len(offending) - 3, 4)]
        return cls(int.from_bytes(status, "little"), tuple(_named(Tag(*tag)) for tag in tags))

    @property
    def is_accepted(self) -> bool:
        """Success or a warning: the peer has the object."""
        return self.status == 0x0000 or self.status in _WARNINGS

    @property
    def meaning(self) -> str:
        """What the standard says of the status, and the elements that the peer names; '' for success."""
        if self.status == 0x0000:
            return ""
        _, text = STORAGE_SERVICE_CLASS_STATUS.get(self.status, ("", ""))
        text = text or ("warning" if self.status in _WARNINGS else "failure")
        return f"{text}: {', '.join(self.elements)}" if self.elements else text

    def error(self, what: str, peer: object) -> DeliveryError:
        """Make the error for a failure status; the peer is named by its text."""
        said = f"{peer} answered {self.status:04X} ({self.meaning}) to {what}"
        if self.status in _FOR_GOOD:
            return RejectedError(f"{said}: look up the reason in its log, correct it, then retry.")
        if 0xC000 <= self.status <= 0xCFFF:  # cannot understand
            return NotKeptError(f"{said}: look up the reason in its log.")
        return UnreachableError(f"{said}: another attempt may succeed; look into its log if this goes on.")


class DimseDestination:
    """A Storage SCP, such as a PACS."""

    def __init__(
        self, settings: DicomDestination, *, calling_ae: str, timeout: float, tls: TlsSettings | None = None
    ) -> None:
        """Make the destination; the association is requested by `send`.

        Args:
            settings: the entry of the configuration.
            calling_ae: the node's AE title.
            timeout: seconds without any progress after which an attempt ends.
            tls: the section `[tls]`.

        Raises:
            ConfigurationError: a file of `[tls]` is missing or wrong.
        """
        self._peer = Peer(settings, calling_ae, timeout, tls or TlsSettings())
        client_args(self._peer.tls, settings)  # what is wrong with the files is to be said now, not at the first send

    @property
    def name(self) -> str:
        """The name in the configuration."""
        return self._peer.settings.name

    @property
    def max_age(self) -> float | None:
        """Seconds after which a result is too old to be sent; None where it never is."""
        return self._peer.settings.max_age

    @property
    def withdraws_superseded(self) -> bool:
        """Whether it is told by a rejection note of a result that another has taken the place of."""
        return self._peer.settings.withdraw_superseded

    @property
    def verify_timeout(self) -> float | None:
        """Seconds for an accepted object to be shown by C-FIND; None where it is not asked."""
        settings = self._peer.settings
        return settings.verify_timeout if settings.verify == "find" else None

    @property
    def ae_title(self) -> str:
        """The destination's AE title."""
        return self._peer.settings.ae_title

    @property
    def commitment_timeout(self) -> float | None:
        """Seconds for its report after it was asked for storage commitment; None where it is not asked."""
        settings = self._peer.settings
        return settings.commitment_timeout if settings.commitment else None

    @property
    def waits_for_source(self) -> bool:
        """Whether a result is sent only once the images are there of which it was made."""
        return self._peer.settings.wait_for_source

    def reach(self) -> None:
        """Ask by C-ECHO whether the destination is there; one that admits us, and be it to refuse the echo, is.

        Raises:
            UnreachableError: it is not.
            NotAdmittedError: it has no association with us, until a person corrects that.
        """
        try:
            with self._called(), associate(self._peer, [_VERIFICATION]) as link:
                link.echo()
        except NotAdmittedError:
            raise
        except RejectedError:
            return

    def whereabouts(self, objects: Sequence[Outgoing]) -> dict[str, str | None]:
        """Say by C-FIND, by SOP Instance UID, how accepted objects are filed: '' as they were sent, None not at all.

        Raises:
            UnreachableError: no connection, it broke, or the destination cannot answer for now.
            RejectedError: the destination offers no C-FIND in the Study Root, or refuses the query.
        """
        with self._finding("What was accepted cannot be looked for") as finder:
            return {outgoing.sop_instance_uid: finder.whereabouts(Place.of(outgoing)) for outgoing in objects}

    def lacking(self, series: Sequence[tuple[str, str, int]]) -> list[str]:
        """Give the UIDs of the series (study, series, number of images) of which C-FIND shows less.

        Raises:
            UnreachableError: no connection, it broke, or the destination cannot answer for now.
            RejectedError: the destination offers no C-FIND in the Study Root, or refuses the query.
        """
        with self._finding("The images behind the result cannot be looked for") as finder:
            return [uid for study, uid, images in series if finder.lacks(study, uid, images)]

    def request_commitment(self, objects: Sequence[Outgoing], transaction_uid: str, reported: Reported) -> None:
        """Ask for storage commitment (PS3.4 J.3.2), and listen for a while whether the report comes at once.

        Raises:
            UnreachableError: no connection, it broke, or the destination cannot be asked for now.
            RejectedError: the destination offers no Storage Commitment, or refuses the request.
        """
        with self._called():
            commitment.request(self._peer, objects, transaction_uid, reported)

    def send(self, objects: Sequence[Outgoing], accepted: Accepted) -> None:
        """Send objects in the order given over one association, each in its own transfer syntax, byte for byte.

        Nothing is sent unless the destination has accepted a presentation context for every one. What it says to have
        already (0111) is looked for by C-FIND; what comes after goes over a further association.

        Raises:
            NoAssociationError: no association could be had for now.
            NotKeptError: the destination cannot make sense of an object (Cxxx).
            UnreachableError: no connection, it broke, or the destination cannot take the object for now.
            RejectedError: the destination refuses the association or an object for good.
        """
        left = list(objects)

        def took(outgoing: Outgoing, status: int, meaning: str) -> None:
            accepted(outgoing, status, meaning)
            left.remove(outgoing)

        while left:
            with self._called():
                duplicate = self._send(list(left), took)
            if duplicate is not None:
                took(left[0], _DUPLICATE, self._looked_for(left[0], duplicate))

    @contextlib.contextmanager
    def _finding(self, why_not: str) -> Iterator[Finder]:
        try:
            with self._called(), finding(self._peer) as finder:
                yield finder
        except NotAdmittedError:
            raise
        except RejectedError as error:
            raise RejectedError(f"{why_not}: {error}") from error

    @contextlib.contextmanager
    def _called(self) -> Iterator[None]:
        try:
            yield
        except ConfigurationError as error:  # certificates are replaced one file after the other
            raise NoAssociationError(f"{self._peer} is not called: {error}") from error

    def _looked_for(self, outgoing: Outgoing, duplicate: Answer) -> str:
        """Make sure that an object of which the destination says that it has it is there; gives what to say of it.

        Raises:
            NotKeptError: it does not show it, yet or at all.
            RejectedError: the destination offers no C-FIND.
            UnreachableError: the destination cannot answer for now.
        """
        said = duplicate.error(f"SOP Instance {outgoing.sop_instance_uid}", self._peer)
        with self._finding(f"{said} C-FIND cannot tell whether it is there") as finder:
            where = finder.whereabouts(Place.of(outgoing))
        if where is None:
            raise NotKeptError(f"{said} C-FIND does not show it there.")
        return f"{duplicate.meaning}; C-FIND shows it there{', ' if where else ''}{where}"

    def _send(self, objects: Sequence[Outgoing], accepted: Accepted) -> Answer | None:
        """Send over one association; gives the answer to the first object that is said to be there already."""
        wanted = list(dict.fromkeys((o.sop_class_uid, o.transfer_syntax_uid) for o in objects))
        with associate(self._peer, wanted) as link:
            for sop_class_uid, transfer_syntax_uid in wanted:
                link.require(sop_class_uid, transfer_syntax_uid)
            for outgoing in objects:
                answer = link.store(outgoing)
                if answer.status == _DUPLICATE:
                    return answer
                if not answer.is_accepted:
                    raise answer.error(f"SOP Instance {outgoing.sop_instance_uid}", self._peer)
                accepted(outgoing, answer.status, answer.meaning)
        return None


def echo(settings: DicomDestination, *, calling_ae: str, timeout: float, tls: TlsSettings | None = None) -> float:
    """Verify a destination with C-ECHO.

    Returns:
        Seconds from the request for an association to the answer.

    Raises:
        ConfigurationError: a file of `[tls]` is missing or wrong.
        UnreachableError: no connection, or no answer.
        RejectedError: the association, or Verification, is refused for good.
    """
    peer = Peer(settings, calling_ae, timeout, tls or TlsSettings())
    start = time.monotonic()
    with associate(peer, [_VERIFICATION]) as link:
        answer = link.echo()
        seconds = time.monotonic() - start
    if not answer.is_accepted:
        raise answer.error("C-ECHO", peer)
    return seconds


class StorageLink(Link):
    """An association on which objects are sent."""

    _stored = 0

    def require(self, sop_class_uid: str, transfer_syntax_uid: str) -> None:
        """Make sure that objects of this kind can be sent.

        Raises:
            RejectedError: the peer accepted no presentation context for it.
        """
        accepted = {(str(c.abstract_syntax), str(c.transfer_syntax[0])) for c in self.assoc.accepted_contexts}
        if (sop_class_uid, transfer_syntax_uid) not in accepted:
            raise RejectedError(
                f"{self.peer} does not take {UID(sop_class_uid).name} in {UID(transfer_syntax_uid).name}:"
                " allow this SOP class and transfer syntax there, then retry."
            )

    def store(self, outgoing: Outgoing) -> Answer:
        """Send an object's data set as it is; its context has to be there, see `require`.

        Raises:
            UnreachableError: the association broke, or nothing moved for the time-out.
        """
        kind = (outgoing.sop_class_uid, outgoing.transfer_syntax_uid)
        data_set = memoryview(outgoing.data)[_offset(io.BytesIO(outgoing.data)) :]
        return self._store(kind, outgoing.sop_instance_uid, data_set)

    def store_file(self, path: Path, kind: tuple[str, str], sop_instance_uid: str) -> Answer:
        """Send a DICOM file's data set as it is, from where it lies.

        Args:
            path: the file.
            kind: its SOP class and transfer syntax.
            sop_instance_uid: its SOP Instance UID.

        Raises:
            UnreachableError: the association broke, or nothing moved for the time-out.
        """
        with path.open("rb") as file:
            offset = _offset(file)
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._store(kind, sop_instance_uid, memoryview(mapped)[offset:])

    def _store(self, kind: tuple[str, str], sop_instance_uid: str, data_set: memoryview) -> Answer:
        (context_id, *_) = (
            c.context_id or 0
            for c in self.assoc.accepted_contexts
            if (str(c.abstract_syntax), str(c.transfer_syntax[0])) == kind
        )
        self._stored += 1
        message_id = (self._stored - 1) % 0xFFFF + 1
        with self.talk():
            try:
                response = stream.store(
                    self.assoc, context_id, message_id, (kind[0], sop_instance_uid), data_set, self.watch.moved
                )
            except stream.BrokenError as error:
                raise self.broken() from error
        answer = Answer.read(response)
        if answer is None:
            raise self.broken()
        return answer

    def echo(self) -> Answer:
        """Send C-ECHO.

        Raises:
            UnreachableError: the association broke, or nothing moved for the time-out.
        """
        with self.talk():
            response = self.assoc.send_c_echo()
        if "Status" not in response:
            raise self.broken()
        return Answer.of(response)


@contextlib.contextmanager
def associate(peer: Peer, wanted: Sequence[tuple[str, str]]) -> Iterator[StorageLink]:
    """Hold an association; it is released at the end, aborted if an error that is not the peer's ends it.

    Args:
        peer: with whom.
        wanted: SOP class and transfer syntax of each presentation context, at most `MAX_CONTEXTS`.

    Raises:
        ConfigurationError: a file of `[tls]` is missing or wrong.
        UnreachableError: no connection, no answer, or refused for now.
        RejectedError: refused for good.
    """
    failure: DeliveryError | None = None
    contexts = [build_context(sop_class, syntax) for sop_class, syntax in wanted]
    with requested(peer, contexts, connect_timeout=peer.timeout) as link:
        try:
            yield StorageLink(link.peer, link.assoc, link.watch)
        except DeliveryError as error:  # the peer's answer to one object, to which nothing is owed any more
            failure = error
    if failure is not None:
        raise failure


def _named(tag: BaseTag) -> str:
    return keyword_for_tag(tag) or str(tag)


def _offset(file: BinaryIO) -> int:
    """Find where the data set of a DICOM file begins (PS3.10 7.1)."""
    head = file.read(144)
    if head[128:140] == _BEGINNING:
        return 144 + int.from_bytes(head[140:144], "little")
    file.seek(0)  # what others write without a group length
    read_preamble(file, force=False)
    read_dataset(file, is_implicit_VR=False, is_little_endian=True, stop_when=lambda tag, _, __: tag.group != 0x0002)
    return file.tell()
