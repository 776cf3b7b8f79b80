"""SIGKILL at random moments while eight associations send: what was answered with success is there, byte for byte.

`KILLS` in the environment says how many (`make soak`: 100), `SEED` repeats a run. It hits one process that receives,
all of them, or the whole process group; what the node does not start again by itself is started on what was left.
"""

import os
import random
import signal
import threading
from pathlib import Path

import pytest

from tests import copies, stored
from tests.acceptance.node import Node, node, until
from tests.senders import Sender

KILLS = int(os.environ.get("KILLS", "3"))
SEED = int(os.environ.get("SEED") or random.randrange(2**32))
SENDERS = 8
LISTENS = '"receiver listens"'
KINDS = ("one", "group", "all")  # a process that ends by itself twice within a minute is waited for

pytestmark = pytest.mark.timeout(120 + 20 * KILLS)


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
        assert sum(len(sender.acknowledged) for sender in senders) > KILLS * SENDERS, (
            "nothing was sent before the kills"
        )
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
