"""C-MOVE and C-GET SCU of one series at a time, Study Root (PS3.4 C.4.2, C.4.3)."""

import contextlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import cast

from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    AllTransferSyntaxes,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)
from pynetdicom import StoragePresentationContexts, build_context, build_role, evt
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.events import Event
from pynetdicom.presentation import PresentationContext
from pynetdicom.status import QR_GET_SERVICE_CLASS_STATUS, QR_MOVE_SERVICE_CLASS_STATUS

from dicomai.destinations.dimse.association import Peer
from dicomai.destinations.dimse.query import FIND, identifier
from dicomai.destinations.dimse.storage import MAX_CONTEXTS
from dicomai.errors import DicomaiError, InputError, NotAcceptedError, RejectedError, StorageFullError, TooLargeError
from dicomai.filemeta import FileMeta
from dicomai.log import place
from dicomai.sources.association import SourceLink, associate

MOVE = "1.2.840.10008.5.1.4.1.2.2.2"
"""Study Root Query/Retrieve Information Model - MOVE."""

GET = "1.2.840.10008.5.1.4.1.2.2.3"
"""Study Root Query/Retrieve Information Model - GET."""

Keep = Callable[[FileMeta, memoryview], object]
"""Takes one instance in: what was announced of it, and its data set."""

_UNCOMPRESSED = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
_SYNTAXES = tuple(
    dict.fromkeys(
        (*_UNCOMPRESSED, JPEGLosslessSV1, JPEG2000Lossless, JPEGLSLossless, RLELossless, *AllTransferSyntaxes)
    )
)
_FOR_GOOD = frozenset({0x0122, 0x0124, 0x0211, 0x0212, 0xA801, *range(0xA900, 0xAA00)})


@dataclass(frozen=True, slots=True)
class Outcome:
    """The last response to a retrieval.

    Attributes:
        status: Status (0000,0900).
        failed: NumberOfFailedSuboperations (0000,1022).
        meaning: what the standard says of the status.
    """

    status: int
    failed: int
    meaning: str

    @property
    def is_success(self) -> bool:
        """Whether the source has sent all, by its own account."""
        return self.status == 0x0000 and not self.failed


@contextlib.contextmanager
def moving(peer: Peer) -> "Iterator[Retriever]":
    """Hold an association for queries and C-MOVE to the node's own AE title.

    Raises:
        UnreachableError: no connection, no answer, or refused for now.
        RejectedError: refused for good.
    """
    with associate(peer, [build_context(FIND), build_context(MOVE)]) as link:
        yield Retriever(link, MOVE)


@contextlib.contextmanager
def getting(peer: Peer, sop_class_uids: Collection[str], keep: Keep) -> "Iterator[Retriever]":
    """Hold an association for queries and C-GET, on which the source stores to us.

    Args:
        peer: the source.
        sop_class_uids: what is to be fetched, as far as the source says.
        keep: takes each instance in, or raises.

    Raises:
        UnreachableError: no connection, no answer, or refused for now.
        RejectedError: refused for good.
    """
    contexts = storage_contexts(sop_class_uids)
    roles = [build_role(UID(uid), scp_role=True) for uid in dict.fromkeys(str(c.abstract_syntax) for c in contexts)]
    taker = _Taker(peer.settings.ae_title, keep)
    proposed = [build_context(FIND), build_context(GET), *contexts]
    with associate(peer, proposed, roles=roles, handlers=[(evt.EVT_C_STORE, taker.on_store)]) as link:
        yield Retriever(link, GET, taker)


def storage_contexts(sop_class_uids: Collection[str]) -> list[PresentationContext]:
    """Say what is proposed for C-GET: each class at hand in each transfer syntax, so that nothing need be converted.

    What room is left has the common classes, in case that the source does not say what it has.
    """
    held = [build_context(uid, syntax) for syntax in _SYNTAXES for uid in sop_class_uids]
    common = [str(context.abstract_syntax) for context in StoragePresentationContexts]
    others = [build_context(uid, list(_UNCOMPRESSED)) for uid in common if uid not in sop_class_uids]
    return [*held, *others][: MAX_CONTEXTS - 2]


class Retriever:
    """Retrievals over one association, which can be queried too."""

    def __init__(self, link: SourceLink, model: str, taker: "_Taker | None" = None) -> None:
        """Retrieve over an association.

        Raises:
            RejectedError: the source accepted no presentation context for the model.
        """
        link.require(model)
        self.link = link
        self._model = model
        self._taker = taker

    @property
    def failure(self) -> Exception | None:
        """What kept an instance from being taken in, the first time."""
        return self._taker.failure if self._taker is not None else None

    def problem(self, outcome: Outcome) -> str:
        """Say in a clause why a series has not come whole, and what to do."""
        peer = self.link.peer
        if self.failure is not None:
            return _sentence(self.failure)
        if outcome.is_success:
            return f"{peer} says that it has sent all: look up in the node's log what came of it"
        remedy = "see its log"
        if self._taker is None:  # few say what it is: unknown to them, unreachable, or refused by us
            remedy = (
                "see its log and the node's, check that `dicomai serve` runs, and there that it has the AE title"
                f" {peer.calling_ae}, and the right host and port for it"
            )
        failed = f", {outcome.failed} sub-operations failed" if outcome.failed else ""
        return f"{peer} answered {outcome.status:04X} ({outcome.meaning}{failed}): {remedy}"

    def retrieve(self, study: str, series: str, progress: Callable[[int], None]) -> Outcome:
        """Have the source send a series; returns when it says that it has done so.

        Args:
            study: StudyInstanceUID.
            series: SeriesInstanceUID.
            progress: called with how many instances were dealt with up to now.

        Raises:
            UnreachableError: the association broke.
            RejectedError: the source will send us nothing, this or another.
        """
        link, assoc = self.link, self.link.assoc
        ds = identifier("SERIES", {"StudyInstanceUID": study, "SeriesInstanceUID": series})
        with link.talk():
            if self._taker is not None:
                self._taker.begin(progress)
                responses = assoc.send_c_get(ds, self._model)
            else:
                responses = assoc.send_c_move(ds, link.peer.calling_ae, self._model)
            try:
                outcome = self._follow(responses, progress)
            except BaseException:
                with contextlib.suppress(RuntimeError, ValueError):  # there is nobody to tell any more
                    assoc.send_c_cancel(1, query_model=self._model)
                raise
        if outcome.status in _FOR_GOOD:
            raise RejectedError(self._refusal(outcome))
        return outcome

    def _follow(self, responses: Iterator[tuple[Dataset, Dataset | None]], progress: Callable[[int], None]) -> Outcome:
        meanings = QR_MOVE_SERVICE_CLASS_STATUS if self._model == MOVE else QR_GET_SERVICE_CLASS_STATUS
        last = Dataset()
        for status, _ in responses:
            if "Status" not in status:
                raise self.link.broken()
            last = status
            if self._taker is None:
                progress(sum(_count(status, kind) for kind in ("Completed", "Failed", "Warning")))
        code = int(last.Status)
        return Outcome(code, _count(last, "Failed"), meanings.get(code, ("", ""))[1] or "no success")

    def _refusal(self, outcome: Outcome) -> str:
        peer = self.link.peer
        if outcome.status == 0xA801:
            return (
                f"{peer} does not know {peer.calling_ae} as a destination (A801): enter this node's AE title, host and"
                " port there."
            )
        return f"{peer} answered {outcome.status:04X} ({outcome.meaning}) to a retrieval: see its log."


class _Taker:
    """The Storage SCP on an association for C-GET; called in the thread that waits for the responses."""

    def __init__(self, source_ae: str, keep: Keep) -> None:
        self._source_ae = source_ae
        self._keep = keep
        self._taken = 0
        self._progress: Callable[[int], None] = lambda _: None
        self.failure: Exception | None = None

    def begin(self, progress: Callable[[int], None]) -> None:
        """Count anew."""
        self._taken = 0
        self.failure = None
        self._progress = progress

    def on_store(self, event: Event) -> int:
        """Answer a C-STORE request: 0x0000 only for what is durable (PS3.4 B.2.3)."""
        request = cast("C_STORE", event.request)
        if request.DataSet is None:
            return 0xC000
        try:
            uids = str(request.AffectedSOPClassUID), str(request.AffectedSOPInstanceUID)
            meta = FileMeta(*uids, str(event.context.transfer_syntax), self._source_ae)
            with request.DataSet.getbuffer() as data:
                self._keep(meta, data)
        except Exception as error:  # noqa: BLE001  the source must be answered, and the other instances be fetched
            return self._failed(error)
        self._taken += 1
        self._progress(self._taken)
        return 0x0000

    def _failed(self, error: Exception) -> int:
        self.failure = self.failure or error
        match error:
            case StorageFullError() | TooLargeError():
                return 0xA700
            case NotAcceptedError():
                return 0xA900
            case InputError():
                return 0xC000
            case _:
                return 0x0110


def _sentence(error: Exception) -> str:
    """Say what an error says if it is ours; the text of a foreign one may quote the data set."""
    return str(error).rstrip(".") if isinstance(error, DicomaiError) else f"{type(error).__name__} at {place(error)}"


def _count(status: Dataset, kind: str) -> int:
    return int(status.get(f"NumberOf{kind}Suboperations") or 0)
