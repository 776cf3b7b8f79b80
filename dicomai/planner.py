"""Complete? Then which routes, and what work.

Sweeps run on APScheduler at intervals, in one process, in memory: due times are columns, so a sweep that runs twice
or not at all does no harm.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import structlog
from pydicom.dataset import Dataset

from dicomai.bundle import Bundle
from dicomai.database.associations import Associations
from dicomai.database.engine import Database
from dicomai.database.forwards import DueForward, Forwards
from dicomai.database.planning import DueSeries, Image, Plan, PlannedInput, Planning
from dicomai.database.rejections import Rejections
from dicomai.errors import DicomaiError, InputError, StoreError, UnreadableError
from dicomai.fingerprint import fingerprint_of
from dicomai.forwarding import Forward, why_not
from dicomai.notes import Notes
from dicomai.routing import Decision, Level, Route, match
from dicomai.stacks import split
from dicomai.store import Store
from dicomai.study import UNREADABLE, Instance, Series, Stack

log = structlog.get_logger()

_RETRY = 30.0  # seconds until a series is looked at again whose planning failed


@dataclass(frozen=True, slots=True)
class _Split:
    """A series with its images read and split into stacks.

    Attributes:
        images: by SOP Instance UID.
    """

    series_id: int
    stacks: tuple[Stack, ...]
    images: Mapping[str, Image]


class Planner:
    """Turns complete series into workitems."""

    def __init__(
        self,
        store: Store,
        database: Database,
        routes: Sequence[Route],
        bundles: Mapping[str, Bundle],
        *,
        quiet_period: float,
        lost_period: float,
        forwards: Sequence[Forward] = (),
    ) -> None:
        """Make a planner.

        Args:
            store: where the images are.
            database: where the state is.
            routes: what to run on which images.
            bundles: the bundle of every model that a route names.
            quiet_period: seconds without a new image for a series that no route matches.
            lost_period: seconds to wait after an association was aborted or lost.
            forwards: which of the images themselves go on, and where to.
        """
        self._store = store
        self._planning = Planning(database)
        self._associations = Associations(database)
        self._notes = Notes(store, database)
        self._rejections = Rejections(database)
        self._routes = tuple(routes)
        self._rules = tuple(forwards)
        self._forwards = Forwards(database)
        self._bundles = bundles
        self._quiet_period = quiet_period
        self._lost_period = lost_period
        self._installation = database.installation()

    def sweep(self) -> int:
        """Plan every series that is complete; gives how many were."""
        lost = self._associations.lose_expired()
        if lost:
            log.warning("associations were lost without a word", count=lost)
        self._notes.sweep()  # before anything is planned on what they reject
        done = 0
        for due in self._planning.due():
            try:
                done += self._plan(due)
            except StoreError as error:
                log.error("planning failed; it is tried again", study=due.trace, error=str(error))
                self._planning.postpone(due, self._planning.later(_RETRY), str(error))
            except DicomaiError as error:
                # Not a state to end in: a person mends the cause, or sends the images again.
                log.error("a series cannot be planned", study=due.trace, error=str(error))
                self._planning.commit(due, (), str(error))
            except Exception as error:
                # What a library makes of odd images: one series must not keep all others from being planned.
                log.exception("planning failed unexpectedly", study=due.trace)
                name = type(error).__name__
                self._planning.commit(due, (), f"Planning failed with {name}; the log of the planner says where.")
        if self._rules:
            for on_its_way in self._forwards.due():
                self._let_go(on_its_way)
        else:
            self._forwards.forget()
        return done

    def _let_go(self, due: DueForward) -> None:
        """Plan that a series goes on, by every rule that takes it."""
        try:
            headers = self._headers(due) if any(not rule.takes_all for rule in self._rules) else []
            rules = [rule for rule in self._rules if rule.takes_all or not why_not(headers, rule)]
            unread = [rule.name for rule in self._rules if not (rule.takes_all or headers)]
            said = f"nothing of it can be read, so that no match is told ({', '.join(unread)})." if unread else ""
            made = self._forwards.commit(due, rules, said)
        except StoreError as error:
            log.error("a series cannot go on yet; it is tried again", study=due.trace, error=str(error))
            self._forwards.postpone(due, self._planning.later(_RETRY), f"{error} It is tried again.")
        except Exception as error:  # as in `sweep`, and never given up: nothing that came may stay here unseen
            log.exception("a series could not go on; it is tried again", study=due.trace)
            said = f"planning failed with {type(error).__name__}; the log of the planner says where. It is tried again."
            self._forwards.postpone(due, self._planning.later(_RETRY), said)
        else:
            if made:
                log.info("a series goes on", study=due.trace, work=made, rules=[rule.name for rule in rules])

    def _headers(self, due: DueForward) -> list[Dataset]:
        """Give what a series is known by: the headers of its images, or that of one instance where it has none."""
        keys = [due.document] if due.document else [image.key for image in self._planning.images(due.series_id)]
        headers: list[Dataset] = []
        for key in keys:
            try:
                headers.append(Instance.read(lambda key=key: self._store.open(key), key).header)  # type: ignore[misc]
            except UnreadableError as error:
                log.error("an instance is left out where its series is looked at", study=due.trace, error=str(error))
        return headers

    def _plan(self, due: DueSeries) -> bool:
        rejected = self._rejections.judge(due.series_id)
        if rejected:
            log.info("nothing is run on a series with rejected images", study=due.trace, reason=rejected)
            return self._planning.commit(due, (), rejected)
        ready = self._read(due.series_id)
        stacks = ready.stacks
        decisions = [(stack, match(stack.header, self._routes)) for stack in stacks]
        matched = [decision.route for _, some in decisions for decision in some if decision.matches]
        quiet = max((route.quiet_period for route in matched), default=self._quiet_period)
        wait = self._planning.wait(due, quiet, self._lost_period)
        if wait is not None:
            self._planning.postpone(due, wait.until, wait.reason)
            return False
        others = self._planning.open_series(due.study_id, but=due.series_id)
        plans = self._of_series(ready, decisions)
        only_forwards = bool(self._rules) and not self._routes  # where nobody asks for more, nothing is amiss
        reason = "" if matched or only_forwards else _why_not(decisions)
        by_study = [route for route in self._routes if route.level is Level.STUDY]
        study_waits = (
            self._planning.wait_for_study(due.study_id, self._lost_period) if by_study and not others else None
        )
        if by_study and not others and study_waits is None:
            try:
                study_plans, study_reason = self._of_study(due, ready, by_study)
            except InputError as error:  # in another series, perhaps: the work of this one goes on
                names = ", ".join(f"'{route.name}'" for route in by_study)
                study_plans, study_reason = [], f"Nothing is run on the study as a whole (route {names}): {error}"
            plans += study_plans
            reason = reason or study_reason
        elif any(route.level is Level.STUDY for route in matched):
            log.info("a study-level route waits for the other series", study=due.trace, open_series=others)
        if not self._planning.commit(due, plans, reason, study_waits):
            return False
        counts = {"instances": len(ready.images), "stacks": len(stacks), "work": len(plans)}
        log.info("series complete", study=due.trace, reason=reason, **counts)
        return True

    def _read(self, series_id: int) -> _Split:
        images = self._planning.images(series_id)
        instances = tuple(read_instance(self._store, image) for image in images)
        stacks = split(Series(str(series_id), instances)) if instances else ()
        return _Split(series_id, stacks, {image.sop_instance_uid: image for image in images})

    def _fingerprints(self, images: Sequence[Image]) -> dict[str, str]:
        """The fingerprints of images; missing ones are taken now, when the series is complete."""
        known = {image.sop_instance_uid: image.fingerprint for image in images}
        fresh = {}
        for image in images:
            if image.fingerprint is None:
                with self._store.open(image.key) as stream:
                    try:
                        fresh[image.sop_instance_uid] = fingerprint_of(stream)
                    except UNREADABLE as error:
                        raise UnreadableError(
                            f"SOP Instance {image.sop_instance_uid} cannot be read ({type(error).__name__}); "
                            "send it again from its source."
                        ) from error
        if fresh:
            self._planning.keep_fingerprints(fresh)
        return {uid: known[uid] or fresh[uid] for uid in known}

    def _of_series(self, ready: _Split, decisions: Sequence[tuple[Stack, tuple[Decision, ...]]]) -> list[Plan]:
        """One workitem for each stack and each route of level series that it takes."""
        plans = []
        for stack, some in decisions:
            for decision in some:
                route = decision.route
                if decision.matches and route.level is Level.SERIES:
                    role = self._bundles[route.model].inputs[0].role
                    plans.append(self._make(route, [(role, ready, stack)]))
        return plans

    def _of_study(self, due: DueSeries, ready: _Split, routes: Sequence[Route]) -> tuple[list[Plan], str]:
        """One workitem for each route of level study, of all stacks of the study that it takes."""
        whole = [ready]
        whole += [self._read(number) for number in self._planning.series_of(due.study_id) if number != due.series_id]
        plans, reasons = [], []
        for route in routes:
            taken = [
                (one, stack)
                for one in sorted(whole, key=lambda one: one.series_id)
                for stack in one.stacks
                if match(stack.header, (route,))[0].matches
            ]
            roles = [spec.role for spec in self._bundles[route.model].inputs]
            if len(taken) == len(roles) == 1:
                plans.append(self._make(route, [(roles[0], *taken[0])]))
            elif taken:
                reasons.append(
                    f"Route '{route.name}' matches {len(taken)} stacks of this study, but {route.model} takes "
                    f"{len(roles)}: narrow its match, so that it is clear which is meant."
                )
        return plans, " ".join(reasons)

    def _make(self, route: Route, inputs: Sequence[tuple[str, _Split, Stack]]) -> Plan:
        bundle = self._bundles[route.model]
        fingerprints = [
            self._fingerprints([one.images[i.sop_instance_uid] for i in stack.instances]) for _, one, stack in inputs
        ]
        work = {
            "installation": self._installation,
            "route": [route.name, route.outside_validated, list(route.outputs), *(["prior"] if route.prior else [])],
            "bundle": [bundle.name, bundle.version, bundle.digest],
            "inputs": [
                [role, stack.key, sorted(known.items())]
                for (role, _, stack), known in zip(inputs, fingerprints, strict=True)
            ],
        }
        return Plan(
            route=json.loads(json.dumps(asdict(route))),
            digest=hashlib.sha256(json.dumps(work, sort_keys=True).encode()).hexdigest(),
            inputs=tuple(
                PlannedInput(role, one.series_id, stack.key, tuple(i.sop_instance_uid for i in stack.instances))
                for role, one, stack in inputs
            ),
        )


def read_instance(store: Store, image: Image) -> Instance:
    """Read the header of a stored image.

    Raises:
        UnreadableError: it cannot be read.
        StoreError: it is not there.
    """
    return Instance.read(lambda: store.open(image.key), f"SOP Instance {image.sop_instance_uid}")


def _why_not(decisions: Sequence[tuple[Stack, tuple[Decision, ...]]]) -> str:
    """Say in a sentence why no route takes a series."""
    if not decisions:
        return "No image of this series can be read."
    reasons = dict.fromkeys(f"{d.route.name}: {d.why_not}" for _, some in decisions for d in some)
    if not reasons:
        return "No route is configured."
    shown = list(reasons)[:5]
    more = f" (and {len(reasons) - len(shown)} more)" if len(reasons) > len(shown) else ""
    return f"No route takes it: {'; '.join(shown)}{more}."
