"""What networks give beside label maps -> findings: answers, scores, detections, maps."""

import itertools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from dicomai.bundle import Bundle
from dicomai.findings import Detection, Evaluation, Probability, Region, Saliency, Score, Shape
from dicomai.heads import Boxes, Question, Target
from dicomai.inference import grid
from dicomai.inference.errors import UnusableAnswerError
from dicomai.inference.given import Given
from dicomai.volume import Volume

_LPS_OF = {"RAS": np.array([-1.0, -1.0, 1.0]), "LPS": np.ones(3)}
_SUM_TOLERANCE = 0.01  # of half precision; a class that nobody described, or a sigmoid, is farther off
_ASKEW = 0.01  # of a direction cosine: sides of a box along the patient's axes are then off by a hundredth
_BEYOND = 1.5  # voxels: boxes reach to the faces of voxels, and a grid by up to one over the images that it was made of


def evaluations(bundle: Bundle, given: Given) -> Iterator[tuple[Evaluation, bool]]:
    """Answer a bundle's questions; with each answer, whether it says that nothing was found.

    Raises:
        UnusableAnswerError: a probability is none, or those of answers that exclude each other do not add up to 1.
    """
    for question in bundle.heads.evaluation:
        values = given.probabilities(question.key)
        channels = [one.channel for one in question.answer if one.channel is not None]
        shares = [_channel(values, channel, question.key, given) for channel in channels]
        n, probability = _held(question, shares, given)
        answer = question.answer[n]
        yield Evaluation(question.name, answer.code, question.site, probability), answer.negative


def _held(question: Question, shares: list[float], given: Given) -> tuple[int, float]:
    """Give which answer holds, and how probable it is."""
    if question.threshold is not None:
        return (0, shares[0]) if _reaches(shares[0], question.threshold) else (1, 1 - shares[0])
    if abs(sum(shares) - 1) > _SUM_TOLERANCE:
        raise UnusableAnswerError(
            f"The probabilities of {given.name} for the answers to '{question.name.meaning}' add up to {sum(shares):g}"
            " and not to 1: describe the answer of every channel, and let postprocessing make them exclude each other"
            " (softmax)."
        )
    n = int(np.argmax(shares))
    return n, shares[n]


def _reaches(share: float, least: float) -> bool:
    """Compare as the network gave it, in single precision: 0.7 is then 0.7."""
    return bool(np.float32(share) >= np.float32(least))


def scores(bundle: Bundle, given: Given) -> Iterator[Score]:
    """Give a bundle's numbers.

    Raises:
        UnusableAnswerError: one is missing or no number.
    """
    for one in bundle.heads.score:
        value = _channel(given.numbers(one.key), one.channel, one.key, given)
        yield Score(one.name, value, one.unit, one.site, one.method)


def _channel(values: NDArray[np.float64], channel: int, key: str, given: Given) -> float:
    if channel >= len(values):
        raise UnusableAnswerError(
            f"{given.name} left {len(values)} values under '{key}' and dicomai.toml names channel {channel}, counted"
            " from 0."
        )
    return float(values[channel])


def detections(bundle: Bundle, given: Given, volume: Volume) -> Iterator[Detection]:
    """Give what was detected, in the detector's order, but for what is too improbable.

    Raises:
        UnusableAnswerError: a box does not lie in the images or has no extent, a label is described by no
            [[detection]], or boxes, labels and scores are not as many.
    """
    boxes = bundle.heads.boxes
    if boxes is None:
        return
    rows, labels = given.numbers(boxes.box, width=6), given.numbers(boxes.label)
    shares = given.probabilities(boxes.score)
    if not len(rows) == len(labels) == len(shares):
        raise UnusableAnswerError(
            f"{given.name} left {len(rows)} boxes, {len(labels)} labels and {len(shares)} scores: each box has one."
        )
    targets = {one.label: one for one in bundle.heads.detection}
    for row, label, share in zip(rows, labels, shares, strict=True):
        target = targets.get(int(label)) if label == int(label) else None
        if target is None:
            raise UnusableAnswerError(
                f"{given.name} gave a box the label {label:g}, which no [[detection]] of its dicomai.toml describes."
            )
        if _reaches(share, target.min_probability):
            region = _region(row, boxes, target, given, volume)
            yield Detection(target.type, target.category, target.site, region, float(share))


def _region(row: NDArray[np.float64], boxes: Boxes, target: Target, given: Given, volume: Volume) -> Region:
    """Make a region, LPS in mm, of a box."""
    center, half = _center_and_half(row, boxes)
    if not (half > 0).all():
        raise UnusableAnswerError(f"A box of {given.name} ({target.type.meaning}) has no extent along an axis.")
    axes = given.affine[:3, :3] / np.linalg.norm(given.affine[:3, :3], axis=0)
    if boxes.space == "image":
        if not np.allclose(axes.T @ axes, np.eye(3), atol=1e-3):
            raise UnusableAnswerError(
                f"The voxels of the image that {given.name} saw are askew (a tilted gantry), and so is a box of them:"
                ' let its preprocessing make a grid at right angles (Spacingd with "diagonal": true).'
            )
        to_lps = grid.LPS_TO_RAS @ given.affine
        middle, sides = (to_lps @ [*center, 1])[:3], (to_lps[:3, :3] * half).T
    else:
        if np.sort(np.abs(axes), axis=0)[1].max() > _ASKEW:
            raise UnusableAnswerError(
                f"A box of {given.name} lies along the patient's axes and the image that it saw does not, so that it"
                ' has lost its size: let postprocessing leave boxes in voxels (space = "image", without'
                ' AffineBoxToWorldCoordinated), or preprocessing turn the image (Spacingd with "diagonal": true).'
            )
        middle, sides = _LPS_OF[boxes.space] * center, np.diag(half)
    _check_inside(middle, sides, target, given, volume)
    return Region(Shape.BOX, _vector(middle), tuple(_vector(side) for side in sides))


def _center_and_half(row: NDArray[np.float64], boxes: Boxes) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give the centre of a box and half of its extent along each axis."""
    first, second = row[:3], row[3:]
    return (first, second / 2) if boxes.mode == "cccwhd" else ((first + second) / 2, (second - first) / 2)


def _check_inside(
    middle: NDArray[np.float64], sides: NDArray[np.float64], target: Target, given: Given, volume: Volume
) -> None:
    """Refuse a box whose centre is not in the images, or which reaches out of what the network saw."""
    back = np.linalg.inv(volume.affine)
    index = (back @ [*middle, 1])[:3]
    signs = np.array(list(itertools.product((-1, 1), repeat=3)))
    corners = np.c_[middle + signs @ sides, np.ones(8)]
    seen = (corners @ np.linalg.inv(grid.LPS_TO_RAS @ given.affine).T)[:, :3]
    inside = (index >= -0.5).all() and (index <= np.asarray(volume.shape) - 0.5).all()
    if not inside or (seen < -_BEYOND).any() or (seen > np.asarray(given.shape) - 1 + _BEYOND).any():
        raise UnusableAnswerError(
            f"A box of {given.name} ({target.type.meaning}) lies outside of the images: see that space and mode of"
            " [boxes] are those of its boxes, and that its postprocessing clips them (ClipBoxToImaged)."
        )


def _vector(values: NDArray[np.float64]) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in values)
    return x, y, z


def probabilities(bundle: Bundle, given: Given, volume: Volume) -> Iterator[Probability]:
    """Give the segments' maps of probability on the grid of the source images.

    Raises:
        UnusableAnswerError: they lie elsewhere, or are no probabilities.
    """
    kept = bundle.heads.probabilities
    if kept is None:
        return
    for layer, (segments, channels) in enumerate(zip(bundle.layers, bundle.channels, strict=True)):
        for segment, channel in zip(segments, channels, strict=True):
            if channel is not None:
                what = f"probability of {segment.label} that {given.name} gave"
                values = grid.to_map(given.data[kept.key], channel, volume, what)
                yield Probability(layer, segment, _rounded(values))


def _rounded(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Take back what an interpolation in single precision is over; what is farther off stays, and is refused."""
    low, high = values.min(initial=0), values.max(initial=0)
    return np.clip(values, 0, 1) if -1e-4 < low < 0 or 1 < high < 1 + 1e-4 else values


def saliency(bundle: Bundle, given: Given, volume: Volume) -> Saliency | None:
    """Give the map of what the answer rests on; None where a bundle has none.

    Raises:
        UnusableAnswerError: it lies elsewhere, or holds what is no number.
    """
    asked = bundle.heads.saliency
    if asked is None:
        return None
    what = f"map '{asked.label}' of {given.name}"
    values = grid.to_map(given.data[asked.key], asked.channel, volume, what)
    if not np.isfinite(values).all():
        raise UnusableAnswerError(f"The {what} holds values that are no numbers.")
    return Saliency(np.ascontiguousarray(values), asked.quantity, asked.unit, asked.label)
