"""Priors: which earlier result a new one is compared with, on both databases, and what other readers make of it."""

import json
import secrets
import subprocess
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pydicom
import pytest
import sqlalchemy as sa
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from structlog.testing import capture_logs

from dicomai import bundle
from dicomai.config import FolderDestination
from dicomai.database.deliveries import Deliveries
from dicomai.database.priors import Priors
from dicomai.database.results import FrozenObject
from dicomai.database.tables import KNOWN, Instance, ResultObject, Study, Version, Workitem
from dicomai.database.withdrawals import Withdrawals
from dicomai.database.worklist import Claim
from dicomai.destinations import open_destination
from dicomai.outputs import build, encode, priors
from dicomai.workitem import Kind
from tests import results, synthetic
from tests.arrivals import changed
from tests.beds import Bed, route, write_bundle
from tests.integration.test_outputs_validators import faults, read, run
from tests.rejected import rejection_note

PERSON = {
    "PatientID": "4711",
    "IssuerOfPatientID": "Here",
    "PatientBirthDate": "19500101",
    "PatientName": "Secret^Name",
}
COMPARES = route(prior=True, outputs=("sr",))


def study(day: str, **attributes: Any) -> list[Any]:
    """Make a study of a single image, of which nobody can make a volume."""
    return volume(day, **attributes)[:1]


def volume(day: str, slices: int = 3, **attributes: Any) -> list[Any]:
    return synthetic.series(modality="MR", shape=(slices, 12, 16), **(PERSON | {"StudyDate": day} | attributes))


def take(bed: Bed, *studies: list[Any], by: Any = COMPARES) -> None:
    for images in studies:
        bed.take(images)
    bed.plan(by)


def claim(bed: Bed) -> Claim:
    """Take the next item, as a worker does."""
    found = bed.worklist.claim(Kind.INFERENCE, "test", 60000, 3)
    assert found is not None
    return found


def finish(bed: Bed, *outputs: str) -> None:
    """Finish all items that are due, with objects that nobody reads."""
    while found := bed.worklist.claim(Kind.INFERENCE, "test", 60, 3):
        done = [
            FrozenObject(output, "1.2", generate_uid(), generate_uid(), 9000, f"results/{found.item}/{output}")
            for output in outputs or ("seg", "sr")
        ]
        bed.worklist.finish_inference(found, done, ("pacs",))


def item_of(bed: Bed, images: list[Any]) -> int:
    """Give the first item of a study."""
    (number,) = (row.id for row in bed.rows(Study) if row.study_instance_uid == images[0].StudyInstanceUID)
    return min(row.id for row in bed.items() if row.study_id == number)


def candidates(bed: Bed) -> list[int]:
    """Give the items that a new study, which comes now and has another result already, may be compared with."""
    images = study("20260201")
    take(bed, images)
    finish(bed)
    take(bed, study("20260201", study_uid=images[0].StudyInstanceUID))
    return [one.item for one in Priors(bed.database).candidates(claim(bed))]


def report(bed: Bed) -> Dataset:
    """Give the last report that was made."""
    key = [row.key for row in bed.rows(ResultObject) if row.output == "sr"][-1]
    with bed.store.open(key) as stream:
        return pydicom.dcmread(stream)


def said(bed: Bed) -> str:
    """Give what the last report says first of earlier studies; it names the one that it refers to."""
    ds = report(bed)
    (section,) = (i for i in ds.ContentSequence if i.ConceptNameCodeSequence[0].CodeValue == "111424")
    return str(section.ContentSequence[0].TextValue)


def test_only_results_of_the_same_patient_route_and_model_are_priors(bed: Bed) -> None:
    """Each of these but the first would be one, but for one thing."""
    good = study("20251103")
    others = [
        study("20251201", **{keyword: value})
        for keyword, value in {
            "PatientID": "4712", "IssuerOfPatientID": "", "PatientBirthDate": "19500102", "PatientName": "Other^Name",
        }.items()
    ]  # fmt: skip
    take(bed, good, *others)
    finish(bed)
    take(bed, study("20251204"))
    finish(bed, "seg")  # no report
    take(bed, study("20251205"), by=route("another", prior=True))
    finish(bed)
    bed.bundles["second"] = bundle.load(write_bundle(bed.folder / "models" / "second"))
    take(bed, study("20251206"), by=route(model="second", prior=True))
    finish(bed)
    open_still = study("20251207")
    take(bed, open_still)
    claim(bed)
    assert candidates(bed) == [item_of(bed, good)]


@pytest.mark.parametrize("empty", ["PatientID", "PatientBirthDate"])
def test_without_id_or_birth_date_nobody_has_priors(sqlite_bed: Bed, empty: str) -> None:
    take(sqlite_bed, study("20251103", **{empty: ""}))
    finish(sqlite_bed)
    take(sqlite_bed, study("20260201", **{empty: ""}))
    assert Priors(sqlite_bed.database).candidates(claim(sqlite_bed)) == []


def test_what_no_longer_holds_is_no_prior(bed: Bed) -> None:
    good, recalled, rejected = (study(f"20250{month}01") for month in range(1, 4))
    doubtful, grown = volume("20250401"), volume("20250501")
    take(bed, good, recalled, rejected, doubtful, grown[:1])
    finish(bed)
    Withdrawals(bed.database).schedule(item_of(bed, recalled), "somebody", "It was wrong.")
    take(bed, [rejection_note(rejected[:1])], [changed(doubtful[0], PatientID="ANOTHER")], grown[1:])
    bed.take([changed(doubtful[1], StudyDescription="Of whom?")])  # the newest is the patient's again
    while bed.worklist.claim(Kind.INFERENCE, "another", 60000, 3):
        pass  # the new result of the one that has grown is under way
    assert candidates(bed) == [item_of(bed, good)]


def shows_another(bed: Bed, item: int, what: str = "PatientID") -> int:
    """Hold the delivery of an item's result, as its destination shows the study as another patient's; gives it."""
    (study_id,) = (row.study_id for row in bed.items() if row.id == item)
    held = bed.worklist.claim(Kind.DELIVERY, "sender", 60, 3)
    assert held is not None
    assert held.study_id == study_id
    assert Deliveries(bed.database).mismatched(held, (60.0, 600.0), f"It shows another {what}.")
    return held.item


def test_a_study_that_a_destination_shows_as_anothers_is_nobodys(bed: Bed) -> None:
    """Until somebody has vouched for it; that its delivery is canceled settles nothing."""
    before, now = study("20251103"), study("20260201")
    take(bed, before)
    finish(bed)
    prior = item_of(bed, before)
    delivery = shows_another(bed, prior)
    take(bed, now)
    new, look = claim(bed), Priors(bed.database).candidates
    assert look(new) == []
    bed.overview.release(delivery, "somebody")
    assert [one.item for one in look(new)] == [prior]
    assert shows_another(bed, prior, "PatientName") == delivery  # for which nobody has vouched
    bed.overview.cancel(delivery, "somebody")
    assert look(new) == []
    bed.overview.retry(delivery, "somebody")
    assert look(new) == []
    sent = bed.worklist.claim(Kind.DELIVERY, "sender", 60, 3)
    assert sent is not None
    bed.worklist.finish_delivery(sent)  # it is shown as this patient's now, or was vouched for
    assert [one.item for one in look(new)] == [prior]


def test_nor_is_anything_compared_with_a_study_that_is_shown_as_anothers_itself(sqlite_bed: Bed) -> None:
    bed, now = sqlite_bed, study("20260201")
    take(bed, now)
    finish(bed)
    shows_another(bed, item_of(bed, now))
    take(bed, study("20251103"))
    finish(bed)
    take(bed, study("20260201", study_uid=now[0].StudyInstanceUID))
    assert Priors(bed.database).candidates(claim(bed)) == []


def test_a_corrected_patient_takes_the_studies_along(bed: Bed) -> None:
    """A study that turns out to be another patient's is no prior any more; one that turns out to be this one's is."""
    lost, won = study("20250101"), study("20250201", PatientID="UNKNOWN")
    take(bed, lost, won)
    finish(bed)
    bed.take([changed(one, PatientID="4712") for one in lost])
    bed.take([changed(one, PatientID="4711") for one in won])
    bed.plan(COMPARES)
    assert candidates(bed) == [item_of(bed, won)]


def test_the_images_of_a_patient_are_found_by_an_index(bed: Bed) -> None:
    with bed.database.read() as session:
        if bed.url.startswith("postgresql"):
            session.execute(sa.text("SET LOCAL enable_seqscan = off"))  # there is nothing in the table to be worth it
        of_person = sa.select(Version.id).where(sa.text(KNOWN), Version.patient_id == "4711")
        query = of_person.compile(session.get_bind(), compile_kwargs={"literal_binds": True})
        explain = "EXPLAIN" if bed.url.startswith("postgresql") else "EXPLAIN QUERY PLAN"
        plan = "\n".join(str(row) for row in session.execute(sa.text(f"{explain} {query}")))
    assert "ix_version_patient" in plan


def test_an_id_beyond_all_measure_is_kept_and_finds_nothing(bed: Bed) -> None:
    """An index of PostgreSQL takes no value of some kilobytes, which are no reason to lose an image."""
    take(bed, study("20251103"))
    finish(bed)
    take(bed, study("20260201"))
    with bed.database.write() as session:
        session.execute(sa.update(Version).values(patient_id=secrets.token_hex(8000)))
    assert Priors(bed.database).candidates(claim(bed)) == []


def test_the_last_result_before_is_compared_with(sqlite_bed: Bed) -> None:
    bed = sqlite_bed
    before, now = volume("20251103"), volume("20260201")
    worker = bed.worker()
    take(bed, before)
    assert worker.step()
    take(bed, study("20240101"), study("20260301"), study("", AcquisitionDate=""), study("20260201"))
    finish(bed)
    take(bed, now)
    with capture_logs() as logs:
        assert worker.step()
    assert said(bed).startswith("Body: Volume ")
    assert " on 2026-02-01; " in said(bed)
    assert said(bed).endswith(" on 2025-11-03 (no difference).")
    (other,) = report(bed).PertinentOtherEvidenceSequence
    assert (other.StudyInstanceUID, report(bed).StudyInstanceUID) == (
        before[0].StudyInstanceUID,
        now[0].StudyInstanceUID,
    )
    assert not [value for value in PERSON.values() if value != "Here" and value in str(logs)]


def recall(bed: Bed, images: list[Any]) -> None:
    Withdrawals(bed.database).schedule(item_of(bed, images), "somebody", "It was wrong.")


def doubt(bed: Bed, images: list[Any]) -> None:
    with bed.database.write() as session:
        session.execute(sa.update(Workitem).where(Workitem.id == item_of(bed, images)).values(mismatch="Another's."))


def lose(bed: Bed, images: list[Any]) -> None:
    with bed.database.read() as session:
        (key,) = session.scalars(
            sa.select(Version.key).join(Instance).where(Instance.sop_instance_uid == images[-1].SOPInstanceUID)
        )
    (bed.folder / "storage" / key).unlink()


def delivered(bed: Bed, images: list[Any], folder: Path) -> Dataset:
    """Deliver all that waits into a folder, and give the report of a study."""
    there = open_destination(FolderDestination(type="folder", name="pacs", path=folder), calling_ae="X", timeout=5.0)
    lane = bed.delivery(there)
    while lane.step():
        pass
    made = [pydicom.dcmread(path) for path in folder.rglob("*.dcm")]
    (sent,) = (ds for ds in made if ds.StudyInstanceUID == images[0].StudyInstanceUID)
    return sent


def test_what_still_holds_before_the_first_send_is_sent_as_it_was(sqlite_bed: Bed, tmp_path: Path) -> None:
    """Also where images of the earlier study came again meanwhile, which say the same of whose they are."""
    bed, before, now = sqlite_bed, volume("20251103"), volume("20260201")
    worker = bed.worker()
    for images in (before, now):
        take(bed, images)
        assert worker.step()
    take(bed, [changed(before[0], StudyDescription="The same pixels")])
    made = report(bed)
    assert made.PertinentOtherEvidenceSequence[0].StudyInstanceUID == before[0].StudyInstanceUID
    assert encode(delivered(bed, now, tmp_path / "out")) == encode(made)


@pytest.mark.parametrize(
    "change",
    [
        recall,
        doubt,
        lambda bed, images: take(bed, [changed(one, PatientID="4712") for one in images[:3]]),
        lambda bed, images: take(bed, [changed(one, StudyDate="20251104") for one in images[:3]]),
        lambda bed, images: take(bed, [rejection_note(images[:1])]),
        lambda bed, images: take(bed, images[3:]),
    ],
    ids=["recalled", "shown as another's", "another's", "of another day", "rejected", "of more images"],
)
def test_what_no_longer_holds_before_the_first_send_is_not_sent(
    sqlite_bed: Bed, tmp_path: Path, change: Callable[[Bed, list[Any]], None]
) -> None:
    bed, now = sqlite_bed, volume("20260201")
    before = volume("20251103", slices=4)
    worker = bed.worker()
    take(bed, before[:3])
    assert worker.step()
    first = bed.worklist.claim(Kind.DELIVERY, "sender", 60000, 3)
    assert first is not None
    take(bed, now)
    assert worker.step()
    assert " on 2025-11-03 (" in said(bed)
    change(bed, before)
    sent = delivered(bed, now, tmp_path / "out")
    (section,) = (i for i in sent.ContentSequence if i.ConceptNameCodeSequence[0].CodeValue == "111424")
    assert section.ContentSequence[0].TextValue.startswith("Not compared with an earlier result: the one that was")
    assert str(before[0].StudyInstanceUID) not in str(sent)


def test_an_earlier_study_that_cannot_be_read_bars_no_comparison_with_another(sqlite_bed: Bed) -> None:
    bed, lost, before = sqlite_bed, study("20190101"), volume("20251103")
    worker = bed.worker()
    take(bed, lost, by=COMPARES)
    finish(bed)
    take(bed, before)
    assert worker.step()
    lose(bed, lost)
    take(bed, volume("20260201"))
    with capture_logs() as logs:
        assert worker.step()
    (section,) = (i for i in report(bed).ContentSequence if i.ConceptNameCodeSequence[0].CodeValue == "111424")
    first, second = (item.TextValue for item in section.ContentSequence[:2])
    assert first.startswith("Not looked at: results of other studies whose images cannot be read (1)")
    assert second.endswith(" on 2025-11-03 (no difference).")
    assert [line["event"] for line in logs if line["log_level"] == "warning"] == ["an earlier result cannot be read"]


def test_a_bundle_that_was_edited_under_the_same_version_is_another(sqlite_bed: Bed) -> None:
    bed = sqlite_bed
    take(bed, volume("20251103"))
    assert bed.worker().step()
    file = bed.folder / "models" / "tiny" / "configs" / "inference.json"
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), "note": "another threshold"}))
    bed.bundles["tiny"] = bundle.load(bed.folder / "models" / "tiny")
    take(bed, volume("20260201"))
    assert bed.worker().step()
    assert "with other settings of it: they may measure differently" in said(bed)


def test_why_there_is_no_comparison_is_said(sqlite_bed: Bed) -> None:
    bed = sqlite_bed
    worker = bed.worker()
    for images, why in (
        (volume("20250101"), "this node has none of this route for this patient."),
        (volume("", AcquisitionDate=""), "the study does not say its date."),
        (volume("20250102", PatientID=""), "the images lack Patient ID or birth date"),
    ):
        take(bed, images)
        assert worker.step()
        assert said(bed).startswith(f"Not compared with an earlier result: {why}")
    two = study("20250601")
    take(bed, two, study("20250601", study_uid=two[0].StudyInstanceUID))
    finish(bed)
    take(bed, volume("20250701"))
    assert worker.step()
    assert said(bed).endswith("there are 2 of 2025-06-01, and it is not known which is meant.")


def test_an_earlier_report_that_is_gone_costs_the_comparison_and_not_the_result(sqlite_bed: Bed) -> None:
    take(sqlite_bed, study("20250101"))
    finish(sqlite_bed)  # its objects were never written
    take(sqlite_bed, volume("20250201"))
    with capture_logs() as logs:
        assert sqlite_bed.worker().step()
    assert said(sqlite_bed).startswith("Not compared with an earlier result: one is known and cannot be read")
    assert [line["event"] for line in logs if line["log_level"] == "warning"] == ["an earlier result cannot be read"]


def test_nothing_is_compared_unless_the_route_says_so_and_then_it_is_other_work(sqlite_bed: Bed) -> None:
    images, plain = volume("20250101"), route(outputs=("sr",))
    take(sqlite_bed, images, by=plain)
    assert sqlite_bed.worker().step()
    assert "111424" not in str(report(sqlite_bed))
    again = [changed(images[0], StudyDescription="The same pixels")]
    take(sqlite_bed, again, by=plain)
    assert len(sqlite_bed.items()) == 1
    take(sqlite_bed, [changed(images[0], StudyDescription="And again")])  # by a route that compares
    assert len(sqlite_bed.items()) == 2


def test_other_readers_find_no_fault_in_a_comparison(tmp_path: Path) -> None:
    images = tmp_path / "images"
    synthetic.write(synthetic.series(shape=(4, 8, 8), StudyDate="20260201"), images)
    sources = results.sources(read(images))
    earlier = build("sr", results.findings(results.ball((4, 8, 8)), value=1263.0), sources, results.provenance())
    assert earlier is not None
    earlier.StudyInstanceUID, earlier.SOPInstanceUID, earlier.SeriesInstanceUID = (generate_uid() for _ in range(3))
    prior = priors.read(earlier, date(2025, 11, 3), date(2026, 2, 1))
    ds = build("sr", results.findings(results.ball((4, 8, 8))), sources, results.provenance(prior=prior))
    assert ds is not None
    path, metadata = tmp_path / "sr.dcm", tmp_path / "report.json"
    path.write_bytes(encode(ds))
    assert faults(path, images) == set()
    run("tid1500reader", "--inputDICOM", path, "--outputMetadata", metadata)
    (group,) = json.loads(metadata.read_text(encoding="utf-8"))["Measurements"]
    assert [item["value"] for item in group["measurementItems"]] == ["1292.12"]
    dumped = subprocess.run(["/usr/bin/dsrdump", "+Pl", path], capture_output=True, text=True, check=True)
    assert dumped.stderr == ""
    assert "1292 cm3 on 2026-02-01; 1263 cm3 on 2025-11-03 (+29.1 cm3, +2.3 %)" in dumped.stdout
    assert "Prior report for current patient" in dumped.stdout
