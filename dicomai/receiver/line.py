"""The association that a request came on, as a way back to the requestor."""

import itertools
import queue
import time
from collections.abc import Callable
from io import BytesIO

from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import evt
from pynetdicom.association import Association
from pynetdicom.dimse_messages import N_ACTION_RSP, N_EVENT_REPORT_RSP
from pynetdicom.dimse_primitives import N_EVENT_REPORT
from pynetdicom.dsutils import encode
from pynetdicom.events import Event

_LOOK_SECONDS = 0.1


class Line:
    """Sends N-EVENT-REPORTs to the requestor of an open association (PS3.7 10.1.1).

    The requestor may go on with requests of its own meanwhile. The library's own way takes the next message that comes
    for the response, whatever it is, and aborts the association if it is not, or if none comes; here the response is
    looked for among the messages that pass, and all others go their way.
    """

    def __init__(self, assoc: Association) -> None:
        """Listen on an association that this node accepted."""
        self._assoc = assoc
        self._numbers = itertools.count(1)
        self._answered: list[Callable[[], None]] = []
        self._responses: dict[int, queue.SimpleQueue[int]] = {}
        assoc.bind(evt.EVT_DIMSE_SENT, self._on_sent)
        assoc.bind(evt.EVT_DIMSE_RECV, self._on_received)

    def after_answer(self, action: Callable[[], None]) -> None:
        """Have something done when the N-ACTION that is being served has been answered, and not before."""
        self._answered.append(action)

    def report(self, event_type: int, ds: Dataset, sop_class_uid: str, sop_instance_uid: str, timeout: float) -> bool:
        """Send an N-EVENT-REPORT; tells whether the requestor answered it with success.

        Args:
            event_type: Event Type ID.
            ds: the Event Information.
            sop_class_uid: Affected SOP Class UID, of an accepted presentation context.
            sop_instance_uid: Affected SOP Instance UID.
            timeout: seconds to wait for the answer.
        """
        context = next((c for c in self._assoc.accepted_contexts if c.abstract_syntax == sop_class_uid), None)
        if context is None or context.context_id is None or not self._assoc.is_established:
            return False
        syntax = context.transfer_syntax[0]
        encoded = encode(ds, syntax.is_implicit_VR, syntax.is_little_endian, syntax.is_deflated)
        request = N_EVENT_REPORT()
        request.MessageID = next(self._numbers) % 65536
        request.AffectedSOPClassUID = UID(sop_class_uid)
        request.AffectedSOPInstanceUID = UID(sop_instance_uid)
        request.EventTypeID = event_type
        request.EventInformation = BytesIO(encoded or b"")
        response: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._responses[request.MessageID] = response
        try:
            self._assoc.dimse.send_msg(request, context.context_id)
            end = time.monotonic() + timeout
            while self._assoc.is_established and time.monotonic() < end:
                try:
                    return response.get(timeout=_LOOK_SECONDS) == 0x0000
                except queue.Empty:
                    continue
        finally:
            del self._responses[request.MessageID]
        return False

    def _on_sent(self, event: Event) -> None:
        if isinstance(event.message, N_ACTION_RSP):
            due, self._answered = self._answered, []
            for action in due:
                action()

    def _on_received(self, event: Event) -> None:
        if isinstance(event.message, N_EVENT_REPORT_RSP):
            command = event.message.command_set
            waiting = self._responses.get(int(command.MessageIDBeingRespondedTo))
            if waiting is not None:
                waiting.put(int(command.Status))
