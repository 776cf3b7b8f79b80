"""The database on SQLite and on PostgreSQL: migrations, moments, and what is said when it does not answer."""

import contextlib
import multiprocessing
import threading
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from dicomai.database import Database
from dicomai.database.engine import MOST_CONNECTIONS
from dicomai.database.tables import Association, Audit, Installation, Study, Table
from dicomai.errors import ConfigurationError, StoreError
from tests import postgres
from tests.processes import migrate


def migrated(url: str) -> Database:
    database = Database(url)
    database.migrate()
    return database


def test_the_migrations_make_the_tables_as_the_code_has_them(database_url: str) -> None:
    database = migrated(database_url)
    with database._engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Table.metadata) == []
        # What autogenerate does not look at: a partial index without its condition would forbid every retry.
        for name in ("ux_workitem_digest", "ux_workitem_delivery"):
            (index,) = (i for i in sa.inspect(connection).get_indexes("workitem") if i["name"] == name)
            assert index["unique"]
            condition = next(str(v) for k, v in index["dialect_options"].items() if k.endswith("_where"))
            assert "replaced_by IS NULL" in condition
    database.close()


def test_migrating_again_changes_nothing(database_url: str) -> None:
    database = migrated(database_url)
    one = database.installation()
    database.migrate()
    assert database.is_current()
    assert database.installation() == one
    database.close()


@pytest.mark.slow
def test_processes_that_migrate_at_once_agree(database_url: str) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    processes = [context.Process(target=migrate, args=(database_url, barrier)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    database = Database(database_url)
    assert database.is_current()
    with database.read() as session:
        assert len(session.scalars(sa.select(Installation)).all()) == 1
    database.close()


def test_a_schema_of_a_newer_version_is_refused_and_left_as_it_is(database_url: str) -> None:
    database = migrated(database_url)
    with database.write() as session:
        session.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StoreError, match="schema '9999', which a newer dicomai wrote"):
        database.migrate()
    assert not database.is_current()
    with database.read() as session:
        assert session.execute(sa.text("SELECT version_num FROM alembic_version")).scalar_one() == "9999"
    database.close()


def test_an_empty_database_is_not_current(database_url: str) -> None:
    database = Database(database_url)
    assert not database.is_current()
    database.close()


def test_moments_come_back_in_utc_to_the_microsecond(database_url: str) -> None:
    database = migrated(database_url)
    berlin = timezone(timedelta(hours=2))
    moment = datetime(2024, 7, 1, 1, 30, 0, 123456, tzinfo=berlin)
    with database.write() as session:
        session.add(Audit(at=moment, actor="test", event="x"))
    with database.read() as session:
        (at,) = session.scalars(sa.select(Audit.at)).all()
        assert at == moment
        assert at.utcoffset() == timedelta(0)
        # Compared in the database as well as here.
        assert session.scalars(sa.select(Audit.id).where(Audit.at <= moment)).all()
        assert not session.scalars(sa.select(Audit.id).where(Audit.at < moment)).all()
    database.close()


def test_a_moment_without_a_zone_is_refused(database_url: str) -> None:
    database = migrated(database_url)
    with pytest.raises((ValueError, sa.exc.StatementError), match="time zone"), database.write() as session:
        session.add(Audit(at=datetime(2024, 1, 1), actor="test", event="x"))  # noqa: DTZ001
    database.close()


def test_the_clock_is_aware_and_runs_within_a_transaction(database_url: str) -> None:
    database = migrated(database_url)
    with database.read() as session:
        one, other = database.now(session), database.now(session)
    assert one.tzinfo is UTC
    assert one < other
    assert abs(datetime.now(UTC) - one) < timedelta(seconds=60)
    database.close()


def test_an_error_undoes_the_whole_transaction(database_url: str) -> None:
    database = migrated(database_url)

    def fail() -> None:
        with database.write() as session:
            session.add(Audit(at=database.now(session), actor="test", event="x"))
            session.flush()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with database.read() as session:
        assert session.scalars(sa.select(Audit)).all() == []
    database.close()


def test_rows_that_refer_to_nothing_are_refused(database_url: str) -> None:
    database = migrated(database_url)
    with pytest.raises(sa.exc.IntegrityError), database.write() as session:
        session.add(Audit(at=database.now(session), actor="test", event="x", study_id=77))
    database.close()


def test_text_with_nul_characters_is_kept_without_them(database_url: str) -> None:
    database = migrated(database_url)
    with database.write() as session:
        session.add(Audit(at=database.now(session), actor="test", event="x", detail="T1\0 axial\0"))
    with database.read() as session:
        assert session.scalars(sa.select(Audit.detail)).all() == ["T1 axial"]
    database.close()


def test_threads_that_write_at_once_all_get_their_turn(database_url: str) -> None:
    database = migrated(database_url)

    def work() -> None:
        for _ in range(10):
            with database.write() as session:
                row = session.scalars(sa.select(Association).with_for_update()).one()
                row.calling_ae = str(int(row.calling_ae) + 1)

    with database.write() as session:
        now = database.now(session)
        session.add(Association(calling_ae="0", address="", opened_at=now, last_activity=now, lease_expires=now))
    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.read() as session:
        assert session.scalars(sa.select(Association.calling_ae)).one() == "60"
    database.close()


def test_sqlite_loses_no_commit_and_lets_readers_pass(tmp_path: Path) -> None:
    database = migrated(f"sqlite:///{tmp_path / 'worklist.db'}")
    with database.read() as session:
        assert session.execute(sa.text("PRAGMA journal_mode")).scalar_one() == "wal"
        assert session.execute(sa.text("PRAGMA synchronous")).scalar_one() == 2  # FULL
        assert session.execute(sa.text("PRAGMA foreign_keys")).scalar_one() == 1
    with database.write() as writer:
        writer.add(Study(study_instance_uid="1.2", trace="x", created_at=database.now(writer)))
        writer.flush()
        with database.read() as reader:  # does not wait for the writer
            assert reader.scalars(sa.select(Study)).all() == []
        assert database.is_current()
    database.close()


def test_threads_wait_for_a_connection_and_are_told_when_none_comes_free(
    postgresql_server: postgres.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with postgresql_server.database() as url, contextlib.ExitStack() as held:
        database = Database(url)
        database.migrate()
        for _ in range(MOST_CONNECTIONS - 1):
            held.enter_context(database.read()).execute(sa.select(1))
        threads = [threading.Thread(target=database.installation) for _ in range(64)]
        for thread in threads:
            thread.start()
        for thread in threads:  # one connection serves them all, one after the other
            thread.join()
        with postgresql_server.connect() as connection:
            mine = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s"
            assert connection.execute(mine, [url.rpartition("/")[2]]).fetchone() == (MOST_CONNECTIONS,)
        held.enter_context(database.read()).execute(sa.select(1))
        monkeypatch.setattr(database._engine.pool, "_timeout", 0.05)
        with pytest.raises(StoreError, match=r"Every connection of this process .* was in use"):
            database.installation()
        held.close()
        assert database.installation()
        database.close()


@pytest.mark.parametrize("url", ["mysql://host/db", "sqlite+aiosqlite:///x", "nonsense", "postgresql://host/db"])
def test_another_database_is_refused_in_a_sentence(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"node\.worklist"):
        Database(url)


def test_a_database_that_does_not_answer_is_a_sentence_without_values(tmp_path: Path) -> None:
    database = Database("postgresql+psycopg://nobody:geheim@127.0.0.1:1/none")
    with pytest.raises(StoreError, match="The worklist database failed") as caught, database.read():
        database.installation()
    assert "geheim" not in str(caught.value)
    database.close()
    database = Database(f"sqlite:///{tmp_path / 'missing' / 'worklist.db'}")
    with pytest.raises(StoreError, match="The worklist database failed"):
        database.installation()
    database.close()
