"""What images are: whose they are, how they group, what counts as an image."""

import io

import pytest
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import SegmentationStorage

from dicomai.errors import UnreadableError
from dicomai.study import Identity, Instance, group, is_image, series_number
from tests.synthetic import encode, enhanced, instances, plain, series


def test_identities_agree_in_spite_of_padding_and_empty_components():
    one, other = Dataset(), Dataset()
    one.PatientName, other.PatientName = "Doe^Jane^^^", "Doe^Jane"
    one.PatientID, other.PatientID = "17 ", "17"
    one.IssuerOfPatientID = ""
    assert Identity.of(one) == Identity.of(other)


def test_identities_tell_which_attributes_differ_and_never_their_values():
    one, other = Dataset(), Dataset()
    one.PatientName, other.PatientName = "Doe^Jane", "Doe^John"
    one.PatientBirthDate, other.PatientBirthDate = "19700101", "19700102"
    assert Identity.of(one).differences(Identity.of(other)) == ("PatientName", "PatientBirthDate")
    assert "Doe" not in repr(Identity.of(one))
    assert "1970" not in repr(Identity.of(one))


def test_ideographic_names_differ_when_one_representation_does():
    one, other = Dataset(), Dataset()
    one.PatientName, other.PatientName = "Yamada^Tarou=山田^太郎", "Yamada^Tarou=山田^次郎"
    assert Identity.of(one).differences(Identity.of(other)) == ("PatientName",)


def test_an_instance_keeps_its_header_and_reads_its_pixels_when_asked():
    (ds, *_) = series()
    (instance,) = instances([ds])
    assert "PixelData" not in instance.header
    assert instance.dataset().PixelData == ds.PixelData
    assert instance.transfer_syntax_uid == "1.2.840.10008.1.2.1"
    assert instance.number_of_frames == 1
    assert instances([enhanced(shape=(3, 4, 4))])[0].number_of_frames == 3


def test_the_representation_of_an_instance_names_no_patient():
    (instance,) = instances([plain(PatientName="Secret^Name")])
    assert "Secret" not in repr(instance)


@pytest.mark.parametrize(
    ("ours", "shown", "contradicts"),
    [
        ("Yamada^Tarou=山田^太郎=やまだ^たろう", "YAMADA TAROU", False),
        ("Yamada^Tarou=山田^太郎=やまだ^たろう", "=山田　太郎", False),  # the space of ideographs
        ("Yamada^Tarou=山田^太郎", "Yamada^Tarou=山本^太郎", True),
        ("Yamada^Tarou", "=山田^太郎", False),  # no group that both have
        ("ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎", "ヤマダ^タロウ=山田^太郎", False),  # half width, as in ISO_IR 13
        ("Hong^Gildong=洪^吉洞=홍^길동", "Hong^Gildong=洪^吉洞=김^길동", True),
        ("Van der^Berg^Anna^^Dr.", "van der berg anna dr.", False),
        ("Doe^Jane", "Doe^Janet", True),
        ("Doe^Jane", "Jane^Doe", True),  # it may be another one
        ("", "Doe^Jane", False),
        ("Doe^Jane", "^^^^", False),
    ],
)
def test_names_that_an_archive_may_write_otherwise(ours, shown, contradicts):
    one, other = (Identity("P0", "", name, "") for name in (ours, shown))
    assert one.contradictions(other) == (("PatientName",) if contradicts else ())
    assert other.contradictions(one) == one.contradictions(other)


def test_an_id_that_is_shown_has_to_be_ours_and_what_is_left_out_is_none():
    ours, nobody = Identity("P0", "HERE", "", "19700101"), Identity("", "", "", "")
    assert ours.contradictions(Identity("P0", "", "", "")) == ours.contradictions(nobody) == ()
    assert nobody.contradictions(ours) == ("PatientID",)  # the archive has given the study a patient since
    assert ours.contradictions(Identity("P00", "THERE", "", "19700102")) == (
        "PatientID",
        "IssuerOfPatientID",
        "PatientBirthDate",
    )


@pytest.mark.parametrize("content", [b"", b"no DICOM at all", b"\0" * 128 + b"DICM"])
def test_what_is_no_dicom_file_is_refused_by_its_label(content):
    with pytest.raises(UnreadableError, match=r"^slice 7 cannot be read as DICOM"):
        Instance.read(lambda: io.BytesIO(content), "slice 7")


def test_a_file_cut_off_in_its_header_is_refused():
    content = encode(series()[0])
    meta_end = content.index(b"DICM") + 40
    with pytest.raises(UnreadableError, match="cannot be read as DICOM"):
        Instance.read(lambda: io.BytesIO(content[:meta_end]), "slice 7")


def test_instances_group_into_studies_and_series_whatever_their_order():
    one = series(study_uid="1.2.1", series_uid="1.2.1.1", shape=(2, 2, 2))
    two = series(study_uid="1.2.1", series_uid="1.2.1.2", shape=(3, 2, 2), SOPInstanceUID=lambda z: f"1.2.{z}")
    other = series(study_uid="1.2.0", series_uid="1.2.0.1", shape=(1, 2, 2))
    found = group(instances([*two[::-1], *other, *one]))
    assert [study.study_instance_uid for study in found] == ["1.2.0", "1.2.1"]
    assert [(s.series_instance_uid, len(s.instances)) for s in found[1].series] == [("1.2.1.1", 2), ("1.2.1.2", 3)]
    uids = [instance.sop_instance_uid for instance in found[1].series[1].instances]
    assert uids == sorted(uids)


def test_the_same_instance_twice_is_one():
    (ds,) = series(shape=(1, 2, 2))
    ((only,),) = (study.series for study in group(instances([ds, ds])))
    assert len(only.instances) == 1


def test_what_counts_as_an_image():
    image = plain()
    assert is_image(image)
    image.SOPClassUID = "1.3.12.2.1107.5.9.1"  # private: what has pixels is an image
    assert is_image(image)
    image.SOPClassUID = SegmentationStorage
    assert not is_image(image)
    assert not is_image(Dataset())


@pytest.mark.parametrize(("value", "number"), [(b"12 ", 12), (b"abc ", None), (b"", None), (b"1\\2", None)])
def test_a_series_number_that_is_none_is_in_nobodys_way(value, number):
    ds = Dataset()
    assert series_number(ds) is None
    tag = Tag("SeriesNumber")
    ds[tag] = RawDataElement(tag, "IS", len(value), value, 0, is_implicit_VR=False, is_little_endian=True)
    assert series_number(ds) == number


def test_a_series_number_is_the_same_after_it_was_read():
    ds = Dataset()
    ds.SeriesNumber = 7
    assert series_number(ds) == ds.SeriesNumber == 7
