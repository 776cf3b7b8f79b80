"""Key frames: every slice with a finding, in order, each with what lies on it; a bounded number, and it is said."""

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from dicomai import render, words
from dicomai.findings import Detection, Evaluation, Findings, Outcome, Region, Shape
from dicomai.outputs import Predecessor, Sources, build, encode, keyframes, not_analysed
from tests import results, synthetic

GAP = 6  # pixels around a slice
NODULE, LUNG = Code("27925004", "SCT", "Nodule"), Code("39607008", "SCT", "Lung")


def built(found: Findings, sources: Sources, **changes: Any) -> Dataset:
    """Build key frames and read them back from their bytes."""
    ds = build("keyframes", found, sources, results.provenance(**changes))
    assert ds is not None
    return pydicom.dcmread(io.BytesIO(encode(ds)))


def of(shape: tuple[int, int, int] = (9, 32, 40), **attributes: Any) -> Sources:
    return results.sources(synthetic.instances(synthetic.series(shape=shape, spacing=(3.0, 1.0, 1.0), **attributes)))


def shown(ds: Dataset, sources: Sources) -> list[int]:
    """Say which slices are named as shown."""
    by_uid = {frame.instance.sop_instance_uid: z for z, frame in enumerate(sources.frames)}
    return [by_uid[item.ReferencedSOPInstanceUID] for item in ds.SourceImageSequence]


def near(picture: NDArray[Any], color: tuple[int, int, int]) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = np.abs(picture.astype(int) - color).max(axis=-1) < 50
    return found


@pytest.fixture
def captions(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Collect the lines below each slice."""
    said: list[list[str]] = []
    real = render.compose

    def compose(panels: Any, lines: Any, **options: Any) -> Any:
        said.append([line.text for line in lines])
        return real(panels, lines, **options)

    monkeypatch.setattr(render, "compose", compose)
    return said


def two_parts() -> Findings:
    """Find something on slices 2 to 4, and something else on 4 and 7."""
    labels = np.zeros((9, 32, 40), np.uint8)
    labels[2:5, 4:12, 6:20] = 1
    labels[[4, 7], 20:26, 30:36] = 2
    return results.findings(
        labels,
        segments=[results.segment(1, "One"), results.segment(2, "Two"), results.segment(3, "Three")],
        remarks=["Outside of the validated input."],
    )


def test_every_slice_with_a_finding_is_a_frame_with_its_contours_and_captions(captions: list[list[str]]) -> None:
    sources = of(reverse=True, PatientName="Secret^Name", PatientID="ID-77")
    found = two_parts()
    ds = built(found, sources)
    assert shown(ds, sources) == [2, 3, 4, 7]
    assert ds.pixel_array.shape == (4, ds.Rows, ds.Columns, 3)
    colors = [results.segment(n).color for n in (1, 2)]
    for frame, has in zip(ds.pixel_array, [(1, 0), (1, 0), (1, 1), (0, 1)], strict=True):
        slice_ = frame[GAP : GAP + 416, GAP : GAP + 520]  # 13 times enlarged
        assert [bool(near(slice_, color).sum() > 100) for color in colors] == [bool(one) for one in has]
        assert near(slice_[:30, :150], render.YELLOW).sum() > 40, "the mark"
    below = [" | ".join(lines) for lines in captions]
    for text, has in zip(below, [(1, 0), (1, 0), (1, 1), (0, 1)], strict=True):
        assert text.startswith("AI, unverified: brain_extraction 1.0.2")
        assert [f"{name}  1292 cm3" in text for name in ("One", "Two")] == [bool(one) for one in has]
        assert "Looked for, not found: Three." in text
        assert "Outside of the validated input." in text
        assert "Secret" not in text
        assert "ID-77" not in text


def test_a_contour_lies_on_the_edge_of_the_mask() -> None:
    sources = of()
    y, x = np.nonzero(near(built(two_parts(), sources).pixel_array[0], results.segment(1).color)[: 416 + GAP])
    np.testing.assert_allclose([(y.min() - GAP) / 13, (y.max() - GAP) / 13], [4, 12], atol=0.4)
    np.testing.assert_allclose([(x.min() - GAP) / 13, (x.max() - GAP) / 13], [6, 20], atol=0.4)


def test_attributes_are_those_of_a_multi_frame_picture_without_a_scale() -> None:
    sources = of(BodyPartExamined="HEAD", SeriesNumber=3)
    old = Predecessor("keyframes", "1.2", "1.2.3", "1.2.4", keyframes.SOP_CLASS_UID, 9010)
    ds = built(two_parts(), sources, supersedes=(old,))
    assert ds.SOPClassUID == "1.2.840.10008.5.1.4.1.1.7.4"
    assert (ds.Modality, ds.ConversionType, ds.BurnedInAnnotation) == ("OT", "WSD", "YES")
    assert (ds.PhotometricInterpretation, ds.SamplesPerPixel, ds.BitsAllocated) == ("RGB", 3, 8)
    assert ds.FrameIncrementPointer == 0x00182001
    assert list(ds.PageNumberVector) == [1, 2, 3, 4]
    assert "PixelSpacing" not in ds
    assert ds.BodyPartExamined == "HEAD"
    assert ds.SeriesDescription == "AI brain_extraction 1.0.2 of S3, unverified, supersedes S9010"
    assert list(ds.PatientOrientation) == ["L", "P"]


def test_there_are_no_more_than_fit_and_every_frame_says_so(
    captions: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyframes, "MOST", 5)
    labels = np.zeros((20, 32, 40), np.uint8)
    labels[1:19, 4:12, 6:20] = 1
    labels[15, 20:26, 30:36] = 2
    found = results.findings(labels, segments=[results.segment(1, "One"), results.segment(2, "Two")])
    sources = of((20, 32, 40))
    chosen = shown(built(found, sources), sources)
    assert len(chosen) == 5
    assert 15 in chosen, "where a segment is largest"
    assert (chosen[0], chosen[-1]) == (1, 18)
    assert max(np.diff(chosen)) < 8
    assert all("5 of 18 slices with findings are shown." in lines for lines in captions)
    assert not any("on none of these slices" in line for lines in captions for line in lines)


def test_a_detection_is_on_every_slice_that_it_reaches(captions: list[list[str]]) -> None:
    sources = of()
    region = Region(Shape.BOX, (-25.0, -20.0, 20.0 + 4 * 3.0), ((4.0, 0, 0), (0, 4.0, 0), (0, 0, 4.0)))
    found = Findings((), (), Outcome.FINDINGS, detections=(Detection(NODULE, results.ABNORMALITY, LUNG, region, 0.9),))
    ds = built(found, sources)
    assert shown(ds, sources) == [3, 4, 5]
    assert all(near(frame[: 416 + GAP], words.DETECTED).any() for frame in ds.pixel_array)
    assert all(any(line.startswith("Nodule, Lung: at R 25.0") for line in lines) for lines in captions)


def test_where_nothing_was_found_one_frame_says_what_was_looked_for(captions: list[list[str]]) -> None:
    sources = of()
    ds = built(results.findings(np.zeros((9, 32, 40), np.uint8), outcome=Outcome.NEGATIVE), sources)
    assert (shown(ds, sources), ds.NumberOfFrames) == ([4], 1)
    assert "FrameIncrementPointer" not in ds
    assert "Looked for, not found: Intracranial structure." in captions[0]
    asked = Evaluation(Code("233604007", "SCT", "Pneumonia"), Code("52101004", "SCT", "Present"), LUNG, 0.9)
    built(Findings((), (), Outcome.FINDINGS, evaluations=(asked,)), sources)
    assert "Pneumonia, Lung: Present, probability 0.9" in captions[1]


def test_names_without_end_do_not_make_a_frame_without_end(captions: list[list[str]]) -> None:
    labels = np.zeros((3, 40, 40), np.uint8)
    labels[1] = np.arange(1600).reshape(40, 40) % 30 + 1
    found = results.findings(labels, segments=[results.segment(n, f"Part {n}") for n in range(1, 60)])
    built(found, of((3, 40, 40)))
    assert len(captions[0]) == 1 + 12 + 1 + 1
    assert "and on this slice: " in captions[0][13]
    assert captions[0][13].endswith("and 6 more.")
    assert captions[0][14].endswith("and 17 more.")


@pytest.mark.parametrize("output", ["keyframes", "reportimage"])
def test_it_says_what_it_replaces_also_the_picture_that_there_is_no_result(
    output: str, captions: list[list[str]]
) -> None:
    old = Predecessor(output, "1.2", "1.2.3", "1.2.4", "1.2.5", 9011)
    assert build("keyframes", two_parts(), of(), results.provenance(supersedes=(old,))) is not None
    assert all("These pictures replace what is in series 9011." in below for below in captions)


@pytest.mark.parametrize("output", ["keyimage", "keyframes"])
def test_a_picture_that_there_is_no_result_names_an_earlier_one_and_no_date(
    output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    real = render.page

    def page(lines: Any, *size: int) -> Any:
        drawn.extend(line.text for line in lines)
        return real(lines, *size)

    monkeypatch.setattr(render, "page", page)
    old = Predecessor(output, "1.2", "1.2.3", "1.2.4", "1.2.5", 9011)
    sources = of(StudyDate="20260201")
    not_analysed("reportimage", "A slice is missing.", sources, results.provenance(supersedes=(old,)))
    assert any(line.startswith("An earlier result, in series 9011,") for line in drawn)
    assert f"Images: {sources.header.Modality}." in drawn
    assert "2026" not in " ".join(drawn)


def test_same_work_gives_the_same_bytes() -> None:
    sources = of()
    one, two = (build("keyframes", two_parts(), sources, results.provenance()) for _ in range(2))
    assert one is not None
    assert two is not None
    assert encode(one) == encode(two)
    other = build("keyframes", replace(two_parts(), remarks=()), sources, results.provenance(generation=1))
    assert other is not None
    assert other.SOPInstanceUID != one.SOPInstanceUID
