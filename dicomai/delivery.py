"""Claim, send, confirm. One thread per destination, so that a PACS that sleeps holds up nobody else's results."""

import io
import os
import random
import threading

import pydicom
import structlog

from dicomai import leases
from dicomai.config import DeliverySettings
from dicomai.database import Database, owner_name
from dicomai.database.worklist import Claim, FrozenObject, Worklist
from dicomai.destinations import Destination, Outgoing
from dicomai.errors import DicomaiError, StaleAttemptError
from dicomai.outputs import encode, restate
from dicomai.planner import read_instance
from dicomai.store import Store, result_key
from dicomai.workitem import Kind

log = structlog.get_logger()

_LEASE_SECONDS = 60.0


class Delivery:
    """Works off the deliveries to one destination."""

    def __init__(self, store: Store, database: Database, destination: Destination, settings: DeliverySettings) -> None:
        """Make a deliverer.

        Args:
            store: where results are.
            database: where the worklist is.
            destination: where they go.
            settings: waits and attempts.
        """
        self._store = store
        self._worklist = Worklist(database)
        self._destination = destination
        self._settings = settings
        self._owner = owner_name("delivery", os.getpid())

    def run(self, stop: threading.Event) -> None:
        """Deliver until told to stop; a result under way is finished first."""
        leases.work_off(self.step, stop)

    def step(self) -> bool:
        """Work off one delivery; tells whether there was one."""
        claim = self._worklist.claim(
            Kind.DELIVERY, self._owner, _LEASE_SECONDS, self._settings.attempts, self._destination.name
        )
        if claim is None:
            return False
        try:
            with leases.kept(self._worklist, claim, _LEASE_SECONDS):
                self._deliver(claim)
        except StaleAttemptError as error:
            log.warning("the delivery is left alone", study=claim.trace, workitem=claim.item, error=str(error))
        return True

    def _deliver(self, claim: Claim) -> None:
        where = {"study": claim.trace, "workitem": claim.item, "destination": claim.destination}
        try:
            objects = self._settle(claim)
            if objects is None:
                log.warning("held for a person", **where)
                return
            by_uid = {o.sop_instance_uid: o for o in objects}

            def accepted(sent: Outgoing, status: int, meaning: str) -> None:
                self._worklist.accepted(claim, by_uid[sent.sop_instance_uid].id, status, meaning)
                log.info("accepted", sop_instance_uid=sent.sop_instance_uid, status=f"0x{status:04X}", **where)

            self._destination.send([self._outgoing(o) for o in objects], accepted)
            self._worklist.finish_delivery(claim)
            log.info("delivered", objects=len(objects), **where)
        except StaleAttemptError:
            raise
        except DicomaiError as error:
            if error.retryable:
                wait = self._wait(claim.attempt)
                log.warning("not delivered yet", error=str(error), next_try_in_s=round(wait), **where)
                self._worklist.postpone(claim, wait, str(error))
            else:
                log.error("not delivered", error=str(error), **where)
                self._worklist.fail(claim, str(error))
        except Exception as error:
            # Nobody would miss this thread: a destination would get nothing any more, without a word.
            log.exception("a delivery failed unexpectedly", **where)
            name = type(error).__name__
            self._worklist.postpone(
                claim, self._wait(claim.attempt), f"Sending failed with {name}; the log of the delivery says where."
            )

    def _settle(self, claim: Claim) -> list[FrozenObject] | None:
        """Give the objects to send, bearing the patient's and the study's attributes as they are now.

        None when a person has to decide first; the item is held then.
        """
        while True:
            why = self._worklist.why_wait(claim)
            if why:
                self._worklist.hold(claim, why)
                return None
            objects = self._worklist.result(claim)
            fresh = self._restated(claim, objects)
            if fresh and self._worklist.was_sent(claim):
                self._worklist.hold(
                    claim,
                    "The patient's or the study's attributes changed after a part of this result was sent; "
                    "cancel this item and retry the analysis, so that a new result bears the new ones.",
                )
                return None
            keys = {}
            for number, (sop_instance_uid, data) in fresh.items():
                keys[number] = result_key(claim.item, claim.attempt, sop_instance_uid)
                self._store.put(keys[number], data)
            if self._worklist.begin_sending(claim, objects, keys):
                return self._worklist.result(claim) if keys else objects

    def _restated(self, claim: Claim, objects: list[FrozenObject]) -> dict[int, tuple[str, bytes]]:
        """Build anew the objects whose patient or study attributes are not those of the newest image."""
        newest = read_instance(self._store, self._worklist.newest_image(claim)).header
        fresh = {}
        for frozen in objects:
            data = self._store.get(frozen.key)
            again = encode(restate(pydicom.dcmread(io.BytesIO(data)), newest))
            if again != data:
                fresh[frozen.id] = (frozen.sop_instance_uid, again)
        return fresh

    def _outgoing(self, frozen: FrozenObject) -> Outgoing:
        data = self._store.get(frozen.key)
        meta = pydicom.dcmread(io.BytesIO(data), specific_tags=["SOPInstanceUID"]).file_meta
        return Outgoing(frozen.sop_class_uid, frozen.sop_instance_uid, str(meta.TransferSyntaxUID), data)

    def _wait(self, attempt: int) -> float:
        """Seconds until the next attempt: doubling, with jitter so that many do not come at once."""
        wait = min(self._settings.longest_wait, self._settings.first_wait * 2.0 ** min(attempt - 1, 30))
        return wait * random.uniform(0.8, 1.2)  # noqa: S311  no secret


def run(destinations: list[Delivery], stop: threading.Event) -> None:
    """Deliver to every destination, each in a thread of its own, until told to stop."""
    threads = [
        threading.Thread(target=one.run, args=(stop,), name=f"delivery {n}") for n, one in enumerate(destinations)
    ]
    for thread in threads:
        thread.start()
    stop.wait()
    for thread in threads:
        thread.join()
