"""A few batches of what `make fuzz` sends to a running node: see `tests/fuzz/node.py`."""

import os
import shutil
import struct
from collections.abc import Iterator
from random import Random

import pytest

from tests.fuzz.node import RunningNode, request
from tests.fuzz.wire import pdu

INPUTS = int(os.environ.get("FUZZ_INPUTS", "200"))
SEED = int(os.environ.get("SEED", "1"))

pytestmark = pytest.mark.timeout(180 + INPUTS // 10)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    made = RunningNode(tmp_path_factory.mktemp("around") / "node")
    yield made
    made.close()


def test_a_running_node_is_as_it_was_before(running: RunningNode) -> None:
    for number in range(max(1, INPUTS // running.batch)):
        running.run(running.make(Random(f"{SEED} node {number}")))


def test_what_a_batch_must_not_do_is_seen(running: RunningNode, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet = bytes((0,)) + request(Random(0), 0.0) + pdu(5, bytes(4))
    batch = struct.pack(">L", len(quiet)) + quiet
    running.run(batch)
    monkeypatch.setattr("tests.fuzz.node._PATIENCE", 0.5)
    outside = running.folder.parent / "x"
    outside.touch()
    with pytest.raises(AssertionError, match="outside"):
        running.run(batch)
    outside.unlink()
    study = running.folder / "storage" / "instances" / "1.2"
    (study / "1.3").mkdir(parents=True)
    (study / "1.3" / "1.4.dcm").touch()
    with pytest.raises(AssertionError, match="a file without a row"):
        running.run(batch)
    shutil.rmtree(study)
    with (running.folder / "node.log").open("a", encoding="utf-8") as log:
        log.write('{"event": "an exception that nobody expected ended a thread"}\n')
    with pytest.raises(AssertionError, match="nobody expected"):
        running.run(batch)
    running.run(batch)
