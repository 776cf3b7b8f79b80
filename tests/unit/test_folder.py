"""A folder of files is a study, or it is said why not: nothing in it is chosen by chance."""

from pathlib import Path
from typing import Any

import pytest

from dicomai import folder
from dicomai.errors import IdentityError
from tests import synthetic

SHAPE = (2, 4, 4)


def test_copies_of_one_file_count_once(tmp_path: Path) -> None:
    made = synthetic.series(shape=SHAPE)
    for name in ("one", "two"):
        synthetic.write(made, tmp_path / name)
    ((study,), unread) = folder.read(tmp_path)
    assert [len(series.instances) for series in study.series] == [2]
    assert unread == []


@pytest.mark.parametrize(("keyword", "value"), [("PatientID", "SYN-2"), ("PixelData", bytes(32))])
def test_two_files_of_one_name_that_differ_are_not_chosen_between(tmp_path: Path, keyword: str, value: object) -> None:
    made = synthetic.series(shape=SHAPE)
    synthetic.write(made, tmp_path / "one")
    setattr(made[0], keyword, value)
    synthetic.write(made, tmp_path / "two")
    with pytest.raises(IdentityError, match=f"bear the SOPInstanceUID {made[0].SOPInstanceUID} and differ"):
        folder.read(tmp_path)


def test_a_series_in_two_studies_is_not_cut_in_two(tmp_path: Path) -> None:
    made = synthetic.series(shape=SHAPE, StudyInstanceUID=lambda z: f"1.2.{z + 1}")
    synthetic.write(made, tmp_path)
    with pytest.raises(IdentityError, match=r"lies in two studies, 1\.2\.1 and 1\.2\.2"):
        folder.read(tmp_path)


@pytest.mark.parametrize("keyword", ["SOPClassUID", "StudyInstanceUID", "SeriesInstanceUID"])
def test_what_no_result_could_refer_to_is_left_out_by_name(tmp_path: Path, keyword: str) -> None:
    changes: dict[str, Any] = {keyword: lambda z: "1.2.3" if z else None}
    made = synthetic.series(shape=SHAPE, **changes)
    synthetic.write(made, tmp_path)
    (study, *_), (sentence,) = folder.read(tmp_path)
    assert f"0000.dcm has no {keyword}" in sentence
    assert [len(series.instances) for series in study.series] == [1]
