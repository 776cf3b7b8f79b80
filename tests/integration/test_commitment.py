"""Storage commitment over sockets: a requestor that deletes on our word is told the truth, wherever it waits for it."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid
from pynetdicom import AE, build_context, evt
from pynetdicom.association import Association
from pynetdicom.events import Event
from structlog.testing import capture_logs

from dicomai.commands import check
from dicomai.config import Settings
from dicomai.database.commitments import Commitments
from dicomai.database.tables import Audit, Commitment
from dicomai.receiver import Receiver, commitment
from dicomai.receiver.commitment import FAILURES, PUSH_MODEL, PUSH_MODEL_INSTANCE, StorageCommitment
from dicomai.receiver.connections import Server
from tests.beds import Bed, as_received, parts
from tests.dimse import HOST, associate, free_port, store, wait_until
from tests.rejected import rejection_note
from tests.synthetic import series

VERIFICATION = "1.2.840.10008.1.1"
CT = "1.2.840.10008.5.1.4.1.1.2"


@dataclass
class Told:
    """What a requestor was told, in the order in which it came."""

    reports: list[tuple[int, Dataset]] = field(default_factory=list)
    status: int = 0x0000
    delay: float = 0.0

    def hear(self, event: Event) -> Any:
        time.sleep(self.delay)
        self.reports.append((event.event_type, event.event_information))
        return self.status, None

    def one(self) -> tuple[str, list[str], dict[str, int]]:
        """Transaction UID, what is committed, what is not and why, of the only report."""
        wait_until(lambda: self.reports, 8)
        ((kind, ds),) = self.reports
        failed = {i.ReferencedSOPInstanceUID: i.FailureReason for i in ds.get("FailedSOPSequence") or ()}
        assert kind == (2 if failed else 1)
        safe = [i.ReferencedSOPInstanceUID for i in ds.get("ReferencedSOPSequence") or ()]
        return str(ds.TransactionUID), sorted(safe), failed


@dataclass
class Rig:
    """A receiver with storage commitment; `CT01` can be called at `port_of_ct`."""

    bed: Bed
    settings: Settings
    port_of_ct: int
    service: StorageCommitment
    receiver: Receiver

    @property
    def rows(self) -> list[Commitment]:
        return self.bed.rows(Commitment)

    def wait_for(self, state: str) -> Commitment:
        wait_until(lambda: [row.state for row in self.rows] == [state], 8)
        return self.rows[0]


@contextlib.contextmanager
def running(bed: Bed, **sections: Any) -> Iterator[Rig]:
    port = free_port()
    sections.setdefault("source", [{"name": "ct", "ae_title": "CT01", "host": HOST, "port": port}])
    settings = Settings(
        node={"host": HOST, "port": free_port()},
        console={"dicomweb": True},
        receiver={"commitment": True, "min_free_bytes": 0},
        delivery={"first_wait": 0.2, "longest_wait": 0.5, "timeout": 2.0},
        **sections,
    )
    service = StorageCommitment(settings, bed.store, Commitments(bed.database))
    receiver = Receiver(settings, bed.intake, [service])
    receiver.start()
    try:
        yield Rig(bed, settings, port, service, receiver)
    finally:
        receiver.shutdown(grace=2.0)
        wait_until(lambda: not [t for t in threading.enumerate() if t.name.startswith("commitment")], 15)


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commitment, "ARRIVAL_SECONDS", 0.0)
    monkeypatch.setattr(commitment, "_RELEASE_SECONDS", 0.2)


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[Bed]:
    made = Bed(tmp_path, f"sqlite:///{tmp_path / 'worklist.db'}")
    yield made
    made.close()


@pytest.fixture
def rig(bed: Bed) -> Iterator[Rig]:
    with running(bed) as made:
        yield made


@contextlib.contextmanager
def listening(port: int, told: Told) -> Iterator[None]:
    """Wait for reports as a modality does: SCU of the class, on an association that the SCP requests."""
    ae = AE(ae_title="CT01")
    context = build_context(PUSH_MODEL, [ImplicitVRLittleEndian])
    context.scu_role, context.scp_role = False, True
    ae.supported_contexts = [context]
    server = ae.make_server((HOST, port), evt_handlers=[(evt.EVT_N_EVENT_REPORT, told.hear)], server_class=Server)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield
    finally:
        for assoc in server.active_associations:
            assoc.abort(block=False)
        server.shutdown()


def request(transaction: str, references: Sequence[tuple[str, str]]) -> Dataset:
    ds = Dataset()
    ds.TransactionUID = transaction
    ds.ReferencedSOPSequence = []
    for sop_class, uid in references:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, uid
        ds.ReferencedSOPSequence.append(item)
    return ds


def ask(assoc: Association, references: Sequence[tuple[str, str]], transaction: str | None = None) -> str:
    """Ask for commitment; gives the transaction UID."""
    transaction = transaction or generate_uid()
    status, _ = assoc.send_n_action(request(transaction, references), 1, PUSH_MODEL, PUSH_MODEL_INSTANCE)
    assert status.Status == 0x0000
    return transaction


@contextlib.contextmanager
def calling(rig: Rig, told: Told | None = None) -> Iterator[Association]:
    contexts = [
        (PUSH_MODEL, [ImplicitVRLittleEndian]),
        (CT, [ExplicitVRLittleEndian]),
        (VERIFICATION, [ImplicitVRLittleEndian]),
    ]
    with associate(rig.receiver.port, contexts) as assoc:
        assert assoc.is_established
        if told is not None:
            assoc.bind(evt.EVT_N_EVENT_REPORT, told.hear)
        yield assoc


def ask_and_go(rig: Rig, references: Sequence[tuple[str, str]], transaction: str | None = None) -> str:
    with calling(rig) as assoc:
        return ask(assoc, references, transaction)


def names(images: Sequence[FileDataset]) -> list[tuple[str, str]]:
    return [(str(i.SOPClassUID), str(i.SOPInstanceUID)) for i in images]


def uids(images: Sequence[FileDataset]) -> list[str]:
    return sorted(str(i.SOPInstanceUID) for i in images)


class TestWhereItIsTold:
    def test_on_the_same_association_to_one_that_waits(self, rig: Rig) -> None:
        images = series(shape=(3, 4, 4))
        rig.bed.take(images)
        told = Told()
        with calling(rig, told) as assoc:
            transaction = ask(assoc, names(images))
            assert told.one() == (transaction, uids(images), {})
            rig.wait_for("REPORTED")
            assert assoc.is_established, "the requestor ends it, not we"
        events = [row.event for row in rig.bed.rows(Audit) if "commitment" in row.event]
        assert events == ["commitment asked for", "commitment reported"]

    def test_on_a_new_association_to_one_that_has_gone(self, rig: Rig) -> None:
        images = series(shape=(3, 4, 4))
        rig.bed.take(images)
        told = Told()
        with listening(rig.port_of_ct, told):
            transaction = ask_and_go(rig, names(images))
            assert told.one() == (transaction, uids(images), {})
            rig.wait_for("REPORTED")

    def test_while_the_requestor_goes_on_with_its_own_requests(self, rig: Rig) -> None:
        """The library would take the next request for the response, and abort."""
        images = series(shape=(12, 4, 4))
        rig.bed.take(images[:2])
        told = Told(delay=0.3)
        with calling(rig, told) as assoc:
            transaction = ask(assoc, names(images[:2]))
            for image in images[2:]:
                with as_received():
                    _, data = parts(image)
                assert store(assoc, CT, image.SOPInstanceUID, data).Status == 0x0000
                assert assoc.send_c_echo().Status == 0x0000
                time.sleep(0.05)
            assert told.one() == (transaction, uids(images[:2]), {})
            rig.wait_for("REPORTED")
            assert assoc.is_established

    def test_one_that_hears_nothing_on_its_association_is_called(self, rig: Rig) -> None:
        images = series(shape=(1, 4, 4))
        rig.bed.take(images)
        deaf, told = Told(status=0x0110), Told()
        with listening(rig.port_of_ct, told), calling(rig, deaf) as assoc:
            ask(assoc, names(images))
            assert told.one()[1] == uids(images)
            assert len(deaf.reports) == 1

    def test_one_that_is_down_is_called_again_until_it_is_back(self, rig: Rig) -> None:
        images = series(shape=(1, 4, 4))
        rig.bed.take(images)
        ask_and_go(rig, names(images))
        wait_until(lambda: rig.rows[0].attempt >= 2, 8)
        row = rig.rows[0]
        assert (row.state, "cannot be connected to" in row.reason) == ("OPEN", True)
        told = Told()
        with listening(rig.port_of_ct, told):
            assert told.one()[1] == uids(images)
            rig.wait_for("REPORTED")

    def test_one_that_answers_with_a_failure_is_told_again(self, rig: Rig) -> None:
        images = series(shape=(1, 4, 4))
        rig.bed.take(images)
        told = Told(status=0x0110)
        with listening(rig.port_of_ct, told):
            ask_and_go(rig, names(images))
            wait_until(lambda: told.reports, 8)
            told.status = 0x0000
            rig.wait_for("REPORTED")
        assert len(told.reports) > 1

    def test_one_that_nobody_knows_how_to_call_is_given_up_after_days(self, bed: Bed) -> None:
        images = series(shape=(1, 4, 4))
        bed.take(images)
        with capture_logs() as logs, running(bed, source=[]) as rig:
            ask_and_go(rig, names(images))
            wait_until(lambda: rig.rows[0].reason, 8)
            assert "no [[source]] has this AE title" in rig.rows[0].reason
            bed.turn(timedelta(days=4).total_seconds())
            row = rig.wait_for("GIVEN UP")
        assert row.reason.startswith("Given up after 3 days: CT01 has ended its association")
        assert "commitment given up" in [audit.event for audit in bed.rows(Audit)]
        assert "storage commitment is given up" in [line["event"] for line in logs]


def file_of(rig: Rig, image: FileDataset) -> Path:
    (key,) = (key for key in rig.bed.files() if image.SOPInstanceUID in key)
    return rig.bed.folder / "storage" / key


def damage(path: Path, change: Callable[[bytearray], Any]) -> None:
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)


class TestWhatIsTold:
    def test_only_what_is_here_whole_and_without_a_doubt_is_safe(self, rig: Rig) -> None:
        good, corrected, *bad = series(shape=(11, 4, 4))
        _missing, other_class, gone, flipped, cut, longer, blank, doubtful, rejected = bad
        rig.bed.take([good, corrected, *bad[1:]])
        corrected.PatientID = "CORRECTED"
        doubtful.PixelData = bytes(len(doubtful.PixelData))
        file_of(rig, gone).unlink()
        damage(file_of(rig, flipped), lambda data: data.__setitem__(-3, data[-3] ^ 1))
        damage(file_of(rig, cut), lambda data: data.__delitem__(slice(-8, None)))
        damage(file_of(rig, longer), lambda data: data.extend(b"\0\0"))
        damage(file_of(rig, blank), lambda data: data.__setitem__(slice(None), bytes(len(data))))
        rig.bed.take([corrected, doubtful, rejection_note([rejected])])
        rig.bed.planner().sweep()
        asked = [
            one if uid != other_class.SOPInstanceUID else ("1.2.3", uid)
            for one in names([good, corrected, *bad])
            for uid in one[1:]
        ]
        told = Told()
        with calling(rig, told) as assoc:
            ask(assoc, asked)
            _, safe, failed = told.one()
        assert safe == uids([good, corrected])
        reasons = (0x0112, 0x0119, *[0x0110] * 7)
        assert failed == {image.SOPInstanceUID: reason for image, reason in zip(bad, reasons, strict=True)}
        assert set(failed.values()) < set(FAILURES)

    def test_what_is_still_on_its_way_is_waited_for(self, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(commitment, "ARRIVAL_SECONDS", 5.0)
        images = series(shape=(2, 4, 4))
        rig.bed.take(images[:1])
        told = Told()
        with calling(rig, told) as assoc:
            ask(assoc, names(images))
            time.sleep(0.3)
            rig.bed.take(images[1:])
            assert told.one()[1:] == (uids(images), {})


class TestTransactions:
    def test_asked_again_it_is_answered_again(self, rig: Rig) -> None:
        images = series(shape=(2, 4, 4))
        rig.bed.take(images)
        told = Told()
        with listening(rig.port_of_ct, told):
            transaction = ask_and_go(rig, names(images))
            first = told.one()
            rig.wait_for("REPORTED")
            told.reports.clear()
            ask_and_go(rig, names(images), transaction)
            assert told.one() == first
        assert len(rig.rows) == 1

    def test_the_same_uid_for_other_instances_is_a_duplicate(self, rig: Rig) -> None:
        images = series(shape=(2, 4, 4))
        rig.bed.take(images)
        told = Told()
        with calling(rig, told) as assoc:
            transaction = ask(assoc, names(images[:1]))
            told.one()
            told.reports.clear()
            ask(assoc, names(images[1:]), transaction)
            assert told.one() == (transaction, [], {images[1].SOPInstanceUID: 0x0131})

    def test_a_request_that_is_none_is_refused(self, rig: Rig) -> None:
        good = {
            "TransactionUID": "1.2.9",
            "ReferencedSOPSequence": request("1.2.9", [(CT, "1.2")]).ReferencedSOPSequence,
        }
        with calling(rig) as assoc, as_received():
            for action, instance, change, status in (
                (2, PUSH_MODEL_INSTANCE, {}, 0x0123),
                (1, "1.2.3", {}, 0x0112),
                (1, PUSH_MODEL_INSTANCE, {"TransactionUID": None}, 0x0115),
                (1, PUSH_MODEL_INSTANCE, {"TransactionUID": "../x"}, 0x0115),
                (1, PUSH_MODEL_INSTANCE, {"ReferencedSOPSequence": []}, 0x0115),
                (1, PUSH_MODEL_INSTANCE, {"ReferencedSOPSequence": [Dataset()]}, 0x0115),
            ):
                ds = Dataset()
                for keyword, value in {**good, **change}.items():
                    setattr(ds, keyword, value)
                answer, _ = assoc.send_n_action(ds, action, PUSH_MODEL, instance)
                assert (answer.Status, change) == (status, change)
        assert rig.rows == []


def test_a_request_outlives_the_process_that_took_it(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    images = series(shape=(2, 4, 4))
    bed.take(images)
    with running(bed) as first, monkeypatch.context() as patch:
        patch.setattr(StorageCommitment, "_start", lambda *_: None)  # as if killed after it answered
        transaction = ask_and_go(first, names(images))
        assert first.rows[0].state == "OPEN"
    told = Told()
    with running(bed) as second, listening(second.port_of_ct, told):
        Commitments(bed.database).recover()
        assert told.one() == (transaction, uids(images), {})
        second.wait_for("REPORTED")


def test_it_is_not_offered_unless_asked_for(bed: Bed) -> None:
    receiver = Receiver(Settings(node={"host": HOST, "port": free_port()}), bed.intake)
    receiver.start()
    try:
        with associate(receiver.port, [(PUSH_MODEL, [ImplicitVRLittleEndian])]) as assoc:
            assert not assoc.accepted_contexts
    finally:
        receiver.shutdown(grace=1.0)


def test_the_doctor_says_that_nobody_can_be_called() -> None:
    settings = Settings(
        node={"host": HOST, "port": free_port()}, console={"dicomweb": True}, receiver={"commitment": True}
    )
    assert [one.about for one in check._receiver(settings) if "[[source]]" in one.sentence] == ["commitment"]


@pytest.mark.parametrize(
    ("console", "warned"),
    [
        ({}, True),
        ({"host": "192.0.2.1", "token": "a-token-of-24-characters"}, False),
        ({"public_url": "https://ai.hospital.example"}, False),
    ],
)
def test_the_doctor_says_that_nobody_else_could_have_back_what_is_promised(
    console: dict[str, str], warned: bool
) -> None:
    settings = Settings(
        node={"host": HOST, "port": free_port()}, console={"dicomweb": True, **console}, receiver={"commitment": True}
    )
    assert any("by this machine alone" in one.sentence for one in check._receiver(settings)) is warned


class TestRows:
    """On both databases."""

    @pytest.fixture
    def both(self, database_url: str, tmp_path: Path) -> Iterator[Bed]:
        made = Bed(tmp_path, database_url)
        yield made
        made.close()

    def test_a_claim_is_nobody_else_s_until_its_lease_is_over(self, both: Bed) -> None:
        rows = Commitments(both.database)
        asked = rows.ask("CT01", "1.2.3", [(CT, "1.2"), (CT, "1.2"), (CT, "1.1")], 10)
        assert asked.references == ((CT, "1.1"), (CT, "1.2"))
        assert rows.claim(10) is None
        both.turn(11)
        claimed = rows.claim(10)
        assert claimed is not None
        assert (claimed.id, claimed.attempt) == (asked.id, asked.attempt + 1)
        assert rows.claim(10) is None
        rows.reported(asked, "late")
        assert both.rows(Commitment)[0].state == "OPEN", "a late word changes nothing"
        rows.postpone(claimed, 100, "It sleeps.")
        both.turn(50)
        assert rows.claim(10) is None
        rows.recover()
        again = rows.claim(10)
        assert again is not None
        assert again.age >= timedelta(seconds=50)
        rows.reported(again, "told")
        both.turn(1e6)
        assert rows.claim(10) is None

    def test_what_is_held_is_looked_up(self, both: Bed) -> None:
        images = series(shape=(3, 4, 4))
        both.take(images)
        held = Commitments(both.database).held([*uids(images), "1.2.3"])
        assert sorted(held) == uids(images)
        assert {one.key for one in held.values()} == both.files()
        both.take([rejection_note(images[:1])])
        both.planner().sweep()
        held = Commitments(both.database).held(uids(images))
        assert [uid for uid, one in held.items() if one.is_withdrawn] == [images[0].SOPInstanceUID]
