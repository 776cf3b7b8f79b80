"""Pictures: nothing flipped, true proportions, contours on the mask, the mark on every slice."""

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import FileDataset
from pydicom.sr.coding import Code

from dicomai import render, words
from dicomai.errors import InferenceError
from dicomai.findings import Detection, Findings, Layer, Measurement, Outcome, Region, Shape
from dicomai.render import Edges, choose_slices, edges, montage, window
from dicomai.stacks import split
from dicomai.volume import Limits, Volume, load
from tests import results, synthetic

ORANGE = results.segment().color
ATTENUATION, MEAN = Code("112031", "DCM", "Attenuation Coefficient"), Code("373098007", "SCT", "Mean")


def volume(images: list[FileDataset]) -> Volume:
    (stack,) = split(synthetic.as_series(images))
    return load(stack, Limits())


def of(shape: tuple[int, int, int] = (5, 40, 40), **attributes: Any) -> Volume:
    return volume(synthetic.series(shape=shape, spacing=(3.0, 1.0, 1.0), **attributes))


def pixels(picture: Image.Image) -> NDArray[np.int64]:
    return np.asarray(picture.convert("RGB")).astype(np.int64)


def near(picture: Image.Image, color: tuple[int, int, int], within: int = 60) -> NDArray[np.bool_]:
    """Find the pixels of a colour."""
    found: NDArray[np.bool_] = np.abs(pixels(picture) - color).max(axis=2) < within
    return found


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        ("axial", Edges(left="R", right="L", top="A", bottom="P")),
        ("sagittal", Edges(left="A", right="P", top="H", bottom="F")),
        ("coronal", Edges(left="R", right="L", top="H", bottom="F")),
        ((-1, 0, 0, 0, 1, 0), Edges(left="L", right="R", top="A", bottom="P")),
        ((1, 0, 0, 0, 0.8, 0.6), Edges(left="R", right="L", top="AF", bottom="PH")),
    ],
)
def test_edges_are_named_by_the_side_of_the_patient(orientation: Any, expected: Edges) -> None:
    assert edges(of(orientation=orientation).affine) == expected


@pytest.mark.parametrize("reverse", [False, True])
def test_slice_is_shown_as_stored(reverse: bool) -> None:
    array = np.zeros((3, 40, 40), np.uint16)
    array[:, 2:12, 4:10] = 1000  # near the top left as stored: the patient's right front
    picture = montage(of(array=array, reverse=reverse), results.findings(np.zeros_like(array, np.uint8)), slices=1)
    panel = pixels(picture).sum(axis=2)[:480]
    bright = panel[30:450, 30:450] > 600
    y, x = np.argwhere(bright).mean(axis=0) + 30
    assert x == pytest.approx(6.5 / 40 * 480 + 6, abs=8)
    assert y == pytest.approx(7 / 40 * 480, abs=15)


def test_contour_lies_on_the_edge_of_the_mask() -> None:
    labels = np.zeros((3, 40, 40), np.uint8)
    labels[:, 10:20, 5:30] = 1
    picture = montage(of((3, 40, 40), array=np.zeros((3, 40, 40), np.uint16)), results.findings(labels), slices=1)
    found = np.argwhere(near(picture, ORANGE)[:480]) - 6  # within the panel
    low, high = found.min(axis=0), found.max(axis=0)
    scale = 480 / 40
    np.testing.assert_allclose(low, np.asarray([10, 5]) * scale, atol=3)
    np.testing.assert_allclose(high, np.asarray([20, 30]) * scale, atol=3)
    assert not near(picture, ORANGE)[int(15 * scale), int(17 * scale)], "the contour is filled"


def test_proportions_are_those_of_the_patient() -> None:
    images = synthetic.series(shape=(3, 20, 40), spacing=(3.0, 2.0, 0.5))  # 40 mm high, 20 mm wide
    picture = montage(volume(images), results.findings(np.zeros((3, 20, 40), np.uint8)), slices=1)
    assert picture.width - 12 == 240


def test_every_slice_is_marked_as_unverified() -> None:
    array = np.zeros((9, 40, 40), np.uint16)
    picture = montage(of(array=array), results.findings(np.ones((9, 40, 40), np.uint8)), slices=5)
    marked = near(picture, (255, 214, 0), within=40)
    panels = [(row, column) for row in range(2) for column in range(4)][:5]
    for row, column in panels:
        top, left = 6 + row * 486, 6 + column * 486
        assert marked[top : top + 30, left : left + 120].sum() > 50, (row, column)


def test_legend_gives_label_and_number_with_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    real = render.ImageDraw.ImageDraw.text

    def text(self: Any, at: Any, text: str, *args: Any, **kwargs: Any) -> None:
        drawn.append(text)
        real(self, at, text, *args, **kwargs)

    monkeypatch.setattr(render.ImageDraw.ImageDraw, "text", text)
    one, other = results.segment(1), results.segment(2, "Tumour")
    measured = (
        Measurement(results.VOLUME, 1292.3248, results.CM3, one),
        Measurement(ATTENUATION, 4.256, Code("[hnsf'U]", "UCUM", "HU"), one, derivation=MEAN),
    )
    found = Findings(
        (Layer(results.ball((5, 40, 40)), (one, other)),), measured, Outcome.FINDINGS, ("Not a T1. " * 20,)
    )
    images = synthetic.series(shape=(5, 40, 40), spacing=(3.0, 1, 1), PatientName="Secret^Name", PatientID="ID-77")
    montage(volume(images), found, title="brain_extraction 1.0.2")
    assert "brain_extraction 1.0.2" in drawn
    assert "Intracranial structure  1292 cm3, Attenuation Coefficient, Mean 4.26 HU" in " ".join(drawn)
    assert "Tumour: looked for, not found" in drawn
    assert " ".join(drawn).count("Not a T1.") == 20
    assert "Im 3, H 26.0 mm" in drawn
    assert not any("Secret" in line or "ID-77" in line for line in drawn)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_is_never_shown(value: float) -> None:
    with pytest.raises(InferenceError, match=r"Volume of Intracranial structure is (nan|inf), which is no number"):
        Measurement(results.VOLUME, value, results.CM3, results.segment())


@pytest.mark.parametrize("reverse", [False, True])
def test_what_was_detected_without_a_mask_is_shown(reverse: bool) -> None:
    shown = of((30, 40, 40), array=np.zeros((30, 40, 40), np.uint16), reverse=reverse)
    center = tuple(float(v) for v in (shown.affine @ [23.3, 20, 12, 1])[:3])
    nodule, lung = Code("27925004", "SCT", "Nodule"), Code("39607008", "SCT", "Lung")
    found = [
        Detection(nodule, results.ABNORMALITY, lung, Region(Shape.POINT, at))
        for at in (center, (center[0], center[1], center[2] + 900.0))  # the second lies outside
    ]
    picture = montage(shown, Findings((), (), Outcome.FINDINGS, detections=tuple(found)), slices=1)
    y, x = np.argwhere(near(picture, words.DETECTED)[:480]).mean(axis=0) - 6
    assert (x, y) == (pytest.approx(12.5 * 12, abs=12), pytest.approx(20.5 * 12, abs=12))


def test_slices_are_chosen_where_the_mask_is() -> None:
    labels = np.zeros((100, 4, 4), np.uint8)
    labels[20:61, 0, 0] = 1
    labels[42] = 1
    chosen = choose_slices(results.findings(labels), 100, 3)
    assert chosen == (30, 42, 50)
    assert choose_slices(results.findings(labels), 100, 1) == (42,)
    assert choose_slices(results.findings(np.zeros((4, 4, 4), np.uint8)), 4, 3) == (1, 2)
    assert choose_slices(results.findings(np.ones((1, 4, 4), np.uint8)), 1, 3) == (0,)


def test_window_is_the_images_own_where_it_shows_something() -> None:
    array = synthetic.pattern((5, 40, 40))
    good = of(array=array, WindowCenter="40", WindowWidth="400")
    assert window(good.array[2], good.frames[2]) == (-160, 240)
    lung = np.full((1, 40, 40), -800.0)
    lung[0, 0, :3] = 40  # next to nothing lies inside: it is shown as the viewer shows it all the same
    assert window(lung, good.frames[2]) == (-160, 240)
    own = tuple(np.percentile(good.array[2], (1, 99.5)))
    for center, width in (("0", "0"), ("30000", "10"), (None, None)):
        other = of(array=array, WindowCenter=center, WindowWidth=width)
        assert window(other.array[2], other.frames[2]) == own


def test_window_of_a_multi_frame_image_is_its_frames() -> None:
    image = synthetic.enhanced(shape=(5, 40, 40))
    frames = volume([image])
    assert window(frames.array[2], frames.frames[2]) == (0, 4096)


def test_monochrome1_is_shown_as_people_see_it() -> None:
    array = np.zeros((3, 40, 40), np.uint16)
    array[:, 10:30, 10:30] = 4000
    nothing = results.findings(np.zeros((3, 40, 40), np.uint8))
    shown = [
        pixels(montage(of(array=array, PhotometricInterpretation=kind), nothing, slices=1))[240, 240, 0]
        for kind in ("MONOCHROME2", "MONOCHROME1")
    ]
    assert shown[0] > 200
    assert shown[1] < 50


def test_image_of_one_value_does_not_fail() -> None:
    picture = montage(of(array=np.full((3, 40, 40), 7, np.uint16)), results.findings(np.zeros((3, 40, 40), np.uint8)))
    assert picture.mode == "RGB"
