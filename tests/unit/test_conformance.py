"""The conformance statement says what the receiver does."""

import re
from pathlib import Path

import pytest
from pydicom.uid import UID

from dicomai import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, errors
from dicomai.config import DeliverySettings, NodeSettings, ReceiverSettings
from dicomai.console import stow
from dicomai.destinations.dimse.storage import Answer
from dicomai.receiver import conformance, connections, contexts, statuses
from dicomai.receiver.conformance import conformance_tables

DOCUMENT = Path(__file__).parents[2] / "docs" / "conformance.md"


@pytest.fixture(scope="module")
def text() -> str:
    return DOCUMENT.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(conformance_tables()))
def test_every_table_is_in_the_statement_as_the_code_has_it(text: str, name: str) -> None:
    assert f"<!-- table: {name} -->\n{conformance_tables()[name]}<!-- end -->" in text


def test_writing_the_tables_anew_changes_nothing(text: str) -> None:
    assert conformance.render(text) == text


def test_the_tables_name_what_a_hospital_sends() -> None:
    tables = conformance_tables()
    for uid in ("1.2.840.10008.1.1", "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.66.4"):
        assert f"| {uid} |" in tables["sop-classes"]
    for uid in ("1.2.840.10008.1.2", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.2"):
        assert f"| {uid} |" in tables["transfer-syntaxes"]
    assert "| 1 | 1 | 7 |" in tables["refusals"]
    assert "| A700 |" in tables["statuses"]


def test_the_defaults_in_the_text_are_the_defaults(text: str) -> None:
    defaults = ReceiverSettings()
    for key, value in (
        ("receiver.max_associations", defaults.max_associations),
        ("receiver.max_pdu", defaults.max_pdu),
        ("receiver.idle_timeout", f"{defaults.idle_timeout:g} s"),
        ("delivery.timeout", f"{DeliverySettings().timeout:g} s"),
        ("node.ae_title", f"`{NodeSettings().ae_title}`"),
    ):
        assert re.search(rf"`{re.escape(key)}` \(default\s+{re.escape(str(value))}\)", text), key
    assert f"closed after {connections.ARTIM_SECONDS:g} s" in text


def test_the_statuses_of_the_scu_are_taken_as_the_text_says(text: str) -> None:
    rows = dict(re.findall(r"^\| ([0-9A-Fx, -]+|any other[^|]*?) \| ((?:accepted|refused for)[^|]*?) \|$", text, re.M))
    assert len(rows) == 6
    peer = object()
    for listed, taken in rows.items():
        for status in _statuses(listed):
            answer = Answer(status)
            if "accepted" in taken:
                assert answer.is_accepted
            else:
                error = answer.error("it", peer)  # type: ignore[arg-type]  # is only named
                wanted: type[errors.DeliveryError] = errors.UnreachableError
                if "for good" in taken:
                    wanted = errors.RejectedError
                elif "three times" in taken:
                    wanted = errors.NotKeptError
                assert type(error) is wanted, f"{status:04X}"


def _statuses(listed: str) -> list[int]:
    found: list[int] = []
    for item in re.findall(r"\b[0-9A-F][0-9A-Fx]{3}\b", listed):
        found += range(int(item.replace("x", "0"), 16), int(item.replace("x", "F"), 16) + 1)
    assert found
    return found


def test_every_failure_reason_of_stow_is_in_the_text(text: str) -> None:
    table = text.partition("| Failure Reason | When |")[2].partition("\n\n")[0]
    listed = re.findall(r"^\| ([0-9A-F]{4}) \|", table, re.M)
    assert sorted(listed) == sorted({f"{status.code:04X}" for status in stow.FAILURES})


def test_the_implementation_is_named_as_the_standard_says() -> None:
    assert UID(IMPLEMENTATION_CLASS_UID).is_valid
    assert len(IMPLEMENTATION_CLASS_UID) <= 44  # 2.25 and a UUID
    assert len(IMPLEMENTATION_VERSION_NAME) <= 16


def test_error_comments_fit() -> None:
    for status in statuses.STATUSES:
        assert len(status.comment) <= 64
        assert status.comment.isascii()
        assert bool(status.remedy) == (status.code != 0)


def test_every_class_has_a_name() -> None:
    assert all(contexts.STORAGE_CLASSES.values())
    assert contexts.STORAGE_CLASSES["1.2.840.10008.5.1.4.1.1.66.7"] == "Label Map Segmentation Storage"
