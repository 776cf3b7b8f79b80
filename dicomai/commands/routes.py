"""`dicomai routes explain`."""

from pathlib import Path
from typing import Any

from dicomai import folder
from dicomai.analysis import check
from dicomai.commands.output import console, print_json
from dicomai.config import Settings
from dicomai.errors import NotAcceptedError
from dicomai.node import bundles_of
from dicomai.routing import match
from dicomai.stacks import split


def explain(settings: Settings, path: Path, *, as_json: bool) -> int:
    """Say of every stack of images in a folder which routes take it, and why the others do not."""
    bundles = bundles_of(settings)
    studies, unread = folder.read(path)
    found: list[dict[str, Any]] = []
    for series in (series for study in studies for series in study.series):
        for stack in split(series):
            routes = []
            for decision in match(stack.header, settings.routes):
                verdict = decision.why_not
                runs = decision.matches
                if runs:
                    try:
                        bundle = bundles[decision.route.model]
                        verdict = " ".join(
                            check(bundle, {bundle.inputs[0].role: stack}, decision.route.outside_validated)
                        )
                    except NotAcceptedError as error:
                        runs, verdict = False, str(error)
                routes.append({"route": decision.route.name, "runs": runs, "sentence": verdict})
            found.append(
                {
                    "series_instance_uid": series.series_instance_uid,
                    "modality": str(series.header.get("Modality") or ""),
                    "description": str(series.header.get("SeriesDescription") or ""),
                    "stack": stack.key,
                    "frames": len(stack.frames),
                    "routes": routes,
                }
            )
    if as_json:
        print_json({"stacks": found, "unread": unread})
        return 0
    out = console()
    for one in found:
        out.print(
            f"[bold]{one['modality']} {one['description']}[/bold]  {one['frames']} frames  {one['stack']}", markup=True
        )
        for route in one["routes"]:
            out.print(
                f"  {'runs    ' if route['runs'] else 'does not'}  {route['route']}  {route['sentence']}", markup=False
            )
        if not one["routes"]:
            out.print("  No route is configured.")
    for sentence in unread:
        out.print(sentence, markup=False)
    if not found:
        out.print(f"There are no images in {path}.")
    return 0
