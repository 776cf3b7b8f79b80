"""`check_patient`: whose the study is at the destination, before anything is sent there; and how many queries it takes.

The peers are real SCPs that answer C-FIND as some archives do.
"""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from pydicom.dataset import Dataset, FileDataset
from pydicom.valuerep import PersonName
from structlog.testing import capture_logs

from dicomai.config import DicomwebDestination, SourceSettings
from dicomai.database.tables import Audit, Result
from dicomai.database.withdrawals import Withdrawals
from dicomai.destinations import Dicomweb, Outgoing
from dicomai.destinations.base import Knowing, Searchable
from dicomai.errors import DicomaiError, RejectedError, UnreachableError, WorklistError
from dicomai.rejection import KEY_OBJECT_SELECTION
from dicomai.sources.dimse import series_counts
from dicomai.withdrawer import Withdrawer
from dicomai.workitem import State
from tests.archive import SEG, SR, Archive, audited, classes, data_set, delivery
from tests.beds import Bed, route
from tests.dimse import HOST
from tests.synthetic import encode, series
from tests.web import served

STUDY = "1.2.826.0.1.3680043.10.1"
OURS = {"PatientID": "P0", "PatientName": "Müller^Jörg", "PatientBirthDate": "19501231"}
LATIN, UTF8 = {"SpecificCharacterSet": "ISO_IR 100"}, {"SpecificCharacterSet": "ISO_IR 192"}


def analysed(bed: Bed) -> list[FileDataset]:
    """Analyse a series, and give its images; its delivery waits."""
    images = series(modality="MR", shape=(2, 12, 16), study_uid=STUDY, **LATIN, **OURS)
    bed.take(images)
    bed.plan(route())
    assert bed.worker().step()
    return images


class Pacs(Archive):
    """A PACS whose answers at the level STUDY are told."""

    shown: tuple[Dataset, ...] = ()
    status = 0x0000

    def find(self, event: Any) -> Iterator[tuple[int, Dataset | None]]:
        """Answer what is told."""
        self.queries.append(event.identifier)
        for ds in self.shown:
            yield 0xFF00, ds
        yield self.status, None

    def shows(self, *answers: dict[str, Any]) -> None:
        """Answer so from now on; the study is this one unless told otherwise."""
        self.shown = tuple(data_set(**{"StudyInstanceUID": STUDY, **answer}) for answer in answers)


def said_of(logs: list[Any], event: str) -> list[Any]:
    return [line for line in logs if line["event"] == event]


class TestAnotherPatient:
    def test_it_holds_the_delivery_until_it_is_corrected(self, bed: Bed) -> None:
        analysed(bed)
        with Pacs().open() as pacs, capture_logs() as logs:
            pacs.shows(OURS | UTF8 | {"PatientID": "SOMEBODY", "PatientName": "Else^Some"})
            lane = bed.delivery(pacs.destination(check_patient=True), attempts=2)
            first = 0
            for wait in (601, 700, 1400):  # it may take any number of questions, which come ever less
                assert lane.step()
                first = first or len(bed.rows(Audit))
                assert len(bed.rows(Audit)) == first  # for nothing is new
                bed.turn(wait - 200)
                assert not lane.step()
                bed.turn(200)
            row = delivery(bed)
            assert (row.state, row.lease_owner, pacs.server.received) == (State.IN_PROGRESS, None, [])
            assert "PatientID, PatientName differ" in row.hold
            assert bed.overview.entries()[0].state == "IN PROGRESS (held)"
            assert [one.first_sent_at for one in bed.rows(Result)] == [None]  # so that it can be corrected here too
            pacs.shows(OURS | UTF8)
            assert lane.step()
        row = delivery(bed)
        assert (row.state, row.hold, row.mismatch, classes(pacs)) == (State.COMPLETED, "", "", [SEG, SR])
        assert [one.workitem_id for one in audited(bed, "let go")] == [row.id]
        assert {line["reason"].partition(": ")[2] for line in said_of(logs, "held for a person")} == {
            "PatientID, PatientName differ"
        }
        assert {"SOMEBODY", "Else", "P0"}.isdisjoint(str(logs).replace("'", " ").split())
        (query, *_) = pacs.queries
        assert (query.QueryRetrieveLevel, query.StudyInstanceUID, query.PatientID) == ("STUDY", STUDY, "")

    def test_images_that_were_corrected_lift_it_and_the_result_says_as_they_do(self, sqlite_bed: Bed) -> None:
        images = analysed(sqlite_bed)
        with Pacs().open() as pacs:
            pacs.shows({"PatientID": "P1"})
            lane = sqlite_bed.delivery(pacs.destination(check_patient=True))
            lane.step()
            for one in images:
                one.PatientID = "P1"
            sqlite_bed.take(images)
            sqlite_bed.turn(601)
            sqlite_bed.plan(route())
            lane.step()
        assert delivery(sqlite_bed).state == State.COMPLETED
        assert all(b"P1" in one.data_set and b"P0" not in one.data_set for one in pacs.server.received)

    def test_a_person_may_have_it_sent_and_vouches_for_what_was_read_alone(self, bed: Bed) -> None:
        analysed(bed)
        with Pacs().open() as pacs:
            pacs.shows({"PatientID": "SOMEBODY"})
            lane = bed.delivery(pacs.destination(check_patient=True))
            lane.step()
            read = delivery(bed).hold
            assert bed.overview.release(delivery(bed).id, "person/x") == ""
            assert [row.detail for row in audited(bed, "released")] == [read]
            pacs.shows({"PatientID": "SOMEBODY", "PatientBirthDate": "19000101"})  # which nobody has read
            lane.step()
            assert "PatientBirthDate, PatientID differ" in delivery(bed).hold
            assert bed.overview.release(delivery(bed).id, "person/x") == ""
            pacs.shows({"PatientID": "A THIRD ONE", "PatientBirthDate": "19000101"})  # who differs in the same
            lane.step()
            assert "PatientBirthDate, PatientID differ" in delivery(bed).hold
            assert bed.overview.release(delivery(bed).id, "person/x") == ""
            lane.step()
        assert (delivery(bed).state, classes(pacs)) == (State.COMPLETED, [SEG, SR])

    def test_a_person_who_speaks_while_it_is_asked_again_is_heard(self, bed: Bed) -> None:
        analysed(bed)
        pacs = Pacs()
        find = pacs.find

        def answer(event: Any) -> Iterator[tuple[int, Dataset | None]]:
            if len(pacs.queries) == 1:
                bed.overview.release(delivery(bed).id, "person/x")
            yield from find(event)

        pacs.find = answer  # type: ignore[method-assign]  # a person at that moment
        with pacs.open():
            pacs.shows({"PatientID": "SOMEBODY"})
            lane = bed.delivery(pacs.destination(check_patient=True))
            lane.step()
            bed.turn(601)
            lane.step()
        assert (delivery(bed).state, delivery(bed).hold) == (State.COMPLETED, "")

    def test_it_outlives_what_else_happens_to_the_study(self, bed: Bed) -> None:
        analysed(bed)
        with Pacs().open() as pacs:
            pacs.shows({"PatientID": "SOMEBODY"})
            lane = bed.delivery(pacs.destination(check_patient=True))
            lane.step()
            read = delivery(bed).hold
            more = series(modality="MR", shape=(2, 12, 16), study_uid=STUDY, series_uid="1.2.3", **LATIN, **OURS)
            bed.take(more)
            bed.plan(route())
            assert delivery(bed).hold == read
            for one in more:
                one.PixelData = bytes(len(one.PixelData))
            bed.take(more)  # a doubt, which a person clears up first
            bed.plan(route())
            doubt = delivery(bed).hold
            assert doubt not in {"", read}
            bed.turn(601)
            assert not lane.step()
            assert bed.overview.release(delivery(bed).id, "person/x") == read
            assert delivery(bed).hold == read
            pacs.shows(OURS | UTF8)
            lane.step()
        assert delivery(bed).state == State.COMPLETED

    def test_half_a_result_is_completed_under_whom_it_was_begun(self, sqlite_bed: Bed) -> None:
        analysed(sqlite_bed)
        with Pacs().open(0x0000, 0xA700, 0x0000) as pacs:
            pacs.shows(OURS | UTF8)
            lane = sqlite_bed.delivery(pacs.destination(check_patient=True))
            lane.step()
            pacs.shows({"PatientID": "SOMEBODY"})
            sqlite_bed.turn(60)
            lane.step()
        assert (delivery(sqlite_bed).state, classes(pacs)) == (State.COMPLETED, [SEG, SR, SR])

    def test_a_note_that_withdraws_is_not_filed_under_another_patient_either(self, sqlite_bed: Bed) -> None:
        analysed(sqlite_bed)
        with Pacs().open() as pacs:
            pacs.shows(OURS | UTF8)
            lane = sqlite_bed.delivery(pacs.destination(check_patient=True))
            lane.step()
            (result,) = Withdrawals(sqlite_bed.database).results_of("tiny")
            Withdrawals(sqlite_bed.database).schedule(result.item, "person/x", "A test.")
            assert Withdrawer(sqlite_bed.store, sqlite_bed.database, timezone="Europe/Berlin").step()
            pacs.shows({"PatientID": "SOMEBODY"})
            lane.step()
            assert " PatientID differ" in delivery(sqlite_bed, 1).hold
            sqlite_bed.overview.release(delivery(sqlite_bed, 1).id, "person/x")
            lane.step()
        assert classes(pacs) == [SEG, SR, KEY_OBJECT_SELECTION]

    def test_where_the_key_is_taken_away_again_it_goes_on(self, sqlite_bed: Bed) -> None:
        analysed(sqlite_bed)
        with Pacs().open() as pacs:
            pacs.shows({"PatientID": "SOMEBODY"})
            sqlite_bed.delivery(pacs.destination(check_patient=True)).step()
            sqlite_bed.turn(601)
            sqlite_bed.delivery(pacs.destination()).step()
        assert (delivery(sqlite_bed).state, delivery(sqlite_bed).hold) == (State.COMPLETED, "")
        with pytest.raises(WorklistError, match="is not held"):
            sqlite_bed.overview.release(delivery(sqlite_bed).id, "person/x")


UNDECLARED = PersonName("Müller^Jörg".encode())

SAME: dict[str, list[dict[str, Any]]] = {
    "in another character set": [OURS | UTF8],
    "of which nobody says in which character set": [OURS | {"PatientName": UNDECLARED}],
    "in capitals, with carets at the end": [OURS | UTF8 | {"PatientName": "MÜLLER^JÖRG^^^"}],
    "twice": [OURS | UTF8, OURS | UTF8],
    "without what it leaves out": [{"PatientID": "P0", "PatientName": ""}],
    "among others' studies": [{"PatientID": "X", "StudyInstanceUID": "1.2.9"}, OURS | UTF8],
    "not yet": [],
    "at another level": [{"PatientID": "P0", "QueryRetrieveLevel": "SERIES", "SeriesInstanceUID": "1.2.4"}],
}
OTHER: dict[str, tuple[list[dict[str, Any]], str]] = {
    "in two": ([OURS | UTF8, {"PatientID": "X"}], "PatientID"),
    "without an ID, of another name": ([{"PatientID": "", "PatientName": "Else^Some"}], "PatientName"),
    "in an answer that leaves out whose study it is": ([{"PatientID": "X", "StudyInstanceUID": ""}], "PatientID"),
    "of another date of birth": ([{"PatientID": "P0", "PatientBirthDate": "19501230"}], "PatientBirthDate"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    folder = tmp_path_factory.mktemp("odd")
    one = Bed(folder, f"sqlite:///{folder / 'worklist.db'}")
    analysed(one)
    yield one
    one.close()


class TestOddAnswers:
    """One result is made, and sent to each of them."""

    @pytest.fixture
    def again(self, made: Bed) -> Iterator[Bed]:
        """Its delivery, as if it had not been tried."""
        yield made
        last = delivery(made, -1)
        if last.state not in {State.COMPLETED, State.CANCELED}:
            made.overview.cancel(last.id, "person/x")
        made.overview.retry(last.id, "person/x")

    @pytest.mark.parametrize("case", SAME)
    def test_the_same_patient(self, again: Bed, case: str) -> None:
        with Pacs().open() as pacs:
            pacs.shows(*SAME[case])
            again.delivery(pacs.destination(check_patient=True)).step()
        assert (delivery(again, -1).state, len(pacs.queries)) == (State.COMPLETED, 1)

    @pytest.mark.parametrize("case", OTHER)
    def test_another_patient(self, again: Bed, case: str) -> None:
        answers, keyword = OTHER[case]
        with Pacs().open() as pacs:
            pacs.shows(*answers)
            again.delivery(pacs.destination(check_patient=True)).step()
        assert f" {keyword} differ" in delivery(again, -1).hold
        assert pacs.server.received == []

    def test_an_answer_that_cannot_be_read_is_no_leave_to_send(
        self, again: Bed, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with Pacs().open() as pacs:
            pacs.shows(OURS | UTF8)
            monkeypatch.setattr("pynetdicom.association.decode", lambda *_: 1 / 0)  # no library encodes such an answer
            again.delivery(pacs.destination(check_patient=True)).step()
        row = delivery(again, -1)
        assert (row.state, pacs.server.received) == (State.IN_PROGRESS, [])
        assert "an answer on a study that cannot be read" in row.reason

    def test_a_pacs_that_gives_no_patient_id_is_named_in_the_log(self, again: Bed) -> None:
        with Pacs().open() as pacs, capture_logs() as logs:
            pacs.shows({"PatientName": "müller^jörg", **UTF8})
            again.delivery(pacs.destination(check_patient=True)).step()
        assert delivery(again, -1).state == State.COMPLETED
        assert [x["log_level"] for x in said_of(logs, "the destination shows the study without a Patient ID")] == [
            "warning"
        ]

    @pytest.mark.parametrize(("status", "state"), [(0xA700, State.IN_PROGRESS), (0xA900, State.CANCELED)])
    def test_a_question_that_is_refused(self, again: Bed, status: int, state: State) -> None:
        with Pacs().open() as pacs:
            pacs.status = status
            again.delivery(pacs.destination(check_patient=True)).step()
        row = delivery(again, -1)
        assert (row.state, row.hold, pacs.server.received) == (state, "", [])
        assert f"answered {status:04X}" in row.reason
        assert ("check_patient" in row.reason) is (state is State.CANCELED)

    def test_without_the_key_nobody_is_asked(self, again: Bed) -> None:
        with Pacs().open() as pacs:
            again.delivery(pacs.destination()).step()
        assert (delivery(again, -1).state, pacs.queries) == (State.COMPLETED, [])


@pytest.mark.parametrize(
    ("status", "of_destination", "of_source"),
    [
        (0xA700, UnreachableError, UnreachableError),
        (0xA900, RejectedError, RejectedError),
        (0xC001, UnreachableError, UnreachableError),
        (
            0x0107,
            UnreachableError,
            RejectedError,
        ),  # no failure of C-FIND: a result waits, a person who fetches does not
    ],
)
def test_what_a_refused_query_means(
    status: int, of_destination: type[DicomaiError], of_source: type[DicomaiError]
) -> None:
    with Pacs().open() as pacs:
        pacs.shows(OURS | UTF8)  # what came before does not count
        pacs.status = status
        destination = pacs.destination()
        assert isinstance(destination, Knowing)
        with pytest.raises(DicomaiError, match=f"answered {status:04X}") as said:
            destination.patients(STUDY)
        assert type(said.value) is of_destination
        source = SourceSettings(name="pacs", ae_title="PACS", host=HOST, port=pacs.server.port)
        with pytest.raises(DicomaiError, match=f"answered {status:04X}") as said:
            series_counts(source, "DICOMAI", STUDY, 5.0)
        assert type(said.value) is of_source


def objects(count: int) -> tuple[list[Dataset], list[Outgoing]]:
    """Make images of one series."""
    made = series(shape=(count, 2, 2), study_uid=STUDY, series_uid=f"{STUDY}.1", **LATIN, **OURS)
    files = [encode(ds) for ds in made]
    return list(made), [
        Outgoing(str(ds.SOPClassUID), str(ds.SOPInstanceUID), lambda file=file: BytesIO(file))  # type: ignore[misc]
        for ds, file in zip(made, files, strict=True)
    ]


class TestManyOfASeries:
    """What was accepted is looked up in one list of its series, and by itself where that does not have it."""

    @pytest.mark.parametrize(("at_once", "queries"), [(100, 2), (4, 2 + 2), (0, 2 + 6)])
    def test_c_find(self, at_once: int, queries: int) -> None:
        images, sent = objects(6)

        class Sparing(Archive):
            """Gives so many answers and no more; none at all is a failure."""

            def find(self, event: Any) -> Iterator[tuple[int, Dataset | None]]:
                answers = list(super().find(event))[:-1]
                if len(answers) > at_once and event.identifier.QueryRetrieveLevel == "IMAGE" and len(answers) > 1:
                    yield from answers[:at_once]
                    yield 0xA700, None
                else:
                    yield from answers
                    yield 0x0000, None

        with Sparing(kept=images).open() as pacs:
            destination = pacs.destination()
            assert isinstance(destination, Searchable)
            assert set(destination.whereabouts(sent).values()) == {""}
            assert len(pacs.queries) == queries
            pacs.kept = images[:-1]
            assert [uid for uid, text in destination.whereabouts(sent).items() if text is None] == [
                images[-1].SOPInstanceUID
            ]
            for one in images:
                one.PatientID = "SOMEBODY"
            assert set(destination.whereabouts(sent).values()) == {None, "filed under another PatientID"}

    def test_a_list_of_all_that_there_is_shows_nothing_of_another_series(self) -> None:
        images, sent = objects(5)
        for one in images:
            one.SeriesInstanceUID = "1.2.3"

        class Careless(Archive):
            """Passes over the key of the series where it is asked for a list, and else over none."""

            def find(self, event: Any) -> Iterator[tuple[int, Dataset | None]]:
                if event.identifier.get("SOPInstanceUID") == "":
                    event.identifier.SeriesInstanceUID = ""
                yield from super().find(event)

        with Careless(kept=images).open() as pacs:
            destination = pacs.destination()
            assert isinstance(destination, Searchable)
            assert set(destination.whereabouts(sent).values()) == {"filed under another SeriesInstanceUID"}

    @pytest.mark.parametrize(("page", "asked"), [(500, 2), (4, 2 + 1), (None, 1 + 6 + 1)])
    def test_qido_rs(self, page: int | None, asked: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("dicomai.destinations.dicomweb._PAGE", page or 500)
        images, sent = objects(6)
        with web(images, lists=page is not None) as (destination, calls):
            assert set(destination.whereabouts(sent).values()) == {""}
            assert len(calls) == asked
            images.pop()
            assert list(destination.whereabouts(sent).values()).count(None) == 1


class web:  # noqa: N801  used as a context manager
    """An origin server with QIDO-RS alone, which takes no STOW-RS; gives what leads there, and what it was asked."""

    def __init__(self, images: list[Dataset], *, lists: bool = True, **keys: Any) -> None:
        self.calls: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.calls.append(self.path)
                asked = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
                first, most = int(asked.pop("offset", 0)), int(asked.pop("limit", 1000))
                refused = not lists and "SOPInstanceUID" not in asked and "/instances" in self.path
                wanted = asked.pop("includefield", "")
                found = [x for x in images if all(str(x.get(k)) == v for k, v in asked.items())]
                if wanted:
                    found = found[:1]
                body = b"" if refused else json.dumps([_json(x) for x in found[first : first + most]]).encode()
                self.send_response(400 if refused else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer((HOST, 0), Handler)
        self.server.daemon_threads = False
        entry = DicomwebDestination(
            type="dicomweb", name="pacs", url=f"http://{HOST}:{self.server.server_address[1]}", **keys
        )
        self.destination = Dicomweb(entry, timeout=5.0)
        self._served = served(self.server)

    def __enter__(self) -> tuple[Dicomweb, list[str]]:
        self._served.__enter__()
        return self.destination, self.calls

    def __exit__(self, *raised: Any) -> None:
        self._served.__exit__(*raised)


def _json(ds: Dataset) -> dict[str, Any]:
    keywords = ("PatientID", "PatientName", "PatientBirthDate", "StudyInstanceUID", "SeriesInstanceUID")
    given = data_set(**{keyword: ds.get(keyword) for keyword in (*keywords, "SOPInstanceUID") if keyword in ds})
    found: dict[str, Any] = given.to_json_dict()
    return found


class TestQido:
    def test_it_is_asked_whose_the_study_is_and_holds(self, sqlite_bed: Bed) -> None:
        analysed(sqlite_bed)
        there = [data_set(StudyInstanceUID=STUDY, **UTF8, **OURS | {"PatientBirthDate": "19000101"})]
        with web(there, check_patient=True) as (destination, calls):
            sqlite_bed.delivery(destination).step()
        assert " PatientBirthDate differ" in delivery(sqlite_bed).hold
        assert calls == [
            f"/studies?StudyInstanceUID={STUDY}&includefield="
            + "%2C".join(["PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate"])
        ]

    def test_a_name_of_three_groups_and_a_patient_that_is_not_given(self) -> None:
        name = "Yamada^Tarou=山田^太郎=やまだ^たろう"
        with web([data_set(StudyInstanceUID=STUDY, PatientName=name)]) as (destination, _):
            (shown,) = destination.patients(STUDY)
            assert (shown.patient_id, shown.patient_name) == ("", name)
            assert destination.patients("1.2.3") == []

    def test_a_server_without_a_search_is_a_sentence(self) -> None:
        with web([], check_patient=True) as (destination, _), pytest.MonkeyPatch.context() as patch:
            patch.setattr(destination._server, "call", lambda *_: _Missing())
            with pytest.raises(RejectedError, match=r"\(check_patient\): .* 404"):
                destination.patients(STUDY)
            with pytest.raises(RejectedError, match="404"):
                destination.ask()


class _Missing:
    status, is_success, body = 404, False, b""
