"""Images go on as they came: all of them, once, to nobody who has sent them, and not while it is in doubt whose."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import FileDataset
from pydicom.filereader import read_dataset
from pydicom.uid import ExplicitVRLittleEndian

from dicomai import config
from dicomai.association import AssociationEnd
from dicomai.commands import check, routes, worklist
from dicomai.database.index import Recorded
from dicomai.database.tables import Version
from dicomai.delivery import Delivery
from dicomai.destinations import open_destination
from dicomai.errors import WorklistError
from dicomai.forwarder import Forwarder
from dicomai.forwarding import Deidentify, Forward
from dicomai.workitem import Kind, State
from tests.arrivals import changed, raise_store_error, repixeled
from tests.beds import Bed, parts, route
from tests.dimse import Received, Scp, node, scp
from tests.rejected import rejection_note
from tests.synthetic import series, write

STUDY = "1.2.826.0.7"


def rule(name: str = "all", **changes: Any) -> Forward:
    made: dict[str, Any] = {
        "name": name, "match": {}, "exclude": {}, "destinations": ("pacs",), "returns_as": {"pacs": ("PACS",)},
    }  # fmt: skip
    return Forward(**(made | changes))


def ct(count: int = 2, **attributes: Any) -> list[FileDataset]:
    return series(shape=(count, 4, 4), study_uid=STUDY, **attributes)


def send_on(
    bed: Bed,
    server: Scp,
    name: str = "pacs",
    calling_ae: str = "DICOMAI",
    rules: Sequence[Forward] = (),
    **settings: Any,
) -> None:
    """Do what the delivery role does, until nothing is left to do."""
    forwarder = Forwarder(bed.store, bed.database, rules)
    while forwarder.step():
        pass
    entry = server.destination(name).model_copy(update=settings)
    delivery = Delivery(
        bed.store,
        bed.database,
        open_destination(entry, calling_ae=calling_ae, timeout=5.0),
        config.DeliverySettings(timeout=5.0),
        only_deidentified=any(one.deidentify is not Deidentify.NONE and name in one.destinations for one in rules),
    )
    while delivery.step():
        pass


def go(bed: Bed, server: Scp, *rules: Forward) -> None:
    bed.plan(forwards=rules or (rule(),))
    send_on(bed, server)


def came(bed: Bed, datasets: Sequence[FileDataset], calling_ae: str) -> list[Recorded]:
    """Take data sets in by an association of a sender."""
    association = bed.intake.open_association(calling_ae, "10.0.0.1")
    recorded = bed.take(datasets, association)
    bed.intake.close_association(association, AssociationEnd.RELEASED)
    return recorded


def sent(datasets: Sequence[FileDataset]) -> set[tuple[str, bytes]]:
    """Say what a destination has to get of them, byte for byte."""
    return {(str(ds.SOPInstanceUID), parts(ds)[1]) for ds in datasets}


def got(received: Sequence[Received]) -> set[tuple[str, bytes]]:
    assert len({one.sop_instance_uid for one in received}) == len(received), "something came twice"
    return {(one.sop_instance_uid, one.data_set) for one in received}


def as_file(received: Received) -> FileDataset:
    """Make a file of what came over the wire, so that it can be sent back."""
    ds = read_dataset(io.BytesIO(received.data_set), is_implicit_VR=False, is_little_endian=True)
    made = FileDataset("", ds, is_implicit_VR=False, is_little_endian=True)
    made.file_meta = pydicom.dataset.FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return made


def states(bed: Bed, kind: Kind) -> list[tuple[str, str]]:
    return [(row.state, row.reason) for row in bed.items(kind)]


def test_all_that_came_goes_on_byte_for_byte_images_first(bed: Bed) -> None:
    images = ct(3)
    note = rejection_note(ct(1), "113000", StudyInstanceUID=STUDY)
    bed.take([note, *images])
    with scp() as pacs:
        go(bed, pacs)
    assert got(pacs.received) == sent([note, *images])
    assert pacs.received[-1].sop_instance_uid == note.SOPInstanceUID
    assert states(bed, Kind.FORWARD) == states(bed, Kind.DELIVERY) == [(State.COMPLETED, "")] * 2
    assert not bed.files("results")
    shown = bed.overview.show(bed.items(Kind.FORWARD)[0].id)
    assert (shown["kind"], shown["route"], len(shown["objects"])) == ("forward", "all", 3)
    assert [event["event"] for event in shown["history"]] == ["scheduled", "IN PROGRESS", "COMPLETED"]


def test_what_comes_later_goes_by_itself(bed: Bed) -> None:
    first = ct(3)
    bed.take(first[:2])
    with scp() as pacs:
        go(bed, pacs)
        bed.take([first[2], first[0]])
        go(bed, pacs)
        assert got(pacs.received) == sent(first)
        corrected = changed(first[0], StudyDescription="corrected")
        assert bed.take([corrected]) == [Recorded.UPDATED]
        go(bed, pacs)
    assert [received.sop_instance_uid for received in pacs.received[3:]] == [first[0].SOPInstanceUID]
    assert pacs.received[3].data_set == parts(corrected)[1]
    assert len(bed.items(Kind.FORWARD)) == 3


def test_a_late_document_goes_too(sqlite_bed: Bed) -> None:
    bed = sqlite_bed
    images = ct(2)
    bed.take(images)
    with scp() as pacs:
        go(bed, pacs)
        note = rejection_note(images)
        bed.take([note])
        go(bed, pacs)
    assert got(pacs.received) == sent([*images, note])


def test_images_that_are_rejected_before_they_went_go_all_the_same(sqlite_bed: Bed) -> None:
    bed = sqlite_bed
    images = ct(2)
    bed.take([*images, rejection_note(images)])
    with scp() as pacs:
        go(bed, pacs)
    assert len(pacs.received) == 3
    assert pacs.received[-1].sop_class_uid == "1.2.840.10008.5.1.4.1.1.88.59"


def test_a_series_goes_whole_by_the_rules_that_take_it(sqlite_bed: Bed) -> None:
    bed = sqlite_bed
    localizer = series(modality="MR", shape=(1, 4, 4), study_uid=STUDY, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    bed.take([*ct(2), *localizer])
    bed.plan(
        forwards=(
            rule("ct", match={"Modality": "CT"}),
            rule("none", match={"Modality": "CT"}, exclude={"Manufacturer": "Synth.*"}),
            rule("mr", match={"Modality": "MR"}),
        )
    )
    assert sorted(row.route_name for row in bed.items(Kind.FORWARD)) == ["ct", "mr"]


def test_a_rule_that_is_new_does_not_take_what_is_old(sqlite_bed: Bed) -> None:
    bed = sqlite_bed
    bed.take(ct(2))
    bed.plan(forwards=())
    bed.plan(forwards=(rule(),))
    assert bed.items(Kind.FORWARD) == []


def test_results_of_this_node_are_not_forwarded(sqlite_bed: Bed) -> None:
    bed = sqlite_bed
    bed.take(series(modality="MR", shape=(3, 12, 16)))
    everything = rule(destinations=("archive",), returns_as={"archive": ("ARCHIVE",)})
    with scp() as pacs, scp(ae_title="ARCHIVE") as archive:
        bed.plan(route(), forwards=(everything,))
        assert bed.worker().step()
        send_on(bed, pacs)
        send_on(bed, archive, "archive")
        assert (len(pacs.received), len(archive.received)) == (2, 3)
        came(bed, [as_file(one) for one in pacs.received], "PACS")
        bed.plan(route(), forwards=(everything,))
    assert len(bed.items(Kind.FORWARD)) == 1


def test_a_pacs_that_sends_everything_back_makes_no_loop(sqlite_bed: Bed) -> None:
    bed = sqlite_bed
    images = ct(2)
    came(bed, images, "CT01")
    with scp() as pacs:
        go(bed, pacs)
        for turn in range(3):
            back = [as_file(one) for one in pacs.received[-2:]]
            if turn:  # it writes something of its own into it
                back = [changed(ds, StudyDescription=f"filed {turn}") for ds in back]
            came(bed, back, "PACS")
            go(bed, pacs)
    assert got(pacs.received) == sent(images)
    assert len(bed.items(Kind.FORWARD)) == 1


def test_what_came_from_one_destination_goes_to_the_other(sqlite_bed: Bed) -> None:
    bed = sqlite_bed
    images = ct(2)
    both = rule(destinations=("pacs", "archive"), returns_as={"pacs": ("PACS",), "archive": ("ARCHIVE",)})
    came(bed, images, "PACS")
    with scp() as pacs, scp(ae_title="ARCHIVE") as archive:
        go(bed, pacs, both)
        send_on(bed, archive, "archive")
    assert pacs.received == []
    assert got(archive.received) == sent(images)


@pytest.fixture
def two_beds(tmp_path: Path) -> Iterator[tuple[Bed, Bed]]:
    beds = [Bed(tmp_path / name, f"sqlite:///{tmp_path / name}.db") for name in "ab"]
    yield beds[0], beds[1]
    for bed in beds:
        bed.close()


def test_two_nodes_that_forward_to_each_other_come_to_rest(two_beds: tuple[Bed, Bed]) -> None:
    a, b = two_beds
    images = ct(2)
    came(a, images, "CT01")
    to_b = rule(destinations=("b",), returns_as={"b": ("NODE_B",)})
    known, unknown = {"a": ("NODE_A",)}, dict[str, tuple[str, ...]]()
    for how in (rule(destinations=("a",), returns_as=known), rule("any", destinations=("a",), returns_as=unknown)):
        with node(a.intake, ae_title="NODE_A") as at_a, node(b.intake, ae_title="NODE_B") as at_b:
            servers = Scp("NODE_A", at_a.port, []), Scp("NODE_B", at_b.port, [])
            for _ in range(2):
                a.plan(forwards=(to_b,))
                send_on(a, servers[1], "b", "NODE_A")
                b.plan(forwards=(how,))
                send_on(b, servers[0], "a", "NODE_B")
    assert len(a.items(Kind.FORWARD)) == 1
    assert len(a.rows(Version)) == len(b.rows(Version)) == 2


def test_in_doubt_whose_images_they_are_they_wait_for_a_person(sqlite_bed: Bed) -> None:
    bed = sqlite_bed
    images = ct(2)
    bed.take([images[0], changed(images[1], PatientID="another")])
    with scp() as pacs:
        go(bed, pacs)
        (item,) = bed.items(Kind.FORWARD)
        assert "disagrees in PatientID" in item.hold
        assert pacs.received == []
        bed.overview.cancel(item.id, "person/ada")
        assert bed.items(Kind.FORWARD)[0].state == State.CANCELED


def test_what_contradicts_a_known_image_is_shown_to_a_person_and_not_sent(sqlite_bed: Bed) -> None:
    bed = sqlite_bed
    images = ct(2)
    bed.take(images)
    with scp() as pacs:
        go(bed, pacs)
        assert bed.take([repixeled(images[0])]) == [Recorded.CONFLICT]
        go(bed, pacs)
        item = bed.items(Kind.FORWARD)[-1]
        assert "came again with other pixels" in item.hold
        bed.overview.release(item.id, "person/ada")
        go(bed, pacs)
    assert got(pacs.received) == sent(images)
    assert "contradict those that came first" in bed.items(Kind.FORWARD)[-1].reason


def test_documents_wait_for_images_that_are_on_their_way(sqlite_bed: Bed) -> None:
    bed = sqlite_bed
    images = ct(2)
    note = rejection_note(images, "113000")
    bed.take([*images, note])
    with scp(0xA700, 0x0000) as pacs:
        go(bed, pacs)
        assert note.SOPInstanceUID not in {one.sop_instance_uid for one in pacs.received}
        assert "Waits until the images" in bed.items(Kind.DELIVERY)[1].reason
        for _ in range(2):
            bed.turn(60.0)
            send_on(bed, pacs)
    assert pacs.received[-1].sop_instance_uid == note.SOPInstanceUID


def test_a_person_retries_what_failed_for_good(bed: Bed) -> None:
    images = ct(2)
    bed.take(images)
    with scp(0xA900, 0x0000) as pacs:
        go(bed, pacs)
        (delivery,) = bed.items(Kind.DELIVERY)
        assert delivery.state == State.CANCELED
        bed.overview.retry(delivery.id, "person/ada")
        send_on(bed, pacs)
        assert got(pacs.received[1:]) == sent(images)
        again = bed.overview.retry(bed.items(Kind.FORWARD)[0].id, "person/ada")
        send_on(bed, pacs)
    item = next(row for row in bed.items(Kind.FORWARD) if row.id == again)
    assert (item.state, item.kind) == (State.COMPLETED, "forward")
    assert len(bed.items(Kind.DELIVERY)) == 3
    with pytest.raises(WorklistError, match="was replaced by"):
        bed.overview.retry(bed.items(Kind.FORWARD)[0].id, "person/ada")


def test_neither_max_age_nor_wait_for_source_keeps_images_back(sqlite_bed: Bed) -> None:
    bed = sqlite_bed
    images = ct(1)
    bed.take(images)
    bed.plan(forwards=(rule(),))
    assert Forwarder(bed.store, bed.database).step()
    bed.turn(3600.0)
    with scp() as pacs:
        send_on(bed, pacs, max_age=60.0, wait_for_source=True)
    assert got(pacs.received) == sent(images)


def test_a_recall_leaves_images_alone(sqlite_bed: Bed) -> None:
    from dicomai.database.withdrawals import Withdrawals

    bed = sqlite_bed
    bed.take(series(modality="MR", shape=(3, 12, 16)))
    with scp() as pacs:
        bed.plan(route(name="all"), forwards=(rule(),))
        assert bed.worker().step()
        send_on(bed, pacs)
        withdrawals = Withdrawals(bed.database)
        (one,) = withdrawals.results_of("tiny")
        assert {o.output for o in one.objects} == {"seg", "sr"}
        (forward,) = bed.items(Kind.FORWARD)
        with pytest.raises(WorklistError, match="is no analysis"):
            withdrawals.result_of(forward.id)


class TestDeidentified:
    RESEARCH = rule("research", destinations=("pacs",), deidentify=Deidentify.BASIC)

    def test_no_name_is_in_what_goes_and_late_images_join_the_others(self, sqlite_bed: Bed) -> None:
        bed = sqlite_bed
        images = ct(3, PatientName="Zwitness^Quentin", PatientID="Q4711Z")
        bed.take(images[:2])
        with scp() as pacs:
            go(bed, pacs, self.RESEARCH)
            bed.take(images[2:])
            go(bed, pacs, self.RESEARCH)
        assert len(pacs.received) == 3
        assert not any(name in one.data_set for one in pacs.received for name in (b"Zwitness", b"Quentin", b"Q4711Z"))
        assert len({str(as_file(one).StudyInstanceUID) for one in pacs.received}) == 1
        assert len({str(as_file(one).PatientID) for one in pacs.received}) == 1
        assert {one.sop_instance_uid for one in pacs.received}.isdisjoint(str(ds.SOPInstanceUID) for ds in images)

    def test_what_comes_back_is_known_as_ours(self, sqlite_bed: Bed) -> None:
        bed = sqlite_bed
        both = (self.RESEARCH, rule("rest", destinations=("archive",), returns_as={"archive": ("ARCHIVE",)}))
        bed.take(ct(2))
        with scp() as pacs:
            go(bed, pacs, *both)
            came(bed, [as_file(one) for one in pacs.received], "OTHER")
            bed.plan(route(), forwards=both)
        assert len(bed.items(Kind.FORWARD)) == 2
        assert [row.route_name for row in bed.items()] == ["tiny"]

    def test_what_cannot_be_de_identified_is_left_out_and_said(self, sqlite_bed: Bed) -> None:
        bed = sqlite_bed
        images = ct(3)
        images[1].BurnedInAnnotation = "YES"
        bed.take([*images, rejection_note(images[:1])])
        with scp() as pacs:
            go(bed, pacs, self.RESEARCH)
        assert len(pacs.received) == 2
        (done, left), (refused, why) = states(bed, Kind.FORWARD)
        assert (done, refused) == (State.COMPLETED, State.CANCELED)
        assert "BurnedInAnnotation is YES, so the patient's name may stand in the pixels (1 instances)" in left
        assert "what is no image" in why

    def test_a_rule_that_de_identifies_now_holds_for_what_waits(self, sqlite_bed: Bed) -> None:
        bed = sqlite_bed
        bed.take(ct(2, PatientName="Zwitness^Quentin"))
        bed.plan(forwards=(rule("research"),))  # which was configured without `deidentify`
        with scp() as pacs:
            send_on(bed, pacs, rules=(self.RESEARCH,))
        assert len(pacs.received) == 2
        assert not any(b"Zwitness" in one.data_set for one in pacs.received)

    def test_nothing_with_a_name_goes_to_who_gets_de_identified_images_now(self, sqlite_bed: Bed) -> None:
        bed = sqlite_bed
        bed.take(ct(2, PatientName="Zwitness^Quentin"))
        bed.plan(forwards=(rule("research"),))
        assert Forwarder(bed.store, bed.database).step()
        with scp() as pacs:
            send_on(bed, pacs, rules=(self.RESEARCH,))
            assert pacs.received == []
            ((state, why),) = states(bed, Kind.DELIVERY)
            assert state == State.CANCELED
            assert "gets de-identified images only" in why
            bed.overview.retry(bed.items(Kind.FORWARD)[0].id, "person/ada")
            send_on(bed, pacs, rules=(self.RESEARCH,))
        assert len(pacs.received) == 2
        assert not any(b"Zwitness" in one.data_set for one in pacs.received)

    def test_a_late_image_joins_the_others_whatever_root_its_uid_has(self, sqlite_bed: Bed) -> None:
        bed = sqlite_bed
        images = ct(2, SeriesInstanceUID="1.2.840.10008.5.1.4.1.1.2.19990101.1")
        bed.take(images[:1])
        with scp() as pacs:
            go(bed, pacs, self.RESEARCH)
            bed.take(images[1:])
            go(bed, pacs, self.RESEARCH)
        assert len(pacs.received) == 2

    def test_a_crash_in_the_middle_changes_nothing(self, sqlite_bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
        bed = sqlite_bed
        bed.take(ct(2))
        bed.plan(forwards=(self.RESEARCH,))
        with monkeypatch.context() as patch:
            patch.setattr(bed.store, "put", raise_store_error)
            assert Forwarder(bed.store, bed.database).step()
        assert states(bed, Kind.FORWARD) == [(State.IN_PROGRESS, "The disk went away.")]
        bed.turn(60.0)
        with scp() as pacs:
            send_on(bed, pacs)
        assert len(pacs.received) == 2


def test_what_the_commands_say_before_anything_is_sent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = ct(3)
    images[1].BurnedInAnnotation = "YES"
    write([*images, rejection_note(images, "113000")], tmp_path / "study")
    file = tmp_path / "node.toml"
    file.write_text(
        "[[destination]]\nname = 'out'\ntype = 'folder'\npath = '/out'\n"
        "[[forward]]\nname = 'ct'\nmatch = { Modality = 'CT' }\ndeidentify = 'basic'\ndestinations = ['out']\n"
        "[[forward]]\nname = 'idle'\n"
    )
    settings = config.load(file)
    assert routes.explain(settings, tmp_path / "study", as_json=False) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "✓ forward ct sends 2 on to out, de-identified: 1 cannot be de-identified: BurnedInAnnotation is YES" in said
    assert "✗ forward idle sends nothing on: It has no destinations." in said
    assert "✗ forward ct sends nothing on: Modality is 'KO', not 'CT'." in said
    assert check.config_check(settings, file, as_json=False) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "2 forward rules and 1 destination, all in order. ! forward idle: it has no destinations" in said


def test_a_whole_series_is_shown_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"sqlite:///{tmp_path / 'worklist.db'}"
    bed = Bed(tmp_path, url)
    bed.take(ct(21))
    bed.plan(forwards=(rule(),))
    assert Forwarder(bed.store, bed.database).step()
    bed.close()
    file = tmp_path / "node.toml"
    file.write_text(f"[node]\nworklist = '{url}'\n")
    assert worklist.show(config.load(file), bed.items(Kind.FORWARD)[0].id, as_json=False) == 0
    assert "21 x image" in capsys.readouterr().out
