"""STOW-RS and QIDO-RS as user agent (PS3.18 10.5 and 10.6): objects to an origin server, byte for byte."""

import base64
import contextlib
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any
from urllib.parse import urlencode

from pydicom.uid import UID

from dicomai.config import DicomwebDestination, TlsSettings
from dicomai.destinations.base import Accepted, Asked, Outgoing, Refused, offer
from dicomai.destinations.dimse.find import FEWEST_LISTED, Place
from dicomai.destinations.dimse.storage import Answer
from dicomai.destinations.filing import blocks, size
from dicomai.destinations.web import Reply, Server
from dicomai.errors import DeliveryError, NotAdmittedError, NotKeptError, RejectedError, UnreachableError
from dicomai.study import IDENTITY, Identity

_TAGS = {
    "PatientName": "00100010",
    "PatientID": "00100020",
    "IssuerOfPatientID": "00100021",
    "PatientBirthDate": "00100030",
    "StudyInstanceUID": "0020000D",
    "SeriesInstanceUID": "0020000E",
    "SOPInstanceUID": "00080018",
}
_PAGE = 500
_MOST_LISTED = 10_000  # instances of a series; what is beyond them is asked for one by one
_OFFERS_NONE = frozenset({404, 405, 501})  # to a search: the server has none, or not at this URL
_REFERENCED_INSTANCE = "00081155"
_FAILED, _FAILURE_REASON = "00081198", "00081197"
_OTHER_FAILURES = "0008119A"  # of what the server could not name; each request has one object
_STORED, _WARNING_REASON = "00081199", "00081196"

_DUPLICATE = 0x0111
_SYNTAX_NOT_TAKEN = 0xC122  # PS3.18 Annex I.2.2; beside it the statuses of C-STORE
_NOBODYS_STUDY = "2.25.0"

_REMEDIES = {
    401: "check token, or user and password, of the [[destination]]",
    403: "allow this node to store and to search there",
    406: "have it answer in application/dicom+json",
    415: "have it take DICOM files in this transfer syntax",
}


class Dicomweb:
    """An origin server of the Store and Search transactions."""

    def __init__(self, settings: DicomwebDestination, *, timeout: float, tls: TlsSettings | None = None) -> None:
        """Make the destination; nothing is connected yet.

        Args:
            settings: the entry of the configuration.
            timeout: seconds without any progress after which an attempt ends.
            tls: the section `[tls]`.

        Raises:
            ConfigurationError: a file of `[tls]` is missing or wrong.
        """
        self._settings = settings
        self._server = Server(
            settings.name, settings.url, timeout, tls or TlsSettings(), headers=_headers(settings), remedies=_REMEDIES
        )

    @property
    def name(self) -> str:
        """The name in the configuration."""
        return self._settings.name

    @property
    def max_age(self) -> float | None:
        """Seconds after which a result is too old to be sent; None where it never is."""
        return self._settings.max_age

    @property
    def withdraws_superseded(self) -> bool:
        """Whether it is told by a rejection note of a result that another has taken the place of."""
        return self._settings.withdraw_superseded

    @property
    def verify_timeout(self) -> float | None:
        """Seconds for an accepted object to be shown by QIDO-RS; None where it is not asked."""
        return self._settings.verify_timeout if self._is_asked else None

    @property
    def _is_asked(self) -> bool:
        return self._settings.verify == "qido"

    def reach(self) -> None:
        """Ask whether the server is there; one that answers us, and be it to refuse, is.

        Raises:
            UnreachableError: it is not.
        """
        with contextlib.suppress(RejectedError):
            self.ask()

    def ask(self) -> Asked:
        """Search for a study that there cannot be, so that nothing of a patient comes.

        A server that offers no search may be in order unless the configuration has it searched; or else the URL is
        wrong, which nobody but a person can tell.

        Raises:
            UnreachableError: it is not there.
            RejectedError: it does not let us in, or offers no search where it is to be asked by QIDO-RS.
        """
        start = time.monotonic()
        reply = self._server.call("GET", f"/studies?{urlencode({'StudyInstanceUID': _NOBODYS_STUDY, 'limit': 1})}")
        seconds = time.monotonic() - start
        if reply.is_success:
            return Asked(seconds)
        if self._is_asked or self.checks_patient or reply.status not in {400, *_OFFERS_NONE}:
            raise self._server.refused(reply, "a search")
        return Asked(seconds, f"{reply.status} to a search, which is in order if it offers none; else check url.")

    def whereabouts(self, objects: Sequence[Outgoing]) -> dict[str, str | None]:
        """Say by QIDO-RS, by SOP Instance UID, how accepted objects are filed: '' as they were sent, None not at all.

        Raises:
            UnreachableError: no connection, it broke, or the server cannot answer for now.
            NotAdmittedError: the server does not let us search.
            RejectedError: the server offers no such search, or refuses it.
        """
        patients: dict[str, set[str]] = {}
        places = [Place.of(outgoing) for outgoing in objects]
        many = [uids for uids, count in Counter(p.series for p in places).items() if count >= FEWEST_LISTED]
        try:
            listed = {uids: self._listed(*uids) for uids in many}
            return {
                p.sop_instance_uid: self._whereabouts(p, patients, listed.get(p.series, frozenset())) for p in places
            }
        except NotAdmittedError:  # until a person corrects that; what was accepted is there all the same
            raise
        except RejectedError as error:
            raise RejectedError(f"What was accepted cannot be looked for: {error}") from error

    @property
    def checks_patient(self) -> bool:
        """Whether it is asked, before anything of a delivery is sent, whose the study is there."""
        return self._settings.check_patient

    def patients(self, study_instance_uid: str) -> list[Identity]:
        """Say by QIDO-RS whose a study is shown to be: each patient under whom it is shown, once.

        Raises:
            UnreachableError: no connection, it broke, or the server cannot answer for now.
            NotAdmittedError: the server does not let us search.
            RejectedError: the server offers no such search, or refuses it.
        """
        try:
            found = self._matches(
                "studies", {"StudyInstanceUID": study_instance_uid, "includefield": ",".join(IDENTITY)}
            )
        except NotAdmittedError:
            raise
        except RejectedError as error:
            raise RejectedError(f"Whose the study is there cannot be asked (check_patient): {error}") from error
        if not all(isinstance(match, dict) for match in found):  # it is about this study, and may forbid to send
            raise UnreachableError(f"{self._server} gave an answer on a study that cannot be read: see its log.")
        # Some leave out what they were asked by.
        about = [match for match in found if _texts(match, "StudyInstanceUID") in ([study_instance_uid], [])]
        return list(dict.fromkeys(map(_identity, about)))

    def send(self, objects: Sequence[Outgoing], accepted: Accepted, refused: Refused | None = None) -> None:
        """Store objects in the order given, each by a request of its own, byte for byte.

        Raises:
            NoAssociationError: no connection could be had, or the server takes nothing for now.
            NotKeptError: the server cannot make sense of an object (Cxxx), or does not say that it has it.
            UnreachableError: the connection broke, or the server cannot take the object for now.
            RejectedError: the server refuses us or an object for good.
        """
        for outgoing in objects:
            offer(outgoing, self._store, accepted, refused)

    def _store(self, outgoing: Outgoing) -> tuple[int, str]:
        """Store an object; gives the status and what it means once the server has it."""
        what = f"SOP Instance {outgoing.sop_instance_uid}"
        reply = self._post(outgoing)
        if not reply.is_success and reply.status != 409:
            raise self._server.refused(reply, what)
        module = reply.json()
        failed = _entry(module, _FAILED, outgoing) or next(_items(module, _OTHER_FAILURES), None)
        if failed is not None or reply.status == 409:
            return self._failed(outgoing, _code(failed, _FAILURE_REASON))
        stored = _entry(module, _STORED, outgoing)
        if stored is None:
            return self._looked_up(outgoing, reply)
        warning = Answer(_code(stored, _WARNING_REASON) or 0x0000)
        return warning.status, warning.meaning if warning.is_accepted else "warning"

    def _post(self, outgoing: Outgoing) -> Reply:
        boundary = uuid.uuid4().hex
        head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        end = f"\r\n--{boundary}--\r\n".encode()
        with outgoing.open() as file:
            headers = {
                "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
                "Content-Length": str(len(head) + size(file) + len(end)),
            }
            return self._server.call("POST", "/studies", chain((head,), blocks(file), (end,)), headers)

    def _failed(self, outgoing: Outgoing, reason: int | None) -> tuple[int, str]:
        """Raise what a Failure Reason means, but for a duplicate that is shown to be there."""
        what = f"SOP Instance {outgoing.sop_instance_uid}"
        if reason is None:
            raise NotKeptError(f"{self._server} did not store {what} and gives no reason: look into its log.")
        if reason == _SYNTAX_NOT_TAKEN:
            raise RejectedError(
                f"{self._server} does not take {UID(outgoing.sop_class_uid).name} in"
                f" {UID(outgoing.transfer_syntax_uid).name}: allow this transfer syntax there, then retry."
            )
        answer = Answer(reason).to(outgoing)
        if answer.is_duplicate:
            shown = self._looked_for(outgoing, answer.error(what, self._server))
            return _DUPLICATE, f"{answer.meaning}; {shown}"
        raise answer.error(what, self._server)

    def _looked_up(self, outgoing: Outgoing, reply: Reply) -> tuple[int, str]:
        """Search for an object that an answer of success does not name, where the server is asked at all."""
        said = f"{self._server} answered {reply.status} to SOP Instance {outgoing.sop_instance_uid} without naming it."
        if not self._is_asked:
            raise RejectedError(
                f"{said} Set verify of the [[destination]] to 'qido' if it can be searched, so that it is looked for."
            )
        return 0x0000, f"the answer does not name it; {self._looked_for(outgoing, said)}"

    def _looked_for(self, outgoing: Outgoing, said: DeliveryError | str) -> str:
        """Make sure that an object is there; gives what to say of it.

        Raises:
            NotKeptError: it is not shown, yet or at all.
            NotAdmittedError: the server does not let us search.
            RejectedError: the server offers no such search.
            UnreachableError: the server cannot answer for now.
        """
        try:
            where = self._whereabouts(Place.of(outgoing), {}, frozenset())
        except NotAdmittedError:
            raise
        except RejectedError as error:
            raise RejectedError(f"{said} QIDO-RS cannot tell whether it is there: {error}") from error
        if where is None:
            raise NotKeptError(f"{said} QIDO-RS does not show it there.")
        return f"QIDO-RS shows it there{', ' if where else ''}{where}"

    def _whereabouts(self, place: Place, patients: dict[str, set[str]], listed: frozenset[str]) -> str | None:
        """Say how an object is filed, as `Finder.whereabouts` does over DIMSE.

        Args:
            place: where it belongs.
            patients: Patient IDs by study that are known already; more are added.
            listed: SOP Instance UIDs that a list of its series has.
        """
        study = place.study_instance_uid
        if place.sop_instance_uid in listed or self._search("instances", place.keys):
            if study not in patients:
                found = self._search("studies", {"StudyInstanceUID": study})
                patients[study] = {value for match in found for value in _texts(match, "PatientID")}
            return "filed under another PatientID" if patients[study] - {"", place.patient_id} else ""
        try:
            found = self._search("instances", {"SOPInstanceUID": place.sop_instance_uid})
        except NotAdmittedError:
            raise
        except RejectedError:  # relational, which a server need not offer
            return None
        if not found:
            return None
        others = {value for match in found for value in _texts(match, "StudyInstanceUID")} - {study}
        return f"filed under another {'StudyInstanceUID' if others else 'SeriesInstanceUID'}"

    def _listed(self, study_instance_uid: str, series_instance_uid: str) -> frozenset[str]:
        """List the instances of a series, a page at a time: what is not in the list may be there all the same.

        A server that passes over `offset` gives the same page twice, which ends it, as does one that has no such list.
        """
        keys = {"StudyInstanceUID": study_instance_uid, "SeriesInstanceUID": series_instance_uid}
        uids = [study_instance_uid], [series_instance_uid]
        found = set[str]()
        while True:
            try:
                page = self._matches("instances", {**keys, "limit": str(_PAGE), "offset": str(len(found))})
            except NotAdmittedError:
                raise
            except RejectedError:
                return frozenset(found)
            before = len(found)
            for match in page:
                if (_texts(match, "StudyInstanceUID"), _texts(match, "SeriesInstanceUID")) == uids:
                    found.update(_texts(match, "SOPInstanceUID"))
            if len(found) == before or len(page) < _PAGE or len(found) > _MOST_LISTED:
                return frozenset(found)

    def _search(self, level: str, keys: Mapping[str, str]) -> list[object]:
        """Search at a level, and give the matches that are what was asked for: some servers pass over keys."""
        found = self._matches(level, keys)
        own = "StudyInstanceUID" if level == "studies" else "SOPInstanceUID"
        return [
            match
            for match in found
            if _texts(match, own) == [keys[own]] and all(_texts(match, k) in ([keys[k]], []) for k in keys)
        ]

    def _matches(self, level: str, parameters: Mapping[str, str]) -> list[object]:
        reply = self._server.call("GET", f"/{level}?{urlencode(parameters)}")
        if reply.status == 204:
            return []
        if reply.status in _OFFERS_NONE:
            raise RejectedError(str(self._server.refused(reply, "a search")))
        if not reply.is_success:
            raise self._server.refused(reply, "a search")
        found = reply.json()
        if not isinstance(found, list):
            raise RejectedError(
                f"{self._server} answered a search with what is no list in JSON: check url, then retry."
            )
        return found


def _headers(settings: DicomwebDestination) -> dict[str, str]:
    headers = {"Accept": "application/dicom+json"}
    token, user = settings.token.get_secret_value(), settings.user
    if token:
        headers["Authorization"] = f"Bearer {token}"
    elif user:
        pair = f"{user}:{settings.password.get_secret_value()}"
        headers["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode('ascii')}"
    return headers


def _identity(match: object) -> Identity:
    patient_id, issuer, birth_date = (
        next(iter(_texts(match, keyword)), "") for keyword in ("PatientID", "IssuerOfPatientID", "PatientBirthDate")
    )
    name = next(iter(_values(match, _TAGS["PatientName"])), "")
    if isinstance(name, dict):  # PS3.18 F.2.2
        name = "=".join(str(name.get(group) or "") for group in ("Alphabetic", "Ideographic", "Phonetic"))
    return Identity(patient_id, issuer, str(name or ""), birth_date)


def _texts(match: object, keyword: str) -> list[str]:
    return [str(value).strip("\0 ") for value in _values(match, _TAGS[keyword]) if value is not None]


def _entry(module: object, sequence: str, outgoing: Outgoing) -> object | None:
    """Find what the Store Instances Response Module (PS3.18 Table I.2-1) says of an object in one of its sequences."""
    uids = [outgoing.sop_instance_uid]
    return next((item for item in _items(module, sequence) if _values(item, _REFERENCED_INSTANCE) == uids), None)


def _items(module: object, sequence: str) -> Iterator[object]:
    for one in module if isinstance(module, list) else [module]:  # some wrap it as if it were one of several
        yield from _values(one, sequence)


def _code(item: object, tag: str) -> int | None:
    """Give the value of an attribute of VR US; None where there is none."""
    value = next(iter(_values(item, tag)), None)
    return value if isinstance(value, int) and 0 <= value <= 0xFFFF else None


def _values(item: object, tag: str) -> list[Any]:
    """Give the values of an attribute in the DICOM JSON model (PS3.18 Annex F)."""
    element = item.get(tag) if isinstance(item, dict) else None
    values = element.get("Value") if isinstance(element, dict) else None
    return values if isinstance(values, list) else []
