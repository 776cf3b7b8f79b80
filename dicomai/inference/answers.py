"""What a bundle gave -> Findings: which segments have voxels, what else it says, and what it means to find nothing."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from dicomai.bundle import Bundle
from dicomai.errors import InferenceError
from dicomai.findings import Detection, Findings, Layer, Measurement, Outcome, Segment
from dicomai.heads import PRED
from dicomai.inference import grid, heads
from dicomai.inference.errors import UnusableAnswerError
from dicomai.inference.given import Given
from dicomai.measuring import measure
from dicomai.volume import Volume


def findings(bundle: Bundle, given: Given, volume: Volume) -> Findings:
    """Make findings of what a bundle's networks gave.

    They are negative where no voxel is marked, nothing is detected, and every answer says that nothing is there. Of a
    bundle that gives scores only there are findings.

    Args:
        bundle: what it means.
        given: what its networks gave.
        volume: the source.

    Raises:
        UnusableAnswerError: it is not what the bundle describes, or nothing is marked or detected where the bundle
            calls that a failure.
    """
    layers, measurements = _masks(bundle, given, volume)
    try:
        answered = list(heads.evaluations(bundle, given))
        scores = tuple(heads.scores(bundle, given))
        detections = tuple(heads.detections(bundle, given, volume))
        probabilities = tuple(heads.probabilities(bundle, given, volume))
        saliency = heads.saliency(bundle, given, volume)
    except UnusableAnswerError:
        raise
    except InferenceError as error:  # the nouns refuse what cannot be; the same images would give the same again
        raise UnusableAnswerError(str(error)) from error
    marked = any(layer.labels.any() for layer in layers) or bool(detections)
    if not marked and bundle.empty == "failure":
        sought = [segment.label for segments in bundle.layers for segment in segments]
        sought += [target.type.meaning for target in bundle.heads.detection]
        raise UnusableAnswerError(f"{bundle.name} found nothing where it must find something ({', '.join(sought)}).")
    only_scores = bundle.empty is None and not answered
    positive = marked or only_scores or not all(negative for _, negative in answered)
    return Findings(
        layers=layers,
        measurements=measurements,
        outcome=Outcome.FINDINGS if positive else Outcome.NEGATIVE,
        evaluations=tuple(evaluation for evaluation, _ in answered),
        scores=scores,
        detections=detections,
        remarks=tuple(_undetected(bundle, detections)),
        saliency=saliency,
        probabilities=probabilities,
    )


def _undetected(bundle: Bundle, detections: tuple[Detection, ...]) -> Iterator[str]:
    """Say what was looked for and not detected; segments without a voxel are found in the layers."""
    found = {(one.type, one.site) for one in detections}
    for target in bundle.heads.detection:
        if (target.type, target.site) not in found:
            least = f" with a probability of {target.min_probability:g} or more" if target.min_probability else ""
            yield f"Looked for and not detected{least}: {target.type.meaning}."


def _masks(bundle: Bundle, given: Given, volume: Volume) -> tuple[tuple[Layer, ...], tuple[Measurement, ...]]:
    """Make layers of the label maps, and measure their segments.

    A segment without a voxel is not measured: a result cannot refer to what it does not hold.
    """
    if not bundle.layers:
        return (), ()
    label_maps = grid.to_label_maps(given.data[PRED], volume, bundle.name)
    if len(label_maps) != len(bundle.layers):
        raise UnusableAnswerError(
            f"{bundle.name} gave {len(label_maps)} label maps and dicomai.toml describes {len(bundle.layers)}: every"
            " channel after postprocessing is a layer."
        )
    layers: list[Layer] = []
    measurements: list[Measurement] = []
    for labels, segments in zip(label_maps, bundle.layers, strict=True):
        counts = np.bincount(labels.ravel())
        _check_labels(bundle, counts, segments)
        layers.append(Layer(_smallest(labels, segments), segments))
        measurements += measure(bundle.measurements, layers[-1], counts, volume)
    return tuple(layers), tuple(measurements)


def _check_labels(bundle: Bundle, counts: NDArray[np.intp], segments: tuple[Segment, ...]) -> None:
    unknown = set(np.flatnonzero(counts).tolist()) - {0} - {segment.number for segment in segments}
    if unknown:
        raise UnusableAnswerError(
            f"{bundle.name} gave the label {min(unknown)}, which no [[segment]] of its dicomai.toml describes."
        )


def _smallest(labels: NDArray[np.uint16], segments: tuple[Segment, ...]) -> NDArray[np.uint8] | NDArray[np.uint16]:
    if max(segment.number for segment in segments) <= np.iinfo(np.uint8).max:
        return labels.astype(np.uint8)
    return labels
