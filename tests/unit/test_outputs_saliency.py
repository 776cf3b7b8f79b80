"""Parametric maps: every value where it was, on a frame for each source image, with its quantity and unit."""

import io
import subprocess
import sysconfig
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset
from pydicom.sr.coding import Code

from dicomai.errors import InferenceError
from dicomai.findings import Findings, Saliency
from dicomai.outputs import Sources, build, encode
from tests import results, synthetic

SHAPE = (5, 12, 14)
QUANTITY = Code("1000", "99TEST", "Share in the answer")
ONE = Code("1", "UCUM", "no units")
DCIODVFY = Path(sysconfig.get_path("scripts")) / "dciodvfy"


def values(shape: tuple[int, ...] = SHAPE) -> NDArray[np.float32]:
    """Make values that no flip leaves as they are."""
    return np.random.default_rng(5).random(shape, dtype=np.float32) * np.float32(0.7) - np.float32(0.1)


def found(array: NDArray[np.float32]) -> Findings:
    return replace(results.findings(results.ball(SHAPE)), saliency=Saliency(array, QUANTITY, ONE, "Saliency"))


def built(array: NDArray[np.float32], sources: Sources, **changes: Any) -> Dataset:
    """Build a map and read it back from its bytes."""
    ds = build("saliency", found(array), sources, results.provenance(**changes))
    assert ds is not None
    return pydicom.dcmread(io.BytesIO(encode(ds)))


CASES: dict[str, Callable[[], list[FileDataset]]] = {
    "axial": lambda: synthetic.series(shape=SHAPE, BodyPartExamined="HEAD"),
    "oblique, reversed": lambda: synthetic.series(
        shape=SHAPE, orientation="oblique", reverse=True, modality="MR", spacing=(3.0, 1.7, 0.6)
    ),
    "multi-frame": lambda: [synthetic.enhanced(shape=SHAPE, orientation="coronal")],
    "lossy": lambda: synthetic.series(
        shape=SHAPE,
        LossyImageCompression="01",
        LossyImageCompressionRatio="12.5",
        LossyImageCompressionMethod="ISO_10918_1",
    ),
}


def of(case: str) -> Sources:
    return results.sources(synthetic.instances(CASES[case]()), lossy=case == "lossy")


@pytest.mark.parametrize("case", CASES)
def test_every_value_comes_back_on_the_image_that_it_belongs_to(case: str, tmp_path: Path) -> None:
    sources, array = of(case), values()
    ds = built(array, sources)
    by_name = {(frame.instance.sop_instance_uid, frame.number): z for z, frame in enumerate(sources.frames)}
    places = results_positions(sources)
    read = np.frombuffer(ds.FloatPixelData, "<f4").reshape(SHAPE)
    seen = []
    for plane, groups in zip(read, ds.PerFrameFunctionalGroupsSequence, strict=True):
        (image,) = groups.DerivationImageSequence[0].SourceImageSequence
        z = by_name[image.ReferencedSOPInstanceUID, image.get("ReferencedFrameNumber")]
        np.testing.assert_array_equal(plane, array[z])
        np.testing.assert_allclose(groups.PlanePositionSequence[0].ImagePositionPatient, places[z], atol=1e-3)
        seen.append(z)
    assert sorted(seen) == list(range(5)), "one frame for each source image"
    mapped = hd.imread(io.BytesIO(encode(ds))).get_frames(apply_real_world_transform=True)
    np.testing.assert_allclose(mapped, array[seen], rtol=1e-6)  # another reader
    path = tmp_path / "map.dcm"
    path.write_bytes(encode(ds))
    done = subprocess.run([DCIODVFY, path], capture_output=True, text=True, check=False, errors="replace")
    said = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]
    assert said == []
    assert "ParametricMap" in done.stderr


def results_positions(sources: Sources) -> list[tuple[float, ...]]:
    from dicomai.outputs.common import geometry

    return list(geometry(sources).positions)


def test_values_have_their_quantity_unit_and_range() -> None:
    array = values()
    ds = built(array, of("axial"))
    assert ds.SOPClassUID == "1.2.840.10008.5.1.4.1.1.30"
    shared = ds.SharedFunctionalGroupsSequence[0]
    (mapping,) = shared.RealWorldValueMappingSequence
    assert mapping.LUTLabel == "Saliency"
    assert mapping.MeasurementUnitsCodeSequence[0].CodeValue == "1"
    assert mapping.QuantityDefinitionSequence[0].ConceptCodeSequence[0].CodeMeaning == "Share in the answer"
    assert (mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept) == (1, 0)
    assert mapping.DoubleFloatRealWorldValueFirstValueMapped == array.min()
    assert mapping.DoubleFloatRealWorldValueLastValueMapped == array.max()
    (voi,) = shared.FrameVOILUTSequence
    assert voi.VOILUTFunction == "LINEAR_EXACT"
    assert voi.WindowCenter - voi.WindowWidth / 2 == pytest.approx(array.min(), abs=1e-5)
    assert voi.WindowCenter + voi.WindowWidth / 2 == pytest.approx(array.max(), abs=1e-5)
    assert ds.SeriesDescription == "AI brain_extraction 1.0.2 of S3, unverified"
    assert ds.ContributingEquipmentSequence[0].DeviceUID == results.algorithm().device_uid
    assert (ds.BodyPartExamined, ds.SeriesNumber) == ("HEAD", 9008)


def test_same_work_gives_the_same_bytes_and_no_saliency_no_map() -> None:
    sources = of("axial")
    one, two = (build("saliency", found(values()), sources, results.provenance()) for _ in range(2))
    assert one is not None
    assert two is not None
    assert encode(one) == encode(two)
    assert build("saliency", results.findings(results.ball(SHAPE)), sources, results.provenance()) is None


def test_a_map_of_one_value_can_be_shown() -> None:
    ds = built(np.full(SHAPE, 0.25, np.float32), of("axial"))
    assert ds.SharedFunctionalGroupsSequence[0].FrameVOILUTSequence[0].WindowWidth == 1


def test_what_is_no_number_or_lies_elsewhere_is_refused() -> None:
    array = values()
    array[2, 3, 4], array[0, 0, 0] = np.nan, np.inf
    with pytest.raises(InferenceError, match="The Saliency has 2 values that are no numbers"):
        built(array, of("axial"))
    with pytest.raises(InferenceError, match="another grid"):
        built(values((5, 8, 8)), of("axial"))


@pytest.mark.parametrize(
    ("quantity", "label"),
    [
        (QUANTITY, "Wärme"),
        (QUANTITY, "Saliency of the answer"),
        (QUANTITY, ""),
        (Code("1", "99T", "Größe"), "Saliency"),
    ],
)
def test_a_text_that_does_not_fit_into_every_object_is_refused(quantity: Code, label: str) -> None:
    with pytest.raises(InferenceError, match="in ASCII, and the label in 1 to 16 characters"):
        Saliency(values(), quantity, ONE, label)
