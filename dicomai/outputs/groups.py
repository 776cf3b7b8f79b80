"""Measurement groups of what is not segmented: evaluations, scores, detections (PS3.16 TID 1501, TID 1411)."""

from collections.abc import Iterator, Sequence

import numpy as np
from highdicom.sr import (
    AlgorithmIdentification,
    FindingSite,
    Measurement,
    MeasurementsAndQualitativeEvaluations,
    QualitativeEvaluation,
    SourceSeriesForSegmentation,
    TrackingIdentifier,
    VolumeSurface,
    VolumetricROIMeasurementsAndQualitativeEvaluations,
)
from numpy.typing import NDArray
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from dicomai.errors import GeometryError
from dicomai.findings import Detection, Evaluation, Findings, Region, Score, Shape
from dicomai.outputs.priors import BUNDLE
from dicomai.outputs.provenance import Provenance, Sources

Group = VolumetricROIMeasurementsAndQualitativeEvaluations | MeasurementsAndQualitativeEvaluations

# The sides of a box: which way each of its three axes points at the corners, as they go round.
_ROUND = ((1, 1), (1, -1), (-1, -1), (-1, 1), (1, 1))


def other_groups(findings: Findings, sources: Sources, provenance: Provenance) -> Iterator[Group]:
    """Report what a model says beside its segments, in the order in which it says it.

    Raises:
        GeometryError: something was detected at a place, and the images have no Frame of Reference.
    """
    for n, evaluation in enumerate(findings.evaluations, start=1):
        yield _evaluation(evaluation, n, provenance)
    for n, score in enumerate(findings.scores, start=1):
        yield _score(score, n, provenance)
    for n, detection in enumerate(findings.detections, start=1):
        yield _detection(detection, n, sources, provenance)


def made_by(provenance: Provenance) -> AlgorithmIdentification:
    """Name the algorithm of a group (TID 4019)."""
    algorithm = provenance.algorithm
    return AlgorithmIdentification(
        name=algorithm.name,
        version=algorithm.version,
        parameters=[f"weights={algorithm.weights_digest}", f"{BUNDLE}{algorithm.bundle_digest}"],
        manufacturer=algorithm.manufacturer,
    )


def _evaluation(one: Evaluation, n: int, provenance: Provenance) -> Group:
    return MeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracked(one.name, "evaluation", n, provenance),
        algorithm_id=made_by(provenance),
        finding_sites=_sites(one.site),
        measurements=_certainty(one.probability),
        qualitative_evaluations=[QualitativeEvaluation(one.name, one.answer)],
    )


def _score(one: Score, n: int, provenance: Provenance) -> Group:
    return MeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracked(one.name, "score", n, provenance),
        algorithm_id=made_by(provenance),
        finding_sites=_sites(one.site),
        measurements=[Measurement(name=one.name, value=float(f"{one.value:.6g}"), unit=one.unit, method=one.method)],
    )


def _detection(one: Detection, n: int, sources: Sources, provenance: Provenance) -> Group:
    frame_of_reference_uid = sources.header.get("FrameOfReferenceUID")
    if not frame_of_reference_uid:
        raise GeometryError(
            f"Something was detected ({one.type.meaning}) and the images have no FrameOfReferenceUID to place it in:"
            " send images that have one."
        )
    shape, points = _graphic(one.region)
    return VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracked(one.type, "detection", n, provenance),
        referenced_volume_surface=VolumeSurface(
            graphic_type=shape,
            graphic_data=points,
            frame_of_reference_uid=str(frame_of_reference_uid),
            source_series=SourceSeriesForSegmentation(str(sources.header.SeriesInstanceUID)),
        ),
        finding_category=one.category,
        finding_type=one.type,
        finding_sites=_sites(one.site),
        algorithm_id=made_by(provenance),
        measurements=_certainty(one.probability),
    )


def _graphic(region: Region) -> tuple[str, list[NDArray[np.float64]]]:
    """Give Graphic Type and Graphic Data (PS3.3 C.18.9.1.2): a point, an ellipsoid's axes, or a box's six faces."""
    center, axes = np.asarray(region.center, dtype=np.float64), np.asarray(region.semi_axes, dtype=np.float64)
    if region.shape is Shape.POINT:
        return "POINT", [center[np.newaxis]]
    if region.shape is Shape.ELLIPSOID:
        return "ELLIPSOID", [np.array([center + sign * axis for axis in axes for sign in (-1, 1)])]
    faces = [
        [center + sign * axes[n] + one * axes[n - 1] + other * axes[n - 2] for one, other in _ROUND]
        for n in range(3)
        for sign in (-1, 1)
    ]
    return "POLYGON", [np.array(face) for face in faces]


def identified(name: Code, kind: str, n: int, provenance: Provenance) -> tuple[str, str]:
    """Give the tracking identifier and UID of the n-th of a kind, such as 'score'."""
    return f"{provenance.algorithm.name}: {name.meaning} {n}", provenance.uid("tracking", f"{kind}.{n}")


def _tracked(name: Code, kind: str, n: int, provenance: Provenance) -> TrackingIdentifier:
    identifier, uid = identified(name, kind, n, provenance)
    return TrackingIdentifier(uid=uid, identifier=identifier)


def _sites(site: Code | None) -> Sequence[FindingSite] | None:
    return None if site is None else [FindingSite(site)]


def _certainty(probability: float | None) -> list[Measurement] | None:
    """Give a probability as (111012, DCM, Certainty of Finding), which is in percent."""
    if probability is None:
        return None
    percent = float(f"{100 * probability:.4g}")
    return [Measurement(name=codes.DCM.CertaintyOfFinding, value=percent, unit=codes.UCUM.Percent)]
