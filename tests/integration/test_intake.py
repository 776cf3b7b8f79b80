"""The way in, on real files and both databases: nothing acknowledged is lost, nothing is there twice."""

import dataclasses
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import BinaryIO

import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
)
from structlog.testing import capture_logs

from dicomai import header
from dicomai.association import AssociationEnd
from dicomai.config import Settings
from dicomai.database.index import Arrival, Recorded, SeriesState
from dicomai.database.recorder import Recorder
from dicomai.database.tables import (
    Association,
    AssociationSeries,
    Audit,
    Instance,
    Result,
    ResultObject,
    Series,
    Study,
    Version,
)
from dicomai.errors import NotAcceptedError, StoreError, UnreadableError
from dicomai.filemeta import FileMeta
from dicomai.intake import Intake
from dicomai.roles import _clear_up_after_others, locked
from dicomai.store import Store
from dicomai.study import Identity
from tests import stored
from tests.arrivals import assert_sound, changed, ct, cut_power, digests, repixeled
from tests.beds import QUIET, Bed, announced, as_received, parts, parts_of
from tests.synthetic import encode, plain

ROOT = Path(__file__).parents[2]


def test_a_study_is_filed_and_indexed(bed: Bed) -> None:
    images = ct()
    association = bed.intake.open_association("CT01", "10.0.0.1")
    assert bed.take(images, association) == [Recorded.NEW] * 3
    (study,), (one,) = bed.rows(Study), bed.rows(Series)
    assert (study.study_instance_uid, one.series_instance_uid) == (
        images[0].StudyInstanceUID,
        images[0].SeriesInstanceUID,
    )
    assert (one.modality, one.description, one.state) == ("CT", "Synthetic CT", SeriesState.RECEIVING)
    assert {i.sop_instance_uid for i in bed.rows(Instance)} == {ds.SOPInstanceUID for ds in images}
    for ds, version in zip(images, bed.rows(Version), strict=True):
        assert parts_of(bed.store.get(version.key))[1] == parts(ds)[1]
        assert version.key.startswith(f"instances/{study.study_instance_uid}/{one.series_instance_uid}/")
        assert version.association_id == association
    bed.intake.close_association(association, AssociationEnd.RELEASED)
    assert_sound(bed)


def test_the_same_instance_twice_is_one_row_and_one_file(bed: Bed) -> None:
    (image,) = ct(1)
    assert bed.take([image, image]) == [Recorded.NEW, Recorded.SAME]
    revision = bed.series(image.SeriesInstanceUID).revision
    # Another sender writes other file meta information round the same data set.
    with as_received():
        meta, data = announced(parts(image))
        assert bed.intake.accept(dataclasses.replace(meta, source_ae="ANOTHER"), data, None) is Recorded.SAME
    assert len(bed.rows(Version)) == 1
    assert bed.series(image.SeriesInstanceUID).revision == revision  # no new quiet period
    assert_sound(bed)


def test_the_same_bytes_in_another_transfer_syntax_are_another_content(bed: Bed) -> None:
    (image,) = ct(1)
    wrong, right = changed(image), changed(image)
    for ds, syntax in ((wrong, JPEGLSLossless), (right, JPEG2000Lossless)):
        ds.file_meta.TransferSyntaxUID = syntax
        ds.PixelData = encapsulate([b"codestream"])
        ds["PixelData"].is_undefined_length = True
    assert parts(wrong)[1] == parts(right)[1]
    assert bed.take([wrong, right])[1] is not Recorded.SAME
    assert len(bed.rows(Version)) == 2
    assert_sound(bed)


def test_another_header_is_an_update_and_the_old_file_is_kept(bed: Bed) -> None:
    (image,) = ct(1)
    newer = changed(image, PatientName="Corrected^Name")
    assert bed.take([image, newer]) == [Recorded.NEW, Recorded.UPDATED]
    assert [v.patient_name for v in bed.rows(Version)] == ["Synthetic^Sample", "Corrected^Name"]
    assert bed.worklist.doubt(1) == ""
    # The PACS takes it back: the first file counts again, without a third one.
    assert bed.take([image]) == [Recorded.UPDATED]
    old, new = bed.rows(Version)
    assert old.received_at > new.received_at
    assert len(bed.rows(Instance)) == 1
    assert_sound(bed)


def test_other_pixels_are_a_conflict_that_is_kept_and_flagged(bed: Bed) -> None:
    (image,) = ct(1)
    with capture_logs() as logs:
        assert bed.take([image, repixeled(image)]) == [Recorded.NEW, Recorded.CONFLICT]
    assert bed.rows(Instance)[0].conflict == f"SOP Instance {image.SOPInstanceUID} came again with other pixels."
    assert [v.conflicting for v in bed.rows(Version)] == [False, True]
    assert "came again with other pixels" in bed.worklist.doubt(1)
    assert [row.event for row in bed.rows(Audit)] == ["conflict"]
    assert [line["log_level"] for line in logs] == ["info", "warning"]
    assert "Synthetic^Sample" not in str(logs)
    # The same contradiction again says nothing new.
    assert bed.take([repixeled(image)]) == [Recorded.SAME]
    assert_sound(bed)


def test_pixels_that_cannot_be_compared_are_a_conflict(bed: Bed) -> None:
    (image,) = ct(1)
    broken = changed(image, PatientName="Other^One")
    head, data = parts(broken)
    with as_received():
        bed.intake.accept(*announced(parts(image)), None)
        assert bed.intake.accept(*announced((head, data[:-7])), None) is Recorded.CONFLICT
    assert_sound(bed)


@pytest.mark.parametrize("level", ["StudyInstanceUID", "SeriesInstanceUID"])
def test_an_instance_known_elsewhere_is_a_conflict_for_both_sides(bed: Bed, level: str) -> None:
    images = ct(2)
    moved = changed(images[0], **{level: "1.2.3.4.5"})
    assert bed.take([*images, moved]) == [Recorded.NEW, Recorded.NEW, Recorded.CONFLICT]
    for study in bed.rows(Study):
        assert "is known under another series or study" in bed.worklist.doubt(study.id)
    assert len(bed.rows(Instance)) == 2
    assert_sound(bed)


def test_a_series_known_under_another_study_is_a_doubt_on_both_sides(bed: Bed) -> None:
    one = ct(2, series_uid="1.2.3")
    other = ct(2, series_uid="1.2.3")
    assert one[0].StudyInstanceUID != other[0].StudyInstanceUID
    bed.take([*one, *other])
    assert len(bed.rows(Study)) == 2
    for study in bed.rows(Study):
        assert bed.worklist.doubt(study.id).startswith("Series 1.2.3 is known under another study too.")


def test_patients_that_differ_within_a_study_are_a_doubt_that_names_no_values(bed: Bed) -> None:
    images = ct(2, PatientID=lambda z: f"ID{z}", PatientBirthDate=lambda z: f"1970010{z + 1}")
    bed.take(images)
    doubt = bed.worklist.doubt(1)
    assert "disagree in PatientBirthDate, PatientID" in doubt
    assert "ID0" not in doubt
    assert "1970" not in doubt


def test_a_name_with_trailing_carets_or_padding_is_the_same_name(bed: Bed) -> None:
    bed.take(
        ct(3, PatientName=lambda z: ("Doe^Jane", "Doe^Jane^^", "Doe^Jane^^^ ")[z], PatientID=lambda z: "7" + " " * z)
    )
    assert bed.worklist.doubt(1) == ""


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"])
@pytest.mark.parametrize("uid", ["../../../../etc/x", "..", "1.2/../../3", "", "1" * 64 + ".1", "1.2\\1.3"])
def test_what_is_no_uid_is_refused_and_leaves_nothing(sqlite_bed: Bed, keyword: str, uid: str) -> None:
    # What is announced agrees with what is sent: nothing but the UID itself is wrong.
    (image,) = ct(1, **{keyword: "1.99.1"})
    value = uid.encode() + b"\0" * (len(uid) % 2)
    data = parts(image)[1].replace(b"UI\x06\x001.99.1", b"UI" + len(value).to_bytes(2, "little") + value)
    sop = (uid or "1.2") if keyword == "SOPInstanceUID" else image.SOPInstanceUID
    meta = FileMeta(CTImageStorage, sop, ExplicitVRLittleEndian, "CT01")
    with as_received(), pytest.raises((UnreadableError, NotAcceptedError), match=keyword):
        sqlite_bed.intake.accept(meta, (data,), None)
    assert sqlite_bed.rows(Study) == []
    assert sqlite_bed.files("") == set()


def test_a_data_set_of_another_instance_than_announced_is_refused(sqlite_bed: Bed) -> None:
    one, other = ct(2)
    with as_received(), pytest.raises(NotAcceptedError, match="SOPInstanceUID is not the one that was announced"):
        sqlite_bed.intake.accept(*announced((parts(one)[0], parts(other)[1])), None)
    assert sqlite_bed.files("") == set()


@pytest.mark.filterwarnings("ignore:(Expected .* VR, but found|End of file)")  # pydicom's own remark on junk
@pytest.mark.parametrize("junk", [b"", b"\x00" * 300, b"DICM" * 50, b"\xff" * 1000])
def test_junk_is_refused_and_leaves_nothing(sqlite_bed: Bed, junk: bytes) -> None:
    (image,) = ct(1)
    with as_received(), pytest.raises(UnreadableError):
        sqlite_bed.intake.accept(*announced((parts(image)[0], junk)), None)
    assert sqlite_bed.files("") == set()


def test_a_deflated_data_set_that_breaks_off_is_refused(sqlite_bed: Bed) -> None:
    (image,) = ct(1)
    image.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    head, data = parts(image)
    with as_received(), pytest.raises(UnreadableError):
        sqlite_bed.intake.accept(*announced((head, data[: len(data) // 2])), None)
    assert sqlite_bed.files("") == set()


def test_nul_characters_in_names_are_stored(bed: Bed) -> None:
    (image,) = ct(1, SeriesDescription="T1 axial")
    head, data = parts(image)
    data = data.replace(b"Synthetic^Sample", b"Synth\0tic^Sample").replace(b"T1 axial", b"T1\0axial")
    with as_received():
        assert bed.intake.accept(*announced((head, data)), None) is Recorded.NEW
    assert bed.rows(Series)[0].description == "T1axial"
    assert_sound(bed)


def test_text_that_no_database_can_write_is_refused_and_leaves_nothing(sqlite_bed: Bed) -> None:
    (image,) = ct(1)
    head, data_set = parts(image)
    # Half a character, by an encoding that the library takes since Python knows it.
    character_set = struct.pack("<HH2sH", 0x0008, 0x0005, b"CS", 6) + b"utf_7 "
    name = struct.pack("<HH2sH", 0x0010, 0x0010, b"PN", 6) + b"+3/8-^ "[:6]
    start = data_set.index(struct.pack("<HH2s", 0x0010, 0x0010, b"PN"))
    end = start + 8 + int.from_bytes(data_set[start + 6 : start + 8], "little")
    bent = (head, character_set + data_set[:start] + name + data_set[end:])
    with as_received(), pytest.raises(UnreadableError, match="character set"):
        sqlite_bed.intake.accept(*announced(bent), None)
    assert sqlite_bed.files("") - {"worklist.db"} == set()


def test_deflated_data_sets_are_inflated_one_at_a_time(sqlite_bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    images = ct(3)
    for image in images:
        image.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    running, most, inflate = 0, 0, header._inflated

    def counted(stream: BinaryIO) -> BinaryIO:
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.05)
        running -= 1
        return inflate(stream)

    monkeypatch.setattr(header, "_inflated", counted)
    with as_received():
        threads = [
            threading.Thread(target=sqlite_bed.intake.accept, args=(*announced(parts(image)), None)) for image in images
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(sqlite_bed.rows(Instance)) == 3
    assert most == 1


def test_one_that_cannot_be_recorded_fails_nobody_else_of_its_group(bed: Bed) -> None:
    first, *others = (arrival(number) for number in range(4))
    recorder = Recorder(bed.database)
    recorder.record(first, None, 60.0)
    whose = dataclasses.replace(first.identity, patient_name="half a character \udfff")
    others[1] = dataclasses.replace(others[1], identity=whose)
    outcomes: dict[str, str] = {}

    def record(one: Arrival) -> None:
        try:
            outcomes[one.key] = recorder.record(one, None, 60.0).recorded.value
        except UnicodeEncodeError:
            outcomes[one.key] = "failed"

    threads = [threading.Thread(target=record, args=(one,)) for one in others]
    with recorder._turn:  # until all of them wait for it
        for thread in threads:
            thread.start()
        while len(recorder._queue) < len(others):
            time.sleep(0.01)
    for thread in threads:
        thread.join()
    assert outcomes == {"1": "new", "2": "failed", "3": "new"}
    assert len(bed.rows(Instance)) == 3


def arrival(number: int) -> Arrival:
    """Make an arrival of one series, whose key is its number."""
    return Arrival(
        study_instance_uid="1.2",
        series_instance_uid="1.2.3",
        sop_instance_uid=f"1.2.3.{number + 1}",
        sop_class_uid=CTImageStorage,
        is_image=True,
        modality="CT",
        description="",
        identity=Identity("4711", "", "Doe^Jane", ""),
        key=str(number),
        digest=64 * str(number),
        size=1,
    )


def test_eight_senders_of_one_study_at_once(bed: Bed) -> None:
    images = ct(4)
    answers: list[list[Recorded]] = []
    start = threading.Barrier(8)

    def send(turn: int) -> None:
        association = bed.intake.open_association(f"CT{turn}", "10.0.0.1")
        start.wait()
        answers.append(
            [bed.intake.accept(*announced(parts(ds)), association) for ds in images[turn % 4 :] + images[: turn % 4]]
        )
        bed.intake.close_association(association, AssociationEnd.RELEASED)

    with as_received():
        threads = [threading.Thread(target=send, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(answers) == 8
    said = [answer for one in answers for answer in one]
    assert said.count(Recorded.NEW) == 4
    assert set(said) == {Recorded.NEW, Recorded.SAME}
    assert (len(bed.rows(Study)), len(bed.rows(Series)), len(bed.rows(Instance))) == (1, 1, 4)
    assert len(bed.rows(AssociationSeries)) == 8
    assert_sound(bed)


class TestCrashes:
    """An error at each step of `accept`, and a real SIGKILL there."""

    STEPS = ("received", "published", "recorded")

    @staticmethod
    def fail_at(bed: Bed, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object, **__: object) -> None:
            raise StoreError("The disk went away.")

        if step == "received":
            monkeypatch.setattr(bed.store, "publish", fail)
        elif step == "published":
            monkeypatch.setattr(bed.intake._recorder, "record", fail)
        else:
            monkeypatch.setattr(bed.store, "settle", fail)

    @pytest.mark.parametrize("step", STEPS)
    def test_an_error_leaves_what_the_next_start_clears_up(
        self, bed: Bed, step: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        safe, lost = ct(2)
        bed.take([safe])
        with monkeypatch.context() as patch:
            self.fail_at(bed, step, patch)
            with pytest.raises(StoreError):
                bed.take([lost])
        bed.intake.recover()
        assert_sound(bed)
        assert len(bed.rows(Version)) == (2 if step == "recorded" else 1)
        assert bed.take([lost]) == [Recorded.SAME if step == "recorded" else Recorded.NEW]
        assert_sound(bed)

    def test_a_sender_that_tries_again_does_not_fill_the_disk(self, bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
        (image,) = ct(1)
        with monkeypatch.context() as patch:
            self.fail_at(bed, "published", patch)
            for _ in range(5):
                with pytest.raises(StoreError):
                    bed.take([image])
            assert len(bed.files("incoming")) == 1
        assert bed.take([image]) == [Recorded.NEW]
        bed.intake.recover()
        assert_sound(bed)

    @pytest.mark.slow
    @pytest.mark.parametrize("step", STEPS)
    def test_a_kill_leaves_what_the_next_start_clears_up(self, bed: Bed, step: str) -> None:
        safe, lost = ct(2)
        bed.take([safe])
        before = bed.intake.open_association("CT01", "10.0.0.1")
        (bed.folder / "lost.dcm").write_bytes(encode(lost))
        arguments = [str(bed.folder / "storage"), bed.url, step, str(bed.folder / "lost.dcm")]
        command = [sys.executable, "-m", "tests.processes", *arguments]
        done = subprocess.run(command, cwd=ROOT, check=False, timeout=60)
        assert done.returncode == -signal.SIGKILL
        assert len(bed.files("incoming")) == 1
        bed.intake.recover()
        assert_sound(bed)
        assert len(bed.rows(Version)) == (2 if step == "recorded" else 1)
        assert bed.rows(Association)[0].id == before
        assert bed.rows(Association)[0].end == AssociationEnd.LOST

    @pytest.mark.parametrize("way_in", ["receiver-3", "console", "fetch"])
    def test_what_others_left_is_cleared_up_before_anything_is_planned(self, sqlite_bed: Bed, way_in: str) -> None:
        storage = sqlite_bed.folder / "storage"
        settings = Settings(
            node={"storage": storage, "worklist": sqlite_bed.url}, receiver={"processes": 1, "quiet_period": QUIET}
        )
        images = ct(4)
        gone = Intake(Store(storage, way_in), sqlite_bed.database, QUIET, 0)
        association = gone.open_association("CT01", "10.0.0.1")
        with as_received():
            for image in images:
                gone.accept(*announced(parts(image)), association)
        cut_power(sqlite_bed, lost=2)
        _clear_up_after_others(settings, sqlite_bed.database)
        assert_sound(sqlite_bed)
        assert stored.faults(storage, sqlite_bed.url, digests(images)) == []
        assert [row.end for row in sqlite_bed.rows(Association)] == [AssociationEnd.LOST]

    @pytest.mark.parametrize("way_in", ["receiver-2", "console", "fetch"])
    def test_who_is_at_work_is_left_alone(self, sqlite_bed: Bed, way_in: str) -> None:
        """Such as the other receivers, when the first one starts again by itself."""
        storage = sqlite_bed.folder / "storage"
        settings = Settings(node={"storage": storage, "worklist": sqlite_bed.url}, receiver={"processes": 2})
        Store(storage, way_in).receive(b"head", (b"data",))
        with locked(storage / f"{way_in}.lock"):
            _clear_up_after_others(settings, sqlite_bed.database)
        assert len(sqlite_bed.files("incoming")) == 1

    def test_what_a_receiver_holds_that_is_still_ending_is_left_to_it(self, sqlite_bed: Bed) -> None:
        storage = sqlite_bed.folder / "storage"
        settings = Settings(node={"storage": storage, "worklist": sqlite_bed.url}, receiver={"processes": 1})
        Store(storage, "receiver-2").receive(b"head", (b"no image",))
        done = threading.Thread(target=_clear_up_after_others, args=(settings, sqlite_bed.database))
        with locked(storage / "receiver-2.lock"):
            done.start()
            done.join(0.3)
            assert len(sqlite_bed.files("incoming")) == 1
        done.join()
        assert sqlite_bed.files("incoming") == set()

    def test_a_half_received_deflated_file_does_not_keep_the_node_from_starting(self, sqlite_bed: Bed) -> None:
        (image,) = ct(1)
        image.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        content = encode(image)
        for size in (0, 10, 140, 200, len(content) - 20):
            sqlite_bed.store.receive(content[:size], ())
        (sqlite_bed.folder / "storage/incoming/receiver" / "0123").write_bytes(content[:1000])
        with as_received():
            sqlite_bed.intake.recover()
        assert sqlite_bed.files("") == set()


class TestWhatIsNeverRouted:
    def test_no_image_no_new_quiet_period(self, bed: Bed) -> None:
        images = ct(2)
        bed.take(images)
        before = bed.series(images[0].SeriesInstanceUID)
        report = plain(
            modality="OT",
            StudyInstanceUID=images[0].StudyInstanceUID,
            SOPClassUID="1.2.840.10008.5.1.4.1.1.88.34",
            Modality="SR",
            Rows=None,
            Columns=None,
            PixelData=None,
        )
        report.file_meta.MediaStorageSOPClassUID = report.SOPClassUID
        assert bed.take([report]) == [Recorded.NEW]
        after = bed.series(images[0].SeriesInstanceUID)
        assert (after.revision, after.due_at) == (before.revision, before.due_at)
        row = bed.series(report.SeriesInstanceUID)
        assert (row.state, row.due_at) == (SeriesState.COMPLETE, None)
        assert row.reason == "Holds no images, so nothing is run on it."
        assert_sound(bed)

    def test_our_own_result_that_comes_back(self, bed: Bed) -> None:
        # Judged by its UID: it may be an image by all its attributes, such as a secondary capture.
        (ours,) = ct(1)
        with bed.database.write() as session:
            now = bed.database.now(session)
            one = ResultObject(
                n=0,
                output="sc",
                sop_class_uid=ours.SOPClassUID,
                sop_instance_uid=ours.SOPInstanceUID,
                series_instance_uid=ours.SeriesInstanceUID,
                series_number=9000,
                key="results/1/1/x.dcm",
            )
            session.add(Result(created_at=now, objects=[one]))
        bed.take([ours])
        # The PACS has corrected the patient in it.
        bed.take([changed(ours, PatientName="Corrected^Name")])
        row = bed.series(ours.SeriesInstanceUID)
        assert (row.state, row.due_at, row.revision) == (SeriesState.COMPLETE, None, 0)
        assert row.reason == "Made by this node."
        assert bed.rows(Instance)[0].is_image is False


class TestAssociations:
    def test_any_instance_keeps_an_association_from_being_idle(self, bed: Bed) -> None:
        images = ct(2)
        bed.take(images)
        association = bed.intake.open_association("CT01", "10.0.0.1")
        bed.turn(30)
        before = bed.rows(Association)[0].last_activity
        bed.take(images[:1], association)  # known already
        assert bed.rows(Association)[0].last_activity > before
        assert [row.association_id for row in bed.rows(AssociationSeries)] == [association]

    def test_a_lease_that_runs_out_is_a_loss_that_a_renewal_takes_back(self, bed: Bed) -> None:
        association = bed.intake.open_association("CT01", "10.0.0.1")
        bed.turn(50)
        bed.intake.renew([association])
        bed.turn(50)
        assert bed.intake._associations.lose_expired() == 0
        bed.turn(50)
        assert bed.intake._associations.lose_expired() == 1
        assert bed.rows(Association)[0].end == AssociationEnd.LOST
        bed.intake.renew([association])
        assert bed.rows(Association)[0].ended_at is None
        bed.intake.close_association(association, AssociationEnd.RELEASED)
        bed.intake.renew([association])
        assert bed.rows(Association)[0].end == AssociationEnd.RELEASED
        bed.intake.close_association(association, AssociationEnd.LOST)
        assert bed.rows(Association)[0].end == AssociationEnd.RELEASED
