"""Works items off one after the other, and keeps the lease of each while its work goes on."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping

import structlog

from dicomai.database.worklist import Claim, Worklist
from dicomai.errors import DicomaiError, StaleAttemptError, StoreError
from dicomai.workitem import Kind

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


def attempt(
    worklist: Worklist,
    kind: Kind,
    owner: str,
    work: Callable[[Claim, Progress], None],
    *,
    lease: float,
    attempts: int,
    destination: str | None = None,
) -> bool:
    """Claim an item and work on it while its lease is kept; tells whether there was one.

    Args:
        worklist: where the items are.
        kind: which items.
        owner: who claims.
        work: what is done with a claim; where another attempt has the item, it is left alone.
        lease: seconds.
        attempts: after so many an item is ended with a sentence.
        destination: of deliveries, only those that go there.
    """
    claim = worklist.claim(kind, owner, lease, attempts, destination)
    if claim is None:
        return False
    try:
        with kept(worklist, claim, lease) as progress:
            work(claim, progress)
    except StaleAttemptError as error:
        log.warning("left to another attempt", study=claim.trace, workitem=claim.item, error=str(error))
    return True


@contextlib.contextmanager
def tried_again(worklist: Worklist, claim: Claim, seconds: float, where: Mapping[str, object]) -> Iterator[None]:
    """Let an item wait for another attempt where the block fails: nobody would miss the thread that ended by it.

    Args:
        worklist: where the item is.
        claim: the item.
        seconds: until then.
        where: what the log says of the item.
    """
    try:
        yield
    except StaleAttemptError:
        raise
    except DicomaiError as error:
        log.error("not done yet", error=str(error), next_try_in_s=round(seconds), **where)
        worklist.postpone(claim, seconds, str(error))
    except Exception as error:
        log.exception("failed unexpectedly", **where)
        said = f"It failed with {type(error).__name__}; the log of the node says where."
        worklist.postpone(claim, seconds, said)


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
