"""Load, infer, build, in one place: the worker and `dicomai run` both come here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Protocol

from pydicom.dataset import Dataset

import dicomai
from dicomai import measuring
from dicomai.bundle import Bundle
from dicomai.errors import NotAcceptedError
from dicomai.findings import Findings
from dicomai.outputs import NOT_ANALYSED, build, encode, not_analysed
from dicomai.outputs.priors import NoPrior, Prior
from dicomai.outputs.provenance import Algorithm, Predecessor, Provenance, Sources
from dicomai.routing import OutsideValidated
from dicomai.study import Stack
from dicomai.volume import Limits, Volume, load


class Engine(Protocol):
    """What runs a bundle: `dicomai.inference.load` gives one. Named here so that this module imports no torch."""

    def infer(self, volumes: Mapping[str, Volume], progress: Callable[[float], None]) -> Findings:
        """Run the bundle on one volume per role."""


@dataclass(frozen=True, slots=True)
class Request:
    """One run of a model.

    Attributes:
        bundle: the model.
        inputs: one stack per role of the bundle.
        newest: the newest instance's attributes: the patient's and the study's are taken from it.
        outside_validated: what to do with images outside of what the bundle was validated for.
        outputs: which objects to build.
        work_digest: what identifies the work; UIDs come from it.
        generation: raised when work is done again after something was sent.
        installation: UUID of this node.
        series_numbers: every SeriesNumber in use in the study.
        supersedes: the objects of the result that this one replaces.
        timezone: the hospital's, an IANA name; None for the host's.
        threads: for reading and decoding images.
        label_map: the transfer syntax in which every destination takes a Label Map Segmentation; None for a binary one.
        prior: the earlier result to compare with, or why there is none; None where no comparison is asked for.
    """

    bundle: Bundle
    inputs: Mapping[str, Stack]
    newest: Dataset = field(repr=False)
    outside_validated: OutsideValidated
    outputs: tuple[str, ...]
    work_digest: str
    generation: int
    installation: str
    series_numbers: frozenset[int]
    supersedes: tuple[Predecessor, ...]
    timezone: str | None
    threads: int
    label_map: str | None = None
    prior: Prior | NoPrior | None = None


@dataclass(frozen=True, slots=True)
class Built:
    """One result object, encoded."""

    output: str
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    series_number: int
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Analysis:
    """What a run gave: the volume that was looked at, the findings, and the objects in the order to send them."""

    volume: Volume
    findings: Findings
    objects: tuple[Built, ...]


def check(bundle: Bundle, inputs: Mapping[str, Stack], outside_validated: OutsideValidated) -> tuple[str, ...]:
    """Hold the images' attributes against what the bundle takes, before a pixel is read.

    Returns:
        Sentences that the result must carry.

    Raises:
        NotAcceptedError: the bundle does not take them, or only where the route says `report`.
    """
    remarks = []
    for role, stack in inputs.items():
        for instance in stack.instances:
            bundle.accept(instance.header, role)
        if role == bundle.inputs[0].role:
            measuring.check(bundle.measurements, stack.frames, bundle.name)
        # Every slice: a header that differs somewhere in the series must not hide behind the first.
        said = (bundle.outside_validated(one.instance.header, role, one.number or 1) for one in stack.frames)
        remark = next((sentence for sentence in said if sentence is not None), None)
        if remark is None:
            continue
        if outside_validated is OutsideValidated.REFUSE:
            raise NotAcceptedError(
                f'{remark} Where a result is wanted all the same, let the route say outside_validated = "report".'
            )
        remarks.append(remark)
    return tuple(remarks)


def analyse(request: Request, engine: Engine, progress: Callable[[float], None]) -> Analysis:
    """Run a model on the images of a study and build the result objects.

    Args:
        request: what to run on which images.
        engine: the bundle, loaded.
        progress: called with the fraction done, 0 to 1.

    Raises:
        InputError: the images cannot be used.
        InferenceError: the network did not run, or its answer is not usable.
    """
    bundle = request.bundle
    remarks = check(bundle, request.inputs, request.outside_validated)
    progress(0.02)
    volumes = {role: load(stack, _limits(bundle, role), request.threads) for role, stack in request.inputs.items()}
    progress(0.1)
    findings = engine.infer(volumes, lambda done: progress(0.1 + 0.8 * done))
    findings = replace(findings, remarks=remarks + findings.remarks)
    volume = volumes[bundle.inputs[0].role]
    sources = Sources(frames=volume.frames, newest=request.newest, lossy=any(v.lossy for v in volumes.values()))
    provenance = _provenance(request)
    objects = []
    for output in request.outputs:
        ds = build(output, findings, sources, provenance)
        if ds is not None:
            objects.append(_encoded(output, ds))
    progress(1.0)
    return Analysis(volume, findings, tuple(objects))


def explain(request: Request, why: str) -> tuple[Built, ...]:
    """Build what says that the images were not analysed, a report and a picture; none where the route asks for none.

    Args:
        request: what was to be run.
        why: in a sentence that tells nothing of the patient.

    Raises:
        IdentityError: the newest instance lies in another study than the images.
    """
    frames = request.inputs[request.bundle.inputs[0].role].frames
    sources = Sources(frames=frames, newest=request.newest, lossy=False)
    provenance = _provenance(request)
    asked = (output for output in NOT_ANALYSED if output in request.outputs)
    return tuple(_encoded(output, not_analysed(output, why, sources, provenance)) for output in asked)


def _encoded(output: str, ds: Dataset) -> Built:
    return Built(
        output=output,
        sop_class_uid=str(ds.SOPClassUID),
        sop_instance_uid=str(ds.SOPInstanceUID),
        series_instance_uid=str(ds.SeriesInstanceUID),
        series_number=int(ds.SeriesNumber),
        data=encode(ds),
    )


def _limits(bundle: Bundle, role: str) -> Limits:
    spec = bundle.input(role)
    return Limits(
        min_slices=spec.min_slices, spacing_tolerance=spec.spacing_tolerance, tilted=spec.tilted, lossy=spec.lossy
    )


def _provenance(request: Request) -> Provenance:
    algorithm = request.bundle.algorithm
    return Provenance(
        work_digest=request.work_digest,
        generation=request.generation,
        outputs=request.outputs,
        algorithm=Algorithm(
            name=algorithm.name,
            version=algorithm.version,
            family=algorithm.family,
            weights_digest=request.bundle.weights.digest,
            bundle_digest=request.bundle.digest,
            manufacturer=algorithm.manufacturer,
            description=algorithm.description,
            reference=algorithm.reference or None,
            report_title=algorithm.report_title,
        ),
        installation=request.installation,
        software_version=dicomai.__version__,
        created=datetime.now(UTC),
        timezone=request.timezone,
        series_numbers=request.series_numbers,
        supersedes=request.supersedes,
        label_map=request.label_map,
        prior=request.prior,
    )
