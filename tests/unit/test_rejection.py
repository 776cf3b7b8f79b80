"""What a Key Object Selection document rejects, if anything."""

import pytest
from pydicom.config import IGNORE
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from dicomai.rejection import TITLES, RejectionNote
from tests.beds import as_received
from tests.rejected import rejection_note
from tests.synthetic import series

IMAGES = series(shape=(3, 4, 4))
UIDS = tuple(str(image.SOPInstanceUID) for image in IMAGES)


@pytest.mark.parametrize("code", sorted(TITLES))
def test_a_title_that_rejects_names_what_it_withdraws(code: str) -> None:
    assert RejectionNote.of(rejection_note(IMAGES, code)) == RejectionNote(code, UIDS)


def test_any_other_title_rejects_nothing() -> None:
    assert RejectionNote.of(rejection_note(IMAGES, "113000")) is None
    note = rejection_note(IMAGES)
    note.ConceptNameCodeSequence[0].CodingSchemeDesignator = "99LOCAL"
    assert RejectionNote.of(note) is None
    assert RejectionNote.of(Dataset()) is None


@pytest.mark.parametrize("part", ["CurrentRequestedProcedureEvidenceSequence", "ContentSequence"])
def test_what_either_part_names_counts(part: str) -> None:
    note = rejection_note(IMAGES)
    delattr(note, part)
    content = RejectionNote.of(note)
    assert content is not None
    assert content.sop_instance_uids == UIDS


def test_what_is_no_uid_is_left_out() -> None:
    note = rejection_note(IMAGES)
    del note.ContentSequence
    references = note.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence
    del references[1].ReferencedSOPInstanceUID
    with as_received():
        references[0]["ReferencedSOPInstanceUID"] = DataElement(0x00081155, "UI", "../1", validation_mode=IGNORE)
        content = RejectionNote.of(note)
    assert content is not None
    assert content.sop_instance_uids == UIDS[2:]
