"""Logging: lines that parse, one id for a study, and no patient's name whatever calls it."""

import io
import json
import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Any

import pydicom
import pytest
import structlog
from pydicom.dataset import Dataset

from dicomai import log
from dicomai.errors import GeometryError
from dicomai.study import Identity

Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    before = (root.handlers[:], root.level, warnings.showwarning, sys.excepthook, threading.excepthook)
    names = ("pydicom", "highdicom", "pynetdicom", "alembic", "apscheduler")
    levels = {name: logging.getLogger(name).level for name in names}
    yield
    root.handlers[:], root.level, warnings.showwarning, sys.excepthook, threading.excepthook = before
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


@pytest.fixture
def lines() -> Lines:
    stream = io.StringIO()
    log.configure("json", role="receiver", stream=stream)

    def read() -> list[dict[str, Any]]:
        return [json.loads(line) for line in stream.getvalue().splitlines()]

    return read


def test_events_are_json_with_time_level_and_role(lines: Lines) -> None:
    structlog.get_logger().info("association opened", calling_ae="CT01", association=7)
    (event,) = lines()
    assert event["event"] == "association opened"
    assert (event["calling_ae"], event["association"]) == ("CT01", 7)
    assert (event["level"], event["role"]) == ("info", "receiver")
    assert event["timestamp"].endswith("Z")


def test_a_stream_that_is_no_terminal_gets_json() -> None:
    stream = io.StringIO()
    log.configure(stream=stream)
    structlog.get_logger().info("started")
    assert json.loads(stream.getvalue())["event"] == "started"


def test_people_get_one_plain_line_per_event() -> None:
    stream = io.StringIO()
    log.configure("console", stream=stream)
    structlog.get_logger().info("association refused", calling_ae="EVIL\n2026 [info] study deleted\x1b[2J")
    logging.getLogger("apscheduler").error("job failed\n2026 [info] all is well\x1b[2J")
    refused, failed = stream.getvalue().splitlines()
    assert "association refused" in refused
    assert "job failed" in failed
    assert "\x1b" not in stream.getvalue()


def test_levels_hold_for_us_and_libraries_start_at_warning() -> None:
    stream = io.StringIO()
    log.configure("json", level="warning", stream=stream)
    structlog.get_logger().info("not this one")
    logging.getLogger("alembic.runtime").info("nor this one")
    logging.getLogger("alembic.runtime").warning("this one: %s", 3)
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["this one: 3"]


def test_a_level_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="'LOUD' is no log level"):
        log.configure(level="LOUD")


def test_configured_twice_an_event_is_written_once(lines: Lines) -> None:
    stream = io.StringIO()
    log.configure("json", stream=stream)
    logging.getLogger("apscheduler").error("missed")
    assert len(stream.getvalue().splitlines()) == 1
    assert lines() == []


def test_one_id_follows_a_study_and_is_not_its_uid() -> None:
    assert log.trace_id("1.2.840.1") == log.trace_id("1.2.840.1")
    assert log.trace_id("1.2.840.1") != log.trace_id("1.2.840.2")
    assert "1.2.840" not in log.trace_id("1.2.840.1")


NAME = "DOE^JOHN"


def a_patient() -> Dataset:
    ds = Dataset()
    ds.PatientName = NAME
    ds.PatientBirthDate = "19700101"
    return ds


@pytest.mark.parametrize(
    "value",
    [
        {"PatientName": NAME},
        {"patient_name": NAME},
        {"patient": {"PatientID": "DOE^JOHN-1"}},
        {"item": [{"PatientBirthDate": "DOE^JOHN"}]},
        {"ds": a_patient()},
        {"name": a_patient().PatientName},
        {"element": a_patient()["PatientName"]},
        {"identity": Identity.of(a_patient())},
        {"error": ValueError(f"Invalid value for VR PN: '{NAME}'")},
        {"data": NAME.encode()},
        {"parts": [a_patient()]},
    ],
    ids=lambda value: next(iter(value)),
)
def test_no_value_carries_a_patient_out(lines: Lines, value: dict[str, Any]) -> None:
    structlog.get_logger().warning("something", **value)
    assert "DOE" not in json.dumps(lines())


def test_a_warning_of_pydicom_is_named_without_its_text(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    for mode in ("reading_validation_mode", "writing_validation_mode"):  # a receiver in this process turns one off
        monkeypatch.setattr(pydicom.config.settings, mode, pydicom.config.WARN)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        ds = Dataset()
        ds.PatientBirthDate = "DOE^JOHN"
    assert lines(), "pydicom said nothing: this test no longer tests anything"
    assert "DOE" not in json.dumps(lines())
    assert any(event.get("category") == "UserWarning" for event in lines())


@pytest.mark.parametrize("library", ["pydicom", "highdicom.sr"])
def test_a_message_of_a_quoting_library_is_named_without_its_text(lines: Lines, library: str) -> None:
    logging.getLogger(library).warning("Invalid value for VR PN: '%s'", NAME)
    (event,) = lines()
    assert event["logger"] == library
    assert event["place"].startswith("test_log:")
    assert "DOE" not in json.dumps(event)


def raise_about_a_patient() -> None:
    name = "DOE" + "^JOHN"
    nobody: dict[str, str] = {}
    try:
        nobody[name]
    except KeyError as error:
        raise ValueError(f"{name} is no number") from error


def test_an_exception_is_placed_without_its_text(lines: Lines) -> None:
    try:
        raise_about_a_patient()
    except ValueError:
        structlog.get_logger().exception("unexpected")
        logging.getLogger("apscheduler").exception("job failed")
    assert len(lines()) == 2
    for event in lines():
        assert "raise_about_a_patient" in event["exception"]
        assert event["exception"].rstrip().endswith("ValueError")
        assert "KeyError" in event["exception"]
        assert "^JOHN is" not in event["exception"]
        assert "DOE^JOHN" not in event["exception"]


def test_our_own_errors_keep_their_sentence(lines: Lines) -> None:
    structlog.get_logger().warning("refused", error=GeometryError("2 slices are missing."), path=PurePosixPath("/a/b"))
    (event,) = lines()
    assert event["error"] == "GeometryError: 2 slices are missing."
    assert event["path"] == "/a/b"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_exception_that_nobody_catches_is_logged_without_its_text(
    lines: Lines, capfd: pytest.CaptureFixture[str]
) -> None:
    thread = threading.Thread(target=raise_about_a_patient, name="sender")
    thread.start()
    thread.join()
    try:
        raise_about_a_patient()
    except ValueError as error:
        sys.excepthook(type(error), error, error.__traceback__)
    in_thread, in_process = lines()
    assert in_thread["thread"] == "sender"
    assert in_process["level"] == "critical"
    assert "DOE^JOHN" not in json.dumps(lines()) + "".join(capfd.readouterr())
