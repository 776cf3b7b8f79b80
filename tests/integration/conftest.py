"""Beds of most of these tests: on both databases, and on SQLite alone where the database has no say."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.archive import copied, keep_one_result
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


@pytest.fixture(scope="session")
def one_result(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage with one result that waits for its delivery."""
    folder = tmp_path_factory.mktemp("one") / "bed"
    keep_one_result(folder)
    return folder


@pytest.fixture
def result_bed(tmp_path: Path, one_result: Path) -> Iterator[Bed]:
    """A copy of it."""
    with copied(one_result, tmp_path / "bed") as made:
        yield made
