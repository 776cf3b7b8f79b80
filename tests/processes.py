"""What tests run in processes of their own; imports no more than that, so that they start quickly."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pydicom

from dicomai.database import Database, recorder
from dicomai.database.index import Index
from dicomai.database.recorder import Recorder
from dicomai.database.worklist import Worklist
from dicomai.filemeta import FileMeta
from dicomai.intake import Intake
from dicomai.store import Store
from dicomai.workitem import Kind


class TurnedDatabase(Database):
    """A database whose clock can be turned forward."""

    forward = timedelta()

    def clock(self, ask: Callable[[], datetime]) -> datetime:
        """The database's clock, and what it was turned forward."""
        return super().clock(ask) + self.forward


def migrate(url: str, barrier: Any) -> None:
    """Migrate at the same moment as others."""
    database = Database(url)
    barrier.wait()
    database.migrate()
    database.close()


def work(url: str, forward: timedelta, owner: str, barrier: Any, out: Any) -> None:
    """Claim and finish inference items, together with others, until none is left."""
    database = TurnedDatabase(url)
    database.forward = forward
    worklist = Worklist(database)
    barrier.wait()
    done = []
    while (got := worklist.claim(Kind.INFERENCE, owner, 60, 3)) is not None:
        worklist.heartbeat(got, 60, 50)
        worklist.finish_inference(got, [], ())
        done.append(got.item)
    database.close()
    out.put(done)


STEPS: dict[str, tuple[type, str]] = {
    "received": (Store, "receive"),
    "published": (Store, "publish"),
    "recorded": (Index, "record"),
}


def die(storage: str, url: str, step: str, file: str) -> None:
    """Take an instance in, and be killed when a step of that is done."""
    owner, name = STEPS[step]
    real = getattr(owner, name)

    def killing(*args: Any, **kwargs: Any) -> None:
        real(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, killing)
    Intake(Store(Path(storage)), Database(url), 60.0, 0).accept(*_read(file), None)


GROUP_STEPS: dict[str, tuple[Any, str]] = {
    "group written": (recorder, "_insert"),
    "group committed": (Recorder, "_commit"),
}


def die_in_group(storage: str, url: str, step: str, first: str, *others: str) -> None:
    """Take an instance in, then others of its series as one group, and be killed when a step of that is done."""
    intake = Intake(Store(Path(storage)), Database(url), 60.0, 0)
    intake.accept(*_read(first), None)
    owner, name = GROUP_STEPS[step]
    real = getattr(owner, name)

    def killing(*args: Any) -> None:
        real(*args)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, killing)
    waiting = intake._recorder
    with waiting._turn:  # until all of them wait for it
        for file in others:
            threading.Thread(target=intake.accept, args=(*_read(file), None), daemon=True).start()
        while len(waiting._queue) < len(others):
            time.sleep(0.01)
    time.sleep(60)


def _read(file: str) -> tuple[FileMeta, tuple[bytes]]:
    content = Path(file).read_bytes()
    end = 144 + int.from_bytes(content[140:144], "little")
    meta = pydicom.dcmread(file, stop_before_pixels=True).file_meta
    uids = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID
    return FileMeta(*map(str, uids), source_ae="SENDER"), (content[end:],)


if __name__ == "__main__":
    (die_in_group if sys.argv[3] in GROUP_STEPS else die)(*sys.argv[1:])
