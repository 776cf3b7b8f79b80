"""Surfaces: closed, turned outwards, as large as the voxels and where they lie, in the units that the object states."""

import io
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset

from dicomai.errors import InferenceError
from dicomai.findings import Outcome
from dicomai.outputs import Predecessor, Sources, build, encode
from dicomai.outputs.common import geometry
from dicomai.outputs.mesh import surface, volume
from tests import results, synthetic

SHAPE = (20, 40, 44)
SPACING = (3.0, 1.2, 1.0)
VOXEL = 3.6  # mm3
DCIODVFY = Path(sysconfig.get_path("scripts")) / "dciodvfy"


def of(shape: tuple[int, int, int] = SHAPE, **attributes: Any) -> Sources:
    return results.sources(synthetic.instances(synthetic.series(shape=shape, spacing=SPACING, **attributes)))


def built(labels: NDArray[np.uint8], sources: Sources, segments: int = 1, **changes: Any) -> Dataset:
    """Build a surface and read it back from its bytes."""
    found = results.findings(labels, segments=[results.segment(n, f"Part {n}") for n in range(1, segments + 1)])
    ds = build("mesh", found, sources, results.provenance(**changes))
    assert ds is not None
    return pydicom.dcmread(io.BytesIO(encode(ds)))


def triangles(ds: Dataset) -> NDArray[np.float32]:
    """Read binary STL as its description says: corners, shape (triangle, 3, 3)."""
    document = ds.EncapsulatedDocument[: ds.EncapsulatedDocumentLength]
    assert not document.startswith(b"solid")
    count = int.from_bytes(document[80:84], "little")
    assert len(document) == 84 + 50 * count
    floats = np.frombuffer(document, [("floats", "<f4", 12), ("attribute", "<u2")], offset=84)["floats"]
    corners = floats[:, 3:].reshape(-1, 3, 3)
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    np.testing.assert_allclose(floats[:, :3], normals / np.linalg.norm(normals, axis=1, keepdims=True), atol=1e-4)
    return corners


def is_closed(corners: NDArray[np.float32]) -> bool:
    """Tell whether every edge is passed as often one way as the other."""
    _, names = np.unique(np.ascontiguousarray(corners).view("V12"), return_inverse=True)
    faces = names.reshape(-1, 3)
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    return bool((np.sort(edges @ [1 << 32, 1]) == np.sort(edges[:, ::-1] @ [1 << 32, 1])).all())


def test_surface_of_a_ball_is_closed_and_holds_the_voxels_volume_where_they_lie() -> None:
    labels = results.ball(SHAPE)
    for orientation, reverse in (("oblique", False), ("oblique", True), ("sagittal", False)):
        sources = of(orientation=orientation, reverse=reverse)
        made = triangles(built(labels, sources))
        assert is_closed(made)
        assert volume(made) == pytest.approx(VOXEL * np.count_nonzero(labels), rel=0.02)
        place = geometry(sources)
        right, down = np.asarray(place.orientation[:3]), np.asarray(place.orientation[3:])
        z, y, x = np.nonzero(labels)
        voxels = np.asarray(place.positions)[z] + y[:, None] * down * 1.2 + x[:, None] * right * 1.0
        normal = np.cross(right, down)
        for axis, half in ((right, 0.5), (down, 0.6), (normal, 1.5)):
            assert (made @ axis).min() == pytest.approx((voxels @ axis).min() - half, abs=1e-3)
            assert (made @ axis).max() == pytest.approx((voxels @ axis).max() + half, abs=1e-3)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), reverse=st.booleans(), share=st.sampled_from([0.02, 0.5, 0.98]))
def test_any_mask_gives_a_closed_surface_turned_outwards(seed: int, reverse: bool, share: float) -> None:
    mask = np.random.default_rng(seed).random((6, 7, 8)) < share
    mask[0, 0, 0] = mask[5, 6, 7] = True  # at the edge of the images too
    made = surface(mask, geometry(of((6, 7, 8), orientation="oblique", reverse=reverse)))
    assert is_closed(made)
    assert volume(made) > 0


def test_uneven_slices_are_where_they_are_and_a_single_one_is_as_thick_as_it_says() -> None:
    mask = np.ones((4, 5, 6), bool)
    images = synthetic.series(shape=(4, 5, 6), positions=[0, 3.0, 6.03, 9.0], spacing=SPACING)
    place = geometry(results.sources(synthetic.instances(images)))
    heights = np.unique(np.round(surface(mask, place)[..., 2] - place.positions[0][2], 3))
    np.testing.assert_allclose(heights, [-1.5, 0, 3, 6.03, 9, 10.485], atol=2e-3)
    one = geometry(of((1, 5, 6), SliceThickness="4"))
    assert np.ptp(surface(mask[:1], one)[..., 2]) == pytest.approx(4)


def test_every_segment_is_a_shell_of_its_own_in_the_order_of_the_title() -> None:
    labels = results.ball(SHAPE)
    labels[:, :, 26:] *= 3
    sources = of(Modality="MR")
    ds = built(labels, sources, segments=3)
    made = triangles(ds)
    place = geometry(sources)
    left, right = (surface(labels == number, place) for number in (1, 3))
    np.testing.assert_array_equal(made, np.concatenate([left, right]))
    assert ds.DocumentTitle == "AI result, unverified: Part 1, Part 3"
    assert "RecommendedDisplayCIELabValue" not in ds


def test_attributes_are_those_of_an_unverified_model_in_mm() -> None:
    sources = of(SeriesNumber=3)
    study = str(sources.header.StudyInstanceUID)
    old = Predecessor("mesh", study, "1.2.3", "1.2.4", "1.2.840.10008.5.1.4.1.1.104.3", 9007)
    ds = built(results.ball(SHAPE), sources, supersedes=(old,))
    assert ds.SOPClassUID == "1.2.840.10008.5.1.4.1.1.104.3"
    assert (ds.Modality, ds.MIMETypeOfEncapsulatedDocument) == ("M3D", "model/stl")
    assert (ds.VerificationFlag, ds.BurnedInAnnotation) == ("UNVERIFIED", "NO")
    assert ds.MeasurementUnitsCodeSequence[0].CodeValue == "mm"
    assert ds.FrameOfReferenceUID == sources.header.FrameOfReferenceUID
    assert (ds.ModelModification, ds.ModelMirroring) == ("NO", "NO")
    assert ds.DerivationAlgorithmSequence[0].AlgorithmName == "brain_extraction"
    assert ds.SeriesNumber == 9007
    assert len(ds.RecommendedDisplayCIELabValue) == 3
    named = [item.ReferencedSOPInstanceUID for item in ds.SourceInstanceSequence]
    assert named == [instance.sop_instance_uid for instance in sources.instances]
    (item,) = ds.PredecessorDocumentsSequence
    assert item.ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID == "1.2.4"


def test_same_work_gives_the_same_bytes_and_nothing_found_no_surface() -> None:
    sources, found = of(), results.findings(results.ball(SHAPE))
    one, two = (build("mesh", found, sources, results.provenance()) for _ in range(2))
    assert one is not None
    assert two is not None
    assert encode(one) == encode(two)
    nothing = results.findings(np.zeros(SHAPE, np.uint8), outcome=Outcome.NEGATIVE)
    assert build("mesh", nothing, sources, results.provenance()) is None


CASES: dict[str, Callable[[], list[FileDataset]]] = {
    "CT": lambda: synthetic.series(shape=SHAPE),
    "multi-frame MR": lambda: [synthetic.enhanced(shape=SHAPE, orientation="coronal")],
    "no frame of reference": lambda: synthetic.series(shape=SHAPE, FrameOfReferenceUID=None),
}


@pytest.mark.parametrize("case", CASES)
def test_validator_finds_no_fault(case: str, tmp_path: Path) -> None:
    sources = results.sources(synthetic.instances(CASES[case]()))
    path = tmp_path / "mesh.dcm"
    built(results.ball(SHAPE), sources).save_as(path)
    done = subprocess.run([DCIODVFY, path], capture_output=True, text=True, check=False, errors="replace")
    assert "EncapsulatedSTL" in done.stderr
    assert not [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]


def test_label_map_of_another_grid_is_refused() -> None:
    with pytest.raises(InferenceError, match="another"):
        built(np.ones((5, 8, 8), np.uint8), of())
