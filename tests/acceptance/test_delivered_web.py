"""Results to a real Orthanc by STOW-RS, completed by QIDO-RS."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from dicomai.config import DicomwebDestination
from dicomai.database.tables import Acceptance, ResultObject
from dicomai.destinations import Accepted, Dicomweb, Outgoing
from dicomai.errors import NoAssociationError
from dicomai.workitem import State
from tests.acceptance.orthanc import Orthanc, orthanc
from tests.beds import Bed, route
from tests.synthetic import series


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[Bed]:
    """A result that waits to be delivered."""
    made = Bed(tmp_path, f"sqlite:///{tmp_path / 'worklist.db'}")
    with contextlib.closing(made):
        made.take(series(modality="MR", shape=(3, 12, 16)))
        made.plan(route(destinations=("pacs",)))
        assert made.worker().step()
        yield made


def web_of(pacs: Orthanc) -> Dicomweb:
    there = DicomwebDestination(type="dicomweb", name="pacs", url=pacs.dicomweb, verify="qido", verify_timeout=60)
    return Dicomweb(there, timeout=20.0)


def test_orthanc_has_a_result_byte_for_byte_and_what_it_loses_is_sent_again(
    bed: Bed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen = [bed.store.get(one.key) for one in bed.rows(ResultObject)]
    with orthanc(tmp_path / "pacs") as pacs:
        destination = web_of(pacs)
        assert destination.ask().remark == ""
        send = destination.send

        def lose(objects: Sequence[Outgoing], accepted: Accepted) -> None:
            send(objects, accepted)
            (lost,) = pacs.instances(Modality="SEG")
            pacs.request(f"/instances/{lost}", method="DELETE")

        monkeypatch.setattr(destination, "send", lose)
        assert bed.delivery(destination).step()
        assert [bed.items("delivery")[0].state, len(pacs.instances())] == [State.IN_PROGRESS, 1]

        for _ in range(8):  # what is not shown is asked for again, then counts as lost and is sent again
            bed.turn(120)
            bed.delivery(web_of(pacs)).step()
        assert bed.items("delivery")[0].state == State.COMPLETED
        assert {row.status for row in bed.rows(Acceptance)} == {0x0000}
        assert sorted(map(pacs.file, pacs.instances())) == sorted(frozen)
    with pytest.raises(NoAssociationError):
        destination.reach()
