"""The demo's node: `dicomai serve` as a child process, on ports and in a folder of its own."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from dicomai import bundle, weights
from dicomai.config import DicomDestination, Settings
from dicomai.demo.steps import Steps
from dicomai.destinations import echo
from dicomai.errors import BundleError, DeliveryError, DicomaiError

MODEL = "brain_extraction"
QUIET_SECONDS = 2.0

_HOST = "127.0.0.1"

_CONFIGURATION = """
[node]
ae_title = "{node.ae_title}"
host = "{node.host}"
port = {node.port}
storage = {storage}
models = {models}
log = "json"

[receiver]
allow = ["{sender}"]
quiet_period = {quiet}
min_free_bytes = 0

[worker]
device = "{device}"

[delivery]
first_wait = 1.0

[console]
port = {console}

[[destination]]
name = "PACS"
type = "dicom"
ae_title = "{pacs.ae_title}"
host = "{pacs.host}"
port = {pacs.port}

[[destination]]
name = "folder"
type = "folder"
path = {folder}

[[route]]
name = "intracranial-volume"
match = {{ Modality = "MR" }}
outside_validated = "report"
model = "{model}"
destinations = ["PACS", "folder"]
"""


class DemoError(DicomaiError):
    """The study did not come through the demo's node."""


class DemoNode:
    """A node with a folder and a DICOM destination.

    Attributes:
        address: where it receives.
        pacs: where it sends to.
        sender: the AE title that may send to it.
        storage: its storage, with the worklist.
        log: the file that it logs to.
    """

    def __init__(self, settings: Settings, room: Path, out: Path) -> None:
        """Make a node; nothing runs before `running`.

        Args:
            settings: of the command line; models and device are taken from them.
            room: a folder that goes with the demo.
            out: the folder of results: the folder destination and the log lie there.
        """
        port, pacs_port, console_port = _free_ports(3)
        self.address = DicomDestination(type="dicom", name="node", ae_title="DICOMAI", host=_HOST, port=port)
        self.pacs = DicomDestination(type="dicom", name="PACS", ae_title="DEMO_PACS", host=_HOST, port=pacs_port)
        self.sender = "SCANNER"
        self.storage = room / "storage"
        self.log = out / "node.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._end = 0.0
        self._config = room / "dicomai.toml"
        text = _CONFIGURATION.format(
            node=self.address,
            pacs=self.pacs,
            sender=self.sender,
            console=console_port,
            quiet=QUIET_SECONDS,
            model=MODEL,
            device=settings.worker.device,
            storage=_quoted(self.storage),
            models=_quoted((settings.node.models or bundle.packaged()).absolute()),
            folder=_quoted((out / "folder").absolute()),
        )
        self._config.write_text(text, encoding="utf-8")

    @contextlib.contextmanager
    def running(self, steps: Steps, end: float) -> Iterator[None]:
        """Run the node.

        Args:
            steps: where to show that it starts.
            end: the time.monotonic() at which `check` loses patience.

        Raises:
            DemoError: it did not start.
        """
        self._end = end
        # A session of its own: Ctrl-C comes to the demo alone, which then stops the node in order.
        environment = {key: value for key, value in os.environ.items() if not key.upper().startswith("DICOMAI_")}
        with self.log.open("wb") as stream:
            process = self._process = subprocess.Popen(  # noqa: S603  this program itself
                [sys.executable, "-m", "dicomai", "serve", "--config", str(self._config)],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
                env=environment,
            )
        try:
            with steps.step("Starting a node") as step:
                while not self._answers():
                    self.check()
                    time.sleep(0.2)
                step.sentence = (
                    f"A node {self.address.ae_title} answers on port {self.address.port},"
                    f" a PACS {self.pacs.ae_title} on port {self.pacs.port}"
                )
            yield
        finally:
            with steps.step("Stopping the node") as step:
                _stop(process)
                step.sentence = "The node stopped, what it had begun was finished first"

    def check(self) -> None:
        """Make sure that the node runs and that there is time left.

        Raises:
            DemoError: it does not, or there is not.
        """
        if self._process is not None and self._process.poll() is not None:
            raise DemoError(f"The node ended by itself: {self.log} says why in its last lines.")
        if time.monotonic() > self._end:
            raise DemoError(f"The node took too long: {self.log} says what it was doing; then try again.")

    def _answers(self) -> bool:
        with socket.socket() as probe:
            if probe.connect_ex((self.address.host, self.address.port)):
                return False
        try:
            echo(self.address, calling_ae=self.sender, timeout=5.0)
        except DeliveryError:
            return False
        return True


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Stop the node in order; one that does not, or a second Ctrl-C, has it killed with all its processes."""
    try:
        process.terminate()
        process.wait(60.0)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def fetch_weights(settings: Settings, room: Path, steps: Steps) -> None:
    """Pull the model's weights to where they last, and put them into the storage of the demo's node.

    Raises:
        BundleError: they cannot be had.
    """
    one = bundle.find(MODEL, settings.node.models or bundle.packaged())
    home = _lasting(settings.node.storage)
    with steps.step(f"Getting the weights of {one.name} {one.version}") as step:
        try:
            found, said = weights.located(one, home), "are here"
        except BundleError:
            step.sentence = f"Downloading the weights of {one.name} {one.version}"
            found, said = weights.pull(one, home), "were downloaded"
        weights.pull(one, room / "storage", found)
        step.sentence = f"The weights of {one.name} {one.version} {said}, their digests right"


def _lasting(storage: Path) -> Path:
    """Choose where weights are kept from one demo to the next: the node's storage, else the user's cache."""
    there = next(path for path in (storage.absolute(), *storage.absolute().parents) if path.exists())
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return storage
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dicomai"


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind((_HOST, 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def _quoted(path: Path) -> str:
    return json.dumps(str(path), ensure_ascii=False)  # a JSON string is a TOML string
