"""Whose a study is at a destination; whether that has what it accepted: by commitment, by query, or by its word."""

import hmac
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import astuple

import structlog
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from dicomai.config import DeliverySettings
from dicomai.database import Database
from dicomai.database.commitments_asked import AskedCommitments
from dicomai.database.deliveries import Deliveries
from dicomai.database.results import FrozenObject
from dicomai.database.worklist import Claim
from dicomai.destinations import Destination, Outgoing
from dicomai.destinations.base import Archive, Knowing, Report, Searchable
from dicomai.errors import DeliveryError, RejectedError, WorklistError
from dicomai.study import Identity

log = structlog.get_logger()

MOST_SETBACKS = 3
"""How often a destination may not understand or lose a result, before a person has to look."""

_MOST_REQUESTS = 3
"""How often a destination is asked for storage commitment that does not report."""

_COERCED = 0xB000

_LONGEST_SOURCE_WAIT = 86400.0
_LONGEST_SOURCE_PAUSE = 300.0
_MISMATCH_PAUSES = (600.0, 21600.0)
_MOST_NAMED = 3  # of objects that a sentence is about

Where = Mapping[str, object]
"""What the log says of a delivery."""


class Confirmation:
    """Looks after what one destination has accepted, or has to have before anything is sent."""

    def __init__(
        self,
        database: Database,
        destination: Destination,
        settings: DeliverySettings,
        outgoing: Callable[[FrozenObject], Outgoing],
    ) -> None:
        """Ask a destination.

        Args:
            database: where the worklist is.
            destination: whom.
            settings: waits.
            outgoing: gives an object as it was sent.
        """
        self._database = database
        self._deliveries = Deliveries(database)
        self._asked = AskedCommitments(database)
        self._destination = destination
        self._searchable = destination if isinstance(destination, Searchable) else None
        self._knowing = destination if isinstance(destination, Knowing) else None
        self._archive = destination if isinstance(destination, Archive) else None
        self._first_wait = settings.first_wait
        self._outgoing = outgoing
        self._calls_back = False  # whether the last report came by an association of the destination's own

    def awaits_source(self, claim: Claim, where: Where) -> bool:
        """Put a delivery off while the destination does not show the images of which the result was made.

        Raises:
            DeliveryError: it could not be asked.
            WorklistError: they have not come in a day.
        """
        archive = self._archive
        if archive is None or not archive.waits_for_source or self._deliveries.taken(claim):
            return False
        # A note: images that were rejected are not shown any more. Images that go on: they are the source.
        if "withdraws" in claim.route or "forwards" in claim.route:
            return False
        behind = self._deliveries.behind(claim)
        if archive.max_age is not None and behind.age > archive.max_age:
            return False  # too late in any case, and said so where it is settled
        lacking = archive.lacking(behind.series)
        if not lacking:
            return False
        said = f"Destination '{claim.destination}' does not show all images of series {_some(lacking)}"
        waited = self._deliveries.unseen(claim)  # no time in which nobody asked counts
        if waited > _LONGEST_SOURCE_WAIT:
            raise WorklistError(
                f"{said} after {_LONGEST_SOURCE_WAIT:g} s, and wait_for_source holds the result back until it does:"
                " send them there, then retry."
            )
        wait = min(max(self._first_wait, waited), _LONGEST_SOURCE_PAUSE)
        log.info("waiting for the images", series=len(lacking), next_try_in_s=round(wait), **where)
        self._deliveries.look_again(claim, wait, f"{said} yet: the result waits for them (wait_for_source).")
        return True

    def wait_on(self, claim: Claim, said: str) -> None:
        """Put a delivery off that waits for another one, the longer the longer it does."""
        wait = min(max(self._first_wait, self._deliveries.unseen(claim)), _LONGEST_SOURCE_PAUSE)
        self._deliveries.look_again(claim, wait, said)

    def is_anothers(self, claim: Claim, read: Callable[[], Dataset], where: Where) -> bool:
        """Hold a delivery where the destination shows the study as another patient's.

        It is asked until it has accepted something: half a result must be completed, under whom it was begun.

        Args:
            claim: the delivery.
            read: gives the attributes of patient and study of what is to be sent.
            where: what the log says of it.

        Raises:
            DeliveryError: it could not be asked.
        """
        knowing = self._knowing
        if knowing is None or not knowing.checks_patient or self._deliveries.taken(claim):
            return False
        ours = read()
        identity, shown = Identity.shown(ours), knowing.patients(str(ours.get("StudyInstanceUID", "")))
        if any(not one.patient_id for one in shown):
            log.warning(
                "the destination shows the study without a Patient ID",
                remedy="have its queries give PatientID; until then other attributes alone are compared",
                **where,
            )
        others = [one for one in shown if identity.contradictions(one)]
        if not others:
            return False
        keywords = ", ".join(sorted({keyword for one in others for keyword in identity.contradictions(one)}))
        said = (
            f"Destination '{claim.destination}' shows the study under another patient than what is to be sent:"
            f" {keywords} differ (case {self._case(identity, others)}). Correct it there, or send the corrected images;"
            " or release the item, which sends it as it is."
        )
        if not self._deliveries.mismatched(claim, _MISMATCH_PAUSES, said):
            return False
        log.warning("held for a person", reason=f"another patient there: {keywords} differ", **where)
        return True

    def _case(self, ours: Identity, others: Iterable[Identity]) -> str:
        """Make a word that tells who is taken for whom from any other such case, and not who they are."""
        content = json.dumps([astuple(ours), *sorted(map(astuple, others))]).encode()
        return hmac.digest(self._database.secret(), content, "sha256").hex()[:12]

    def look_into_coerced(self, claim: Claim, where: Where) -> None:
        """Look how the destination has filed what it changed (B000), once; it is accepted in any case."""
        coerced = self._deliveries.taken(claim, unsettled=_COERCED)
        if not coerced or self._searchable is None:
            return
        found: dict[str, str | None]
        try:
            found = self._searchable.whereabouts([self._outgoing(o) for o in coerced])
        except DeliveryError:
            found = {o.sop_instance_uid: "not looked up by a search" for o in coerced}
        hidden = {uid: "not shown by a search" for uid, text in found.items() if text is None}
        self._note(claim, coerced, {**found, **hidden}, where)

    def is_whole(self, claim: Claim, where: Where) -> bool:
        """Tell whether the destination has all of a delivery; if not, the delivery goes on another time.

        Raises:
            DeliveryError: it could not be asked.
        """
        archive = self._archive
        if "forwards" in claim.route and not self._deliveries.taken(claim):  # newer ones go by themselves
            return True
        if archive is not None and archive.commitment_timeout is not None:
            answer = self._is_committed(claim, archive, archive.commitment_timeout, where)
            if answer is not None:
                return answer
        return self._is_shown(claim, where)

    def set_back(self, claim: Claim, wait: float, reason: str, where: Where, lost: tuple[int, ...] = ()) -> None:
        """Let a delivery wait for another attempt after what is borne a few times only, or end it."""
        if self._deliveries.set_back(claim, wait, reason, MOST_SETBACKS, lost):
            log.warning("not delivered yet", error=reason, next_try_in_s=round(wait), **where)
        else:
            log.error("not delivered", error=reason, **where)

    def _is_committed(self, claim: Claim, archive: Archive, timeout: float, where: Where) -> bool | None:
        """Tell whether all is committed, or put the delivery off; None where that is to be found out by C-FIND."""
        asked = self._asked.of(claim)
        if any(not one.is_open for one in asked):  # it came when nobody listened any more
            self._calls_back = True
        if not asked or (all(one.is_open for one in asked) and asked[-1].age >= timeout):
            if len(asked) >= _MOST_REQUESTS:
                self._give_up(claim, timeout)
                return None
            # Where it has called back there is nothing to listen for; where no report has come it may not be able to.
            self._request(claim, archive, where, listens=bool(asked) or not self._calls_back)
            asked = self._asked.of(claim)
            if any(not one.is_open for one in asked):
                self._calls_back = False
        reported = [one for one in asked if not one.is_open]
        if any(not one.failures for one in reported):
            return True
        if reported:
            failures = reported[-1].failures
            said = _some(f"{uid} ({_meaning(reason)})" for uid, reason in failures.items())
            reason = f"Destination '{claim.destination}' accepted and does not commit {said}: look into its log."
            lost = tuple(o.id for o in self._deliveries.taken(claim) if o.sop_instance_uid in failures)
            self.set_back(claim, self._first_wait, reason, where, lost)
        else:
            reason = f"Destination '{claim.destination}' has not reported yet whether it commits what it accepted."
            log.info("waiting for storage commitment", **where)
            self._asked.sleep(claim, timeout, reason)
        return False

    def _request(self, claim: Claim, archive: Archive, where: Where, *, listens: bool) -> None:
        transaction = str(generate_uid(prefix=None))
        ae_title = archive.ae_title

        def reported(report: Report) -> bool:
            return self._asked.report(ae_title, report.transaction_uid, report.committed, report.failed)

        objects = [self._outgoing(o) for o in self._deliveries.taken(claim)]
        self._asked.begin(claim, transaction, ae_title)
        log.info("storage commitment requested", transaction_uid=transaction, objects=len(objects), **where)
        try:
            archive.request_commitment(objects, transaction, reported, listens=listens)
        except DeliveryError:
            self._asked.abandon(transaction)
            raise

    def _give_up(self, claim: Claim, timeout: float) -> None:
        """Leave it to C-FIND where that is asked.

        Raises:
            RejectedError: it is not.
        """
        if self._destination.verify_timeout is None:
            raise RejectedError(
                f"Destination '{claim.destination}' accepted all, and did not report within {timeout:g} s whether it"
                f" commits it, asked {_MOST_REQUESTS} times: see whether the objects are there, and let it report to"
                " this node's port."
            )

    def _is_shown(self, claim: Claim, where: Where) -> bool:
        """Ask, where it is asked, for what was accepted.

        An object that is not shown is asked for again until the time is over; then it is lost, and sent again.
        """
        timeout = self._destination.verify_timeout
        if timeout is None or self._searchable is None:
            return True
        taken = self._deliveries.taken(claim)
        found = self._searchable.whereabouts([self._outgoing(o) for o in taken])
        self._note(claim, taken, found, where)
        hidden = {uid for uid, text in found.items() if text is None}
        if not hidden:
            return True
        unseen = self._deliveries.unseen(claim)
        said = f"Destination '{claim.destination}' accepted {_some(hidden)}, and"
        if unseen < timeout:
            wait = min(max(self._first_wait, unseen), max(timeout - unseen, 1.0))
            log.info("not shown yet", objects=len(hidden), next_try_in_s=round(wait), **where)
            self._deliveries.look_again(claim, wait, f"{said} does not show it yet: it is asked again.")
        else:
            lost = tuple(o.id for o in taken if o.sop_instance_uid in hidden)
            reason = f"{said} did not show it within {timeout:g} s: look into its log for why it was lost."
            self.set_back(claim, self._first_wait, reason, where, lost)
        return False

    def _note(self, claim: Claim, objects: list[FrozenObject], found: Mapping[str, str | None], where: Where) -> None:
        """Keep how objects are filed, and say so where it is not as they were sent."""
        news = {o.id: text for o in objects if (text := found[o.sop_instance_uid]) is not None}
        self._deliveries.found(claim, news)
        for frozen in objects:
            if news.get(frozen.id):
                log.warning(
                    "filed otherwise than it was sent",
                    sop_instance_uid=frozen.sop_instance_uid,
                    meaning=news[frozen.id],
                    remedy="look for the object in the destination, and correct where it is filed",
                    **where,
                )


def _some(names: Iterable[str]) -> str:
    """Name the first few of what may be thousands."""
    ordered = sorted(names)
    more = len(ordered) - _MOST_NAMED
    return ", ".join(ordered[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _meaning(reason: int | None) -> str:
    """Name a Failure Reason (PS3.3 C.14.1.1)."""
    return "not named in the report" if reason is None else f"Failure Reason {reason:04X}"
