"""`dicomai routes explain`: what would be run on which images, and which would go on."""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.text import Text

from dicomai import folder
from dicomai.analysis import check
from dicomai.bundle import Bundle
from dicomai.commands.output import console, print_json
from dicomai.config import Settings
from dicomai.deidentification import refusal
from dicomai.errors import NotAcceptedError
from dicomai.forwarding import Deidentify, Forward, why_not
from dicomai.node import bundles_of
from dicomai.routing import Decision, Level, match
from dicomai.stacks import split
from dicomai.study import Series, Stack, is_image


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
    found, forwarded = [], []
    for series in (series for study in studies for series in study.series):
        stacks = split(series)
        if settings.forwards:
            forwarded.append(_forwarded(series, settings.forwards))
        if not stacks:
            unread.append(f"Series {series.series_instance_uid} holds no images: it is stored, never routed.")
        for stack in stacks:
            verdicts = [_verdict(bundles, stack, decision) for decision in match(stack.header, settings.routes)]
            found.append(_described(series, stack, verdicts))
    if as_json:
        print_json({"stacks": found, "forwards": forwarded, "left_out": unread})
    else:
        for one in found:
            _print(one)
        for series_on in forwarded:
            _print_forwarded(series_on)
        for sentence in unread:
            console().print(sentence)
    if not found:
        sys.stderr.write(f"There are no images in {path}.\n")
    return 0 if found else 1


def _forwarded(series: Series, rules: Sequence[Forward]) -> dict[str, Any]:
    """Hold a series against the forward rules."""
    images = [instance.header for instance in series.instances if is_image(instance.header)]
    headers = images or [series.header]
    return {
        "series_instance_uid": series.series_instance_uid,
        "modality": str(series.header.get("Modality") or ""),
        "description": str(series.header.get("SeriesDescription") or ""),
        "instances": len(series.instances),
        "rules": [_onward(series, rule, why_not(headers, rule)) for rule in rules],
    }


def _onward(series: Series, rule: Forward, why: str) -> dict[str, Any]:
    verdict = {"forward": rule.name, "destinations": list(rule.destinations), "deidentify": rule.deidentify.value}
    if why or not rule.destinations:
        return {**verdict, "goes": 0, "sentence": why or "It has no destinations."}
    reasons: Counter[str] = Counter()
    if rule.deidentify is not Deidentify.NONE:
        headers = [instance.header for instance in series.instances]
        reasons.update(filter(None, (refusal(header, is_image=is_image(header)) for header in headers)))
    said = [f"{count} cannot be de-identified: {reason}." for reason, count in reasons.most_common()]
    return {**verdict, "goes": len(series.instances) - reasons.total(), "sentence": " ".join(said)}


def _print_forwarded(one: Mapping[str, Any]) -> None:
    out = console()
    title = f"{one['modality']} {one['description']}".strip() or one["series_instance_uid"]
    out.print(Text.assemble((title, "bold"), f", {one['instances']} instances"))
    for verdict in one["rules"]:
        mark = ("✓", "green") if verdict["goes"] else ("✗", "red")
        how = ", de-identified" if verdict["deidentify"] != Deidentify.NONE.value else ""
        where = f"sends {verdict['goes']} on to {', '.join(verdict['destinations'])}{how}"
        what = where if verdict["goes"] else "sends nothing on"
        said = f": {verdict['sentence']}" if verdict["sentence"] else "."
        out.print(Text.assemble("  ", mark, f" forward {verdict['forward']} {what}{said}"))


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
