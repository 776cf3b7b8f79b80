"""Claim, analyse, hand to delivery. The process of this role is the one that runs networks."""

import os
import threading
from collections.abc import Callable, Mapping
from datetime import date

import pydicom
import structlog
from pydicom.dataset import Dataset

from dicomai import leases, profiles
from dicomai.analysis import Built, Engine, Request, analyse, explain
from dicomai.bundle import Bundle
from dicomai.config import WorkerSettings
from dicomai.database import Database, owner_name
from dicomai.database.priors import Priors
from dicomai.database.probes import Probes
from dicomai.database.results import FrozenObject
from dicomai.database.worklist import Claim, JobInput, Worklist
from dicomai.errors import (
    BundleError,
    DicomaiError,
    IdentityError,
    InferenceError,
    InputError,
    StoreError,
    UnreadableError,
)
from dicomai.outputs import priors
from dicomai.outputs.priors import NoPrior, Prior, study_day
from dicomai.outputs.provenance import Predecessor
from dicomai.planner import read_instance
from dicomai.profiles import Profile
from dicomai.routing import OutsideValidated
from dicomai.stacks import split
from dicomai.store import Store, result_key
from dicomai.study import UNREADABLE, Identity, Series, Stack, series_number
from dicomai.workitem import Kind

log = structlog.get_logger()

_RETRY_SECONDS = 30.0


class Worker:
    """Works off inference items, one at a time."""

    def __init__(
        self,
        store: Store,
        database: Database,
        bundles: Mapping[str, Bundle],
        settings: WorkerSettings,
        *,
        timezone: str | None,
        load_engine: Callable[[Bundle], Engine],
        destinations: Mapping[str, Profile] | None = None,
    ) -> None:
        """Make a worker.

        Args:
            store: where images and results are.
            database: where the worklist is.
            bundles: the bundle of every model that a route names.
            settings: lease, attempts, threads.
            timezone: the hospital's, an IANA name; None for the host's.
            load_engine: makes a bundle ready to run; what it gives is kept warm.
            destinations: the profile of each; one that is not named shows segmentations and reports.
        """
        self._store = store
        self._worklist = Worklist(database)
        self._installation = database.installation()
        self._bundles = bundles
        self._settings = settings
        self._timezone = timezone
        self._load_engine = load_engine
        self._profiles = destinations or {}
        self._probes = Probes(database)
        self._priors = Priors(database)
        self._engines: dict[str, Engine] = {}
        self._owner = owner_name("worker", os.getpid())

    def run(self, stop: threading.Event) -> None:
        """Work until told to stop; an item under way is finished first."""
        leases.work_off(self.step, stop)

    def step(self) -> bool:
        """Work off one item; tells whether there was one."""
        return leases.attempt(
            self._worklist,
            Kind.INFERENCE,
            self._owner,
            self._work,
            lease=self._settings.lease,
            attempts=self._settings.attempts,
        )

    def _work(self, claim: Claim, progress: Callable[[float], None]) -> None:
        log.info("analysis begins", study=claim.trace, workitem=claim.item, attempt=claim.attempt)
        why = self._worklist.why_wait(claim)
        if why:
            log.warning("held for a person", study=claim.trace, workitem=claim.item, why=why)
            self._worklist.hold(claim, why)
            return
        request = None
        try:
            request = self._request(claim)
            analysis = analyse(request, self._engine(request.bundle), progress)
            objects = [self._freeze(claim, built) for built in analysis.objects]
        except DicomaiError as error:
            if not error.retryable:
                self._fail(claim, request, str(error), error)
            elif claim.attempt < self._settings.attempts:
                log.warning(
                    "analysis failed; it is tried again", study=claim.trace, workitem=claim.item, error=str(error)
                )
                self._worklist.postpone(claim, _RETRY_SECONDS * claim.attempt, str(error))
            else:
                self._fail(claim, request, f"Given up after {claim.attempt} attempts: {error}", error)
            return
        except Exception as error:
            log.exception("a bundle failed unexpectedly", study=claim.trace, workitem=claim.item)
            name = type(error).__name__
            reason = f"{claim.route['model']} failed with {name}; the log of the worker says where."
            self._fail(claim, request, reason, error)
            return
        destinations, wanted = self._receivers(claim)
        self._worklist.finish_inference(claim, objects, destinations, wanted)
        log.info(
            "analysis complete",
            study=claim.trace,
            workitem=claim.item,
            outcome=analysis.findings.outcome.value,
            objects=len(objects),
            destinations=destinations,
        )

    def _fail(self, claim: Claim, request: Request | None, reason: str, error: Exception) -> None:
        """End an item without a result; where the route asks for a report of that, it is sent as a result is."""
        log.warning("not analysed", study=claim.trace, workitem=claim.item, error=reason)
        report: list[FrozenObject] = []
        if request is not None and not isinstance(error, IdentityError):  # in whose study would it lie?
            try:
                report = [self._freeze(claim, built) for built in explain(request, _for_readers(error))]
            except Exception as trouble:  # noqa: BLE001 -- what broke the result may break its report, not the worker
                log.warning(
                    "no report says that there is no result",
                    study=claim.trace,
                    workitem=claim.item,
                    error=str(trouble) if isinstance(trouble, DicomaiError) else type(trouble).__name__,
                )
        self._worklist.fail(claim, reason, report, *self._receivers(claim))

    def _receivers(self, claim: Claim) -> tuple[list[str], dict[str, tuple[str, ...]]]:
        """Give the destinations of a result, and the outputs that go to each."""
        names = [str(name) for name in claim.route["destinations"]]
        return names, {name: profiles.wanted(self._profile(name), _outputs(claim)) for name in names}

    def _request(self, claim: Claim) -> Request:
        route = claim.route
        bundle = self._bundles.get(str(route["model"]))
        if bundle is None:
            raise BundleError(f"Model {route['model']} is in no route any more; add the route again, then retry.")
        inputs = self._worklist.inputs(claim)
        stacks = {one.role: self._stack(one) for one in inputs}
        newest = read_instance(self._store, self._worklist.newest_image(claim)).header
        predecessors = self._worklist.predecessors(claim)
        return Request(
            bundle=bundle,
            inputs=stacks,
            newest=newest,
            outside_validated=OutsideValidated(str(route["outside_validated"])),
            outputs=self._built(claim),
            work_digest=claim.digest,
            generation=claim.generation,
            installation=self._installation,
            series_numbers=self._series_numbers(claim.study_id),
            supersedes=tuple(
                Predecessor(
                    output=old.output,
                    study_instance_uid=str(newest.StudyInstanceUID),
                    series_instance_uid=old.series_instance_uid,
                    sop_instance_uid=old.sop_instance_uid,
                    sop_class_uid=old.sop_class_uid,
                    series_number=old.series_number,
                )
                for old in predecessors
            ),
            timezone=self._timezone,
            threads=self._settings.threads,
            label_map=self._label_map(claim),
            prior=self._prior(claim, newest) if claim.route.get("prior") else None,
        )

    def _prior(self, claim: Claim, newest: Dataset) -> Prior | NoPrior:
        """Find the earlier result to compare with. What is wrong with it costs the comparison, never the result."""
        today = study_day(newest)
        person = Identity.of(newest)
        if today is None:
            return NoPrior("the study does not say its date.")
        if not person.patient_id or not person.patient_birth_date:
            return NoPrior("the images lack Patient ID or birth date, by which earlier studies are known.")
        try:
            earlier, unread = self._earlier(claim, today)
            if len(earlier) == 1:
                day, report = earlier[0]
                with self._store.open(report) as stream:
                    return priors.read(pydicom.dcmread(stream), day, today, unread)
        except (StoreError, UnreadableError, *UNREADABLE) as error:
            _cannot_be_read(claim, error)
            earlier, unread = [], 1
        if unread and not earlier:
            return NoPrior("one is known and cannot be read; the log of the node says more.")
        if earlier:
            return NoPrior(f"there are {len(earlier)} of {earlier[0][0]}, and it is not known which is meant.")
        return NoPrior("this node has none of this route for this patient.")

    def _earlier(self, claim: Claim, today: date) -> tuple[list[tuple[date, str]], int]:
        """Give the day and the report's key of each result of the last day before this one; most often there is one.

        And of how many results the day is not known, as their images cannot be read.
        """
        before, unread = [], 0
        for one in self._priors.candidates(claim):
            try:
                day = study_day(read_instance(self._store, one.image).header)
            except (StoreError, UnreadableError, *UNREADABLE) as error:
                _cannot_be_read(claim, error)
                unread += 1
                continue
            if day is not None and day < today:
                before.append((day, one.report))
        last = max((day for day, _ in before), default=None)
        return [(day, report) for day, report in before if day == last], unread

    def _profile(self, destination: object) -> Profile:
        return self._profiles.get(str(destination), Profile.OHIF)

    def _built(self, claim: Claim) -> tuple[str, ...]:
        """Give the outputs that the route names, and those that a destination is sent in their place."""
        some = [profiles.wanted(self._profile(name), _outputs(claim)) for name in claim.route["destinations"]]
        return tuple(dict.fromkeys([*_outputs(claim), *(output for outputs in some for output in outputs)]))

    def _label_map(self, claim: Claim) -> str | None:
        probes = self._probes.last()
        return profiles.label_map((self._profile(name), probes.get(str(name))) for name in claim.route["destinations"])

    def _stack(self, planned: JobInput) -> Stack:
        """Read the planned images; they are split again, since a multi-frame image can belong to several stacks."""
        instances = tuple(read_instance(self._store, image) for image in planned.images)
        for stack in split(Series("", instances)):
            if stack.key == planned.stack:
                return stack
        raise UnreadableError(f"The images of stack '{planned.stack}' are not what was planned; send the series again.")

    def _engine(self, bundle: Bundle) -> Engine:
        engine = self._engines.get(bundle.digest)
        if engine is None:
            engine = self._engines[bundle.digest] = self._load_engine(bundle)
        return engine

    def _series_numbers(self, study_id: int) -> frozenset[int]:
        """Every Series Number that the study uses, as far as its images are here, and those of our own results."""
        numbers: set[int | None] = set(self._worklist.series_numbers(study_id))
        for key in self._worklist.one_of_each_series(study_id):
            with self._store.open(key) as stream:
                ds = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=["SeriesNumber"])
            numbers.add(series_number(ds))
        return frozenset(number for number in numbers if number is not None)

    def _freeze(self, claim: Claim, built: Built) -> FrozenObject:
        """Make an object's bytes durable, under a key of this attempt alone."""
        key = result_key(claim.item, claim.attempt, built.sop_instance_uid)
        self._store.put(key, built.data)
        return FrozenObject(
            built.output,
            built.sop_class_uid,
            built.sop_instance_uid,
            built.series_instance_uid,
            built.series_number,
            key,
        )


def _cannot_be_read(claim: Claim, error: Exception) -> None:
    log.warning(
        "an earlier result cannot be read",
        study=claim.trace,
        workitem=claim.item,
        error=str(error) if isinstance(error, DicomaiError) else type(error).__name__,
    )


def _outputs(claim: Claim) -> tuple[str, ...]:
    return tuple(str(output) for output in claim.route["outputs"])


def _for_readers(error: Exception) -> str:
    """Say in a sentence why there is no result, for who reads the images.

    What a bundle's own code says, or a disk, is for the administrator, and may tell what no report must.
    """
    if isinstance(error, InputError) or (isinstance(error, InferenceError) and not error.retryable):
        return str(error)
    return "The analysis failed; the worklist of the node says why."
