"""A whole node: `dicomai serve` as a process, with real sockets, a real network (a tiny one), and SIGKILL."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import FileDataset
from pydicom.uid import ImplicitVRLittleEndian, MRImageStorage

from dicomai.config import Settings
from dicomai.database import Database
from dicomai.database.overview import Overview
from dicomai.database.tables import Version
from dicomai.database.tables import Workitem as Row
from dicomai.workitem import State
from tests.beds import parts, write_bundle
from tests.dimse import HOST, Scp, associate, free_port, is_listening, scp, store, wait_until
from tests.synthetic import series

ROOT = Path(__file__).parents[2]
SEG = "1.2.840.10008.5.1.4.1.1.66.4"
SR = "1.2.840.10008.5.1.4.1.1.88.34"

pytestmark = pytest.mark.slow

CONFIGURATION = """
[node]
host = "{host}"
port = {port}
storage = "{storage}"
worklist = "{worklist}"
models = "{models}"
log = "json"
[receiver]
quiet_period = 0.3
lost_period = 1.0
min_free_bytes = 0
[console]
port = {console}
[worker]
device = "cpu"
lease = 5.0
[delivery]
first_wait = 0.5
timeout = 20.0
[[destination]]
name = "pacs"
type = "dicom"
ae_title = "PACS"
host = "{host}"
port = {pacs}
[[route]]
name = "tiny"
match = {{ Modality = "MR" }}
model = "tiny"
destinations = ["pacs"]
"""


@dataclass
class Served:
    """A node's processes and where to look at what they did."""

    folder: Path
    port: int
    url: str
    config: Path
    process: subprocess.Popen[str] | None = None
    logs: list[Path] = field(default_factory=list)

    def start(self, *arguments: str, ready: bool = True) -> None:
        """Run `dicomai serve`; returns when every role is at work."""
        self.logs.append(self.folder / f"log{len(self.logs)}")
        with self.logs[-1].open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "dicomai", "serve", "--config", str(self.config), *arguments],
                cwd=ROOT,
                stderr=log,
                text=True,
            )
        if ready:
            self.wait_for(lambda: "node started" in self.events(), 60)

    def wait_for(self, condition: Callable[[], Any], timeout: float = 60.0) -> None:
        """Wait for something; tells what the node said if it does not come about."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, self.logs[-1].read_text()[-3000:]
            time.sleep(0.05)

    def lines(self) -> list[dict[str, Any]]:
        """Give what the node has logged since it was started last."""
        return [json.loads(line) for line in self.logs[-1].read_text().splitlines() if line.startswith("{")]

    def events(self) -> list[str]:
        """Name the events of the log."""
        return [line["event"] for line in self.lines()]

    def children(self) -> set[int]:
        """Give every process that the node's parent has, and those have."""
        assert self.process is not None
        return descendants(self.process.pid)

    def kill(self) -> None:
        """Kill the parent, and nothing else; every child has to find out."""
        assert self.process is not None
        children = self.children()
        self.process.kill()
        self.process.wait()
        wait_until(lambda: not any(map(is_running, children)), 10)
        assert not is_listening(self.port)

    def stop(self) -> int:
        """Stop the node as systemd does; gives the exit status."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(60)

    @contextlib.contextmanager
    def database(self) -> Iterator[Database]:
        """Look at the node's database."""
        database = Database(self.url)
        try:
            yield database
        finally:
            database.close()

    def rows(self, table: Any = Row) -> list[Any]:
        """Give all rows of a table."""
        import sqlalchemy as sa

        with self.database() as database, database.read() as session:
            return list(session.scalars(sa.select(table).order_by(table.id)))

    def states(self) -> list[tuple[str, str]]:
        """Give kind and state of every workitem."""
        return [(row.kind, row.state) for row in self.rows()]

    def owner(self, kind: str) -> int:
        """Give the process that holds the lease of an item of a kind; 0 if none does."""
        holders = [row.lease_owner for row in self.rows() if row.kind == kind and row.lease_owner]
        return int(holders[0].rpartition("/")[2]) if holders else 0

    def send(self, images: list[FileDataset]) -> list[int]:
        """Send images over one association; gives the statuses."""
        with associate(self.port, [(MRImageStorage, [images[0].file_meta.TransferSyntaxUID])]) as assoc:
            assert assoc.is_established
            return [
                int(store(assoc, str(ds.SOPClassUID), str(ds.SOPInstanceUID), parts(ds)[1]).get("Status", -1))
                for ds in images
            ]


def descendants(pid: int) -> set[int]:
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            text = path.read_text()
            parents[int(path.parent.name)] = int(text.rpartition(")")[2].split()[1])
    found: set[int] = set()
    while fresh := {child for child, parent in parents.items() if parent in found | {pid}} - found:
        found |= fresh
    return found


def is_running(pid: int) -> bool:
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def images(count: int = 3) -> list[FileDataset]:
    return series(modality="MR", shape=(count, 12, 16))


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Make a node's folder; whatever it started is gone at the end."""
    made: list[Served] = []

    def make(url: str = "", pacs: int = 1) -> Served:
        storage = tmp_path / "storage"
        # The network waits for as long as there is a file: long enough to be killed in the middle.
        pause = (
            f"[__import__('time').sleep(0.05) for _ in range(1200) if __import__('os').path.exists('{tmp_path}/pause')]"
        )
        write_bundle(tmp_path / "models/tiny", before=pause)
        served = Served(tmp_path, free_port(), url or f"sqlite:///{storage / 'worklist.db'}", tmp_path / "dicomai.toml")
        served.config.write_text(
            CONFIGURATION.format(
                host=HOST,
                port=served.port,
                storage=storage,
                worklist=url,
                models=tmp_path / "models",
                console=free_port(),
                pacs=pacs,
            )
        )
        made.append(served)
        return served

    yield make
    for served in made:
        if served.process is not None and served.process.poll() is None:
            served.process.kill()
            served.process.wait()


def assert_one_result(pacs: Scp, acknowledged: int, node: Served) -> None:
    """Exactly one SEG and one SR at the destination, and every acknowledged instance in the storage."""
    by_uid: dict[str, set[bytes]] = {}
    for received in pacs.received:
        by_uid.setdefault(received.sop_instance_uid, set()).add(received.data_set)
    assert sorted({r.sop_instance_uid: r.sop_class_uid for r in pacs.received}.values()) == [SEG, SR]
    assert all(len(contents) == 1 for contents in by_uid.values())  # sent twice, perhaps: then the same bytes
    assert node.states() == [("inference", State.COMPLETED), ("delivery", State.COMPLETED)]
    versions = node.rows(Version)
    assert len(versions) == acknowledged
    assert all((node.folder / "storage" / version.key).is_file() for version in versions)
    assert not [path for path in (node.folder / "storage/incoming").rglob("*") if path.is_file()]


def test_from_a_scanner_to_the_pacs_and_an_orderly_end(make: Callable[..., Served]) -> None:
    with scp() as pacs:
        node = make(pacs=pacs.port)
        node.start()
        # Only the worker carries torch: what starts the others is small and quick.
        with_torch = {pid for pid in node.children() if "libtorch" in Path(f"/proc/{pid}/maps").read_text()}
        assert len(with_torch) == 1
        with associate(node.port, [("1.2.840.10008.1.1", [ImplicitVRLittleEndian])]) as assoc:
            assert assoc.send_c_echo().Status == 0x0000
        assert node.send(images()) == [0x0000] * 3
        node.wait_for(lambda: node.states().count(("delivery", State.COMPLETED)) == 1)
        assert_one_result(pacs, 3, node)
        # One id leads through all processes.
        traces = {line["study"] for line in node.lines() if "study" in line}
        assert len(traces) == 1
        assert {line["role"] for line in node.lines() if "study" in line} >= {"planner", "worker", "delivery"}
        assert node.logs[-1].read_text().count("Synthetic^Sample") == 0

        second = subprocess.run(
            [sys.executable, "-m", "dicomai", "serve", "--config", str(node.config)],
            cwd=ROOT, capture_output=True, text=True, check=False, timeout=30,
        )  # fmt: skip
        assert second.returncode == 2
        (said,) = second.stderr.splitlines()
        assert re.fullmatch(r"Another node holds \S+: one storage serves one node; stop the other first\.", said)
        assert node.process is not None
        assert node.process.poll() is None

        children = node.children()
        assert node.stop() == 0
        wait_until(lambda: not any(map(is_running, children)), 5)  # the library's tracker of resources goes last
        assert not is_listening(node.port)
        events = node.events()
        assert events.index("receiver stopped") < events.index("node stopped") == len(events) - 1
        assert not [line for line in node.lines() if line["level"] in {"warning", "error"}]


def dying(node: Served) -> Callable[[Any], int]:
    """Make an answer that comes so late that the sender can be killed meanwhile."""

    def answer(_event: Any) -> int:
        (node.folder / "dying").touch()
        time.sleep(1.0)
        return 0x0000

    return answer


def test_worker_and_delivery_killed_at_their_work_on_postgresql(
    make: Callable[..., Served], postgresql_url: str
) -> None:
    with scp() as pacs:
        node = make(postgresql_url, pacs=pacs.port)
        pacs.answers[:] = [0x0000, dying(node), 0x0000]
        (node.folder / "pause").touch()
        node.start()
        node.send(images())
        node.wait_for(lambda: node.owner("inference"))
        os.kill(node.owner("inference"), signal.SIGKILL)
        (node.folder / "pause").unlink()
        node.wait_for((node.folder / "dying").exists)
        os.kill(node.owner("delivery"), signal.SIGKILL)
        node.wait_for(lambda: node.states().count(("delivery", State.COMPLETED)) == 1)
        assert_one_result(pacs, 3, node)
        assert [r.sop_class_uid for r in pacs.received] == [SEG, SR, SR]
        assert [row.attempt for row in node.rows()] == [2, 2]
        assert node.events().count("a role ended by itself; it starts again") == 2
        with node.database() as database:
            events = [h["event"] for h in Overview(database).show(1)["history"]]
        assert events == ["scheduled", "IN PROGRESS", "let go", "IN PROGRESS", "COMPLETED"]
        assert node.stop() == 0


def test_the_whole_node_killed_while_it_infers_and_while_it_delivers(make: Callable[..., Served]) -> None:
    with scp() as pacs:
        node = make(pacs=pacs.port)
        pacs.answers[:] = [0x0000, dying(node), 0x0000]
        (node.folder / "pause").touch()
        node.start()
        node.send(images())
        node.wait_for(lambda: node.owner("inference"))
        node.kill()
        (node.folder / "pause").unlink()
        node.start()
        node.wait_for((node.folder / "dying").exists)
        node.kill()
        node.start()
        node.wait_for(lambda: node.states().count(("delivery", State.COMPLETED)) == 1)
        assert_one_result(pacs, 3, node)
        assert [r.sop_class_uid for r in pacs.received] == [SEG, SR, SR]


class TestTheReceiverAlone:
    def test_it_answers_within_two_seconds_and_carries_no_torch(self, make: Callable[..., Served]) -> None:
        node = make()
        node.start("--only", "receiver")  # the files are read from the disk once
        assert node.stop() == 0
        begun = time.monotonic()
        node.start("--only", "receiver", ready=False)
        wait_until(lambda: is_listening(node.port))
        with associate(node.port, [("1.2.840.10008.1.1", [ImplicitVRLittleEndian])]) as assoc:
            assert assoc.send_c_echo().Status == 0x0000
        elapsed = time.monotonic() - begun
        maps = [Path(f"/proc/{pid}/maps").read_text() for pid in node.children()]
        assert not any("libtorch" in text for text in maps)
        # Two seconds on an idle machine; a machine that runs other tests meanwhile takes longer by what they take.
        busy = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
        assert elapsed < 2.0 * busy

    def test_killed_while_it_receives_it_loses_nothing_that_it_acknowledged(self, make: Callable[..., Served]) -> None:
        node = make()
        node.start("--only", "receiver")
        sent = images(60)
        acknowledged: list[str] = []
        with associate(node.port, [(MRImageStorage, [sent[0].file_meta.TransferSyntaxUID])]) as assoc:
            for ds in sent:
                response = store(assoc, str(ds.SOPClassUID), str(ds.SOPInstanceUID), parts(ds)[1])
                if response.get("Status") != 0x0000:
                    break
                acknowledged.append(str(ds.SOPInstanceUID))
                if len(acknowledged) == 20:
                    for pid in node.children():
                        if re.search(r"/receiver(-\d+)?\.lock", open_files(pid)):
                            os.kill(pid, signal.SIGKILL)
        assert 20 <= len(acknowledged) < 60
        receivers = Settings().receiver.processes
        node.wait_for(lambda: node.events().count("receiver listens") == 2 * receivers, 20)
        known = {Path(version.key).name.rpartition(".")[0].rpartition(".")[0] for version in node.rows(Version)}
        assert set(acknowledged) <= known
        assert all((node.folder / "storage" / version.key).is_file() for version in node.rows(Version))
        files = {str(path.relative_to(node.folder / "storage")) for path in (node.folder / "storage").rglob("*.dcm")}
        assert files == {version.key for version in node.rows(Version)}
        assert node.send(sent) == [0x0000] * 60
        assert len(node.rows(Version)) == 60
        node.kill()

    def test_a_port_that_is_taken_is_a_sentence_and_exit_status_2(self, make: Callable[..., Served]) -> None:
        with scp() as other:
            node = make()
            node.config.write_text(node.config.read_text().replace(f"port = {node.port}", f"port = {other.port}"))
            node.start("--only", "receiver", ready=False)
            assert node.process is not None
            assert node.process.wait(30) == 2
        said = node.logs[-1].read_text()
        assert f"Cannot listen on {HOST} port {other.port}" in said
        assert "Traceback" not in said

    def test_a_terminal_s_interrupt_ends_it_in_order(self, make: Callable[..., Served]) -> None:
        node = make()
        node.start("--only", "receiver")
        assert node.process is not None
        for pid in (node.process.pid, *node.children()):  # as Ctrl-C does: the whole group
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGINT)
        assert node.process.wait(30) == 0
        assert "Traceback" not in node.logs[-1].read_text()


def open_files(pid: int) -> str:
    """Name the files that a process holds open."""
    names = []
    for path in Path(f"/proc/{pid}/fd").glob("*"):
        with contextlib.suppress(OSError):
            names.append(str(path.readlink()))
    return "\n".join(names)


def test_a_missing_model_is_a_sentence_and_nothing_starts(make: Callable[..., Served]) -> None:
    node = make()
    node.config.write_text(node.config.read_text().replace('model = "tiny"', 'model = "absent"'))
    done = subprocess.run(
        [sys.executable, "-m", "dicomai", "serve", "--config", str(node.config)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("There is no model 'absent'")
    assert "Traceback" not in done.stderr
    assert not is_listening(node.port)
