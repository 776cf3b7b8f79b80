"""An image larger than memory should have to hold: it streams to disk. `LARGE_MB` says how large."""

import hashlib
import itertools
import os
import re
from pathlib import Path

import pytest
from pydicom.uid import EnhancedCTImageStorage

from tests import scu, stored, synthetic
from tests.acceptance.node import node
from tests.beds import parts

MEGABYTE = 1024 * 1024
LARGE_MB = int(os.environ.get("LARGE_MB", "300"))

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120 + LARGE_MB)]


def test_receiving_takes_no_more_memory_for_a_large_instance(tmp_path: Path) -> None:
    small = synthetic.enhanced(modality="CT", shape=(2, 8, 8))
    large = synthetic.enhanced(modality="CT", shape=(2, 8, 8))
    data_set = parts(large)[1]
    at = data_set.rindex(b"\xe0\x7f\x10\x00OW\0\0")
    head = data_set[: at + 8] + (LARGE_MB * MEGABYTE).to_bytes(4, "little")
    block = bytes(range(256)) * 512
    digest = hashlib.sha256(head)
    for _ in range(LARGE_MB * MEGABYTE // len(block)):
        digest.update(block)
    with node(tmp_path / "node", receiver={"processes": 1}) as one:
        one.start("--only", "receiver")
        (receiver,) = one.receivers()
        with scu.associated(one.port, sop_class_uid=EnhancedCTImageStorage) as assoc:
            assert assoc.store(str(small.SOPInstanceUID), parts(small)[1]) == 0x0000
            before = peak(receiver)
            pieces = itertools.repeat(block, LARGE_MB * MEGABYTE // len(block))
            assert assoc.stream(str(large.SOPInstanceUID), itertools.chain([head], pieces)) == 0x0000
            grown = peak(receiver) - before
        one.stop()
        wanted = {str(large.SOPInstanceUID): digest.hexdigest()}
        assert stored.faults(one.storage, f"sqlite:///{one.storage / 'worklist.db'}", wanted) == []
    assert grown < 64, f"{LARGE_MB} MB took {grown:.0f} MB of memory"
    if LARGE_MB > 1000:
        print(f"{LARGE_MB} MB: {grown:.1f} MB more memory, {before:.0f} MB before")  # noqa: T201  for the docs


def peak(pid: int) -> float:
    """Give the most memory that a process ever had, in MB."""
    return int(re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())[0]) / 1024
