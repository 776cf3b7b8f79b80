"""Profiles: which form a result has, and what of it goes where."""

from datetime import UTC, datetime

import pytest

from dicomai.config import DicomDestination
from dicomai.profiles import LABEL_MAP, LABEL_MAP_SYNTAXES, Probe, Profile, denied, label_map, wanted

RLE, EXPLICIT = LABEL_MAP_SYNTAXES
IMPLICIT = "1.2.840.10008.1.2"
SEGMENTATION, REPORT = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.88.34"
NOW = datetime(2026, 1, 1, tzinfo=UTC)

NEVER_ANSWERED = Probe(NOW, "It cannot be connected to.")


def seen(*syntaxes: str) -> Probe:
    """Make the probe of a destination that takes label maps in some syntaxes, and binary segmentations."""
    accepted = {(LABEL_MAP, one) for one in syntaxes} | {(SEGMENTATION, EXPLICIT), (REPORT, EXPLICIT)}
    return Probe(NOW, "", NOW, frozenset(accepted))


@pytest.mark.parametrize(
    ("takers", "form"),
    [
        ([], None),
        ([(Profile.OHIF, seen(RLE, EXPLICIT))], None),  # what it accepts, its viewer need not show
        ([(Profile.LEGACY, seen(RLE, EXPLICIT))], None),
        ([(Profile.LABELMAP, None)], EXPLICIT),
        ([(Profile.LABELMAP, NEVER_ANSWERED)], EXPLICIT),
        ([(Profile.LABELMAP, seen(RLE, EXPLICIT, IMPLICIT))], RLE),
        ([(Profile.LABELMAP, seen(EXPLICIT))], EXPLICIT),
        ([(Profile.LABELMAP, seen(IMPLICIT))], None),
        ([(Profile.LABELMAP, seen())], None),
        ([(Profile.LABELMAP, seen(RLE, EXPLICIT)), (Profile.LABELMAP, seen(EXPLICIT))], EXPLICIT),
        ([(Profile.LABELMAP, seen(RLE)), (Profile.LABELMAP, seen(EXPLICIT))], None),
        ([(Profile.LABELMAP, seen(RLE)), (Profile.LABELMAP, None)], None),
        ([(Profile.LABELMAP, seen(RLE)), (Profile.OHIF, None)], None),
        ([(Profile.LABELMAP, seen(RLE)), (Profile.LEGACY, None)], RLE),  # which is sent no segmentation
    ],
)
def test_a_label_map_is_made_only_where_all_take_it(takers: list[tuple[Profile, Probe | None]], form: str) -> None:
    assert label_map(takers) == form
    assert label_map(reversed(takers)) == form


def test_a_legacy_pacs_is_sent_the_key_image_in_place_of_segmentation_and_report() -> None:
    assert wanted(Profile.LEGACY, ("seg", "sr")) == ("keyimage",)
    assert wanted(Profile.LEGACY, ("seg", "kos", "keyimage", "pdf", "keyframes")) == (
        "keyimage", "kos", "pdf", "keyframes",
    )  # fmt: skip
    assert wanted(Profile.LEGACY, ("seg", "report")) == ("keyimage", "reportimage")
    assert wanted(Profile.OHIF, ("seg", "sr")) == wanted(Profile.LABELMAP, ("seg", "sr")) == ("seg", "sr")


def test_what_a_destination_refuses_is_held_against_its_profile() -> None:
    nothing = Probe(NOW, "", NOW, frozenset())
    assert denied(Profile.OHIF, seen()) == ""
    assert "Segmentation Storage" in denied(Profile.OHIF, nothing)
    assert denied(Profile.LEGACY, nothing) == ""
    assert denied(Profile.LABELMAP, seen(RLE)) == ""
    assert "Label Map" in denied(Profile.LABELMAP, seen(IMPLICIT))
    assert denied(Profile.LABELMAP, NEVER_ANSWERED) == ""


def test_what_a_destination_refuses_to_be_asked_names_the_key_that_has_it_asked() -> None:
    entry = DicomDestination(
        name="pacs", type="dicom", ae_title="PACS", host="pacs.example", port=104, check_patient=True, commitment=True
    )
    stores = frozenset((sop_class, EXPLICIT) for sop_class, *_ in seen().accepted)
    asked = "1.2.840.10008.5.1.4.1.2.2.1", "1.2.840.10008.1.20.1"
    assert set(entry.services) == set(asked)
    said = denied(Profile.LEGACY, Probe(NOW, "", NOW, stores), entry.services)
    assert "commitment asks of it (Storage Commitment Push Model SOP Class)" in said
    said = denied(Profile.OHIF, Probe(NOW, "", NOW, stores | {(asked[1], IMPLICIT)}), entry.services)
    assert "check_patient" in said
    assert denied(Profile.OHIF, Probe(NOW, "", NOW, stores | {(one, IMPLICIT) for one in asked}), entry.services) == ""
