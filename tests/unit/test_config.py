"""Configuration: what is accepted, what is refused and in which words, and that the documents know every key."""

import os
import pickle
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from dicomai import config
from dicomai.errors import ConfigurationError
from dicomai.routing import Level, OutsideValidated

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
EXAMPLES = sorted((ROOT / "config").glob("*.toml"))

SECTIONS: dict[str, tuple[type[BaseModel], ...]] = {
    "node": (config.NodeSettings,),
    "receiver": (config.ReceiverSettings,),
    "tls": (config.TlsSettings,),
    "worker": (config.WorkerSettings,),
    "delivery": (config.DeliverySettings,),
    "console": (config.ConsoleSettings,),
    "destination": (
        config.DicomDestination,
        config.DicomwebDestination,
        config.FolderDestination,
        config.S3Destination,
        config.SftpDestination,
    ),
    "forward": (config.ForwardSettings,),
    "route": (config.RouteSettings,),
    "source": (config.SourceSettings,),
    "user": (config.UserSettings,),
}


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in os.environ:
        if name.startswith("DICOMAI_") and "__" in name:
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)  # no ./dicomai.toml there


def load(tmp_path: Path, text: str) -> config.Settings:
    path = tmp_path / "node.toml"
    path.write_text(text, encoding="utf-8")
    return config.load(path)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_is_valid(path: Path) -> None:
    settings = config.load(path)
    assert settings.routes
    assert settings.routes[0].destinations[0] == settings.destination[0].name


def test_the_full_example_shows_every_key() -> None:
    text = (ROOT / "config" / "hospital.toml").read_text(encoding="utf-8")
    shown = tomllib.loads(re.sub(r"^# (\w+ = |\[\[)", r"\1", text, flags=re.MULTILINE))
    missing = [
        f"{section}.{key}"
        for section, models in SECTIONS.items()
        for model in models
        for key in model.model_fields
        if key not in keys_of(shown[section])
    ]
    assert not missing


def keys_of(section: Any) -> set[str]:
    entries = section if isinstance(section, list) else [section]
    return {key for entry in entries for key in entry}


def test_the_document_has_exactly_the_keys_that_exist() -> None:
    assert set(SECTIONS) == set(config.Settings.model_fields)
    for section, models in SECTIONS.items():
        heading = re.search(rf"^## `\[+{section}\]+`$(.*?)(?=^## |\Z)", DOCUMENT, re.MULTILINE | re.DOTALL)
        assert heading, f"docs/configuration.md has no section for {section}"
        described = set(re.findall(r"^\| `(\w+)` \|", heading.group(1), re.MULTILINE))
        assert described == {key for model in models for key in model.model_fields}, section


def test_the_document_states_the_defaults_that_hold() -> None:
    for section, models in SECTIONS.items():
        for model in models:
            for key, field in model.model_fields.items():
                if isinstance(field.default, int | float) and not field.is_required():
                    default = str(field.default).lower()  # as TOML writes true and false
                    assert re.search(rf"^\| `{key}` \|[^|]*\| `{default}` \|", DOCUMENT, re.MULTILINE), (
                        f"{section}.{key}: the document does not say {field.default}"
                    )


def test_without_a_file_the_defaults_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "SEARCH_PATH", (Path("dicomai.toml"),))
    settings = config.load()
    assert (settings.node.ae_title, settings.node.port) == ("DICOMAI", 11112)
    assert settings.receiver.quiet_period == 60.0
    assert settings.routes == ()


def test_the_token_of_the_console_is_shown_nowhere(tmp_path: Path) -> None:
    settings = load(tmp_path, "[console]\nhost = '::'\ndicomweb = true\ntoken = '0123456789abcdef'\n")
    assert settings.console.token.get_secret_value() == "0123456789abcdef"
    assert "0123456789abcdef" not in repr(settings) + str(settings.model_dump(mode="json"))
    assert pickle.loads(pickle.dumps(settings)).console == settings.console  # noqa: S301  our own bytes
    with pytest.raises(ConfigurationError) as said:
        load(tmp_path, "[console]\ntoken = 'secret word'\n")
    assert "secret word" not in str(said.value)
    for host in ("127.0.0.1", "::1", "localhost"):
        assert load(tmp_path, f"[console]\nhost = '{host}'\ndicomweb = true\n").console.is_local


def test_the_nearest_file_is_found(tmp_path: Path) -> None:
    (tmp_path / "dicomai.toml").write_text("[node]\nport = 1042\n", encoding="utf-8")
    assert config.load().node.port == 1042


def test_the_environment_overrides_one_key_and_leaves_its_neighbours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DICOMAI_NODE__PORT", "104")
    monkeypatch.setenv("DICOMAI_RECEIVER__ALLOW", '["CT01", "PACS@10.1.0.0/16"]')
    settings = load(tmp_path, '[node]\nport = 1\nae_title = "NODE7"\n')
    assert (settings.node.port, settings.node.ae_title) == (104, "NODE7")
    assert settings.receiver.allow == ("CT01", "PACS@10.1.0.0/16")


@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        ("DICOMAI_NODE__PORT", "abc", "DICOMAI_NODE__PORT: .*integer"),
        ("DICOMAI_NODE__PROT", "104", "DICOMAI_NODE__PROT: there is no such key"),
        ("DICOMAI_NODES__PORT", "104", "DICOMAI_NODES__PORT .* names no section"),
        ("DICOMAI_RECEIVER__ALLOW", "CT01", "written as JSON, such as .*'\\[\"CT01\"\\]'"),
    ],
)
def test_a_mistake_in_the_environment_is_named(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, sentence: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError, match=sentence):
        config.load()


FOLDER = '[[destination]]\nname = "out"\ntype = "folder"\npath = "/srv/out"\n'
DICOM = '[[destination]]\nname = "pacs"\ntype = "dicom"\nae_title = "PACS"\nhost = "pacs"\nport = 104\n'
ROUTE = '[[route]]\nname = "brain"\nmodel = "brain_extraction"\n'


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("x =", "is no TOML"),
        ("[node]\nae_titel = 'X'", "node.ae_titel: there is no such key"),
        ("[console]\npublic_url = 'ai.hospital.example'", "console.public_url: .* is no URL such as"),
        ("[console]\ntoken = 'short'", "console.token: a token has 16 printable characters or more"),
        ("[console]\nhost = '0.0.0.0'\ndicomweb = true", "console: console.dicomweb on '0.0.0.0' .* set console.token"),
        ("[console]\nhost = 'node7'\ndicomweb = true", "console: console.dicomweb on 'node7' .* set console.token"),
        ("[nodes]\nport = 1", "nodes: there is no such key"),
        ("[node]\nae_title = 'SEVENTEEN LETTERS'", "'SEVENTEEN LETTERS' is no AE title"),
        ("[node]\nae_title = '  '", "is no AE title"),
        ("[node]\nae_title = 'A\\B'", "without a backslash"),
        ("[node]\nport = 65536", "node.port"),
        ("[node]\ntimezone = 'Mars/Phobos'", "no time zone of the IANA database"),
        ("[node]\nworklist = 'mysql://x/y'", "node.worklist: a database is"),
        ("[node]\nworklist = 'sqlite:///:memory:'", "node.worklist: a database is"),
        ("[receiver]\nallow = ['CT01@10.1.0.1/16']", "'CT01@10.1.0.1/16': .*host bits"),
        ("[receiver]\nallow = ['CT01@']", "'CT01@'"),
        ("[receiver]\nallow = ['@10.0.0.0/8']", "no AE title"),
        ("[receiver]\nallow = ['CT01', 'CT01']", "'CT01' stands there twice"),
        ("[receiver]\nquiet_period = 0", "receiver.quiet_period"),
        ("[receiver]\ncommitment = true", "receiver.commitment promises .* set console.dicomweb"),
        ("[receiver]\nlost_period = inf", "receiver.lost_period: .*finite"),
        ("[receiver]\ntls = true", "receiver.tls needs tls.certificate and tls.key"),
        ("[receiver]\ntls = true\n[tls]\ncertificate = 'c'\nkey = 'k'", "tls.authorities unless"),
        ("[tls]\ncertificate = 'c'", "tls: tls.certificate and tls.key go together"),
        (DICOM + "tls = true", "destination 'pacs' with tls needs tls.authorities"),
        ("[[user]]\nname = 'ct01'\npasscode = '4711'", "user.0.passcode: .*dicomai config passcode"),
        ("[[user]]\nname = 'a'\n[[user]]\nname = 'a'", "two entries of \\[\\[user\\]\\] are named 'a'"),
        (
            "[[destination]]\nname = 'a'\npath = '/x'",
            "a destination needs its type: 'dicom', 'dicomweb', 'folder', 's3' or 'sftp'",
        ),
        ("[[destination]]\nname = 'a'\ntype = 'ftp'", "'ftp'.*'dicom', 'dicomweb', 'folder', 's3', 'sftp'"),
        (FOLDER.replace('"out"', '" "'), "destination.0.folder.name"),
        (FOLDER + FOLDER, "two entries of \\[\\[destination\\]\\] are named 'out'"),
        (ROUTE + ROUTE, "two entries of \\[\\[route\\]\\] are named 'brain'"),
        (ROUTE + "destinations = ['pacs']", "sends to 'pacs', but no .* has that name \\(there are: none\\)"),
        (FOLDER + ROUTE + "destinations = ['out', 'out']", "'out' stands there twice"),
        (ROUTE + "match = { Modalitty = 'MR' }", "'Modalitty' is no DICOM keyword"),
        (ROUTE + "match = { Modality = 'MR(' }", "'MR\\(' for Modality is no regular expression"),
        (ROUTE + "exclude = { PixelData = '.*' }", "'PixelData' has no text"),
        (ROUTE + "match = { ReferencedStudySequence = '.*' }", "'ReferencedStudySequence' has no text"),
        (ROUTE + "outputs = ['nifti']", "not \\['nifti'\\]"),
        (ROUTE + "outputs = []", "not none"),
        (ROUTE.replace("brain_extraction", "../etc"), "route.0.model"),
    ],
)
def test_what_is_wrong_is_refused_in_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence) as caught:
        load(tmp_path, text)
    assert "\n" not in str(caught.value)
    assert "node.toml" in str(caught.value)


def test_all_mistakes_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"node\.port.*worker\.lease"):
        load(tmp_path, "[node]\nport = 0\n[worker]\nlease = -1\n")


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigurationError, match="is no TOML"):
        config.load(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere\.toml does not exist"):
        config.load(tmp_path / "nowhere.toml")


def test_a_password_is_neither_shown_nor_quoted(tmp_path: Path) -> None:
    settings = load(tmp_path, "[node]\nworklist = 'postgresql+psycopg://u:geheim@h/db'\n")
    assert "geheim" not in repr(settings)
    with pytest.raises(ConfigurationError) as caught:
        load(tmp_path, "[node]\nworklist = 'postgresql://u:geheim@h/db'\n")
    assert "geheim" not in str(caught.value)


def test_settings_are_frozen_and_travel_to_a_spawned_process(tmp_path: Path) -> None:
    settings = load(tmp_path, FOLDER + ROUTE + 'destinations = ["out"]\n')
    with pytest.raises(ValueError, match="frozen"):
        settings.node.port = 3  # type: ignore[misc]
    copy = pickle.loads(pickle.dumps(settings))  # noqa: S301  our own bytes
    assert copy == settings
    assert copy.routes == settings.routes


def test_a_route_is_filled_in(tmp_path: Path) -> None:
    settings = load(
        tmp_path, f"[receiver]\nquiet_period = 7\n{ROUTE}{ROUTE.replace('brain', 'own', 1)}quiet_period = 2\n"
    )
    first, second = settings.routes
    assert (first.quiet_period, second.quiet_period) == (7.0, 2.0)
    assert first.level is Level.SERIES
    assert first.outside_validated is OutsideValidated.REFUSE
    assert first.exclude == {"ImageType": "LOCALIZER|DERIVED|SECONDARY"}


def test_exclude_can_be_turned_off(tmp_path: Path) -> None:
    assert load(tmp_path, ROUTE + "exclude = {}\n").routes[0].exclude == {}


def test_the_embedded_worklist_lies_in_the_storage(tmp_path: Path) -> None:
    settings = load(tmp_path, "[node]\nstorage = 'relative'\n")
    assert settings.node.worklist_url == f"sqlite:///{tmp_path}/relative/worklist.db"


def test_a_destination_is_found_by_name(tmp_path: Path) -> None:
    settings = load(tmp_path, FOLDER)
    assert settings.destination_named("out") is settings.destination[0]
    with pytest.raises(ConfigurationError, match="'pacs'; the configuration has: out"):
        settings.destination_named("pacs")


FOLDERS = """
[[destination]]
name = "pacs"
type = "folder"
path = "/pacs"
[[destination]]
name = "research"
type = "folder"
path = "/research"
"""


class TestForward:
    def test_a_rule_takes_everything_unless_it_says_otherwise(self, tmp_path: Path) -> None:
        (rule,) = load(tmp_path, FOLDERS + "[[forward]]\nname = 'all'\ndestinations = ['pacs']\n").forwards
        assert rule.takes_all
        assert (rule.destinations, rule.returns_as, rule.deidentify) == (("pacs",), {}, "none")

    @pytest.mark.parametrize("other", ["[[forward]]\nname = 'all'\n", "[[route]]\nname = 'r'\nmodel = 'm'\n"])
    def test_who_gets_de_identified_images_gets_nothing_with_a_name(self, tmp_path: Path, other: str) -> None:
        rule = "[[forward]]\nname = 'study'\ndeidentify = 'basic'\ndestinations = ['research']\n"
        load(tmp_path, FOLDERS + rule + other + "destinations = ['pacs']\n")
        with pytest.raises(ConfigurationError, match=r"'research' gets de-identified images by forward 'study', and"):
            load(tmp_path, FOLDERS + rule + other + "destinations = ['research']\n")

    @pytest.mark.parametrize(
        "address",
        [
            "type = 'dicom'\nhost = '10.0.0.9'\nport = 104\nae_title = 'PACS'\n",
            "type = 'folder'\npath = '/pacs'\n",
            "type = 'dicomweb'\nurl = 'http://pacs.example/web'\n",
            "type = 's3'\nurl = 'http://s3.example'\nbucket = 'images'\naccess_key = 'a'\nsecret_key = 'b'\n",
            "type = 'sftp'\nhost = 'a'\nport = 22\nuser = 'u'\npassword = 'p'\nknown_hosts = '/k'\npath = '/p'\n",
        ],
    )
    def test_nor_under_another_name_at_the_same_address(self, tmp_path: Path, address: str) -> None:
        both = "".join(f"[[destination]]\nname = '{name}'\n{address}" for name in ("pacs", "research"))
        rules = (
            "[[forward]]\nname = 'all'\ndestinations = ['pacs']\n"
            "[[forward]]\nname = 'study'\ndeidentify = 'basic'\ndestinations = ['research']\n"
        )
        with pytest.raises(ConfigurationError, match=r"by forward 'all' to 'pacs': .* another address"):
            load(tmp_path, both + rules)

    def test_who_gets_de_identified_images_gets_them_in_one_way(self, tmp_path: Path) -> None:
        rule = "[[forward]]\nname = '{}'\ndeidentify = 'basic'\nretain = {}\ndestinations = ['research']\n"
        dates, both = "['full-dates']", "['patient-characteristics', 'full-dates']"
        turned = "['full-dates', 'patient-characteristics']"
        settings = load(tmp_path, FOLDERS + rule.format("a", both) + rule.format("b", turned))
        assert settings.nameless == {"research"}
        with pytest.raises(ConfigurationError, match="retain different things"):
            load(tmp_path, FOLDERS + rule.format("a", both) + rule.format("b", dates))

    @pytest.mark.parametrize(
        ("keys", "said"),
        [
            ("destinations = ['nowhere']", "forward 'f' sends to 'nowhere', but no"),
            ("retain = ['full-dates']", "set deidentify = 'basic'"),
            ("deidentify = 'basic'\nretain = ['full-dates', 'modified-dates']", "not both"),
            ("deidentify = 'basic'\nretain = ['uids']", "retain"),
            ("match = { Modalty = 'CT' }", "no DICOM keyword"),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, tmp_path: Path, keys: str, said: str) -> None:
        with pytest.raises(ConfigurationError, match=said):
            load(tmp_path, f"{FOLDERS}[[forward]]\nname = 'f'\n{keys}\n")
