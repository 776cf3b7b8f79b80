"""PDF reports: what a reader finds on the pages, in the object, and what must not be there."""

import io
import subprocess
import sysconfig
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pypdfium2
import pytest
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from dicomai.errors import InferenceError
from dicomai.findings import Evaluation, Findings, Measurement, Outcome, Score
from dicomai.outputs import Predecessor, Sources, build, encode, restate
from tests import results, synthetic

SHAPE = (5, 40, 40)
DCIODVFY = Path(sysconfig.get_path("scripts")) / "dciodvfy"


def of(**attributes: Any) -> Sources:
    return results.sources(synthetic.instances(synthetic.series(shape=SHAPE, spacing=(3.0, 1.0, 1.0), **attributes)))


def built(found: Findings, sources: Sources, **changes: Any) -> Dataset:
    """Build a report and read it back from its bytes."""
    ds = build("pdf", found, sources, results.provenance(**changes))
    assert ds is not None
    return pydicom.dcmread(io.BytesIO(encode(ds)))


def pages(ds: Dataset) -> list[str]:
    """Read the text of each page."""
    assert ds.EncapsulatedDocument[ds.EncapsulatedDocumentLength :] in (b"", b"\0")
    document = pypdfium2.PdfDocument(ds.EncapsulatedDocument[: ds.EncapsulatedDocumentLength])
    read = [page.get_textpage().get_text_range().replace("\r\n", "\n") for page in document]
    document.close()
    return read


def colors(ds: Dataset) -> set[tuple[int, ...]]:
    """Render the first page and give the colours on it."""
    document = pypdfium2.PdfDocument(ds.EncapsulatedDocument)
    picture = document[0].render().to_pil().convert("RGB")
    document.close()
    return {color for _, color in picture.getcolors(picture.width * picture.height)}


def test_page_says_what_was_found_and_by_what_and_never_of_whom() -> None:
    one, other = results.segment(1, "Große <b>Zyste"), results.segment(2, "Tumour")
    labels = results.ball(SHAPE)
    method = results.algorithm(description="Finds a brain.", reference="doi:10.1/x").family
    found = replace(
        results.findings(labels, segments=[one, other], remarks=["Outside of the validated input: 3 mm & more."]),
        measurements=(Measurement(results.VOLUME, 1292.3248, results.CM3, one, method),),
    )
    secret = {"PatientName": "Secret^Name", "PatientID": "ID-77", "PatientBirthDate": "19700102"}
    sources = of(**secret, StudyDate="20240203", SeriesDescription="Miller^T1", SeriesNumber=3, AccessionNumber="ACC-9")
    ds = built(found, sources)
    (page,) = pages(ds)
    assert "made by an algorithm, and not verified by a person" in page
    assert "Analysed: series 3 (CT), 5 slices of 40 x 40 pixels." in page
    assert "Outside of the validated input: 3 mm & more." in page
    assert "Große <b>Zyste Volume 1292 cm3 Artificial Intelligence" in page.replace("\n", " ")
    assert "Looked for and not found\nTumour" in page
    assert "brain_extraction 1.0.2, by University of Somewhere; weights 39a7b2b5f799faa1." in page
    assert "Made with dicomai 0.1.0 at 2025-12-31 23:30 UTC." in page
    assert "AI, unverified: brain_extraction 1.0.2" in page
    assert "'?'" not in page
    assert one.color in colors(ds)
    document = page.encode() + ds.EncapsulatedDocument
    for word in (b"Secret", b"ID-77", b"1970", b"2024", b"Miller", b"ACC-9"):
        assert word not in document
    assert (str(ds.PatientName), ds.AccessionNumber) == ("Secret^Name", "ACC-9")


def test_attributes_are_those_of_an_unverified_document() -> None:
    sources = of(SeriesNumber=3)
    old = Predecessor(
        "pdf", str(sources.header.StudyInstanceUID), "1.2.3", "1.2.4", "1.2.840.10008.5.1.4.1.1.104.1", 9006
    )
    ds = built(results.findings(results.ball(SHAPE)), sources, supersedes=(old,))
    assert ds.SOPClassUID == "1.2.840.10008.5.1.4.1.1.104.1"
    assert (ds.Modality, ds.MIMETypeOfEncapsulatedDocument) == ("DOC", "application/pdf")
    assert (ds.VerificationFlag, ds.BurnedInAnnotation) == ("UNVERIFIED", "NO")
    assert ds.DocumentTitle == "AI result, unverified: brain_extraction"
    assert ds.SeriesNumber == 9006
    assert ds.ContributingEquipmentSequence[0].DeviceUID == results.algorithm().device_uid
    named = [item.ReferencedSOPInstanceUID for item in ds.SourceInstanceSequence]
    assert named == [instance.sop_instance_uid for instance in sources.instances]
    (study,) = ds.PredecessorDocumentsSequence
    assert study.ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID == "1.2.4"
    assert "It replaces the document in series 9006." in pages(ds)[0]


def test_same_work_gives_the_same_bytes_and_a_corrected_patient_the_same_pages() -> None:
    sources, found = of(), results.findings(results.ball(SHAPE))
    one, two = (build("pdf", found, sources, results.provenance()) for _ in range(2))
    assert one is not None
    assert two is not None
    assert encode(one) == encode(two)
    newest = pydicom.dcmread(io.BytesIO(encode(one)))
    newest.PatientName = "Corrected^Name"
    assert restate(one, newest).EncapsulatedDocument == one.EncapsulatedDocument


def test_letters_that_the_font_lacks_are_said_to_be_missing() -> None:
    found = results.findings(results.ball(SHAPE), segments=[results.segment(1, "脳 Мозг ő")])
    (page,) = pages(built(found, of()))
    assert "? ???? o Volume" in page
    assert "A '?' stands for a letter that this document's font does not have." in page


def test_where_nothing_was_found_the_page_says_what_was_looked_for() -> None:
    found = Findings(results.findings(np.zeros(SHAPE, np.uint8)).layers, (), Outcome.NEGATIVE)
    (page,) = pages(built(found, of()))
    assert "Looked for and not found\nIntracranial structure" in page
    assert "Result\nAbout" not in page


def test_what_is_about_no_segment_stands_in_the_table() -> None:
    pneumonia, present = Code("233604007", "SCT", "Pneumonia"), Code("52101004", "SCT", "Present")
    score = Score(Code("112058", "DCM", "Calcium score"), 112.4, Code("1", "UCUM", "no units"))
    found = Findings(
        (), (), Outcome.FINDINGS, evaluations=(Evaluation(pneumonia, present, None, 0.934),), scores=(score,)
    )
    (page,) = pages(built(found, of()))
    assert "Pneumonia Classification Present, probability 0.93" in page
    assert "Calcium score Score 112" in page


def test_many_segments_fill_several_pages_each_with_the_mark_and_a_head() -> None:
    labels = np.zeros(SHAPE, np.uint8)
    for number in range(1, 91):
        labels[number % 5, 2 * (number // 20) : 2 * (number // 20) + 2, 2 * (number % 20)] = number
    segments = [results.segment(number, f"Part {number} {'long ' * 10}") for number in range(1, 91)]
    found = results.findings(labels, segments=segments)
    read = pages(built(replace(found, measurements=found.measurements[1:]), of()))
    assert len(read) > 2
    assert all(f"AI, unverified: brain_extraction 1.0.2 Page {n}" in page for n, page in enumerate(read, 1))
    assert all(f"Part {number} long" in "".join(read) for number in range(1, 91))
    assert "Result\nAbout Quantity Value Method" in read[0]
    assert "not measured" in read[0]
    assert "About Quantity Value Method" in read[1]


def multi_frame() -> Sequence[Any]:
    return [synthetic.enhanced(shape=SHAPE, orientation="coronal")]


@pytest.mark.parametrize("case", ["axial", "multi-frame", "Japanese"])
def test_validator_finds_no_fault(case: str, tmp_path: Path) -> None:
    images = {
        "axial": lambda: synthetic.series(shape=SHAPE),
        "multi-frame": multi_frame,
        "Japanese": lambda: synthetic.series(
            shape=SHAPE, SpecificCharacterSet=["", "ISO 2022 IR 87"], PatientName="Yamada^Tarou=山田^太郎=やまだ^たろう"
        ),
    }[case]()
    sources = results.sources(synthetic.instances(images))
    old = Predecessor(
        "pdf", str(sources.header.StudyInstanceUID), "1.2.3", "1.2.4", "1.2.840.10008.5.1.4.1.1.104.1", 9006
    )
    ds = build("pdf", results.findings(results.ball(SHAPE)), sources, results.provenance(supersedes=(old,)))
    assert ds is not None
    path = tmp_path / "report.dcm"
    path.write_bytes(encode(ds))
    done = subprocess.run([DCIODVFY, path], capture_output=True, text=True, check=False, errors="replace")
    assert "EncapsulatedPDF" in done.stderr
    assert not [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]


def test_label_map_of_another_grid_is_refused() -> None:
    with pytest.raises(InferenceError, match="another"):
        built(results.findings(np.zeros((5, 8, 8), np.uint8)), of())


def test_what_the_images_have_drawn_on_them_is_said_of_the_document() -> None:
    sources = of(BurnedInAnnotation=lambda z: "YES" if z == 4 else "NO")
    ds = built(results.findings(results.ball(SHAPE)), sources)
    assert ds.BurnedInAnnotation == "YES"
    assert "names no patient" not in pages(ds)[0]
    assert "Letters at a slice's edges" in pages(ds)[0]
