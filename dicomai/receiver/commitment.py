"""Storage Commitment Push Model SCP (PS3.4 Annex J): whoever asks is told which instances are safe here.

A requestor deletes its own copies on this word, so it is given on what is read at that moment: the row in the index,
and the file behind it, byte for byte. Each request is a row before it is answered, and stays open until the requestor
has confirmed the report, on the association of the request or on a new one.
"""

import hashlib
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from io import BufferedReader
from typing import ClassVar, cast

import structlog
from pydicom.dataset import Dataset
from pynetdicom import build_context, build_role
from pynetdicom.association import Association

from dicomai.config import Settings
from dicomai.database.commitments import Commitments, Held, OpenCommitment, Reference
from dicomai.destinations.dimse import commitment
from dicomai.errors import ConfigurationError, DeliveryError, DicomaiError, StoreError, UnreachableError
from dicomai.filemeta import identify, read_head
from dicomai.log import place
from dicomai.receiver import references
from dicomai.receiver.line import Line
from dicomai.receiver.references import SUCCESS, RefusedError
from dicomai.receiver.services import Answer, Request, Service
from dicomai.sources.association import associate, peer_of
from dicomai.store import Store
from dicomai.study import UNREADABLE

log = structlog.get_logger()

PUSH_MODEL = commitment.PUSH_MODEL
PUSH_MODEL_INSTANCE = commitment.PUSH_MODEL_INSTANCE
_ASK = 1  # Action Type ID (PS3.4 Table J.3.2-1)
_ALL_SAFE, _SOME_FAILED = 1, 2  # Event Type ID (PS3.4 Table J.3.3-1)

NO_SUCH_INSTANCE = 0x0112
INVALID_ARGUMENT = 0x0115
NO_SUCH_ACTION = 0x0123
RESOURCE_LIMITATION = 0x0213

FAILURES = {
    0x0110: "processing failure: its file is damaged or cannot be read, other content came under its UID, or it was "
    "rejected",
    0x0112: "no such object instance: it is not here",
    0x0119: "class/instance conflict: it is here with another SOP class",
    0x0131: "duplicate transaction UID: it was used for other instances",
}
"""Failure Reason (0008,1197) of what is not committed (PS3.3 C.14.1.1): meaning by value."""
_NOT_KEPT, _MISSING, _OTHER_CLASS, _DUPLICATE = FAILURES

PATIENCE = timedelta(days=3)
"""How long it is tried to tell a requestor."""

ARRIVAL_SECONDS = 10.0
"""How long what is asked about and not here may still be on its way, on another association."""

_LEASE_SECONDS = 60.0
_RELEASE_SECONDS = 1.0  # within which those requestors release that wait for a new association
_JOBS = 4  # at a time
_MOST_WAITING = 1000


@dataclass(frozen=True, slots=True)
class _Verdict:
    """Which instances are safe, and which are not, each with its Failure Reason."""

    safe: tuple[Reference, ...]
    failed: tuple[tuple[Reference, int], ...]

    @property
    def sentence(self) -> str:
        reasons = Counter(f"0x{reason:04X}" for _, reason in self.failed)
        not_safe = ", ".join(f"{count} not ({reason})" for reason, count in sorted(reasons.items()))
        return f"{len(self.safe)} instances committed{', ' if not_safe else ''}{not_safe}."

    def report(self, transaction_uid: str) -> tuple[int, Dataset]:
        """Make Event Type ID and Event Information (PS3.4 Table J.3.3-1)."""
        ds = Dataset()
        ds.TransactionUID = transaction_uid
        if self.safe:
            ds.ReferencedSOPSequence = [_item(one) for one in self.safe]
        if self.failed:
            ds.FailedSOPSequence = [_item(one, reason) for one, reason in self.failed]
        return (_SOME_FAILED if self.failed else _ALL_SAFE), ds


class StorageCommitment(Service):
    """Takes requests, and reports on them from threads of its own."""

    SOP_CLASSES: ClassVar = {PUSH_MODEL: "Storage Commitment Push Model SOP Class"}

    def __init__(
        self, settings: Settings, store: Store, commitments: Commitments, *, lease: float = _LEASE_SECONDS
    ) -> None:
        """Make the service.

        Args:
            settings: `[node]`, `[delivery]`, `[tls]` and the entries `[[source]]` are used.
            store: where the instances are.
            commitments: where the requests are.
            lease: seconds after which a request is taken up again whose process ended.
        """
        self._settings = settings
        self._store = store
        self._commitments = commitments
        self._lease = lease
        self._lock = threading.Lock()
        self._lines: dict[Association, Line] = {}
        self._ready: list[tuple[OpenCommitment, Line | None]] = []
        self._free = threading.Semaphore(_JOBS)
        self._is_in_trouble = False

    def n_action(self, request: Request) -> Answer:
        """Take a request for storage commitment (PS3.4 J.3.2)."""
        if request.action_type != _ASK:
            return Answer(NO_SUCH_ACTION, "Action Type ID is not 1")
        if request.sop_instance_uid != PUSH_MODEL_INSTANCE:
            return Answer(NO_SUCH_INSTANCE, "Not the well-known instance of the Push Model")
        try:
            transaction = references.uid(request.ds, "TransactionUID")
            wanted = [
                (references.uid(item, "ReferencedSOPClassUID"), references.uid(item, "ReferencedSOPInstanceUID"))
                for item in references.items(request.ds, "ReferencedSOPSequence")
            ]
        except RefusedError as refused:
            return Answer(INVALID_ARGUMENT, refused.answer.comment)
        if not wanted:
            return Answer(INVALID_ARGUMENT, "ReferencedSOPSequence is missing or empty")
        if len(self._ready) >= _MOST_WAITING:
            return Answer(RESOURCE_LIMITATION, "Too many requests are waiting; ask again later")
        one = self._commitments.ask(request.calling_ae, transaction, wanted, self._lease)
        log.info(
            "storage commitment asked for",
            calling_ae=one.calling_ae,
            transaction_uid=transaction,
            instances=len(one.references),
        )
        with self._lock:
            line = self._lines.get(request.assoc)
            if line is None:
                line = self._lines[request.assoc] = Line(request.assoc)
        line.after_answer(lambda: self._begin(one, line))
        return Answer(SUCCESS)

    def patrol(self) -> None:
        """Take up what is due: reports that could not be given, and those of a process that ended."""
        self._run_ready()
        try:
            while self._free.acquire(blocking=False):
                one = self._commitments.claim(self._lease)
                if one is None:
                    self._free.release()
                    break
                self._start(one, None)
            self._is_in_trouble = False
        except StoreError as error:
            self._free.release()
            if not self._is_in_trouble:  # once is enough, not every second
                log.error("storage commitment is not reported", error=str(error))
            self._is_in_trouble = True

    def ended(self, assoc: Association) -> None:
        """Forget an association."""
        with self._lock:
            self._lines.pop(assoc, None)

    def _begin(self, one: OpenCommitment, line: Line | None) -> None:
        with self._lock:
            self._ready.append((one, line))
        self._run_ready()

    def _run_ready(self) -> None:
        while self._free.acquire(blocking=False):
            with self._lock:
                job = self._ready.pop(0) if self._ready else None
            if job is None:
                self._free.release()
                return
            self._start(*job)

    def _start(self, one: OpenCommitment, line: Line | None) -> None:
        """Work on a request in a thread of its own, for which a place was taken."""

        def run() -> None:
            try:
                self._work(one, line)
            finally:
                self._free.release()

        threading.Thread(target=run, name=f"commitment {one.id}", daemon=True).start()

    def _work(self, one: OpenCommitment, line: Line | None) -> None:
        facts = {"calling_ae": one.calling_ae, "transaction_uid": one.transaction_uid}
        try:
            verdict = self._settle(one, line)
            self._tell(one, verdict, line)
            self._commitments.reported(one, verdict.sentence)
            report = log.warning if verdict.failed else log.info
            report("storage commitment reported", result=verdict.sentence, attempt=one.attempt, **facts)
        except (DeliveryError, ConfigurationError) as error:
            self._put_off(one, str(error), facts)
        except DicomaiError as error:  # our own disk or database: the lease brings it back
            log.error("storage commitment is not reported", error=str(error), **facts)
        except Exception as error:  # noqa: BLE001  nobody would miss this thread; the lease brings the request back
            what = {"error": type(error).__name__, "place": place(error)}
            log.error("storage commitment failed unexpectedly", **what, **facts)

    def _put_off(self, one: OpenCommitment, why: str, facts: dict[str, str]) -> None:
        if one.age >= PATIENCE:
            log.error("storage commitment is given up", error=why, **facts)
            self._commitments.give_up(one, f"Given up after {PATIENCE.days} days: {why}")
            return
        waits = self._settings.delivery
        wait = min(waits.longest_wait, waits.first_wait * 2.0 ** min(one.attempt - 1, 30))
        log.warning("storage commitment is not reported yet", error=why, next_try_in_s=round(wait), **facts)
        self._commitments.postpone(one, wait, why)

    def _settle(self, one: OpenCommitment, line: Line | None) -> _Verdict:
        """Judge what is asked about; what is not here has some seconds to come while the requestor may be sending."""
        start = time.monotonic()
        verdict = self._judge(one, one.references)
        while line is not None and time.monotonic() - start < ARRIVAL_SECONDS:
            missing = [reference for reference, reason in verdict.failed if reason == _MISSING]
            if not missing:
                break
            time.sleep(0.5)
            again = self._judge(one, missing)
            failed = [(r, why) for r, why in verdict.failed if why != _MISSING] + list(again.failed)
            verdict = _Verdict((*verdict.safe, *again.safe), tuple(failed))
        if line is not None:
            time.sleep(max(0.0, start + _RELEASE_SECONDS - time.monotonic()))
        return verdict

    def _judge(self, one: OpenCommitment, wanted: Sequence[Reference]) -> _Verdict:
        held = self._commitments.held([uid for _, uid in wanted])
        safe: list[Reference] = []
        failed: list[tuple[Reference, int]] = []
        kept = time.monotonic()
        for reference in wanted:
            sop_class_uid, uid = reference
            reason = _DUPLICATE if one.is_duplicate else self._reason(sop_class_uid, held.get(uid))
            if reason:
                failed.append((reference, reason))
            else:
                safe.append(reference)
            if time.monotonic() - kept > self._lease / 4:
                kept = time.monotonic()
                self._commitments.keep(one, self._lease)
        return _Verdict(tuple(safe), tuple(failed))

    def _reason(self, sop_class_uid: str, held: Held | None) -> int:
        """Give the Failure Reason for an instance; 0 where it is safe."""
        if held is None:
            return _MISSING
        if held.sop_class_uid != sop_class_uid:
            return _OTHER_CLASS
        if held.is_contradicted or held.is_withdrawn or not self._is_whole(held):
            return _NOT_KEPT
        return 0

    def _is_whole(self, held: Held) -> bool:
        """Read a file, and tell whether it is what was received."""
        try:
            with self._store.open(held.key) as stream:
                transfer_syntax_uid = read_head(stream).transfer_syntax_uid
                data_set = hashlib.file_digest(cast("BufferedReader", stream), "sha256").hexdigest()
        except (StoreError, *UNREADABLE) as error:
            why = str(error) if isinstance(error, StoreError) else type(error).__name__
            log.error("a stored instance cannot be read", key=held.key, error=why, remedy="check the storage's disk")
            return False
        if identify(transfer_syntax_uid, data_set) == held.digest:
            return True
        log.error("a stored instance is not what was received", key=held.key, remedy="check the storage's disk")
        return False

    def _tell(self, one: OpenCommitment, verdict: _Verdict, line: Line | None) -> None:
        """Report, on the association of the request while it is there, else on a new one (PS3.4 J.3.3).

        Raises:
            DeliveryError: the requestor did not confirm it.
        """
        event, ds = verdict.report(one.transaction_uid)
        timeout = self._settings.delivery.timeout
        self._commitments.keep(one, self._lease + 3 * timeout)
        if line is not None and line.report(event, ds, PUSH_MODEL, PUSH_MODEL_INSTANCE, timeout):
            return
        source = next((s for s in self._settings.source if s.ae_title == one.calling_ae), None)
        if source is None:
            raise UnreachableError(
                f"{one.calling_ae} has ended its association, and no [[source]] has this AE title: add one, so that it"
                " can be told."
            )
        peer = peer_of(source, self._settings.node.ae_title, timeout, self._settings.tls)
        roles = [build_role(PUSH_MODEL, scp_role=True)]  # of a class whose SCU is called (PS3.7 D.3.3.4)
        with associate(peer, [build_context(PUSH_MODEL)], roles=roles) as link:
            link.require(PUSH_MODEL)
            with link.talk():
                answer, _ = link.assoc.send_n_event_report(ds, event, PUSH_MODEL, PUSH_MODEL_INSTANCE)
            if "Status" not in answer:
                raise link.broken()
        if answer.Status != SUCCESS:
            raise UnreachableError(
                f"{peer} answered {answer.Status:04X} to the report of a storage commitment: see its log."
            )


def _item(reference: Reference, reason: int | None = None) -> Dataset:
    ds = Dataset()
    ds.ReferencedSOPClassUID, ds.ReferencedSOPInstanceUID = reference
    if reason is not None:
        ds.FailureReason = reason
    return ds
