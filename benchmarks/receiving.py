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

from pydicom.uid import generate_uid

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
        yield Peer(port, stored)


@contextlib.contextmanager
def orthanc_peer(folder: Path) -> Iterator[Peer]:
    with orthanc(folder, ae_title="BENCH") as pacs:
        yield Peer(pacs.dicom_port, lambda: int(pacs.get("/statistics")["CountInstances"]))


@contextlib.contextmanager
def storescp(folder: Path) -> Iterator[Peer]:
    port = free_port()
    command = ["/usr/bin/storescp", "--fork", "--max-pdu", "131072", "-aet", "BENCH", "-od", str(folder), str(port)]
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


def studies(folder: Path, count: int, instances: int) -> list[Path]:
    """Write studies of CT slices, 512 x 512, 16 bit, uncompressed: 0.5 MB each."""
    made = []
    for number in range(count):
        study = folder / f"study-{number}"
        slices = synthetic.series(
            shape=(instances, 512, 512), study_uid=generate_uid(None), series_uid=generate_uid(None)
        )
        synthetic.write(slices, study)
        made.append(study)
    return made


def send(peer: Peer, sent: list[Path], instances: int) -> float:
    """Send each study over an association of its own; gives instances per second."""
    command = ["/usr/bin/dcmsend", "--max-send-pdu", "131072", "-aec", "BENCH", "127.0.0.1", str(peer.port), "+sd"]
    before = time.monotonic()
    senders = [subprocess.Popen([*command, str(study)], env=ENVIRONMENT, stdout=subprocess.DEVNULL) for study in sent]
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
    arguments = parser.parse_args()
    missing = [tool for tool in ("dcmsend", "storescp", "Orthanc") if shutil.which(tool) is None]
    if missing:
        sys.exit(f"{', '.join(missing)} missing: `make acceptance` installs DCMTK and Orthanc.")
    print(f"Receiving {arguments.instances} CT slices of 0.5 MB per association, {arguments.runs} runs, instances/s:")
    print(f"{'associations':>12}  {'receiver':10} {'median':>7} {'spread':>13}  {'of Orthanc':>10}")
    with tempfile.TemporaryDirectory() as room:
        sent = studies(Path(room), max(arguments.associations), arguments.instances)
        for associations in arguments.associations:
            rates: dict[str, list[float]] = {name: [] for name in PEERS}
            for _ in range(arguments.runs):
                for name, start in PEERS.items():
                    # Kept to the end: ext4 looks through what was deleted of late for every file that it makes.
                    with start(Path(tempfile.mkdtemp(dir=room))) as peer:
                        rates[name].append(send(peer, sent[:associations], arguments.instances))
            base = statistics.median(rates["Orthanc"])
            for name, values in rates.items():
                median = statistics.median(values)
                spread = f"{min(values):.0f}-{max(values):.0f}"
                print(f"{associations:>12}  {name:10} {median:>7.0f} {spread:>13}  {median / base:>9.2f}x")


if __name__ == "__main__":
    main()
