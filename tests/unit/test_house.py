"""The house's rules that no linter knows, and that the import contracts fire."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "dicomai"
OURS = sorted(PACKAGE.rglob("*.py"))
ALL = sorted([*OURS, *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")])
DECISIONS = ROOT / "docs" / "decisions"


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_files_stay_under_450_lines() -> None:
    assert {named(p): n for p in OURS if (n := len(p.read_text(encoding="utf-8").splitlines())) >= 450} == {}


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Give the lines of code of each function: without docstring, blank lines and comments."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            if body:
                code = lines[body[0].lineno - 1 : node.end_lineno]
                yield node.name, sum(1 for line in code if line.strip() and not line.strip().startswith("#"))


def test_functions_stay_under_80_lines() -> None:
    written = [path for path in OURS if "versions" not in path.parts]  # a migration is a list of tables
    assert {f"{named(p)}:{name}": n for p in written for name, n in functions(p) if n > 80} == {}


def test_most_functions_stay_under_35_lines() -> None:
    sizes = [n for path in OURS for _, n in functions(path)]
    assert sum(n > 35 for n in sizes) <= 0.05 * len(sizes)


SILENCED = re.compile(r"#\s*(?:noqa|type: ignore)(?P<rules>: [A-Z]+\d+(?:, ?[A-Z]+\d+)*|\[[a-z-, ]+\])?(?P<reason>.*)")


@pytest.mark.parametrize("path", [path for path in ALL if path != Path(__file__)], ids=named)
def test_what_is_silenced_is_named_and_explained(path: Path) -> None:
    found = list(map(SILENCED.search, path.read_text(encoding="utf-8").splitlines()))
    explained = {match["rules"] for match in found if match and match["reason"].strip(" #")}
    for number, match in enumerate(found, 1):
        if match:
            assert match["rules"], f"{named(path)}:{number} silences everything"
            said = match["rules"] in explained or "type: ignore" in match[0] or path.is_relative_to(ROOT / "tests")
            assert said, f"{named(path)}: no line says why {match['rules']} is silenced (line {number})"


MACHINE = re.compile(r"/work/|/tmp/|/root\b|/home/|localhost:\d|10\.0\.2\.|pypi\.org|registry\.npmjs")


@pytest.mark.parametrize(
    "path",
    [*OURS, *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "models").rglob("*.*"))],
    ids=named,
)
def test_nothing_names_the_machine_that_it_was_written_on(path: Path) -> None:
    if path.suffix in {".py", ".md", ".toml", ".json"}:
        found = MACHINE.search(path.read_text(encoding="utf-8"))
        assert not found, f"{named(path)} names {found}"


def test_every_decision_is_in_the_index() -> None:
    index = (DECISIONS / "README.md").read_text(encoding="utf-8")
    records = sorted(path.name for path in DECISIONS.glob("[0-9]*.md"))
    assert records
    assert re.findall(r"\]\((\d{4}-[a-z0-9-]+\.md)\)", index) == records
    for name in records:
        text = (DECISIONS / name).read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 60, f"{name} is longer than a page"
        for heading in ("## Why", "## Decision", "## Consequences"):
            assert heading in text, f"{name} has no '{heading}'"


def links() -> Iterator[tuple[Path, str]]:
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "models").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)", document.read_text(encoding="utf-8")):
            if "://" not in target and not target.startswith("mailto:"):
                yield document, target


def test_links_between_documents_lead_somewhere() -> None:
    assert [f"{named(d)} -> {t}" for d, t in links() if not (d.parent / t).exists()] == []


def test_every_package_of_ours_is_pinned_within_its_range() -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    pins: dict[str, str] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            name, version = re.fullmatch(r"([A-Za-z0-9._-]+)==([\w.]+)", line).groups()  # type: ignore[union-attr]
            pins[canonicalize_name(name)] = version
    needs = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    needs += project["project"]["optional-dependencies"]["dev"]
    for need in map(Requirement, needs):
        assert need.specifier.contains(pins[canonicalize_name(need.name)]), f"{need} is pinned outside of its range"
    assert pins["torch"] == "2.13.0"
    assert "pylibjpeg-libjpeg" not in pins, "GPL"


def test_the_study_of_the_demo_is_whole(demo_study: tuple[Path, ...]) -> None:
    headers = [pydicom.dcmread(path) for path in demo_study]
    assert len({ds.SOPInstanceUID for ds in headers}) == 20
    assert {ds.SeriesDescription for ds in headers} == {"FSE PD AXIAL OBL"}
    assert all(len(ds.PixelData) == 256 * 256 * 2 for ds in headers)
    assert all(element.tag.group for ds in headers for element in ds)
    assert (demo_study[0].parent / "LICENSE").is_file()


# What each contract forbids: a file, what is added to it, and the words with which import-linter says no.
FORBIDDEN = {
    "a noun needs torch": ("study.py", "import torch", "no torch BROKEN"),
    "a noun needs the network": ("routing.py", "import socket", "no network, no SQL, no torch BROKEN"),
    "a noun needs work": ("study.py", "import dicomai.config", "one way BROKEN"),
    "torch elsewhere": ("store.py", "import torch", "torch and monai only in inference and training BROKEN"),
    "monai in an edge": (
        "receiver/_x.py",
        "import monai.data",
        "torch and monai only in inference and training BROKEN",
    ),
    "pynetdicom elsewhere": ("worker.py", "import pynetdicom", "destinations.dimse BROKEN"),
    "pynetdicom in a folder": ("destinations/_x.py", "from pynetdicom import AE", "destinations.dimse BROKEN"),
    "SQL elsewhere": ("planner.py", "import sqlalchemy", "SQL only in database BROKEN"),
    "migrations elsewhere": ("node.py", "from alembic import command", "SQL only in database BROKEN"),
    "outputs see the database": ("outputs/_x.py", "import dicomai.database", "one way BROKEN"),
    "outputs see the console": ("outputs/_x.py", "import dicomai.console", "one way BROKEN"),
    "destinations see the database": ("destinations/_x.py", "import dicomai.database", "one way BROKEN"),
    "destinations see the console": ("destinations/_x.py", "import dicomai.console", "one way BROKEN"),
    "the database sees an edge": ("database/_x.py", "import dicomai.destinations", "one way BROKEN"),
    "the log sees the configuration": ("log.py", "import dicomai.config", "one way BROKEN"),
    "a module without a place": ("helpers.py", "import json", "not listed as layers"),
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("house")
    shutil.copytree(PACKAGE, folder / "dicomai", ignore=shutil.ignore_patterns("*.dcm", "__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    for name in ("console", "destinations", "outputs", "receiver"):  # those that later work brings
        (folder / "dicomai" / name).mkdir(exist_ok=True)
        (folder / "dicomai" / name / "__init__.py").touch()
    return folder


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"],
        cwd=folder, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


@pytest.mark.slow
def test_the_house_as_it_stands_keeps_its_contracts(copy: Path) -> None:
    result = lint(copy)
    assert result.returncode == 0, result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("case", FORBIDDEN)
def test_a_forbidden_import_breaks_its_contract(copy: Path, case: str) -> None:
    name, line, sentence = FORBIDDEN[case]
    path = copy / "dicomai" / name
    before = path.read_text(encoding="utf-8") if path.exists() else None
    path.write_text(f"{before or ''}\n{line}\n", encoding="utf-8")
    try:
        result = lint(copy)
    finally:
        if before is None:
            path.unlink()
        else:
            path.write_text(before, encoding="utf-8")
    assert result.returncode != 0
    assert sentence in result.stdout
