"""Profiles at work: what is probed, what the worker makes of it, what is sent where, and what is said of it."""

import io
import json
import re
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import FileDataset

from dicomai import render, roles
from dicomai.commands import check
from dicomai.commands import destinations as command
from dicomai.config import DicomDestination, FolderDestination, NodeSettings, Settings, WorkerSettings
from dicomai.database.probes import Probes
from dicomai.database.results import FrozenObject
from dicomai.database.tables import Audit, DestinationProbe, ResultObject
from dicomai.destinations import open_destination
from dicomai.destinations.dimse.probe import PROPOSED, probe
from dicomai.errors import StoreError
from dicomai.prober import Prober
from dicomai.profiles import LABEL_MAP, LABEL_MAP_SYNTAXES, Profile, denied
from dicomai.worker import Worker
from dicomai.workitem import Kind, State
from tests.beds import Bed, Threshold, route
from tests.dimse import Scp, free_port, scp, wait_until
from tests.synthetic import series

ROOT = Path(__file__).parents[2]
SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
RLE, EXPLICIT = LABEL_MAP_SYNTAXES
IMPLICIT = "1.2.840.10008.1.2"
OLD_PACS = [("1.2.840.10008.1.1", [IMPLICIT]), ("1.2.840.10008.5.1.4.1.1.7", [IMPLICIT, EXPLICIT])]


def analysed(bed: Bed, *outputs: str, images: list[FileDataset] | None = None, **profiles: Profile) -> None:
    """Take a series in and analyse it; the result goes to destinations of these profiles."""
    bed.take(images or series(modality="MR", shape=(3, 12, 16)))
    assert bed.plan(route(outputs=outputs or ("seg", "sr"), destinations=tuple(profiles))) == 1
    worker = Worker(
        bed.store, bed.database, bed.bundles, WorkerSettings(threads=1),
        timezone=None, load_engine=Threshold, destinations=profiles,
    )  # fmt: skip
    assert worker.step()


def deliver(bed: Bed, entry: DicomDestination) -> None:
    delivery = bed.delivery(open_destination(entry, calling_ae="X", timeout=5.0))
    assert delivery.step()
    assert not delivery.step()


def ask(entry: DicomDestination) -> frozenset[tuple[str, str]]:
    return probe(entry, calling_ae="X", timeout=5.0)


def prober(bed: Bed, *entries: DicomDestination) -> Prober:
    return Prober(bed.database, {one.name: (partial(denied, one.profile), partial(ask, one)) for one in entries})


def classes(pacs: Scp) -> list[str]:
    return [one.sop_class_uid for one in pacs.received]


class TestLegacy:
    def test_it_is_sent_the_key_image_alone_and_the_others_what_the_route_says(self, sqlite_bed: Bed) -> None:
        analysed(sqlite_bed, pacs=Profile.OHIF, old=Profile.LEGACY)
        with scp() as pacs, scp(contexts=OLD_PACS) as old:
            deliver(sqlite_bed, pacs.destination())
            deliver(sqlite_bed, old.destination("old"))
        assert classes(pacs) == [SEGMENTATION, "1.2.840.10008.5.1.4.1.1.88.34"]
        assert classes(old) == ["1.2.840.10008.5.1.4.1.1.7"]
        assert [row.state for row in sqlite_bed.items("delivery")] == [State.COMPLETED] * 2
        for row, outputs in zip(sqlite_bed.items("delivery"), (["seg", "sr"], ["keyimage"]), strict=True):
            shown = sqlite_bed.overview.show(row.id)["objects"]
            assert [one["output"] for one in shown] == outputs
            assert all(one["accepted_at"] for one in shown)

    def test_a_retry_sends_no_more(self, sqlite_bed: Bed) -> None:
        analysed(sqlite_bed, pacs=Profile.LEGACY)
        with scp(0xA900, contexts=OLD_PACS) as pacs:
            deliver(sqlite_bed, pacs.destination())
        (first,) = sqlite_bed.items("delivery")
        assert first.state == State.CANCELED
        sqlite_bed.overview.retry(first.id, "person/x")
        with scp(contexts=OLD_PACS) as pacs:
            deliver(sqlite_bed, pacs.destination())
        assert classes(pacs) == ["1.2.840.10008.5.1.4.1.1.7"]
        assert sqlite_bed.items("delivery")[1].state == State.COMPLETED

    def test_that_images_were_not_analysed_is_shown_to_it_as_a_picture(
        self, sqlite_bed: Bed, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        drawn: list[str] = []
        real = render.page
        monkeypatch.setattr(
            render, "page", lambda lines, *size: (drawn.extend(i.text for i in lines), real(lines, *size))[1]
        )
        images = series(modality="MR", shape=(5, 12, 16), SeriesNumber=7, PatientName="Secret^Name", PatientID="ID-77")
        analysed(sqlite_bed, "seg", "report", images=images[:2] + images[3:], pacs=Profile.OHIF, old=Profile.LEGACY)
        assert sqlite_bed.items()[0].state == State.CANCELED
        with scp() as pacs, scp(contexts=OLD_PACS) as old:
            deliver(sqlite_bed, pacs.destination())
            deliver(sqlite_bed, old.destination("old"))
        assert classes(pacs) == ["1.2.840.10008.5.1.4.1.1.88.34"]
        assert classes(old) == ["1.2.840.10008.5.1.4.1.1.7"]
        assert [row.state for row in sqlite_bed.items("delivery")] == [State.COMPLETED] * 2
        said = " ".join(drawn)
        assert "Not analysed. AI, unverified Series 7 was not analysed by tiny 0.1: A slice is missing" in said
        assert "Images: MR." in said
        assert "Secret" not in said
        assert "ID-77" not in said
        (row,) = [row for row in sqlite_bed.rows(ResultObject) if row.output == "reportimage"]
        picture = pydicom.dcmread(io.BytesIO(sqlite_bed.store.get(row.key)))
        assert (str(picture.PatientName), picture.StudyInstanceUID) == ("Secret^Name", images[0].StudyInstanceUID)
        assert picture.BurnedInAnnotation == "YES"
        assert "SourceImageSequence" not in picture, "it shows none of them"

    @pytest.mark.parametrize("wanted", [{"old": ("keyimage",)}, {}])
    def test_what_there_is_nothing_for_ends_with_a_sentence(self, bed: Bed, wanted: dict[str, Any]) -> None:
        bed.take(series(modality="MR", shape=(2, 4, 4)))
        bed.plan(route())
        claim = bed.worklist.claim(Kind.INFERENCE, "one", 60.0, 3)
        assert claim is not None
        some = [FrozenObject("sr", "1.2.3", "1.2.4", "1.2.5", 9000, "results/x")] if wanted else []
        bed.worklist.finish_inference(claim, some, ["old"], wanted)
        (row,) = bed.items("delivery")
        assert row.state == State.CANCELED
        assert row.reason.startswith("Nothing was sent: the result has no object")
        assert bed.events(row.id) == ["scheduled", "IN PROGRESS", "CANCELED"]
        assert bed.worklist.claim(Kind.DELIVERY, "one", 60.0, 3) is None


class TestLabelMaps:
    def test_is_made_as_the_probe_says_that_it_is_taken(self, sqlite_bed: Bed) -> None:
        with scp() as pacs:
            entry = pacs.destination().model_copy(update={"profile": Profile.LABELMAP})
            prober(sqlite_bed, entry).probe("pacs")
            analysed(sqlite_bed, pacs=Profile.LABELMAP)
            deliver(sqlite_bed, entry)
        assert next((one.sop_class_uid, one.transfer_syntax_uid) for one in pacs.received) == (LABEL_MAP, RLE)
        assert sqlite_bed.items("delivery")[0].state == State.COMPLETED

    @pytest.mark.parametrize("others", [{}, {"folder": Profile.OHIF}])
    def test_is_not_made_where_one_may_not_take_it(self, sqlite_bed: Bed, others: dict[str, Profile]) -> None:
        known = [(uid, taken) for uid, taken in PROPOSED.items() if others or uid != LABEL_MAP]
        with scp(contexts=known) as pacs:
            prober(sqlite_bed, pacs.destination().model_copy(update={"profile": Profile.LABELMAP})).probe("pacs")
        analysed(sqlite_bed, "seg", pacs=Profile.LABELMAP, **others)
        (seg,) = sqlite_bed.rows(ResultObject)
        assert seg.sop_class_uid == SEGMENTATION
        assert pydicom.dcmread(io.BytesIO(sqlite_bed.store.get(seg.key))).SegmentationType == "BINARY"


class TestProbe:
    def test_finds_what_is_accepted_and_sends_nothing(self) -> None:
        taken = {SEGMENTATION: [IMPLICIT], LABEL_MAP: [EXPLICIT, RLE], "1.2.840.10008.1.1": [IMPLICIT]}
        with scp(contexts=list(taken.items())) as pacs:
            accepted = ask(pacs.destination())
        assert accepted == {(uid, one) for uid, syntaxes in taken.items() for one in syntaxes}
        assert pacs.received == []

    def test_asks_for_every_class_that_is_sent_by_the_conformance_statement(self) -> None:
        part = (
            (ROOT / "docs/conformance.md").read_text(encoding="utf-8").split("### 2.4 ")[1].split("`dicomai send`")[0]
        )
        classes = set(re.findall(r"\| (1\.2\.840[0-9.]+) \|", part))
        assert len(classes) > 5
        assert classes <= PROPOSED.keys()

    def test_asks_what_does_not_fit_in_one_association_in_others(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("dicomai.destinations.dimse.probe.MAX_CONTEXTS", 10)
        with scp(contexts=list(PROPOSED.items())) as pacs:
            accepted = ask(pacs.destination())
        assert accepted == {(uid, one) for uid, syntaxes in PROPOSED.items() for one in syntaxes}
        assert len(pacs.associations) == 3

    def test_what_was_seen_stands_while_the_destination_is_away(self, bed: Bed) -> None:
        probes = Probes(bed.database)
        with scp() as pacs:
            entry = pacs.destination()
            prober(bed, entry).probe("pacs")
        seen = probes.last()["pacs"]
        bed.turn(86400)
        prober(bed, entry).probe("pacs")
        away = probes.last()["pacs"]
        assert (away.accepted, away.answered_at) == (seen.accepted, seen.answered_at)
        assert away.tried_at > seen.tried_at
        assert "cannot be connected to" in away.error
        assert len(bed.rows(DestinationProbe)) == 1
        assert [row.event for row in bed.rows(Audit)] == ["probed"]

    def test_a_fault_in_one_probe_does_not_end_the_others(self, sqlite_bed: Bed) -> None:
        def broken() -> frozenset[tuple[str, str]]:
            raise ValueError("secret")

        Prober(sqlite_bed.database, {"pacs": (partial(denied, Profile.OHIF), broken)}).probe("pacs")
        said = Probes(sqlite_bed.database).last()["pacs"].error
        assert "ValueError" in said
        assert "secret" not in said

    def test_a_database_that_is_away_for_a_moment_ends_nothing(
        self, sqlite_bed: Bed, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stop, tries = threading.Event(), list[int]()

        class Away(Probes):
            def answered(self, *arguments: Any) -> bool:
                tries.append(1)
                if len(tries) == 1:
                    raise StoreError("The database is away.")
                stop.set()
                return super().answered(*arguments)

            def failed(self, *_: Any) -> None:
                raise StoreError("The database is away.")

        monkeypatch.setattr("dicomai.prober._AGAIN", 0.01)
        monkeypatch.setattr("dicomai.prober.Probes", Away)
        Prober(sqlite_bed.database, {"pacs": (partial(denied, Profile.OHIF), frozenset)}).run(stop)
        assert "pacs" in Probes(sqlite_bed.database).last()

    def test_the_delivery_role_probes_the_dicom_destinations_once_and_ends_when_told(self, sqlite_bed: Bed) -> None:
        stop = threading.Event()
        with scp() as pacs:
            settings = configured(
                sqlite_bed,
                pacs.destination(),
                FolderDestination(type="folder", name="f", path=sqlite_bed.folder / "out"),
            )
            thread = threading.Thread(target=roles._prober(settings, sqlite_bed.database).run, args=(stop,))
            thread.start()
            wait_until(lambda: Probes(sqlite_bed.database).last())
            stop.set()
            thread.join(10)
        assert not thread.is_alive()
        assert Probes(sqlite_bed.database).last().keys() == {"pacs"}
        assert len(pacs.associations) == 1


def configured(bed: Bed, *entries: DicomDestination | FolderDestination) -> Settings:
    return Settings(node=NodeSettings(storage=bed.folder / "storage", worklist=bed.url), destination=entries)


class TestCommand:
    def test_prints_and_keeps_what_is_accepted(self, sqlite_bed: Bed, capsys: pytest.CaptureFixture[str]) -> None:
        with scp(contexts=OLD_PACS) as pacs:
            settings = configured(sqlite_bed, pacs.destination())
            assert command.probe_one(settings, "pacs", as_json=False) == 0
            said = capsys.readouterr().out
            assert command.probe_one(settings, "pacs", as_json=True) == 0
        lines = {line.split("  ")[0].strip(): line.split()[-3:] for line in said.splitlines() if "  " in line}
        assert lines["Secondary Capture Image Storage"][-2:] == ["yes", "yes"]
        assert lines["Segmentation Storage"][-2:] == ["no", "no"]
        assert lines["Label Map Segmentation Storage"] == ["no", "no", "no"]
        assert 'set profile = "legacy"' in said
        printed = json.loads(capsys.readouterr().out)
        taken = {one["name"]: one["accepted"] for one in printed["contexts"] if one["accepted"]}
        assert taken == {"Verification SOP Class": [IMPLICIT], "Secondary Capture Image Storage": [EXPLICIT, IMPLICIT]}
        assert Probes(sqlite_bed.database).last()["pacs"].accepted

    def test_the_doctor_warns_where_a_destination_is_at_odds_with_its_profile(self, sqlite_bed: Bed) -> None:
        with scp(contexts=OLD_PACS) as pacs:
            legacy = pacs.destination("old").model_copy(update={"profile": Profile.LEGACY})
            found = check._destinations(configured(sqlite_bed, pacs.destination(), legacy))
        said = [(one.about, one.verdict) for one in found]
        assert said == [("destination pacs", "good"), ("destination pacs", "warning"), ("destination old", "good")]

    def test_lists_the_destinations(self, sqlite_bed: Bed, capsys: pytest.CaptureFixture[str]) -> None:
        away = DicomDestination(type="dicom", name="away", ae_title="A", host="127.0.0.1", port=free_port())
        with scp(contexts=OLD_PACS) as pacs:
            settings = configured(sqlite_bed, pacs.destination(), away)
            prober(sqlite_bed, *settings.destination).probe("pacs")  # type: ignore[arg-type]
            prober(sqlite_bed, *settings.destination).probe("away")  # type: ignore[arg-type]
        capsys.readouterr()  # what was logged
        command.show_all(settings, as_json=True)
        first, second = json.loads(capsys.readouterr().out)
        assert (first["profile"], first["error"], second["answered_at"]) == ("ohif", "", None)
        assert "refuses Segmentation Storage" in first["remark"]
        assert "cannot be connected to" in second["error"]
        command.show_all(settings, as_json=False)
        assert "legacy" in capsys.readouterr().out
