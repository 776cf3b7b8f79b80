"""Instance Availability Notification SCP (PS3.4 Annex R): an archive says which instances it has."""

from typing import ClassVar

import structlog

from dicomai.database.announcements import Announcements, Said
from dicomai.log import trace_id
from dicomai.receiver import references
from dicomai.receiver.references import DUPLICATE, INVALID_VALUE, SUCCESS, RefusedError
from dicomai.receiver.services import Answer, Request, Service

log = structlog.get_logger()

# Instance Availability (0008,0056), PS3.3 C.4.23.1.1.
_AT_HAND = {"ONLINE", "NEARLINE"}
_OFFLINE = "OFFLINE"  # exists, and nobody knows when it comes
_UNAVAILABLE = "UNAVAILABLE"  # can be had no more


class Availability(Service):
    """Takes N-CREATE of notifications."""

    SOP_CLASSES: ClassVar = {"1.2.840.10008.5.1.4.33": "Instance Availability Notification SOP Class"}

    def __init__(self, announcements: Announcements) -> None:
        """Write down what is said."""
        self._announcements = announcements

    def n_create(self, request: Request) -> Answer:
        """Take a notification."""
        try:
            notice = references.own_uid(request)
            study = references.uid(request.ds, "StudyInstanceUID")
            references.value(request.ds, "ReferencedSeriesSequence")
            series = _referenced(request)
        except RefusedError as refused:
            return _refuse(request, refused.answer)
        if not self._announcements.notify(notice, request.calling_ae, study, series):
            return _refuse(request, Answer(DUPLICATE, "There is a notification of this SOP Instance UID"))
        log.info(
            "availability notified",
            study=trace_id(study),
            calling_ae=request.calling_ae,
            series=len(series),
            instances=sum(len(one.instances) for one in series),
        )
        return Answer(SUCCESS)


def _referenced(request: Request) -> list[Said]:
    """Read the Referenced Series Sequence (PS3.3 C.4.23).

    Raises:
        RefusedError: an item lacks what it must have.
    """
    series: dict[str, dict[str, str]] = {}
    for item in references.items(request.ds, "ReferencedSeriesSequence"):
        instances = series.setdefault(references.uid(item, "SeriesInstanceUID"), {})
        references.value(item, "ReferencedSOPSequence")
        for one in references.items(item, "ReferencedSOPSequence"):
            availability = str(references.value(one, "InstanceAvailability"))
            if availability not in {*_AT_HAND, _OFFLINE, _UNAVAILABLE}:
                raise RefusedError(INVALID_VALUE, "InstanceAvailability is none that there is")
            instances[references.uid(one, "ReferencedSOPInstanceUID")] = availability
    return [
        Said(
            uid,
            instances=tuple(sorted(one for one, word in instances.items() if word != _UNAVAILABLE)),
            withdrawn=tuple(sorted(one for one, word in instances.items() if word == _UNAVAILABLE)),
            is_final=set(instances.values()) <= _AT_HAND,
        )
        for uid, instances in series.items()
    ]


def _refuse(request: Request, answer: Answer) -> Answer:
    log.warning(
        f"availability notification refused with {answer.status:04X}: {answer.comment}",
        remedy="look at the sender's log; the series wait for the quiet period as without a notification",
        sop_instance_uid=request.sop_instance_uid,
        calling_ae=request.calling_ae,
    )
    return answer
