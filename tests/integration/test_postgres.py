"""The test bed itself: each test gets a database of its own, on both kinds."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa

from tests import postgres


def test_a_database_is_empty_and_keeps_what_is_committed(database_url: str) -> None:
    engine = sa.create_engine(database_url)
    assert sa.inspect(engine).get_table_names() == []
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE kept (n INTEGER)"))
        connection.execute(sa.text("INSERT INTO kept VALUES (7)"))
    with engine.connect() as connection:
        assert connection.execute(sa.text("SELECT n FROM kept")).scalar_one() == 7
    engine.dispose()


def test_no_database_is_left_behind(postgresql_server: postgres.Server) -> None:
    with postgresql_server.database() as url:
        holder = psycopg.connect(url.replace("+psycopg", ""))  # still connected when it is dropped
    with postgresql_server.connect() as connection:
        names = [row[0] for row in connection.execute("SELECT datname FROM pg_database")]
    holder.close()
    assert url.rsplit("/", 1)[1] not in names


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to hand the server to another user")
def test_the_server_is_not_run_by_root(postgresql_server: postgres.Server) -> None:
    with postgresql_server.connect() as connection:
        pid = connection.info.backend_pid
        assert Path(f"/proc/{pid}").stat().st_uid != 0


KEEPER = """
import time
from tests import postgres
with postgres.server() as server:
    with server.connect() as connection:
        print(connection.execute("SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'").fetchone()[0])
        print(connection.execute("SHOW data_directory").fetchone()[0], flush=True)
    time.sleep(60)
"""


def test_tests_that_are_killed_leave_no_server_behind() -> None:
    with subprocess.Popen([sys.executable, "-c", KEEPER], stdout=subprocess.PIPE, text=True) as keeper:
        assert keeper.stdout is not None
        pid, folder = int(keeper.stdout.readline()), Path(keeper.stdout.readline().strip())
        assert Path(f"/proc/{pid}").exists()
        keeper.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()
    shutil.rmtree(folder.parent)
