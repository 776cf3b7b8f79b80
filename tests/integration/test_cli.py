"""The command line as a person has it: the program as a process, its exit status, and what it prints."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
from PIL import Image

from dicomai import bundle, config, weights
from dicomai.commands import check
from dicomai.config import Settings
from tests.dimse import free_port, is_listening, scp

DICOMAI = [sys.executable, "-m", "dicomai"]
ROOT = Path(__file__).parents[2]
STUDY = ROOT / "dicomai" / "demo" / "study"

ROUTE = """
[[route]]
name = "intracranial-volume"
match = { Modality = "MR" }
model = "brain_extraction"
"""


def environment(**more: str) -> dict[str, str]:
    """Ours, without what would configure dicomai."""
    kept = {key: value for key, value in os.environ.items() if not key.upper().startswith("DICOMAI_")}
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "default", **more}


class Site:
    """A folder with a configuration; commands are run in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.storage = folder / "storage"
        self.port = free_port()

    def configure(self, text: str = "") -> None:
        (self.folder / "dicomai.toml").write_text(
            f"""
[node]
host = "127.0.0.1"
port = {self.port}
storage = "{self.storage}"
[receiver]
quiet_period = 0.5
[console]
port = {free_port()}
{text}
""",
            encoding="utf-8",
        )

    def give_weights(self, pulled: Path) -> None:
        """Put the weights of the packaged model into the storage."""
        weights.pull(bundle.find("brain_extraction", bundle.packaged()), self.storage, pulled)

    def run(self, *arguments: object, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*DICOMAI, *map(str, arguments)],
            cwd=self.folder, env=environment(**more), capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    def json(self, *arguments: object, status: int = 0) -> Any:
        done = self.run(*arguments, "--json")
        assert done.returncode == status, done.stderr
        return json.loads(done.stdout)

    def fails(self, *arguments: object, **more: str) -> tuple[int, str]:
        """Run a command that is to fail with one sentence, and nothing else, on standard error."""
        done = self.run(*arguments, **more)
        assert done.stderr.count("\n") == 1, done.stderr
        assert "Traceback" not in done.stderr
        assert done.stdout == ""
        return done.returncode, done.stderr.rstrip("\n")

    @contextlib.contextmanager
    def serving(self, roles: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run a node until the block ends; it has to end in order."""
        log = self.folder / "node.log"
        with log.open("ab") as stream:
            process = subprocess.Popen(
                [*DICOMAI, "serve", "--only", roles],
                cwd=self.folder, env=environment(), stdout=stream, stderr=stream, start_new_session=True,
            )  # fmt: skip
        try:
            until(lambda: process.poll() is not None or is_listening(self.port), 60)
            assert process.poll() is None, log.read_text()
            yield process
            process.terminate()
            assert process.wait(60) == 0, log.read_text()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def until(condition: Callable[[], Any], seconds: float = 30) -> Any:
    """Wait until a condition gives something, and give it."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.2)
    return found


@pytest.fixture
def site(tmp_path: Path) -> Site:
    made = Site(tmp_path)
    made.configure()
    return made


@pytest.fixture(scope="module")
def pulled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the weights of the packaged model."""
    one = bundle.find("brain_extraction", bundle.packaged())
    return weights.pull(one, tmp_path_factory.mktemp("weights"))


class TestErrors:
    """One sentence, no traceback; 1 where the work failed, 2 where the call or the configuration is wrong."""

    def test_a_wrong_key(self, site: Site) -> None:
        site.configure("[worker]\ngpu = true\n")
        status, said = site.fails("doctor")
        assert (status, said) == (2, "dicomai.toml: worker.gpu: there is no such key.")

    def test_an_ae_that_is_not_there(self, site: Site) -> None:
        for command in (["echo"], ["send", STUDY]):
            status, said = site.fails(*command, f"PACS@127.0.0.1:{free_port()}")
            assert status == 1
            assert "cannot be connected to (Connection refused)" in said

    def test_a_storage_that_cannot_be_written(self, site: Site) -> None:
        site.storage.write_text("no folder")
        status, said = site.fails("serve")
        assert status == 1
        assert "check the storage folder" in said

    def test_an_output_folder_that_cannot_be_written(self, site: Site, pulled: Path) -> None:
        (site.folder / "file").touch()
        site.give_weights(pulled)
        status, said = site.fails("run", STUDY, "--out", site.folder / "file" / "out")
        assert status == 2
        assert "name another by --out" in said
        assert site.fails("demo", "--out", site.folder / "file" / "out")[0] == 2

    def test_weights_that_are_not_there(self, site: Site) -> None:
        site.configure(ROUTE)
        for command in (["serve"], ["run", STUDY, "--out", "out"]):
            assert site.fails(*command) == (
                1, "The weights of brain_extraction are not here: run `dicomai models pull brain_extraction`."
            )  # fmt: skip

    def test_a_port_that_is_in_use(self, site: Site) -> None:
        with socket.create_server(("127.0.0.1", site.port)):
            done = site.run("serve", "--only", "receiver")
        assert done.returncode == 2
        assert f"Cannot listen on 127.0.0.1 port {site.port} (Address already in use)" in done.stderr
        assert "Traceback" not in done.stderr

    def test_who_reads_may_stop_reading(self, site: Site) -> None:
        with subprocess.Popen(
            [*DICOMAI, "config", "check", "--json"],
            cwd=site.folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.close()
            assert process.stderr.read() == b""


class TestConfiguration:
    def test_the_environment_overrides_the_file(self, site: Site) -> None:
        shown = json.loads(site.run("config", "check", "--json", DICOMAI_NODE__PORT="10104").stdout)
        assert shown["settings"]["node"]["port"] == 10104
        assert shown["file"] == "dicomai.toml"
        assert site.json("config", "check")["settings"]["node"]["port"] == site.port

    def test_a_wrong_value_in_the_environment_is_named(self, site: Site) -> None:
        status, said = site.fails("config", "check", DICOMAI_NODE__PORT="many")
        assert status == 2
        assert "DICOMAI_NODE__PORT" in said


class TestWire:
    def test_echo(self, site: Site) -> None:
        with scp() as pacs:
            site.configure(destination(pacs.port))
            assert "PACS at 127.0.0.1 port" in site.run("echo", "pacs").stdout
            assert site.json("echo", f"PACS@127.0.0.1:{pacs.port}")["seconds"] < 10

    def test_send_says_of_each_file_what_the_ae_answered(self, site: Site) -> None:
        with scp(0x0000, 0xA700, 0x0000) as pacs:
            where = f"PACS@127.0.0.1:{pacs.port}"
            done = site.run("send", STUDY, where)
            assert done.returncode == 1
            assert done.stdout == f"19 of 20 files accepted by {where}.\n"
            assert done.stderr.startswith(f"{STUDY / 'brain_002.dcm'}: ")
            assert len(pacs.received) == 20, "the README and the LICENSE beside the images are not sent"
            sent = site.json("send", STUDY / "brain_001.dcm", where)
            assert sent == [{"file": str(STUDY / "brain_001.dcm"), "accepted": True, "status": "0x0000", "comment": ""}]

    def test_a_file_that_is_no_dicom_file_is_a_failure_where_it_was_named(self, site: Site) -> None:
        with scp() as pacs:
            (sent,) = site.json("send", STUDY / "README.md", f"PACS@127.0.0.1:{pacs.port}", status=1)
        assert (sent["accepted"], sent["status"]) == (False, None)
        assert "no DICOM file" in sent["comment"]


def destination(port: int) -> str:
    return f'[[destination]]\nname = "pacs"\ntype = "dicom"\nae_title = "PACS"\nhost = "127.0.0.1"\nport = {port}\n'


def sftp(folder: Path, secret: str) -> str:
    return (
        f'[[destination]]\nname = "partner"\ntype = "sftp"\nhost = "127.0.0.1"\nport = 22\nuser = "ai"\n{secret}\n'
        f'known_hosts = "{folder}/known_hosts"\npath = "/in"\n'
    )


class TestDoctor:
    def test_says_what_to_mend_and_touches_nothing(self, site: Site) -> None:
        site.configure(ROUTE + destination(free_port()) + sftp(site.folder, 'password = "Kepler"'))
        (site.folder / "dicomai.toml").chmod(0o644)
        said = site.json("doctor", status=1)
        found = {one["about"]: one for one in said}
        assert {about for about, one in found.items() if one["verdict"] == "bad"} == {
            "model brain_extraction", "destination pacs", "destination partner",
        }  # fmt: skip
        assert found["configuration"]["verdict"] == "warning"
        assert "holds a token, password or key and can be read by everyone" in found["configuration"]["sentence"]
        assert "Kepler" not in str(said)
        assert "cannot be connected to" in found["destination pacs"]["sentence"]
        assert "dicomai models pull brain_extraction" in found["model brain_extraction"]["sentence"]
        assert found["receiver"]["verdict"] == "warning"
        assert "no destinations" in found["route intracranial-volume"]["sentence"]
        assert found[f"port {site.port}"]["sentence"] == "free; the node does not run"
        assert not site.storage.exists()

    @pytest.mark.parametrize(
        ("text", "held"),
        [
            ('[console]\ntoken = "a-token-of-24-characters"', True),
            ('[node]\nworklist = "postgresql+psycopg://ai:Kepler@db/dicomai"', True),
            ('[node]\nworklist = "postgresql+psycopg://ai@db:5432/dicomai"\n[console]\ntoken = ""', False),
            ('[[user]]\nname = "ct01"\npasscode = "scrypt:..."', False),
        ],
    )
    def test_a_secret_that_everyone_can_read(self, tmp_path: Path, text: str, held: bool) -> None:
        file = tmp_path / "dicomai.toml"
        file.write_text(text, encoding="utf-8")
        for mode, warned in ((0o644, held), (0o640, False)):
            file.chmod(mode)
            assert bool(check._secrets(Settings(), file)) is warned

    def test_a_key_that_everyone_can_read(self, tmp_path: Path) -> None:
        key, file = tmp_path / "id_ed25519", tmp_path / "dicomai.toml"
        file.write_text(sftp(tmp_path, f'key = "{key}"'), encoding="utf-8")
        settings = config.load(file)
        assert not check._secrets(settings, file), "it is not there: the destination says so"
        key.touch(0o644)
        (found,) = check._secrets(settings, file)
        assert (found.verdict, found.about) == ("warning", "destination partner")
        assert found.sentence == f"{key} can be read by everyone on this machine: chmod o= it."
        key.chmod(0o600)
        assert not check._secrets(settings, file)

    @pytest.mark.parametrize("users", [[], [{"name": "pacs"}]])
    def test_a_report_of_commitment_needs_a_user(self, users: list[dict[str, str]]) -> None:
        pacs = {"type": "dicom", "name": "pacs", "ae_title": "PACS", "host": "127.0.0.1", "port": 104}
        node = {"host": "127.0.0.1", "port": free_port()}
        settings = Settings(
            node=node, receiver={"allow": ["PACS"]}, user=users, destination=[{**pacs, "commitment": True}]
        )
        warned = [one.sentence for one in check._receiver(settings) if one.about == "destination pacs"]
        assert [("PACS can report" in one, "[[user]]" in one) for one in warned] == [(True, True)] * len(users)

    def test_a_healthy_node(self, site: Site) -> None:
        with scp() as pacs:
            site.configure(
                destination(pacs.port) + f'[[destination]]\nname="f"\ntype="folder"\npath="{site.folder}/out"\n'
            )
            with site.serving("receiver"):
                done = site.run("doctor")
        assert done.returncode == 0, done.stdout
        assert "destination pacs: PACS answered in" in done.stdout
        assert f"port {site.port}: DICOMAI answers" in done.stdout

    def test_another_program_on_the_port(self, site: Site) -> None:
        with socket.create_server(("127.0.0.1", site.port)) as other:
            site.configure("[delivery]\ntimeout = 0.5\n")
            found = {one["about"]: one for one in site.json("doctor", status=1)}
            assert "another program has it" in found[f"port {other.getsockname()[1]}"]["sentence"]


class TestModels:
    def test_list_pull_check(self, site: Site, pulled: Path) -> None:
        (row,) = site.json("models", "list")
        assert (row["name"], row["problem"]) == ("brain_extraction", "")
        assert "dicomai models pull brain_extraction" in row["weights"]
        package = bundle.packaged() / "brain_extraction"
        assert "models pull" in site.json("models", "check", package, status=1)["problems"][0]
        done = site.run("models", "pull", "brain_extraction", "--from", pulled)
        assert done.returncode == 0, done.stderr
        assert site.json("models")[0]["weights"] == "here"
        assert site.json("models", "check", package) == {"path": str(package), "problems": []}

    def test_weights_of_another_network_are_refused(self, site: Site, pulled: Path) -> None:
        (site.folder / "usb").mkdir()
        for path in pulled.iterdir():
            (site.folder / "usb" / path.name).write_bytes(path.read_bytes()[:-1])
        status, said = site.fails("models", "pull", "brain_extraction", "--from", "usb")
        assert status == 1
        assert "is not what brain_extraction was made with" in said
        assert "missing" in site.json("models", "list")[0]["weights"]


class TestRoutes:
    def test_explain_gives_the_reason_of_each_route(self, site: Site) -> None:
        site.configure(
            ROUTE
            + ROUTE.replace("intracranial-volume", "any-mr").replace("model", 'outside_validated = "report"\nmodel')
            + ROUTE.replace("intracranial-volume", "t1").replace('Modality = "MR"', 'SeriesDescription = ".*T1.*"')
        )
        shown = site.json("routes", "explain", STUDY)
        (stack,) = shown["stacks"]
        assert (stack["modality"], stack["description"], stack["frames"]) == ("MR", "FSE PD AXIAL OBL", 20)
        by_route = {one["route"]: one for one in stack["routes"]}
        assert {name: one["runs"] for name, one in by_route.items()} == {
            "intracranial-volume": False, "any-mr": True, "t1": False,
        }  # fmt: skip
        assert "RepetitionTime 2300" in by_route["intracranial-volume"]["sentence"]
        assert "RepetitionTime 2300" in by_route["any-mr"]["sentence"]
        assert "SeriesDescription is 'FSE PD AXIAL OBL', not '.*T1.*'" in by_route["t1"]["sentence"]
        assert "✗ route t1 does not run brain_extraction" in site.run("routes", "explain", STUDY).stdout

    def test_a_folder_without_images(self, site: Site) -> None:
        done = site.run("routes", "explain", site.folder)
        assert (done.returncode, done.stderr) == (1, f"There are no images in {site.folder}.\n")


class TestWorklist:
    def test_from_arrival_to_a_person_s_word(self, site: Site, pulled: Path) -> None:
        """A node that does not analyse yet: what waits is listed, shown, canceled, and put back on the list."""
        site.configure(ROUTE)
        site.give_weights(pulled)
        assert site.fails("worklist")[0] == 2
        with site.serving("receiver,planner"):
            assert site.run("send", STUDY, f"DICOMAI@127.0.0.1:{site.port}").returncode == 0
            (item,) = until(lambda: [one for one in site.json("worklist", "list") if one["kind"] == "inference"])
        assert (item["state"], item["route"], item["series"]) == (
            "SCHEDULED", "intracranial-volume", "MR FSE PD AXIAL OBL",
        )  # fmt: skip
        number = item["id"]
        shown = site.json("worklist", "show", number)
        assert [one["instances"] for one in shown["inputs"]] == [20]
        assert [event["event"] for event in shown["history"]] == ["scheduled"]
        status, said = site.fails("worklist", "retry", number)
        assert status == 1
        assert "only one that has ended" in said
        assert site.fails("worklist", "release", number) == (1, f"Workitem {number} is not held.")
        assert site.run("worklist", "cancel", number).stdout == f"Workitem {number} is CANCELED.\n"
        assert site.fails("worklist", "cancel", number)[0] == 1
        done = site.run("worklist", "retry", number)
        new = int(done.stdout.split()[1])
        assert done.stdout == f"Workitem {new} replaces {number}.\n"
        listed = site.run("worklist").stdout
        assert [line.split()[1] for line in listed.splitlines()[1:]] == ["SCHEDULED", "CANCELED"]
        text = site.run("worklist", "show", number).stdout
        assert f"replaced by          {new}" in text
        assert "person/" in text

    def test_a_series_that_no_route_takes_says_why(self, site: Site) -> None:
        site.configure(ROUTE.replace('Modality = "MR"', 'Modality = "CT"'))
        with site.serving("receiver,planner"):
            assert site.run("send", STUDY, f"DICOMAI@127.0.0.1:{site.port}").returncode == 0
            (entry,) = until(lambda: [one for one in site.json("worklist") if one["state"] == "NOT ROUTED"])
        assert entry["id"] is None
        assert "Modality is 'MR', not 'CT'" in entry["reason"]


@pytest.mark.slow
class TestRun:
    @pytest.fixture
    def ready(self, site: Site, pulled: Path) -> Site:
        site.give_weights(pulled)
        return site

    def test_the_packaged_study(self, ready: Site) -> None:
        done = ready.run("run", STUDY, "--out", "out", "--outside-validated", "--json")
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        (result,) = json.loads(done.stdout)["results"]
        (measured,) = result["measurements"]
        assert (measured["segment"], measured["name"], measured["unit"]) == ("Intracranial structure", "Volume", "cm3")
        assert measured["value"] == pytest.approx(1290, rel=0.03)
        assert "was validated for T1-weighted MR" in result["remarks"][0]
        assert [Path(file).name for file in result["files"]] == ["seg.dcm", "sr.dcm", "overlay.png"]
        seg, sr = (pydicom.dcmread(ready.folder / file) for file in result["files"][:2])
        source = pydicom.dcmread(STUDY / "brain_001.dcm")
        assert (seg.Modality, sr.Modality) == ("SEG", "SR")
        assert {ds.StudyInstanceUID for ds in (seg, sr, source)} == {source.StudyInstanceUID}
        assert b"was validated for T1-weighted MR" in (ready.folder / result["files"][1]).read_bytes()
        with Image.open(ready.folder / result["files"][2]) as picture:
            assert picture.width > 3 * 256

    def test_outside_of_what_it_was_validated_for_it_does_not_run_unless_told_to(self, ready: Site) -> None:
        status, said = ready.fails("run", STUDY, "--out", "out", "--model", "brain_extraction")
        assert status == 1
        assert said.endswith("say --outside-validated.")
        assert "RepetitionTime 2300" in said
        assert list((ready.folder / "out").iterdir()) == []

    def test_the_routes_decide_where_there_are_some(self, ready: Site) -> None:
        ready.configure(ROUTE.replace('Modality = "MR"', 'Modality = "CT"'))
        done = ready.run("run", STUDY, "--out", "out", "--outside-validated")
        assert done.returncode == 1
        assert done.stdout == ""
        assert "route 'intracranial-volume': Modality is 'MR', not 'CT'." in done.stderr
        assert "Nothing was analysed" in done.stderr

    def test_a_slice_that_is_missing_is_a_sentence(self, ready: Site) -> None:
        (ready.folder / "study").mkdir()
        for path in sorted(STUDY.glob("*.dcm")):
            if path.name != "brain_009.dcm":
                (ready.folder / "study" / path.name).symlink_to(path)
        status, said = ready.fails("run", "study", "--out", "out", "--outside-validated")
        assert status == 1
        assert "S2 MR FSE PD AXIAL OBL was not analysed: " in said
        assert "missing" in said

    def test_two_patients_in_one_study_are_not_guessed_at(self, ready: Site) -> None:
        (ready.folder / "study").mkdir()
        for number, path in enumerate(sorted(STUDY.glob("*.dcm"))):
            ds = pydicom.dcmread(path)
            ds.PatientID = "P7411" if number < 10 else "P7412"
            ds.save_as(ready.folder / "study" / path.name)
        status, said = ready.fails("run", "study", "--out", "out", "--outside-validated")
        assert status == 1
        assert "disagree in PatientID" in said
        assert "P741" not in said
