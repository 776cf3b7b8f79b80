"""A day of an AI platform in some minutes: memory that stays, no error, every image found again byte for byte.

    make soak             or: .venv/bin/python -m tests.soak --studies 1500

A real node with every role that needs no model, and a route that takes every series. DCMTK's `dcmsend` sends the
studies, one after the other over each of eight associations at a time. Meanwhile the memory of each process is looked
at (PSS: what it has alone, and its share of what it has in common with others), and the console is asked for its pages.
"""

import argparse
import json
import os
import queue
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sa

from dicomai.database import Database
from dicomai.database.index import SeriesState
from dicomai.database.tables import Series, Workitem
from tests import copies, stored
from tests.acceptance.node import Node, node

ROLES = ("receiver", "planner", "delivery", "console")
ROUTE = {"name": "every", "match": {"Modality": "CT"}, "outside_validated": "report"}
ALLOWED = 1.10
SETTLED = 100
"""Studies after which memory is first looked at."""


@dataclass
class Load:
    """What is sent, and what became of it.

    Attributes:
        acknowledged: digest of each data set that was answered with success, by SOP Instance UID.
        studies: how many are done.
        wrong: what `dcmsend` said of studies that were not taken whole.
    """

    acknowledged: dict[str, str] = field(default_factory=dict)
    studies: int = 0
    size: int = 0
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass
class Watch:
    """Looks at the node's memory, in MB by process, and at its pages.

    Attributes:
        samples: how many studies were done, and memory then.
    """

    one: Node
    load: Load
    console: int
    samples: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    pages: int = 0

    def run(self, end: threading.Event) -> None:
        names = named(self.one)
        while not end.wait(0.5):
            self.samples.append((self.load.studies, {name: memory(pid) for name, pid in names.items()}))
            if len(self.samples) % 10 == 0:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.console}/", timeout=30) as answer:
                    self.pages += len(answer.read()) > 0


def send(number: int, work: "queue.SimpleQueue[int]", folder: Path, port: int, load: Load, templates: list[bytes],
         fewest: int) -> None:  # fmt: skip
    """Send studies until there are none left."""
    while True:
        try:
            study = work.get_nowait()
        except queue.Empty:
            return
        chance = random.Random(study)
        files = write(folder / str(number), templates[: chance.randint(fewest, len(templates))], chance)
        command = ["dcmsend", "-v", "--max-send-pdu", "131072", "-aet", f"CT{number}", "-aec", "DICOMAI"]
        done = subprocess.run(
            [*command, "127.0.0.1", str(port), "+sd", str(folder / str(number))],
            check=False, capture_output=True, text=True, timeout=300, env={**os.environ, "TCP_NODELAY": "1"},
        )  # fmt: skip
        with load.lock:
            load.studies += 1
            load.size += sum(path.stat().st_size for path in files.values())
            said = done.stdout + done.stderr
            if done.returncode or said.count("Received C-STORE Response (Success)") != len(files):
                load.wrong.append(said[-500:])
            load.acknowledged.update({uid: stored.digest_of(path) for uid, path in files.items()})


def write(folder: Path, templates: Sequence[bytes], chance: random.Random) -> dict[str, Path]:
    """Write a study of one series; gives its files by SOP Instance UID."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    study, series = copies.new_uid(chance), copies.new_uid(chance)
    files = {}
    for template in templates:
        uid = copies.new_uid(chance)
        files[uid] = folder / f"{uid}.dcm"
        files[uid].write_bytes(copies.copy(template, study, series, uid))
    return files


def named(one: Node) -> dict[str, int]:
    """Name the node's processes: what does not receive was spawned in the order of its roles."""
    assert one.process is not None
    receivers = sorted(one.receivers())
    spawned = [pid for pid in sorted(one.processes()) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    others = [pid for pid in spawned if pid not in receivers]
    numbered = {f"receiver {number}": pid for number, pid in enumerate(receivers, 1)}
    return {"parent": one.process.pid, **numbered, **dict(zip(ROLES[1:], others, strict=True))}


def memory(pid: int) -> float:
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(re.findall(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)[0]) / 1024


def planned(one: Node, seconds: float) -> float:
    """Wait until every series is planned; gives how long that took."""
    start = time.monotonic()
    database = Database(f"sqlite:///{one.storage / 'worklist.db'}")
    try:
        while True:
            with database.read() as session:
                states = Counter(session.scalars(sa.select(Series.state)))
            if set(states) <= {SeriesState.COMPLETE}:
                return time.monotonic() - start
            if time.monotonic() - start > seconds:
                sys.exit(f"the planner is not done after {seconds} s: {dict(states)}")
            time.sleep(0.5)
    finally:
        database.close()


def compare(samples: Sequence[tuple[int, Mapping[str, float]]], studies: int) -> list[str]:
    """Print memory after the first studies and at the end; gives what grew by too much."""
    early = [some for done, some in samples if SETTLED <= done <= SETTLED + studies / 10]
    late = [some for done, some in samples if done >= studies - studies / 10]
    names = [*samples[0][1], "all"]
    print(f"{'process':10} {'after 100':>10} {'at the end':>10} {'ratio':>7}   MB, medians")
    grown = []
    for name in names:
        before, after = (
            statistics.median(sum(one.values()) if name == "all" else one[name] for one in part)
            for part in (early, late)
        )
        print(f"{name:10} {before:>10.1f} {after:>10.1f} {after / before:>7.3f}")
        if after > before * ALLOWED:
            grown.append(f"{name} grew from {before:.1f} to {after:.1f} MB")
    return grown


def judge_log(one: Node) -> list[str]:
    """List the lines of the log that a soak must not bring about."""
    levels: Counter[str] = Counter()
    wrong = []
    for line in one.log.splitlines():
        level = json.loads(line)["level"] if line.startswith("{") else "no JSON"
        levels[level] += 1
        if level not in {"info", "debug"}:
            wrong.append(f"in the log: {line[:300]}")
    print(f"log lines: {dict(levels)}")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=1500)
    parser.add_argument("--instances", type=int, nargs=2, default=(10, 20), help="of a study, at least and at most")
    parser.add_argument("--size", type=int, default=192, help="rows and columns")
    parser.add_argument("--senders", type=int, default=8)
    arguments = parser.parse_args()
    templates = copies.templates(arguments.instances[1], arguments.size)
    work: queue.SimpleQueue[int] = queue.SimpleQueue()
    for study in range(arguments.studies):
        work.put(study)
    load, end = Load(), threading.Event()
    with tempfile.TemporaryDirectory() as room, node(Path(room) / "node", routes=[ROUTE]) as one:
        one.start("--only", ",".join(ROLES))
        watch = Watch(one, load, console_port(one))
        watching = threading.Thread(target=watch.run, args=(end,))
        watching.start()
        start = time.monotonic()
        senders = [
            threading.Thread(
                target=send, args=(n, work, Path(room), one.port, load, templates, arguments.instances[0])
            )
            for n in range(arguments.senders)
        ]  # fmt: skip
        for thread in senders:
            thread.start()
        for thread in senders:
            thread.join()
        seconds = time.monotonic() - start
        behind = planned(one, 600)
        end.set()
        watching.join()
        one.stop()
        count = len(load.acknowledged)
        print(
            f"{load.studies} studies, {count} instances, {load.size / 1e9:.2f} GB by {arguments.senders} senders in"
            f" {seconds:.0f} s: {count / seconds:.0f} instances/s; the last was planned {behind:.0f} s later;"
            f" {watch.pages} pages of the console"
        )
        wrong = compare(watch.samples, arguments.studies)
        wrong += judge_log(one)
        wrong += [f"a sender: {said}" for said in load.wrong]
        wrong += stored.faults(one.storage, f"sqlite:///{one.storage / 'worklist.db'}", load.acknowledged)
        if not watch.pages:
            wrong.append("the console gave no page")
        if items(one) != load.studies:
            wrong.append(f"{items(one)} workitems for {load.studies} studies")
    print(
        "\n".join(wrong[:50]) if wrong else "All is well: memory stays, no error, every instance found byte for byte."
    )
    sys.exit(bool(wrong))


def items(one: Node) -> int:
    """Count the workitems that were planned."""
    database = Database(f"sqlite:///{one.storage / 'worklist.db'}")
    try:
        with database.read() as session:
            return session.scalar(sa.select(sa.func.count()).select_from(Workitem)) or 0
    finally:
        database.close()


def console_port(one: Node) -> int:
    return int(re.findall(r"^\[console\]\nport = (\d+)", one.config.read_text(), re.MULTILINE)[0])


if __name__ == "__main__":
    main()
