"""Which routes take which images, and in which words the others do not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from dicomai import routing
from dicomai.routing import Level, OutsideValidated, Route


def route(match: dict[str, str], exclude: dict[str, str] | None = None, name: str = "brain") -> Route:
    return Route(
        name=name,
        model="brain_extraction",
        match=match,
        exclude=routing.DEFAULT_EXCLUDE if exclude is None else exclude,
        level=Level.SERIES,
        outside_validated=OutsideValidated.REFUSE,
        outputs=("seg", "sr"),
        destinations=(),
        quiet_period=60.0,
    )


def images(**attributes: object) -> Dataset:
    ds = Dataset()
    ds.Modality = "MR"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "M"]
    ds.SeriesDescription = "Ax T1 MPRAGE"
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    return ds


def broken(keyword: str, vr: str, value: bytes) -> Dataset:
    ds = Dataset()
    tag = Tag(keyword)
    ds._dict[tag] = RawDataElement(tag, vr, len(value), value, 0, is_implicit_VR=False, is_little_endian=True)
    return ds


T1 = route({"Modality": "MR", "SeriesDescription": ".*(T1|MPRAGE).*"})


def test_all_patterns_fit() -> None:
    assert routing.decide(images(), T1) == routing.Decision(T1, matches=True)


def test_a_pattern_has_to_fit_the_whole_value() -> None:
    # 'CT' found anywhere would take radiotherapy structure sets.
    assert not routing.decide(images(Modality="RTSTRUCT"), route({"Modality": "CT"})).matches


def test_an_alternative_has_to_fit_whole_as_well() -> None:
    assert not routing.matches(images(Modality="RTSTRUCT"), "Modality", "CT|RT")


def test_case_does_not_count() -> None:
    assert routing.decide(images(SeriesDescription="ax t1 mprage"), T1).matches


def test_any_of_several_values_may_fit() -> None:
    assert routing.matches(images(), "ImageType", "PRIMARY")
    assert not routing.matches(images(), "ImageType", "ORIGINAL.PRIMARY")


@pytest.mark.parametrize("value", [None, "", "  "])
def test_a_missing_or_empty_value_never_fits(value: str | None) -> None:
    ds = images()
    if value is None:
        del ds.SeriesDescription
    else:
        ds.SeriesDescription = value
    assert not routing.decide(ds, route({"SeriesDescription": ".*"})).matches


def test_an_empty_one_among_several_values_never_fits() -> None:
    assert routing.values(images(ImageType=["ORIGINAL", "", "M"]), "ImageType") == ("ORIGINAL", "M")


def test_a_missing_attribute_is_not_excluded_either() -> None:
    ds = images()
    del ds.ImageType
    assert routing.decide(ds, T1).matches


@pytest.mark.parametrize("image_type", [["DERIVED", "SECONDARY"], ["ORIGINAL", "PRIMARY", "LOCALIZER"]])
def test_derived_images_and_localizers_are_left_out_unless_asked_for(image_type: list[str]) -> None:
    ds = images(ImageType=image_type)
    decision = routing.decide(ds, T1)
    assert not decision.matches
    assert "ImageType" in decision.why_not
    assert "excluded" in decision.why_not
    assert routing.decide(ds, route(T1.match, exclude={})).matches


def test_why_not_names_the_value_and_the_pattern() -> None:
    decision = routing.decide(images(Modality="CT"), T1)
    assert decision.why_not == "Modality is 'CT', not 'MR'"


def test_why_not_says_that_an_attribute_is_missing() -> None:
    ds = images()
    del ds.SeriesDescription
    assert routing.decide(ds, T1).why_not.startswith("SeriesDescription is missing")


def test_a_patient_is_never_quoted() -> None:
    decision = routing.decide(images(PatientName="DOE^JOHN"), route({"PatientName": "TEST.*"}))
    assert not decision.matches
    assert "DOE" not in decision.why_not


def test_numbers_are_matched_as_they_are_written() -> None:
    assert routing.matches(images(SeriesNumber=4), "SeriesNumber", "4")
    assert routing.matches(images(SliceThickness="5.00000"), "SliceThickness", r"5(\.0*)?")
    assert routing.matches(images(Rows=512), "Rows", "512")


@pytest.mark.parametrize(("keyword", "vr", "value"), [("Rows", "US", b"\x01"), ("SeriesDescription", "ZZ", b"T1")])
def test_a_value_that_cannot_be_decoded_never_fits(keyword: str, vr: str, value: bytes) -> None:
    decision = routing.decide(broken(keyword, vr, value), route({keyword: ".*"}))
    assert not decision.matches
    assert "no value that can be read" in decision.why_not


def test_every_route_is_answered_for_in_order() -> None:
    other = route({"Modality": "CT"}, name="lung")
    decisions = routing.match(images(), (other, T1))
    assert [(d.route.name, d.matches) for d in decisions] == [("lung", False), ("brain", True)]


@given(st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=16))
def test_a_value_fits_itself_and_nothing_longer(value: str) -> None:
    ds = images(StudyDescription=value)
    assert routing.matches(ds, "StudyDescription", value)
    assert not routing.matches(images(StudyDescription=value + "x"), "StudyDescription", value)
