"""What is negotiated, and what is written before a data set."""

import io

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import (
    JPEG2000,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
)
from pynetdicom import AllStoragePresentationContexts, build_context

from dicomai.filemeta import FileMeta
from dicomai.receiver import contexts


@pytest.mark.parametrize("context", AllStoragePresentationContexts, ids=lambda c: str(c.abstract_syntax))
def test_every_storage_class_that_the_library_knows_is_storage(context: object) -> None:
    assert contexts.is_storage(str(context.abstract_syntax))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "uid",
    [
        "1.2.840.10008.1.1",  # Verification
        "1.2.840.10008.1.3.10",  # Media Storage Directory Storage
        "1.2.840.10008.1.20.1",  # Storage Commitment Push Model
        "1.2.840.10008.5.1.4.1.2.2.1",  # Study Root FIND
        "1.2.840.10008.5.1.4.1.1.200.4",  # Protocol Approval FIND, in the storage branch
        "1.2.840.10008.5.1.4.31",  # Modality Worklist
        "1.2.840.10008.3.1.2.1.1",  # Detached Patient Management (retired)
        "1.2.840.10008.9.9.9",  # not known, not of the storage branch
    ],
)
def test_other_services_are_not_storage(uid: str) -> None:
    assert not contexts.is_storage(uid)


@pytest.mark.parametrize(
    ("proposed", "preferred"),
    [
        ([JPEGBaseline8Bit, ExplicitVRLittleEndian], ExplicitVRLittleEndian),
        ([JPEG2000Lossless, ExplicitVRLittleEndian], JPEG2000Lossless),
        ([JPEG2000, JPEGBaseline8Bit], JPEG2000),
        (["1.2.840.10008.1.2.6.1", ImplicitVRLittleEndian], ImplicitVRLittleEndian),
        (["1.2.840.113619.5.2"], "1.2.840.113619.5.2"),
    ],
)
def test_the_senders_order_counts_but_nothing_is_lost(proposed: list[str], preferred: str) -> None:
    assert contexts.in_order_of_preference(proposed)[0] == preferred


@given(st.lists(st.sampled_from(sorted(contexts.TRANSFER_SYNTAXES)), min_size=1))
def test_no_acceptable_transfer_syntax_is_dropped(proposed: list[str]) -> None:
    assert sorted(contexts.in_order_of_preference(proposed)) == sorted(set(proposed))


def test_a_class_proposed_twice_is_supported_in_both_ways() -> None:
    proposed = [build_context("1.2.3", ExplicitVRLittleEndian), build_context("1.2.3", JPEG2000Lossless)]
    supported = contexts.supported(proposed)
    assert [c.transfer_syntax for c in supported] == [[ExplicitVRLittleEndian, JPEG2000Lossless]]


def test_what_no_reader_of_files_can_read_is_not_supported() -> None:
    assert contexts.supported([build_context("1.2.3", "1.2.840.10008.1.2.6.2")]) == []


def test_a_file_is_a_head_and_the_data_set() -> None:
    head = FileMeta("1.2.840.10008.5.1.4.1.1.4", "1.2.3.4", ExplicitVRLittleEndian, "CT01").encode()
    data_set = b"\x08\x00\x18\x00UI\x08\x001.2.3.4\x00"
    ds = pydicom.dcmread(io.BytesIO(head + data_set))
    assert ds.SOPInstanceUID == ds.file_meta.MediaStorageSOPInstanceUID == "1.2.3.4"
    assert ds.file_meta.FileMetaInformationGroupLength == len(head) - 144
    assert ds.file_meta.SourceApplicationEntityTitle == "CT01"


def test_a_malformed_uid_is_written_without_a_warning() -> None:
    assert b"1.2.03.A" in FileMeta("1.2.3", "1.2.03.A", ExplicitVRLittleEndian, "CT01").encode()
