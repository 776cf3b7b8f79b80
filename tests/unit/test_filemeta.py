"""File meta information: where it ends, whatever it says of itself."""

import io
from pathlib import Path

import pydicom
import pytest

from dicomai.filemeta import data_set_at, read_meta

SAMPLES = Path(pydicom.__file__).parent / "data" / "test_files"
FILES = [path for path in sorted(SAMPLES.glob("*.dcm")) if path.read_bytes()[128:132] == b"DICM"]


def test_the_data_set_begins_where_the_library_has_it() -> None:
    assert len(FILES) > 30
    for path in FILES:
        data = path.read_bytes()
        file = io.BytesIO(data)
        read_meta(file)
        assert data_set_at(data) == (file.tell() if file.tell() + 2 <= len(data) else None), path.name


@pytest.mark.parametrize("said", [0, 12, 2**32 - 1])
def test_a_wrong_group_length_is_not_believed(said: int) -> None:
    data = bytearray((SAMPLES / "CT_small.dcm").read_bytes())
    right = data_set_at(bytes(data))
    data[140:144] = said.to_bytes(4, "little")
    assert data_set_at(bytes(data)) == right is not None


def test_a_head_that_ends_early_says_nothing() -> None:
    data = (SAMPLES / "CT_small.dcm").read_bytes()
    at = data_set_at(data)
    assert at is not None
    assert {data_set_at(data[:end]) for end in range(at + 2)} == {None}
    assert data_set_at(data[: at + 2]) == at
    assert data_set_at(b"no DICOM file" * 20) is None
