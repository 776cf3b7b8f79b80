"""Beds: a storage with its database, the way in, the planner and the worklist, on a clock that a test can turn.

`Bed` runs all of it in this process; what must run in another one is started by the tests themselves. `write_bundle`
makes a bundle of MONAI's own parts, small enough to run in no time.
"""

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pydicom
import pydicom.config
import sqlalchemy as sa
from pydicom.dataset import FileDataset

from dicomai import bundle
from dicomai.analysis import Engine
from dicomai.bundle import Bundle
from dicomai.config import DeliverySettings, WorkerSettings
from dicomai.database.index import Recorded
from dicomai.database.overview import Overview
from dicomai.database.tables import Audit, Series, Table
from dicomai.database.tables import Workitem as Row
from dicomai.database.worklist import Worklist
from dicomai.delivery import Delivery
from dicomai.destinations import Destination
from dicomai.filemeta import FileMeta
from dicomai.findings import Findings, Layer, Measurement, Outcome
from dicomai.forwarding import Forward
from dicomai.intake import Intake
from dicomai.planner import Planner
from dicomai.routing import DEFAULT_EXCLUDE, Level, OutsideValidated, Route
from dicomai.store import Store
from dicomai.volume import Volume
from dicomai.worker import Worker
from tests.processes import TurnedDatabase
from tests.synthetic import encode

T = TypeVar("T", bound=Table)

QUIET = 60.0
LOST = 600.0

_CODE = '["91723000", "SCT", "Anatomical Structure"]'
_TOML = f"""
empty = "negative"
[algorithm]
name = "tiny"
family = ["123110", "DCM", "Artificial Intelligence"]
manufacturer = "none"
description = "Everything over a threshold"
license = "MIT"
[[input]]
role = "image"
modality = ["MR", "CT"]
[[segment]]
number = 1
label = "Body"
category = {_CODE}
type = {_CODE}
finding_site = {_CODE}
color = [255, 0, 0]
[[measurement]]
name = ["118565006", "SCT", "Volume"]
unit = ["cm3", "UCUM", "cubic centimeter"]
"""


def write_bundle(folder: Path, *, version: str = "0.1", before: str = "") -> Path:
    """Write a bundle that marks every voxel over 500.

    Args:
        folder: of the bundle; its name is the model's.
        version: of the model.
        before: an expression that is evaluated before the network runs, such as one that sleeps.
    """
    (folder / "configs").mkdir(parents=True)
    (folder / "dicomai.toml").write_text(_TOML)
    (folder / "configs/metadata.json").write_text(json.dumps({"version": version}))
    config = {
        "network_def": {"_target_": "torch.nn.Identity"},
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [{"_target_": "Lambdad", "keys": "image", "func": f"$lambda x: ({before or 'None'}, x)[1]"}],
        },
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [{"_target_": "AsDiscreted", "keys": "pred", "threshold": 500}],
        },
    }
    (folder / "configs/inference.json").write_text(json.dumps(config))
    return folder


def route(name: str = "tiny", **changes: Any) -> Route:
    """Make a route that takes every CT and MR."""
    made: dict[str, Any] = {
        "name": name,
        "model": "tiny",
        "match": {"Modality": "CT|MR"},
        "exclude": dict(DEFAULT_EXCLUDE),
        "level": Level.SERIES,
        "outside_validated": OutsideValidated.REFUSE,
        "outputs": ("seg", "sr"),
        "destinations": ("pacs",),
        "quiet_period": QUIET,
    }
    return Route(**(made | changes))


class Threshold:
    """An engine that does what the bundle of `write_bundle` does, without torch."""

    def __init__(self, one: Bundle, before: Callable[[], None] = lambda: None) -> None:
        self.bundle = one
        self.before = before

    def infer(self, volumes: Mapping[str, Volume], progress: Callable[[float], None]) -> Findings:
        """Mark every voxel over 500."""
        self.before()
        (volume,) = volumes.values()
        labels = (volume.array > 500).astype(np.uint8)
        (segments,) = self.bundle.layers
        (wanted,) = self.bundle.measurements
        value = float(labels.sum() * abs(np.linalg.det(volume.affine[:3, :3])) * wanted.scale)
        progress(1.0)
        return Findings(
            (Layer(labels, segments),),
            (Measurement(wanted.name, value, wanted.unit, segments[0]),),
            Outcome.FINDINGS,
        )


def parts(ds: FileDataset) -> tuple[bytes, bytes]:
    """Take a data set's file apart as the receiver hands it over: what comes before the data set, and the data set."""
    return parts_of(encode(ds))


def parts_of(data: bytes) -> tuple[bytes, bytes]:
    """Take a DICOM file apart."""
    end = 144 + int.from_bytes(data[140:144], "little")
    return data[:end], data[end:]


def announced(file: tuple[bytes, bytes]) -> tuple[FileMeta, tuple[bytes]]:
    """Turn a file that was taken apart into what the way in is given."""
    meta = pydicom.dcmread(BytesIO(file[0])).file_meta
    uids = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID
    return FileMeta(*map(str, uids), source_ae="SENDER"), (file[1],)


@contextlib.contextmanager
def as_received() -> Iterator[None]:
    """Read as the receiver does: what is no valid value is nobody's business yet."""
    settings = pydicom.config.settings
    before = settings.reading_validation_mode
    settings.reading_validation_mode = pydicom.config.IGNORE
    try:
        yield
    finally:
        settings.reading_validation_mode = before


@dataclass
class Bed:
    """A storage, its database, and all that works on them but the network.

    Attributes:
        folder: of the storage.
        url: of the database; it is migrated.
    """

    folder: Path
    url: str
    database: TurnedDatabase = field(init=False)

    def __post_init__(self) -> None:
        self.database = TurnedDatabase(self.url)
        self.database.migrate()
        self.store = Store(self.folder / "storage")
        self.intake = Intake(self.store, self.database, QUIET, 0)
        self.worklist = Worklist(self.database)
        self.overview = Overview(self.database)
        models = self.folder / "models"
        if not models.exists():
            write_bundle(models / "tiny")
        self.bundles = {"tiny": bundle.load(models / "tiny")}

    def close(self) -> None:
        """Close the connections."""
        self.database.close()

    def turn(self, seconds: float) -> None:
        """Turn the clock forward."""
        self.database.forward += timedelta(seconds=seconds)

    def take(self, datasets: Iterable[FileDataset], association: int | None = None) -> list[Recorded]:
        """Take data sets in."""
        with as_received():
            return [self.intake.accept(*announced(parts(ds)), association) for ds in datasets]

    def planner(
        self, *routes: Route, bundles: Mapping[str, Bundle] | None = None, forwards: Iterable[Forward] = ()
    ) -> Planner:
        """Make a planner; every CT and MR is routed unless told otherwise."""
        return Planner(
            self.store,
            self.database,
            routes or (route(),),
            bundles or self.bundles,
            quiet_period=QUIET,
            lost_period=LOST,
            forwards=tuple(forwards),
        )

    def plan(self, *routes: Route, forwards: Iterable[Forward] = ()) -> int:
        """Let a quiet period pass and sweep twice: the second sweep must find nothing."""
        self.turn(QUIET + 1)
        planner = self.planner(*routes, forwards=forwards)
        done = planner.sweep()
        assert planner.sweep() == 0
        return done

    def worker(self, load_engine: Callable[[Bundle], Engine] = Threshold) -> Worker:
        """Make a worker that runs without torch."""
        settings = WorkerSettings(threads=1)
        return Worker(
            self.store, self.database, self.bundles, settings, timezone="Europe/Berlin", load_engine=load_engine
        )

    def delivery(self, destination: Destination, **settings: Any) -> Delivery:
        """Make a deliverer to a destination."""
        return Delivery(self.store, self.database, destination, DeliverySettings(**({"timeout": 5.0} | settings)))

    def rows(self, table: type[T]) -> list[T]:
        """Give all rows of a table in the order in which they were made."""
        key = sa.inspect(table).primary_key
        with self.database.read() as session:
            return list(session.scalars(sa.select(table).order_by(*key)))

    def items(self, kind: str = "inference") -> list[Row]:
        """Give the workitems of a kind in the order in which they were made."""
        return [row for row in self.rows(Row) if row.kind == kind]

    def events(self, item: int) -> list[str]:
        """Give what the audit says of a workitem."""
        return [row.event for row in self.rows(Audit) if row.workitem_id == item]

    def series(self, uid: str) -> Series:
        """Give the row of a series."""
        (row,) = (row for row in self.rows(Series) if row.series_instance_uid == uid)
        return row

    def files(self, under: str = "instances") -> set[str]:
        """Give the keys of all files of the store below a folder."""
        root = self.folder / "storage"
        return {str(path.relative_to(root)) for path in (root / under).rglob("*") if path.is_file()}
