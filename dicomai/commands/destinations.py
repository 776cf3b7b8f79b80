"""`dicomai destinations`: where results go, and what each takes."""

from collections.abc import Mapping
from datetime import datetime

from pydicom.uid import UID

from dicomai.commands import wire
from dicomai.commands.output import console, print_json, print_table
from dicomai.commands.worklist import database, missing_file, person
from dicomai.config import Destination, DicomDestination, Settings
from dicomai.database.probes import Probes
from dicomai.destinations.dimse.probe import PROPOSED, probe
from dicomai.errors import ConfigurationError
from dicomai.profiles import LABEL_MAP, Probe, Profile, denied

_SYNTAXES = {"1.2.840.10008.1.2.1": "EXPLICIT LE", "1.2.840.10008.1.2": "IMPLICIT LE", "1.2.840.10008.1.2.5": "RLE"}
_MEANINGS = {
    Profile.OHIF: "binary segmentations and structured reports, and what else the routes name",
    Profile.LABELMAP: "segmentations as label maps where all destinations of a route take them, and structured reports",
    Profile.LEGACY: "key images in place of segmentations and structured reports, and what else the routes name",
}


def show_all(settings: Settings, *, as_json: bool) -> int:
    """List the destinations, with what was last found out about each by asking it."""
    probes: Mapping[str, Probe] = {} if missing_file(settings) else Probes(database(settings)).last()
    entries = [(one, probes.get(one.name)) for one in settings.destination]
    if as_json:
        print_json(
            [
                {
                    "name": one.name,
                    "type": one.type,
                    "profile": one.profile.value,
                    "probed_at": last.tried_at.isoformat() if last else None,
                    "answered_at": last.answered_at.isoformat() if last and last.answered_at else None,
                    "error": last.error if last else "",
                    "remark": _remark(one, last),
                }
                for one, last in entries
            ]
        )
        return 0
    rows = [
        (
            one.name,
            one.type,
            one.profile.value,
            _moment(last.tried_at) if last else "",
            _moment(last.answered_at) if last and last.answered_at else "",
            (last.error if last else "") or _remark(one, last),
        )
        for one, last in entries
    ]
    print_table(
        ("NAME", "TYPE", "PROFILE", "PROBED", "ANSWERED", "REMARK"), rows, "The configuration has no [[destination]]."
    )
    return 0


def probe_one(settings: Settings, name: str, *, as_json: bool) -> int:
    """Ask a destination what it accepts, print it, and keep it where there is a worklist.

    Raises:
        ConfigurationError: there is no such destination of type dicom.
        DeliveryError: it gives no answer, or none but a refusal.
    """
    entry = wire.destination(settings, name)
    if not isinstance(entry, DicomDestination):
        raise ConfigurationError(f"Destination '{name}' is of type {entry.type}: only one of type dicom can be probed.")
    accepted = probe(entry, calling_ae=settings.node.ae_title, timeout=settings.delivery.timeout, tls=settings.tls)
    if entry in settings.destination and missing_file(settings) is None:
        Probes(database(settings)).answered(entry.name, accepted, person())
    now = datetime.now().astimezone()
    remark = denied(entry.profile, Probe(now, "", now, accepted), entry.services)
    if as_json:
        contexts = [
            {
                "sop_class_uid": sop_class,
                "name": _name(sop_class),
                "accepted": [syntax for syntax in syntaxes if (sop_class, syntax) in accepted],
                "refused": [syntax for syntax in syntaxes if (sop_class, syntax) not in accepted],
            }
            for sop_class, syntaxes in PROPOSED.items()
        ]
        print_json({"destination": entry.name, "profile": entry.profile.value, "contexts": contexts, "remark": remark})
    else:
        _print(entry, accepted, remark)
    return 0


def _remark(entry: Destination, last: Probe | None) -> str:
    if last is None:
        return ""
    return denied(entry.profile, last, entry.services if isinstance(entry, DicomDestination) else None)


def _print(entry: DicomDestination, accepted: frozenset[tuple[str, str]], remark: str) -> None:
    words = {True: "yes", False: "no"}
    rows = [
        (
            _name(sop_class),
            *(words[(sop_class, one) in accepted] if one in syntaxes else "" for one in _SYNTAXES),
        )
        for sop_class, syntaxes in PROPOSED.items()
    ]
    print_table(("SOP CLASS", *_SYNTAXES.values()), rows, "")
    out = console()
    out.print()
    if remark:
        out.print(f"{entry.name} is at odds with what is said of it: {remark}")
    else:
        out.print(f'{entry.name} has profile = "{entry.profile.value}": it is sent {_MEANINGS[entry.profile]}.')


def _name(sop_class_uid: str) -> str:
    """Name a SOP class; the library does not know label maps yet."""
    return "Label Map Segmentation Storage" if sop_class_uid == LABEL_MAP else UID(sop_class_uid).name


def _moment(moment: datetime) -> str:
    return moment.astimezone().strftime("%Y-%m-%d %H:%M")
