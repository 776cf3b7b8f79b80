"""Storage Commitment Push Model SCU (PS3.4 Annex J): a request, and the report on it, by whichever way it comes."""

import threading
import time
from collections.abc import Sequence
from typing import cast

from pydicom.dataset import Dataset
from pynetdicom import build_context, evt
from pynetdicom.dimse_messages import N_EVENT_REPORT_RSP
from pynetdicom.dimse_primitives import N_EVENT_REPORT
from pynetdicom.events import Event, EventHandlerType

from dicomai.destinations.base import Outgoing, Report, Reported
from dicomai.destinations.dimse.association import Peer, requested
from dicomai.errors import NotAdmittedError, RejectedError, UnreachableError
from dicomai.study import UNREADABLE

PUSH_MODEL = "1.2.840.10008.1.20.1"
"""Storage Commitment Push Model SOP Class."""

PUSH_MODEL_INSTANCE = "1.2.840.10008.1.20.1.1"
"""Its well-known SOP Instance."""

SUCCESS = 0x0000
PROCESSING_FAILURE = 0x0110
NO_SUCH_INSTANCE = 0x0112
NO_SUCH_EVENT = 0x0113
INVALID_ARGUMENT = 0x0115

_ASK = 1  # Action Type ID (PS3.4 Table J.3.2-1)
_EVENTS = frozenset({1, 2})  # Event Type ID (PS3.4 Table J.3.3-1)
_FOR_NOW = frozenset({0x0110, 0x0210, 0x0213})  # processing failure, duplicate invocation, resource limitation
_LISTEN_SECONDS = 2.0  # others call back: a lane does not stand still for those that report at once
_LOOK_SECONDS = 0.05


class ReportError(Exception):
    """A report that cannot be taken.

    Attributes:
        status: what is answered (PS3.7 10.1.1.1.8).
    """

    def __init__(self, status: int) -> None:
        super().__init__(f"{status:04X}")
        self.status = status


def read_report(sop_instance_uid: str, event_type: int, ds: Dataset) -> Report:
    """Read an N-EVENT-REPORT (PS3.4 Table J.3.3-1).

    Args:
        sop_instance_uid: Affected SOP Instance UID.
        event_type: Event Type ID.
        ds: Event Information.

    Raises:
        ReportError: it is none of storage commitment.
    """
    if sop_instance_uid != PUSH_MODEL_INSTANCE:
        raise ReportError(NO_SUCH_INSTANCE)
    if event_type not in _EVENTS:
        raise ReportError(NO_SUCH_EVENT)
    try:
        transaction = str(ds.TransactionUID)
        committed = frozenset(str(one.ReferencedSOPInstanceUID) for one in ds.get("ReferencedSOPSequence") or ())
        failed = {
            str(one.ReferencedSOPInstanceUID): int(one.FailureReason) if one.get("FailureReason") is not None else None
            for one in ds.get("FailedSOPSequence") or ()
        }
    except UNREADABLE as error:
        raise ReportError(INVALID_ARGUMENT) from error
    return Report(transaction, committed, failed)


def take_report(sop_instance_uid: str, event_type: int, ds: Dataset, reported: Reported) -> int:
    """Hand a report on; gives the status to answer: 0110 where the transaction is none of ours."""
    try:
        report = read_report(sop_instance_uid, event_type, ds)
    except ReportError as error:
        return error.status
    return SUCCESS if reported(report) else PROCESSING_FAILURE


def request(
    peer: Peer, objects: Sequence[Outgoing], transaction_uid: str, reported: Reported, *, listens: bool
) -> None:
    """Ask for commitment, and listen on the association for a while if told to.

    Raises:
        ConfigurationError: a file of `[tls]` is missing or wrong.
        UnreachableError: no connection, it broke, or the peer cannot take the request for now.
        RejectedError: the peer offers no Storage Commitment, or refuses the request.
    """
    answered = threading.Event()

    def hear(event: Event) -> tuple[int, None]:
        asked = cast("N_EVENT_REPORT", event.request)
        sop_instance_uid, event_type = str(asked.AffectedSOPInstanceUID), asked.EventTypeID or 0
        return take_report(sop_instance_uid, event_type, event.event_information, reported), None

    def sent(event: Event) -> None:
        if isinstance(event.message, N_EVENT_REPORT_RSP):
            answered.set()

    handlers: list[EventHandlerType] = [(evt.EVT_N_EVENT_REPORT, hear), (evt.EVT_DIMSE_SENT, sent)]
    try:
        with requested(peer, [build_context(PUSH_MODEL)], connect_timeout=peer.timeout, handlers=handlers) as link:
            with link.talk():
                answer, _ = link.assoc.send_n_action(
                    _action(objects, transaction_uid), _ASK, PUSH_MODEL, PUSH_MODEL_INSTANCE
                )
            if "Status" not in answer:
                raise link.broken()
            end = time.monotonic() + (_LISTEN_SECONDS if listens else 0.0)
            while answer.Status == SUCCESS and link.assoc.is_established and time.monotonic() < end:
                if answered.wait(_LOOK_SECONDS):
                    time.sleep(_LOOK_SECONDS)  # the library says so just before it sends the answer
                    break
    except NotAdmittedError:
        raise
    except RejectedError as error:
        raise RejectedError(f"What was accepted cannot be committed: {error}") from error
    if answer.Status != SUCCESS:
        said = f"{peer} answered {answer.Status:04X} to a request for storage commitment"
        if answer.Status in _FOR_NOW:
            raise UnreachableError(f"{said}: another attempt may succeed; look into its log if this goes on.")
        raise RejectedError(f"{said}: look up the reason in its log, correct it, then retry.")


def _action(objects: Sequence[Outgoing], transaction_uid: str) -> Dataset:
    """Make the Action Information (PS3.4 Table J.3.2-1)."""
    ds = Dataset()
    ds.TransactionUID = transaction_uid
    ds.ReferencedSOPSequence = [Dataset() for _ in objects]
    for item, outgoing in zip(ds.ReferencedSOPSequence, objects, strict=True):
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = outgoing.sop_class_uid, outgoing.sop_instance_uid
    return ds
