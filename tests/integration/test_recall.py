"""Results of a faulty model are withdrawn wherever they may be: nothing of them stands, and nothing else falls."""

import io
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from pydicom import Dataset
from pydicom.filereader import read_dataset
from structlog.testing import capture_logs

from dicomai import cli
from dicomai.database.tables import ResultObject
from dicomai.database.tables import Workitem as Row
from dicomai.database.withdrawals import Withdrawals
from dicomai.destinations import Destination, open_destination
from dicomai.errors import StaleAttemptError, WorklistError
from dicomai.rejection import KEY_OBJECT_SELECTION, RejectionNote
from dicomai.withdrawer import Withdrawer
from dicomai.workitem import Kind, State
from tests.arrivals import raise_store_error
from tests.beds import Bed, route
from tests.dimse import Received, Scp, scp
from tests.rejected import rejection_note
from tests.synthetic import series

WHY = "tiny 0.1 was recalled."


def analysed(bed: Bed, *destinations: str, **attributes: Any) -> None:
    bed.take(series(modality="MR", shape=(3, 12, 16), **attributes))
    bed.plan(route(destinations=destinations or ("pacs",)))
    assert bed.worker().step()


def send(bed: Bed, server: Scp, name: str = "pacs") -> None:
    while withdrawer(bed).step():
        pass
    destination = open_destination(server.destination(name), calling_ae="DICOMAI", timeout=5.0)
    while bed.delivery(destination).step():
        pass


def withdraw_all(bed: Bed) -> list[list[int]]:
    withdrawals = Withdrawals(bed.database)
    return [withdrawals.schedule(one.item, "person/ada", WHY) for one in withdrawals.results_of("tiny")]


def withdrawer(bed: Bed) -> Withdrawer:
    return Withdrawer(bed.store, bed.database, timezone="Europe/Berlin")


def read(received: Received) -> Dataset:
    return read_dataset(io.BytesIO(received.data_set), is_implicit_VR=False, is_little_endian=True)


def test_the_pacs_is_told_of_every_object_that_it_has(bed: Bed) -> None:
    analysed(bed, PatientName="Doe^Jane", PatientID="4711")
    with scp() as pacs:
        send(bed, pacs)
        assert withdraw_all(bed) == [[3]]
        send(bed, pacs)
    *results, note = pacs.received
    assert note.sop_class_uid == KEY_OBJECT_SELECTION
    ds = read(note)
    said = RejectionNote.of(ds)
    assert said is not None
    assert said.code == "113001"
    assert set(said.sop_instance_uids) == {result.sop_instance_uid for result in results}
    of_result = read(results[0])
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "StudyInstanceUID", "AccessionNumber"):
        assert ds[keyword] == of_result[keyword]
    evidence = ds.CurrentRequestedProcedureEvidenceSequence[0]
    assert {str(one.SeriesInstanceUID) for one in evidence.ReferencedSeriesSequence} == {
        str(read(result).SeriesInstanceUID) for result in results
    }
    assert ds.SeriesNumber not in {read(result).SeriesNumber for result in results}
    (withdrawal,) = bed.items(Kind.WITHDRAWAL)
    assert (withdrawal.state, withdrawal.reason) == (State.COMPLETED, "")
    assert [row.state for row in bed.items("delivery")] == [State.COMPLETED] * 2


def test_what_waits_is_not_sent_and_needs_no_note(bed: Bed) -> None:
    analysed(bed)
    assert withdraw_all(bed) == [[]]
    with scp() as pacs:
        send(bed, pacs)
    assert pacs.received == []
    (delivery,) = bed.items("delivery")
    assert (delivery.state, delivery.reason) == (State.CANCELED, f"Withdrawn: {WHY}")
    (noted,) = bed.items(Kind.WITHDRAWAL)
    assert (noted.state, noted.reason) == (
        State.COMPLETED, f"The result of workitem 1 was sent nowhere. {WHY}",
    )  # fmt: skip
    with pytest.raises(WorklistError, match="was withdrawn by workitem"):
        bed.overview.retry(delivery.id, "person/ada")
    assert withdraw_all(bed) == [[]]
    assert len(bed.items(Kind.WITHDRAWAL)) == 1


def test_a_destination_that_may_have_got_something_unseen_is_told_too(bed: Bed) -> None:
    analysed(bed, "pacs", "archive")
    claim = bed.worklist.claim(Kind.DELIVERY, "delivery", 60.0, 30, "pacs")
    assert claim is not None
    withdraw_all(bed)
    with pytest.raises(StaleAttemptError):
        bed.worklist.accepted(claim, bed.rows(ResultObject)[0].id, 0, "")
    with scp() as pacs, scp() as archive:
        send(bed, pacs)
        send(bed, archive, "archive")
    assert [received.sop_class_uid for received in pacs.received] == [KEY_OBJECT_SELECTION]
    assert archive.received == []


def test_twice_is_as_once(bed: Bed) -> None:
    analysed(bed)
    with scp() as pacs:
        send(bed, pacs)
        assert withdraw_all(bed) == [[3]]
        assert withdraw_all(bed) == [[]]
        send(bed, pacs)
        assert withdraw_all(bed) == [[]]
        send(bed, pacs)
    assert len(pacs.received) == 3


def test_a_note_that_could_not_be_made_yet_is_made_later(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    analysed(bed)
    with scp() as pacs:
        send(bed, pacs)
        withdraw_all(bed)
        with monkeypatch.context() as patch:
            patch.setattr(bed.store, "put", raise_store_error)
            assert withdrawer(bed).step()
        (item,) = bed.items(Kind.WITHDRAWAL)
        assert (item.state, item.reason) == (State.IN_PROGRESS, "The disk went away.")
        bed.turn(60.0)
        send(bed, pacs)
    assert pacs.received[-1].sop_class_uid == KEY_OBJECT_SELECTION


def test_what_is_there_and_what_may_be_there_are_named_apart(bed: Bed) -> None:
    """An archive may refuse a note that names what it does not have."""
    analysed(bed)
    with scp(0x0000, 0xA900, 0x0000) as pacs:
        send(bed, pacs)
        assert len(withdraw_all(bed)[0]) == 2
        send(bed, pacs)
    notes = [RejectionNote.of(read(one)) for one in pacs.received[2:]]
    assert [note.sop_instance_uids for note in notes if note] == [
        (pacs.received[0].sop_instance_uid,), (pacs.received[1].sop_instance_uid,),
    ]  # fmt: skip


def test_one_that_cannot_be_made_holds_up_no_other(sqlite_bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    bed = sqlite_bed
    with scp() as pacs:
        for _ in range(2):
            analysed(bed)
            send(bed, pacs)
        withdraw_all(bed)
        with monkeypatch.context() as patch:
            patch.setattr("dicomai.withdrawer.withdrawal.build", lambda *_: 1 / 0)
            assert withdrawer(bed).step()
        first, second = bed.items(Kind.WITHDRAWAL)
        assert first.state == State.IN_PROGRESS
        assert "ZeroDivisionError; the log of the node says where." in first.reason
        send(bed, pacs)
        assert second.id == bed.items(Kind.WITHDRAWAL)[1].id
        assert bed.items(Kind.WITHDRAWAL)[1].state == State.COMPLETED


def test_a_note_that_is_refused_is_not_said_to_have_arrived_and_is_sent_by_another_recall(sqlite_bed: Bed) -> None:
    bed = sqlite_bed
    analysed(bed)
    with scp(0x0000, 0x0000, 0xA900, 0x0000) as pacs:
        send(bed, pacs)
        withdraw_all(bed)
        (one,) = Withdrawals(bed.database).results_of("tiny")
        assert (one.telling, one.withdrawn_from, one.is_open) == (("pacs",), (), False)
        send(bed, pacs)
        (one,) = Withdrawals(bed.database).results_of("tiny")
        assert (one.telling, one.withdrawn_from, one.left, one.is_open) == ((), (), ("pacs",), True)
        withdraw_all(bed)
        send(bed, pacs)
        (one,) = Withdrawals(bed.database).results_of("tiny")
        assert (one.withdrawn_from, one.is_open) == (("pacs",), False)
    assert len({received.sop_instance_uid for received in pacs.received}) == 4


def test_a_withdrawn_result_is_not_sent_again_but_a_new_one_may_be_made(bed: Bed) -> None:
    analysed(bed)
    with scp() as pacs:
        send(bed, pacs)
        withdraw_all(bed)
        send(bed, pacs)
        with pytest.raises(WorklistError, match=r"was withdrawn by workitem 3; retry workitem 1, so"):
            bed.overview.retry(2, "person/ada")
        with pytest.raises(WorklistError, match="is a withdrawal"):
            bed.overview.retry(3, "person/ada")
        bed.overview.retry(1, "person/ada")
        assert bed.worker().step()
        send(bed, pacs)
    new = {received.sop_instance_uid for received in pacs.received[3:]}
    assert len(new) == 2
    assert not new & {received.sop_instance_uid for received in pacs.received[:3]}


def test_a_note_goes_out_though_its_images_were_rejected_or_the_result_is_old(bed: Bed, tmp_path: Path) -> None:
    images = series(modality="MR", shape=(3, 12, 16))
    bed.take(images)
    bed.plan(route())
    assert bed.worker().step()
    with scp() as pacs:
        send(bed, pacs)
        withdraw_all(bed)
        note = rejection_note(images[:1])
        bed.take([note])
        bed.plan(route())
        bed.turn(10_000.0)
        assert withdrawer(bed).step()
        entry = pacs.destination("pacs").model_copy(update={"max_age": 60.0})
        destination = open_destination(entry, calling_ae="DICOMAI", timeout=5.0)
        assert bed.delivery(destination).step()
    assert pacs.received[-1].sop_class_uid == KEY_OBJECT_SELECTION
    (path := tmp_path / "note.dcm").write_bytes(bed.store.get(bed.rows(ResultObject)[-1].key))
    tool = Path(sysconfig.get_path("scripts")) / "dciodvfy"
    found = subprocess.run([tool, path], check=False, capture_output=True, text=True)
    assert [line for line in found.stderr.splitlines() if line.startswith("Error")] == []
    assert "KeyObjectSelectionDocument" in found.stderr


def test_nobody_is_named_in_the_log(sqlite_bed: Bed) -> None:
    analysed(sqlite_bed, PatientName="Doe^Jane", PatientID="4711")
    with scp() as pacs, capture_logs() as logs:
        send(sqlite_bed, pacs)
        withdraw_all(sqlite_bed)
        send(sqlite_bed, pacs)
    assert "Doe" not in str(logs)
    assert "4711" not in str(logs)


def test_the_command_lists_first(sqlite_bed: Bed, capsys: pytest.CaptureFixture[str]) -> None:
    bed = sqlite_bed
    analysed(bed)
    with scp() as pacs:
        send(bed, pacs)
        config = bed.folder / "dicomai.toml"
        config.write_text(
            f'[node]\nstorage = "{bed.folder / "storage"}"\nworklist = "{bed.url}"\n'
            f'models = "{bed.folder / "models"}"\n'
            '[[destination]]\nname = "pacs"\ntype = "dicom"\nae_title = "PACS"\nhost = "127.0.0.1"\nport = 104\n'
            '[[route]]\nname = "all"\nmodel = "tiny"\ndestinations = ["pacs"]\n'
        )
        call = ["recall", "--bundle", "tiny", "--version", "0.1", "--config", str(config)]
        assert cli.main(call) == 0
        said = capsys.readouterr()
        assert "1 of 1 results would be withdrawn" in said.out
        assert "Route 'all' still runs tiny 0.1: change it" in said.err
        send(bed, pacs)
        assert len(pacs.received) == 2
        assert cli.main([*call, "--yes"]) == 0
        assert capsys.readouterr().out.count("pacs") == 2
        send(bed, pacs)
    assert len(pacs.received) == 3
    assert cli.main(["recall", "--workitem", "1", "--config", str(config)]) == 0
    assert cli.main(["recall", "--workitem", "2", "--config", str(config)]) == 1
    assert "Workitem 2 is no analysis that gave a result" in capsys.readouterr().err
    assert cli.main(["recall", "--bundle", "tiny", "--config", str(config)]) == 2
    assert cli.main(["recall", "--bundle", "tiny", "--version", "9", "--config", str(config)]) == 0
    assert "tiny 9 has given no result here." in capsys.readouterr().out


def superseded(bed: Bed, pacs: Scp, **changes: Any) -> Destination:
    """Have a result of three images sent, and let a fourth come late; gives the destination."""
    entry = pacs.destination("pacs").model_copy(update={"withdraw_superseded": True, **changes})
    destination = open_destination(entry, calling_ae="DICOMAI", timeout=5.0)
    images = series(modality="MR", shape=(4, 12, 16))
    bed.take(images[:3])
    bed.plan(route())
    assert bed.worker().step()
    assert bed.delivery(destination).step()
    bed.take(images[3:])
    bed.plan(route())
    assert bed.worker().step()
    return destination


def test_what_a_later_result_replaces_is_withdrawn_when_that_is_there(bed: Bed) -> None:
    with scp() as pacs:
        destination = superseded(bed, pacs)
        assert not withdrawer(bed).step(), "the later one is not there yet"
        assert bed.delivery(destination).step()
        assert withdrawer(bed).step()
        assert bed.delivery(destination).step()
        assert not withdrawer(bed).step()
    note = RejectionNote.of(read(pacs.received[-1]))
    assert note is not None
    assert set(note.sop_instance_uids) == {received.sop_instance_uid for received in pacs.received[:2]}


def test_nobody_is_told_who_does_not_want_to_be(sqlite_bed: Bed) -> None:
    with scp() as pacs:
        destination = superseded(sqlite_bed, pacs, withdraw_superseded=False)
        assert sqlite_bed.delivery(destination).step()
        assert not withdrawer(sqlite_bed).step()


def test_one_that_was_overtaken_on_its_way_is_withdrawn_when_it_arrives(sqlite_bed: Bed) -> None:
    bed = sqlite_bed
    with scp(0x0000, 0x0110, 0x0000) as pacs:
        destination = superseded(bed, pacs)
        assert [row.state for row in bed.items("delivery")] == [State.IN_PROGRESS, State.SCHEDULED]
        with bed.database.write() as session:
            session.execute(sa.update(Row).where(Row.id == bed.items("delivery")[1].id).values(priority=0))
        assert bed.delivery(destination).step()
        assert bed.items("delivery")[1].state == State.COMPLETED
        assert not withdrawer(bed).step(), "the rest of it is still to come"
        bed.turn(3600.0)
        assert bed.delivery(destination).step()
        assert bed.items("delivery")[0].state == State.COMPLETED
        (withdrawal,) = bed.items(Kind.WITHDRAWAL)
        assert withdrawal.route["withdraws"]["workitem"] == 1  # type: ignore[index]
