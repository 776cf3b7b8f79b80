"""De-identification: nothing of the person is left, references still refer, what cannot be done is refused."""

import io
import re
import struct
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.config import IGNORE
from pydicom.data import get_testdata_file
from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import encapsulate, generate_frames
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
    assert (moved.StudyTime, moved.AcquisitionDateTime[8:]) == ("101500", "101500.5")
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
        (mr(ImageType=["ORIGINAL", "SECONDARY", "OTHER", "CT_SOM5 PROT"]), "does not say BurnedInAnnotation NO"),
        (mr(Modality="BMD"), "does not say BurnedInAnnotation NO"),
        (mr(SamplesPerPixel=3), "does not say BurnedInAnnotation NO"),
        (mr(PatientID="M\ufffdLLER", SpecificCharacterSet="ISO_IR 192"), "not of the character set"),
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


def test_an_rt_image_without_a_conversion_type_is_taken() -> None:
    assert deidentified(mr(ConversionType="")).PatientIdentityRemoved == "YES"


@pytest.mark.parametrize("element", [0x0010, 0x0100, 0x0102])
def test_an_overlay_in_the_pixels_is_refused(element: int) -> None:
    ds = mr()
    ds.add_new(0x60000000 + element, "US", 16)
    with pytest.raises(NotAcceptedError, match="group 6000"):
        deidentified(ds)


def test_what_the_table_lacks_and_tells_who_it_is_does_not_stay() -> None:
    issuer = nested(0, UniversalEntityID="QXZHOSPITAL", UniversalEntityIDType="DNS")
    keywords = (
        "SOPInstanceUIDOfConcatenationSource", "MultiFrameSourceSOPInstanceUID", "VolumeFrameOfReferenceUID",
        "RadiopharmaceuticalAdministrationEventUID", "TableFrameOfReferenceUID",
    )  # fmt: skip
    uids = dict.fromkeys(keywords, "1.2.777.4711")
    ds = mr(
        PatientBirthDateInAlternativeCalendar="QXZS62.01.02", PatientDeathDateInAlternativeCalendar="QXZH20",
        IssuerOfPatientIDQualifiersSequence=[issuer], IssuerOfAccessionNumberSequence=[issuer],
        OrderPlacerIdentifierSequence=[issuer], OrderFillerIdentifierSequence=[issuer],
        EncryptedAttributesSequence=[nested(0, EncryptedContent=b"QXZENCRYPTED")],
        RetrieveURL="http://QXZ/1.2.777.4711", RetrieveURI="http://QXZ", StorageURL="http://QXZ",
        PixelDataProviderURL="http://QXZ", CodingSchemeURL="http://coding.example", **uids,
    )  # fmt: skip
    made = deidentified(ds)
    assert b"QXZ" not in frozen(made)
    assert b"1.2.777.4711" not in frozen(made)
    assert len({made[keyword].value for keyword in uids}) == 1
    assert made.CodingSchemeURL == "http://coding.example"
    assert made.SOPClassUID == ds.SOPClassUID


def test_a_uid_under_the_root_of_the_standard_that_it_has_not_given_is_replaced() -> None:
    ds = mr(SeriesInstanceUID="1.2.840.10008.5.1.4.1.1.2.19990101.1", FrameOfReferenceUID="1.2.840.10008.1.4.1.1")
    made = deidentified(ds)
    assert made.SeriesInstanceUID.startswith("2.25.")
    assert made.FrameOfReferenceUID == ds.FrameOfReferenceUID  # the Talairach brain atlas


def test_what_is_de_identified_in_another_way_is_another_object_of_another_pseudonym() -> None:
    """Side by side they would tell by how much all dates of the patient were moved."""
    ds = mr(PatientID="4711")
    ways = [deidentified(ds, *retain) for retain in ((), (Retain.FULL_DATES,), (Retain.MODIFIED_DATES,))]
    assert len({one.SOPInstanceUID for one in ways}) == len({str(one.PatientID) for one in ways}) == 3
    both = (Retain.FULL_DATES, Retain.PATIENT_CHARACTERISTICS)
    assert deidentified(ds, *both).SOPInstanceUID == deidentified(ds, *reversed(both)).SOPInstanceUID


def test_what_was_done_to_it_before_stays_said() -> None:
    ds = mr(LongitudinalTemporalInformationModified="MODIFIED", DeidentificationMethod="dates moved at A")
    ds.DeidentificationMethodCodeSequence = [nested(0, CodeValue="113107", CodingSchemeDesignator="DCM")]
    made = deidentified(ds, Retain.FULL_DATES)
    assert made.LongitudinalTemporalInformationModified == "MODIFIED"
    assert made.DeidentificationMethod[0] == "dates moved at A"
    assert [item.CodeValue for item in made.DeidentificationMethodCodeSequence] == ["113107", "113100", "113106"]
    again = deidentified(made, Retain.FULL_DATES)
    assert again.DeidentificationMethod == made.DeidentificationMethod
    assert again.DeidentificationMethodCodeSequence == made.DeidentificationMethodCodeSequence


@pytest.mark.parametrize("option", [Retain.MODIFIED_DATES, Retain.FULL_DATES])
@pytest.mark.parametrize(
    ("keyword", "value"),
    [("StudyDate", b"20200101-20200131 "), ("StudyDate", b"20200101 QXZDOE"), ("StudyTime", b"QXZDOE")],
)
def test_what_is_no_date_or_time_does_not_stay_as_one(option: Retain, keyword: str, value: bytes) -> None:
    ds = mr(StudyDate="20200101", StudyTime="101112")
    data = encode(ds)
    old = bytes(frozen_element(keyword, str(ds[keyword].value).encode()))
    assert data.count(old) == 1
    changed = data.replace(old, bytes(frozen_element(keyword, value)))
    made = frozen(Deidentifier(KEY, frozenset({option})).read(io.BytesIO(changed), is_image=True))
    assert b"QXZ" not in made
    assert b"20200131" not in made


def frozen_element(keyword: str, value: bytes) -> bytes:
    tag = pydicom.tag.Tag(keyword)
    value += b" " * (len(value) % 2)
    return struct.pack("<HH2sH", tag.group, tag.element, dictionary_VR(tag).encode(), len(value)) + value


def test_a_sequence_of_unknown_bytes_is_refused_by_name() -> None:
    ds = mr()
    ds.add_new(0x00082218, "UN", b"")
    data = encode(ds).replace(
        b"\x08\x00\x18\x22SQ\0\0\0\0\0\0", b"\x08\x00\x18\x22UN\0\0\x00\x00\x01\x00" + b"x" * 65536
    )
    assert len(data) > 65536
    with pytest.raises(NotAcceptedError, match=r"\(0008,2218\)"):
        Deidentifier(KEY, frozenset()).read(io.BytesIO(data), is_image=True)


@pytest.mark.parametrize("name", ["CT_small.dcm", "SC_rgb_small_odd.dcm", "SC_rgb_small_odd_big_endian.dcm"])
def test_bytes_after_the_last_pixel_are_cut(name: str) -> None:
    ds = pydicom.dcmread(str(get_testdata_file(name)))
    ds.BurnedInAnnotation = "NO"
    pixels = ds.PixelData
    ds.PixelData = pixels + b"QXZDOE"
    assert deidentified(ds).PixelData == pixels


@pytest.mark.parametrize(
    ("name", "comment"),
    [
        ("SC_rgb_jpeg_gdcm.dcm", b"\xff\xfe"),
        ("SC_rgb_small_odd_jpeg.dcm", b"\xff\xe1"),
        ("MR_small_jpeg_ls_lossless.dcm", b"\xff\xfe"),
        ("JPEG2000.dcm", b"\xff\x64"),
        ("MR_small_jp2klossless.dcm", b"\xff\x64"),
    ],
)
def test_comments_in_a_jpeg_and_what_follows_it_are_cut(name: str, comment: bytes) -> None:
    ds = pydicom.dcmread(str(get_testdata_file(name)))
    ds.BurnedInAnnotation = "NO"
    (frame,) = generate_frames(ds.PixelData, number_of_frames=1)
    expected = ds.pixel_array
    text = b"QXZDOE^JANE"
    at = 2 if comment[1] != 0x64 else 4 + int.from_bytes(frame[4:6], "big")  # SIZ comes first in JPEG 2000
    planted = frame[:at] + comment + struct.pack(">H", len(text) + 2) + text + frame[at:]
    ds.PixelData = encapsulate([planted + b"QXZTRAILING"])
    made = deidentified(ds)
    assert b"QXZ" not in frozen(made)
    assert np.array_equal(made.pixel_array, expected)


MARKS: dict[str, Any] = {
    "AS": "097Y", "DA": "19170419", "DT": "19170419171819", "TM": "171819.7654", "DS": "77.7123", "IS": "771234",
    "FD": 77.7123, "FL": 77.5, "SL": 771234, "SS": 7712, "SV": 771234, "UL": 771234, "US": 7712, "UV": 771234,
    "UI": "9.9.777.4711", "UR": "http://QXZ.example", "OB": b"QXZBINARY.", "OW": b"QXZBINARY.", "UN": b"QXZBINARY.",
    "OF": b"QXZBINARY...", "OL": b"QXZBINARY...", "OD": b"QXZBINARY.......", "OV": b"QXZBINARY.......",
}  # fmt: skip


def plant(ds: Dataset) -> None:
    """Put a mark into every attribute that the table has, of every value representation, and into what is there."""
    there = {int(e.tag) for e in ds if e.tag.is_private or e.VR in {"PN", "LO", "SH", "LT", "ST", "UT", "DA", "DT"}}
    for tag in {int(tag) for tag in ACTIONS} | {t for t in there if t in ACTIONS or t >> 16 & 1}:
        private = bool(tag >> 16 & 1)
        if not private and (not keyword_for_tag(tag) or tag >> 16 in {0, 2, 4, 0x5000, 0x6000}):
            continue
        vr = ds[tag].VR if private else dictionary_VR(tag).split(" or ")[0]
        if vr != "SQ" and not (private and tag & 0xFFFF < 0x100):
            ds[tag] = DataElement(tag, vr, MARKS.get(vr, "QXZMARK"), validation_mode=IGNORE)
    for element in ds:
        if element.VR == "SQ":
            for item in element.value:
                plant(item)


@pytest.mark.parametrize("retain", [(), (Retain.PATIENT_CHARACTERISTICS, Retain.FULL_DATES), (Retain.MODIFIED_DATES,)])
@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm", "enhanced", "nested", "PT", "MG", "demo"])
def test_no_mark_is_left_in_a_real_image(name: str, retain: tuple[Retain, ...], demo_study: tuple[Path, ...]) -> None:
    ds = source_of(name, demo_study)
    plant(ds)
    ds.SpecificCharacterSet = "ISO_IR 100"
    made = deidentified(ds, *retain)
    data = frozen(made)
    gone = [b"9.9.777.4711"]
    if Retain.PATIENT_CHARACTERISTICS not in retain:
        gone += [b"QXZ", b"097Y", b"77.7123", b"771234", b"19170419"]
    if not retain:
        gone += [b"171819"]
    assert not [mark for mark in gone if mark in data]
    for element in (e for e in made.iterall() if int(e.tag) in ACTIONS and e.VR != "SQ"):
        is_kept = retain and (
            (element.VR in {"DA", "DT", "TM"} and element.keyword not in NEVER)
            or element.keyword in {*KEPT_BY_OPTION, *BODY}
        )
        assert is_kept or element.value != MARKS.get(element.VR, "QXZMARK"), element.keyword


BODY = {"PatientAge", "PatientSex", "PatientSexNeutered", "PatientSize", "PatientWeight", "PregnancyStatus"}
NEVER = {"PatientBirthDate", "PatientBirthTime", "GPSTimeStamp"}


def source_of(name: str, demo_study: tuple[Path, ...]) -> FileDataset:
    if name == "demo":
        return pydicom.dcmread(demo_study[0])
    if name == "enhanced":
        return enhanced(modality="MR", shape=(1, 4, 4))
    if name == "nested":
        return mr(AnatomicRegionSequence=[nested(2, PatientName="QXZ"), nested(0, PatientID="QXZ")])
    if name in {"PT", "MG"}:  # no such image is at hand: the class and modality alone
        ds = pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))
        ds.Modality, ds.SOPClassUID = (
            name,
            {"PT": "1.2.840.10008.5.1.4.1.1.128", "MG": "1.2.840.10008.5.1.4.1.1.1.2"}[name],
        )
        return ds
    return pydicom.dcmread(str(get_testdata_file(name)))


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
