"""LocateThenSegment: one network finds the box in a small copy of the image, another segments what lies in it.

The method is that of Fisch et al. 2024 (deepbet, Computers in Biology and Medicine 179, 108845) and of its reference
implementation (MIT).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.inferers.inferer import Inferer
from monai.transforms.utils import get_largest_connected_component_mask
from torch.nn.functional import interpolate

from dicomai.inference.errors import UnusableAnswerError

Box = tuple[slice, slice, slice]


class LocateThenSegment(Inferer):
    """Locate on a small grid, crop, segment on a grid of fixed size, and put the answer back.

    Both grids are made by nearest-exact resampling; both are clipped at the same percentiles (taken on the small
    grid), scaled to 0..1, brought to mean 0 and standard deviation 1, and then to `mean` and `std`.

    Args:
        locator: network whose answer, (1, C, *locator_shape), gives the box.
        sought: what the locator looks for, for the sentence that says it is not there.
        locator_shape: the small grid, (x, y, z).
        network_shape: the grid on which the second network sees the box, (x, y, z).
        channel: of both answers, that of what is sought.
        percentiles: lower and upper, 0..100, to clip at.
        mean: of the intensities that the networks see.
        std: their standard deviation.
        threshold: what the locator's answer must exceed.
        plane_fraction: the box begins and ends with the planes of which more than this fraction is in the mask.
        margin: by how much of its size the box is widened at each side.
    """

    def __init__(
        self,
        locator: torch.nn.Module,
        sought: str = "structure",
        locator_shape: Sequence[int] = (128, 128, 128),
        network_shape: Sequence[int] = (256, 256, 256),
        channel: int = 1,
        percentiles: Sequence[float] = (0.5, 99.5),
        mean: float = 0.0,
        std: float = 1.0,
        threshold: float = 0.5,
        plane_fraction: float = 0.02,
        margin: float = 0.1,
    ) -> None:
        self.locator = locator.eval()
        self.sought = sought
        self.locator_shape = tuple(locator_shape)
        self.network_shape = tuple(network_shape)
        self.channel = channel
        self.percentiles = tuple(percentiles)
        self.mean = mean
        self.std = std
        self.threshold = threshold
        self.plane_fraction = plane_fraction
        self.margin = margin

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Run both networks on one image.

        Args:
            inputs: (1, 1, x, y, z), on the networks' device.
            network: the second network.
            args: passed to the second network.
            kwargs: passed to the second network.

        Returns:
            (1, 1, x, y, z): the second network's answer inside of the box, 0 outside of it.

        Raises:
            UnusableAnswerError: the image has no contrast, the locator found nothing, or it gave what is no number.
        """
        if inputs.ndim != 5 or inputs.shape[:2] != (1, 1):
            raise ValueError(f"LocateThenSegment takes one image of one channel, not a tensor of {tuple(inputs.shape)}")
        small = interpolate(inputs, self.locator_shape, mode="nearest-exact")
        low, high = self._window(small)
        answer = self.locator(self._normalized(small, low, high))[0, self.channel]
        if not bool(torch.isfinite(answer).all()):
            raise UnusableAnswerError(f"The network that looks for the {self.sought} gave values that are no numbers.")
        box = (slice(None), slice(None), *self._box(answer > self.threshold, inputs.shape[2:]))
        cropped = inputs[box]
        fine = interpolate(cropped, self.network_shape, mode="nearest-exact")
        refined = network(self._normalized(fine, low, high), *args, **kwargs)[:, self.channel : self.channel + 1]
        result = torch.zeros_like(inputs)
        result[box] = interpolate(refined, cropped.shape[2:], mode="nearest-exact").to(result.dtype)
        return result

    def _window(self, small: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        low, high = (small.quantile(percentile / 100) for percentile in self.percentiles)
        if not bool(high > low):
            raise UnusableAnswerError(
                f"There is no {self.sought} to be found: nearly all voxels have the same value, {float(low):g}."
            )
        return low, high

    def _normalized(self, image: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        scaled = ((image - low) / (high - low)).clamp(min=0, max=1)
        return self.std * ((scaled - scaled.mean()) / scaled.std()) + self.mean

    def _box(self, mask: torch.Tensor, shape: Sequence[int]) -> Box:
        """Give the box, on a grid of `shape`, of the largest component of a mask on the small grid."""
        largest = torch.as_tensor(get_largest_connected_component_mask(mask)).float()
        sides = []
        for axis, (small, full) in enumerate(zip(mask.shape, shape, strict=True)):
            filled = largest.mean([other for other in range(3) if other != axis]) > self.plane_fraction
            planes = torch.nonzero(filled).flatten().tolist()
            if not planes:
                raise UnusableAnswerError(
                    f"The network found no {self.sought} in the images: look whether they show one, and whole."
                )
            scale = full / small
            center = round(scale * (planes[-1] + 1 + planes[0]) / 2)
            size = round(scale * (1 + 2 * self.margin) * (planes[-1] + 1 - planes[0]))
            sides.append(slice(max(0, int(center - size / 2)), min(full, int(center + size / 2))))
        return sides[0], sides[1], sides[2]
