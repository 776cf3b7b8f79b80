"""DICOMweb on the console's port: STOW-RS in, by the same way as C-STORE, and WADO-RS out (PS3.18 10.4 and 10.5)."""

import contextlib
import hmac
import itertools
import re
import threading
import time
from collections.abc import Iterable, Iterator
from http import HTTPStatus
from urllib.parse import urlsplit

import pydicom.config
import structlog

from dicomai.association import AssociationEnd
from dicomai.config import Settings
from dicomai.console import stow, wado
from dicomai.console.body import RequestError
from dicomai.console.exchange import Exchange
from dicomai.console.multipart import Part, boundary_of, read_parts
from dicomai.console.stow import Deposit
from dicomai.database import Database
from dicomai.database.index import Recorded
from dicomai.database.retrieval import Retrieval
from dicomai.errors import DicomaiError, StoreError, UnreadableError
from dicomai.filemeta import FileMeta
from dicomai.intake import Intake
from dicomai.log import place, trace_id
from dicomai.receiver import contexts, statuses
from dicomai.store import Store, checked_uid

log = structlog.get_logger()

ROOT = "/dicomweb"
"""Below this path are the services."""

MOST_PARTS = 100_000
"""How many parts a request may have: what is answered to each is in memory until the end."""

_PATH = re.compile(rf"{ROOT}/studies(?:/([^/]+)(?:/series/([^/]+)(?:/instances/([^/]+))?)?)?/?")
_RENEWAL_SECONDS = 10.0
_GRACE_SECONDS = 10.0


class DicomWeb:
    """Answers the requests below `/dicomweb`; a request that brings instances is an association to the index."""

    def __init__(self, settings: Settings, intake: Intake, store: Store, database: Database) -> None:
        """Make the services; what an end without warning left behind is cleared up by `intake.recover` before.

        Args:
            settings: `[console]` and `[receiver]` are used.
            intake: where instances go.
            store: where they are had from.
            database: where the index is.
        """
        self._public_url = settings.console.public_url
        self._token = settings.console.token.get_secret_value()
        self._limits = settings.receiver
        self._intake = intake
        self._store = store
        self._retrieval = Retrieval(database)
        self._slots = threading.BoundedSemaphore(self._limits.max_associations)
        self._lock = threading.Lock()
        self._open: set[int] = set()
        pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE  # its warnings quote the values

    def run(self, stop: threading.Event) -> None:
        """Keep the leases of what is being received, until told to stop; then give it some time to end."""
        while not stop.wait(_RENEWAL_SECONDS):
            self._renew()
        end = time.monotonic() + _GRACE_SECONDS
        while self._numbers() and time.monotonic() < end:
            time.sleep(0.05)

    def answer(self, exchange: Exchange) -> None:
        """Answer a request, with an error of HTTP's where need be."""
        try:
            self._admit(exchange)
            with self._slot():
                self._route(exchange)
        except RequestError as error:
            self._refuse(exchange, error.status, str(error))
        except UnreadableError as error:
            self._refuse(exchange, HTTPStatus.BAD_REQUEST, str(error))
        except StoreError as error:
            self._refuse(exchange, HTTPStatus.SERVICE_UNAVAILABLE, str(error))

    def _refuse(self, exchange: Exchange, status: HTTPStatus, sentence: str) -> None:
        log.warning("request refused", status=status.value, remedy=sentence, address=exchange.address)
        if exchange.has_begun:  # an answer that is cut short is no answer; the reader sees that bytes are missing
            exchange.close_connection = True
            return
        more = {"WWW-Authenticate": 'Bearer realm="dicomai"'} if status is HTTPStatus.UNAUTHORIZED else None
        exchange.answer(status, "text/plain; charset=utf-8", sentence, more)

    def _admit(self, exchange: Exchange) -> None:
        """Let in who may come.

        Raises:
            RequestError: it is a page of another site that asks, or the token is missing or wrong.
        """
        origin = exchange.headers.get("Origin")
        if origin is not None and urlsplit(origin.lower()).netloc != _host(exchange).lower():
            raise RequestError(HTTPStatus.FORBIDDEN, "A page of another site may not use this node.")
        if not self._token:
            return
        scheme, _, given = exchange.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._token.encode()):
            raise RequestError(HTTPStatus.UNAUTHORIZED, "Send the node's console.token as a bearer token.")

    @contextlib.contextmanager
    def _slot(self) -> Iterator[None]:
        if not self._slots.acquire(blocking=False):
            raise RequestError(
                HTTPStatus.SERVICE_UNAVAILABLE, "As many requests are under way as may be; send it again later."
            )
        try:
            yield
        finally:
            self._slots.release()

    def _route(self, exchange: Exchange) -> None:
        found = _PATH.fullmatch(exchange.path.partition("?")[0])
        if found is None:
            raise RequestError(HTTPStatus.NOT_FOUND, f"There is {ROOT}/studies, with series and instances below it.")
        study, series, instance = (
            uid and checked_uid(uid, keyword)
            for uid, keyword in zip(
                found.groups(), ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"), strict=True
            )
        )
        match exchange.command, study, series:
            case "POST", _, None:
                self._receive(exchange, study)
            case "GET", str(), _:
                self._send(exchange, study, series, instance)
            case _:
                raise RequestError(
                    HTTPStatus.METHOD_NOT_ALLOWED, "POST to studies or one study, GET a study, series or instance."
                )

    def _send(self, exchange: Exchange, study: str, series: str | None, instance: str | None) -> None:
        syntaxes = wado.accepted_syntaxes(exchange.headers.get_all("Accept", []))
        kept = self._retrieval.find(study, series, instance, withdrawn=False)
        if not kept:
            raise RequestError(HTTPStatus.NOT_FOUND, "Nothing of that name is kept here.")
        wado.send(exchange, self._store, kept, syntaxes)
        log.info("images were fetched", study=trace_id(study), instances=len(kept), address=exchange.address)

    def _receive(self, exchange: Exchange, study: str | None) -> None:
        """Take in what a request brings, and answer once all of it is durable."""
        boundary, body = boundary_of(exchange.headers), exchange.body()
        base_url = self._public_url or f"http://{_named_host(exchange)}"
        if not self._intake.has_room():
            raise RequestError(
                HTTPStatus.SERVICE_UNAVAILABLE, "The storage's disk is nearly full; free some room, then send again."
            )
        with self._association(exchange) as deposit:
            exchange.go_on(self._limits.idle_timeout)
            for number, part in enumerate(read_parts(_in_time(body, self._limits.total_timeout), boundary)):
                if number == MOST_PARTS:
                    raise RequestError(
                        HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"The request has more than {MOST_PARTS} parts; send less."
                    )
                self._take(part, deposit, study)
            if not deposit.stored and not deposit.failures:
                raise RequestError(HTTPStatus.BAD_REQUEST, "The body has no part; send one instance or more.")
            text = deposit.response(f"{base_url}{ROOT}")
            exchange.answer(deposit.status, "application/dicom+json", text)

    def _take(self, part: Part, deposit: Deposit, study: str | None) -> None:
        """Take in one part; what is wrong with it alone is noted, and the next may be better.

        Raises:
            RequestError: the body broke off, or is none.
        """
        meta: FileMeta | None = None
        try:
            meta, rest = stow.read_meta(stow.file_of(part))
            status = _judge(meta)
            if status is not None:
                _fail(deposit, meta, status)
                return
            recorded = self._intake.accept(meta, itertools.chain([rest], part.blocks), deposit.row, study)
        except RequestError:
            raise
        except Exception as error:  # noqa: BLE001  the sender must be answered, and the other parts be taken
            _fail(deposit, meta, statuses.status_of(error), error)
        else:
            deposit.owed.discard(meta.sop_instance_uid)
            found = self._retrieval.find(sop_instance_uid=meta.sop_instance_uid, withdrawn=False)
            deposit.stored.append((meta, found[0] if found and recorded is not Recorded.CONFLICT else None))

    @contextlib.contextmanager
    def _association(self, exchange: Exchange) -> Iterator[Deposit]:
        """Write a request down as an association: released once it was answered, lost where it was not.

        One in which instances are owed has not brought its series whole: it counts as lost, so that they wait.
        """
        deposit = Deposit(self._intake.open_association(stow.CALLING_AE, exchange.address))
        log.info("association opened", association=deposit.row, calling_ae=stow.CALLING_AE, address=exchange.address)
        with self._lock:
            self._open.add(deposit.row)
        end = AssociationEnd.LOST
        try:
            yield deposit
            if not deposit.owed:
                end = AssociationEnd.RELEASED
        finally:
            with self._lock:
                self._open.discard(deposit.row)
            self._close(deposit, end)

    def _close(self, deposit: Deposit, end: AssociationEnd) -> None:
        facts = {"association": deposit.row, "instances": len(deposit.stored), "failures": deposit.failures}
        if end is AssociationEnd.RELEASED:
            log.info("association released", **facts)
        else:
            remedy = "have the sender send the request again: not all of it came, or not all of it could be stored"
            log.warning(f"association {end}; its series wait for the rest", remedy=remedy, **facts)
        try:
            self._intake.close_association(deposit.row, end)
        except StoreError as error:
            log.error(
                "the end of an association could not be written down; its lease will run out",
                association=deposit.row,
                error=str(error),
            )

    def _numbers(self) -> list[int]:
        with self._lock:
            return list(self._open)

    def _renew(self) -> None:
        try:
            self._intake.renew(self._numbers())
        except StoreError as error:  # the next renewal may work
            log.error("leases of open associations could not be renewed", error=str(error))


def _in_time(blocks: Iterable[bytes], seconds: float) -> Iterator[bytes]:
    """Give blocks on for some time; a sender may be slow, but not hold its place for ever.

    Raises:
        RequestError: the time is over.
    """
    end = time.monotonic() + seconds
    for block in blocks:
        if time.monotonic() > end:
            raise RequestError(
                HTTPStatus.REQUEST_TIMEOUT, "The request takes longer than receiver.total_timeout; send less at a time."
            )
        yield block


def _host(exchange: Exchange) -> str:
    """Give how the sender calls us, for URLs; empty where it is nothing that could stand in one."""
    host = exchange.headers.get("Host", "")
    return host if re.fullmatch(r"[A-Za-z0-9._:\[\]-]{1,255}", host) else ""


def _named_host(exchange: Exchange) -> str:
    """Give how the sender calls us.

    Raises:
        RequestError: it does not say so; a Retrieve URL without it would lead nowhere (RFC 9112 3.2).
    """
    host = _host(exchange)
    if not host:
        raise RequestError(
            HTTPStatus.BAD_REQUEST, "The request has no usable Host header; send one, or set console.public_url."
        )
    return host


def _judge(meta: FileMeta) -> statuses.Status | None:
    """Say what keeps an instance from being taken, as presentation contexts do in C-STORE; None where nothing does."""
    if not contexts.is_storage(meta.sop_class_uid):
        return statuses.NOT_NEGOTIATED
    if not contexts.is_acceptable(meta.transfer_syntax_uid):
        return stow.SYNTAX_NOT_TAKEN
    return None


def _fail(deposit: Deposit, meta: FileMeta | None, status: statuses.Status, error: Exception | None = None) -> None:
    """Note and log a failure; the text of a foreign error is left out, it may quote the data set."""
    deposit.fail(meta, status)
    facts: dict[str, str] = {}
    if isinstance(error, DicomaiError):
        facts["error"] = str(error)
    elif error is not None:
        facts = {"error": type(error).__name__, "place": place(error)}
    log.warning(
        f"instance refused with {status.code:04X}: {status.meaning}",
        remedy=status.remedy,
        association=deposit.row,
        calling_ae=stow.CALLING_AE,
        sop_instance_uid=meta.sop_instance_uid if meta else "",
        **facts,
    )
