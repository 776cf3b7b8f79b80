"""Receiver, store and index together, over real sockets: many senders at once, no room, no database."""

import contextlib
import errno
import hashlib
import itertools
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from datetime import timedelta
from io import FileIO
from pathlib import Path
from typing import Any, NoReturn

import psycopg
import pytest
import sqlalchemy as sa
from pydicom.dataset import FileDataset
from structlog.testing import capture_logs

from dicomai import store
from dicomai.database import Database
from dicomai.database.index import Outcome, Recorded, SeriesState
from dicomai.database.tables import Association, AssociationSeries, Instance, Series, Study, Version
from dicomai.errors import StoreError
from dicomai.intake import Intake
from dicomai.store import Store
from tests import scu, stored
from tests.beds import QUIET, Bed, announced, as_received, parts
from tests.dimse import node, wait_until
from tests.postgres import Server
from tests.synthetic import series, write

ROOT = Path(__file__).parents[2]
SENDERS = 8


def encoded(images: Sequence[FileDataset]) -> dict[str, bytes]:
    """Give the data sets by SOP Instance UID, in their order."""
    return {str(ds.SOPInstanceUID): parts(ds)[1] for ds in images}


def faults(bed: Bed, acknowledged: dict[str, bytes]) -> list[str]:
    digests = {uid: hashlib.sha256(data).hexdigest() for uid, data in acknowledged.items()}
    return stored.faults(bed.folder / "storage", bed.url, digests)


def send_at_once(port: int, shares: Sequence[dict[str, bytes]]) -> list[int]:
    """Send each share over an association of its own, all at the same time; gives every status."""
    everyone, statuses = threading.Barrier(len(shares), timeout=30), []

    def send(number: int, share: dict[str, bytes]) -> None:
        with scu.associated(port, calling_ae=f"CT{number}") as assoc:
            everyone.wait()
            statuses.extend([assoc.store(uid, data) for uid, data in share.items()])

    threads = [threading.Thread(target=send, args=each) for each in enumerate(shares)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return statuses


def rotated(images: dict[str, bytes], by: int) -> dict[str, bytes]:
    order = [*images][by:] + [*images][:by]
    return {uid: images[uid] for uid in order}


class TestOneStudyByEightAssociations:
    @pytest.mark.parametrize("step", [0, 3], ids=["in step", "each from another image on"])
    def test_each_instance_is_there_once_and_nobody_hears_of_the_others(self, bed: Bed, step: int) -> None:
        images = encoded(series(shape=(24, 16, 16)))
        with node(bed.intake) as n:
            said = send_at_once(n.port, [rotated(images, step * number) for number in range(SENDERS)])
            wait_until(lambda: all(row.ended_at for row in bed.rows(Association)))
        assert said == [0x0000] * 24 * SENDERS
        assert [len(bed.rows(table)) for table in (Study, Series, Instance, Version)] == [1, 1, 24, 24]
        assert [row.conflict for row in bed.rows(Instance)] == [""] * 24
        assert len(bed.rows(AssociationSeries)) == SENDERS
        (one,) = bed.rows(Series)
        assert (one.state, one.revision) == (SeriesState.RECEIVING, 24)
        newest = max(version.received_at for version in bed.rows(Version))
        assert abs(one.last_received_at - newest) < timedelta(seconds=0.5)  # groups that meet commit in either order
        assert one.due_at == one.last_received_at + timedelta(seconds=QUIET)
        assert bed.worklist.doubt(one.study_id) == ""
        assert faults(bed, images) == []

    def test_the_one_that_differs_is_kept_and_holds_the_study(self, bed: Bed) -> None:
        images = series(shape=(12, 16, 16))
        shares = [encoded(images) for _ in range(SENDERS)]
        odd = str(images[7].SOPInstanceUID)
        shares[3][odd] = shares[3][odd][:-2] + b"\1\1"
        with node(bed.intake) as n:
            said = send_at_once(n.port, shares)
            wait_until(lambda: all(row.ended_at for row in bed.rows(Association)))
        assert said == [0x0000] * 12 * SENDERS
        assert len(bed.rows(Instance)) == 12
        assert sorted(row.conflicting for row in bed.rows(Version)) == [False] * 12 + [True]
        (study,) = bed.rows(Study)  # whose number is not 1 where another attempt to make it had one
        assert f"SOP Instance {odd} came again with other pixels." in bed.worklist.doubt(study.id)
        assert faults(bed, shares[0]) == []
        assert faults(bed, shares[3]) == []


class TestGroups:
    @pytest.mark.slow
    @pytest.mark.parametrize(("step", "kept"), [("group written", 1), ("group committed", 6)])
    def test_a_kill_keeps_a_group_whole_or_leaves_nothing_of_it(self, bed: Bed, step: str, kept: int) -> None:
        images = series(shape=(6, 16, 16))
        files = write(images, bed.folder / "sent")
        storage = str(bed.folder / "storage")
        command = [sys.executable, "-m", "tests.processes", storage, bed.url, step, *map(str, files)]
        assert subprocess.run(command, cwd=ROOT, check=False, timeout=60).returncode == -signal.SIGKILL
        assert len(bed.files("instances")) == 6
        assert len(bed.files("incoming")) == 5
        bed.intake.recover()
        assert len(bed.rows(Version)) == kept
        assert faults(bed, encoded(images[:kept])) == []
        assert bed.take(images) == [Recorded.SAME] * kept + [Recorded.NEW] * (6 - kept)
        assert faults(bed, encoded(images)) == []

    def test_leases_are_renewed_meanwhile_and_nobody_waits_for_the_other_in_vain(self, bed: Bed) -> None:
        shares = [encoded(series(shape=(15, 16, 16))) for _ in range(SENDERS)]
        done = threading.Event()

        def renew() -> None:
            while not done.wait(0.001):
                bed.intake.renew(range(SENDERS, 0, -1))

        renewing = [threading.Thread(target=renew) for _ in range(2)]
        with node(bed.intake) as n:
            for thread in renewing:
                thread.start()
            said = send_at_once(n.port, shares)
            done.set()
            for thread in renewing:
                thread.join()
        assert said == [0x0000] * 15 * SENDERS

    def test_a_group_that_meets_another_transaction_is_recorded_all_the_same(
        self, tmp_path: Path, postgresql_url: str
    ) -> None:
        """Each has a row that the other wants: PostgreSQL undoes the one that has waited for a second, here ours."""
        bed = Bed(tmp_path, postgresql_url)
        first, second = series(shape=(2, 16, 16))
        bed.take([first])
        recorded: list[Recorded] = []
        taking = threading.Thread(target=lambda: recorded.extend(bed.take([second])))
        row = {"uid": str(second.SOPInstanceUID), "id": bed.rows(Series)[0].id}
        with bed.database.write() as session:
            session.execute(sa.text("SELECT id FROM series WHERE id = :id FOR NO KEY UPDATE"), row)
            taking.start()
            wait_until(lambda: waits_for_a_row(postgresql_url))
            insert = "INSERT INTO instance (series_id, sop_instance_uid, sop_class_uid, is_image, conflict)"
            session.execute(sa.text(f"{insert} VALUES (:id, :uid, '1.2', true, '')"), row)
            session.rollback()
        taking.join()
        assert recorded == [Recorded.NEW]
        assert faults(bed, encoded([first, second])) == []
        bed.close()


class TestTwoWaysIn:
    """One process was killed with an instance published and not recorded; another one has the same bytes meanwhile."""

    @pytest.fixture
    def other(self, bed: Bed) -> Intake:
        return Intake(Store(bed.folder / "storage", "receiver-2"), bed.database, QUIET, 0)

    @pytest.fixture
    def image(self, bed: Bed, monkeypatch: pytest.MonkeyPatch) -> FileDataset:
        (image,) = series(shape=(1, 16, 16))
        with monkeypatch.context() as patch:
            patch.setattr(bed.intake._recorder, "record", raise_store_error)
            with pytest.raises(StoreError):
                bed.take([image])
        return image

    def test_it_is_cleared_up_before_the_other_has_its_row(
        self, bed: Bed, other: Intake, image: FileDataset, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = other._recorder.record

        def clear_up_first(*args: Any) -> Outcome:
            bed.intake.recover()
            assert bed.files("instances") == set()
            return real(*args)

        monkeypatch.setattr(other._recorder, "record", clear_up_first)
        with as_received():
            assert other.accept(*announced(parts(image)), None) is Recorded.NEW
        assert faults(bed, encoded([image])) == []

    def test_the_other_has_its_row_while_it_is_cleared_up(
        self, bed: Bed, other: Intake, image: FileDataset, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real, before = bed.intake._recorder.is_known, []

        def take_in_then_say_no(key: str) -> bool:
            if before:
                return real(key)
            before.append(real(key))
            assert other.accept(*announced(parts(image)), None) is Recorded.NEW
            return before[0]

        monkeypatch.setattr(bed.intake._recorder, "is_known", take_in_then_say_no)
        with as_received():
            bed.intake.recover()
        assert before == [False]
        assert faults(bed, encoded([image])) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MB for the storage; skipped where nobody may mount one (`TestOutOfRoom` has what needs none)."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], check=False)
    if mounted.returncode:
        pytest.skip("no disk can be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


class TestOutOfRoom:
    def test_a_disk_that_fills_in_the_middle_of_an_instance(self, small_disk: Path, tmp_path: Path) -> None:
        database = Database(f"sqlite:///{tmp_path / 'worklist.db'}")
        database.migrate()
        intake = Intake(Store(small_disk), database, QUIET, min_free_bytes=100_000)
        images = encoded(series(shape=(4, 64, 64)))
        (one, first), (two, second), (three, third), (four, fourth) = images.items()
        with capture_logs() as logs, node(intake) as n:
            with scu.associated(n.port) as assoc:
                assert assoc.store(one, first) == 0x0000
                assert assoc.stream(two, itertools.chain([second], itertools.repeat(bytes(65536), 100))) == 0xA700
                assert half_received(small_disk) == []
                assert assoc.store(three, third) == 0x0000
                ballast = small_disk / "ballast"
                fill(ballast)
                assert assoc.store(four, fourth) == 0xA700
                with pytest.raises(scu.RefusedError), scu.associated(n.port):
                    pass
                ballast.unlink()
                assert assoc.store(four, fourth) == 0x0000
            with scu.associated(n.port) as assoc:
                assert assoc.store(two, second) == 0x0000
        assert sum(line["event"].startswith("instance refused with A700") for line in logs) == 2
        digests = {uid: hashlib.sha256(data).hexdigest() for uid, data in images.items()}
        assert stored.faults(small_disk, database.url, digests) == []
        database.close()

    def test_a_write_that_finds_no_room_in_the_middle(self, sqlite_bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
        images = encoded(series(shape=(2, 64, 64)))
        (one, first), (two, second) = images.items()
        real, room = store._write, 1_000_000

        def write_if_there_is_room(stream: FileIO, data: bytes | memoryview) -> None:
            if stream.tell() + len(data) > room:
                raise OSError(errno.ENOSPC, "No space left on device")
            real(stream, data)

        monkeypatch.setattr(store, "_write", write_if_there_is_room)
        with node(sqlite_bed.intake) as n, scu.associated(n.port) as assoc:
            assert assoc.store(one, first) == 0x0000
            assert assoc.stream(two, itertools.chain([second], itertools.repeat(bytes(65536), 20))) == 0xA700
            assert half_received(sqlite_bed.folder / "storage") == []
            assert assoc.store(two, second) == 0x0000
        assert faults(sqlite_bed, images) == []

    def test_a_database_without_room_is_no_room_either(self, sqlite_bed: Bed) -> None:
        database = sqlite_bed.database
        with database.read() as session:
            pages = session.execute(sa.text("PRAGMA page_count")).scalar_one()
        sa.event.listen(database._engine, "checkout", lambda c, *_: c.execute(f"PRAGMA max_page_count={pages}"))
        images = encoded(series(shape=(60, 8, 8)))
        with node(sqlite_bed.intake) as n, scu.associated(n.port) as assoc:
            said = [assoc.store(uid, data) for uid, data in images.items()]
            assert said[-1] == 0xA700
            assert set(said) == {0x0000, 0xA700}
            pages *= 10
            assert [assoc.store(uid, data) for uid, data in images.items()] == [0x0000] * 60
        sqlite_bed.intake.recover()
        assert faults(sqlite_bed, images) == []


class TestNoDatabase:
    """What was answered with a failure comes again, over the same association."""

    def test_one_that_goes_away_in_the_middle_of_an_instance(
        self, tmp_path: Path, postgresql_server: Server, postgresql_url: str
    ) -> None:
        bed = Bed(tmp_path, postgresql_url)
        images = encoded(series(shape=(3, 64, 64)))
        (one, first), (two, second), (three, third) = images.items()
        name = postgresql_url.rpartition("/")[2]
        with node(bed.intake) as n, scu.associated(n.port) as assoc, postgresql_server.connect() as server:
            assert assoc.store(one, first) == 0x0000
            assoc.request(two)
            assoc.send(second[:2000])
            server.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
            server.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")  # noqa: S608
            assoc.send(second[2000:], last=True)
            assert assoc.status() == 0x0110
            assert assoc.store(three, third) == 0x0110
            server.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
            assert assoc.store(two, second) == 0x0000
            assert assoc.store(three, third) == 0x0000
        bed.intake.recover()
        assert faults(bed, images) == []
        bed.close()

    def test_one_that_somebody_else_has_locked_for_long(self, sqlite_bed: Bed) -> None:
        # We would wait for a minute.
        sa.event.listen(sqlite_bed.database._engine, "checkout", lambda c, *_: c.execute("PRAGMA busy_timeout=300"))
        images = encoded(series(shape=(3, 64, 64)))
        (one, first), (two, second), (three, third) = images.items()
        with (
            contextlib.closing(sqlite3.connect(sqlite_bed.folder / "worklist.db", isolation_level=None)) as other,
            node(sqlite_bed.intake) as n,
            scu.associated(n.port) as assoc,
        ):
            assert assoc.store(one, first) == 0x0000
            other.execute("BEGIN IMMEDIATE")
            assert assoc.store(two, second) == 0x0110
            other.execute("ROLLBACK")
            assert assoc.store(two, second) == 0x0000
            assert assoc.store(three, third) == 0x0000
        sqlite_bed.intake.recover()
        assert faults(sqlite_bed, images) == []


def raise_store_error(*_: object, **__: object) -> NoReturn:
    raise StoreError("The database is away.")


def fill(ballast: Path) -> None:
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as stream:
        while True:
            stream.write(bytes(4096))


def half_received(storage: Path) -> list[str]:
    return [path.name for path in files(storage / "incoming") if "." not in path.name]


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def waits_for_a_row(url: str) -> bool:
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        query = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        return connection.execute(query).fetchone() != (0,)
