"""Beds of most of these tests: on both databases, and on SQLite alone where the database has no say."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.beds import Bed


@pytest.fixture
def bed(database_url: str, tmp_path: Path) -> Iterator[Bed]:
    made = Bed(tmp_path, database_url)
    yield made
    made.close()


@pytest.fixture
def sqlite_bed(tmp_path: Path) -> Iterator[Bed]:
    made = Bed(tmp_path, f"sqlite:///{tmp_path / 'worklist.db'}")
    yield made
    made.close()
