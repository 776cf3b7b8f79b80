"""The command line's promises that need no other process: help, exit statuses, one sentence per error, the docs."""

import argparse
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from dicomai import cli, folder, passcodes
from dicomai.commands import wire
from dicomai.config import DicomDestination, Settings
from dicomai.errors import ConfigurationError
from tests import synthetic

ROOT = Path(__file__).parents[2]
COMMANDS_DOC = ROOT / "docs" / "commands.md"

# What the design promises; more is welcome, less is not.
PROMISED = {
    "serve", "demo", "run", "send", "echo", "worklist list", "worklist show", "worklist retry", "worklist cancel",
    "models list", "models pull", "models check", "routes explain", "config check", "db upgrade", "doctor",
}  # fmt: skip


def leaves(
    parser: argparse.ArgumentParser, path: tuple[str, ...] = ()
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every command that does something, as 'worklist show', with its parser."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not groups:
        yield " ".join(path), parser
    for name, child in groups[0].choices.items() if groups else ():
        yield from leaves(child, (*path, name))


COMMANDS = dict(leaves(cli.parser()))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run in an empty folder, with a storage of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DICOMAI_NODE__STORAGE", str(tmp_path / "storage"))
    return tmp_path


def failure(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Run a command that fails: its exit status, and what it says, which is one line on standard error."""
    status = cli.main(arguments)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert said.err.rstrip().endswith((".", "!"))
    return status, said.err


class TestHelp:
    def test_the_promised_commands_are_there(self) -> None:
        assert COMMANDS.keys() >= PROMISED

    @pytest.mark.parametrize("command", [*COMMANDS, "", "worklist", "models", "routes", "config", "db"])
    def test_help_explains_itself_with_an_example_that_works(
        self, command: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as end:
            cli.main([*command.split(), "--help"])
        assert end.value.code == 0
        said = " ".join(capsys.readouterr().out.split())
        example = said.rpartition("Example: ")[2].partition(". ")[0]
        assert example.startswith(f"dicomai {command}".strip())
        cli.parser().parse_args(shlex.split(example)[1:])

    @pytest.mark.parametrize("command", COMMANDS)
    def test_every_command_takes_a_configuration(self, command: str) -> None:
        assert "--config" in COMMANDS[command]._option_string_actions

    @pytest.mark.parametrize(
        "command", [name for name in COMMANDS if re.search("(list|show|check|explain|doctor|echo|run|send)$", name)]
    )
    def test_what_lists_or_shows_does_so_as_json_too(self, command: str) -> None:
        assert "--json" in COMMANDS[command]._option_string_actions

    def test_options_may_stand_before_or_after_the_last_word(self) -> None:
        for words in (
            "worklist --json --config x.toml list",
            "worklist list --json --config x.toml",
            "worklist --json --config x.toml",
        ):
            parsed = cli.parser().parse_args(words.split())
            assert (parsed.json, parsed.config) == (True, Path("x.toml")), words

    @pytest.mark.parametrize(
        "words", ["", "nonsense", "worklist show", "worklist show twelve", "run STUDY", "routes", "send file"]
    )
    def test_a_wrong_call_is_status_2(self, words: str, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as end:
            cli.main(words.split())
        assert end.value.code == 2
        assert "usage: dicomai" in capsys.readouterr().err


class TestPasscode:
    def test_a_passcode_becomes_a_hash_that_the_configuration_takes(
        self, elsewhere: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sys.stdin", io.StringIO("4711\n"))
        assert cli.main(["config", "passcode"]) == 0
        text = capsys.readouterr().out.strip()
        assert passcodes.fits(b"4711", text)
        (elsewhere / "dicomai.toml").write_text(f'[[user]]\nname = "ct01"\npasscode = "{text}"\n')
        assert cli.main(["config", "check"]) == 0
        (elsewhere / "dicomai.toml").write_text('[[user]]\nname = "ct01"\npasscode = "4711"\n')
        capsys.readouterr()
        status, said = failure(capsys, "config", "check")
        assert status == 2
        assert "dicomai config passcode" in said
        assert "4711" not in said


class TestErrors:
    def test_a_key_that_does_not_exist(self, elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (elsewhere / "dicomai.toml").write_text("[node]\nporrt = 104\n")
        status, said = failure(capsys, "config", "check")
        assert (status, said) == (2, "dicomai.toml: node.porrt: there is no such key.\n")

    def test_a_configuration_that_is_not_there(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert failure(capsys, "doctor", "--config", "no.toml") == (
            2,
            "The configuration file no.toml does not exist.\n",
        )

    def test_a_section_in_the_environment_that_does_not_exist(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("DICOMAI_NODES__PORT", "104")
        status, said = failure(capsys, "config", "check")
        assert status == 2
        assert "DICOMAI_NODES__PORT" in said

    def test_a_destination_that_does_not_exist(self, capsys: pytest.CaptureFixture[str]) -> None:
        status, said = failure(capsys, "echo", "nowhere")
        assert status == 2
        assert "No [[destination]] is named 'nowhere'" in said

    def test_a_file_to_send_that_does_not_exist(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert failure(capsys, "send", "no.dcm", "PACS@127.0.0.1:104") == (2, "no.dcm does not exist.\n")

    def test_a_worklist_that_does_not_exist_is_not_made_by_looking(
        self, elsewhere: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        status, said = failure(capsys, "worklist")
        assert status == 2
        assert "`dicomai serve` or `dicomai db upgrade` makes it" in said
        assert not (elsewhere / "storage").exists()

    def test_a_workitem_that_does_not_exist(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["db", "upgrade"]) == 0
        capsys.readouterr()
        for verb in ("show", "retry", "cancel", "release"):
            status, said = failure(capsys, "worklist", verb, "99")
            assert status == 1
            assert "There is no workitem 99" in said

    def test_a_model_that_does_not_exist(self, capsys: pytest.CaptureFixture[str]) -> None:
        status, said = failure(capsys, "models", "pull", "nothing")
        assert status == 1
        assert "There is no model 'nothing'" in said

    def test_a_storage_that_cannot_be_written(
        self, elsewhere: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (elsewhere / "file").touch()
        monkeypatch.setenv("DICOMAI_NODE__STORAGE", str(elsewhere / "file" / "storage"))
        status, said = failure(capsys, "db", "upgrade")
        assert status == 1
        assert "check the storage folder" in said

    def test_a_role_that_does_not_exist(self, capsys: pytest.CaptureFixture[str]) -> None:
        status, said = failure(capsys, "serve", "--only", "receiver,plumber")
        assert status == 2
        assert "plumber" in said
        assert "receiver, planner, worker, delivery, console" in said

    def test_a_study_folder_that_does_not_exist(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert failure(capsys, "routes", "explain", "nothing")[0] == 2
        assert failure(capsys, "run", "nothing", "--out", "out")[0] == 2


class TestDestination:
    def test_a_name_of_the_configuration_or_an_address(self) -> None:
        pacs = DicomDestination(type="dicom", name="pacs", ae_title="ARCHIVE", host="10.1.2.3", port=104)
        settings = Settings(destination=(pacs,))
        assert wire.destination(settings, "pacs") is pacs
        found = wire.destination(settings, "CT01@ct.example:11112")
        assert (found.ae_title, found.host, found.port) == ("CT01", "ct.example", 11112)

    @pytest.mark.parametrize("text", ["A_TITLE_OF_17_CHARS@ct.example:104", "CT01@ct.example:99999"])
    def test_an_address_that_cannot_be_one(self, text: str) -> None:
        with pytest.raises(ConfigurationError, match="is no AE@host:port"):
            wire.destination(Settings(), text)

    def test_a_folder_cannot_be_asked(self, tmp_path: Path) -> None:
        settings = Settings.model_validate({"destination": [{"type": "folder", "name": "f", "path": str(tmp_path)}]})
        with pytest.raises(ConfigurationError, match="is a folder, which answers nobody"):
            wire.echo(settings, "f", as_json=False)


class TestFolder:
    def test_what_is_no_dicom_is_passed_over_and_what_is_broken_is_named(self, tmp_path: Path) -> None:
        synthetic.write(synthetic.series(shape=(3, 8, 8)), tmp_path / "deep" / "er")
        (tmp_path / "README").write_text("A study.")
        (tmp_path / "broken.dcm").write_bytes(bytes(128) + b"DICM" + b"\x02\x00\x10")
        studies, unread = folder.read(tmp_path)
        assert [len(series.instances) for study in studies for series in study.series] == [3]
        assert len(unread) == 1
        assert "broken.dcm" in unread[0]
        assert len(folder.files(tmp_path)) == 4


def code_lines(document: Path) -> Iterator[str]:
    """The lines of a document's code blocks that call dicomai, without their comments."""
    for block in re.findall(
        r"^ *```[a-z]*\n(.*?)^ *```", document.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    ):
        for line in block.splitlines():
            call = line.strip().removeprefix("$ ").partition("  #")[0].strip()
            if call.startswith("dicomai "):
                yield call


DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "deploy").rglob("*.md"))]


class TestDocuments:
    def test_every_command_and_option_is_documented(self) -> None:
        text = COMMANDS_DOC.read_text(encoding="utf-8")
        sections = {part.partition("\n")[0].strip("` "): part for part in text.split("\n## ")[1:]}
        for command, parser in COMMANDS.items():
            section = next((s for title, s in sections.items() if f"dicomai {command}" in s), None)
            assert section is not None, f"dicomai {command} is not in docs/commands.md"
            for option in parser._option_string_actions:
                if option not in {"-h", "--help", "--config", "--json"}:
                    assert f"`{option}" in section, f"{option} of dicomai {command} is not in docs/commands.md"

    def test_every_documented_call_can_be_made(self) -> None:
        calls = [(document, call) for document in DOCUMENTS for call in code_lines(document)]
        assert len(calls) >= 15
        for document, call in calls:
            try:
                cli.parser().parse_args(shlex.split(call)[1:])
            except SystemExit as error:
                raise AssertionError(f"{document.name}: {call}") from error

    def test_every_command_that_a_document_speaks_of_exists(self) -> None:
        known = {*COMMANDS, *(name.split()[0] for name in COMMANDS)}
        for document in [*DOCUMENTS, ROOT / "CHANGELOG.md"]:
            for spoken in re.findall(r"`dicomai ([a-z]+(?: [a-z]+)?)", document.read_text(encoding="utf-8")):
                assert spoken in known or spoken.split()[0] in known, f"{document.name}: dicomai {spoken}"
