"""Claim, send, confirm. One thread per destination, so that a PACS that sleeps holds up nobody else's results."""

import os
import random
import threading
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Protocol

import pydicom
import structlog
from pydicom.dataset import Dataset

from dicomai import leases
from dicomai.config import DeliverySettings
from dicomai.confirmation import Confirmation
from dicomai.database import Database, owner_name
from dicomai.database.deliveries import Deliveries
from dicomai.database.forwards import Forwards
from dicomai.database.priors import Priors
from dicomai.database.results import DEIDENTIFIED, FrozenObject
from dicomai.database.worklist import Claim, Worklist
from dicomai.destinations import Destination, Outgoing
from dicomai.errors import (
    DicomaiError,
    NoAssociationError,
    NotAcceptedError,
    NotAdmittedError,
    NotKeptError,
    RejectedError,
    StaleAttemptError,
    StoreError,
    UnreachableError,
    UnreadableError,
)
from dicomai.outputs import encode, priors, restate
from dicomai.outputs.priors import study_day
from dicomai.planner import read_instance
from dicomai.store import Store, result_key
from dicomai.study import IDENTITY
from dicomai.workitem import Kind

log = structlog.get_logger()

_LEASE_SECONDS = 60.0

_LONGEST_ECHO_WAIT = 60.0
"""Seconds between two questions to a destination whether it is there; they log in nowhere, and results wait."""

_LONGEST_REFUSED_WAIT = 600.0
"""Seconds between two results to a destination that is there and does not let us in; some lock out who goes on."""


class Lane(Protocol):
    """What goes on beside the others."""

    def run(self, stop: threading.Event) -> None:
        """Work until told to stop."""


class Delivery:
    """Works off the deliveries to one destination."""

    def __init__(
        self,
        store: Store,
        database: Database,
        destination: Destination,
        settings: DeliverySettings,
        *,
        only_deidentified: bool = False,
    ) -> None:
        """Make a deliverer.

        Args:
            store: where results are.
            database: where the worklist is.
            destination: where they go.
            settings: waits and attempts.
            only_deidentified: whether it gets nothing that bears a patient's name, whatever was planned before.
        """
        self._only_deidentified = only_deidentified
        self._store = store
        self._worklist = Worklist(database)
        self._forwards = Forwards(database)
        self._priors = Priors(database)
        self._destination = destination
        self._settings = settings
        self._owner = owner_name("delivery", os.getpid())
        self._circuit = _Circuit(destination, Deliveries(database), self._owner, self._wait)
        self._confirmation = Confirmation(database, destination, settings, self._outgoing)

    def run(self, stop: threading.Event) -> None:
        """Deliver until told to stop; a result under way is finished first."""
        leases.work_off(self.step, stop)

    def step(self) -> bool:
        """Work off one delivery; tells whether there was one."""
        if not self._circuit.closed():
            return False
        return leases.attempt(
            self._worklist,
            Kind.DELIVERY,
            self._owner,
            self._deliver,
            lease=_LEASE_SECONDS,
            attempts=self._settings.attempts,
            destination=self._destination.name,
        )

    def _deliver(self, claim: Claim, _progress: leases.Progress) -> None:
        where = {"study": claim.trace, "workitem": claim.item, "destination": claim.destination}
        try:
            # What the destination has whole is only asked for: nothing can be changed or held any more.
            left = self._worklist.result(claim)
            self._refuse_names(claim, left)
            is_left = bool(left)
            if is_left and (self._awaits_images(claim) or self._confirmation.awaits_source(claim, where)):
                return
            objects = self._settle(claim, where) if is_left else []
            if objects is None:
                return
            try:
                self._send(claim, objects, where)
            finally:  # what was accepted before a failure is looked into as well
                self._confirmation.look_into_coerced(claim, where)
            if self._confirmation.is_whole(claim, where):
                self._worklist.finish_delivery(claim, withdraw_superseded=self._destination.withdraws_superseded)
                log.info("delivered", objects=len(objects), **where)
        except StaleAttemptError:
            raise
        except DicomaiError as error:
            self._not_delivered(claim, error, where)
        except Exception as error:
            # Nobody would miss this thread: a destination would get nothing any more, without a word.
            log.exception("a delivery failed unexpectedly", **where)
            name = type(error).__name__
            self._worklist.postpone(
                claim, self._wait(claim.attempt), f"Sending failed with {name}; the log of the delivery says where."
            )

    def _refuse_names(self, claim: Claim, left: Sequence[FrozenObject]) -> None:
        """Let nothing that bears a name go, nor be asked for, where the configuration now has it de-identified."""
        if self._only_deidentified and any(one.output != DEIDENTIFIED for one in left):
            raise NotAcceptedError(
                f"Destination '{claim.destination}' gets de-identified images only, and this was planned before that:"
                " it was not sent; images go when the workitem of their forward rule is retried."
            )

    def _awaits_images(self, claim: Claim) -> bool:
        """Put a delivery of documents off while images that they are about are still on their way there."""
        said = self._forwards.images_before(claim)
        if said:
            self._confirmation.wait_on(claim, said)
        return bool(said)

    def _send(self, claim: Claim, objects: list[FrozenObject], where: dict[str, object]) -> None:
        by_uid = {o.sop_instance_uid: o for o in objects}

        def accepted(sent: Outgoing, status: int, meaning: str) -> None:
            self._circuit.passed()
            self._worklist.accepted(claim, by_uid[sent.sop_instance_uid].id, status, meaning)
            known = {"sop_instance_uid": sent.sop_instance_uid, "status": f"0x{status:04X}", **where}
            if status == 0x0000:
                log.info("accepted", **({"meaning": meaning} if meaning else {}), **known)
            else:
                log.warning("accepted with a warning", meaning=meaning, **known)

        outgoing = [self._outgoing(o) for o in objects]
        if "forwards" not in claim.route:  # never half a result
            self._destination.send(outgoing, accepted)
            return
        refusals: list[DicomaiError] = []

        def refused(sent: Outgoing, error: DicomaiError) -> None:
            refusals.append(error)
            log.warning("not accepted", sop_instance_uid=sent.sop_instance_uid, error=str(error), **where)

        self._destination.send(outgoing, accepted, refused)
        if refusals:
            raise _of_all(refusals, len(outgoing))

    def _not_delivered(self, claim: Claim, error: DicomaiError, where: dict[str, object]) -> None:
        """Let a delivery wait for another attempt where that can help, else end it.

        Nothing is tried again anywhere below: this is the one place that waits.
        """
        wait = self._wait(claim.attempt)
        is_away = isinstance(error, NoAssociationError | NotAdmittedError)  # which is the fault of no result
        if not error.retryable and not is_away:
            log.error("not delivered", error=str(error), **where)
            self._worklist.fail(claim, str(error))
            if isinstance(error, RejectedError):
                self._circuit.answered()
        elif isinstance(error, NotKeptError):
            self._confirmation.set_back(claim, wait, str(error), where)
        else:
            log.warning("not delivered yet", error=str(error), next_try_in_s=round(wait), **where)
            self._worklist.postpone(claim, wait, str(error), counts=not is_away)
            if is_away:
                longest = _LONGEST_REFUSED_WAIT if isinstance(error, NotAdmittedError) else _LONGEST_ECHO_WAIT
                self._circuit.missed(str(error), claim.item, longest)

    def _settle(self, claim: Claim, where: dict[str, object]) -> list[FrozenObject] | None:
        """Give the objects to send, bearing the patient's and the study's attributes as they are now.

        None when a person has to decide first; the item is held then.
        """
        while True:
            why = self._worklist.why_wait(claim)
            if why:
                self._hold(claim, why, where)
                return None
            objects = self._worklist.result(claim)
            if not objects:  # newer ones of what was left have come meanwhile
                return []
            was_sent = self._worklist.was_sent(claim)
            # Before the first sending, of every object: what goes to others only would else be found changed too late.
            stale = self._stale(claim, objects if was_sent else self._worklist.whole(claim), was_sent=was_sent)
            if stale and was_sent:
                why = (
                    "The patient's or the study's attributes changed after a part of this result was sent; "
                    "cancel this item and retry the analysis, so that a new result bears the new ones."
                )
                self._hold(claim, why, where)
                return None
            if self._confirmation.is_anothers(claim, partial(self._said_by, objects[0], stale), where):
                return None
            keys = {one.id: self._restated(claim, one, newest) for one, newest in stale}
            if self._worklist.begin_sending(claim, objects, keys, self._destination.max_age):
                return self._worklist.result(claim) if keys else objects

    def _hold(self, claim: Claim, why: str, where: dict[str, object]) -> None:
        self._worklist.hold(claim, why)
        log.warning("held for a person", reason=why, **where)

    def _stale(
        self, claim: Claim, objects: list[FrozenObject], *, was_sent: bool
    ) -> list[tuple[FrozenObject, Dataset]]:
        """Give the objects that say otherwise of patient and study than the newest image, and that image's header.

        Before the first sending also what compares with an earlier result that does not hold any more. None of images
        that are forwarded: they go as they came.
        """
        if "forwards" in claim.route:
            return []
        newest = read_instance(self._store, self._worklist.newest_image(claim)).header
        return [(one, newest) for one in objects if not self._says(claim, one, newest, was_sent=was_sent)]

    def _says(self, claim: Claim, frozen: FrozenObject, newest: Dataset, *, was_sent: bool) -> bool:
        """Tell whether an object says of patient and study what an image does; its pixels are not read."""
        with self._store.open(frozen.key) as file:
            ds = pydicom.dcmread(file, stop_before_pixels=True)
            again = encode(restate(ds, newest, prior_holds=was_sent or self._prior_holds(claim, ds)))
            end = file.tell()
            file.seek(0)
            return file.read(end) == again

    def _said_by(self, frozen: FrozenObject, stale: list[tuple[FrozenObject, Dataset]]) -> Dataset:
        """Give what an object will say of patient and study when it is sent."""
        for one, newest in stale:
            if one.id == frozen.id:
                return newest
        with self._store.open(frozen.key) as file:
            return pydicom.dcmread(file, specific_tags=["StudyInstanceUID", *IDENTITY])

    def _restated(self, claim: Claim, frozen: FrozenObject, newest: Dataset) -> str:
        """Build an object anew with the patient's and the study's attributes of an image; gives its key."""
        key = result_key(claim.item, claim.attempt, frozen.sop_instance_uid)
        with self._store.open(frozen.key) as file:
            ds = pydicom.dcmread(file)
            self._store.put(key, encode(restate(ds, newest, prior_holds=self._prior_holds(claim, ds))))
        return key

    def _prior_holds(self, claim: Claim, ds: Dataset) -> bool:
        """Tell whether the earlier result that an object compares with, if it does, is what it was taken for."""
        report = priors.compared_with(ds)
        if report is None:
            return True
        image = self._priors.image(claim, report)
        try:
            return image is not None and priors.names_day(ds, study_day(read_instance(self._store, image).header))
        except (StoreError, UnreadableError):  # it costs the comparison, never the result
            return False

    def _outgoing(self, frozen: FrozenObject) -> Outgoing:
        return Outgoing(frozen.sop_class_uid, frozen.sop_instance_uid, partial(self._store.open, frozen.key))

    def _wait(self, attempt: int) -> float:
        """Seconds until the next attempt: doubling, with jitter so that many do not come at once."""
        wait = min(self._settings.longest_wait, self._settings.first_wait * 2.0 ** min(attempt - 1, 30))
        return wait * random.uniform(0.8, 1.2)  # noqa: S311  no secret


def _of_all(refusals: Sequence[DicomaiError], offered: int) -> DicomaiError:
    """Make one error of those for the images that did not go: one after which another attempt may help, if any is.

    What was accepted is there, and only what is left is offered again.
    """
    hopeful = [error for error in refusals if error.retryable]
    first = (hopeful or refusals)[0]
    return type(first)(f"{len(refusals)} of {offered} images were not accepted, the others were: {first}")


class _Circuit:
    """Whether a destination is sent to. One that gave no association is asked by itself until it is there again.

    Deliveries wait meanwhile and use up no attempts. Waits grow until an object was accepted: a destination that
    answers when it is asked and then refuses what is to be sent is called ever less.
    """

    def __init__(
        self, destination: Destination, deliveries: Deliveries, owner: str, wait: Callable[[int], float]
    ) -> None:
        self._destination = destination
        self._deliveries = deliveries
        self._owner = owner
        self._wait = wait
        self._misses = 0
        self._ask_at: datetime | None = None
        self._found_out: set[int] = set()  # deliveries that were begun, and met with no association
        self._is_new = True
        self._is_away = False  # as was said last

    def closed(self) -> bool:
        """Tell whether to send; asks a destination that was away, where it is time to."""
        if self._is_new:  # what an earlier process said of a destination that was away may have passed
            self._deliveries.explain(self._destination.name, self._owner, "")
            self._is_new = False
        if self._ask_at is None:
            return True
        if self._deliveries.now() < self._ask_at:
            return False
        try:
            self._destination.reach()
        except (UnreachableError, NotAdmittedError) as error:
            self.missed(str(error))
            return False
        except Exception:  # as in a delivery: nobody would miss this thread
            log.exception("a destination could not be asked", destination=self._destination.name)
            self.missed(f"Destination '{self._destination.name}' could not be asked; the log of the delivery says why.")
            return False
        self._ask_at = None
        begun, self._found_out = sorted(self._found_out), set()
        self._deliveries.explain(self._destination.name, self._owner, "", begun=begun)
        return True

    def missed(self, reason: str, item: int | None = None, longest: float = _LONGEST_ECHO_WAIT) -> None:
        """Open: there was no association, which a delivery found out, if one is named."""
        is_news, self._is_away = not self._is_away, True
        self._misses += 1
        if item is not None:
            self._found_out.add(item)
        wait = min(self._wait(self._misses), longest)
        self._ask_at = self._deliveries.now() + timedelta(seconds=wait)
        self._deliveries.explain(self._destination.name, self._owner, reason, "unreachable" if is_news else "")
        if is_news:
            log.warning("the destination is away; deliveries wait", destination=self._destination.name, error=reason)

    def passed(self) -> None:
        """Note that the destination accepts objects."""
        self._misses = 0
        self.answered()

    def answered(self) -> None:
        """Note that the destination lets us in; that it answers when it is asked says that not of every one."""
        if self._is_away:
            self._is_away = False
            self._deliveries.explain(self._destination.name, self._owner, "", "reachable")
            log.info("the destination is there again", destination=self._destination.name)


def run(lanes: Sequence[Lane], stop: threading.Event) -> None:
    """Work in every lane, such as the delivery to one destination, each in a thread of its own, until told to stop."""
    threads = [threading.Thread(target=one.run, args=(stop,), name=f"delivery {n}") for n, one in enumerate(lanes)]
    for thread in threads:
        thread.start()
    stop.wait()
    for thread in threads:
        thread.join()
