"""Logging: lines for people on a terminal, JSON elsewhere; one id follows a study; nobody's name gets out.

Modules log events with `structlog.get_logger()` and keyword values; each process calls `configure` once. What
libraries log goes through the same renderer from WARNING on. The rule is that no call passes a patient's name,
birth date or ID to the log; as a second line of defence

- values under a patient's keywords are replaced, and only plain values (text, numbers, times, paths) are shown at all;
- Python warnings and the messages of pydicom and highdicom, which quote the values of attributes, are named by
  place and category, without their text;
- of an exception its type and its place are shown, and its text only where it is one of our own (`errors.py`).
"""

import contextlib
import hashlib
import logging
import os
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Mapping, Sequence, Set
from datetime import date, datetime, time
from enum import Enum
from numbers import Integral, Real
from pathlib import PurePath
from types import TracebackType
from typing import Any, Literal, TextIO, cast
from uuid import UUID

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from dicomai.errors import DicomaiError

Mode = Literal["auto", "console", "json"]

REDACTED = "[redacted]"

# Keywords of PS3.3 C.2.2, C.2.3 and C.7.2.2 that tell who a person is, compared without case and underscores.
_PERSONAL = frozenset(
    {
        "patientname", "patientid", "patientbirthdate", "patientbirthtime", "patientbirthname", "otherpatientids",
        "otherpatientnames", "patientaddress", "patienttelephonenumbers", "patientmothersbirthname",
        "issuerofpatientid", "responsibleperson", "patientcomments", "additionalpatienthistory", "birthdate",
    }
)  # fmt: skip

_QUOTING = ("pydicom", "highdicom")  # libraries whose messages quote the values of attributes
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def configure(mode: Mode = "auto", level: str = "INFO", role: str | None = None, stream: TextIO | None = None) -> None:
    """Set up logging in this process; a second call replaces the first.

    Args:
        mode: `console` for people, `json` for machines, `auto` for whichever suits the stream.
        level: the lowest level of our own events that is shown: DEBUG, INFO, WARNING, ERROR.
        role: the process' role in the node, a value of every event.
        stream: where lines go; standard error unless given.

    Raises:
        ValueError: there is no such level.
    """
    out = cast("TextIO", _Stream(stream or sys.stderr))
    threshold = logging.getLevelNamesMapping().get(level.upper())
    if threshold is None:
        raise ValueError(f"'{level}' is no log level; use DEBUG, INFO, WARNING or ERROR.")
    as_json = mode == "json" or (mode == "auto" and not out.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _Role(role),
        describe_exception,
        sanitize,
    ]
    renderer: Processor = structlog.processors.JSONRenderer(ensure_ascii=False)
    if not as_json:
        renderer = structlog.dev.ConsoleRenderer(colors=out.isatty(), exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(file=out),
        cache_logger_on_first_use=False,
    )
    _configure_libraries(out, shared, renderer)
    _watch_for_the_unexpected()


def trace_id(study_instance_uid: str) -> str:
    """Give the id by which a study is followed through all processes: 12 hexadecimal digits of its UID's SHA-256."""
    return hashlib.sha256(study_instance_uid.encode()).hexdigest()[:12]


def place(error: BaseException) -> str:
    """Say where an error was raised, as function and line: what a log may show of one that quotes a data set."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].name}:{frames[-1].lineno}" if frames else "unknown"


def sanitize(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Replace what could tell who a patient is, and what could break a line (structlog processor)."""
    return {
        key: value if key == "exception" else _shown(key, value)  # an exception was described line by line
        for key, value in event.items()
    }


def describe_exception(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Turn `exc_info` into the exception's type and place, without the text of others' (structlog processor)."""
    info: Any = event.pop("exc_info", None)
    if info is True:
        info = sys.exc_info()
    if isinstance(info, BaseException):
        error: BaseException | None = info
    else:
        error = info[1] if info else None
    if error is not None:
        event["exception"] = _describe(error)
    return event


class _Stream:
    """A stream whose failure stops nothing: a full disk or a closed pipe behind the log is no reason to lose images."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):  # ValueError: it is closed
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()


class _Role:
    """A processor that names the process' role; threads inherit no context variables, but all share this."""

    def __init__(self, role: str | None) -> None:
        self._role = role

    def __call__(self, _logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        if self._role is not None:
            event.setdefault("role", self._role)
        return event


def _shown(key: str, value: object) -> object:
    if key.replace("_", "").lower() in _PERSONAL:
        return REDACTED
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Enum):
        return _shown(key, value.value)
    if isinstance(value, str):
        return _CONTROL.sub(lambda found: ascii(found.group())[1:-1], str(value))
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, PurePath | UUID):
        return _shown(key, str(value))
    if isinstance(value, BaseException):
        return _named(value)
    return _shown_parts(key, value)


def _shown_parts(key: str, value: object) -> object:
    if type(value).__module__.split(".")[0] in _QUOTING:  # a Dataset, a MultiValue
        return f"<{type(value).__name__}>"
    if isinstance(value, Mapping):
        return {str(k): _shown(str(k), v) for k, v in value.items()}
    if isinstance(value, Sequence | Set) and not isinstance(value, bytes | bytearray | memoryview):
        return [_shown(key, item) for item in value]
    return f"<{type(value).__name__}>"


def _named(error: BaseException) -> str:
    name = type(error).__qualname__
    if isinstance(error, DicomaiError):
        return f"{name}: {_shown('', str(error))}"
    if isinstance(error, OSError) and error.errno is not None:
        return f"{name}: {os.strerror(error.errno)}"
    return name


def _describe(error: BaseException) -> str:
    chain: list[str] = []
    link: BaseException | None = error
    while link is not None and len(chain) < 10:
        frames = "".join(traceback.format_tb(link.__traceback__))
        chain.append(f"{frames}{_named(link)}")
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return "\n\nfollowed by:\n".join(reversed(chain))


def _configure_libraries(out: TextIO, shared: list[Processor], renderer: Processor) -> None:
    """Send what libraries log by the standard library through the same processors, from WARNING on."""
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[_from_library, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    for old in [h for h in root.handlers if isinstance(h.formatter, structlog.stdlib.ProcessorFormatter)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    for name in (*_QUOTING, "pynetdicom", "alembic", "apscheduler"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.setLevel(logging.WARNING)
        logger.propagate = True


def _from_library(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Name the library; leave its text out where it may quote a patient's attributes."""
    record: logging.LogRecord = event["_record"]
    event["logger"] = record.name
    if record.name.split(".")[0] in _QUOTING:
        event["event"] = "a message of a library, its text left out"
        event["place"] = f"{record.module}:{record.lineno}"
    elif isinstance(record.msg, BaseException):  # pynetdicom logs an exception by its text
        event["event"] = _named(record.msg)
    return event


def _watch_for_the_unexpected() -> None:
    """Log Python warnings and uncaught exceptions without their text."""
    events = structlog.get_logger()

    def on_warning(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        del message, file, line
        place = "/".join(PurePath(filename).parts[-2:])
        events.warning("a Python warning, its text left out", category=category.__name__, place=f"{place}:{lineno}")

    def on_exception(kind: type[BaseException], error: BaseException, tb: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            sys.__excepthook__(kind, error, tb)
        else:
            events.critical("an exception that nobody expected ended this process", exc_info=error)

    def on_thread_exception(args: threading.ExceptHookArgs) -> None:
        if args.exc_value is not None:
            name = args.thread.name if args.thread else "unknown"
            events.critical("an exception that nobody expected ended a thread", thread=name, exc_info=args.exc_value)

    warnings.showwarning = on_warning
    sys.excepthook = on_exception
    threading.excepthook = on_thread_exception
