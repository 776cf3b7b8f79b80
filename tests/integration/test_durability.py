"""What the power may take away, and what it may not: see `tests/acceptance/test_power_cut.py` for a real disk."""

import os
import shutil
from pathlib import Path
from typing import BinaryIO

import pytest
import sqlalchemy as sa
from structlog.testing import capture_logs

from dicomai.association import AssociationEnd
from dicomai.database.index import Recorded, SeriesState
from dicomai.database.tables import (
    Association,
    Series,
    Version,
)
from dicomai.errors import StoreError
from dicomai.intake import Intake
from dicomai.store import Incoming
from tests import stored
from tests.arrivals import assert_sound, changed, ct, cut_power, digests, raise_store_error, repixeled
from tests.beds import QUIET, Bed, announced, as_received, parts
from tests.synthetic import series

ROOT = Path(__file__).parents[2]


def starts_again(bed: Bed) -> None:
    bed.intake = Intake(bed.store, bed.database, QUIET, 0)
    with as_received():
        bed.intake.recover()


class TestAPowerCut:
    """What takes away whatever was not synced: the ends of the database's log and of folders."""

    def test_what_was_acknowledged_comes_back(self, sqlite_bed: Bed) -> None:
        images = ct(6)
        association = sqlite_bed.intake.open_association("CT01", "10.0.0.1")
        sqlite_bed.take(images, association)
        assert len(sqlite_bed.files("incoming")) == 6
        cut_power(sqlite_bed, lost=4)
        starts_again(sqlite_bed)
        assert_sound(sqlite_bed)
        assert stored.faults(sqlite_bed.folder / "storage", sqlite_bed.url, digests(images)) == []
        (series_row,) = sqlite_bed.rows(Series)
        assert series_row.state == SeriesState.RECEIVING
        assert series_row.revision == 6 + 4
        assert sqlite_bed.rows(Association)[0].end == AssociationEnd.LOST

    def test_a_file_whose_bytes_were_not_synced_does_not(self, sqlite_bed: Bed) -> None:
        images = ct(3)
        sqlite_bed.take(images, sqlite_bed.intake.open_association("CT01", "10.0.0.1"))
        cut_power(sqlite_bed, lost=1)
        torn = max(
            (sqlite_bed.folder / "storage/incoming/receiver").iterdir(), key=lambda path: path.stat().st_mtime_ns
        )
        content = torn.read_bytes()
        torn.write_bytes(content[:-100] + bytes(100))
        starts_again(sqlite_bed)
        assert_sound(sqlite_bed)
        assert stored.faults(sqlite_bed.folder / "storage", sqlite_bed.url, digests(images[:2])) == []
        assert sqlite_bed.take(images[2:]) == [Recorded.NEW]

    def test_the_first_of_a_series_is_not_restored_as_nobody_was_told_of_it(self, sqlite_bed: Bed) -> None:
        association = sqlite_bed.intake.open_association("CT01", "10.0.0.1")
        sqlite_bed.intake._recorder.record = raise_store_error  # type: ignore[method-assign]
        with pytest.raises(StoreError):
            sqlite_bed.take(ct(1), association)
        assert len(sqlite_bed.files("incoming")) == 1
        starts_again(sqlite_bed)
        assert_sound(sqlite_bed)
        assert sqlite_bed.rows(Version) == []

    def test_what_was_refused_does_not_come_back(self, sqlite_bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
        """A corrected copy may have been taken since; and where not, nobody was told that it is here."""
        wrong = ct(3, PatientName="Wrong^One")
        right = [changed(ds, PatientName="Right^One") for ds in wrong]
        association = sqlite_bed.intake.open_association("CT01", "10.0.0.1")
        sqlite_bed.take(wrong[:1], association)
        with monkeypatch.context() as patch:
            patch.setattr(sqlite_bed.intake._recorder, "record", raise_store_error)
            for image in wrong[1:]:
                with pytest.raises(StoreError):
                    sqlite_bed.take([image], association)
        assert sqlite_bed.take(right[:2], association) == [Recorded.UPDATED, Recorded.NEW]
        starts_again(sqlite_bed)
        assert_sound(sqlite_bed)
        current = {row.instance_id: row.patient_name for row in sqlite_bed.rows(Version)}  # the newest is the last
        assert list(current.values()) == ["Right^One", "Right^One"]

    def test_other_bytes_of_a_known_instance_that_nobody_was_told_of_do_not_keep_the_node_from_starting(
        self, sqlite_bed: Bed
    ) -> None:
        (image,) = ct(1)
        association = sqlite_bed.intake.open_association("CT01", "10.0.0.1")
        sqlite_bed.take([image], association)
        meta, fragments = announced(parts(repixeled(image)))
        sqlite_bed.store.receive(meta.encode(), fragments, association)  # and the process is killed
        for _ in range(2):
            starts_again(sqlite_bed)
            assert_sound(sqlite_bed)
        assert [row.conflicting for row in sqlite_bed.rows(Version)] == [False]

    def test_a_disk_without_room_at_the_next_start_loses_nothing(
        self, sqlite_bed: Bed, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        images = ct(4)
        sqlite_bed.take(images, sqlite_bed.intake.open_association("CT01", "10.0.0.1"))
        cut_power(sqlite_bed, lost=2)
        for version in sqlite_bed.rows(Version):
            (sqlite_bed.folder / "storage" / version.key).unlink()

        def full(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "link", full)
            for _ in range(3):
                with pytest.raises(StoreError, match="free some room"):
                    starts_again(sqlite_bed)
        starts_again(sqlite_bed)
        assert stored.faults(sqlite_bed.folder / "storage", sqlite_bed.url, digests(images)) == []

    def test_a_file_that_cannot_be_read_is_left_and_told_of(
        self, sqlite_bed: Bed, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sqlite_bed.take(ct(2), sqlite_bed.intake.open_association("CT01", "10.0.0.1"))
        first, _ = sorted(path.rpartition("/")[2] for path in sqlite_bed.files("incoming"))
        real = sqlite_bed.store.open_incoming

        def broken(incoming: Incoming) -> BinaryIO:
            if incoming.name == first:
                raise OSError(5, "Input/output error")
            return real(incoming)

        with monkeypatch.context() as patch, capture_logs() as logs:
            patch.setattr(sqlite_bed.store, "open_incoming", broken)
            starts_again(sqlite_bed)
        assert [line["file"] for line in logs if line["log_level"] == "error"] == [first]
        assert sqlite_bed.files("incoming") == {f"incoming/receiver/{first}"}
        starts_again(sqlite_bed)
        assert_sound(sqlite_bed)

    def test_a_server_that_syncs_every_commit_gives_nothing_back_that_it_does_not_have(self, bed: Bed) -> None:
        """With PostgreSQL what has no row was never acknowledged."""
        images = ct(3)
        bed.take(images, bed.intake.open_association("CT01", "10.0.0.1"))
        cut_power(bed, lost=1)
        starts_again(bed)
        assert_sound(bed)
        assert len(bed.rows(Version)) == (3 if bed.database.syncs_later else 2)

    def test_a_folder_that_somebody_took_away_does_not_end_the_receiving(self, bed: Bed) -> None:
        images = ct(3)
        association = bed.intake.open_association("CT01", "10.0.0.1")
        bed.take(images, association)
        shutil.rmtree(bed.folder / "storage/instances")
        bed.intake.close_association(association, AssociationEnd.RELEASED)
        assert_sound(bed)
        assert stored.faults(bed.folder / "storage", bed.url, digests(images)) == []

    def test_names_go_once_the_rows_are_durable(self, bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
        """Not before: the power may go between the two."""
        association = bed.intake.open_association("CT01", "10.0.0.1")
        bed.take(ct(3), association)
        seen: list[int] = []
        real = bed.database.sync

        def sync() -> None:
            seen.append(len(bed.files("incoming")))
            real()

        monkeypatch.setattr(bed.database, "sync", sync)
        bed.intake.close_association(association, AssociationEnd.RELEASED)
        assert seen == [3]
        assert_sound(bed)

    def test_names_stay_while_the_database_is_away(self, bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
        association = bed.intake.open_association("CT01", "10.0.0.1")
        bed.take(ct(3), association)
        with monkeypatch.context() as patch:
            patch.setattr(bed.database, "sync", raise_store_error)
            with pytest.raises(StoreError):
                bed.intake.close_association(association, AssociationEnd.RELEASED)
        assert len(bed.files("incoming")) == 3
        bed.intake.close_association(association, AssociationEnd.RELEASED)
        assert_sound(bed)

    def test_a_long_association_settles_on_its_way(self, bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("dicomai.intake._MOST_UNSETTLED", 4)
        bed.take(ct(10), bed.intake.open_association("CT01", "10.0.0.1"))
        assert len(bed.files("incoming")) == 2

    def test_what_is_large_or_has_no_association_settles_at_once(self, bed: Bed) -> None:
        bed.take(ct(2))
        assert bed.files("incoming") == set()
        bed.take(series(shape=(2, 800, 800)), bed.intake.open_association("CT01", "10.0.0.1"))
        assert bed.files("incoming") == set()

    def test_what_went_by_the_lane_is_synced(self, sqlite_bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
        synced: list[str] = []
        monkeypatch.setattr(os, "fsync", lambda fd: synced.append(Path(f"/proc/self/fd/{fd}").readlink().name))
        sqlite_bed.database.sync()
        assert synced == ["worklist.db-wal"]

    def test_where_the_last_connection_took_the_log_away_the_database_is(
        self, sqlite_bed: Bed, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with pytest.raises(KeyboardInterrupt), sqlite_bed.database.swiftly():
            raise KeyboardInterrupt
        sqlite_bed.database.close()
        assert not Path(f"{sqlite_bed.folder / 'worklist.db'}-wal").exists()
        synced: list[str] = []
        monkeypatch.setattr(os, "fsync", lambda fd: synced.append(Path(f"/proc/self/fd/{fd}").readlink().name))
        sqlite_bed.database.sync()
        assert synced == ["worklist.db"]

    def test_only_arrivals_of_images_wait_for_a_later_sync(self, sqlite_bed: Bed) -> None:
        database = sqlite_bed.database
        with database.swiftly() as (run, _):
            assert list(run(sa.text("PRAGMA synchronous"), {})) == [(1,)]  # NORMAL
        for _ in range(3):
            with database.write() as session:
                assert session.execute(sa.text("PRAGMA synchronous")).scalar_one() == 2  # FULL
