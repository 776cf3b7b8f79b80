"""The node killed with SIGKILL in the middle of receiving, inferring and delivering: nothing is lost, nothing doubled.

One study goes through all three ends of the node, of one kind: the whole process group, the parent alone (its
children have to notice), or the one process that has the work (the parent has to start another).
"""

from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest

from tests.acceptance import tools
from tests.acceptance.node import Node, node, port_is_free, until
from tests.acceptance.orthanc import Orthanc, orthanc
from tests.acceptance.wire import Wire, wire

pytestmark = pytest.mark.timeout(420)

ROUTE = {
    "name": "pd",
    "match": {"SeriesDescription": "FSE PD.*"},
    "outside_validated": "report",
    "destinations": ["pacs"],
}


@pytest.mark.parametrize("kind", ["group", "parent", "process"])
def test_killed_at_every_stage_it_ends_with_one_seg_and_one_sr(
    kind: str, tmp_path: Path, weights: Path, demo_study: tuple[Path, ...]
) -> None:
    with orthanc(tmp_path / "pacs") as pacs, wire(pacs.dicom_port) as outward:
        pacs_entry = {"name": "pacs", "type": "dicom", "ae_title": "PACS", "host": "127.0.0.1", "port": outward.port}
        with node(
            tmp_path / "node", weights, routes=[ROUTE], destinations=[pacs_entry],
            worker={"lease": 20.0}, delivery={"first_wait": 1.0},
        ) as one, wire(one.port) as inward:  # fmt: skip
            one.start()
            receiving(one, inward, kind, demo_study)
            assert pacs.arrivals() == 0
            inferring(one, kind)
            assert pacs.arrivals() == 0
            delivering(one, outward, pacs, kind)
            one.wait_for(lambda entries: [e.state for e in entries if e.kind == "delivery"] == ["COMPLETED"])
            judge(one, pacs, tmp_path, len(demo_study))
            one.stop()


def receiving(one: Node, inward: Wire, kind: str, files: tuple[Path, ...]) -> None:
    """Kill it in the middle of an instance, the tenth or so of twenty; then send what was not acknowledged."""
    inward.act_after = sum(path.stat().st_size for path in files) // 2
    inward.act = killer(one, kind, one.kill_receivers)
    before = one.receivers()
    sent = tools.dcmsend(inward.port, *files)
    assert sent.returncode != 0, sent.stdout
    assert inward.acted.wait(30)
    acknowledged = {uid for uid, status in inward.statuses().items() if status == 0x0000}
    assert 5 <= len(acknowledged) <= 15, sent.stdout + one.log
    assert len(acknowledged) == sent.stdout.count("Received C-STORE Response (Success)")
    revive(one, kind, lambda: len(one.receivers() - before) == len(before))
    incoming = one.storage / "incoming" / "receiver"
    until(lambda: not any(incoming.iterdir()), 30, lambda: f"not cleared up: {list(incoming.iterdir())}\n{one.log}")
    data_sets = inward.data_sets()
    for uid in acknowledged:
        assert one.stored(uid) == [data_sets[uid]], uid
    (waiting,) = one.entries()
    assert waiting.state == "RECEIVING", "half a series is not taken for a whole one"
    rest = [path for path in files if str(pydicom.dcmread(path).SOPInstanceUID) not in acknowledged]
    assert tools.dcmsend(one.port, *rest).returncode == 0


def inferring(one: Node, kind: str) -> None:
    """Kill it when the network is at work."""
    one.wait_for(lambda entries: any(e.state == "IN PROGRESS" and e.progress >= 10 for e in entries))
    killer(one, kind, lambda: one.kill_holder("worker"))()
    (item,) = one.entries("inference")
    assert (item.state, item.attempt) == ("IN PROGRESS", 1), "the moment was missed"
    assert one.entries("delivery") == []
    revive(one, kind, lambda: one.entries("inference")[0].attempt == 2)


def delivering(one: Node, outward: Wire, pacs: Orthanc, kind: str) -> None:
    """Kill it when the PACS has the SEG and it does not know, or in the middle of the SEG."""
    if kind == "process":
        outward.act_after, outward.act = 20_000, lambda: one.kill_holder("delivery")
        until(outward.acted.is_set, 90, lambda: one.log)
        assert pacs.arrivals() == 0, "the moment was missed"
    else:
        outward.hold_answers = True
        pacs.wait_for(1, Modality="SEG")
        killer(one, kind, lambda: None)()
    (item,) = one.entries("delivery")
    assert item.state == "IN PROGRESS", "the moment was missed"
    assert (item.attempt, item.progress) == (1, 0)
    outward.let_go()
    revive(one, kind, lambda: one.entries("delivery")[0].attempt == 2)


def judge(one: Node, pacs: Orthanc, folder: Path, slices: int) -> None:
    """Look at the worklist and at the PACS as people do."""
    inference, delivery = one.worklist()
    assert (inference["kind"], inference["state"], inference["attempt"]) == ("inference", "COMPLETED", 2)
    assert (delivery["kind"], delivery["state"], delivery["attempt"]) == ("delivery", "COMPLETED", 2)
    shown = one.show(inference["id"])
    assert [given["instances"] for given in shown["inputs"]] == [slices]
    assert pacs.arrivals() == 2
    results = {str(ds.Modality): ds for ds in pacs.datasets()}
    assert sorted(results) == ["SEG", "SR"]
    assert {str(ds.SOPInstanceUID) for ds in results.values()} == {o["sop_instance_uid"] for o in shown["objects"]}
    results["SR"].save_as(folder / "sr.dcm")
    assert tools.volume_of(folder / "sr.dcm") == pytest.approx(1290, rel=0.03)


def killer(one: Node, kind: str, process: Callable[[], None]) -> Callable[[], None]:
    """Choose what is killed."""
    return {"group": one.kill, "parent": one.kill_parent, "process": process}[kind]


def revive(one: Node, kind: str, again: Callable[[], bool]) -> None:
    """Start the node again, where nothing of it may be left on the port; or see it start its process again."""
    if kind != "process":
        assert port_is_free(one.port)
        one.start()
    until(again, 60, lambda: one.log)
