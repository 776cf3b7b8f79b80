"""Voxel truth: what highdicom reads of a segmentation is the network's mask, each voxel at its place in the patient.

The mask lies on the volume that `volume.load` made of the images, as a network's does, and not on what the test made.
"""

import io
from typing import Any

import numpy as np
import pydicom
from highdicom.seg import Segmentation
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom.dataset import FileDataset

from dicomai.findings import Findings, Layer, Outcome
from dicomai.outputs import Sources, build, encode
from dicomai.profiles import LABEL_MAP_SYNTAXES
from dicomai.stacks import split
from dicomai.volume import Limits, Volume, load
from tests import results, synthetic

Image = dict[str, Any]

SPACING = st.floats(0.3, 7.0).map(lambda value: round(value, 3))
IMAGES = st.fixed_dictionaries(
    {
        "orientation": st.sampled_from(sorted(synthetic.ORIENTATIONS)),
        "digits": st.sampled_from([3, 6, 12]),
        "multi_frame": st.booleans(),
        "reverse": st.booleans(),
        "tilt": st.sampled_from([0.0, 0.0, 18.0, -11.0]),
        "bits": st.sampled_from([8, 16]),
        "inverted": st.booleans(),
        "jitter": st.booleans(),
        "shape": st.tuples(st.integers(1, 6), st.integers(1, 9), st.integers(1, 9)),
        "spacing": st.tuples(SPACING, SPACING, SPACING),
        "origin": st.tuples(*[st.floats(-900, 900)] * 3),
    }
)
LABELS = st.fixed_dictionaries(
    {
        "layers": st.integers(1, 3),
        "apart": st.booleans(),
        "share": st.sampled_from([0.02, 0.3, 0.9]),
        "wide": st.booleans(),
    }
)
FORMS = st.sampled_from([None, *LABEL_MAP_SYNTAXES])


def images(case: Image, random: np.random.Generator) -> list[FileDataset]:
    """Make a series, its slices in any order, or a multi-frame image."""
    depth, height, width = case["shape"]
    positions = np.arange(depth) * case["spacing"][0]
    if case["jitter"]:
        positions = positions + random.uniform(-0.004, 0.004, depth) * case["spacing"][0]
    kind = np.uint8 if case["bits"] == 8 else np.uint16
    photometric = {"PhotometricInterpretation": "MONOCHROME1"} if case["inverted"] else {}
    made: dict[str, Any] = {
        "array": random.integers(0, 256, (depth, height, width)).astype(kind),
        "spacing": case["spacing"],
        "origin": case["origin"],
        "positions": positions[::-1] if case["reverse"] else positions,
        "orientation": np.round(np.concatenate(synthetic.cosines(case["orientation"])[:2]), case["digits"]),
        **photometric,
    }
    if case["multi_frame"]:
        return [synthetic.enhanced(**made)]
    listed = synthetic.series(tilt=case["tilt"], **made)
    return [listed[z] for z in random.permutation(depth)]


def masks(case: dict[str, Any], volume: Volume, random: np.random.Generator) -> Findings:
    """Make label maps of three segments each: one wherever it falls, one in one slice only, one without a voxel."""
    layers, taken = [], np.zeros(volume.shape, dtype=bool)
    for index in range(case["layers"]):
        labels = np.zeros(volume.shape, np.uint16 if case["wide"] else np.uint8)
        first = 300 * case["wide"] + 1
        labels[random.random(volume.shape) < case["share"]] = first
        labels[random.integers(len(labels)), 0] = first + 1
        labels[taken & case["apart"]] = 0
        taken |= labels > 0
        segments = tuple(results.segment(first + n, f"{index}.{n}") for n in range(3))
        layers.append(Layer(labels, segments))
    return Findings(tuple(layers), (), Outcome.FINDINGS)


def expected(findings: Findings) -> dict[str, NDArray[np.bool_]]:
    """Give the mask of every segment that has a voxel, by its label; shape (z, y, x)."""
    named = {one.label: layer.labels == one.number for layer in findings.layers for one in layer.segments}
    return {label: mask for label, mask in named.items() if mask.any()}


def by_source(read: Segmentation, sources: Sources, numbers: list[int]) -> NDArray[np.bool_]:
    """Let highdicom read the segments by the images that they were made of; shape (z, y, x, segment)."""
    uids = [frame.instance.sop_instance_uid for frame in sources.frames]
    options: dict[str, Any] = {"segment_numbers": numbers, "assert_missing_frames_are_empty": True}
    if sources.frames[0].number is None:
        found = read.get_pixels_by_source_instance(uids, **options)
    else:
        found = read.get_pixels_by_source_frame(uids[0], [frame.number for frame in sources.frames], **options)
    return np.asarray(found, dtype=bool)


def by_place(read: Segmentation, volume: Volume, numbers: list[int]) -> NDArray[np.bool_]:
    """Let highdicom read the segments as a volume, and put each voxel where it lies; shape as in `by_source`."""
    found = read.get_volume(segment_numbers=numbers, rtol=0.02)
    made = np.zeros((*volume.shape, len(numbers)), dtype=bool)
    index = np.argwhere(found.array)
    points = np.c_[index[:, :3], np.ones(len(index))] @ np.asarray(found.affine).T
    back = (points @ np.linalg.inv(volume.affine).T)[:, :3]
    np.testing.assert_allclose(back, np.rint(back), atol=0.05)
    made[(*np.rint(back).astype(int).T, index[:, 3])] = True
    return made


def check_planes(read: Segmentation, sources: Sources) -> None:
    """Hold the position of each frame against that of the image that it was made of."""
    positions = {one.sop_instance_uid: np.asarray(one.header.ImagePositionPatient, float) for one in sources.instances}
    for groups in read.PerFrameFunctionalGroupsSequence:
        (image,) = groups.DerivationImageSequence[0].SourceImageSequence
        place = np.asarray(groups.PlanePositionSequence[0].ImagePositionPatient, float)
        np.testing.assert_allclose(place, positions[image.ReferencedSOPInstanceUID], atol=1e-6)


# A case is small as it is drawn, and to make it smaller would take minutes.
@settings(max_examples=30, deadline=None, derandomize=True, phases=(Phase.explicit, Phase.generate))
@given(image=IMAGES, labels=LABELS, label_map=FORMS, seed=st.integers(0, 2**32 - 1))
def test_what_is_read_is_the_mask(image: Image, labels: dict[str, Any], label_map: str | None, seed: int) -> None:
    random = np.random.default_rng(seed)
    (stack,) = split(synthetic.as_series(images(image, random)))
    volume = load(stack, Limits(tilted=True))
    sources = Sources(volume.frames, volume.frames[0].instance.header, lossy=False)
    findings = masks(labels, volume, random)
    made = build("seg", findings, sources, results.provenance(label_map=label_map))
    assert made is not None
    read = Segmentation.from_dataset(pydicom.dcmread(io.BytesIO(encode(made))))
    truth = expected(findings)
    stacked = np.stack(list(truth.values()), axis=-1)
    overlaps = (stacked.sum(axis=-1) > 1).any()
    background = ["Background"] if label_map and not overlaps else []
    assert [item.SegmentLabel for item in read.SegmentSequence] == [*background, *truth]
    numbers = [int(item.SegmentNumber) for item in read.SegmentSequence if item.SegmentNumber]
    np.testing.assert_array_equal(by_source(read, sources, numbers), stacked)
    if image["multi_frame"] or not image["tilt"]:
        np.testing.assert_array_equal(by_place(read, volume, numbers), stacked)
    else:  # no volume of highdicom's is sheared
        check_planes(read, sources)
    assert read.SegmentsOverlap == ("YES" if overlaps else "NO")
    assert read.SegmentationType == ("LABELMAP" if background else "BINARY")
