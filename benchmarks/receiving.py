"""Receiving, beside Orthanc and DCMTK's storescp: instances per second, and the ratio in alternating runs.

    make bench            or: .venv/bin/python benchmarks/receiving.py --runs 5

Each run starts every receiver on an empty storage, one after the other, and sends the same studies to each by DCMTK's
`dcmsend`, one study per association. A run counts only if every instance was answered 0x0000 and is found stored (and,
where there is an index, in it). `TCP_NODELAY=1` is set for every DCMTK-based process, Orthanc included.
"""

import argparse
import contextlib
import os
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from pydicom.uid import JPEG2000Lossless, generate_uid

from tests import synthetic
from tests.acceptance.orthanc import orthanc
from tests.dimse import free_port, is_listening

ENVIRONMENT = {**os.environ, "TCP_NODELAY": "1"}


@dataclass(frozen=True)
class Peer:
    """A receiver under test: its port, and how many instances it says that it has."""

    port: int
    stored: Callable[[], int]


@contextlib.contextmanager
def dicomai(folder: Path) -> Iterator[Peer]:
    port = free_port()
    config = folder / "dicomai.toml"
    config.write_text(
        f'[node]\nae_title = "BENCH"\nport = {port}\nstorage = "{folder}"\n[receiver]\nmin_free_bytes = 0\n'
    )
    command = [sys.executable, "-m", "dicomai", "serve", "--only", "receiver", "--config", str(config)]

    def stored() -> int:
        with contextlib.closing(sqlite3.connect(f"file:{folder / 'worklist.db'}?mode=ro", uri=True)) as database:
            keys = [key for (key,) in database.execute("SELECT key FROM version")]
        return sum((folder / key).is_file() for key in keys)

    with _process(command, port, folder):
        while "node started" not in (folder / "log").read_text():  # its first receiver listens before the others do
            time.sleep(0.05)
        yield Peer(port, stored)


@contextlib.contextmanager
def orthanc_peer(folder: Path) -> Iterator[Peer]:
    with orthanc(folder, ae_title="BENCH") as pacs:
        yield Peer(pacs.dicom_port, lambda: int(pacs.get("/statistics")["CountInstances"]))


@contextlib.contextmanager
def storescp(folder: Path) -> Iterator[Peer]:
    port = free_port()
    command = [
        "/usr/bin/storescp",
        "--fork",
        "+xa",
        "--max-pdu",
        "131072",
        "-aet",
        "BENCH",
        "-od",
        str(folder),
        str(port),
    ]
    with _process(command, port, folder):
        yield Peer(port, lambda: sum(1 for path in folder.iterdir() if path.name.startswith("CT.")))


@contextlib.contextmanager
def _process(command: list[str], port: int, folder: Path) -> Iterator[None]:
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=ENVIRONMENT)
        try:
            while not is_listening(port):
                if process.poll() is not None:
                    raise RuntimeError(f"{command[0]} ended: {(folder / 'log').read_text()}")
                time.sleep(0.05)
            yield
        finally:
            process.terminate()
            process.wait(60)


PEERS = {"dicomai": dicomai, "Orthanc": orthanc_peer, "storescp": storescp}


@dataclass(frozen=True)
class Kind:
    """What is sent: 16 bit CT slices.

    Attributes:
        name: for the table.
        side: rows and columns.
        share: how many of them for one of the smallest kind.
        compressed: as JPEG 2000, lossless.
    """

    name: str
    side: int
    share: float = 1.0
    compressed: bool = False


KINDS = (
    Kind("0.5 MB", 512),
    Kind("30 MB", 3872, share=1 / 30),
    Kind("JPEG 2000, 0.3 MB", 512, compressed=True),
)


def studies(folder: Path, count: int, instances: int, kind: Kind = KINDS[0]) -> list[Path]:
    """Write studies of one series each."""
    made = []
    for number in range(count):
        study = Path(tempfile.mkdtemp(dir=folder)) / f"study-{number}"
        slices = synthetic.series(
            shape=(instances, kind.side, kind.side), study_uid=generate_uid(None), series_uid=generate_uid(None)
        )
        if kind.compressed:
            noise = np.random.default_rng(number).integers(0, 256, (kind.side, kind.side), dtype=np.uint16)
            for ds in slices:
                ds.PixelData = (ds.pixel_array.view(np.uint16) ^ noise).tobytes()
                ds.compress(JPEG2000Lossless)
        synthetic.write(slices, study)
        made.append(study)
    return made


def send(peer: Peer, sent: list[Path], instances: int) -> float:
    """Send each study over an association of its own; gives instances per second."""
    command = [
        "/usr/bin/dcmsend",
        "--decompress-never",
        "--max-send-pdu",
        "131072",
        "-aec",
        "BENCH",
        "127.0.0.1",
        str(peer.port),
        "+sd",
    ]
    before = time.monotonic()
    senders = [
        subprocess.Popen([*command, str(study)], env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for study in sent
    ]
    codes = [sender.wait(600) for sender in senders]
    seconds = time.monotonic() - before
    expected = len(sent) * instances
    if any(codes) or peer.stored() != expected:
        raise RuntimeError(f"{peer.stored()} of {expected} instances are stored; dcmsend ended with {codes}")
    return expected / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--instances", type=int, default=300, help="per association")
    parser.add_argument("--associations", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--kinds", type=int, nargs="+", default=[1, 2, 3], help="which of 0.5 MB, 30 MB, JPEG 2000")
    arguments = parser.parse_args()
    missing = [tool for tool in ("dcmsend", "storescp", "Orthanc") if shutil.which(tool) is None]
    if missing:
        sys.exit(f"{', '.join(missing)} missing: `make acceptance` installs DCMTK and Orthanc.")
    for number in arguments.kinds:
        kind = KINDS[number - 1]
        compare(kind, max(2, round(arguments.instances * kind.share)), arguments.runs, arguments.associations)


def compare(kind: Kind, instances: int, runs: int, numbers: list[int]) -> None:
    """Print the table of one kind."""
    print(f"Receiving {instances} instances of {kind.name} per association, {runs} runs, instances/s:")
    print(f"{'associations':>12}  {'receiver':10} {'median':>7} {'spread':>13}  {'of Orthanc, by run':>18}")
    with tempfile.TemporaryDirectory() as room:
        sent = studies(Path(room), max(numbers), instances, kind)
        for associations in numbers:
            rates: dict[str, list[float]] = {name: [] for name in PEERS}
            for _ in range(runs):
                for name, start in PEERS.items():
                    # Kept to the end: ext4 looks through what was deleted of late for every file that it makes.
                    with start(Path(tempfile.mkdtemp(dir=room))) as peer:
                        os.sync()  # what the one before left to the kernel to write is none of this one's business
                        rates[name].append(send(peer, sent[:associations], instances))
            for name, values in rates.items():
                ratios = [value / base for value, base in zip(values, rates["Orthanc"], strict=True)]
                median = statistics.median(values)
                spread = f"{min(values):.0f}-{max(values):.0f}"
                print(
                    f"{associations:>12}  {name:10} {median:>7.0f} {spread:>13}  {statistics.median(ratios):>6.2f}x"
                    f" ({min(ratios):.2f}-{max(ratios):.2f})"
                )


if __name__ == "__main__":
    main()
