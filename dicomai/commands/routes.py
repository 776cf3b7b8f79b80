"""`dicomai routes explain`."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.text import Text

from dicomai import folder
from dicomai.analysis import check
from dicomai.bundle import Bundle
from dicomai.commands.output import console, print_json
from dicomai.config import Settings
from dicomai.errors import NotAcceptedError
from dicomai.node import bundles_of
from dicomai.routing import Decision, Level, match
from dicomai.stacks import split
from dicomai.study import Series, Stack


def explain(settings: Settings, path: Path, *, as_json: bool) -> int:
    """Say of every stack of images in a folder which routes take it, and why the others do not.

    Returns:
        0 if there were images, else 1.

    Raises:
        ConfigurationError: there is no such folder.
        BundleError: a route names a model that is missing or not sound.
    """
    bundles = bundles_of(settings)
    studies, unread = folder.read(path)
    found = []
    for series in (series for study in studies for series in study.series):
        stacks = split(series)
        if not stacks:
            unread.append(f"Series {series.series_instance_uid} holds no images: it is stored, never routed.")
        for stack in stacks:
            verdicts = [_verdict(bundles, stack, decision) for decision in match(stack.header, settings.routes)]
            found.append(_described(series, stack, verdicts))
    if as_json:
        print_json({"stacks": found, "left_out": unread})
    else:
        for one in found:
            _print(one)
        for sentence in unread:
            console().print(sentence)
    if not found:
        sys.stderr.write(f"There are no images in {path}.\n")
    return 0 if found else 1


def _verdict(bundles: Mapping[str, Bundle], stack: Stack, decision: Decision) -> dict[str, Any]:
    """Hold a stack against a route, then against the route's model."""
    route = decision.route
    verdict = {"route": route.name, "model": route.model, "level": route.level.value}
    if not decision.matches:
        return {**verdict, "runs": False, "sentence": f"{decision.why_not}."}
    bundle = bundles[route.model]
    try:
        remarks = check(bundle, {bundle.inputs[0].role: stack}, route.outside_validated)
    except NotAcceptedError as error:
        return {**verdict, "runs": False, "sentence": str(error)}
    whole = ("It waits until the whole study is complete.",) if route.level is Level.STUDY else ()
    return {**verdict, "runs": True, "sentence": " ".join((*whole, *remarks))}


def _described(series: Series, stack: Stack, verdicts: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "series_instance_uid": series.series_instance_uid,
        "modality": str(stack.header.get("Modality") or ""),
        "description": str(stack.header.get("SeriesDescription") or ""),
        "stack": stack.key,
        "frames": len(stack.frames),
        "routes": verdicts,
    }


def _print(one: Mapping[str, Any]) -> None:
    out = console()
    title = f"{one['modality']} {one['description']}".strip() or one["series_instance_uid"]
    out.print(Text.assemble((title, "bold"), f", {one['frames']} slices ({one['stack']})"))
    for verdict in one["routes"]:
        mark, what = (("✓", "green"), "runs") if verdict["runs"] else (("✗", "red"), "does not run")
        said = f": {verdict['sentence']}" if verdict["sentence"] else "."
        out.print(Text.assemble("  ", mark, f" route {verdict['route']} {what} {verdict['model']}{said}"))
    if not one["routes"]:
        out.print("  No route is configured.")
