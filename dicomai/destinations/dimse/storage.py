"""An association on which objects are sent, and what the peer answers to each (PS3.4 Annex B, PS3.7 9.1.1)."""

import contextlib
import io
import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import BinaryIO

import pydicom
from pydicom.datadict import keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID
from pynetdicom import build_context
from pynetdicom.status import STORAGE_SERVICE_CLASS_STATUS

from dicomai.destinations.base import Outgoing
from dicomai.destinations.dimse import stream, transcode
from dicomai.destinations.dimse.association import Link, Peer, requested
from dicomai.errors import DeliveryError, NotKeptError, RejectedError, StoreError, UnreachableError
from dicomai.filemeta import data_set_at, read_meta
from dicomai.rejection import KEY_OBJECT_SELECTION, RejectionNote
from dicomai.study import UNREADABLE

MAX_CONTEXTS = 128
"""Presentation contexts that one association can have (PS3.8 9.3.2.2: odd numbers up to 255)."""

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
_HEAD = 1024  # bytes that hold the file meta information of most files
# What archives after IHE IOCM answer to a rejection note, as dcm4chee does; elsewhere A7xx is a lack of resources.
_NOTE_IS_THERE = 0xA770
_TO_NOTES = {
    _NOTE_IS_THERE: "it has this rejection note already",
    0xA772: "it does not have an object that the rejection note names",
    0xA773: "it has an object that the rejection note names in another SOP class",
    0xA774: "an object that the rejection note names was rejected by another one",
    0xA775: "it takes no rejection note with this title from here",
    0xA776: "it has to retain an object that the rejection note names",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """A C-STORE or C-ECHO response.

    Attributes:
        status: Status (0000,0900).
        elements: Offending Element (0000,0901), as keywords: what was coerced, or does not fit (PS3.4 B.2.3).
        recoded: the transfer syntax that was sent, where it is not the object's own; '' else.
        is_to_note: it is to a rejection note, and one of those that mean something of their own there.
    """

    status: int
    elements: tuple[str, ...] = ()
    recoded: str = ""
    is_to_note: bool = False

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

    def to(self, outgoing: Outgoing) -> "Answer":
        """Read it as the answer to an object, whose header is looked at only where that matters."""
        return replace(self, is_to_note=self.status in _TO_NOTES and _rejects(outgoing))

    @property
    def is_duplicate(self) -> bool:
        """The peer says that it has the object already: it may be ours, whose answer was lost."""
        return self.status == _DUPLICATE or (self.is_to_note and self.status == _NOTE_IS_THERE)

    @property
    def is_accepted(self) -> bool:
        """Success or a warning: the peer has the object."""
        return self.status == 0x0000 or self.status in _WARNINGS

    @property
    def meaning(self) -> str:
        """What the standard says of the status, the elements that the peer names, and how it was sent if not as it is.

        '' for success of what was sent as it is.
        """
        said = [f"sent in {UID(self.recoded).name}"] if self.recoded else []
        if self.status == 0x0000:
            return "".join(said)
        _, text = STORAGE_SERVICE_CLASS_STATUS.get(self.status, ("", ""))
        if self.is_to_note:
            text = _TO_NOTES[self.status]
        text = text or ("warning" if self.status in _WARNINGS else "failure")
        return "; ".join([f"{text}: {', '.join(self.elements)}" if self.elements else text, *said])

    def error(self, what: str, peer: object) -> DeliveryError:
        """Make the error for a failure status; the peer is named by its text."""
        said = f"{peer} answered {self.status:04X} ({self.meaning}) to {what}"
        if self.status in _FOR_GOOD or self.is_to_note:
            return RejectedError(f"{said}: look up the reason in its log, correct it, then retry.")
        if 0xC000 <= self.status <= 0xCFFF:  # cannot understand
            return NotKeptError(f"{said}: look up the reason in its log.")
        return UnreachableError(f"{said}: another attempt may succeed; look into its log if this goes on.")


class StorageLink(Link):
    """An association on which objects are sent."""

    _stored = 0

    def taken_in(self, sop_class_uid: str, transfer_syntax_uid: str) -> str:
        """Give the transfer syntax in which objects of this kind are sent: their own, or the best that is taken.

        Raises:
            RejectedError: the peer accepted no presentation context for it.
        """
        accepted = {(str(c.abstract_syntax), str(c.transfer_syntax[0])) for c in self.assoc.accepted_contexts}
        for syntax in (transfer_syntax_uid, *transcode.fallbacks(transfer_syntax_uid)):
            if (sop_class_uid, syntax) in accepted:
                return syntax
        raise RejectedError(
            f"{self.peer} does not take {UID(sop_class_uid).name} in {UID(transfer_syntax_uid).name}:"
            " allow this SOP class and transfer syntax there, then retry."
        )

    def store(self, outgoing: Outgoing) -> Answer:
        """Send an object's data set as it is, as it is read; encoded anew where the peer does not take it so.

        Raises:
            RejectedError: the peer accepted no presentation context for it, it cannot be encoded anew, or is none.
            UnreachableError: the association broke, or nothing moved for the time-out.
            StoreError: its bytes cannot be had.
        """
        own = outgoing.transfer_syntax_uid
        syntax = self.taken_in(outgoing.sop_class_uid, own)
        kind, uid = (outgoing.sop_class_uid, syntax), outgoing.sop_instance_uid
        if syntax != own:
            again = transcode.recode(outgoing, syntax)
            answer = replace(self._store(kind, uid, (io.BytesIO(again), len(again))), recoded=syntax)
        else:
            with outgoing.open() as file:
                answer = self._store(kind, uid, (file, _at_data_set(outgoing, file)))
        return answer.to(outgoing)

    def _store(self, kind: tuple[str, str], sop_instance_uid: str, data_set: tuple[BinaryIO, int]) -> Answer:
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


def contexts_of(objects: Iterable[Outgoing]) -> list[tuple[str, str]]:
    """Give SOP class and transfer syntax of what is proposed for objects: their own, then what they can be sent in."""
    own = dict.fromkeys((o.sop_class_uid, o.transfer_syntax_uid) for o in objects)
    others = ((sop_class, other) for sop_class, syntax in own for other in transcode.fallbacks(syntax))
    return list(dict.fromkeys([*own, *others]))


def batches(objects: Iterable[Outgoing]) -> Iterator[list[Outgoing]]:
    """Cut objects, in their order, into runs that one association can carry."""
    batch: list[Outgoing] = []
    contexts: set[tuple[str, str]] = set()
    for outgoing in objects:
        more = contexts.union(contexts_of([outgoing]))
        if len(more) > MAX_CONTEXTS:
            yield batch
            batch, more = [], set(contexts_of([outgoing]))
        batch.append(outgoing)
        contexts = more
    if batch:
        yield batch


def _rejects(outgoing: Outgoing) -> bool:
    """Tell whether an object is a rejection note."""
    if outgoing.sop_class_uid != KEY_OBJECT_SELECTION:
        return False
    try:
        with outgoing.open() as file:
            return RejectionNote.of(pydicom.dcmread(file)) is not None
    except UNREADABLE:
        return False


def _named(tag: BaseTag) -> str:
    return keyword_for_tag(tag) or str(tag)


def _at_data_set(outgoing: Outgoing, file: BinaryIO) -> int:
    """Go to where the data set of a DICOM file begins (PS3.10 7.1); gives its length in bytes.

    Raises:
        RejectedError: there is none, or this is no DICOM file any more.
        StoreError: the file cannot be read.
    """
    try:
        start = data_set_at(file.read(_HEAD))
        if start is None:
            file.seek(0)
            read_meta(file)
            start = file.tell()
        length = file.seek(0, os.SEEK_END) - start
        file.seek(start)
    except OSError as error:
        raise StoreError(
            f"SOP Instance {outgoing.sop_instance_uid} cannot be read ({type(error).__name__}): look at the storage."
        ) from error
    except UNREADABLE as error:
        raise RejectedError(
            f"SOP Instance {outgoing.sop_instance_uid} is no DICOM file ({type(error).__name__}): look at the storage."
        ) from error
    if not length:
        raise RejectedError(f"SOP Instance {outgoing.sop_instance_uid} has no data set: look for where it was cut off.")
    return length
