"""C-STORE SCU (PS3.4 Annex B) and Verification SCU (Annex A) on pynetdicom."""

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom.uid import UID
from pynetdicom import build_context
from pynetdicom.status import STORAGE_SERVICE_CLASS_STATUS

from dicomai.config import DicomDestination, TlsSettings
from dicomai.destinations.base import Accepted, Outgoing
from dicomai.destinations.dimse.association import Link, Peer, requested
from dicomai.errors import ConfigurationError, DeliveryError, RejectedError, UnreachableError
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
        0x0111,  # duplicate SOP instance: it may be ours, whose answer was lost, but nothing here shows it
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


@dataclass(frozen=True, slots=True)
class Answer:
    """A C-STORE or C-ECHO response.

    Attributes:
        status: Status (0000,0900).
    """

    status: int

    @property
    def is_accepted(self) -> bool:
        """Success or a warning: the peer has the object."""
        return self.status == 0x0000 or self.status in _WARNINGS

    @property
    def meaning(self) -> str:
        """What the standard says of the status; '' for success. The peer's own comment may name a patient."""
        if self.status == 0x0000:
            return ""
        _, text = STORAGE_SERVICE_CLASS_STATUS.get(self.status, ("", ""))
        return text or ("warning" if self.status in _WARNINGS else "failure")

    def error(self, what: str, peer: Peer) -> DeliveryError:
        """Make the error for a failure status."""
        said = f"{peer} answered {self.status:04X} ({self.meaning}) to {what}"
        if self.status in _FOR_GOOD:
            return RejectedError(f"{said}: look up the reason in its log, correct it, then retry.")
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

    def send(self, objects: Sequence[Outgoing], accepted: Accepted) -> None:
        """Send objects in the order given over one association, each in its own transfer syntax, byte for byte.

        Nothing is sent unless the destination has accepted a presentation context for every one.

        Raises:
            UnreachableError: no connection, it broke, or the destination cannot take the object for now.
            RejectedError: the destination refuses the association or an object for good.
        """
        if not objects:
            return
        try:
            self._send(objects, accepted)
        except ConfigurationError as error:  # certificates are replaced one file after the other
            raise UnreachableError(f"{self._peer} is not called: {error}") from error

    def _send(self, objects: Sequence[Outgoing], accepted: Accepted) -> None:
        wanted = list(dict.fromkeys((o.sop_class_uid, o.transfer_syntax_uid) for o in objects))
        with associate(self._peer, wanted) as link:
            for sop_class_uid, transfer_syntax_uid in wanted:
                link.require(sop_class_uid, transfer_syntax_uid)
            for outgoing in objects:
                with _as_file(outgoing.data) as path:
                    answer = link.store(path)
                if not answer.is_accepted:
                    raise answer.error(f"SOP Instance {outgoing.sop_instance_uid}", self._peer)
                accepted(outgoing, answer.status, answer.meaning)


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
        return Answer(int(response.Status))

    def echo(self) -> Answer:
        """Send C-ECHO.

        Raises:
            UnreachableError: the association broke, or nothing moved for the time-out.
        """
        with self.talk():
            response = self.assoc.send_c_echo()
        if "Status" not in response:
            raise self.broken()
        return Answer(int(response.Status))


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
