"""Locate, crop, segment, put back: where the box lies, and what the networks are shown."""

from collections.abc import Callable

import pytest
import torch

from dicomai.inference import LocateThenSegment, UnusableAnswerError


class Threshold(torch.nn.Module):
    """Marks, in channel 1, what is brighter than the image's mean; remembers what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.shown = torch.zeros(0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.shown = x
        mask = (x > x.mean()).float()
        return torch.cat([1 - mask, mask], dim=1)


def image(*boxes: tuple[slice, slice, slice], shape: tuple[int, int, int] = (64, 96, 40)) -> torch.Tensor:
    result = torch.zeros(1, 1, *shape)
    for box in boxes:
        result[(0, 0, *box)] = 100.0
    return result


def inferer(locator: torch.nn.Module | None = None) -> LocateThenSegment:
    return LocateThenSegment(
        locator or Threshold(),
        "head",
        locator_shape=(32, 32, 32),
        network_shape=(48, 48, 48),
        mean=0.449,
        std=0.226,
    )


HEAD = (slice(16, 48), slice(30, 60), slice(10, 30))


def test_the_answer_is_put_back_where_it_was() -> None:
    answer = inferer()(image(HEAD), Threshold())
    assert answer.shape == (1, 1, 64, 96, 40)
    overlap = 2 * (answer * image(HEAD) / 100).sum() / (answer.sum() + (image(HEAD) / 100).sum())
    assert overlap > 0.95


def test_nothing_is_marked_outside_of_the_widened_box() -> None:
    def everything(x: torch.Tensor) -> torch.Tensor:
        return torch.ones(1, 2, *x.shape[2:])

    box = inferer()(image(HEAD), everything)[0, 0].nonzero()
    # 32, 30 and 20 voxels wide, 10% more on each side, on a locator grid of 2, 3 and 1.25 voxels.
    assert box.amin(0).tolist() == pytest.approx([13, 27, 8], abs=2)
    assert (box.amax(0) + 1).tolist() == pytest.approx([51, 63, 32], abs=2)


def test_the_largest_component_counts() -> None:
    lamp = (slice(0, 4), slice(80, 96), slice(0, 10))
    with_lamp = inferer()(image(HEAD, lamp), lambda x: torch.ones(1, 2, *x.shape[2:]))
    without = inferer()(image(HEAD), lambda x: torch.ones(1, 2, *x.shape[2:]))
    assert torch.equal(with_lamp, without)


def test_the_box_stays_in_the_image() -> None:
    whole = image((slice(0, 64), slice(0, 96), slice(2, 38)))
    answer = inferer()(whole, lambda x: torch.ones(1, 2, *x.shape[2:]))
    assert answer.shape == whole.shape
    assert answer.mean() == 1.0


def test_both_networks_see_the_same_intensities() -> None:
    locator, network = Threshold(), Threshold()
    spiky = image(HEAD)
    spiky[0, 0, 0, 0, 0] = 1e6  # beyond the 99.5th percentile: clipped
    inferer(locator)(spiky, network)
    assert locator.shown.shape[2:] == (32, 32, 32)
    assert network.shown.shape[2:] == (48, 48, 48)
    for shown in (locator.shown, network.shown):
        assert float(shown.mean()) == pytest.approx(0.449, abs=1e-4)
        assert float(shown.std()) == pytest.approx(0.226, abs=1e-4)
        assert len(set(shown.flatten().tolist())) == 2


@pytest.mark.parametrize(
    ("picture", "locator", "sentence"),
    [
        (image(HEAD), lambda x: torch.zeros(1, 2, *x.shape[2:]), "The network found no head in the images"),
        (
            image((slice(0, 2), slice(0, 3), slice(0, 2))) + torch.rand(64, 96, 40),
            None,
            "The network found no head",
        ),
        (image(), None, "no head to be found: nearly all voxels have the same value, 0"),
        (image(HEAD), lambda x: torch.full((1, 2, *x.shape[2:]), torch.nan), "values that are no numbers"),
    ],
)
def test_what_it_cannot_find_is_said(
    picture: torch.Tensor, locator: Callable[[torch.Tensor], torch.Tensor] | None, sentence: str
) -> None:
    class Answering(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if locator is None:
                mask = (x > 1.5).float()
                return torch.cat([1 - mask, mask], dim=1)
            return locator(x)

    with pytest.raises(UnusableAnswerError, match=sentence) as caught:
        inferer(Answering())(picture, Threshold())
    assert not caught.value.retryable


def test_a_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="takes one image of one channel"):
        inferer()(torch.zeros(2, 1, 8, 8, 8), Threshold())
