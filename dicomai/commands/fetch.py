"""`dicomai fetch`."""

import contextlib
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from dicomai import log
from dicomai.commands.output import console, print_json, print_table
from dicomai.commands.worklist import database as open_database
from dicomai.config import Settings, SourceSettings
from dicomai.database import Database
from dicomai.errors import ConfigurationError, DicomaiError
from dicomai.intake import Intake
from dicomai.roles import intake_of, locked
from dicomai.sources.fetch import Fetcher, Item, Plan
from dicomai.sources.query import Query
from dicomai.store import Store

ON_AGAIN = "The same command goes on from here."


@dataclass(frozen=True, slots=True)
class Options:
    """How to fetch.

    Attributes:
        method: instead of the source's own.
        limit: the most studies.
        dry_run: only say what there is.
        as_json: print JSON.
    """

    method: Literal["move", "get"] | None = None
    limit: int | None = None
    dry_run: bool = False
    as_json: bool = False


def fetch(settings: Settings, name: str, query: Query, options: Options) -> int:
    """Fetch studies from a source; those that are here in full are left alone.

    Returns:
        0 if everything that was asked for is here now, else 1.

    Raises:
        ConfigurationError: there is no such source, or another fetch by C-GET is under way.
        DeliveryError: the source cannot be reached, or refuses the query.
        StoreError: the database did not answer.
    """
    log.configure(settings.node.log, level="WARNING", role="fetch")
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)  # what it warns of is said in sentences of ours
    source = settings.source_named(name)
    method = options.method or source.method
    database = open_database(settings)
    with _way_in(settings, database, by_get=method == "get" and not options.dry_run) as intake:
        fetcher = Fetcher(source, database, calling_ae=settings.node.ae_title, tls=settings.tls, intake=intake)
        with _bar("asking", quiet=options.as_json) as (bar, task):
            plan = fetcher.plan(query, options.limit, lambda done, total: bar.update(task, completed=done, total=total))
        _say_strangers(plan, source)
        if not plan.items:
            return _nothing(plan, query, source, options)
        if not options.as_json:
            _say_plan(plan, source, method, options)
        failed = options.dry_run or _fetch(fetcher, plan, options)
    if options.as_json:
        print_json(_as_json(plan))
    elif not options.dry_run:
        _say_end(plan, source)
    return 0 if options.dry_run or not (failed or any(not item.is_whole for item in plan.items)) else 1


def _fetch(fetcher: Fetcher, plan: Plan, options: Options) -> bool:
    """Fetch, and show how far it is; tells whether it ended before its time, after saying why."""
    try:
        with _bar("fetching", quiet=options.as_json) as (bar, task):
            bar.update(task, total=plan.missing)
            for items in fetcher.fetch(plan, lambda done: bar.update(task, completed=done)):
                if bar.disable and not options.as_json:
                    _say_study(items)
    except DicomaiError as error:
        sys.stderr.write(f"{error} {ON_AGAIN}\n")
        return True
    except KeyboardInterrupt:
        sys.stderr.write(f"Interrupted. {ON_AGAIN}\n")
        raise
    return False


@contextlib.contextmanager
def _way_in(settings: Settings, database: Database, *, by_get: bool) -> Iterator[Intake | None]:
    """Lend what takes in instances that come by C-GET; by C-MOVE they come through the receiver.

    Raises:
        ConfigurationError: another process has it.
    """
    with contextlib.ExitStack() as stack:
        if not by_get:
            yield None
            return
        try:
            stack.enter_context(locked(settings.node.storage / "fetch.lock", patience=0.0))
        except ConfigurationError as error:
            raise ConfigurationError(
                "Another `dicomai fetch` brings images into this storage by C-GET: wait for its end."
            ) from error
        intake = intake_of(settings, Store(settings.node.storage, way_in="fetch"), database)
        intake.recover()
        yield intake


@contextlib.contextmanager
def _bar(what: str, *, quiet: bool) -> Iterator[tuple[Progress, TaskID]]:
    """Show a bar on a terminal."""
    screen = Console(stderr=True)
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=screen, transient=True, disable=quiet or not screen.is_terminal) as bar:
        yield bar, bar.add_task("", total=None)


def _nothing(plan: Plan, query: Query, source: SourceSettings, options: Options) -> int:
    """Say that nothing was found: a failure, unless a range of days just has no studies."""
    if options.as_json:
        print_json(_as_json(plan))
    what = "of that UID" if query.study_instance_uid else "with that accession number"
    sys.stderr.write(
        f"Source '{source.name}' has no studies of these days that fit.\n"
        if query.dates
        else f"Source '{source.name}' has no study {what} that fits: check it there.\n"
    )
    return 0 if query.dates and not plan.strangers else 1


def _say_strangers(plan: Plan, source: SourceSettings) -> None:
    if plan.strangers:
        sys.stderr.write(
            f"Source '{source.name}' gave {plan.strangers} answers that do not fit what it was asked for; they are"
            " left out.\n"
        )


def _say_plan(plan: Plan, source: SourceSettings, method: str, options: Options) -> None:
    if options.dry_run:
        rows = [(_study(i), _day(i), _modality(i), _series(i), i.series.instances, i.here) for i in plan.items]
        print_table(("STUDY", "DATE", "MODALITY", "SERIES", "IMAGES", "HERE"), rows, "")
    studies = len({_study(item) for item in plan.items})
    images = sum(item.series.instances for item in plan.items)
    console().print(
        f"{source.name} has {_count(studies, 'study', 'studies')}, {_count(len(plan.items), 'series', 'series')},"
        f" {_count(images, 'image', 'images')}; {plan.missing} to fetch by C-{method.upper()}."
    )


def _say_study(items: Sequence[Item]) -> None:
    """Say in one line what came of a study."""
    if items:
        here, there = sum(i.here for i in items), sum(i.series.instances for i in items)
        console().print(f"Study {_study(items[0])} ({_day(items[0])}): {here} of {there} images are here.")


def _say_end(plan: Plan, source: SourceSettings) -> None:
    for item in plan.items:
        if item.problem and not item.is_whole:
            sys.stderr.write(
                f"Study {_study(item)}, series {_series(item)} ({_modality(item)}): {item.here} of"
                f" {item.series.instances} images are here. {item.problem}.\n"
            )
    whole = sum(item.is_whole for item in plan.items)
    console().print(f"{whole} of {_count(len(plan.items), 'series', 'series')} of {source.name} are here in full.")


def _as_json(plan: Plan) -> dict[str, Any]:
    return {
        "series": [
            {
                "study_instance_uid": _study(item),
                "study_date": _day(item),
                "series_instance_uid": _series(item),
                "modality": _modality(item),
                "images": item.series.instances,
                "here": item.here,
                "in_full": item.is_whole,
                "problem": item.problem,
            }
            for item in plan.items
        ],
        "left_out": plan.strangers,
    }


def _count(number: int, one: str, several: str) -> str:
    return f"{number} {one if number == 1 else several}"


def _study(item: Item) -> str:
    return item.study.study_instance_uid


def _series(item: Item) -> str:
    return item.series.series_instance_uid


def _modality(item: Item) -> str:
    return item.series.modality


def _day(item: Item) -> str:
    return item.study.day.isoformat() if item.study.day else ""
