"""A PACS that sends everything that it gets back to the node: no loop."""

import time
from pathlib import Path

import pytest

from tests.acceptance import tools
from tests.acceptance.node import Node, node
from tests.acceptance.orthanc import orthanc
from tests.dimse import free_port

pytestmark = pytest.mark.timeout(300)

QUIET_SECONDS = 1.0

SEND_ALL_BACK = """
function OnStoredInstance(instanceId, tags, metadata, origin)
  SendToModality(instanceId, 'DICOMAI')
end
"""

ROUTE = {
    "name": "everything",
    "match": {"Modality": ".*"},
    "exclude": {},
    "outside_validated": "report",
    "destinations": ["pacs"],
}


def test_results_that_come_back_make_no_work(tmp_path: Path, weights: Path, demo_study: tuple[Path, ...]) -> None:
    (tmp_path / "all.lua").write_text(SEND_ALL_BACK, encoding="utf-8")
    port = free_port()
    entry = {"name": "pacs", "type": "dicom", "ae_title": "PACS", "host": "127.0.0.1", "port": port}
    with node(tmp_path / "node", weights, routes=[ROUTE], destinations=[entry]) as one, orthanc(
        tmp_path / "pacs", dicom_port=port, LuaScripts=[str(tmp_path / "all.lua")],
        modalities={"DICOMAI": ("DICOMAI", "127.0.0.1", one.port)},
    ) as pacs:  # fmt: skip
        one.start()
        assert tools.dcmsend(port, *demo_study, called="PACS").returncode == 0
        one.wait_for(lambda _: len(returned(one)) == 2, 120)
        calm(one)
        before = one.worklist()
        assert sorted((item["kind"], item["state"]) for item in before) == [
            ("delivery", "COMPLETED"), ("inference", "COMPLETED"), ("series", "NOT ROUTED"), ("series", "NOT ROUTED"),
        ]  # fmt: skip
        assert {item["reason"] for item in before if item["kind"] == "series"} == {"Made by this node."}
        (inference,) = [item for item in before if item["kind"] == "inference"]
        assert [given["instances"] for given in one.show(inference["id"])["inputs"]] == [len(demo_study)]

        account = pacs.send("DICOMAI")  # and all of it once more
        assert (account["InstancesCount"], account["FailedInstancesCount"]) == (len(demo_study) + 2, 0)
        calm(one)
        assert one.worklist() == before
        assert pacs.arrivals() == len(demo_study) + 2
        assert len(pacs.instances(Modality="SEG")) == len(pacs.instances(Modality="SR")) == 1
        one.stop()


def returned(one: Node) -> list[str]:
    """Name the series that came and on which nothing runs."""
    return [entry.series for entry in one.entries("series") if entry.state == "NOT ROUTED"]


def calm(one: Node) -> None:
    """Give it the time in which it would find new work, several times over, and see that nothing is under way."""
    time.sleep(4 * QUIET_SECONDS)
    one.wait_for(lambda entries: all(e.state in {"COMPLETED", "CANCELED", "NOT ROUTED"} for e in entries))
