"""`dicomai recall`: withdraw results from where they were sent."""

import sys
from collections.abc import Sequence

import pydicom

from dicomai.commands.output import console, print_json, print_table
from dicomai.commands.worklist import database, person
from dicomai.config import Settings
from dicomai.database.withdrawals import Withdrawable, Withdrawals
from dicomai.errors import DicomaiError, StoreError
from dicomai.roles import bundles_of
from dicomai.store import Store
from dicomai.study import UNREADABLE
from dicomai.withdrawer import version_of

Which = tuple[str, str] | int
"""Name and version of a bundle, or the number of one analysis."""


def recall(settings: Settings, which: Which, *, go: bool, as_json: bool) -> int:
    """List results, and have them withdrawn where that is said.

    Args:
        settings: of the node.
        which: what is meant.
        go: withdraw them; else they are only listed.
        as_json: print JSON.

    Raises:
        ConfigurationError: there is no worklist.
        WorklistError: there is no such analysis, or it gave no result.
        StoreError: the storage or the database failed.
    """
    store, withdrawals = Store(settings.node.storage), Withdrawals(database(settings))
    found = _find(store, withdrawals, which)
    if go:
        for one in found:
            withdrawals.schedule(one.item, person(), f"{_named(which)} was recalled.")
        meant = {one.item for one in found}
        again = withdrawals.results_of(which[0]) if isinstance(which, tuple) else [withdrawals.result_of(which)]
        found = [one for one in again if one.item in meant]
    still = _routes_with(settings, *which) if isinstance(which, tuple) else []
    if as_json:
        print_json({"results": [_as_dict(one) for one in found], "routes": still})
    else:
        _say(found, which, go=go)
    for route in still:
        sys.stderr.write(f"Route '{route}' still runs {_named(which)}: change it, and start the node again.\n")
    return 0


def _find(store: Store, withdrawals: Withdrawals, which: Which) -> list[Withdrawable]:
    if isinstance(which, int):
        return [withdrawals.result_of(which)]
    model, version = which
    return [one for one in withdrawals.results_of(model) if one.objects and _version(store, one) == version]


def _version(store: Store, one: Withdrawable) -> str:
    """Give the version that a result was made by, as it says itself; one that cannot be read is named on stderr."""
    try:
        with store.open(one.objects[0].key) as stream:
            return version_of(pydicom.dcmread(stream, stop_before_pixels=True))
    except (StoreError, *UNREADABLE) as error:
        sys.stderr.write(
            f"The result of workitem {one.item} cannot be read ({type(error).__name__}), so that its version is not"
            f" known: if it is meant too, call `dicomai recall --workitem {one.item}`.\n"
        )
        return ""


def _named(which: Which) -> str:
    return " ".join(which) if isinstance(which, tuple) else f"The result of workitem {which}"


def _say(found: Sequence[Withdrawable], which: Which, *, go: bool) -> None:
    rows = [
        (
            one.item,
            one.trace,
            one.created_at.astimezone().strftime("%Y-%m-%d %H:%M"),
            ", ".join(one.sent_to),
            ", ".join(one.waiting),
            ", ".join([*one.withdrawn_from, *(f"{name} (not yet)" for name in one.telling)]),
        )
        for one in found
    ]
    columns = ("ID", "STUDY", "MADE", "SENT TO", "WAITING FOR", "WITHDRAWN FROM")
    print_table(columns, rows, f"{_named(which)} has given no result here.")
    still = sum(one.is_open for one in found)
    if still and not go:
        console().print(
            f"\n{still} of {len(found)} results would be withdrawn: what waits is not sent any more, and where any was"
            " sent a rejection note (113001, Rejected for Quality Reasons) goes. With --yes it is done."
        )
    elif go and found:
        console().print("\nThe node sends the rejection notes; `dicomai worklist` shows where they have arrived.")


def _as_dict(one: Withdrawable) -> dict[str, object]:
    return {
        "id": one.item,
        "study": one.trace,
        "created_at": one.created_at.isoformat(),
        "sop_instance_uids": [o.sop_instance_uid for o in one.objects],
        "sent_to": one.sent_to,
        "waiting": one.waiting,
        "withdrawn_from": one.withdrawn_from,
        "telling": one.telling,
    }


def _routes_with(settings: Settings, model: str, version: str) -> list[str]:
    """Name the routes that would make such results again."""
    try:
        bundle = bundles_of(settings).get(model)
    except DicomaiError:  # it is recalled, and may be gone already
        return []
    return [r.name for r in settings.route if r.model == model and bundle is not None and bundle.version == version]
