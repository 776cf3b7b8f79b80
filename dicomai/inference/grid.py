"""Between the grids: Volume (z, y, x in LPS) and MONAI's tensor (channel, x, y, z in RAS)."""

import itertools

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.utils.enums import SpaceKeys
from numpy.typing import NDArray

from dicomai.errors import UnreadableError
from dicomai.inference.errors import UnusableAnswerError
from dicomai.volume import Volume

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""Turns positions between LPS and RAS, either way."""


def ras_affine(volume: Volume) -> NDArray[np.float64]:
    """Give the affine, (4, 4), that maps indices (x, y, z, 1) of a volume to RAS positions in mm."""
    return np.asarray(LPS_TO_RAS @ volume.affine[:, [2, 1, 0, 3]], dtype=np.float64)


def to_tensor(volume: Volume) -> MetaTensor:
    """Make of a volume what MONAI's transforms take after LoadImaged and EnsureChannelFirstd: (1, x, y, z), float32.

    Raises:
        UnreadableError: a voxel's value is no number.
    """
    array = np.ascontiguousarray(volume.array.transpose(2, 1, 0), dtype=np.float32)[np.newaxis]
    if not np.isfinite(array).all():
        count = int(np.count_nonzero(~np.isfinite(array)))
        raise UnreadableError(
            f"{count} voxels of the images are no numbers: send the series again, as the scanner made it."
        )
    meta = {"space": SpaceKeys.RAS, "spatial_shape": np.asarray(array.shape[1:])}
    return MetaTensor(torch.from_numpy(array), affine=torch.from_numpy(ras_affine(volume)), meta=meta)


def to_label_maps(answer: MetaTensor, volume: Volume, name: str) -> NDArray[np.uint16]:
    """Make of a network's finished answer label maps on the grid of the source images.

    Args:
        answer: (layer, x, y, z), whole numbers, on the source's grid.
        volume: the source.
        name: the bundle's, for the sentence.

    Returns:
        (layer, z, y, x)

    Raises:
        UnusableAnswerError: the answer lies on another grid, or holds what is no label.
    """
    _check_place(answer, volume, f"mask of {name}")
    array = answer.as_tensor().detach().cpu().numpy()
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise UnusableAnswerError(f"The mask of {name} holds values that are no numbers.")
    if array.size and (array.min() < 0 or array.max() > np.iinfo(np.uint16).max):
        raise UnusableAnswerError(
            f"The mask of {name} holds {array.min():g} to {array.max():g}; labels are 0 to 65535."
        )
    labels = array.astype(np.uint16)
    if array.dtype.kind == "f" and not np.array_equal(labels, array):
        raise UnusableAnswerError(
            f"The mask of {name} holds fractions: its postprocessing has to make labels of them (AsDiscreted)."
        )
    return np.ascontiguousarray(labels.transpose(0, 3, 2, 1))


def to_map(answer: object, channel: int, volume: Volume, what: str) -> NDArray[np.float32]:
    """Make of a channel of what postprocessing left a map on the grid of the source images.

    Args:
        answer: (channel, x, y, z), on the source's grid.
        channel: which of its channels, from 0.
        volume: the source.
        what: names it in the sentence, such as 'saliency of lungs'.

    Returns:
        (z, y, x), a view of the answer where that holds float32.

    Raises:
        UnusableAnswerError: it is no image, lies on another grid, or has no such channel.
    """
    if not isinstance(answer, MetaTensor):
        raise UnusableAnswerError(f"The {what} does not say where it lies (no MetaTensor): it has to be an image.")
    _check_place(answer, volume, what)
    if channel >= len(answer):
        raise UnusableAnswerError(
            f"The {what} has {len(answer)} channels and dicomai.toml names channel {channel}, counted from 0."
        )
    array = answer.as_tensor()[channel].detach().cpu().to(torch.float32).numpy()
    return np.asarray(array.transpose(2, 1, 0))


def _check_place(answer: MetaTensor, volume: Volume, what: str) -> None:
    """Refuse what does not lie on the grid of the source images, which nothing here resamples."""
    expected = tuple(reversed(volume.array.shape))
    if tuple(answer.shape[1:]) != expected:
        raise UnusableAnswerError(
            f"The {what} lies on another grid, {_by(answer.shape[1:])} voxels and not {_by(expected)}:"
            " its postprocessing has to invert its preprocessing (Invertd)."
        )
    deviation, allowed = _deviation(answer, volume), 0.01 * min(volume.spacing)
    if deviation > allowed:
        raise UnusableAnswerError(
            f"The {what} lies on another grid, {deviation:.3g} mm off the images: its postprocessing has to"
            " invert its preprocessing (Invertd)."
        )


def _deviation(answer: MetaTensor, volume: Volume) -> float:
    """Give by how many mm the corners of the answer lie off those of the source, at most."""
    affine = np.asarray(answer.affine.detach().cpu(), dtype=np.float64)
    sides = [(0, side - 1) for side in reversed(volume.array.shape)]
    corners = np.array([(*corner, 1) for corner in itertools.product(*sides)], dtype=np.float64).T
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        return float("inf")
    return float(np.linalg.norm(((affine - ras_affine(volume)) @ corners)[:3], axis=0).max())


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(str(side) for side in shape)
