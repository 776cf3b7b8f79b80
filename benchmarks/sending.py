"""Sending, beside DCMTK's dcmsend: objects per second over one association, and the ratio in alternating runs.

    make bench            or: .venv/bin/python benchmarks/sending.py --runs 5

Both send the same objects to DCMTK's storescp, which throws them away; each of them waits for the answer to one before
it sends the next. dicomai has the objects in memory, as the delivery has, and hands them to its DICOM destination in a
process that has loaded everything; dcmsend reads files, and is counted whole, less what it takes for a single C-ECHO.
`TCP_NODELAY=1` is set for DCMTK: without it each of its messages waits 40 ms.
"""

import argparse
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from pydicom import dcmread
from pydicom.uid import generate_uid

from dicomai.config import DicomDestination
from dicomai.destinations import Outgoing, open_destination
from tests import synthetic
from tests.dimse import free_port, is_listening

ENVIRONMENT = {**os.environ, "TCP_NODELAY": "1"}
KINDS = {"0.05 MB": (160, 300), "0.5 MB": (512, 300), "30 MB": (3872, 10)}
"""Rows and columns of an object with 16 bits per pixel, and how many of them."""


@contextlib.contextmanager
def storescp() -> Iterator[int]:
    """Start a receiver that keeps nothing; gives its port."""
    port = free_port()
    command = ["/usr/bin/storescp", "--ignore", "--max-pdu", "131072", "-aet", "BENCH", str(port)]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not is_listening(port):
            time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait(20)


def outgoing(path: Path) -> Outgoing:
    """Name an object as the delivery does."""
    meta = dcmread(path, stop_before_pixels=True).file_meta
    return Outgoing(str(meta.MediaStorageSOPClassUID), str(meta.MediaStorageSOPInstanceUID), lambda: path.open("rb"))


def by_dicomai(port: int, objects: Sequence[Outgoing]) -> float:
    """Send by the node's own destination; gives the seconds."""
    settings = DicomDestination(type="dicom", name="bench", ae_title="BENCH", host="127.0.0.1", port=port)
    destination = open_destination(settings, calling_ae="DICOMAI", timeout=30.0)
    taken: list[int] = []
    before = time.perf_counter()
    destination.send(objects, lambda _, status, __: taken.append(status))
    seconds = time.perf_counter() - before
    if taken != [0] * len(objects):
        raise RuntimeError(f"{len(taken)} of {len(objects)} were accepted.")
    return seconds


def by_dcmsend(port: int, folder: Path) -> float:
    """Send by DCMTK; gives the seconds, less those that a C-ECHO takes."""

    def timed(*command: str) -> float:
        before = time.perf_counter()
        subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True)
        return time.perf_counter() - before

    where = ("-aec", "BENCH", "127.0.0.1", str(port))
    started = timed("/usr/bin/echoscu", *where)
    return timed(
        "/usr/bin/dcmsend", "--decompress-never", "--max-send-pdu", "131072", *where, "+sd", str(folder)
    ) - started  # fmt: skip


def compare(name: str, side: int, count: int, runs: int) -> None:
    """Print the lines of one kind."""
    rates: dict[str, list[float]] = {"dicomai": [], "dcmsend": []}
    with tempfile.TemporaryDirectory() as room:
        folder = Path(room)
        slices = synthetic.series(shape=(count, side, side), study_uid=generate_uid(None))
        objects = [outgoing(path) for path in synthetic.write(slices, folder)]
        for _ in range(runs):
            with storescp() as port:
                rates["dicomai"].append(count / by_dicomai(port, objects))
                rates["dcmsend"].append(count / by_dcmsend(port, folder))
    for sender, values in rates.items():
        ratios = [value / base for value, base in zip(values, rates["dcmsend"], strict=True)]
        spread = f"{min(values):.0f}-{max(values):.0f}"
        print(
            f"{name:>8}  {sender:8} {statistics.median(values):>7.0f} {spread:>13}  {statistics.median(ratios):>6.2f}x"
            f" ({min(ratios):.2f}-{max(ratios):.2f})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    missing = [tool for tool in ("dcmsend", "storescp", "echoscu") if shutil.which(tool) is None]
    if missing:
        sys.exit(f"{', '.join(missing)} missing: `make acceptance` installs DCMTK.")
    print(f"Sending over one association, {arguments.runs} runs, objects/s:")
    print(f"{'of':>8}  {'sender':8} {'median':>7} {'spread':>13}  {'of dcmsend, by run':>18}")
    for name, (side, count) in KINDS.items():
        compare(name, side, count, arguments.runs)


if __name__ == "__main__":
    main()
