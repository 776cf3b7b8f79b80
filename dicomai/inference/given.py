"""Given: what a bundle's networks and its postprocessing have left, before it is made findings of."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dicomai.inference.errors import UnusableAnswerError


@dataclass(frozen=True, slots=True)
class Given:
    """A network's finished answer.

    Attributes:
        name: the bundle's, for sentences.
        data: MONAI's data dictionary after postprocessing, of it the keys that the bundle's `dicomai.toml` names.
        affine: (4, 4), of the image that the network saw: its indices (x, y, z, 1) to RAS in mm.
        shape: of that image, (x, y, z).
    """

    name: str
    data: Mapping[str, Any] = field(repr=False)
    affine: NDArray[np.float64]
    shape: tuple[int, ...]

    def numbers(self, key: str, width: int = 1) -> NDArray[np.float64]:
        """Give what lies under a key as numbers, in rows of so many.

        Args:
            key: of the data dictionary.
            width: numbers in a row; what other axes there are have a length of one.

        Returns:
            (N, width), or (N,) where the width is 1.

        Raises:
            UnusableAnswerError: it is no array of numbers, or has another shape.
        """
        value: Any = self.data[key]
        if isinstance(value, torch.Tensor):  # of half precision numpy does not know every kind
            value = (value.double() if value.is_floating_point() else value).detach().cpu().numpy()
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "biuf":
            raise UnusableAnswerError(f"{self.name} left no numbers under '{key}', but {type(value).__name__}.")
        array = value
        rows = array.shape[0] if array.ndim else 1
        if array.size != rows * width:
            shape = " x ".join(map(str, array.shape))
            wanted = "one number for each channel" if width == 1 else f"{width} numbers in each row"
            raise UnusableAnswerError(f"{self.name} left {shape} numbers under '{key}', and not {wanted}.")
        made = array.astype(np.float64).reshape((rows, width) if width > 1 else rows)
        if not np.isfinite(made).all():
            raise UnusableAnswerError(f"{self.name} left values under '{key}' that are no numbers.")
        return made

    def probabilities(self, key: str) -> NDArray[np.float64]:
        """Give the probabilities that lie under a key, (N,).

        Raises:
            UnusableAnswerError: they are none.
        """
        made = self.numbers(key)
        if made.size and (made.min() < -_ROUNDING or made.max() > 1 + _ROUNDING):
            raise UnusableAnswerError(
                f"{self.name} left {made.min():g} to {made.max():g} under '{key}', where probabilities from 0 to 1 are"
                " asked for: its postprocessing has to make them (Activationsd)."
            )
        return np.clip(made, 0, 1)


_ROUNDING = 1e-4  # of single precision, in a sum of exponentials
