"""C-STORE SCU (PS3.4 Annex B) and Verification SCU (Annex A) on pynetdicom."""

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom.datadict import keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID
from pynetdicom import build_context
from pynetdicom.status import STORAGE_SERVICE_CLASS_STATUS

from dicomai.config import DicomDestination, TlsSettings
from dicomai.destinations.base import Accepted, Outgoing
from dicomai.destinations.dimse.association import Link, Peer, requested
from dicomai.destinations.dimse.find import Place, finding
from dicomai.errors import (
    ConfigurationError,
    DeliveryError,
    NoAssociationError,
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
_COERCED = 0xB000


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

    def error(self, what: str, peer: Peer) -> DeliveryError:
        """Make the error for a failure status."""
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
    def verify_timeout(self) -> float | None:
        """Seconds for an accepted object to be shown by C-FIND; None where it is not asked."""
        settings = self._peer.settings
        return settings.verify_timeout if settings.verify == "find" else None

    def reach(self) -> None:
        """Ask by C-ECHO whether the destination is there; one that talks to us, and be it to refuse, is.

        Raises:
            UnreachableError: it is not.
        """
        with self._called(), contextlib.suppress(RejectedError), associate(self._peer, [_VERIFICATION]) as link:
            link.echo()

    def missing(self, objects: Sequence[Outgoing]) -> list[Outgoing]:
        """Give those of some accepted objects that C-FIND does not show at the level of images.

        Raises:
            UnreachableError: no connection, it broke, or the destination cannot answer for now.
            RejectedError: the destination offers no C-FIND in the Study Root, or refuses the query.
        """
        try:
            with self._called(), finding(self._peer) as finder:
                return [outgoing for outgoing in objects if not finder.has(Place.of(outgoing))]
        except RejectedError as error:
            raise RejectedError(f"What was accepted cannot be looked for: {error}") from error

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
        coerced: list[tuple[Outgoing, str]] = []

        def took(outgoing: Outgoing, status: int, meaning: str) -> None:
            accepted(outgoing, status, meaning)
            left.remove(outgoing)
            if status == _COERCED:
                coerced.append((outgoing, meaning))

        failure: DeliveryError | None = None
        try:
            while left:
                with self._called():
                    duplicate = self._send(list(left), took)
                if duplicate is not None:
                    self._look_for(left[0], duplicate)
                    took(left[0], _DUPLICATE, f"{duplicate.meaning}; C-FIND shows it there")
        except DeliveryError as error:  # what was accepted before is still to be looked into
            failure = error
        self._look_into(coerced, accepted)
        if failure is not None:
            raise failure

    @contextlib.contextmanager
    def _called(self) -> Iterator[None]:
        try:
            yield
        except ConfigurationError as error:  # certificates are replaced one file after the other
            raise NoAssociationError(f"{self._peer} is not called: {error}") from error

    def _look_for(self, outgoing: Outgoing, duplicate: Answer) -> None:
        """Make sure that an object of which the destination says that it has it is there.

        Raises:
            NotKeptError: it does not show it, yet or at all.
            RejectedError: the destination offers no C-FIND.
            UnreachableError: the destination cannot answer for now.
        """
        said = duplicate.error(f"SOP Instance {outgoing.sop_instance_uid}", self._peer)
        try:
            with self._called(), finding(self._peer) as finder:
                shown = finder.has(Place.of(outgoing))
        except RejectedError as error:
            raise RejectedError(f"{said} C-FIND cannot tell whether it is there: {error}") from error
        if not shown:
            raise NotKeptError(f"{said} C-FIND does not show it there.")

    def _look_into(self, coerced: Sequence[tuple[Outgoing, str]], accepted: Accepted) -> None:
        """Report of coerced objects what C-FIND shows of them; they are accepted in any case."""
        if not coerced:
            return
        try:
            with self._called(), finding(self._peer) as finder:
                found = [finder.misfiled(Place.of(outgoing)) for outgoing, _ in coerced]
        except DeliveryError:
            found = ["not looked up by C-FIND"] * len(coerced)
        for (outgoing, meaning), what in zip(coerced, found, strict=True):
            if what:
                accepted(outgoing, _COERCED, f"{meaning}; {what}")

    def _send(self, objects: Sequence[Outgoing], accepted: Accepted) -> Answer | None:
        """Send over one association; gives the answer to the first object that is said to be there already."""
        wanted = list(dict.fromkeys((o.sop_class_uid, o.transfer_syntax_uid) for o in objects))
        with associate(self._peer, wanted) as link:
            for sop_class_uid, transfer_syntax_uid in wanted:
                link.require(sop_class_uid, transfer_syntax_uid)
            for outgoing in objects:
                with _as_file(outgoing.data) as path:
                    answer = link.store(path)
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

    def store(self, path: Path) -> Answer:
        """Send a DICOM file's data set as it is.

        Raises:
            UnreachableError: the association broke, or nothing moved for the time-out.
        """
        with self.talk():
            response = self.assoc.send_c_store(path)
        if "Status" not in response:
            raise self.broken()
        return Answer.of(response)

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


@contextlib.contextmanager
def _as_file(data: bytes) -> Iterator[Path]:
    """Lend bytes as a file, which is how the library sends a data set without encoding it again.

    The file is in memory alone: nothing of a patient is left on disk if the process is killed.
    """
    descriptor = os.memfd_create("dicomai")
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)
        stream.flush()
        yield Path(f"/proc/self/fd/{descriptor}")
