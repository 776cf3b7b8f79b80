"""SIGKILL at random moments while eight associations send: what was answered with success is there, byte for byte.

`KILLS` in the environment says how many (`make soak`: 100), `SEED` repeats a run. It hits one process that receives,
all of them, or the whole process group; what the node does not start again by itself is started on what was left.
"""

import hashlib
import os
import random
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests import copies, scu, stored
from tests.acceptance.node import Node, node, until
from tests.beds import parts_of

KILLS = int(os.environ.get("KILLS", "3"))
SEED = int(os.environ.get("SEED") or random.randrange(2**32))
SENDERS = 8
LISTENS = '"receiver listens"'
KINDS = ("one", "group", "all")  # a process that ends by itself twice within a minute is waited for

pytestmark = pytest.mark.timeout(120 + 20 * KILLS)


@dataclass
class Sender:
    """One that sends studies, an association after the other, and knows what was answered.

    Attributes:
        acknowledged: digest of the data set by SOP Instance UID.
        unanswered: what was under way when the connection ended; it is sent again first.
        refused: statuses other than success.
    """

    number: int
    port: int
    templates: list[bytes]
    acknowledged: dict[str, str] = field(default_factory=dict)
    unanswered: tuple[str, bytes] | None = None
    refused: list[int] = field(default_factory=list)

    def send(self, end: threading.Event, chance: random.Random) -> None:
        """Send until the connection ends, or somebody says that it is enough."""
        try:
            while not end.is_set():
                with scu.associated(self.port, calling_ae=f"CT{self.number}") as assoc:
                    for uid, data_set in self._instances(chance):
                        self.unanswered = uid, data_set
                        status = assoc.store(uid, data_set)
                        if status == 0x0000:
                            self.acknowledged[uid] = hashlib.sha256(data_set).hexdigest()
                        else:
                            self.refused.append(status)
                        self.unanswered = None
                        if end.is_set():
                            return
        except OSError:
            return

    def _instances(self, chance: random.Random) -> Iterator[tuple[str, bytes]]:
        """Make a study of one or two series, of small images and large ones."""
        if self.unanswered is not None:
            yield self.unanswered
        study = copies.new_uid(chance)
        for _ in range(chance.randint(1, 2)):
            series = copies.new_uid(chance)
            for _ in range(chance.randint(1, 30)):
                uid = copies.new_uid(chance)
                yield uid, parts_of(copies.copy(chance.choice(self.templates), study, series, uid))[1]


@pytest.mark.parametrize("what", ["distinct studies", "the same studies"])
def test_what_was_acknowledged_outlives_kills_at_random_moments(what: str, tmp_path: Path) -> None:
    chance = random.Random(SEED)
    templates = [copies.templates(1, size)[0] for size in (64, 256, 724)]  # 8 KB, 130 KB (more than a PDU), 1 MB
    taken: dict[str, str] = {}
    with node(tmp_path / "node") as one:
        senders = [Sender(number, one.port, templates) for number in range(SENDERS)]
        one.start("--only", "receiver")
        for kill in range(KILLS):
            kind, moment = KINDS[kill % len(KINDS)], chance.uniform(0.05, 1.0)
            end = threading.Event()
            seeds = [f"{SEED} {kill} {number if what == 'distinct studies' else ''}" for number in range(SENDERS)]
            threads = [
                threading.Thread(target=sender.send, args=(end, random.Random(seed)))
                for sender, seed in zip(senders, seeds, strict=True)
            ]
            for thread in threads:
                thread.start()
            end.wait(moment)
            wanted = one.log.count(LISTENS) + strike(one, kind, chance)
            end.set()
            for thread in threads:
                thread.join()
            if kind == "group":
                one.start("--only", "receiver")
            until(lambda wanted=wanted: one.log.count(LISTENS) >= wanted, 60, lambda: one.log)
            now = {uid: digest for sender in senders for uid, digest in sender.acknowledged.items()}
            story = f"SEED={SEED}, kill {kill} ({kind}), after {moment:.3f} s"
            assert judge(one, {uid: now[uid] for uid in now.keys() - taken.keys()}) == [], story
            taken = now
        assert judge(one, taken) == [], f"SEED={SEED}, at the end"
        assert [sender.refused for sender in senders] == [[]] * SENDERS
        assert min(len(sender.acknowledged) for sender in senders) > KILLS, "the kills came before anything was sent"
        one.stop()
    if KILLS >= 100:
        print(f"{what}: {KILLS} kills, seed {SEED}: {len(taken)} instances acknowledged, all found")  # noqa: T201  for the docs


def strike(one: Node, kind: str, chance: random.Random) -> int:
    """Kill; gives how many receivers will have to come back."""
    receivers = sorted(one.receivers())
    if kind == "group":
        one.kill()
    elif kind == "all":
        one.kill_receivers()
    else:
        os.kill(chance.choice(receivers), signal.SIGKILL)
    return 1 if kind == "one" else len(receivers)


def judge(one: Node, acknowledged: dict[str, str]) -> list[str]:
    return stored.faults(one.storage, f"sqlite:///{one.storage / 'worklist.db'}", acknowledged)
