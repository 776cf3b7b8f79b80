"""`dicomai demo`: a real study through a real node, and what came back to a PACS."""

import contextlib
import importlib.resources
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from dicomai import log
from dicomai.commands.output import console
from dicomai.config import Settings
from dicomai.demo import report, returned
from dicomai.demo.follow import follow
from dicomai.demo.node import DemoNode, fetch_weights
from dicomai.demo.pacs import Pacs
from dicomai.demo.steps import Steps
from dicomai.destinations import send_files
from dicomai.errors import ConfigurationError, DeliveryError

PATIENCE = 120.0
"""Seconds that the way of the study may take, from the start of the node on."""

_MARK = ".dicomai-demo"
_OURS = ("folder", "pacs", "node.log", "pacs.log", "overlay.png")


def run(settings: Settings, out: Path) -> int:
    """Send the packaged study through a node of its own, and show what comes back.

    The node runs in a temporary folder with an embedded worklist. Of `settings`, the storage (for the weights, which
    are kept), the models and the device are used.

    Args:
        settings: of the command line; the built-in defaults will do.
        out: where results go: made if it is not there; what an earlier demo left in it is replaced.

    Returns:
        0: it all came back.

    Raises:
        ConfigurationError: `out` holds something else, or cannot be written.
        DicomaiError: the study did not come through, in a sentence.
    """
    _prepare(out)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_tidy_end())
        log.configure("json", stream=stack.enter_context((out / "pacs.log").open("w")), role="demo's PACS")
        stack.callback(log.configure, settings.node.log)
        room = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dicomai-demo-")))
        study = stack.enter_context(importlib.resources.as_file(importlib.resources.files(__name__) / "study"))
        console().print("A real MR study, a head in 20 slices, goes through a node and comes back to a PACS.")
        steps = stack.enter_context(Steps(console()))
        fetch_weights(settings, room, steps)
        node = DemoNode(settings, room, out)
        with Pacs(out / "pacs", node.pacs) as pacs:
            with node.running(steps, time.monotonic() + PATIENCE):
                _send(study, node, steps)
                follow(node, steps)
            files = pacs.received()
        with steps.step("Reading what came back to the PACS") as step:
            result = returned.read(files)
            result.overlay(study).save(out / "overlay.png")
            step.sentence = "What came back to the PACS was read, and the mask drawn on the images"
    report.tell(console(), result, out)
    return 0


def _prepare(out: Path) -> None:
    """Make the folder of results, or clear it of an earlier demo's."""
    try:
        if out.exists() and any(out.iterdir()) and not (out / _MARK).exists():
            raise ConfigurationError(f"{out} holds other files: name another folder by --out.")
        out.mkdir(parents=True, exist_ok=True)
        (out / _MARK).touch()
        for path in (out / name for name in _OURS):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigurationError(f"{out} cannot be written ({error.strerror}): name another by --out.") from error


@contextlib.contextmanager
def _tidy_end() -> Iterator[None]:
    """Have SIGTERM, and a terminal that goes away, end the demo as Ctrl-C does: with everything stopped."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _send(study: Path, node: DemoNode, steps: Steps) -> None:
    files = sorted(study.glob("*.dcm"))
    with steps.step(f"Sending {len(files)} MR images by C-STORE") as step:

        def note(_: object, done: int, total: int) -> None:
            step.fraction = done / total

        sent = send_files(files, node.address, calling_ae=node.sender, timeout=30.0, progress=note)
        refused = next((one for one in sent if not one.is_accepted), None)
        if refused is not None:
            raise DeliveryError(f"The node did not accept {refused.path.name} ({refused.text}): see {node.log}.")
        step.sentence = f"{len(sent)} MR images sent by C-STORE, each acknowledged once it was safe on disk"
