"""Claim images that go on, and hand them to delivery: as they came, or de-identified."""

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable

import structlog

from dicomai import leases
from dicomai.database import Database, owner_name
from dicomai.database.forwards import Forwards, Leaving, Planned
from dicomai.database.results import DEIDENTIFIED, DOCUMENT, IMAGE, FrozenObject
from dicomai.database.worklist import Claim, Worklist
from dicomai.deidentification import Deidentifier
from dicomai.errors import NotAcceptedError, UnreadableError
from dicomai.forwarding import Deidentify, Forward, Retain
from dicomai.outputs import encode
from dicomai.store import Store, result_key
from dicomai.study import UNREADABLE, series_number
from dicomai.workitem import Kind

log = structlog.get_logger()

_LEASE_SECONDS = 60.0
_RETRY_SECONDS = 30.0
_ATTEMPTS = 10
_MOST_REASONS = 3


class Forwarder:
    """Works off what forward rules have planned."""

    def __init__(self, store: Store, database: Database, rules: Iterable[Forward] = ()) -> None:
        """Make one.

        Args:
            store: where images and results are.
            database: where the worklist is.
            rules: as they are configured now; one that de-identifies holds for what was planned before it did, too.
        """
        self._strict = {one.name: one for one in rules if one.deidentify is not Deidentify.NONE}
        self._store = store
        self._worklist = Worklist(database)
        self._forwards = Forwards(database)
        self._secret = database.secret()
        self._owner = owner_name("delivery", os.getpid())

    def run(self, stop: threading.Event) -> None:
        """Forward until told to stop."""
        leases.work_off(self.step, stop)

    def step(self) -> bool:
        """Work off one item; tells whether there was one."""
        return leases.attempt(
            self._worklist, Kind.FORWARD, self._owner, self._forward, lease=_LEASE_SECONDS, attempts=_ATTEMPTS
        )

    def _forward(self, claim: Claim, progress: leases.Progress) -> None:
        where = {"study": claim.trace, "workitem": claim.item, "rule": claim.route["name"]}
        with leases.tried_again(self._worklist, claim, _RETRY_SECONDS * claim.attempt, where):
            why = self._worklist.why_wait(claim)
            if why:
                self._worklist.hold(claim, why)
                log.warning("held for a person", why=why, **where)
                return
            planned = self._forwards.planned(claim)
            objects, refused = self._frozen(claim, planned, progress)
            remark = _remark(planned, refused)
            if not objects:
                log.error("nothing goes on", error=remark, **where)
                self._worklist.fail(claim, remark)
                return
            destinations = [str(name) for name in claim.route["destinations"]]
            self._worklist.finish_inference(claim, objects, destinations, remark=remark)
            log.info("images go on", objects=len(objects), destinations=destinations, remark=remark, **where)

    def _frozen(
        self, claim: Claim, planned: Planned, progress: Callable[[float], None]
    ) -> tuple[list[FrozenObject], Counter[str]]:
        """Give the objects to be sent, and why others are not, each reason with their number."""
        how = claim.route["forwards"]
        rule = self._strict.get(str(claim.route["name"]))
        if rule is None and Deidentify(how["deidentify"]) is Deidentify.NONE:
            return [_as_it_came(one) for one in planned.leaving], Counter()
        retain = frozenset(map(Retain, how["retain"] if rule is None else rule.retain))
        deidentifier = Deidentifier(self._secret, retain)
        objects: list[FrozenObject] = []
        refused: Counter[str] = Counter()
        for n, one in enumerate(planned.leaving):
            try:
                objects.append(self._deidentified(claim, one, deidentifier))
            except (NotAcceptedError, UnreadableError) as error:
                refused[str(error)] += 1
            progress((n + 1) / len(planned.leaving))
        return objects, refused

    def _deidentified(self, claim: Claim, one: Leaving, deidentifier: Deidentifier) -> FrozenObject:
        with self._store.open(one.key) as stream:
            try:
                ds = deidentifier.read(stream, is_image=one.is_image)
                data = encode(ds)
            except UNREADABLE as error:
                raise UnreadableError(f"it cannot be read ({type(error).__name__})") from error
        uid = str(ds.SOPInstanceUID)
        key = result_key(claim.item, claim.attempt, uid)
        self._store.put(key, data)
        number = series_number(ds) or 0
        return FrozenObject(
            DEIDENTIFIED, str(ds.SOPClassUID), uid, str(ds.SeriesInstanceUID), number, key, version_id=one.version_id
        )


def _as_it_came(one: Leaving) -> FrozenObject:
    """Name what is in the store already; its Series Number is nobody's business here."""
    what = IMAGE if one.is_image else DOCUMENT
    uids = one.sop_class_uid, one.sop_instance_uid, one.series_instance_uid
    return FrozenObject(what, *uids, 0, one.key, version_id=one.version_id)


def _remark(planned: Planned, refused: Counter[str]) -> str:
    """Say in sentences what does not go on, and why; empty where all does."""
    said = []
    if refused:
        reasons = [f"{reason} ({count} instances)" for reason, count in refused.most_common(_MOST_REASONS)]
        more = f"; and {len(refused) - _MOST_REASONS} more reasons" if len(refused) > _MOST_REASONS else ""
        said.append(f"Not forwarded, as it cannot be de-identified: {'; '.join(reasons)}{more}.")
    if planned.outdated:
        said.append(f"{planned.outdated} instances are left out: a newer version of each goes by itself.")
    if planned.doubted:
        uids = ", ".join(planned.doubted[:_MOST_REASONS])
        said.append(
            f"{len(planned.doubted)} instances are left out, as they contradict those that came first ({uids}): correct"
            " them at their source, and have them sent under a UID of their own."
        )
    if not (said or planned.leaving):
        said.append("Nothing is left to this workitem: a later one lets the same go.")
    return " ".join(said)
