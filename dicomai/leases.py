"""Works items off one after the other, and keeps the lease of each while its work goes on."""

import contextlib
import threading
from collections.abc import Callable, Iterator

import structlog

from dicomai.database.worklist import Claim, Worklist
from dicomai.errors import StaleAttemptError, StoreError

log = structlog.get_logger()


class Progress:
    """How far the work is; the next heartbeat carries it."""

    def __init__(self) -> None:
        """Begin at nothing."""
        self.percent = 0

    def __call__(self, fraction: float) -> None:
        """Say how far the work is, 0 to 1."""
        self.percent = round(100 * fraction)


@contextlib.contextmanager
def kept(worklist: Worklist, claim: Claim, lease: float) -> Iterator[Progress]:
    """Renew a claim's lease from a thread of its own, for as long as the block runs.

    A lease that is lost stops the thread; the work finds out when it tries to finish.
    """
    progress = Progress()
    done = threading.Event()

    def beat() -> None:
        # Often enough for a person who watches the percentage, and for three missed beats within a lease.
        while not done.wait(min(1.0, lease / 4)):
            try:
                worklist.heartbeat(claim, lease, progress.percent)
            except StaleAttemptError:
                log.warning("another worker has the item now", study=claim.trace, workitem=claim.item)
                return
            except StoreError as error:
                log.warning("a heartbeat failed", study=claim.trace, workitem=claim.item, error=str(error))

    thread = threading.Thread(target=beat, name=f"lease of {claim.item}", daemon=True)
    thread.start()
    try:
        yield progress
    finally:
        done.set()
        thread.join()


def work_off(step: Callable[[], bool], stop: threading.Event) -> None:
    """Take step after step until told to stop; what is under way is finished first.

    Args:
        step: works off one item; tells whether there was one.
        stop: ends the work.
    """
    while not stop.is_set():
        try:
            busy = step()
        except StoreError as error:
            log.error("the worklist cannot be asked", error=str(error))
            busy = False
        if not busy:
            stop.wait(0.5)
