"""Whose result it is: patient, study, character set, time zone, identifiers, description, as the sources have them."""

import io
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pydicom
import pytest
from highdicom._standard_utils import get_module_attribute_map
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import ImplicitVRLittleEndian

from dicomai.errors import ConfigurationError, IdentityError
from dicomai.outputs import Predecessor, Sources, build, encode, restate
from dicomai.outputs.common import series_description
from dicomai.study import Instance
from tests import results, synthetic

SHAPE = (3, 8, 8)
NAMES = {
    "ISO 2022 IR 87": ("\\ISO 2022 IR 87", "Yamada^Tarou=山田^太郎=やまだ^たろう"),
    "ISO 2022 IR 13 and 87": ("ISO 2022 IR 13\\ISO 2022 IR 87", "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう"),
    "Greek": ("ISO_IR 126", "Διονυσιος^Παπαδοπουλος"),
    "GB18030": ("GB18030", "Wang^XiaoDong=王^小东"),
    "UTF-8": ("ISO_IR 192", "Wang^XiaoDong=王^小東"),
    "Latin 1": ("ISO_IR 100", "Müller^Jürgen"),
    "none": (None, "Doe^Jane"),
}


def images(**attributes: Any) -> list[FileDataset]:
    return synthetic.series(shape=SHAPE, **attributes)


def from_images(made: list[FileDataset]) -> Sources:
    return results.sources(synthetic.instances(made))


def result(sources: Sources, output: str = "sr", remarks: tuple[str, ...] = (), **changes: Any) -> Dataset:
    """Build a result and read it back from its bytes."""
    found = results.findings(results.ball(SHAPE), remarks=remarks)
    return read(encode(built(found, sources, output, **changes)))


def built(found: Any, sources: Sources, output: str, **changes: Any) -> Dataset:
    ds = build(output, found, sources, results.provenance(**changes))
    assert ds is not None
    return ds


def read(data: bytes) -> Dataset:
    return pydicom.dcmread(io.BytesIO(data))


@pytest.mark.parametrize("output", ["seg", "sr", "keyimage"])
@pytest.mark.parametrize("case", NAMES)
def test_patient_is_named_in_the_result_as_in_the_source(case: str, output: str) -> None:
    character_set, name = NAMES[case]
    given_set = character_set.split("\\") if character_set and "\\" in character_set else character_set
    sources = from_images(images(SpecificCharacterSet=given_set, PatientName=name))
    original = sources.frames[0].instance.dataset().get_item("PatientName").value
    ds = result(sources, output)
    assert ds.get_item("PatientName").value == original, "not the bytes that were received"
    assert str(ds.PatientName) == name
    if character_set is None:
        assert "SpecificCharacterSet" not in ds
    else:
        assert ds.SpecificCharacterSet == given_set


@pytest.mark.parametrize("case", NAMES)
def test_own_text_outside_the_source_set_costs_nobody_their_name(case: str) -> None:
    character_set, name = NAMES[case]
    given_set = character_set.split("\\") if character_set and "\\" in character_set else character_set
    sources = from_images(images(SpecificCharacterSet=given_set, PatientName=name))
    remark = "Serie «Kopf» · череп · 頭部"
    ds = result(sources, remarks=(remark,))
    assert str(ds.PatientName) == name
    assert remark in [str(item.get("TextValue")) for item in walk(ds)]


@pytest.mark.parametrize("character_set", [None, "ISO_IR 166"])
def test_name_that_cannot_be_decoded_stays_as_it_is_and_our_text_gives_way(character_set: str | None) -> None:
    # Latin 1 bytes under no character set or under Thai, where some stand for nothing: common, wrong, and shown rightly
    # by many a PACS.
    made = images(SpecificCharacterSet=character_set)
    stored = [synthetic.encode(ds).replace(b"Synthetic^Sample", "Müller-Lüdensche".encode("latin-1")) for ds in made]
    instances = [Instance.read(lambda data=data: io.BytesIO(data), "x") for data in stored]  # type: ignore[misc]
    ds = result(results.sources(instances), remarks=("Schädel «x»",))
    assert ds.get_item("PatientName").value == "Müller-Lüdensche".encode("latin-1")
    assert ds.get("SpecificCharacterSet") == character_set
    assert "Schadel x" in [str(item.get("TextValue")) for item in walk(ds)]


@pytest.mark.parametrize(("remark", "spelled"), [("Kopf 頭部", "Kopf"), ("頭部", "?")])
def test_text_that_vanishes_leaves_no_blank_that_is_lost_on_the_way(remark: str, spelled: str) -> None:
    made = images()
    stored = [synthetic.encode(ds).replace(b"Synthetic^Sample", "Müller-Lüdensche".encode("latin-1")) for ds in made]
    instances = [Instance.read(lambda data=data: io.BytesIO(data), "x") for data in stored]  # type: ignore[misc]
    sources = results.sources(instances)
    data = encode(built(results.findings(results.ball(SHAPE), remarks=(remark,)), sources, "sr"))
    assert spelled in [str(item.get("TextValue")) for item in walk(read(data))]
    assert encode(restate(read(data), sources.newest)) == data


def walk(ds: Dataset) -> list[Dataset]:
    return [ds, *(inner for item in ds.get("ContentSequence") or () for inner in walk(item))]


@pytest.mark.parametrize("output", ["seg", "sr", "keyimage"])
def test_attributes_that_break_the_standard_are_copied_as_received(output: str) -> None:
    odd = {
        0x00100020: b"AN ID OF FAR MORE THAN THE SIXTY-FOUR CHARACTERS THAT A LONG STRING MAY HAVE",
        0x00081030: b"x" * 70,
        0x00100030: b"1970.01.01",
        0x00101000: b"OTHER\\IDS ",
    }
    made = images()
    for ds in made:
        for tag, value in odd.items():
            vr = pydicom.datadict.dictionary_VR(tag)
            ds[tag] = pydicom.dataelem.RawDataElement(pydicom.tag.Tag(tag), vr, len(value), value, 0, False, True)
            ds.set_original_encoding(False, True, "iso8859")
    ds = result(from_images(made), output)
    for tag, value in odd.items():
        assert ds.get_item(tag).value == value, hex(tag)


@pytest.mark.parametrize("output", ["seg", "sr", "keyimage"])
def test_an_optional_value_without_the_form_of_its_vr_is_left_out(output: str) -> None:
    made = images()
    for ds in made:
        for tag, vr, value in ((0x00101010, "AS", b"42"), (0x00101020, "DS", b"1.75"), (0x00101030, "DS", b"70 kg ")):
            ds[tag] = pydicom.dataelem.RawDataElement(pydicom.tag.Tag(tag), vr, len(value), value, 0, False, True)
    ds = result(from_images(made), output)
    assert "PatientAge" not in ds
    assert "PatientWeight" not in ds
    assert ds.PatientSize == 1.75


@pytest.mark.parametrize("implicit", [False, True])
def test_procedure_named_in_japanese_is_reported_in_japanese(implicit: bool) -> None:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "MRHEAD", "99SITE", "頭部MRI"
    made = images(SpecificCharacterSet=["", "ISO 2022 IR 87"], ProcedureCodeSequence=[code])
    if implicit:
        for ds in made:
            ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    sources = from_images(made)
    data = encode(built(results.findings(results.ball(SHAPE)), sources, "sr"))
    ds = read(data)
    assert ds.ProcedureCodeSequence[0].CodeMeaning == "頭部MRI"
    reported = [item for item in walk(ds) if "121058" in str(item.get("ConceptNameCodeSequence"))]
    assert [item.ConceptCodeSequence[0].CodeMeaning for item in reported] == ["頭部MRI"]
    assert encode(restate(read(data), synthetic.instances(made)[0].header)) == data


def test_source_in_implicit_vr_gives_the_same_attributes() -> None:
    made = images(SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Jürgen", PatientWeight="61.2350")
    for ds in made:
        ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
        ds.ReferencedStudySequence = [Dataset()]
        ds.ReferencedStudySequence[0].ReferencedSOPInstanceUID = "1.2.3"
    ds = result(from_images(made))
    assert str(ds.PatientName) == "Müller^Jürgen"
    assert str(ds.PatientWeight) == "61.2350"
    assert ds.ReferencedStudySequence[0].ReferencedSOPInstanceUID == "1.2.3"


@pytest.mark.parametrize("output", ["seg", "sr", "keyimage"])
def test_patient_and_study_come_from_the_newest_instance(output: str) -> None:
    made = images()
    corrected = images(study_uid=made[0].StudyInstanceUID, PatientName="Right^Name", PatientID="7",
                       AccessionNumber="B2", StudyDescription=None, EthnicGroup="Corrected")  # fmt: skip
    newest = synthetic.instances(corrected)[0].header
    ds = result(replace(from_images(made), newest=newest), output)
    assert (ds.PatientName, ds.PatientID, ds.AccessionNumber) == ("Right^Name", "7", "B2")
    assert ds.EthnicGroup == "Corrected"
    assert "StudyDescription" not in ds
    assert (ds.StudyInstanceUID, ds.StudyDate, ds.StudyID) == (made[0].StudyInstanceUID, "20240102", "1")


def test_every_attribute_of_the_patient_and_study_modules_is_inherited() -> None:
    # What must not come along is as certain: the scanner's institution, station, people and equipment.
    made = images(InstitutionName="Test Hospital", StationName="ROOM1", OperatorsName="Op^A", DeviceSerialNumber="0001")
    table = get_module_attribute_map()
    keywords = [item["keyword"] for name in ("patient", "general-study", "patient-study") for item in table[name]
                if not item["path"]]  # fmt: skip
    strings = [k for k in keywords if pydicom.datadict.dictionary_VR(k) in ("LO", "SH", "PN", "LT", "ST")]
    for ds in made:
        for keyword in strings:
            setattr(ds, keyword, f"V {keyword}"[:16])
    ds = result(from_images(made))
    assert {k: str(ds.get(k)) for k in strings} == {k: f"V {k}"[:16] for k in strings}
    for keyword in ("InstitutionName", "StationName", "OperatorsName"):
        assert keyword not in ds
    assert "Test Hospital" not in str(ds)
    assert (ds.Manufacturer, ds.DeviceSerialNumber) == ("dicomai", results.provenance().installation)


def test_type_2_attributes_are_there_if_only_empty() -> None:
    missing = dict.fromkeys(("PatientBirthDate", "AccessionNumber", "ReferringPhysicianName", "StudyTime", "StudyID"))
    ds = result(from_images(images(**missing)))
    for keyword in missing:
        assert ds[keyword].is_empty


@pytest.mark.parametrize("output", ["seg", "sr", "keyimage"])
def test_restating_the_same_patient_changes_no_byte(output: str) -> None:
    for character_set, name in NAMES.values():
        given_set = character_set.split("\\") if character_set and "\\" in character_set else character_set
        made = images(SpecificCharacterSet=given_set, PatientName=name, TimezoneOffsetFromUTC="+0900",
                      PatientComments="with trailing spaces   ")  # fmt: skip
        sources = from_images(made)
        for remarks in ((), ("頭部 and Kopfschädel",)):
            found = results.findings(results.ball(SHAPE), remarks=remarks)
            str(sources.newest.PatientComments)  # looked at, as identity checks do
            data = encode(built(found, sources, output))
            fresh = synthetic.instances(made)[0].header
            assert encode(restate(read(data), fresh)) == data, name


def test_restating_puts_the_corrected_patient_in_and_leaves_all_else() -> None:
    made = images(SpecificCharacterSet="ISO_IR 100", PatientName="Muller^Jurgen", PatientSize="1.8")
    remark = "Außerhalb des geprüften Bereichs"
    before = result(from_images(made), remarks=(remark,))
    corrected = images(study_uid=made[0].StudyInstanceUID, SpecificCharacterSet="ISO_IR 192",
                       PatientName="Müller^Jürgen", PatientID="8")  # fmt: skip
    after = read(encode(restate(before, synthetic.instances(corrected)[0].header)))
    assert (str(after.PatientName), after.PatientID, after.SpecificCharacterSet) == ("Müller^Jürgen", "8", "ISO_IR 192")
    assert "PatientSize" not in after
    assert remark in [str(item.get("TextValue")) for item in walk(after)]
    changed = {element.keyword for element in after if element != before.get(element.tag)}
    assert changed == {"PatientName", "PatientID", "SpecificCharacterSet"}
    assert str(before.PatientName) == "Muller^Jurgen", "the object that was given has changed"


def test_result_does_not_follow_its_images_into_another_study() -> None:
    ds = result(from_images(images()))
    with pytest.raises(IdentityError, match="by hand"):
        restate(ds, images()[0])


@pytest.mark.parametrize(
    ("attributes", "zone", "expected"),
    [
        ({"TimezoneOffsetFromUTC": "+0900"}, "Europe/Berlin", ("+0900", "20260101", "083015")),
        ({"TimezoneOffsetFromUTC": "-0330"}, "Europe/Berlin", ("-0330", "20251231", "200015")),
        ({}, "Europe/Berlin", (None, "20260101", "003015")),
        ({}, "America/New_York", (None, "20251231", "183015")),
        ({"TimezoneOffsetFromUTC": "JST"}, "Asia/Tokyo", (None, "20260101", "083015")),
    ],
)
@pytest.mark.parametrize("output", ["seg", "sr", "keyimage"])
def test_times_are_in_the_sources_zone(
    output: str, attributes: dict[str, str], zone: str, expected: tuple[str | None, str, str]
) -> None:
    ds = result(from_images(images(**attributes)), output, timezone=zone)
    assert ds.get("TimezoneOffsetFromUTC") == expected[0]
    for date, time in (("ContentDate", "ContentTime"), ("SeriesDate", "SeriesTime"),
                       ("InstanceCreationDate", "InstanceCreationTime")):  # fmt: skip
        assert (ds[date].value, ds[time].value) == expected[1:]
    contributed = ds.ContributingEquipmentSequence[0].ContributionDateTime
    assert str(contributed) == expected[1] + expected[2]
    assert (ds.StudyDate, ds.StudyTime) == ("20240102", "030405")


def test_corrected_zone_moves_the_result_with_it() -> None:
    made = images(TimezoneOffsetFromUTC="+0000")
    ds = result(from_images(made))
    corrected = images(study_uid=made[0].StudyInstanceUID, TimezoneOffsetFromUTC="+0100")
    after = restate(ds, corrected[0])
    assert (after.TimezoneOffsetFromUTC, after.ContentDate, after.ContentTime) == ("+0100", "20260101", "003015")


def test_contributing_equipment_changes_when_the_model_does() -> None:
    sources = from_images(images())
    items = [
        result(sources, algorithm=results.algorithm(**changed)).ContributingEquipmentSequence[0]
        for changed in ({}, {"version": "1.0.3"}, {"weights_digest": "other"}, {})
    ]
    uids = [item.DeviceUID for item in items]
    assert uids[0] == uids[3]
    assert len(set(uids)) == 3
    assert items[1].SoftwareVersions[0] == "1.0.3"
    assert items[0].Manufacturer == "University of Somewhere"
    assert items[0].PurposeOfReferenceCodeSequence[0].CodeValue == "109102"


def test_identifiers_are_derived_from_the_work() -> None:
    sources = from_images(images())
    seg, sr = result(sources, "seg"), result(sources, "sr")
    assert seg.SeriesInstanceUID != sr.SeriesInstanceUID
    assert (seg.SeriesNumber, sr.SeriesNumber) == (9000, 9001)
    again = result(sources, "seg")
    assert again.SOPInstanceUID == seg.SOPInstanceUID
    for changed in ({"generation": 1}, {"work_digest": "other"}):
        other = result(sources, "seg", **changed)
        assert other.SOPInstanceUID != seg.SOPInstanceUID
        assert other.SeriesInstanceUID != seg.SeriesInstanceUID
    assert seg.file_meta.MediaStorageSOPInstanceUID == seg.SOPInstanceUID


@given(st.text(), st.integers(), st.text())
def test_derived_uids_are_well_formed(digest: str, generation: int, n: str) -> None:
    uid = replace(results.provenance(), work_digest=digest, generation=generation).uid("seg", n)
    assert re.fullmatch(r"2\.25\.[1-9][0-9]{0,38}", uid)


def test_series_numbers_avoid_those_in_use() -> None:
    provenance = results.provenance(series_numbers=frozenset({2, 9000, 9002, 9003}))
    assert (provenance.series_number("seg"), provenance.series_number("sr")) == (9001, 9004)


@pytest.mark.parametrize(
    ("name", "version", "supersedes", "expected"),
    [
        ("brain_extraction", "1.0.2", None, "AI brain_extraction 1.0.2 of S3, unverified"),
        ("brain_extraction", "1.0.2", 9000, "AI brain_extraction 1.0.2 of S3, unverified, supersedes S9000"),
        ("a" * 40, "1.0.2", 9000, "AI " + "a" * 37 + " 1.0.2 of S3, unverified"),
        ("a" * 64, "9" * 64, None, "AI " + "a" * 26 + " " + "9" * 16 + " of S3, unverified"),
    ],
)
def test_series_description_always_says_unverified(
    name: str, version: str, supersedes: int | None, expected: str
) -> None:
    predecessors = (Predecessor("seg", "1", "2", "3", "4", supersedes),) if supersedes else ()
    provenance = results.provenance(algorithm=results.algorithm(name=name, version=version), supersedes=predecessors)
    description = series_description(from_images(images()), provenance, "seg")
    assert description == expected
    assert len(description) <= 64


def test_series_without_a_number_is_described_all_the_same() -> None:
    ds = result(from_images(images(SeriesNumber=None)))
    assert ds.SeriesDescription == "AI brain_extraction 1.0.2, unverified"


def test_unknown_output_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"'nifti'.*seg, sr"):
        build("nifti", results.findings(results.ball(SHAPE)), from_images(images()), results.provenance())


def test_packaged_study_with_its_odd_uids() -> None:
    folder = Path(__file__).parents[2] / "dicomai/demo/study"
    instances = [Instance.read(lambda path=path: path.open("rb"), path.name) for path in sorted(folder.glob("*.dcm"))]  # type: ignore[misc]
    assert len(instances) == 20
    sources = results.sources(instances)
    shape = (20, 256, 256)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ds = read(encode(built(results.findings(results.ball(shape)), sources, "seg")))
    assert ds.StudyInstanceUID == "0.0.0.0.2.8811.20010413115754.12432"
    assert ds.FrameOfReferenceUID == "0.0.0.0.4.8811.2.20010413115754.12432"
    assert ds.get_item("PatientWeight").value == b"61.2350 "
    assert ds.SeriesDescription == "AI brain_extraction 1.0.2 of S2, unverified"
