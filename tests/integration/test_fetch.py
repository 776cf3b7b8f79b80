"""Fetching from a PACS that lies: it passes over keys, answers with other UIDs, fails, breaks off."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import CTImageStorage, generate_uid
from pynetdicom import AE, _config, evt
from pynetdicom.events import Event

from dicomai.cli import main
from dicomai.config import SourceSettings, TlsSettings
from dicomai.database.tables import Association
from dicomai.errors import RejectedError, StorageFullError, UnreachableError
from dicomai.intake import Intake
from dicomai.receiver.connections import Server
from dicomai.roles import locked
from dicomai.sources.dimse import FIND, series_counts
from dicomai.sources.fetch import Fetcher, Plan
from dicomai.sources.query import Query
from dicomai.sources.retrieve import GET, MOVE
from dicomai.tls import ServerContext
from tests.beds import Bed
from tests.certificates import Authority
from tests.dimse import HOST, node
from tests.synthetic import series

STUDY, OTHER = generate_uid(), generate_uid()
SILENCE = 0.3


def fits(keys: Dataset, image: Dataset) -> bool:
    """Match as a PACS does: UIDs, the accession number and a range of days."""
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "AccessionNumber"):
        if keys.get(keyword) and keys[keyword].value != image.get(keyword):
            return False
    first, _, last = str(keys.get("StudyDate", "")).partition("-")
    return not first or first <= image.StudyDate <= (last or first)


@dataclass
class Pacs:
    """A query/retrieve SCP that has images, and lies as it is told.

    Attributes:
        images: what it has.
        truth: changes each answer to a C-FIND; None leaves it out.
        matches: the images that a C-FIND is about, of all there are.
        sends: the images that it sends, of those that were asked for; something else counts as a failed sub-operation.
        status: the final one of a retrieval, instead of the true one.
        breaks_after: it breaks the association off after so many images, once.
        moved_to: where C-MOVE goes; None for a destination that it does not know.
        retrievals: the identifiers of C-MOVE and C-GET.
    """

    images: Sequence[FileDataset]
    port: int = 0
    tls: bool = False
    truth: Callable[[Dataset], Dataset | None] = lambda answer: answer
    matches: Callable[[Dataset, FileDataset], bool] = fits
    sends: Callable[[list[Any]], list[Any]] = lambda images: images
    find_status: int = 0x0000
    status: int | None = None
    breaks_after: int | None = None
    moved_to: int | None = None
    retrievals: list[Dataset] = field(default_factory=list)

    def source(self) -> SourceSettings:
        return SourceSettings(name="archive", ae_title="PACS", host=HOST, port=self.port, timeout=10, tls=self.tls)

    def find(self, event: Event) -> Iterator[tuple[int, Dataset | None]]:
        keys = event.identifier
        level = keys.QueryRetrieveLevel
        unique = {"STUDY": "StudyInstanceUID", "SERIES": "SeriesInstanceUID", "IMAGE": "SOPInstanceUID"}[level]
        found = {str(image[unique].value): image for image in self.images if self.matches(keys, image)}
        if self.find_status:
            yield self.find_status, None
            return
        for image in found.values():
            answer = Dataset()
            answer.QueryRetrieveLevel = level
            for element in keys:
                if element.keyword not in {"QueryRetrieveLevel", "ModalitiesInStudy", "SpecificCharacterSet"}:
                    setattr(answer, element.keyword, image.get(element.keyword, ""))
            if level == "SERIES":
                answer.NumberOfSeriesRelatedInstances = sum(
                    one.SeriesInstanceUID == image.SeriesInstanceUID for one in self.images
                )
            told = self.truth(answer)
            if told is not None:
                yield 0xFF00, told

    def move(self, event: Event) -> Iterator[Any]:
        if self.moved_to is None:
            self.retrievals.append(event.identifier)
            yield None, None
            return
        yield HOST, self.moved_to
        yield from self.get(event)

    def get(self, event: Event) -> Iterator[Any]:
        keys = event.identifier
        self.retrievals.append(keys)
        if self.status is not None:
            yield 1
            yield self.status, None
            return
        wanted = self.sends([image for image in self.images if fits(keys, image)])
        yield len(wanted)
        for number, image in enumerate(wanted):
            if number == self.breaks_after:
                self.breaks_after = None
                event.assoc.abort()
                return
            yield 0xFF00, image


@contextlib.contextmanager
def running(pacs: Pacs, tls: TlsSettings | None = None) -> Iterator[Pacs]:
    _config.LOG_HANDLER_LEVEL = "none"
    ae = AE(ae_title="PACS")
    for uid in (FIND, MOVE, GET):
        ae.add_supported_context(uid)
    ae.add_supported_context(CTImageStorage, scu_role=True, scp_role=True)
    ae.add_requested_context(CTImageStorage)
    handlers: list[Any] = [(evt.EVT_C_FIND, pacs.find), (evt.EVT_C_MOVE, pacs.move), (evt.EVT_C_GET, pacs.get)]
    server = ae.make_server((HOST, 0), evt_handlers=handlers, server_class=Server)
    server.tls_context = ServerContext(tls) if tls is not None else None
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    pacs.port = int(server.server_address[1])
    try:
        yield pacs
    finally:
        for assoc in server.active_associations:
            assoc.abort(block=False)
        server.shutdown()


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[Bed]:
    one = Bed(tmp_path, f"sqlite:///{tmp_path / 'worklist.db'}")
    yield one
    one.close()


def images(count: int = 4, study: str = STUDY, day: str = "20260103", **more: Any) -> list[FileDataset]:
    return series(
        shape=(count, 8, 8), StudyInstanceUID=study, StudyDate=day, AccessionNumber="A1",
        PatientName="Quillfeather^Zebulon", **more,
    )  # fmt: skip


def fetcher(pacs: Pacs, bed: Bed, intake: Intake | None = None) -> Fetcher:
    return Fetcher(pacs.source(), bed.database, calling_ae="DICOMAI", intake=intake, patience=SILENCE)


def fetch(pacs: Pacs, bed: Bed, query: Query, intake: Intake | None = None) -> Plan:
    """Plan, and fetch to the end."""
    one = fetcher(pacs, bed, intake)
    plan = one.plan(query)
    for _ in one.fetch(plan):
        pass
    return plan


JANUARY = Query.of(dates="20260101-20260131")


def test_a_study_outside_of_the_days_and_one_of_another_accession_number_are_left_alone(bed: Bed) -> None:
    other = images(study=OTHER, day="20260201")
    with running(Pacs([*images(), *other], matches=lambda *_: True)) as pacs:
        plan = fetcher(pacs, bed).plan(JANUARY)
        assert {item.study.study_instance_uid for item in plan.items} == {STUDY}
        assert plan.strangers == 2, "the other study, and its series in place of ours"
        assert fetcher(pacs, bed).plan(Query.of(accession="A")).items == ()
        assert fetcher(pacs, bed).plan(Query.of(study=generate_uid())).items == ()


def test_an_answer_with_another_uid_or_without_one_is_not_taken(bed: Bed) -> None:
    def lie(answer: Dataset) -> Dataset:
        if answer.QueryRetrieveLevel == "SERIES":
            answer.StudyInstanceUID = OTHER
        return answer

    def omit(answer: Dataset) -> Dataset:
        answer.StudyInstanceUID = "../../1"
        return answer

    with running(Pacs(images(), truth=lie)) as pacs:
        assert fetcher(pacs, bed).plan(JANUARY) == Plan((), 1)
        pacs.truth = omit
        assert fetcher(pacs, bed).plan(JANUARY) == Plan((), 1)


def test_instances_are_counted_where_the_source_does_not_say_how_many(bed: Bed) -> None:
    def shy(answer: Dataset) -> Dataset:
        if answer.QueryRetrieveLevel == "SERIES":
            answer.NumberOfSeriesRelatedInstances = None
        return answer

    ours = images(3)
    with running(Pacs(ours, truth=shy)) as pacs:
        assert series_counts(pacs.source(), "DICOMAI", STUDY, 5.0) == {ours[0].SeriesInstanceUID: 3}
        pacs.truth = lambda answer: answer
        assert series_counts(pacs.source(), "DICOMAI", STUDY, 5.0) == {ours[0].SeriesInstanceUID: 3}
        assert series_counts(pacs.source(), "DICOMAI", OTHER, 5.0) == {}


def test_a_query_that_is_refused_is_a_sentence(bed: Bed) -> None:
    with running(Pacs(images(), find_status=0xA700)) as pacs:
        with pytest.raises(UnreachableError, match=r"answered A700 \(.*\) to a query at the level STUDY: ask for less"):
            fetcher(pacs, bed).plan(JANUARY)
        pacs.find_status = 0xA900
        with pytest.raises(RejectedError, match="A900"):
            fetcher(pacs, bed).plan(JANUARY)
    with pytest.raises(UnreachableError, match="cannot be connected to"):
        series_counts(pacs.source(), "DICOMAI", STUDY, 5.0)


def test_half_of_a_move_fails_and_the_next_one_brings_the_rest(bed: Bed) -> None:
    broken = Dataset()
    broken.SOPInstanceUID = generate_uid()
    done: list[int] = []
    with node(bed.intake) as receiver, running(Pacs(images(), moved_to=receiver.port)) as pacs:
        pacs.sends = lambda found: [*found[:2], broken, broken]
        one = fetcher(pacs, bed)
        plan = one.plan(JANUARY)
        assert plan.missing == 4
        assert [len(items) for items in one.fetch(plan, done.append)] == [1]
        (item,) = plan.items
        assert (item.here, item.is_whole) == (2, False)
        assert "answered B000 (Sub-operations completed, one or more failures, 2 sub-operations failed)" in item.problem
        assert done[-1] == 4

        pacs.sends = list
        (item,) = fetch(pacs, bed, JANUARY).items
        assert item.is_whole
        assert len(pacs.retrievals) == 2
        (item,) = fetch(pacs, bed, JANUARY).items
        assert item.is_whole
        assert len(pacs.retrievals) == 2, "what is here was asked for again"


def test_a_success_that_brings_nothing_is_none(bed: Bed) -> None:
    with node(bed.intake) as receiver, running(Pacs(images(), sends=lambda _: [], moved_to=receiver.port)) as pacs:
        (item,) = fetch(pacs, bed, JANUARY).items
        assert (item.here, item.is_whole) == (0, False)
        assert "says that it has sent all" in item.problem


def test_a_pacs_that_does_not_know_us_is_asked_once(bed: Bed) -> None:
    with running(Pacs([*images(), *images(study=OTHER)])) as pacs:
        with pytest.raises(RejectedError, match="does not know DICOMAI as a destination"):
            fetch(pacs, bed, JANUARY)
        assert len(pacs.retrievals) == 1


def test_a_lost_association_is_asked_for_again_as_long_as_it_brings_something(bed: Bed) -> None:
    with running(Pacs(images(), breaks_after=2)) as pacs:
        (item,) = fetch(pacs, bed, JANUARY, bed.intake).items
        assert item.is_whole
        assert [row.end for row in bed.rows(Association)] == ["lost", "released"]
        pacs.images = images(study=OTHER)
        pacs.breaks_after = 0
        with pytest.raises(UnreachableError, match="broke off the association"):
            fetch(pacs, bed, JANUARY, bed.intake)


def test_what_nobody_asked_for_does_not_come_in_by_c_get(bed: Bed) -> None:
    stranger = images(1, study=OTHER)
    with running(Pacs(images(), sends=lambda found: [*found[:3], *stranger])) as pacs:
        (item,) = fetch(pacs, bed, JANUARY, bed.intake).items
    assert (item.here, item.is_whole) == (3, False)
    assert "of another study" in item.problem
    assert len(bed.files()) == 3
    (row,) = bed.rows(Association)
    assert (row.calling_ae, row.end) == ("PACS", "lost"), "half a series must not pass for a whole one"


def test_a_full_disk_ends_it(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_: Any, **__: Any) -> None:
        raise StorageFullError("There is no room.")

    with running(Pacs([*images(), *images(study=OTHER)])) as pacs:
        full = Intake(bed.store, bed.database, 60.0, min_free_bytes=2**62)
        with pytest.raises(StorageFullError, match="nearly full"):
            fetch(pacs, bed, JANUARY, full)
        assert pacs.retrievals == []
        monkeypatch.setattr(bed.store, "receive", no_room)
        with pytest.raises(StorageFullError, match="no room"):
            fetch(pacs, bed, JANUARY, bed.intake)
        assert len(pacs.retrievals) == 1, "the other study was asked for in spite of it"


def test_the_instances_are_compared_and_not_their_numbers(bed: Bed) -> None:
    ours = images(4)
    bed.take(ours)
    with running(Pacs(ours[:3])) as pacs:  # one was deleted there since
        (item,) = fetcher(pacs, bed).plan(JANUARY).items
        assert (item.here, item.series.instances, item.is_whole) == (4, 3, True)
        pacs.images = [*ours[:2], *images(1, SeriesInstanceUID=ours[0].SeriesInstanceUID)]
        (item,) = fetcher(pacs, bed).plan(JANUARY).items
        assert (item.here, item.series.instances, item.is_whole) == (4, 3, False), "one of them is not here"
        pacs.images = [*ours[:3], *images(1, SeriesInstanceUID=ours[0].SeriesInstanceUID)]
        (item,) = fetcher(pacs, bed).plan(JANUARY).items
        assert (item.here, item.series.instances, item.is_whole) == (4, 4, False), "as many, but not the same"


def test_tls_is_used_where_the_source_has_it(bed: Bed, tmp_path: Path) -> None:
    ours = images()
    authority = Authority(tmp_path / "authority")
    here = authority.settings(authority.issue("pacs"), peers="none")
    with running(Pacs(ours, tls=True), here) as pacs:
        counts = series_counts(pacs.source(), "DICOMAI", STUDY, 5.0, authority.settings())
        assert counts == {ours[0].SeriesInstanceUID: 4}
        stranger = Authority(tmp_path / "stranger").settings()
        with pytest.raises(RejectedError, match="cannot be talked to by TLS"):
            series_counts(pacs.source(), "DICOMAI", STUDY, 5.0, stranger)


@pytest.fixture
def command(
    bed: Bed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run `dicomai fetch archive` in this process, without its logging; gives status, output and errors."""
    monkeypatch.setattr("dicomai.log.configure", lambda *_, **__: None)

    def run(pacs: Pacs, *arguments: str) -> tuple[int, str, str]:
        config = tmp_path / "dicomai.toml"
        config.write_text(
            f'[node]\nstorage = "{tmp_path / "storage"}"\nworklist = "{bed.url}"\n[receiver]\nmin_free_bytes = 0\n'
            f'[[source]]\nname = "archive"\nae_title = "PACS"\nhost = "{HOST}"\nport = {pacs.port}\nmethod = "get"\n'
        )
        status = main(["fetch", "archive", "--config", str(config), *arguments])
        return status, *capsys.readouterr()

    return run


def test_the_command_says_what_came_and_nobodys_name(bed: Bed, command: Callable[..., tuple[int, str, str]]) -> None:
    stranger = images(1, study=OTHER)
    days = ("--date", "20260101-20260131")
    with running(Pacs(images())) as pacs:
        status, out, err = command(pacs, *days, "--dry-run")
        assert (status, err) == (0, "")
        assert out.endswith("archive has 1 study, 1 series, 4 images; 4 to fetch by C-GET.\n")
        assert STUDY in out
        assert bed.files() == set()

        pacs.sends = lambda found: [*found[:3], *stranger]
        status, out, err = command(pacs, *days)
        assert status == 1
        assert f"Study {STUDY} (2026-01-03): 3 of 4 images are here." in out
        assert err.startswith(f"Study {STUDY}, series ")
        assert "3 of 4 images are here. The instance is of another study" in err

        pacs.sends = list
        status, out, err = command(pacs, *days)
        assert (status, err) == (0, "")
        assert out.endswith("1 of 1 series of archive are here in full.\n")
        assert len(bed.files()) == 4

        assert command(pacs, "--date", "20250101")[0] == 0
        assert command(pacs, "--accession", "A2")[0] == 1
        pacs.matches = lambda *_: True
        status, _, err = command(pacs, "--accession", "Quillfeather")
        assert (status, err.count("\n")) == (1, 2)
        assert "1 answers that do not fit" in err
        assert "uillfeather" not in err + out


def test_two_at_once_by_c_get_would_clear_up_each_others_images(
    bed: Bed, tmp_path: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    with running(Pacs(images())) as pacs, locked(tmp_path / "storage" / "fetch.lock"):
        status, _, err = command(pacs, "--study", STUDY)
        assert (status, err.count("\n")) == (2, 1)
        assert "Another `dicomai fetch`" in err
        assert command(pacs, "--study", STUDY, "--dry-run")[0] == 0


def test_at_most_so_many_studies_the_oldest_first(bed: Bed, command: Callable[..., tuple[int, str, str]]) -> None:
    with running(Pacs([*images(day="20260105"), *images(study=OTHER, day="20260104")])) as pacs:
        status, out, _ = command(pacs, "--date", "20260101-20260131", "--limit", "1", "--dry-run", "--json")
        assert status == 0
        assert [one["study_instance_uid"] for one in json.loads(out)["series"]] == [OTHER]
