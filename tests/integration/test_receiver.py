"""The receiver on a real socket: what it takes, how it keeps it, and how it says no."""

import io
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from pydicom.data import get_testdata_files
from pydicom.filereader import read_file_meta_info
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGBaseline8Bit
from structlog.testing import capture_logs

from dicomai.config import Settings
from dicomai.database import Database
from dicomai.errors import ConfigurationError, NotAcceptedError, StorageFullError, StoreError, UnreadableError
from dicomai.intake import Intake
from dicomai.receiver import Receiver
from dicomai.store import Store
from tests.dimse import (
    HOST,
    MemoryIntake,
    associate,
    data_set_of,
    free_port,
    is_listening,
    node,
    rejection,
    send_file,
    store,
    wait_until,
)
from tests.synthetic import series

CT = [(CTImageStorage, [ExplicitVRLittleEndian])]
VERIFICATION = [("1.2.840.10008.1.1", [ImplicitVRLittleEndian])]


def _one_file_per_transfer_syntax() -> list[Path]:
    """Take pydicom's own files, of each transfer syntax and VR trouble the smallest."""
    found: dict[str, Path] = {}
    root = Path(get_testdata_files.__code__.co_filename).parent / "test_files"
    for path in sorted(root.glob("*.dcm"), key=lambda p: p.stat().st_size):
        try:
            meta = read_file_meta_info(path)
        except Exception:  # noqa: BLE001, S112  broken on purpose
            continue
        if all(meta.get(k) for k in ("TransferSyntaxUID", "MediaStorageSOPClassUID", "MediaStorageSOPInstanceUID")):
            found.setdefault(str(meta.TransferSyntaxUID), path)
    return list(found.values())


FILES = _one_file_per_transfer_syntax()


def test_there_is_a_file_for_most_transfer_syntaxes() -> None:
    assert len(FILES) >= 12


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_data_set_is_kept_byte_for_byte(path: Path) -> None:
    sop_class_uid, sop_instance_uid, transfer_syntax_uid, data_set = data_set_of(path)
    with node() as n:
        assert send_file(n.port, path) == 0x0000
        assert n.intake.data_set() == data_set
        meta = n.intake.meta()
        assert meta.MediaStorageSOPClassUID == sop_class_uid
        assert meta.MediaStorageSOPInstanceUID == sop_instance_uid
        assert meta.TransferSyntaxUID == transfer_syntax_uid
        assert meta.SourceApplicationEntityTitle == "CT01"


@pytest.mark.parametrize(
    "sop_class_uid",
    [
        "1.2.840.113619.4.30",  # private
        "1.2.840.10008.5.1.4.1.1.6",  # Ultrasound Image Storage (retired)
        "1.2.840.10008.5.1.4.1.1.66.7",  # Label Map Segmentation Storage
        "1.2.840.10008.5.1.4.1.1.9999.1",  # of a later edition of the standard
    ],
)
@pytest.mark.parametrize("transfer_syntax_uid", [ExplicitVRLittleEndian, "1.2.840.113619.5.2"])
def test_private_retired_and_new_classes_and_private_syntaxes_are_kept(
    sop_class_uid: str, transfer_syntax_uid: str
) -> None:
    with node() as n, associate(n.port, [(sop_class_uid, [transfer_syntax_uid])]) as assoc:
        assert store(assoc, sop_class_uid, "1.2.3", b"\x08\x00\x18\x00UI\x06\x001.2.3\x00").Status == 0x0000
        assert n.intake.data_set() == b"\x08\x00\x18\x00UI\x06\x001.2.3\x00"
        assert n.intake.meta().TransferSyntaxUID == transfer_syntax_uid


def test_what_is_no_storage_is_refused_context_by_context() -> None:
    query = "1.2.840.10008.5.1.4.1.2.2.1"  # Study Root Query/Retrieve - FIND
    with node() as n, associate(n.port, [*CT, (query, [ImplicitVRLittleEndian])]) as assoc:
        assert [c.abstract_syntax for c in assoc.accepted_contexts] == [CTImageStorage]
        assert [(c.abstract_syntax, c.result) for c in assoc.rejected_contexts] == [(query, 3)]


def test_a_sender_with_a_choice_is_not_asked_to_compress() -> None:
    choice = [JPEGBaseline8Bit, ImplicitVRLittleEndian, ExplicitVRLittleEndian]
    with node() as n, associate(n.port, [(CTImageStorage, choice)]) as assoc:
        assert assoc.accepted_contexts[0].transfer_syntax == [ImplicitVRLittleEndian]


def test_128_contexts_and_a_large_pdu_are_taken() -> None:
    contexts = [(f"1.2.826.0.1.3680043.8.{n}", [ExplicitVRLittleEndian]) for n in range(128)]
    with node() as n, associate(n.port, contexts) as assoc:
        assert len(assoc.accepted_contexts) == 128
        assert assoc.acceptor.maximum_length == 131072


def test_echo_is_answered_and_leaves_no_association_behind() -> None:
    with node() as n:
        with associate(n.port, VERIFICATION) as assoc:
            assert assoc.send_c_echo().Status == 0x0000
        assert n.intake.opened == []


@pytest.mark.parametrize(
    ("calling", "called", "settings", "expected", "remedy"),
    [
        ("CT01", "OTHER", {}, (1, 1, 7), "set the called AE title to DICOMAI"),
        ("CT02", "DICOMAI", {"allow": ("CT01",)}, (1, 1, 3), "add CT02@127.0.0.1 to receiver.allow"),
        ("CT01", "DICOMAI", {"allow": ("CT01@10.1.0.0/16",)}, (1, 1, 3), "add CT01@127.0.0.1 to receiver.allow"),
    ],
)
def test_a_stranger_is_refused_with_the_reason_of_the_standard(
    calling: str, called: str, settings: dict[str, Any], expected: tuple[int, ...], remedy: str
) -> None:
    with capture_logs() as logs, node(**settings) as n:
        with associate(n.port, CT, calling_ae=calling, called_ae=called) as assoc:
            assert rejection(assoc) == expected
        assert n.intake.opened == []
    refusals = [line for line in logs if line["event"].startswith("association refused")]
    assert len(refusals) == 1
    assert remedy in refusals[0]["remedy"]


def test_an_allowed_sender_in_its_network_comes_in() -> None:
    with node(allow=("CT01@127.0.0.0/8",)) as n, associate(n.port, CT) as assoc:
        assert assoc.is_established


def test_low_disk_refuses_for_now() -> None:
    with node() as n:
        n.intake.room = False
        with associate(n.port, CT) as assoc:
            assert rejection(assoc) == (2, 3, 1)
        n.intake.room = True
        with associate(n.port, CT) as assoc:
            assert assoc.is_established


def test_an_intake_that_cannot_open_an_association_lets_nobody_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise StoreError("The database is away.")

    with node(max_associations=1) as n:
        monkeypatch.setattr(n.intake, "open_association", fail)
        for _ in range(2):  # and the refused one does not count
            with associate(n.port, CT) as assoc:
                assert rejection(assoc) == (2, 3, 1)


def test_an_echo_does_not_need_the_database(tmp_path: Path) -> None:
    database = Database(f"postgresql+psycopg://dicomai@{HOST}:{free_port()}/gone")
    with capture_logs() as lines, node(Intake(Store(tmp_path), database, 60.0, 0)) as n:
        for _ in range(2):
            with associate(n.port, VERIFICATION) as assoc:
                assert assoc.send_c_echo().Status == 0x0000
            with associate(n.port, [*CT, *VERIFICATION]) as assoc:
                assert rejection(assoc) == (2, 3, 1)
    refused = [line for line in lines if "refused" in line["event"]]
    assert [line["remedy"] for line in refused] == [
        "The worklist database failed (OperationalError); check that it runs and has room."
    ] * 2


def test_the_limit_counts_open_associations_only() -> None:
    with node(max_associations=2) as n:
        with associate(n.port, CT) as first, associate(n.port, VERIFICATION) as second:
            assert first.is_established
            assert second.is_established
            for _ in range(2):
                with associate(n.port, CT) as third:
                    assert rejection(third) == (2, 3, 2)
        wait_until(lambda: n.intake.closed)
        with associate(n.port, CT) as assoc:
            assert assoc.is_established


def test_senders_that_come_at_once_share_the_limit() -> None:
    class Slow(MemoryIntake):
        def has_room(self) -> bool:
            time.sleep(0.2)  # all have been found to be below the limit by then
            return True

    outcomes: list[bool] = []
    gate = threading.Barrier(8, timeout=20)

    def come() -> None:
        with associate(n.port, CT) as assoc:
            outcomes.append(assoc.is_established)
            gate.wait()

    with node(Slow(), max_associations=2) as n:
        threads = [threading.Thread(target=come) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert outcomes.count(True) == 2


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (StorageFullError("There is no room."), 0xA700),
        (NotAcceptedError("Another SOP class."), 0xA900),
        (UnreadableError("No DICOM."), 0xC000),
        (StoreError("The disk failed."), 0x0110),
        (RuntimeError("Doe^Jane"), 0x0110),
    ],
)
def test_each_failure_has_its_status_a_comment_and_one_line(failure: Exception, status: int) -> None:
    with capture_logs() as logs, node() as n, associate(n.port, CT) as assoc:
        n.intake.failure = failure
        response = store(assoc, CTImageStorage, "1.2.3", b"\x08\x00\x18\x00")
        assert response.Status == status
        assert 0 < len(response.ErrorComment) <= 64
        n.intake.failure = None
        assert store(assoc, CTImageStorage, "1.2.3", b"\x08\x00\x18\x00").Status == 0x0000
    lines = [line for line in logs if line["event"].startswith("instance refused")]
    assert len(lines) == 1
    assert lines[0]["remedy"]
    assert "Doe" not in str(logs)


def test_a_request_under_the_context_of_another_class_is_refused() -> None:
    with node() as n, associate(n.port, [*CT, *VERIFICATION]) as assoc:
        context = assoc.accepted_contexts[0].context_id
        mr = "1.2.840.10008.5.1.4.1.1.4"
        assert store(assoc, mr, "1.2.3", b"\x08\x00\x18\x00", context=context).Status == 0x0122
        assert n.intake.files == []


def test_the_ends_of_an_association_are_told_apart() -> None:
    with node() as n:
        with associate(n.port, CT):
            pass
        wait_until(lambda: n.intake.closed == [(1, "released")])
        with associate(n.port, CT) as assoc:
            assoc.abort()
        wait_until(lambda: n.intake.closed[1:] == [(2, "aborted")])
        with associate(n.port, CT) as assoc:
            wrapper = assoc.dul.socket
            assert wrapper is not None
            assert wrapper.socket is not None
            wrapper.socket.shutdown(2)  # as if the cable were pulled and the peer's host said so
        wait_until(lambda: n.intake.closed[2:] == [(3, "lost")])


def test_a_sender_that_falls_silent_is_lost_after_the_idle_time_out() -> None:
    with node(idle_timeout=0.5) as n, associate(n.port, CT) as assoc:
        assert assoc.is_established
        wait_until(lambda: n.intake.closed == [(1, "lost")])


def test_a_sender_that_stops_inside_a_pdu_does_not_stay_for_ever() -> None:
    with node(idle_timeout=0.5) as n, associate(n.port, CT) as assoc:
        acceptor = n.receiver._sessions.associations()[0]
        wrapper = assoc.dul.socket
        assert wrapper is not None
        assert wrapper.socket is not None
        wrapper.socket.sendall(b"\x04\x00\x00\x00\x10\x00half a PDU")
        wait_until(lambda: n.intake.closed == [(1, "lost")])
        wait_until(lambda: not acceptor.is_alive() and not acceptor.dul.is_alive(), timeout=5)


def test_an_association_whose_thread_dies_is_closed_too() -> None:
    with node() as n, associate(n.port, CT):
        acceptor = n.receiver._sessions.associations()[0]
        acceptor._kill = True  # as the library does when its lower layer fails
        wait_until(lambda: n.intake.closed == [(1, "lost")])


def test_shutdown_lets_a_transfer_finish_and_aborts_what_lingers() -> None:
    with node(grace=0.5) as n:
        n.intake.before_accept = lambda: time.sleep(0.3)
        with associate(n.port, CT) as busy, associate(n.port, CT) as idle:
            status: list[int] = []
            sender = threading.Thread(
                target=lambda: status.append(store(busy, CTImageStorage, "1.2.3", b"\x08\x00\x18\x00").Status)
            )
            sender.start()
            time.sleep(0.1)
            n.receiver.shutdown(grace=1.0)
            sender.join()
            assert status == [0x0000]
            wait_until(lambda: idle.is_aborted)
        assert sorted(n.intake.closed) == [(1, "aborted"), (2, "aborted")]
        assert not is_listening(n.port)


def test_leases_are_renewed_while_an_association_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dicomai.receiver.scp._RENEWAL_SECONDS", 0.0)
    with node() as n, associate(n.port, CT), associate(n.port, VERIFICATION):
        wait_until(lambda: {1} in n.intake.renewed)


@pytest.mark.slow
def test_64_associations_send_at_once() -> None:
    path = min(FILES, key=lambda p: p.stat().st_size)
    sop_class_uid, sop_instance_uid, transfer_syntax_uid, data_set = data_set_of(path)
    everyone = threading.Barrier(64, timeout=60)
    statuses: list[int] = []

    def send() -> None:
        with associate(n.port, [(sop_class_uid, [transfer_syntax_uid])]) as assoc:
            everyone.wait()  # all 64 are open now
            statuses.append(int(store(assoc, sop_class_uid, sop_instance_uid, data_set).Status))

    with node() as n:
        threads = [threading.Thread(target=send) for _ in range(64)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert statuses == [0x0000] * 64
        assert len({association for association, _ in n.intake.files}) == 64
        assert all(n.intake.data_set(i) == data_set for i in range(64))
        wait_until(lambda: len(n.intake.closed) == 64, timeout=30)


def test_a_half_sent_pdu_does_not_keep_the_process_from_ending() -> None:
    with node(grace=0.1) as n, associate(n.port, CT) as assoc:
        wrapper = assoc.dul.socket
        assert wrapper is not None
        assert wrapper.socket is not None
        wrapper.socket.sendall(b"\x04\x00\x00\x00\x10\x00half a PDU")
        time.sleep(0.1)
        dul = n.receiver._sessions.associations()[0].dul
        n.receiver.shutdown(grace=0.1)
        wait_until(lambda: not dul.is_alive(), timeout=3)


_PROCESS = """
import sys, threading
from dicomai.config import Settings
from dicomai.receiver import serve

class Nowhere:
    def has_room(self): return True
    def elsewhere(self, address): return 0, 0

stop = threading.Event()
settings = Settings(node={"host": "127.0.0.1", "port": int(sys.argv[1])})
threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
serve(settings, Nowhere(), stop)
heavy = {"torch", "monai", "highdicom", "sqlalchemy"} & set(sys.modules)
sys.exit(f"loaded {heavy}" if heavy else 0)
"""


def test_a_receiver_process_answers_within_two_seconds_and_loads_nothing_heavy() -> None:
    port = free_port()
    start = time.monotonic()
    process = subprocess.Popen([sys.executable, "-c", _PROCESS, str(port)], stdin=subprocess.PIPE)
    try:
        wait_until(lambda: is_listening(port))
        with associate(port, VERIFICATION) as assoc:
            assert assoc.send_c_echo().Status == 0x0000
            busy = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))  # a machine that runs other tests meanwhile
            assert time.monotonic() - start < 2.0 * busy
    finally:
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=20) == 0


def test_a_port_in_use_is_said_in_a_sentence() -> None:
    with node() as n:
        taken = Settings(node={"host": HOST, "port": n.port})
        with pytest.raises(ConfigurationError, match=f"Cannot listen on {HOST} port {n.port}"):
            Receiver(taken, MemoryIntake()).start()


@pytest.mark.filterwarnings("ignore:Expected explicit VR, but found implicit VR:UserWarning")  # of the broken one
def test_what_the_intake_says_goes_over_the_wire(tmp_path: Path) -> None:
    """The receiver in front of the store and the index, as the node has them."""
    database = Database(f"sqlite:///{tmp_path / 'worklist.db'}")
    database.migrate()
    intake = Intake(Store(tmp_path), database, quiet_period=60.0, min_free_bytes=0)
    ct, mr = series(shape=(1, 4, 4))[0], series(modality="MR", shape=(1, 4, 4))[0]
    files = []
    for ds in (ct, mr):
        buffer = io.BytesIO()
        ds.save_as(buffer, enforce_file_format=True)
        files.append(buffer.getvalue())
    bytes_of = [data[144 + int.from_bytes(data[140:144], "little") :] for data in files]
    with node(intake) as n, associate(n.port, CT) as assoc:
        for _ in range(2):
            assert store(assoc, CTImageStorage, ct.SOPInstanceUID, bytes_of[0]).Status == 0x0000
        assert store(assoc, CTImageStorage, "1.2.3", bytes_of[0]).Status == 0xA900
        assert store(assoc, CTImageStorage, mr.SOPInstanceUID, bytes_of[1]).Status == 0xA900
        assert store(assoc, CTImageStorage, "1.2.3", b"no data set at all").Status == 0xC000
    kept = list((tmp_path / "instances").rglob("*.dcm"))
    assert [data_set_of(path)[3] for path in kept] == [bytes_of[0]]
    assert list((tmp_path / "incoming" / "receiver").iterdir()) == []
    database.close()
