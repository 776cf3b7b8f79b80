"""A tilted gantry: the network sees the patient straight, and its mask goes out where it lies in the patient.

The slices are sheared against each other. A bundle that resamples them (Spacingd) sees a straight volume; its mask
comes back to the images' own planes, and the segmentation lies on these, each frame with its image's position.
"""

import io
from pathlib import Path

import numpy as np
import pydicom
import pytest
from highdicom.seg import Segmentation
from numpy.typing import NDArray

from dicomai.outputs import Sources, build, encode
from dicomai.stacks import split
from dicomai.volume import Limits, Volume, load
from tests import bundles, results, synthetic
from tests.integration.test_outputs_validators import nrrd, run

SHAPE, SPACING = (20, 40, 44), (3.0, 1.5, 1.5)
RADIUS = 15.0  # mm


def tilted(tilt: float, orientation: str = "axial") -> tuple[Volume, NDArray[np.bool_]]:
    """Make a CT whose gantry was tilted, of a ball in the patient that is off the middle; where the ball is."""
    made: dict[str, object] = {"tilt": tilt, "orientation": orientation, "spacing": SPACING}
    empty = synthetic.series(shape=SHAPE, **made)  # type: ignore[arg-type]
    affine = volume(empty).affine
    places = np.stack([*np.indices(SHAPE), np.ones(SHAPE)], axis=-1) @ affine.T
    away = places[..., :3] - (affine @ [10.5, 22.0, 17.0, 1])[:3]
    ball = np.linalg.norm(away, axis=-1) <= RADIUS
    return volume(synthetic.series(array=np.where(ball, 2024, 24).astype(np.uint16), **made)), ball  # type: ignore[arg-type]


def volume(images: list[pydicom.FileDataset]) -> Volume:
    (stack,) = split(synthetic.as_series(images))
    return load(stack, Limits(tilted=True))


def in_mm(read: pydicom.Dataset) -> NDArray[np.float64]:
    """Give the place of every voxel of a binary segmentation by the positions of its frames alone; LPS, mm."""
    shared = read.SharedFunctionalGroupsSequence[0]
    row, column = np.asarray(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2, 3)
    down, right = np.asarray(shared.PixelMeasuresSequence[0].PixelSpacing, float)
    found = []
    for plane, groups in zip(read.pixel_array, read.PerFrameFunctionalGroupsSequence, strict=True):
        y, x = np.nonzero(plane)
        first = np.asarray(groups.PlanePositionSequence[0].ImagePositionPatient, float)
        found.append(first + np.outer(y * down, column) + np.outer(x * right, row))
    return np.concatenate(found)


@pytest.mark.parametrize(("tilt", "orientation"), [(20.0, "axial"), (-12.0, "oblique")])
def test_a_shape_in_the_patient_is_found_again_where_it_lies(tilt: float, orientation: str, tmp_path: Path) -> None:
    source, ball = tilted(tilt, orientation)
    straight = {"_target_": "Spacingd", "keys": "image", "pixdim": [1.5, 1.5, 1.5], "mode": "bilinear"}
    engine = bundles.load(
        tmp_path / "tiny",
        preprocessing=bundles.compose(bundles.ORIENT, straight),
        postprocessing=bundles.compose(bundles.THRESHOLD, bundles.INVERT),
    )
    found = engine.infer({"image": source})
    made = build(
        "seg", found, Sources(source.frames, source.frames[0].instance.header, lossy=False), results.provenance()
    )
    assert made is not None
    mask, voxel = found.layers[0].labels > 0, max(SPACING)
    assert 2 * np.count_nonzero(mask & ball) / (np.count_nonzero(mask) + np.count_nonzero(ball)) > 0.93
    places = in_mm(pydicom.dcmread(io.BytesIO(encode(made))))
    center = (source.affine @ [10.5, 22.0, 17.0, 1])[:3]
    np.testing.assert_allclose(places.mean(axis=0), center, atol=0.3)
    assert np.linalg.norm(places - center, axis=1).max() < RADIUS + voxel
    assert len(places) * source.voxel_volume == pytest.approx(4 / 3 * np.pi * RADIUS**3, rel=0.06)


@pytest.mark.parametrize("tilt", [20.0, -12.0])
def test_readers_give_the_mask_on_the_images_own_planes(tilt: float, tmp_path: Path) -> None:
    source, ball = tilted(tilt)
    sources = Sources(source.frames, source.frames[0].instance.header, lossy=False)
    made = build("seg", results.findings(ball.astype(np.uint8)), sources, results.provenance())
    assert made is not None
    path = tmp_path / "seg.dcm"
    path.write_bytes(encode(made))
    assert not [line for line in run("dciodvfy", path).splitlines() if line.startswith("Error")]
    read = Segmentation.from_dataset(pydicom.dcmread(path))
    uids = [frame.instance.sop_instance_uid for frame in sources.frames]
    by_source = read.get_pixels_by_source_instance(uids, segment_numbers=[1], assert_missing_frames_are_empty=True)
    np.testing.assert_array_equal(by_source[..., 0] > 0, ball)
    if tilt < 0:
        return  # dcmqi reads no frames that lie before its first one
    run("segimage2itkimage", "--inputDICOM", path, "--outputDirectory", tmp_path, "-t", "nrrd")
    voxels, affine = nrrd(tmp_path / "1.nrrd")
    filled = np.flatnonzero(ball.any(axis=(1, 2)))
    # Slice by slice it is the mask; where slices lie, an ITK image can say of the first one only.
    np.testing.assert_array_equal(voxels.transpose(2, 1, 0) > 0, ball[filled[0] : filled[-1] + 1])
    np.testing.assert_allclose(affine[:3, 3], (source.affine @ [filled[0], 0, 0, 1])[:3], atol=1e-3)
