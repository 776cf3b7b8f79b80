"""`dicomai run`: the same work as a node's, on a folder, without a network."""

import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from dicomai import bundle as bundles
from dicomai import folder, inference, render, weights, words
from dicomai.analysis import Analysis, Request, analyse, check
from dicomai.bundle import Bundle
from dicomai.commands import models
from dicomai.commands.output import console, print_json
from dicomai.config import Settings
from dicomai.errors import ConfigurationError, DicomaiError, IdentityError, NotAcceptedError
from dicomai.findings import Outcome
from dicomai.routing import Level, OutsideValidated, Route, match
from dicomai.stacks import split
from dicomai.study import Series, Stack, Study, series_number


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
    """Analyse a study in a folder and write the results to another: one folder for each run of a model.

    Returns:
        0 if there was something to analyse and all of it was, else 1.

    Raises:
        ConfigurationError: there is no such folder, model or device, or `out` cannot be written.
        BundleError: a model or its weights are not in order.
        IdentityError: the images of a study disagree in whose they are.
    """
    studies, left_out = folder.read(path)
    for study in studies:
        _refuse_mixed(study)
    tasks: list[Task] = []
    for found in _tasks(settings, studies, model, outside_validated=outside_validated):
        if isinstance(found, Task):
            tasks.append(found)
        else:
            left_out.append(found)
    located = {task.bundle.name: weights.located(task.bundle, settings.node.storage) for task in tasks}
    _make(out)
    reports = _work(settings, tasks, located, out, quiet=as_json)
    _print(reports, left_out, as_json=as_json)
    return 0 if reports and not any("error" in report for report in reports) else 1


def _work(
    settings: Settings, tasks: Sequence[Task], located: Mapping[str, Path], out: Path, *, quiet: bool
) -> list[dict[str, Any]]:
    """Run one task after another, and say of each what came of it."""
    reports: list[dict[str, Any]] = []
    engines: dict[str, inference.Engine] = {}
    screen = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=screen, transient=True, disable=quiet or not screen.is_terminal) as bar:
        for number, task in enumerate(tasks, 1):
            name = task.bundle.name
            line = bar.add_task(f"{name} on {_label(task.series)}", total=1.0)
            try:
                _check(task)
                if name not in engines:
                    engines[name] = inference.load(task.bundle, located[name], settings.worker.device)
                analysis = analyse(_request(settings, task), engines[name], _Reporter(bar, line))
            except ConfigurationError:
                raise
            except DicomaiError as error:
                reports.append({"series": _label(task.series), "model": name, "error": str(error)})
                continue
            reports.append(_write(out / f"{number}-{name}", task, analysis))
    return reports


@dataclass(frozen=True, slots=True)
class _Reporter:
    """Moves a line of the progress bar."""

    bar: Progress
    line: Any

    def __call__(self, done: float) -> None:
        self.bar.update(self.line, completed=done)


def _check(task: Task) -> None:
    """Refuse what `analyse` would refuse, in the words of this command."""
    if task.outside_validated is OutsideValidated.REFUSE:
        remarks = check(task.bundle, {task.bundle.inputs[0].role: task.stack}, OutsideValidated.REPORT)
        if remarks:
            raise NotAcceptedError(
                f"{' '.join(remarks)} Where a result is wanted all the same, say --outside-validated."
            )


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / ".write").touch()
        (out / ".write").unlink()
    except OSError as error:
        raise ConfigurationError(f"{out} cannot be written ({error.strerror}): name another by --out.") from error


def _tasks(
    settings: Settings, studies: Sequence[Study], model: str | None, *, outside_validated: bool
) -> Iterator[Task | str]:
    """Give what to run, by the model that was named or by the routes; and in a sentence each what is left out."""
    where = models.folder(settings)
    only = model or _only_model(settings)
    named = bundles.find(only, where) if only is not None else None
    for study in studies:
        stacks = [(series, stack) for series in study.series for stack in split(series)]
        for series in study.series:
            if not any(one is series for one, _ in stacks):
                yield f"{_label(series)}: holds no images."
        if named is not None:
            said = OutsideValidated.REPORT if outside_validated else OutsideValidated.REFUSE
            for series, stack in stacks:
                yield from _accepted(Task(study, series, stack, named, ("seg", "sr"), said))
            continue
        for route in settings.routes:
            said = OutsideValidated.REPORT if outside_validated else route.outside_validated
            bundle = bundles.find(route.model, where)
            skipped: list[str] = []
            for series, stack in _taken(route, bundle, stacks, skipped):
                yield from _accepted(Task(study, series, stack, bundle, route.outputs, said))
            yield from skipped


def _accepted(task: Task) -> Iterator[Task | str]:
    try:
        task.bundle.accept(task.stack.header)
    except NotAcceptedError as error:
        yield f"{_label(task.series)}: {error}"
    else:
        yield task


def _taken(
    route: Route, bundle: Bundle, stacks: Sequence[tuple[Series, Stack]], skipped: list[str]
) -> list[tuple[Series, Stack]]:
    """Choose the stacks that a route takes; why the others are not goes to `skipped`."""
    taken = []
    for series, stack in stacks:
        (decision,) = match(stack.header, (route,))
        if decision.matches:
            taken.append((series, stack))
        else:
            skipped.append(f"{_label(series)}: route '{route.name}': {decision.why_not}.")
    roles = len(bundle.inputs)
    if taken and (roles > 1 or (route.level is Level.STUDY and len(taken) > 1)):
        skipped.append(
            f"Route '{route.name}' matches {len(taken)} stacks of this study, but {route.model} takes {roles}: "
            "narrow its match, so that it is clear which is meant."
        )
        return []
    return taken


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
    numbers = {series_number(series.header) for series in task.study.series}
    return Request(
        bundle=task.bundle,
        inputs={task.bundle.inputs[0].role: task.stack},
        newest=task.stack.header,
        outside_validated=task.outside_validated,
        outputs=task.outputs,
        work_digest=uuid.uuid4().hex,  # every run makes objects of its own
        generation=0,
        installation=str(uuid.uuid4()),
        series_numbers=frozenset(number for number in numbers if number is not None),
        supersedes=(),
        timezone=settings.node.timezone,
        threads=settings.worker.threads,
    )


def _write(out: Path, task: Task, analysis: Analysis) -> dict[str, Any]:
    findings = analysis.findings
    files = {out / f"{built.output}.dcm": built.data for built in analysis.objects}
    picture = out / "overlay.png"
    try:
        out.mkdir(parents=True, exist_ok=True)
        for file, data in files.items():
            file.write_bytes(data)
        render.montage(analysis.volume, findings).save(picture)
    except OSError as error:
        raise ConfigurationError(f"{out} cannot be written ({error.strerror}): name another by --out.") from error
    return {
        "series": _label(task.series),
        "series_instance_uid": task.series.series_instance_uid,
        "stack": task.stack.key,
        "model": task.bundle.name,
        "version": task.bundle.version,
        "outcome": findings.outcome.value,
        "measurements": [
            {
                "segment": m.segment.label,
                "name": m.name.meaning,
                "value": round(float(m.value), 3),
                "unit": m.unit.value,
            }
            for m in findings.measurements
        ],
        "statements": [f"{one.about}: {one.value}" for one in words.statements(findings)],
        "remarks": list(findings.remarks),
        "files": [str(file) for file in (*files, picture)],
    }


def _print(reports: Sequence[dict[str, Any]], left_out: Sequence[str], *, as_json: bool) -> None:
    """Print the results; what went wrong, and what there was nothing to do with, on standard error."""
    if as_json:
        print_json({"results": reports, "left_out": left_out})
    out = console()
    for report in reports:
        if "error" in report:
            sys.stderr.write(f"{report['series']} was not analysed: {report['error']}\n")
        elif not as_json:
            _print_one(out, report)
    for sentence in () if as_json else left_out:
        sys.stderr.write(f"Left out: {sentence}\n")
    if not reports:
        sys.stderr.write("Nothing was analysed: no images in the folder are such that a model or a route takes them.\n")


def _print_one(out: Console, report: dict[str, Any]) -> None:
    out.print(f"{report['series']}: {report['model']} {report['version']}, made by an algorithm, unverified")
    for m in report["measurements"]:
        out.print(f"  {m['segment']}: {m['name'].lower()} {m['value']:.1f} {m['unit']}")
    for statement in report["statements"]:
        out.print(f"  {statement}")
    if report["outcome"] == Outcome.NEGATIVE and not report["statements"]:
        out.print("  Looked for and not found.")
    for remark in report["remarks"]:
        out.print(f"  Note: {remark}")
    for file in report["files"]:
        out.print(f"  {file}")


def _label(series: Series) -> str:
    header = series.header
    parts = (f"S{header.get('SeriesNumber', '?')}", header.get("Modality"), header.get("SeriesDescription"))
    return " ".join(str(part) for part in parts if part)
