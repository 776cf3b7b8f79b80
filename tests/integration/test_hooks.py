"""The pre-commit hooks, shown to fire: a commit that breaks a rule of the house is refused."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed"),
    pytest.mark.skipif(not (Path(sys.prefix) / "bin" / "pre-commit").exists(), reason="runs in .venv only"),
]


def git(folder: Path, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    environment |= {"PRE_COMMIT_HOME": str(folder.parent / "pre-commit"), "GIT_CONFIG_GLOBAL": os.devnull}
    who = ["-c", "user.name=A Person", "-c", "user.email=person@example.org"]
    return subprocess.run(
        ["git", *who, *words], cwd=folder, env=environment, capture_output=True, text=True, check=check, timeout=120
    )


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hooks") / "clone with a space"
    shutil.copytree(ROOT / "dicomai", folder / "dicomai", ignore=shutil.ignore_patterns("*.dcm", "__pycache__"))
    for name in ("pyproject.toml", ".pre-commit-config.yaml", ".gitignore"):
        shutil.copy(ROOT / name, folder)
    (folder / ".venv").symlink_to(Path(sys.prefix), target_is_directory=True)
    (folder / ".gitignore").write_text(".venv\n", encoding="utf-8")
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "as it stands")
    subprocess.run(
        [Path(sys.prefix) / "bin" / "pre-commit", "install"], cwd=folder, check=True, capture_output=True, timeout=60
    )
    return folder


BROKEN = {
    "ruff check": ("dicomai/_new.py", '"""A module."""\n\nimport os\n'),
    "ruff format": ("dicomai/_new.py", '"""A module."""\n\nVALUE = {"a":1,\n  "b":2}\n'),
    "mypy": ("dicomai/errors.py", '\nVALUE: int = "text"\n'),
    "import contracts": ("dicomai/errors.py", "\nimport dicomai.study  # noqa: E402\n"),
}


@pytest.mark.parametrize("hook", BROKEN)
def test_a_commit_that_breaks_a_rule_is_refused(clone: Path, hook: str) -> None:
    name, text = BROKEN[hook]
    path = clone / name
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    path.write_text(before + text, encoding="utf-8")
    git(clone, "add", name)
    result = git(clone, "commit", "--message", "broken", check=False)
    git(clone, "reset", "--quiet", "--hard")
    said = result.stdout + result.stderr
    assert result.returncode != 0, said
    assert any(line.startswith(hook) and line.endswith("Failed") for line in said.splitlines()), said


def test_a_commit_that_keeps_the_rules_goes_through(clone: Path) -> None:
    (clone / "NOTES.md").write_text("Nothing to check here.\n", encoding="utf-8")
    git(clone, "add", "NOTES.md")
    git(clone, "commit", "--quiet", "--message", "kept")
    assert git(clone, "log", "-1", "--format=%s").stdout.strip() == "kept"
