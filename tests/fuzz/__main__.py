"""`make fuzz`: hostile input by the million, the same for the same seed; what fails is kept, to be fed again.

Each input is given to what reads it in the node, and has to come to what is said there, within a second. What does not
is a finding: the input is written to a file, and `make fuzz REPLAY=FILE` feeds it once more.
"""

import argparse
import contextlib
import hashlib
import logging
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

import structlog

from tests.fuzz.node import RunningNode
from tests.fuzz.targets import Bodies, Commands, Headers, Instances, Stream, Target

_MAGIC = b"dicomai-fuzz "
_SECONDS = 1.0  # that an input may take
_MOST_FINDINGS = 20
_GROWTH = 64 * 1024  # KiB


class Findings:
    """What went wrong, each kind of it once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._kinds: set[tuple[str, str]] = set()

    def __len__(self) -> int:
        return len(self._kinds)

    def add(self, target: str, data: bytes, error: BaseException) -> None:
        """Keep an input that failed, unless another has failed at the same place."""
        trace = traceback.extract_tb(error.__traceback__)
        kind = (target, f"{type(error).__name__} at {trace[-1].filename}:{trace[-1].lineno}" if trace else str(error))
        if kind in self._kinds:
            return
        self._kinds.add(kind)
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{target}-{hashlib.sha256(data).hexdigest()[:12]}"
        path.write_bytes(_MAGIC + target.encode() + b"\n" + data)
        traceback.print_exception(error, limit=-4)
        _say(f"finding: {kind[1]}\n  again by: make fuzz REPLAY={path}")


def fuzz(targets: Sequence[Target], inputs: int, seed: int, findings: Findings) -> int:
    """Feed so many inputs to each target as is its share; gives how many."""
    done = 0
    for target in targets:
        began, growing = time.monotonic(), _memory()
        count = max(1, round(inputs * target.share / target.batch))
        for number in range(count):
            data = target.make(Random(f"{seed} {target.name} {number}"))
            feed(target, data, findings)
            if number == count // 5:
                growing = _memory()
            if len(findings) >= _MOST_FINDINGS:
                _say("there are enough findings")
                return done + number * target.batch
        done += count * target.batch
        fed, seconds, growth = count * target.batch, time.monotonic() - began, _memory() - growing
        _say(f"{target.name}: {fed} inputs in {seconds:.1f} s, {fed / seconds:.0f}/s, memory +{growth} KiB")
        if growth > _GROWTH:
            findings.add(target.name, b"", MemoryError(f"{target.name} took {growth} KiB more and more"))
    return done


def feed(target: Target, data: bytes, findings: Findings) -> None:
    """Feed one input to a target."""
    began = time.process_time()
    try:
        target.run(data)
        taken = time.process_time() - began
        assert taken < _SECONDS, f"an input took {taken:.1f} s"
    except Exception as error:  # noqa: BLE001  that is what a finding is
        findings.add(target.name, data, error)


def replay(path: Path, targets: Sequence[Target], findings: Findings) -> None:
    """Feed an input again that a finding has kept."""
    name, _, data = path.read_bytes().removeprefix(_MAGIC).partition(b"\n")
    (target,) = (target for target in targets if target.name == name.decode())
    feed(target, data, findings)


@contextlib.contextmanager
def in_process(folder: Path) -> Iterator[list[Target]]:
    """Make the targets of this process; the folder is for what they store."""
    logging.disable(logging.CRITICAL)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    instances = Instances(folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the libraries' about values, which the node does not show
            yield [Commands(), Stream(), Headers(), Bodies(), instances]
    finally:
        instances.close()
        structlog.reset_defaults()
        logging.disable(logging.NOTSET)


def main() -> int:
    """Fuzz, or feed one input again; gives the exit status."""
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000, help="how many in all")
    parser.add_argument("--seed", type=int, default=1, help="another one gives other inputs")
    parser.add_argument("--only", help="the name of the one target to feed")
    parser.add_argument("--replay", type=Path, help="a file that a finding named")
    parser.add_argument("--findings", type=Path, default=Path("build/fuzz"), help="the folder for such files")
    given = parser.parse_args()
    findings, began, done = Findings(given.findings), time.monotonic(), 0
    with tempfile.TemporaryDirectory() as folder, in_process(Path(folder)) as targets:
        running = RunningNode(Path(folder) / "node" / "node")
        everything = [*targets, running]
        if given.replay:
            replay(given.replay, everything, findings)
            done = 1
        else:
            chosen = [target for target in everything if given.only in {None, target.name}]
            done = fuzz(chosen, given.inputs, given.seed, findings)
        running.close()
    _say(f"{done} inputs, {time.monotonic() - began:.0f} s, seed {given.seed}, {len(findings)} findings")
    return 1 if len(findings) else 0


def _memory() -> int:
    """The memory of this process at its highest, in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
