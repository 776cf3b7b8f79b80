"""Probabilities as a segmentation: every value back where it was, to half a step of 255."""

import io
from typing import Any

import numpy as np
import pydicom
import pytest
from highdicom.seg import Segmentation
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicomai.errors import InferenceError
from dicomai.findings import Findings, Outcome, Probability
from dicomai.outputs import Sources, build, encode
from dicomai.stacks import split
from dicomai.volume import Limits, Volume, load
from tests import results, synthetic
from tests.unit.test_outputs_voxels import IMAGES, check_planes, images

SHAPE = (5, 12, 14)
HALF_A_STEP = 0.5 / 255 + 1e-6


def findings(*maps: NDArray[np.float32]) -> Findings:
    kept = (Probability(0, results.segment(n + 1, f"Class {n}"), values) for n, values in enumerate(maps))
    return Findings((), (), Outcome.FINDINGS, probabilities=tuple(kept))


def built(found: Findings, sources: Sources) -> Dataset:
    """Build a segmentation and read it back from its bytes."""
    ds = build("fractional", found, sources, results.provenance())
    assert ds is not None
    return pydicom.dcmread(io.BytesIO(encode(ds)))


def shares(random: np.random.Generator, shape: tuple[int, ...], count: int) -> list[NDArray[np.float32]]:
    """Make maps: one anywhere, one in one slice only, in the order in memory that a network's answer has, one empty."""
    maps = [random.random(shape[::-1], dtype=np.float32).transpose(2, 1, 0) for _ in range(count)]
    maps[0][random.random(shape) < 0.5] = 0
    maps[0][-1] = 0
    if count > 1:
        maps[1][np.arange(shape[0]) != random.integers(shape[0])] = 0
    return [*maps, np.full(shape, 0.001, np.float32)]  # nearer to 0 than to 1 / 255


# A case is small as it is drawn, and to make it smaller would take minutes.
@settings(max_examples=15, deadline=None, derandomize=True, phases=(Phase.explicit, Phase.generate))
@given(image=IMAGES, count=st.integers(1, 4), seed=st.integers(0, 2**32 - 1))
def test_what_is_read_is_the_probability(image: dict[str, Any], count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    (stack,) = split(synthetic.as_series(images(image, random)))
    volume = load(stack, Limits(tilted=True))
    sources = Sources(volume.frames, volume.frames[0].instance.header, lossy=False)
    maps = shares(random, volume.shape, count)
    shown = [values for values in maps if (values > HALF_A_STEP).any()]
    if not shown:
        assert build("fractional", findings(*maps), sources, results.provenance()) is None
        return
    ds = built(findings(*maps), sources)
    read = Segmentation.from_dataset(ds)
    numbers = [int(item.SegmentNumber) for item in read.SegmentSequence]
    back = read_by_source(read, sources, numbers)
    np.testing.assert_allclose(back, np.stack(shown, axis=-1), atol=HALF_A_STEP)
    if image["multi_frame"] or not image["tilt"]:
        check_places(read, volume, numbers, np.stack(shown, axis=-1))
    else:  # no volume of highdicom's is sheared
        check_planes(read, sources)


def check_places(read: Segmentation, volume: Volume, numbers: list[int], truth: NDArray[np.float32]) -> None:
    """Hold each value against the truth, shape (z, y, x, segment), at the place in the patient where it lies."""
    placed = read.get_volume(segment_numbers=numbers, rtol=0.02)
    filled = np.argwhere(placed.array)
    points = np.asarray(placed.affine) @ np.c_[filled[:, :3], np.ones(len(filled))].T
    index = np.linalg.solve(volume.affine, points)[:3]
    np.testing.assert_allclose(index, np.rint(index), atol=0.05)
    there = truth[(*np.rint(index).astype(int), filled[:, 3])]
    np.testing.assert_allclose(placed.array[placed.array > 0], there, atol=HALF_A_STEP)


def read_by_source(read: Segmentation, sources: Sources, numbers: list[int]) -> NDArray[np.float32]:
    uids = [frame.instance.sop_instance_uid for frame in sources.frames]
    options: dict[str, Any] = {"segment_numbers": numbers, "assert_missing_frames_are_empty": True}
    if sources.frames[0].number is None:
        return np.asarray(read.get_pixels_by_source_instance(uids, **options))
    frames = [frame.number for frame in sources.frames]
    return np.asarray(read.get_pixels_by_source_frame(uids[0], frames, **options))


@pytest.fixture
def sources() -> Sources:
    return results.sources(synthetic.instances(synthetic.series(shape=SHAPE, BodyPartExamined="HEAD")))


def test_it_says_what_made_it_and_only_the_frames_that_there_are(sources: Sources) -> None:
    first, second = np.zeros(SHAPE, np.float32), np.zeros(SHAPE, np.float32)
    first[1:3, 4, 5], second[2, 6, 7] = 0.75, 1
    ds = built(findings(first, second), sources)
    assert (ds.SegmentationType, ds.SegmentationFractionalType, ds.MaximumFractionalValue) == (
        "FRACTIONAL",
        "PROBABILITY",
        255,
    )
    assert (ds.NumberOfFrames, ds.BitsAllocated, ds.BitsStored, ds.HighBit) == (3, 8, 8, 7)
    assert ds.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
    assert sorted(np.unique(ds.pixel_array)) == [0, 191, 255]
    assert (ds.SeriesDescription, ds.BodyPartExamined) == ("AI brain_extraction 1.0.2 of S3, unverified", "HEAD")
    assert ds.ContributingEquipmentSequence[0].DeviceUID == results.algorithm().device_uid
    (algorithm,) = ds.SegmentSequence[1].SegmentationAlgorithmIdentificationSequence
    assert algorithm.AlgorithmVersion == "1.0.2"
    seg = build("seg", results.findings(results.ball(SHAPE)), sources, results.provenance())
    assert seg is not None
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID", "SeriesNumber"):
        assert ds[keyword].value != seg[keyword].value
    assert ds.SegmentSequence[0].TrackingUID == seg.SegmentSequence[0].TrackingUID  # the same thing


def test_same_work_gives_the_same_bytes(sources: Sources) -> None:
    maps = shares(np.random.default_rng(2), SHAPE, 3)
    one, two = (build("fractional", findings(*maps), sources, results.provenance()) for _ in range(2))
    assert one is not None
    assert two is not None
    assert encode(one) == encode(two)


def test_without_probabilities_there_is_none(sources: Sources) -> None:
    assert build("fractional", results.findings(results.ball(SHAPE)), sources, results.provenance()) is None


def test_what_is_no_probability_or_lies_elsewhere_is_refused(sources: Sources) -> None:
    with pytest.raises(InferenceError, match=r"probabilities of Class 0 have the shape \(5, 8, 8\)"):
        built(findings(np.ones((5, 8, 8), np.float32)), sources)
    for wrong in (1.01, -0.01, np.nan):
        with pytest.raises(InferenceError, match="The probabilities of Class 0 are"):
            findings(np.full(SHAPE, wrong, np.float32))
