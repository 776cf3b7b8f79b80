"""What was read of IHE AI Results (docs/air.md), and that the tests that it names are there."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from dicomai.findings import Findings, Saliency
from dicomai.outputs import NOT_ANALYSED, OUTPUTS, Sources, build, not_analysed
from tests import results, synthetic

ROOT = Path(__file__).parents[2]
SHAPE = (4, 12, 14)
IODS = {
    "sr": "1.2.840.10008.5.1.4.1.1.88.34",
    "seg": "1.2.840.10008.5.1.4.1.1.66.4",
    "saliency": "1.2.840.10008.5.1.4.1.1.30",
    "kos": "1.2.840.10008.5.1.4.1.1.88.59",
}


@pytest.fixture(scope="module")
def sources() -> Sources:
    return results.sources(synthetic.instances(synthetic.series(shape=SHAPE, PatientName="Doe^Jane")))


@pytest.fixture(scope="module")
def made(sources: Sources) -> dict[str, Dataset]:
    """Every kind of object that a result can have."""
    unit = Code("1", "UCUM", "no units")
    saliency = Saliency(np.ones(SHAPE, np.float32), Code("113041", "DCM", "Derived Value"), unit, "Saliency")
    found = replace(results.findings(results.ball(SHAPE)), saliency=saliency)
    provenance = results.provenance(outputs=OUTPUTS)
    built = {output: one for output in OUTPUTS if (one := made_of(output, found, sources)) is not None}
    for output in NOT_ANALYSED:
        built[output] = not_analysed(output, "A slice is missing.", sources, provenance)
    assert built.keys() >= {*IODS, *NOT_ANALYSED, "keyimage", "keyframes", "gsps", "rtstruct", "pdf", "mesh"}
    return built


def made_of(output: str, found: Findings, sources: Sources) -> Dataset | None:
    return build(output, found, sources, results.provenance(outputs=OUTPUTS))


def items(ds: Dataset) -> Iterator[Dataset]:
    """Go through all content items of a document."""
    for item in ds.get("ContentSequence") or ():
        yield item
        yield from items(item)


def test_every_object_names_the_algorithm(made: dict[str, Dataset]) -> None:
    algorithm = results.algorithm()
    for output, ds in made.items():
        (item,) = ds.ContributingEquipmentSequence
        said = (item.Manufacturer, item.ManufacturerModelName, item.SoftwareVersions[0], item.DeviceUID)
        wanted = (algorithm.manufacturer, algorithm.name, algorithm.version, algorithm.device_uid)
        assert said == wanted, output
        assert item.PurposeOfReferenceCodeSequence[0].CodeValue == "109102", "as the document says"


def test_every_object_lies_in_the_study_of_the_images(made: dict[str, Dataset], sources: Sources) -> None:
    for output, ds in made.items():
        assert ds.StudyInstanceUID == sources.header.StudyInstanceUID, output
        assert (str(ds.PatientName), ds.PatientID) == ("Doe^Jane", sources.header.PatientID), output


def test_the_result_objects_are_of_the_iods_that_the_profile_names(made: dict[str, Dataset]) -> None:
    assert {output: str(made[output].SOPClassUID) for output in IODS} == IODS


def test_the_report_is_a_measurement_report(made: dict[str, Dataset]) -> None:
    for output in ("sr", "report"):
        (template,) = made[output].ContentTemplateSequence
        assert (template.MappingResource, template.TemplateIdentifier) == ("DCMR", "1500")


def test_segmentation_and_report_share_tracking_identifiers(made: dict[str, Dataset]) -> None:
    (segment,) = made["seg"].SegmentSequence
    names = {"112039": "TextValue", "112040": "UID"}
    said = {
        str(item[names[code]].value)
        for item in items(made["sr"])
        if (code := item.ConceptNameCodeSequence[0].CodeValue) in names
    }
    assert {segment.TrackingID, segment.TrackingUID} <= said


def test_every_test_that_the_document_names_is_there() -> None:
    text = (ROOT / "docs/air.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[a-z_/]+\.py)::(\w+)`", text)
    assert len(named) > 12
    for path, name in named:
        assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), f"{path}::{name}"
    requirements = text.split("## Requirements")[1].split("\n## ")[0]
    rows = [line for line in requirements.splitlines() if re.match(r"\| [A-Z]", line) and "Read in" not in line]
    assert len(rows) > 10
    assert all("::test_" in row for row in rows), "a requirement without a test"
