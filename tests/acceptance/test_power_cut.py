"""A power cut while eight associations send: what was answered with success is there, byte for byte.

The node's storage lies on a file system of its own, in a file. What that file holds at the moment of the cut is what
had reached the disk; the rest was in memory and is lost. `CUTS` in the environment says how many (`make soak`: 20),
`SEED` repeats a run. Each disk sees two of them: the second hits what the first has left.
"""

import os
import random
import signal
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import copies, stored
from tests.acceptance.node import Node, node
from tests.senders import Sender

CUTS = int(os.environ.get("CUTS", "2"))
SEED = int(os.environ.get("SEED") or random.randrange(2**32))
SENDERS = 8
SIDES = [64] * 8 + [256] * 4 + [724]  # 8 KB, 130 KB, 1 MB

pytestmark = pytest.mark.timeout(120 + 40 * CUTS)


@dataclass
class Disk:
    """A file system with a journal, in a file."""

    image: Path
    folder: Path

    def make(self) -> None:
        """Make it anew, and empty."""
        self.image.write_bytes(b"")
        os.truncate(self.image, 400 * 1024**2)
        subprocess.run(["mkfs.ext4", "-q", self.image], check=True)

    def mount(self) -> bool:
        """Make its content that of the folder; tells whether one may."""
        return not subprocess.run(["mount", "-o", "loop", self.image, self.folder], check=False).returncode

    def unmount(self) -> None:
        """Give the folder back."""
        subprocess.run(["umount", "--lazy", self.folder], check=True)

    def read(self) -> bytes:
        """Read what has reached the disk, at one moment: the kernel goes on writing."""
        one, other = b"", self.image.read_bytes()
        while one != other:
            one, other = other, self.image.read_bytes()
        return one


def test_what_was_acknowledged_outlives_power_cuts_at_random_moments(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    templates = [copies.templates(1, side)[0] for side in SIDES]
    acknowledged: dict[str, str] = {}
    count = 0
    with node(tmp_path / "node") as one:
        disk = Disk(tmp_path / "disk.img", one.storage)
        for cut in range(CUTS):
            if cut % 2 == 0:
                acknowledged.clear()
                disk.make()
                if not disk.mount():
                    pytest.skip("no disk can be mounted here; `TestAPowerCut` has what needs none")
                one.start("--only", "receiver")
            moment = chance.uniform(0.3, 2.0)
            senders = [Sender(number, one.port, templates) for number in range(SENDERS)]
            acknowledged |= cut_power(one, disk, senders, moment, f"{SEED} {cut}")
            count += len(acknowledged)
            one.start("--only", "receiver")
            story = f"SEED={SEED}, cut {cut}, after {moment:.3f} s"
            assert stored.faults(one.storage, f"sqlite:///{one.storage / 'worklist.db'}", acknowledged) == [], story
            if cut % 2 or cut == CUTS - 1:
                one.stop()
                disk.unmount()
    assert count > 20 * CUTS, "the cuts came before anything was sent"
    if CUTS >= 20:
        print(f"{CUTS} cuts, seed {SEED}: {count} instances acknowledged, all found")  # noqa: T201  for the docs


def cut_power(one: Node, disk: Disk, senders: list[Sender], moment: float, seed: str) -> dict[str, str]:
    """Cut the power while all send; gives what had been acknowledged until then."""
    end = threading.Event()
    threads = [
        threading.Thread(target=sender.send, args=(end, random.Random(f"{seed} {sender.number}"))) for sender in senders
    ]
    for thread in threads:
        thread.start()
    end.wait(moment)
    acknowledged = {uid: digest for sender in senders for uid, digest in dict(sender.acknowledged).items()}
    for pid in one.processes():
        os.kill(pid, signal.SIGSTOP)
    reached = disk.read()
    one.kill()
    end.set()
    for thread in threads:
        thread.join()
    disk.unmount()
    disk.image.write_bytes(reached)
    assert disk.mount()
    return acknowledged
