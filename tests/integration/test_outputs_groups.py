"""What a report says beside segments: evaluations, scores, detections; read back by highdicom and by dcmqi."""

import io
import json
import subprocess
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from dicomai.errors import GeometryError, InferenceError
from dicomai.findings import Detection, Evaluation, Findings, Measurement, Outcome, Region, Score, Shape
from dicomai.outputs import Sources, build, encode
from dicomai.quantities import ATTENUATION, LONG_AXIS, MEAN
from tests import results, synthetic
from tests.integration.test_outputs_validators import faults, read, run

PNEUMONIA = Code("233604007", "SCT", "Pneumonia")
PRESENT = Code("52101004", "SCT", "Present")
NODULE = Code("27925004", "SCT", "Nodule")
LUNG = Code("39607008", "SCT", "Lung")
CALCIUM = Code("112058", "DCM", "Calcium score")
ONE = Code("1", "UCUM", "no units")
RECIST = Code("126081", "DCM", "RECIST 1.1")

EVALUATION = Evaluation(PNEUMONIA, PRESENT, LUNG, probability=0.87654321)
SCORE = Score(CALCIUM, 123.456789, ONE)
AXES = ((3.0, 0.0, 0.0), (0.0, 4.0, 0.0), (0.0, 0.0, 5.0))


def nodule(shape: Shape, **changes: Any) -> Detection:
    region = Region(shape, (-10.0, 20.0, 30.0), () if shape is Shape.POINT else AXES)
    return Detection(NODULE, results.ABNORMALITY, LUNG, region, **({"probability": 0.5} | changes))


def findings(*detections: Detection, **changes: Any) -> Findings:
    said: dict[str, Any] = {"evaluations": (EVALUATION,), "scores": (SCORE,), "detections": detections}
    return Findings((), (), Outcome.FINDINGS, **(said | changes))


def report(found: Findings, sources: Sources) -> Dataset:
    ds = build("sr", found, sources, results.provenance())
    assert ds is not None
    return pydicom.dcmread(io.BytesIO(encode(ds)))


@pytest.fixture
def sources() -> Sources:
    return results.sources(synthetic.instances(synthetic.series(shape=(4, 8, 8))))


def test_an_answer_and_a_score_are_read_back(sources: Sources) -> None:
    content = hd.sr.Comprehensive3DSR.from_dataset(report(findings(), sources)).content
    answered, scored = content.get_image_measurement_groups()
    (evaluation,) = answered.get_qualitative_evaluations()
    assert (evaluation.name, evaluation.value) == (PNEUMONIA, PRESENT)
    (certainty,) = answered.get_measurements()
    assert (certainty.name, certainty.value, certainty.unit.value) == (codes.DCM.CertaintyOfFinding, 87.65, "%")
    (score,) = scored.get_measurements()
    assert (score.name, score.value, score.unit) == (CALCIUM, 123.457, ONE)
    assert answered.tracking_uid != scored.tracking_uid


@pytest.mark.parametrize("shape", Shape)
def test_a_detection_lies_where_it_was_found(shape: Shape, sources: Sources) -> None:
    ds = report(findings(nodule(shape)), sources)
    (group,) = hd.sr.Comprehensive3DSR.from_dataset(ds).content.get_volumetric_roi_measurement_groups()
    assert group.finding_type == NODULE
    surface = group.roi
    assert surface.frame_of_reference_uid == sources.header.FrameOfReferenceUID
    points = np.vstack(surface.graphic_data)
    np.testing.assert_allclose(points.mean(axis=0) if shape is not Shape.BOX else points.min(axis=0), {
        Shape.POINT: (-10, 20, 30), Shape.ELLIPSOID: (-10, 20, 30), Shape.BOX: (-13, 16, 25),
    }[shape])  # fmt: skip
    if shape is not Shape.POINT:
        np.testing.assert_allclose(np.ptp(points, axis=0), (6, 8, 10))
    if shape is Shape.BOX:
        assert len(surface.graphic_data) == 6
        assert all((face[0] == face[-1]).all() for face in surface.graphic_data)


def test_a_detection_without_a_frame_of_reference_is_refused() -> None:
    images = synthetic.series(shape=(4, 8, 8), FrameOfReferenceUID=None)
    with pytest.raises(GeometryError, match="no FrameOfReferenceUID"):
        report(findings(nodule(Shape.POINT)), results.sources(synthetic.instances(images)))


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (lambda: Evaluation(PNEUMONIA, PRESENT, probability=1.2), "The probability of Pneumonia is 1.2"),
        (lambda: nodule(Shape.POINT, probability=float("nan")), "is nan"),
        (lambda: Score(CALCIUM, float("inf"), ONE), "Calcium score is inf"),
        (lambda: Region(Shape.BOX, (0, 0, 0)), "has 0 axes"),
        (lambda: Region(Shape.POINT, (0, float("nan"), 0)), "no numbers"),
        (lambda: Region(Shape.ELLIPSOID, (0, 0, 0), ((1, 0, 0), (1, 1, 0), (0, 0, 1))), "not at right angles"),
    ],
)
def test_what_cannot_be_is_refused(made: Any, says: str) -> None:
    with pytest.raises(InferenceError, match=says):
        made()


def test_other_readers_read_all_of_it(tmp_path: Path) -> None:
    images = tmp_path / "images"
    synthetic.write(synthetic.series(shape=(4, 8, 8)), images)
    sources = results.sources(read(images))
    segmented = results.findings(results.ball((4, 8, 8)))
    (one,) = segmented.layers[0].segments
    measured = (
        Measurement(LONG_AXIS, 12.3, Code("mm", "UCUM", "mm"), one, RECIST),
        Measurement(ATTENUATION, -41.5, Code("[hnsf'U]", "UCUM", "Hounsfield unit"), one, derivation=MEAN),
    )
    found = Findings(
        segmented.layers, measured, Outcome.FINDINGS, (), (EVALUATION,), (SCORE,), tuple(map(nodule, Shape))
    )
    path = tmp_path / "sr.dcm"
    path.write_bytes(encode(report(found, sources)))
    assert faults(path, images) == set()
    metadata = tmp_path / "report.json"
    run("tid1500reader", "--inputDICOM", path, "--outputMetadata", metadata)
    groups = json.loads(metadata.read_text(encoding="utf-8"))["Measurements"]
    items = groups[0]["measurementItems"]
    assert [(item["value"], item["units"]["CodeValue"]) for item in items] == [("12.3", "mm"), ("-41.5", "[hnsf'U]")]
    assert items[1]["derivationModifier"]["CodeMeaning"] == "Mean"
    assert [group["TrackingIdentifier"].split(": ")[1] for group in groups[1:]] == [
        "Pneumonia 1", "Calcium score 1", "Nodule 1", "Nodule 2", "Nodule 3",
    ]  # fmt: skip
    assert json.dumps(groups[1]["qualitativeEvaluations"]).count('"Present"') == 1
    dumped = subprocess.run(["/usr/bin/dsrdump", path], capture_output=True, text=True, check=True)
    assert dumped.stderr == ""
    assert "ELLIPSOID" in dumped.stdout
