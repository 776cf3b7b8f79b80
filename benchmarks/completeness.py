"""The wait after the last image: how long until a series is planned, by what its source has said of it.

    .venv/bin/python benchmarks/completeness.py --runs 3

A real node (receiver and planner) with the default quiet period gets small studies of one series over the network:
from a modality that says nothing more; from one whose procedure step (MPPS) ends before the last image; followed by a
notification (IAN); and from Orthanc, which is asked for counts. The figure is the time between two rows of the node's
own database: the last image indexed, the series called complete. All studies go in at once, so that a run takes little
longer than the quiet period. How long a source takes to say its last word is not in the figure: a modality may end its
step minutes after the last image.
"""

import argparse
import contextlib
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import ImplicitVRLittleEndian, generate_uid

from tests import synthetic
from tests.acceptance.node import Node, node
from tests.acceptance.orthanc import Orthanc, orthanc
from tests.acceptance.test_completeness import performed
from tests.dimse import HOST, associate, data_set_of, free_port, store

NOTICE = "1.2.840.10008.5.1.4.33"
NOTHING, STEP, NOTIFICATION, COUNT = "nothing", "procedure step", "notification", "count by C-FIND"


def study(folder: Path, images: int) -> tuple[list[FileDataset], list[Path]]:
    made = synthetic.series(
        modality="MR", shape=(images, 16, 16), study_uid=generate_uid(None), series_uid=generate_uid(None)
    )
    return made, synthetic.write(made, folder)


def send(port: int, files: Sequence[Path]) -> None:
    objects = [data_set_of(path) for path in files]
    with associate(port, {(sop_class, (syntax,)) for sop_class, _, syntax, _ in objects}) as assoc:
        for sop_class, uid, _, data in objects:
            status = store(assoc, sop_class, uid, data).Status
            if status != 0x0000:
                raise RuntimeError(f"{uid} was answered {status:04X}")


def notify(port: int, images: Sequence[Dataset]) -> None:
    ds, series = Dataset(), Dataset()
    series.SeriesInstanceUID, series.ReferencedSOPSequence = images[0].SeriesInstanceUID, []
    for image in images:
        one = Dataset()
        one.ReferencedSOPClassUID, one.ReferencedSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
        one.InstanceAvailability, one.RetrieveAETitle = "ONLINE", "PACS"
        series.ReferencedSOPSequence.append(one)
    ds.ReferencedPerformedProcedureStepSequence, ds.StudyInstanceUID = [], images[0].StudyInstanceUID
    ds.ReferencedSeriesSequence = [series]
    with associate(port, [(NOTICE, [ImplicitVRLittleEndian])]) as assoc:
        if assoc.send_n_create(ds, NOTICE, generate_uid())[0].Status != 0x0000:
            raise RuntimeError("the notification was refused")


def waits(folder: Path) -> dict[str, float]:
    """Seconds from the last image to the plan, by StudyInstanceUID, of the series that are complete."""
    query = (
        "SELECT study.study_instance_uid, series.last_received_at, min(audit.at) FROM audit"
        " JOIN study ON study.id = audit.study_id JOIN series ON series.study_id = study.id"
        " WHERE audit.event = 'series complete' GROUP BY study.id"
    )
    with contextlib.closing(sqlite3.connect(f"file:{folder / 'worklist.db'}?mode=ro", uri=True)) as database:
        rows = database.execute(query).fetchall()
    return {uid: (datetime.fromisoformat(at) - datetime.fromisoformat(last)).total_seconds() for uid, last, at in rows}


def run(one: Node, pacs: Orthanc, room: Path, runs: int, images: int, patience: float) -> dict[str, list[float]]:
    sent: dict[str, str] = {}
    for number in range(runs):
        for kind in (NOTHING, STEP, NOTIFICATION, COUNT):
            made, files = study(room / f"{kind}-{number}", images)
            sent[str(made[0].StudyInstanceUID)] = kind
            if kind == COUNT:
                pacs.upload(*files)
                pacs.send("NODE", *pacs.instances(StudyInstanceUID=made[0].StudyInstanceUID))
                continue
            send(one.port, files[:-1])
            if kind == STEP:
                performed(one.port, made)
            send(one.port, files[-1:])
            if kind == NOTIFICATION:
                notify(one.port, made)
    deadline = time.monotonic() + patience
    while len(found := waits(one.storage)) < len(sent):
        if time.monotonic() > deadline:
            raise RuntimeError(f"{len(found)} of {len(sent)} series are complete")
        time.sleep(0.5)
    result: dict[str, list[float]] = {}
    for uid, kind in sent.items():
        result.setdefault(kind, []).append(found[uid])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--images", type=int, default=20, help="per series")
    parser.add_argument("--quiet-period", type=float, default=60.0)
    arguments = parser.parse_args()
    port = free_port()
    source = {"name": "pacs", "ae_title": "PACS", "host": HOST, "port": port, "counts": True}
    receiver = {"quiet_period": arguments.quiet_period, "procedure_steps": True, "availability": True}
    with tempfile.TemporaryDirectory() as folder:
        room = Path(folder)
        with (
            node(room / "node", receiver=receiver, sources=[source]) as one,
            orthanc(room / "pacs", dicom_port=port, modalities={"NODE": ("DICOMAI", HOST, one.port)}) as pacs,
        ):
            one.start("--only", "receiver,planner")
            patience = arguments.quiet_period * 2 + 30
            measured = run(one, pacs, room, arguments.runs, arguments.images, patience)
            one.stop()
    print(
        f"From the last image to the plan, quiet period {arguments.quiet_period:g} s, {arguments.runs} series each, s:"
    )
    print(f"{'announced by':20} {'median':>7} {'spread':>13}")
    for kind, seconds in measured.items():
        spread = f"{min(seconds):.1f}-{max(seconds):.1f}"
        print(f"{kind:20} {statistics.median(seconds):>7.1f} {spread:>13}")


if __name__ == "__main__":
    main()
