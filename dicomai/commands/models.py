"""`dicomai models`."""

from pathlib import Path

from dicomai import bundle, weights
from dicomai.commands.output import console, print_json, print_table
from dicomai.config import Settings
from dicomai.errors import BundleError


def folder(settings: Settings) -> Path:
    """The models' folder: the configured one, else the one that comes with dicomai."""
    return settings.node.models or bundle.packaged()


def show_all(settings: Settings, *, as_json: bool) -> int:
    """List models, and whether their weights are here."""
    rows = []
    for name in bundle.names(folder(settings)):
        try:
            one = bundle.find(name, folder(settings))
        except BundleError as error:
            rows.append({"name": name, "version": "", "takes": "", "weights": "", "problem": str(error)})
            continue
        rows.append(
            {
                "name": one.name,
                "version": one.version,
                "takes": ", ".join(f"{i.role}: {'/'.join(i.modality)}" for i in one.inputs),
                "weights": _weights(one, settings.node.storage),
                "problem": "",
            }
        )
    if as_json:
        print_json(rows)
    else:
        print_table(
            ("MODEL", "VERSION", "TAKES", "WEIGHTS", "PROBLEM"),
            [tuple(row.values()) for row in rows],
            f"There are no models in {folder(settings)}.",
        )
    return 0


def pull(settings: Settings, name: str, source: Path | None) -> int:
    """Get a model's weights."""
    one = bundle.find(name, folder(settings))
    where = weights.pull(one, settings.node.storage, source)
    console().print(f"The weights of {one.name} {one.version} are in {where}, their digests checked.")
    return 0


def check(settings: Settings, path: Path, *, as_json: bool) -> int:
    """Look a bundle over."""
    from dicomai import inference  # noqa: PLC0415  imports torch; no other command of this file needs it

    problems = inference.check(path, settings.node.storage)
    if as_json:
        print_json({"path": str(path), "problems": problems})
    else:
        for problem in problems:
            console().print(problem)
        if not problems:
            console().print(f"{path.resolve().name} can run.")
    return 1 if problems else 0


def _weights(one: bundle.Bundle, storage: Path) -> str:
    try:
        weights.located(one, storage)
    except BundleError:
        return "missing: run `dicomai models pull " + one.name + "`"
    return "here"
