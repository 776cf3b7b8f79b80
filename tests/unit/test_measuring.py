"""Measurements of segments: shapes whose size is known, on grids that are not simple."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist

from dicomai import measuring, quantities
from dicomai.bundle import Wanted
from dicomai.errors import InferenceError, NotAcceptedError
from dicomai.findings import Layer
from dicomai.quantities import DERIVATIONS, QUANTITIES, Kind
from dicomai.stacks import split
from dicomai.volume import Limits, Volume, load
from tests import results, synthetic

SPACING = (3.0, 0.5, 0.8)


def wanted(name: Code, derivation: Code | None = None, **changes: Any) -> Wanted:
    unit = next(iter(QUANTITIES[name].units))
    return Wanted(name=name, unit=Code(unit, "UCUM", unit), derivation=derivation, **changes)


def volume(array: NDArray[Any], affine: NDArray[np.float64]) -> Volume:
    return Volume(array, affine, (), lossy=False)


def turned(seed: int, spacing: tuple[float, ...] = SPACING) -> NDArray[np.float64]:
    """Make the affine of a grid of this spacing that lies askew in space."""
    axes, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = axes * spacing
    affine[:3, 3] = (-80, 40, 7)
    return affine


def measured(labels: NDArray[Any], affine: NDArray[np.float64], *what: Wanted, array: Any = None) -> list[float]:
    """Measure the segment with the number 1."""
    layer = Layer(labels.astype(np.uint8), (results.segment(),))
    source = volume(labels if array is None else array, affine)
    return [one.value for one in measuring.measure(what, layer, np.bincount(labels.ravel()), source)]


LONG, SHORT = wanted(quantities.LONG_AXIS), wanted(quantities.SHORT_AXIS)
DIAMETER, LESIONS = wanted(quantities.DIAMETER), wanted(quantities.LESIONS)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    radii=st.tuples(st.floats(7, 12), st.floats(5, 9), st.floats(3, 4.5)),
    angle=st.floats(0, np.pi),
)
def test_an_ellipsoid_has_its_axes(seed: int, radii: tuple[float, float, float], angle: float) -> None:
    """Radii along the slice normal, the long and the short axis in the slice, turned in it by an angle."""
    z, y, x = np.meshgrid(*(np.arange(n) * s for n, s in zip((11, 42, 27), SPACING, strict=True)), indexing="ij")
    z, y, x = z - 15, y - 10.3, x - 10.2
    one, other = np.cos(angle) * y + np.sin(angle) * x, np.cos(angle) * x - np.sin(angle) * y
    labels = ((z / radii[0]) ** 2 + (one / radii[1]) ** 2 + (other / radii[2]) ** 2 <= 1).astype(int)
    long, short, diameter = measured(labels, turned(seed), LONG, SHORT, DIAMETER)
    assert long == pytest.approx(2 * radii[1], abs=0.8)
    assert short == pytest.approx(2 * radii[2], abs=0.8)
    assert diameter == pytest.approx(2 * max(radii), abs=3)


def test_a_rod_is_as_long_as_its_voxels_together() -> None:
    labels = np.zeros((6, 12, 9), int)
    labels[2, 1:11, 4] = 1
    assert measured(labels, turned(1), LONG, SHORT) == pytest.approx([10 * 0.5, 0.8])
    labels[:] = 0
    labels[1:5, 3, 3] = 1
    assert measured(labels, turned(2), LONG, DIAMETER) == pytest.approx([0.8, 4 * 3.0])


def test_the_diameter_is_that_of_the_mesh() -> None:
    """Against marching cubes, which is how IBSI defines it."""
    from skimage.measure import marching_cubes

    for seed in range(5):
        random = np.random.default_rng(seed)
        labels = (random.random((5, 7, 6)) > 0.8).astype(int)
        affine = turned(seed)
        corners, *_ = marching_cubes(np.pad(labels, 1).astype(float), 0.5)
        assert measured(labels, affine, DIAMETER) == pytest.approx([pdist(corners @ affine[:3, :3].T).max()], rel=1e-6)


def test_the_diameter_is_found_among_all_faces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the shape: flat, a line, a point, parts that lie apart, and balls, all of whose ends are far out."""
    monkeypatch.setattr(measuring, "_CHUNK", 4)
    faces = np.vstack([np.eye(3), -np.eye(3)]) / 2
    for seed in range(40):
        random = np.random.default_rng(seed)
        shape = random.integers(1, 12, 3)
        labels = (random.random(shape) < random.choice([0.02, 0.2, 0.9])).astype(int)
        labels.flat[random.integers(labels.size)] = 1
        if seed % 2 == 0:
            grid, middle = np.indices((16, 16, 16)), random.uniform(7, 8, 3)
            squares = [(index - at) ** 2 for index, at in zip(grid, middle, strict=True)]
            labels = (np.sum(squares, axis=0) < random.uniform(20, 40)).astype(int)
        affine = turned(seed, (1.0, 1.0, 1.0))
        points = (np.argwhere(labels)[:, np.newaxis] + faces).reshape(-1, 3) @ affine[:3, :3].T
        points = points[ConvexHull(points).vertices]
        assert measured(labels, affine, DIAMETER) == pytest.approx([pdist(points).max()], rel=1e-9)


def test_a_sheared_stack_is_measured_as_it_lies() -> None:
    affine = np.eye(4)
    affine[:3, 0] = (3, 4, 0)  # the next slice lies 3 mm on and 4 mm aside
    labels = np.ones((11, 1, 1), int)
    (diameter,) = measured(labels, affine, DIAMETER)
    assert diameter == pytest.approx(55)


def test_the_short_axis_stands_on_the_long_one_and_ends_at_the_outline() -> None:
    """A right triangle: its short axis is its height on the hypotenuse, not the width of its box."""
    labels = np.tril(np.ones((60, 60), int))[np.newaxis]
    long, short = measured(labels, np.eye(4), LONG, SHORT)
    assert long == pytest.approx(60 * np.sqrt(2), abs=1.5)
    assert short == pytest.approx(60 / np.sqrt(2), abs=1.5)


def test_lesions_that_lie_apart_are_not_spanned() -> None:
    labels = np.zeros((3, 30, 30), int)
    labels[0, 2:6, 2:4] = labels[1, 25:28, 25:27] = labels[1, 2:4, 20:26] = 1
    long, number = measured(labels, np.eye(4), LONG, LESIONS)
    assert (long, number) == (pytest.approx(np.hypot(1, 6)), 3)


def test_parts_that_touch_at_a_corner_are_one() -> None:
    labels = np.zeros((2, 2, 2), int)
    labels[0, 0, 0] = labels[1, 1, 1] = 1
    assert measured(labels, np.eye(4), LESIONS) == [1]


def test_intensities_are_those_inside() -> None:
    labels = np.zeros((2, 3, 4), int)
    labels[0, 1, 1:4] = 1
    array = np.full(labels.shape, -1000, np.int16)
    array[0, 1, 1:4] = 10, 20, 60
    what = [wanted(quantities.ATTENUATION, derivation) for derivation in DERIVATIONS]
    mean, deviation, least, most = measured(labels, np.eye(4), *what, array=array)
    assert (mean, least, most) == (30, 10, 60)
    assert deviation == pytest.approx(np.sqrt(1400 / 3))


@pytest.mark.parametrize(
    ("signed", "padding", "limit", "slope"),
    [
        (True, -2000, None, "1"),
        (True, -2000, None, "0.5"),
        (True, -2000, None, "-1"),
        (True, 63536, None, "1"),  # the same, by another VR
        (True, -2000, -1990, "1"),
        (True, -1990, -2000, "-1"),
        (False, 63536, 63546, "0.5"),
    ],
)
def test_padding_is_no_tissue(signed: bool, padding: int, limit: int | None, slope: str) -> None:
    """A fifth of the voxels is padding, and all others have 40 HU."""
    array = np.full((4, 5, 5), round((40 + 1024) / float(slope)), np.int32)
    array[:, 0] = -2000 if limit is None else -1995
    array = array.astype(np.int16) if signed else (array & 0xFFFF).astype(np.uint16)
    images = synthetic.series(array=array, shape=array.shape, RescaleSlope=slope, RescaleIntercept="-1024")
    for image in images:
        vr = "SS" if padding < 0 else "US"
        image[0x00280120] = DataElement(0x00280120, vr, padding)
        if limit is not None:
            image[0x00280121] = DataElement(0x00280121, vr, limit)
    (stack,) = split(synthetic.as_series(images))
    source = load(stack, Limits())
    labels = np.ones(array.shape, np.uint8)
    labels[:2, 0] = 2
    what = [wanted(quantities.ATTENUATION, derivation) for derivation in DERIVATIONS]
    layer = Layer(np.ones_like(labels), (results.segment(),))
    values = [one.value for one in measuring.measure(what, layer, np.array([0, labels.size]), source)]
    assert sorted(values) == [0, 40, 40, 40]
    layer = Layer(labels, (results.segment(1), results.segment(2, "Air")))
    with pytest.raises(InferenceError, match="of Air cannot be measured: all of its voxels have the PixelPaddingValue"):
        list(measuring.measure(what, layer, np.bincount(labels.ravel()), source))


def test_padding_under_a_table_of_values_is_refused() -> None:
    table = Dataset()
    table.LUTDescriptor, table.ModalityLUTType, table.LUTData = [2, 0, 16], "US", bytes(4)
    images = synthetic.series(modality="MR", PixelPaddingValue=0, ModalityLUTSequence=[table])
    (stack,) = split(synthetic.as_series(images))
    what = wanted(quantities.MR_SIGNAL, quantities.MEAN)
    with pytest.raises(NotAcceptedError, match="ModalityLUTSequence and a PixelPaddingValue"):
        measuring.check([what], stack.frames, "model")


def test_a_mask_of_speckles_is_measured_in_the_time_of_its_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    outlined: list[int] = []
    real = measuring._outline

    def outline(plane: NDArray[np.bool_]) -> Any:
        outlined.append(1)
        return real(plane)

    monkeypatch.setattr(measuring, "_outline", outline)
    labels = (np.random.default_rng(1).random((4, 256, 256)) > 0.98).astype(int)
    labels[2, 40:44, 40:43] = 1
    (long,) = measured(labels, np.eye(4), LONG)
    assert long >= 5
    assert len(outlined) < 100, "thousands of regions, of few shapes"


def test_only_the_segments_that_are_named_are_measured() -> None:
    segments = (results.segment(1, "Lung"), results.segment(2, "Tumour"))
    labels = np.array([[[1, 2, 2]]], np.uint8)
    what = (wanted(quantities.VOLUME), wanted(quantities.LONG_AXIS, segments=("Tumour",)))
    found = list(
        measuring.measure(what, Layer(labels, segments), np.bincount(labels.ravel()), volume(labels, np.eye(4)))
    )
    assert [(one.segment.label, one.name.meaning) for one in found] == [
        ("Lung", "Volume"), ("Tumour", "Volume"), ("Tumour", "Long axis"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "modality", "attributes", "says"),
    [
        (quantities.ATTENUATION, "MR", {}, "Modality MR, not CT"),
        (quantities.ATTENUATION, "CT", {"RescaleType": "US"}, "RescaleType US, not HU"),
        (quantities.ATTENUATION, "CT", {"RescaleIntercept": None, "RescaleSlope": None}, "no RescaleIntercept"),
        (quantities.SUV, "CT", {"Modality": "PT", "Units": "BQML"}, "Units BQML, not GML"),
        (quantities.SUV, "CT", {"Modality": "PT", "Units": "GML", "SUVType": "LBM"}, "SUVType LBM, not BW"),
        (quantities.MR_SIGNAL, "CT", {}, "Modality CT, not MR"),
    ],
)
def test_values_in_another_unit_are_refused(name: Code, modality: str, attributes: dict[str, Any], says: str) -> None:
    (stack,) = split(synthetic.as_series(synthetic.series(modality=modality, **attributes)))
    with pytest.raises(NotAcceptedError, match=says):
        measuring.check([wanted(name, quantities.MEAN)], stack.frames, "tiny")


@pytest.mark.parametrize(
    ("name", "modality", "attributes"),
    [
        (quantities.ATTENUATION, "CT", {}),
        (quantities.ATTENUATION, "CT", {"RescaleType": None}),
        (quantities.SUV, "CT", {"Modality": "PT", "Units": "GML", "SUVType": "BW"}),
        (quantities.SUV, "CT", {"Modality": "PT", "Units": "GML"}),
        (quantities.MR_SIGNAL, "MR", {}),
    ],
)
def test_values_in_the_unit_are_taken(name: Code, modality: str, attributes: dict[str, Any]) -> None:
    (stack,) = split(synthetic.as_series(synthetic.series(modality=modality, **attributes)))
    measuring.check([wanted(name, quantities.MEAN)], stack.frames, "tiny")


def test_enhanced_ct_says_its_unit_in_a_functional_group() -> None:
    (stack,) = split(synthetic.as_series([synthetic.enhanced(modality="CT")]))
    measuring.check([wanted(quantities.ATTENUATION, quantities.MEAN)], stack.frames, "tiny")
    assert load(stack, Limits()).array.dtype.kind == "i"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"name": Code("1", "X", "Weight")}, "'Weight' cannot be measured"),
        ({"unit": Code("mm", "UCUM", "mm")}, r"is \[hnsf'U\] of UCUM, not 'mm'"),
        ({"derivation": None}, "needs a derivation"),
        ({"name": quantities.LONG_AXIS, "unit": Code("mm", "UCUM", "mm")}, "takes no derivation"),
    ],
)
def test_a_measurement_that_cannot_be_made_is_refused(changes: dict[str, Any], says: str) -> None:
    made = {
        "name": quantities.ATTENUATION,
        "unit": Code("[hnsf'U]", "UCUM", "Hounsfield unit"),
        "derivation": quantities.MEAN,
    }
    with pytest.raises(ValueError, match=says):
        Wanted(**(made | changes))


def test_every_code_is_one_that_the_standard_lists() -> None:
    from pydicom.sr._concepts_dict import concepts

    listed = {(scheme, value) for scheme, names in concepts.items() for codes in names.values() for value in codes}
    for code in (*QUANTITIES, *DERIVATIONS):
        assert (code.scheme_designator, code.value) in listed
    assert all(one.modality for one in QUANTITIES.values() if one.kind is Kind.INTENSITY)
