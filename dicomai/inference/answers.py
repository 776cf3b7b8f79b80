"""Label maps -> Findings: which segments have voxels, how large they are, and what an empty mask means."""

import numpy as np
from numpy.typing import NDArray

from dicomai.bundle import Bundle
from dicomai.findings import Findings, Layer, Measurement, Outcome, Segment
from dicomai.inference.errors import UnusableAnswerError
from dicomai.measuring import measure
from dicomai.volume import Volume


def findings(bundle: Bundle, label_maps: NDArray[np.uint16], volume: Volume) -> Findings:
    """Make findings of a bundle's label maps.

    A segment without a voxel is not measured: a result cannot refer to what it does not hold.

    Args:
        bundle: what the labels mean.
        label_maps: (layer, z, y, x)
        volume: what they lie on.

    Raises:
        UnusableAnswerError: there are more or fewer layers than the bundle describes, a label that it does not
            describe, or no voxel at all where the bundle calls that a failure.
    """
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
    if any(layer.labels.any() for layer in layers):
        return Findings(tuple(layers), tuple(measurements), Outcome.FINDINGS)
    if bundle.empty == "failure":
        sought = ", ".join(segment.label for segments in bundle.layers for segment in segments)
        raise UnusableAnswerError(f"{bundle.name} found nothing where it must find something ({sought}).")
    return Findings(tuple(layers), (), Outcome.NEGATIVE)


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
