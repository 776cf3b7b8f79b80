"""The command line: parses arguments and calls; nothing else."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from dicomai import __version__, config
from dicomai.config import Settings
from dicomai.errors import ConfigurationError, DicomaiError

Command = Callable[[argparse.Namespace, Settings], int]
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

# What a command imports, it imports when it is called: `dicomai --help` and the receiver stay quick.
# ruff: noqa: PLC0415


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        0 done, 1 the work failed, 2 the call or the configuration is wrong, 130 interrupted.
    """
    namespace = parser().parse_args(arguments)
    command: Command = namespace.command
    try:
        status = command(namespace, config.load(namespace.config))
        sys.stdout.flush()
    except ConfigurationError as error:
        return _say(error, 2)
    except DicomaiError as error:
        return _say(error, 1)
    except BrokenPipeError:
        # Who read our output has had enough; the interpreter must not try to flush the rest at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    return status


def _say(error: DicomaiError, status: int) -> int:
    sys.stderr.write(f"{error}\n")
    return status


def parser() -> argparse.ArgumentParser:
    """Make the parser; the documentation is tested against it."""
    root = argparse.ArgumentParser(
        prog="dicomai",
        description="An AI node for a hospital's PACS.",
        epilog="Example: dicomai demo. Every command explains itself: dicomai run --help.",
    )
    root.add_argument("--version", action="version", version=f"dicomai {__version__}")
    root.set_defaults(config=None, json=False)
    commands = root.add_subparsers(metavar="COMMAND", required=True)

    serve = _add(commands, "serve", _serve, "run the node", "dicomai serve --config /etc/dicomai/dicomai.toml")
    serve.add_argument(
        "--only", metavar="ROLES", help="receiver,planner,worker,delivery,console: only these, comma-separated"
    )
    demo = _add(commands, "demo", _demo, "send a real study through a node, and show what comes back", "dicomai demo")
    demo.add_argument(
        "--out", type=Path, default=Path("demo-output"), metavar="DIR", help="where results go (./demo-output)"
    )
    _add_run(commands)
    _add_wire(commands)
    _add_fetch(commands)
    _add_destinations(commands)
    _add_worklist(commands)
    _add_recall(commands)
    _add_models(commands)

    routes = _group(commands, "routes", "what runs on which images", "dicomai routes explain STUDY")
    explain = _add(
        routes,
        "explain",
        _explain,
        "say which routes take the images in a folder, and why the others do not",
        "dicomai routes explain STUDY",
        json=True,
    )
    explain.add_argument("study", type=Path, metavar="STUDY_DIR")

    example = "dicomai config check --config dicomai.toml"
    settings = _group(commands, "config", "the configuration", example)
    _add(settings, "check", _config_check, "check the configuration", example, json=True)
    example = "dicomai config passcode"
    _add(settings, "passcode", _config_passcode, "make the hash of a passcode for a [[user]]", example)
    database = _group(commands, "db", "the worklist's database", "dicomai db upgrade")
    _add(database, "upgrade", _db_upgrade, "bring the schema to this version", "dicomai db upgrade")
    _add(commands, "doctor", _doctor, "look the node over, and say what to mend", "dicomai doctor", json=True)
    return root


def _add_run(commands: Commands) -> None:
    run = _add(
        commands,
        "run",
        _run,
        "analyse a study in a folder, without a network",
        "dicomai run STUDY --out RESULTS",
        json=True,
    )
    run.add_argument("study", type=Path, metavar="STUDY_DIR")
    run.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the results go")
    run.add_argument("--model", metavar="NAME", help="run this model; without it the routes decide")
    run.add_argument(
        "--outside-validated", action="store_true", help="run on images it was not validated for; the SR says so"
    )


def _add_wire(commands: Commands) -> None:
    example = "dicomai send STUDY DICOMAI@127.0.0.1:11112"
    send = _add(commands, "send", _send, "send DICOM files to an AE", example, json=True)
    send.add_argument("files", type=Path, nargs="+", metavar="FILES", help="files, or folders of files")
    echo = _add(commands, "echo", _echo, "verify an AE by C-ECHO", "dicomai echo pacs", json=True)
    for one in (send, echo):
        one.add_argument("destination", metavar="DEST", help="a [[destination]]'s name, or AE@host:port")


def _add_destinations(commands: Commands) -> None:
    what = "where results go, and what each takes"
    group = _group(commands, "destinations", what, "dicomai destinations", _destinations_list)
    _add(group, "list", _destinations_list, "list the destinations", "dicomai destinations list", json=True)
    what = "ask a destination which SOP classes and transfer syntaxes it accepts"
    probe = _add(group, "probe", _destinations_probe, what, "dicomai destinations probe pacs", json=True)
    probe.add_argument("destination", metavar="NAME", help="a [[destination]]'s name, or AE@host:port")


def _add_fetch(commands: Commands) -> None:
    example = "dicomai fetch archive --date 20260101-20260131 --modality MR"
    fetch = _add(commands, "fetch", _fetch, "fetch studies from a source", example, json=True)
    fetch.add_argument("source", metavar="SOURCE", help="a [[source]]'s name")
    which = fetch.add_mutually_exclusive_group(required=True)
    which.add_argument("--study", metavar="UID", help="the study of this StudyInstanceUID")
    which.add_argument("--accession", metavar="NUMBER", help="the studies of this AccessionNumber")
    which.add_argument("--date", metavar="DAYS", help="the studies of these days: 20260101-20260131, or 20260101")
    fetch.add_argument("--modality", metavar="NAME", help="only series of this Modality")
    fetch.add_argument(
        "--description", metavar="PATTERN", help="only series whose SeriesDescription fits it whole, in any case"
    )
    fetch.add_argument("--method", choices=("move", "get"), help="instead of the source's own")
    fetch.add_argument("--limit", type=_positive, metavar="N", help="at most so many studies, the oldest first")
    fetch.add_argument("--dry-run", action="store_true", help="list what there is, and fetch nothing")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!a} is no number of studies: write 1 or more.")
    return int(text)


def _add_worklist(commands: Commands) -> None:
    what = "the work: list, show, retry, cancel, release"
    worklist = _group(commands, "worklist", what, "dicomai worklist", _worklist_list)
    listed = _add(worklist, "list", _worklist_list, "list the work", "dicomai worklist list", json=True)
    states = ("held", "scheduled", "in-progress", "completed", "canceled")
    listed.add_argument("--state", choices=states, help="only the items in this state, or those that are held")
    show = _add(worklist, "show", _worklist_show, "show one workitem", "dicomai worklist show 12", json=True)
    show.add_argument("id", type=int, metavar="ID")
    for verb, what in (
        ("retry", "make a new item in place of one that has ended"),
        ("cancel", "end an item"),
        ("release", "let an item go on that is held for a person"),
    ):
        change = _add(worklist, verb, _worklist_change, what, f"dicomai worklist {verb} 12")
        change.add_argument("id", type=int, metavar="ID")
        change.set_defaults(verb=verb)


def _add_recall(commands: Commands) -> None:
    what = "withdraw results from where they were sent; without --yes they are listed"
    recall = _add(
        commands, "recall", _recall, what, "dicomai recall --bundle brain_extraction --version 1.0.2", json=True
    )
    which = recall.add_mutually_exclusive_group(required=True)
    which.add_argument("--bundle", metavar="NAME", help="all that a version of this model gave")
    which.add_argument("--workitem", type=int, metavar="ID", help="what this analysis gave")
    recall.add_argument("--version", metavar="V", help="of the bundle, as its results bear it")
    recall.add_argument("--yes", action="store_true", help="do it")


def _add_models(commands: Commands) -> None:
    models = _group(commands, "models", "the models and their weights", "dicomai models", _models_list)
    _add(models, "list", _models_list, "list the models", "dicomai models list", json=True)
    pull = _add(models, "pull", _models_pull, "get a model's weights", "dicomai models pull brain_extraction")
    pull.add_argument("name", metavar="NAME")
    pull.add_argument(
        "--from", dest="source", type=Path, metavar="DIR", help="a folder that holds them, without internet"
    )
    example = "dicomai models check models/NAME"
    check = _add(models, "check", _models_check, "look a bundle's folder over", example, json=True)
    check.add_argument("path", type=Path, metavar="PATH")


def _group(commands: Commands, name: str, what: str, example: str, alone: Command | None = None) -> Commands:
    """Add a command that has commands of its own; `alone` is run where none of them is named."""
    group = commands.add_parser(
        name, help=what, description=f"{what[0].upper()}{what[1:]}.", epilog=f"Example: {example}"
    )
    if alone is not None:
        _add_options(group, json=True)
        group.set_defaults(command=alone)
    return group.add_subparsers(metavar="COMMAND", required=alone is None)


def _add(
    commands: Commands, name: str, command: Command, what: str, example: str, *, json: bool = False
) -> argparse.ArgumentParser:
    one = commands.add_parser(
        name, help=what, description=f"{what[0].upper()}{what[1:]}.", epilog=f"Example: {example}"
    )
    _add_options(one, json=json)
    one.set_defaults(command=command)
    return one


def _add_options(one: argparse.ArgumentParser, *, json: bool) -> None:
    # Suppressed defaults: `dicomai worklist --json list` must not lose what was said before `list`.
    one.add_argument("--config", type=Path, metavar="FILE", default=argparse.SUPPRESS, help="the configuration (TOML)")
    if json:
        one.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON")


def _serve(arguments: argparse.Namespace, settings: Settings) -> int:
    from dicomai import log, node

    log.configure(settings.node.log, role="node")
    try:
        roles = [node.Role(name) for name in arguments.only.split(",")] if arguments.only else node.STOPPING_ORDER
    except ValueError as error:
        known = ", ".join(role.value for role in node.Role)
        raise ConfigurationError(f"--only {arguments.only}: {error}; the roles are {known}.") from error
    return node.serve(settings, roles)


def _demo(arguments: argparse.Namespace, settings: Settings) -> int:
    from dicomai import demo

    return demo.run(settings, arguments.out)


def _run(arguments: argparse.Namespace, settings: Settings) -> int:
    from dicomai.commands import run

    return run.run(
        settings,
        arguments.study,
        arguments.out,
        arguments.model,
        outside_validated=arguments.outside_validated,
        as_json=arguments.json,
    )


def _send(arguments: argparse.Namespace, settings: Settings) -> int:
    from dicomai.commands import wire

    return wire.send(settings, arguments.files, arguments.destination, as_json=arguments.json)


def _echo(arguments: argparse.Namespace, settings: Settings) -> int:
    from dicomai.commands import wire

    return wire.echo(settings, arguments.destination, as_json=arguments.json)


def _destinations_list(arguments: argparse.Namespace, settings: Settings) -> int:
    from dicomai.commands import destinations

    return destinations.show_all(settings, as_json=arguments.json)


def _destinations_probe(arguments: argparse.Namespace, settings: Settings) -> int:
    from dicomai.commands import destinations

    return destinations.probe_one(settings, arguments.destination, as_json=arguments.json)


def _fetch(arguments: argparse.Namespace, settings: Settings) -> int:
    from dicomai.commands import fetch
    from dicomai.sources.query import Query

    query = Query.of(
        study=arguments.study,
        accession=arguments.accession,
        dates=arguments.date,
        modality=arguments.modality,
        description=arguments.description,
    )
    options = fetch.Options(arguments.method, arguments.limit, arguments.dry_run, arguments.json)
    return fetch.fetch(settings, arguments.source, query, options)


def _worklist_list(arguments: argparse.Namespace, settings: Settings) -> int:
    from dicomai.commands import worklist

    return worklist.show_all(settings, as_json=arguments.json, state=getattr(arguments, "state", None))


def _worklist_show(arguments: argparse.Namespace, settings: Settings) -> int:
    from dicomai.commands import worklist

    return worklist.show(settings, arguments.id, as_json=arguments.json)


def _worklist_change(arguments: argparse.Namespace, settings: Settings) -> int:
    from dicomai.commands import worklist

    return worklist.change(settings, arguments.verb, arguments.id)


def _recall(arguments: argparse.Namespace, settings: Settings) -> int:
    from dicomai.commands import recall

    if (arguments.bundle is None) != (arguments.version is None):
        raise ConfigurationError("--bundle and --version go together: name both, or --workitem alone.")
    which = arguments.workitem if arguments.bundle is None else (arguments.bundle, arguments.version)
    return recall.recall(settings, which, go=arguments.yes, as_json=arguments.json)


def _models_list(arguments: argparse.Namespace, settings: Settings) -> int:
    from dicomai.commands import models

    return models.show_all(settings, as_json=arguments.json)


def _models_pull(arguments: argparse.Namespace, settings: Settings) -> int:
    from dicomai.commands import models

    return models.pull(settings, arguments.name, arguments.source)


def _models_check(arguments: argparse.Namespace, settings: Settings) -> int:
    from dicomai.commands import models

    return models.check(settings, arguments.path, as_json=arguments.json)


def _explain(arguments: argparse.Namespace, settings: Settings) -> int:
    from dicomai.commands import routes

    return routes.explain(settings, arguments.study, as_json=arguments.json)


def _config_check(arguments: argparse.Namespace, settings: Settings) -> int:
    from dicomai.commands import check

    return check.config_check(settings, arguments.config, as_json=arguments.json)


def _config_passcode(_arguments: argparse.Namespace, _settings: Settings) -> int:
    from dicomai.commands import check

    return check.config_passcode()


def _db_upgrade(_: argparse.Namespace, settings: Settings) -> int:
    from dicomai.commands import check

    return check.db_upgrade(settings)


def _doctor(arguments: argparse.Namespace, settings: Settings) -> int:
    from dicomai.commands import check

    return check.doctor(settings, arguments.config, as_json=arguments.json)


if __name__ == "__main__":
    sys.exit(main())
