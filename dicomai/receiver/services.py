"""Services beside Storage: each a class that names its SOP classes and answers their N-messages (PS3.7 10.1)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import structlog
from pydicom.dataset import Dataset
from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.events import Event, EventHandlerType

from dicomai.errors import DicomaiError
from dicomai.log import place

log = structlog.get_logger()

PROCESSING_FAILURE = 0x0110
"""Status (PS3.7 Annex C.5.15): it went wrong here."""

UNRECOGNIZED_OPERATION = 0x0211
"""Status (PS3.7 Annex C.5.22): the SOP class has no such operation."""

_Handler = Callable[[Event], tuple[Dataset, Dataset | None]]


@dataclass(frozen=True, slots=True)
class Request:
    """One N-CREATE, N-SET, N-ACTION or N-EVENT-REPORT request.

    Attributes:
        assoc: the association that brought it.
        calling_ae: who asks.
        address: where they ask from.
        sop_class_uid: Affected or Requested SOP Class UID.
        sop_instance_uid: Affected or Requested SOP Instance UID; empty where the requestor leaves it to us.
        action_type: of an N-ACTION.
        event_type: of an N-EVENT-REPORT.
        ds: the attribute list, modification list, action or event information, decoded; empty if there was none.
    """

    assoc: Association
    calling_ae: str
    address: str
    sop_class_uid: str
    sop_instance_uid: str
    action_type: int
    ds: Dataset
    event_type: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """What is answered.

    Attributes:
        status: Status (0000,0900).
        comment: Error Comment (0000,0902), at most 64 characters, nothing about a patient.
        error_id: Error ID (0000,0903), where the service class has one; 0 for none.
        ds: the attribute list or action reply, if there is one.
    """

    status: int
    comment: str = ""
    ds: Dataset | None = None
    error_id: int = 0


class Service:
    """A service; those of the operations that it has are overridden.

    An error that an operation raises is logged and answered with 0x0110 (processing failure).
    """

    SOP_CLASSES: ClassVar[Mapping[str, str]] = {}
    """Name by UID, for negotiation and for the conformance statement."""

    IS_REPORTED_TO: ClassVar[bool] = False
    """Whether the requestor of an association may be the SCP of these classes, as one that reports is."""

    def n_create(self, request: Request) -> Answer:  # noqa: ARG002  for those that have it
        """Answer an N-CREATE."""
        return Answer(UNRECOGNIZED_OPERATION)

    def n_set(self, request: Request) -> Answer:  # noqa: ARG002  for those that have it
        """Answer an N-SET."""
        return Answer(UNRECOGNIZED_OPERATION)

    def n_action(self, request: Request) -> Answer:  # noqa: ARG002  for those that have it
        """Answer an N-ACTION."""
        return Answer(UNRECOGNIZED_OPERATION)

    def n_event_report(self, request: Request) -> Answer:  # noqa: ARG002  for those that have it
        """Answer an N-EVENT-REPORT."""
        return Answer(UNRECOGNIZED_OPERATION)

    def patrol(self) -> None:
        """Do what is due; called about once a second from a thread of its own, and must not raise."""

    def ended(self, assoc: Association) -> None:
        """Hear that an association is closed."""


class Services:
    """The services that a receiver offers; sends each message to the one whose SOP class it names."""

    def __init__(self, services: Sequence[Service]) -> None:
        """Offer services."""
        self._services = tuple(services)
        self._by_class: dict[str, list[Service]] = {}
        for service in services:
            for uid in service.SOP_CLASSES:
                self._by_class.setdefault(uid, []).append(service)

    @property
    def reported_to(self) -> frozenset[str]:
        """The SOP classes of which the requestor of an association may be the SCP."""
        return frozenset(uid for one in self._services if one.IS_REPORTED_TO for uid in one.SOP_CLASSES)

    def __contains__(self, sop_class_uid: object) -> bool:
        """Tell whether one of them is of this SOP class."""
        return sop_class_uid in self._by_class

    def handlers(self) -> list[EventHandlerType]:
        """Bind them to the protocol library's events."""
        return [
            (evt.EVT_N_CREATE, self._handler(Service.n_create.__name__, "Affected", "attribute_list")),
            (evt.EVT_N_SET, self._handler(Service.n_set.__name__, "Requested", "modification_list")),
            (evt.EVT_N_ACTION, self._handler(Service.n_action.__name__, "Requested", "action_information")),
            (evt.EVT_N_EVENT_REPORT, self._handler(Service.n_event_report.__name__, "Affected", "event_information")),
        ]

    def patrol(self) -> None:
        """Let each do what is due."""
        for service in self._services:
            service.patrol()

    def ended(self, assoc: Association) -> None:
        """Tell each that an association is closed."""
        for service in self._services:
            service.ended(assoc)

    def _handler(
        self, operation: str, prefix: str, attribute: str
    ) -> Callable[[Event], tuple[Dataset, Dataset | None]]:
        def handle(event: Event) -> tuple[Dataset, Dataset | None]:
            answer = self._answer(event, operation, prefix, attribute)
            status = Dataset()
            status.Status = answer.status
            if answer.comment:
                status.ErrorComment = answer.comment
            if answer.error_id:
                status.ErrorID = answer.error_id
            return status, answer.ds

        return handle

    def _answer(self, event: Event, operation: str, prefix: str, attribute: str) -> Answer:
        requestor, message = event.assoc.requestor, event.request
        sop_class_uid = str(getattr(message, f"{prefix}SOPClassUID"))
        # Of a class that this node is both SCU and SCP of, two services have an operation each.
        of_class = self._by_class.get(sop_class_uid, [])
        service = next((s for s in of_class if getattr(type(s), operation) is not getattr(Service, operation)), None)
        if service is None:
            return Answer(UNRECOGNIZED_OPERATION)
        try:
            request = Request(
                assoc=event.assoc,
                calling_ae=str(requestor.ae_title).strip(),
                address=str(requestor.address),
                sop_class_uid=sop_class_uid,
                sop_instance_uid=str(getattr(message, f"{prefix}SOPInstanceUID") or ""),
                action_type=int(getattr(message, "ActionTypeID", 0) or 0),
                event_type=int(getattr(message, "EventTypeID", 0) or 0),
                ds=getattr(event, attribute),
            )
            answer: Answer = getattr(service, operation)(request)
        except Exception as error:  # noqa: BLE001  the requestor must be answered, and the receiver go on
            what = (
                {"error": str(error)}
                if isinstance(error, DicomaiError)
                else {"error": type(error).__name__, "place": place(error)}
            )
            log.error(
                f"{operation.replace('_', '-').upper()} failed",
                remedy="look at what the requestor sent, and have it sent again",
                sop_class_uid=sop_class_uid,
                calling_ae=str(requestor.ae_title).strip(),
                **what,
            )
            return Answer(PROCESSING_FAILURE)
        return answer
