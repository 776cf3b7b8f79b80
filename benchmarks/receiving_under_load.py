"""Receiving while a network runs on the same cores: instances per second, beside those of a node at rest.

    make bench            or: .venv/bin/python benchmarks/receiving_under_load.py --runs 5

One node with every role; the weights of `brain_extraction` are pulled first. Runs alternate: at rest, then with copies
of the demo's study on the worklist, which the worker works off one after the other. A run under load counts only if an
inference was in progress before and after it, and every run only if all instances were answered 0x0000 and are indexed.
With `--nice` there is a third kind, in which the worker has another niceness than it gives itself.
"""

import argparse
import contextlib
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import pydicom
import receiving
from pydicom.uid import generate_uid

from tests import scu
from tests.acceptance.node import Node, node
from tests.beds import parts_of

STUDY = sorted((Path(__file__).parents[1] / "dicomai" / "demo" / "study").glob("*.dcm"))
MR = "1.2.840.10008.5.1.4.1.1.4"
ROUTE = {"name": "pd", "match": {"SeriesDescription": "FSE PD.*"}, "outside_validated": "report"}


class Load:
    """Work for the worker."""

    def __init__(self, one: Node) -> None:
        self._one = one

    def add(self, studies: int) -> None:
        """Send copies of the demo's study; returns when the worker is at one of them."""
        with scu.associated(self._one.port, called_ae="BENCH", sop_class_uid=MR) as assoc:
            for _ in range(studies):
                study, series = generate_uid(None), generate_uid(None)
                for path in STUDY:
                    ds = pydicom.dcmread(path)
                    ds.StudyInstanceUID, ds.SeriesInstanceUID = study, series
                    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid(None)
                    if assoc.store(ds.SOPInstanceUID, _explicit(ds)) != 0x0000:
                        raise RuntimeError("the load was not taken")
        self._wait(self.is_on)

    def is_on(self) -> bool:
        """Tell whether the network is at work."""
        return any(entry.state == "IN PROGRESS" for entry in self._one.entries("inference"))

    def drain(self) -> None:
        """Wait until all of it is done."""
        self._wait(lambda: not any(e.state in {"IN PROGRESS", "SCHEDULED"} for e in self._one.entries("inference")))

    def renice(self, niceness: int) -> None:
        """Give every thread of the worker a niceness."""
        (owner,) = {name for name in self._one._owners() if "/worker/" in name}
        for task in Path(f"/proc/{owner.rpartition('/')[2]}/task").iterdir():
            with contextlib.suppress(OSError):  # one that has ended
                os.setpriority(os.PRIO_PROCESS, int(task.name), niceness)

    @staticmethod
    def _wait(condition: Callable[[], bool]) -> None:
        end = time.monotonic() + 300
        while not condition():
            if time.monotonic() > end:
                raise RuntimeError("the worker did not do what it was waited for")
            time.sleep(0.1)


def _explicit(ds: pydicom.FileDataset) -> bytes:
    """Encode in Explicit VR Little Endian."""
    ds.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    buffer = pydicom.filebase.DicomBytesIO()
    pydicom.dcmwrite(buffer, ds, implicit_vr=False, little_endian=True, enforce_file_format=True)
    return parts_of(buffer.getvalue())[1]


def indexed(one: Node) -> int:
    """Count the CT images in the index."""
    with contextlib.closing(sqlite3.connect(f"file:{one.storage / 'worklist.db'}?mode=ro", uri=True)) as database:
        query = "SELECT count(*) FROM instance JOIN series ON series.id = series_id WHERE modality = 'CT'"
        return int(database.execute(query).fetchone()[0])


def measure(one: Node, sent: list[Path], instances: int) -> float:
    """Send new studies; gives instances per second."""
    before = indexed(one)
    peer = receiving.Peer(one.port, lambda: indexed(one) - before)
    return receiving.send(peer, sent, instances)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--instances", type=int, default=100, help="per association")
    parser.add_argument("--associations", type=int, default=8)
    parser.add_argument("--studies", type=int, default=5, help="for the worker, for each run under load")
    parser.add_argument("--nice", type=int, help="of the worker's threads, in a third kind of run")
    arguments = parser.parse_args()
    kinds = ["at rest", "a network runs", *([] if arguments.nice is None else [f"the same at nice {arguments.nice}"])]
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    with (
        tempfile.TemporaryDirectory() as room,
        node(Path(room) / "node", routes=[ROUTE], node={"ae_title": "BENCH"}) as running,
    ):
        command = [sys.executable, "-m", "dicomai", "models", "pull", "brain_extraction"]
        subprocess.run([*command, "--config", str(running.config)], check=True, stdout=subprocess.DEVNULL)
        running.start()
        load = Load(running)
        for _ in range(arguments.runs):
            for kind in kinds:
                sent = receiving.studies(Path(room), arguments.associations, arguments.instances)
                if kind != "at rest":
                    load.add(arguments.studies)
                if arguments.nice is not None and kind == kinds[-1]:
                    load.renice(arguments.nice)
                rate = measure(running, sent, arguments.instances)
                if (kind != "at rest") is not load.is_on():
                    raise RuntimeError(f"the network was not at work throughout, or not at rest: {kind}")
                rates[kind].append(rate)
                load.drain()
        running.stop()
    base = statistics.median(rates["at rest"])
    print(f"Receiving over {arguments.associations} associations, CT slices of 0.5 MB, {arguments.runs} runs:")
    for kind, values in rates.items():
        median = statistics.median(values)
        print(f"{kind:20} {median:>6.0f} instances/s ({min(values):.0f}-{max(values):.0f})  {median / base:.2f}x")


if __name__ == "__main__":
    main()
