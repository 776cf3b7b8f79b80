"""Many results to three destinations, of which one is away for half of the time: each ends with all of them, once.

RESULTS=1000 has it as large as `make soak` does; fewer show the same.
"""

import contextlib
import os
import re
import statistics
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pydicom
import pytest
import sqlalchemy as sa
from pydicom.uid import generate_uid

from dicomai.database.tables import Workitem
from dicomai.workitem import Kind, State
from tests.acceptance.node import Node, node, until
from tests.acceptance.orthanc import orthanc
from tests.acceptance.tools import dcmtk
from tests.beds import QUIET, Bed, route
from tests.dimse import HOST, free_port, is_listening
from tests.synthetic import series

RESULTS = int(os.environ.get("RESULTS", "16"))
NAMES = ("archive", "away", "storescp")
ALLOWED = 1.10

pytestmark = pytest.mark.timeout(120 + RESULTS * 3)


def test_each_destination_ends_with_all_results_and_none_twice(tmp_path: Path) -> None:
    ports = {name: free_port() for name in NAMES}
    entries = [
        {"name": name, "type": "dicom", "ae_title": name.upper(), "host": HOST, "port": port, "verify": verify}
        for (name, port), verify in zip(ports.items(), ("find", "find", "none"), strict=True)
    ]
    known = {"DICOMAI": ("DICOMAI", HOST, 104)}
    folder = tmp_path / "kept"
    delivery = {"first_wait": 0.5, "longest_wait": 5.0}
    with (
        node(tmp_path / "node", destinations=entries, delivery=delivery) as one,
        orthanc(tmp_path / "archive", ae_title="ARCHIVE", modalities=known, dicom_port=ports["archive"]) as archive,
        storescp(folder, ports["storescp"]),
    ):
        made = results(one)
        one.start("--only", "delivery")
        samples: list[float] = []
        end = threading.Event()
        watching = threading.Thread(target=watch, args=(one, samples, end))
        watching.start()
        try:
            until(lambda: delivered(one)["archive"] >= RESULTS // 2, 60 + RESULTS, lambda: one.log[-3000:])
            assert delivered(one)["away"] == 0
            with orthanc(tmp_path / "away", ae_title="AWAY", modalities=known, dicom_port=ports["away"]) as away:
                until(
                    lambda: delivered(one) == dict.fromkeys(NAMES, RESULTS), 60 + RESULTS * 2, lambda: one.log[-3000:]
                )
                assert {str(ds) for ds in uids(away.get("/instances?expand"))} == made
                assert away.arrivals() == archive.arrivals() == len(made)
        finally:
            end.set()
            watching.join()
        one.stop()
    received = [
        str(pydicom.dcmread(path, specific_tags=["SOPInstanceUID"]).SOPInstanceUID) for path in folder.iterdir()
    ]
    assert sorted(received) == sorted(made)
    opened = one.log.count('"event": "the destination is away; deliveries wait"')
    assert opened == 1, "a destination that is away is said once, not for each result"
    tenth = max(1, len(samples) // 10)
    before, after = statistics.median(samples[tenth : 2 * tenth]), statistics.median(samples[-tenth:])
    print(f"{RESULTS} results: delivery {before:.1f} MB, then {after:.1f} MB")  # noqa: T201  for the docs
    if RESULTS >= 1000:
        assert after < before * ALLOWED


def results(one: Node) -> set[str]:
    """Analyse as many studies, in this process; gives the SOP Instance UIDs of the results, which wait to be sent."""
    bed = Bed(one.folder, f"sqlite:///{one.storage / 'worklist.db'}")
    try:
        for number in range(RESULTS):
            bed.take(series(modality="MR", shape=(3, 12, 16), study_uid=generate_uid(None), PatientID=f"P{number}"))
        bed.turn(QUIET + 1)
        planner = bed.planner(route(destinations=NAMES))
        while planner.sweep():
            pass
        worker = bed.worker()
        while worker.step():
            pass
        with bed.database.write() as session:  # whose clock was turned
            session.execute(sa.update(Workitem).values(due_at=bed.database.now(session) - timedelta(days=1)))
        assert len(bed.items(Kind.DELIVERY)) == RESULTS * len(NAMES)
        return {o["sop_instance_uid"] for item in bed.items() for o in bed.overview.show(item.id)["objects"]}
    finally:
        bed.close()


def delivered(one: Node) -> dict[str, int]:
    """Count the deliveries that are done."""
    with one._database() as database, database.read() as session:
        done = session.scalars(
            sa.select(Workitem.destination).where(
                Workitem.kind == Kind.DELIVERY.value, Workitem.state == State.COMPLETED.value
            )
        )
        return dict.fromkeys(NAMES, 0) | Counter(done)


def watch(one: Node, samples: list[float], end: threading.Event) -> None:
    """Look at the memory of the delivery, in MB (PSS)."""
    assert one.process is not None
    (pid,) = (pid for pid in one.processes() if pid != one.process.pid and b"spawn_main" in _command(pid))
    while not end.wait(0.5):
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        samples.append(int(re.findall(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)[0]) / 1024)


def _command(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def uids(instances: list[dict[str, dict[str, str]]]) -> Iterator[str]:
    return (one["MainDicomTags"]["SOPInstanceUID"] for one in instances)


@contextlib.contextmanager
def storescp(folder: Path, port: int) -> Iterator[None]:
    """DCMTK's storescp, which keeps what comes twice twice."""
    folder.mkdir()
    process = subprocess.Popen(
        [dcmtk("storescp"), "--unique-filenames", "-aet", "STORESCP", "-od", str(folder), str(port)],
        env={**os.environ, "TCP_NODELAY": "1"},
    )
    try:
        until(lambda: is_listening(port), 20)
        yield
    finally:
        process.terminate()
        process.wait(20)
