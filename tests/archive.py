"""A PACS that keeps what it accepts and answers for it, and what to do with the one result that goes to it."""

import contextlib
import io
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pynetdicom import evt

from dicomai.config import DicomDestination
from dicomai.database.tables import Audit
from dicomai.database.tables import Workitem as Row
from dicomai.delivery import Delivery
from dicomai.destinations import Destination, open_destination
from dicomai.workitem import State
from tests.beds import Bed, route
from tests.dimse import HOST, Scp, scp
from tests.synthetic import series

SEG = "1.2.840.10008.5.1.4.1.1.66.4"
SR = "1.2.840.10008.5.1.4.1.1.88.34"


@dataclass
class Archive:
    """A PACS that keeps what it accepts, answers C-FIND and C-ECHO, and does as it is told.

    Attributes:
        server: takes the objects.
        kept: what C-FIND shows.
        loses: whether an object that was accepted is thrown away.
        hides: whether C-FIND shows nothing for now.
        queries: the identifiers that came.
        echoes: how many C-ECHO came.
    """

    server: Scp = field(default_factory=lambda: Scp("PACS", 0, []))
    kept: list[Dataset] = field(default_factory=list)
    loses: Callable[[Dataset], bool] = lambda _: False
    hides: bool = False
    queries: list[Dataset] = field(default_factory=list)
    echoes: int = 0

    def keep(self, event: Any, status: int = 0x0000, **changes: Any) -> Dataset:
        """Accept an object, with changes, unless it gets lost."""
        ds = read_dataset(
            io.BytesIO(event.request.DataSet.getvalue()),
            is_implicit_VR=event.context.transfer_syntax == "1.2.840.10008.1.2",
            is_little_endian=True,
        )
        ds.update(data_set(**changes))
        if not self.loses(ds):
            self.kept.append(ds)
        return data_set(Status=status, **({"OffendingElement": list(changes)} if changes else {}))

    def find(self, event: Any) -> Iterator[tuple[int, Dataset | None]]:
        """Answer as the Study Root has it, relational at the level of images."""
        asked = event.identifier
        self.queries.append(asked)
        for ds in [] if self.hides else self.kept:
            wanted = [e for e in asked if e.keyword not in {"QueryRetrieveLevel", "SpecificCharacterSet"}]
            if all(not e.value or ds.get(e.keyword) == e.value for e in wanted):
                yield 0xFF00, data_set(**{e.keyword: ds.get(e.keyword) for e in wanted})
        yield 0x0000, None

    def echo(self, _event: Any) -> int:
        """Count."""
        self.echoes += 1
        return 0x0000

    @contextlib.contextmanager
    def open(self, *answers: Any, n_action: Any = None, **options: Any) -> Iterator["Archive"]:
        """Run; objects are kept unless there are answers."""
        handlers = [(evt.EVT_C_FIND, self.find), (evt.EVT_C_ECHO, self.echo)]
        if n_action is not None:
            handlers.append((evt.EVT_N_ACTION, n_action))
        with scp(*(answers or [self.keep]), handlers=handlers, **options) as self.server:
            yield self

    def destination(self, timeout: float = 5.0, **keys: Any) -> Destination:
        """The destination that leads here."""
        entry = DicomDestination(type="dicom", name="pacs", ae_title="PACS", host=HOST, port=self.server.port, **keys)
        return open_destination(entry, calling_ae="DICOMAI", timeout=timeout)


def data_set(**attributes: Any) -> Dataset:
    ds = Dataset()
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    return ds


def analysed(bed: Bed, count: int = 1) -> None:
    """Take series in, one for each patient, and analyse them."""
    for number in range(count):
        bed.take(series(modality="MR", shape=(3, 12, 16), PatientID=f"P{number}"))
    bed.plan(route())
    while bed.worker().step():
        pass
    assert [row.state for row in bed.items()] == [State.COMPLETED] * count


def delivery(bed: Bed, number: int = 0) -> Row:
    """Give the row of a delivery."""
    return bed.items("delivery")[number]


def classes(archive: Archive) -> list[str]:
    """Give the SOP classes of what came, in its order."""
    return [received.sop_class_uid for received in archive.server.received]


def audited(bed: Bed, event: str) -> list[Audit]:
    """Give what the audit has of an event."""
    return [row for row in bed.rows(Audit) if row.event == event]


def sent_until_it_ends(bed: Bed, lane: Delivery, steps: int = 40) -> None:
    """Step, and turn the clock far forward between, until the delivery has ended."""
    for _ in range(steps):
        lane.step()
        if delivery(bed).state in {State.COMPLETED, State.CANCELED}:
            return
        bed.turn(7200)


def keep_one_result(folder: Path) -> None:
    """Make a storage with one result that waits for its delivery."""
    folder.mkdir()
    made = Bed(folder, f"sqlite:///{folder / 'worklist.db'}")
    analysed(made)
    made.close()


@contextlib.contextmanager
def copied(one_result: Path, folder: Path) -> Iterator[Bed]:
    """Work on a copy of what `keep_one_result` made."""
    shutil.copytree(one_result, folder)
    made = Bed(folder, f"sqlite:///{folder / 'worklist.db'}")
    made.turn(120)  # as it was turned when the analysis ran
    yield made
    made.close()
