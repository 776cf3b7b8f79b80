"""A volume has every voxel where its own slice says that it lies, or a sentence says why there is no volume."""

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicomai.errors import GeometryError, NotAcceptedError
from dicomai.stacks import split
from dicomai.study import Instance, Stack, group
from dicomai.volume import Limits, load
from tests.synthetic import ORIENTATIONS, as_series, enhanced, pattern, plain, series

ONE_SERIES = {"study_uid": "1.2.3", "series_uid": "1.2.3.4", "frame_of_reference_uid": "1.2.3.5"}
DEMO = Path(__file__).parents[2] / "dicomai" / "demo" / "study"


def stack(datasets) -> Stack:
    (only,) = split(as_series(datasets))
    return only


def volume(datasets, **limits):
    return load(stack(datasets), Limits(**limits))


def by_hand(ds, row_index, column_index):
    """The equation of PS3.3 C.7.6.2.1.1, from a slice's own attributes."""
    position, cosines = np.array(ds.ImagePositionPatient, float), np.array(ds.ImageOrientationPatient, float)
    between_rows, between_columns = (float(value) for value in ds.PixelSpacing)
    return position + cosines[:3] * between_columns * column_index + cosines[3:] * between_rows * row_index


def assert_every_voxel_is_in_place(found, datasets, tolerance=1e-6):
    by_uid = {ds.SOPInstanceUID: ds for ds in datasets}
    assert len(found.frames) == len(datasets)
    for z, frame in enumerate(found.frames):
        ds = by_uid[frame.instance.sop_instance_uid]
        expected = ds.pixel_array.astype(float) * float(ds.get("RescaleSlope", 1)) + float(
            ds.get("RescaleIntercept", 0)
        )
        np.testing.assert_array_equal(found.array[z], expected)
        for y, x in ((0, 0), (ds.Rows - 1, 0), (0, ds.Columns - 1), (ds.Rows - 1, ds.Columns - 1)):
            np.testing.assert_allclose((found.affine @ [z, y, x, 1])[:3], by_hand(ds, y, x), atol=tolerance)


@pytest.mark.parametrize("orientation", sorted(ORIENTATIONS))
@pytest.mark.parametrize("reverse", [False, True])
def test_each_orientation_either_way_round(orientation, reverse):
    made = series(orientation=orientation, reverse=reverse)
    found = volume(made)
    assert_every_voxel_is_in_place(found, made)
    np.testing.assert_array_equal(found.array, pattern((5, 8, 10)).astype(int) - 1024)
    assert found.spacing == pytest.approx((2.0, 0.8, 0.6))
    assert found.voxel_volume == pytest.approx(0.96)
    assert np.linalg.det(found.affine[:3, [2, 1, 0]]) > 0, "steps along x, y, z are right-handed"


def rotations():
    def rotate(numbers):
        w, x, y, z = np.asarray(numbers) / np.linalg.norm(numbers)
        return (
            1 - 2 * (y * y + z * z), 2 * (x * y + z * w), 2 * (x * z - y * w),
            2 * (x * y - z * w), 1 - 2 * (x * x + z * z), 2 * (y * z + x * w),
        )  # fmt: skip

    side = st.floats(-1, 1, allow_nan=False).map(lambda value: round(value, 6))
    return st.tuples(side, side, side, side).filter(lambda q: np.linalg.norm(q) > 0.1).map(rotate)


@settings(max_examples=60, deadline=None)
@given(
    rotations(),
    st.tuples(st.floats(0.3, 12), st.floats(0.2, 3), st.floats(0.2, 3)),
    st.tuples(*[st.floats(-500, 500)] * 3),
    st.integers(2, 7),
    st.booleans(),
    st.integers(),
)
def test_any_grid_in_any_order(orientation, spacing, origin, slices, reverse, seed):
    made = series(
        orientation=orientation, spacing=spacing, origin=origin, shape=(slices, 3, 4), reverse=reverse, InstanceNumber=1
    )
    random.Random(seed).shuffle(made)
    found = volume(made)
    assert_every_voxel_is_in_place(found, made, tolerance=1e-4)
    assert found.spacing == pytest.approx(spacing, rel=1e-4)
    assert found.voxel_volume == pytest.approx(np.prod(spacing), rel=1e-4)


@settings(max_examples=15, deadline=None)
@given(rotations(), st.permutations(range(5)), st.sampled_from(["MR", "CT"]))
def test_an_enhanced_image_gives_what_its_single_frames_give(orientation, order, modality):
    array = pattern((5, 3, 4))
    places = np.arange(5) * 2.5
    singles = volume(series(modality=modality, array=array, orientation=orientation, positions=places))
    order = list(order)
    frames = enhanced(modality=modality, array=array[order], orientation=orientation, positions=places[order])
    found = volume([frames])
    np.testing.assert_array_equal(found.array, singles.array)
    assert found.array.dtype == singles.array.dtype
    np.testing.assert_allclose(found.affine, singles.affine, atol=1e-9)
    assert [order[frame.number - 1] for frame in found.frames] == [0, 1, 2, 3, 4]


def test_one_echo_of_an_enhanced_image_takes_its_own_frames():
    array = pattern((6, 3, 4))
    ds = enhanced(array=array, positions=[0, 0, 2, 2, 4, 4], echo_times=[20, 90] * 3)
    first, second = (load(one, Limits()) for one in split(as_series([ds])))
    np.testing.assert_array_equal(first.array, array[::2])
    np.testing.assert_array_equal(second.array, array[1::2])


def test_a_missing_slice_is_named_with_its_numbers():
    made = series(positions=[0, 5, 15, 20, 25], origin=(0, 0, 0))
    with pytest.raises(GeometryError) as refused:
        volume(made)
    assert str(refused.value).startswith(
        "A slice is missing between 5.00 mm (InstanceNumber 2) and 15.00 mm (InstanceNumber 3) along the slice normal:"
        " spacing 10.00 mm where the median is 5.00 mm;"
    )


def test_every_slice_but_the_ends_is_missed():
    for gone in range(1, 5):
        made = series(shape=(6, 3, 4))
        del made[gone]
        with pytest.raises(GeometryError, match="A slice is missing"):
            volume(made)
    whole = series(shape=(6, 3, 4))
    assert len(volume(whole[1:]).frames) == 5, "a slice missing at the end leaves no trace in the geometry"


def test_of_three_slices_the_wide_gap_is_the_missing_one():
    with pytest.raises(GeometryError, match=r"spacing 10\.00 mm where the median is 5\.00 mm"):
        volume(series(positions=[0, 5, 15]))


def test_duplicate_positions_are_named():
    with pytest.raises(GeometryError, match=r"^Two slices lie at the same .*: 25\.00 mm \(InstanceNumber [34]\)"):
        volume(series(positions=[0, 2.5, 5, 5, 7.5]))
    with pytest.raises(GeometryError, match=r"same position .* \(and so in 2 more places\)"):
        volume(series(shape=(4, 3, 4), positions=[5, 5, 5, 5]))


def test_uneven_spacing_is_measured_against_the_bundles_tolerance():
    made = series(positions=[0, 7, 14.03, 20.96, 28.0])  # as real series are: 1%
    volume(made)
    with pytest.raises(
        GeometryError, match=r"^The slices are unevenly spaced: 6\.93 mm between .* median is 7\.00 mm and 0\.5% of it"
    ):
        volume(made, spacing_tolerance=0.005)
    with pytest.raises(GeometryError, match=r"unevenly spaced: 7\.25 mm"):
        volume(series(positions=[0, 7, 14.25, 21.25, 28.25]))
    volume(series(positions=[0, 7, 14.25, 21.25, 28.25]), spacing_tolerance=0.05)


def test_small_differences_that_add_up_are_refused():
    places = np.concatenate([np.arange(60) * 1.0, 60 + np.arange(60) * 1.019])
    with pytest.raises(GeometryError, match=r"unevenly spaced: InstanceNumber \d+ lies 0\.\d+ mm along the normal"):
        volume(series(array=pattern((120, 2, 2)), positions=places))


def test_a_slice_that_lies_aside_is_refused():
    made = series()
    made[2].ImagePositionPatient[0] += 1.0
    with pytest.raises(GeometryError, match=r"InstanceNumber 3 lies 1\.00 mm beside it"):
        volume(made)


def test_spacing_is_by_position_whatever_spacing_between_slices_says():
    made = series(spacing=(7.0, 0.8, 0.6), SpacingBetweenSlices="2.0", SliceThickness="5.0")
    assert volume(made).spacing[0] == pytest.approx(7.0)


def test_a_tilted_gantry_needs_a_bundle_that_takes_it():
    made = series(tilt=12.0)
    with pytest.raises(GeometryError, match=r"^The slices are tilted: .* 12\.0 degrees off their normal"):
        volume(made)
    found = volume(made, tilted=True)
    assert_every_voxel_is_in_place(found, made)
    assert found.voxel_volume == pytest.approx(2.0 * 0.8 * 0.6), "the shear does not change a voxel's volume"


def test_tilt_is_judged_by_positions_alone():
    volume(series(GantryDetectorTilt="12.0"))
    volume(series(tilt=0.5))


def test_mixed_sizes_orientations_spacings_and_frames_of_reference_are_refused():
    other_size = series(shape=(5, 8, 10), **ONE_SERIES)[:4] + series(shape=(1, 9, 10), origin=(0, 0, 28), **ONE_SERIES)
    with pytest.raises(GeometryError, match=r"differ in size: (10 x 8 .* and 10 x 9|10 x 9 .* and 10 x 8)"):
        volume(other_size)
    turned = lambda z: [1, 0.004 * (z == 2), 0, -0.004 * (z == 2), 1, 0]  # noqa: E731
    with pytest.raises(GeometryError, match=r"differ in orientation: .* 0\.23 degrees"):
        volume(series(ImageOrientationPatient=turned))
    with pytest.raises(GeometryError, match=r"differ in PixelSpacing: .*0\.9\\0\.6 mm"):
        volume(series(PixelSpacing=lambda z: ["0.9" if z == 2 else "0.8", "0.6"]))
    with pytest.raises(GeometryError, match="2 different FrameOfReferenceUIDs"):
        volume(series(FrameOfReferenceUID=lambda z: "1.2.1" if z == 2 else "1.2.2"))


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"ImagePositionPatient": None}, r"no values in ImagePositionPatient where 3 are needed"),
        ({"PixelSpacing": None, "ImagerPixelSpacing": ["0.2", "0.2"]}, r"no values in PixelSpacing"),
        ({"PixelSpacing": ["0.0", "0.6"]}, r"PixelSpacing of instance .* is 0\\0\.6, and must be above 0 mm"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, r"1\\0\\0\\1\\0\\0, which are not two perpendicular unit"),
        ({"ImageOrientationPatient": [2, 0, 0, 0, 1, 0]}, r"which are not two perpendicular unit vectors"),
    ],
)
def test_a_place_that_is_missing_or_makes_no_sense_is_refused(overrides, sentence):
    with pytest.raises(GeometryError, match=sentence):
        volume(series(**overrides))


def test_an_image_without_a_place_makes_a_stack_but_no_volume():
    with pytest.raises(GeometryError, match="no values in ImagePositionPatient"):
        volume([plain(modality="CR")])


def test_a_single_slice_is_as_thick_as_it_says():
    found = volume(series(shape=(1, 3, 4), SliceThickness="4.0"))
    assert found.spacing == pytest.approx((4.0, 0.8, 0.6))
    with pytest.raises(GeometryError, match="only slice and has no SliceThickness"):
        volume(series(shape=(1, 3, 4), SliceThickness=None))
    found = volume([enhanced(shape=(1, 3, 4), spacing=(6.0, 0.8, 0.6))])
    assert found.spacing[0] == pytest.approx(6.0)


def test_too_few_slices_for_the_bundle():
    with pytest.raises(GeometryError, match="too few slices: 5 where at least 20 are needed"):
        volume(series(), min_slices=20)


def test_colour_is_refused():
    with pytest.raises(NotAcceptedError, match=r"no grey image .*'RGB'"):
        volume(series(SamplesPerPixel=3, PhotometricInterpretation="RGB"))


def test_lossy_compression_needs_a_bundle_that_takes_it():
    made = series(LossyImageCompression=lambda z: "01" if z == 2 else "00")
    with pytest.raises(NotAcceptedError, match="compressed with loss"):
        volume(made)
    assert volume(made, lossy=True).lossy
    assert not volume(series(), lossy=True).lossy


def test_errors_name_no_patient():
    with pytest.raises(GeometryError) as refused:
        volume(series(positions=[0, 1, 2, 4, 5], PatientName="Secret^Name", PatientID="SECRET"))
    assert "secret" not in str(refused.value).lower()


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI:UserWarning")  # this scanner's UIDs have leading zeros
def test_a_real_series_with_uneven_positions_and_a_wrong_spacing_between_slices():
    files = sorted(DEMO.glob("*.dcm"))
    if not files:
        pytest.skip("the demo's study is not in this checkout")
    instances = [Instance.read(lambda path=path: path.open("rb"), path.name) for path in files]
    random.Random(2).shuffle(instances)
    ((only,),) = (study.series for study in group(instances))
    (whole,) = split(only)
    found = load(whole, Limits())
    assert found.shape == (20, 256, 256)
    assert found.spacing == pytest.approx((7.0005, 0.859375, 0.859375), abs=1e-3)
    assert_every_voxel_is_in_place(found, [frame.instance.dataset() for frame in found.frames], tolerance=0.15)
    with pytest.raises(GeometryError, match="A slice is missing"):
        load(Stack(whole.key, tuple(f for f in whole.frames if f is not found.frames[7])), Limits())
