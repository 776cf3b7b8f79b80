"""What bundles say beside masks, from images through a network to result objects, read back by other readers."""

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
from highdicom.seg import Segmentation
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from dicomai import inference
from dicomai.analysis import Analysis, Request, analyse
from dicomai.findings import Findings, Outcome, Probability
from dicomai.outputs import Sources, build, encode
from dicomai.outputs.common import geometry
from dicomai.routing import OutsideValidated
from dicomai.stacks import split
from tests import results, synthetic
from tests.bundles import ORIENT, compose, load, toml
from tests.integration.test_outputs_validators import CASES, faults, nrrd, read, run
from tests.unit.test_inference_heads import (
    BACK,
    CLASSES,
    COPY,
    KEPT,
    LABEL,
    MEAN,
    RESTING,
    SCORE,
    SHARES,
    boxes,
    does,
)  # fmt: skip

SHAPE = (6, 12, 14)

Make = Callable[..., inference.Engine]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    return partial(load, tmp_path / "tiny")


def series(array: NDArray[np.uint16], **changes: Any) -> list[Any]:
    return synthetic.series(
        modality="MR", array=array, spacing=(3.0, 0.8, 0.6), RescaleSlope=None, RescaleIntercept=None, **changes
    )


def analysed(engine: inference.Engine, images: list[Any], *outputs: str) -> tuple[Analysis, dict[str, Dataset]]:
    """Run a model on images as the worker does; the objects read back from their bytes."""
    (stack,) = split(synthetic.as_series(images))
    request = Request(
        bundle=engine.bundle,
        inputs={"image": stack},
        newest=stack.instances[0].header,
        outside_validated=OutsideValidated.REFUSE,
        outputs=outputs,
        work_digest="5e884898da280471",
        generation=0,
        installation="7c0c8d62-3a3f-4c7e-8a0e-5d2f6f1f0001",
        series_numbers=frozenset(),
        supersedes=(),
        timezone=None,
        threads=1,
    )
    analysis = analyse(request, engine, lambda _: None)
    return analysis, {one.output: pydicom.dcmread(io.BytesIO(one.data)) for one in analysis.objects}


@pytest.mark.parametrize("case", ["reversed", "multi-frame CT"])
def test_other_readers_take_probabilities_and_find_no_fault(case: str, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    synthetic.write(CASES[case](), folder)
    sources = results.sources(read(folder))
    shape = (len(sources.frames), 12, 14)
    random = np.random.default_rng(4)
    maps = [random.random(shape, dtype=np.float32) * results.ball(shape) for _ in range(2)]
    kept = tuple(Probability(0, results.segment(n + 1, f"Class {n}"), one) for n, one in enumerate(maps))
    ds = build("fractional", Findings((), (), Outcome.FINDINGS, probabilities=kept), sources, results.provenance())
    assert ds is not None
    path = tmp_path / "fractional.dcm"
    path.write_bytes(encode(ds))
    assert faults(path, folder) == set()
    found = dcmqi_values(path, sources, tmp_path / "dcmqi")
    for number, values in enumerate(maps, start=1):
        np.testing.assert_array_equal(found[number], np.rint(values * 255))


def dcmqi_values(path: Path, sources: Sources, folder: Path) -> dict[int, NDArray[np.uint8]]:
    """Let dcmqi read a segmentation of probabilities; their 255ths of each segment on the sources' grid, (z, y, x)."""
    folder.mkdir()
    run("segimage2itkimage", "--inputDICOM", path, "--outputDirectory", folder, "-t", "nrrd")
    place = geometry(sources)
    right, down = np.asarray(place.orientation[:3]), np.asarray(place.orientation[3:])
    positions = np.asarray(place.positions)
    found = {}
    for image in folder.glob("*.nrrd"):
        voxels, affine = nrrd(image)
        made = np.zeros((len(positions), sources.header.Rows, sources.header.Columns), np.uint8)
        index = np.argwhere(voxels)
        points = (affine @ np.c_[index, np.ones(len(index))].T)[:3].T
        normal = np.cross(right, down)
        z = np.abs((points @ normal)[:, None] - positions @ normal).argmin(axis=1)
        away = points - positions[z]
        at = np.c_[away @ down / place.pixel_spacing[0], away @ right / place.pixel_spacing[1]]
        np.testing.assert_allclose(at, np.rint(at), atol=1e-3)
        made[(z, *np.rint(at).astype(int).T)] = voxels[(*index.T,)]
        found[int(image.stem)] = made
    return found


def test_a_mask_with_its_probabilities_and_saliency(make: Make) -> None:
    array = np.random.default_rng(5).integers(0, 1001, SHAPE).astype(np.uint16)
    engine = make(
        toml(KEPT, heads=RESTING),
        imports=["$import torch"],
        preprocessing=compose(ORIENT),
        postprocessing=compose(SHARES, COPY, LABEL, BACK),
    )
    outputs = ("seg", "sr", "fractional", "saliency")
    analysis, objects = analysed(engine, series(array, orientation="oblique", reverse=True), *outputs)
    assert tuple(objects) == outputs
    truth = analysis.volume.array
    for name, shown in (("seg", truth > 500), ("fractional", truth / 1000)):
        seg = Segmentation.from_dataset(objects[name])
        uids = [frame.instance.sop_instance_uid for frame in analysis.volume.frames]
        back = seg.get_pixels_by_source_instance(uids, segment_numbers=[1])
        np.testing.assert_allclose(back[..., 0], shown, atol=0.5 / 255 + 1e-6)
    saliency = hd.imread(io.BytesIO(_bytes(objects["saliency"]))).get_volume(apply_real_world_transform=True)
    index = np.argwhere(np.ones(saliency.array.shape))
    points = np.asarray(saliency.affine) @ np.c_[index, np.ones(len(index))].T
    at = np.rint(np.linalg.solve(analysis.volume.affine, points)[:3]).astype(int)
    np.testing.assert_allclose(saliency.array[(*index.T,)], 1 - truth[(*at,)] / 1000, atol=1e-5)
    assert len({ds.SeriesNumber for ds in objects.values()}) == len(outputs)


def _bytes(ds: Dataset) -> bytes:
    buffer = io.BytesIO()
    ds.save_as(buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(("brightness", "outcome"), [(200, Outcome.NEGATIVE), (800, Outcome.FINDINGS)])
def test_a_classification_without_a_mask(make: Make, brightness: int, outcome: Outcome) -> None:
    shares = does("torch.stack([1 - x.flatten()[0] / 1000, x.flatten()[0] / 1000])")
    engine = make(
        toml("", "", heads=CLASSES + SCORE),
        imports=["$import torch"],
        network_def=MEAN,
        postprocessing=compose(shares),
    )
    outputs = ("seg", "sr", "mesh", "rtstruct", "gsps", "fractional", "saliency")
    outputs += ("keyimage", "pdf") if outcome is Outcome.NEGATIVE else ()
    analysis, objects = analysed(engine, series(np.full(SHAPE, brightness, np.uint16)), *outputs)
    assert analysis.findings.outcome is outcome
    assert set(objects) == {"sr", "keyimage", "pdf"} & set(
        outputs
    )  # where there is no mask, nothing that is made of one
    answered, scored = hd.sr.Comprehensive3DSR.from_dataset(objects["sr"]).content.get_image_measurement_groups()
    (evaluation,) = answered.get_qualitative_evaluations()
    assert (evaluation.name.meaning, evaluation.value.meaning) == (
        "Pneumonia",
        "Present" if outcome is Outcome.FINDINGS else "Absent",
    )
    (certainty,) = answered.get_measurements()
    assert (certainty.name, certainty.value) == (codes.DCM.CertaintyOfFinding, 80)
    (score,) = scored.get_measurements()
    assert score.value == pytest.approx(1 - brightness / 1000)
    ended = "with Findings" if outcome is Outcome.FINDINGS else "without Findings"
    assert ended.lower() in str(objects["sr"]).lower()


# The box around what is bright, in voxels of the image that the network sees.
BRIGHT = (
    "(lambda at: [{'box': torch.cat([at.min(0)[0], at.max(0)[0]])[None].float(), 'label': torch.zeros(1),"
    " 'label_scores': torch.ones(1) * 0.75}])(torch.nonzero(images[0, 0] > 500))"
)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_box_in_an_oblique_series_is_read_back_in_mm(make: Make, reverse: bool) -> None:
    """The box is lopsided: no flip and no exchange of axes leaves it where it is."""
    engine = make(
        toml("", heads=boxes("image", "xyzxyz")),
        imports=["$import torch"],
        inferer=f"$lambda images, network: {BRIGHT}",
        preprocessing=compose(ORIENT),
        postprocessing=None,
    )
    array = np.zeros(SHAPE, np.uint16)
    array[1:4, 2:7, 3:11] = 1000
    analysis, objects = analysed(engine, series(array, orientation="oblique", reverse=reverse), "sr", "keyimage")
    assert tuple(objects) == ("sr", "keyimage")
    (group,) = hd.sr.Comprehensive3DSR.from_dataset(objects["sr"]).content.get_volumetric_roi_measurement_groups()
    points = np.unique(np.round(np.vstack(group.roi.graphic_data), 3), axis=0)
    assert len(points) == 8
    bright = np.argwhere(analysis.volume.array > 500)
    back = np.linalg.solve(analysis.volume.affine, np.c_[points, np.ones(8)].T)[:3].T
    np.testing.assert_allclose(back.min(axis=0), bright.min(axis=0), atol=5e-3)
    np.testing.assert_allclose(back.max(axis=0), bright.max(axis=0), atol=5e-3)
    assert (group.finding_type.meaning, group.roi.frame_of_reference_uid) == (
        "Nodule",
        analysis.volume.frames[0].instance.header.FrameOfReferenceUID,
    )
