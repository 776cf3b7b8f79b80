"""`dicomai run`: the same work as a node's, on a folder, without a network."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from dicomai import bundle as bundles
from dicomai import folder, inference, render, weights
from dicomai.analysis import Analysis, Request, analyse
from dicomai.bundle import Bundle
from dicomai.commands import models
from dicomai.commands.output import console, print_json
from dicomai.config import Settings
from dicomai.errors import ConfigurationError, DicomaiError, IdentityError, NotAcceptedError
from dicomai.routing import OutsideValidated, match
from dicomai.stacks import split
from dicomai.study import Series, Stack, Study


@dataclass(frozen=True, slots=True)
class Task:
    """One run of one model on one stack."""

    study: Study
    series: Series
    stack: Stack
    bundle: Bundle
    outputs: tuple[str, ...]
    outside_validated: OutsideValidated


def run(settings: Settings, path: Path, out: Path, model: str | None, *, outside_validated: bool, as_json: bool) -> int:
    """Analyse a study in a folder and write the results to another.

    Returns:
        0 if every stack that a model takes was analysed, else 1.
    """
    studies, sentences = folder.read(path)
    for study in studies:
        _refuse_mixed(study)
    tasks, left_out = _tasks(settings, studies, model, outside_validated=outside_validated)
    sentences += left_out
    reports: list[dict[str, Any]] = []
    engines: dict[str, inference.Engine] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=as_json) as bar:
        for number, task in enumerate(tasks, 1):
            line = bar.add_task(f"{task.bundle.name} on {_label(task.series)}", total=1.0)
            name = task.bundle.name
            if name not in engines:
                located = weights.located(task.bundle, settings.node.storage)
                engines[name] = inference.load(task.bundle, located, settings.worker.device)
            try:
                analysis = analyse(
                    _request(settings, task), engines[name], lambda x, line=line: bar.update(line, completed=x)
                )  # type: ignore[misc]
            except DicomaiError as error:
                reports.append({"series": _label(task.series), "model": name, "error": str(error)})
                continue
            reports.append(_write(out / f"{number}-{name}", task, analysis))
    _print(reports, sentences, as_json=as_json)
    return 0 if reports and not any("error" in report for report in reports) else 1


def _tasks(
    settings: Settings, studies: Sequence[Study], model: str | None, *, outside_validated: bool
) -> tuple[list[Task], list[str]]:
    """What to run: the model that was named on every stack that it takes, or what the routes say."""
    only = model or _only_model(settings)
    tasks, left_out = [], []
    for study, series in ((study, series) for study in studies for series in study.series):
        stacks = split(series)
        if not stacks:
            left_out.append(f"{_label(series)}: holds no images.")
        for stack in stacks:
            if only is not None:
                bundle = bundles.find(only, models.folder(settings))
                said = OutsideValidated.REPORT if outside_validated else OutsideValidated.REFUSE
                try:
                    bundle.accept(stack.header)
                except NotAcceptedError as error:
                    left_out.append(f"{_label(series)}: {error}")
                    continue
                tasks.append(Task(study, series, stack, bundle, ("seg", "sr"), said))
                continue
            for decision in match(stack.header, settings.routes):
                if not decision.matches:
                    left_out.append(f"{_label(series)}: route {decision.route.name}: {decision.why_not}.")
                    continue
                bundle = bundles.find(decision.route.model, models.folder(settings))
                said = OutsideValidated.REPORT if outside_validated else decision.route.outside_validated
                tasks.append(Task(study, series, stack, bundle, decision.route.outputs, said))
    return tasks, left_out


def _only_model(settings: Settings) -> str | None:
    """Without a model in the call the routes decide; without routes the only model there is."""
    if settings.route:
        return None
    names = bundles.names(models.folder(settings))
    if len(names) == 1:
        return names[0]
    raise ConfigurationError(f"Say which model to run by --model; there are: {', '.join(names) or 'none'}.")


def _refuse_mixed(study: Study) -> None:
    first = study.series[0].instances[0].identity
    for series in study.series:
        for instance in series.instances:
            differences = first.differences(instance.identity)
            if differences:
                raise IdentityError(
                    f"The images of study {study.study_instance_uid} disagree in {', '.join(differences)}; "
                    "put one patient's images into the folder."
                )


def _request(settings: Settings, task: Task) -> Request:
    numbers = {series.header.get("SeriesNumber") for series in task.study.series}
    return Request(
        bundle=task.bundle,
        inputs={task.bundle.inputs[0].role: task.stack},
        newest=task.stack.header,
        outside_validated=task.outside_validated,
        outputs=task.outputs,
        work_digest=uuid.uuid4().hex,  # every run makes objects of its own
        generation=0,
        installation=str(uuid.uuid4()),
        series_numbers=frozenset(int(number) for number in numbers if number is not None),
        supersedes=(),
        timezone=settings.node.timezone,
        threads=settings.worker.threads,
    )


def _write(out: Path, task: Task, analysis: Analysis) -> dict[str, Any]:
    out.mkdir(parents=True, exist_ok=True)
    files = []
    for built in analysis.objects:
        file = out / f"{built.output}.dcm"
        file.write_bytes(built.data)
        files.append(str(file))
    picture = out / "overlay.png"
    render.montage(analysis.volume, analysis.findings).save(picture)
    return {
        "series": _label(task.series),
        "model": f"{task.bundle.name} {task.bundle.version}",
        "measurements": [
            {
                "segment": m.segment.label,
                "name": m.name.meaning,
                "value": round(float(m.value), 3),
                "unit": m.unit.value,
            }
            for m in analysis.findings.measurements
        ],
        "remarks": list(analysis.findings.remarks),
        "files": [*files, str(picture)],
    }


def _print(reports: Sequence[dict[str, Any]], sentences: Sequence[str], *, as_json: bool) -> None:
    if as_json:
        print_json({"results": reports, "not_analysed": sentences})
        return
    out = console()
    for report in reports:
        if "error" in report:
            out.print(f"{report['series']}: not analysed. {report['error']}", markup=False)
            continue
        out.print(f"{report['series']}: {report['model']}, made by an algorithm, unverified", markup=False)
        for m in report["measurements"]:
            out.print(f"  {m['segment']}: {m['name'].lower()} {m['value']:.1f} {m['unit']}", markup=False)
        for remark in report["remarks"]:
            out.print(f"  Note: {remark}", markup=False)
        for file in report["files"]:
            out.print(f"  {file}", markup=False)
    for sentence in sentences:
        out.print(f"Left out: {sentence}", markup=False)
    if not reports:
        out.print("Nothing was analysed.")


def _label(series: Series) -> str:
    header = series.header
    parts = (f"S{header.get('SeriesNumber', '?')}", header.get("Modality"), header.get("SeriesDescription"))
    return " ".join(str(part) for part in parts if part)
