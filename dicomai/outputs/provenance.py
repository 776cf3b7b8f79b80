"""What a result object needs beside findings: who made it, of what, when, and under which identifiers."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import count, islice
from uuid import UUID, uuid5
from zoneinfo import ZoneInfo

from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from dicomai.outputs.priors import NoPrior, Prior
from dicomai.study import Frame, Instance

# Every UID that dicomai derives comes from this namespace: a change here would give old results new names.
_NAMESPACE = UUID("8d57433b-99c7-474e-becd-42c5c3781abc")

FIRST_SERIES_NUMBER = 9000

# An output keeps its place for ever, so that the same run always gives the same series numbers; new ones go last.
OUTPUTS = (
    "seg",
    "sr",
    "keyimage",
    "kos",
    "gsps",
    "rtstruct",
    "pdf",
    "mesh",
    "saliency",
    "report",
    "keyframes",
    "reportimage",
    "fractional",
)


def derived_uid(*parts: object) -> str:
    """Derive a UID: `2.25.` and a version 5 UUID of the parts as a decimal number (PS3.5 B.2).

    The same parts give the same UID at any time on any machine; it has at most 44 characters.
    """
    return f"2.25.{uuid5(_NAMESPACE, '|'.join(map(str, parts))).int}"


@dataclass(frozen=True, slots=True)
class Algorithm:
    """What analysed the images.

    Attributes:
        name: such as 'brain_extraction', at most 64 characters.
        version: the bundle's, at most 64 characters.
        family: from CID 7162, such as (123110, DCM, Artificial Intelligence).
        weights_digest: what tells one set of weights from another, such as a sha256 in hexadecimal.
        bundle_digest: the same of all that a bundle says, so also of how it measures.
        manufacturer: who made it, at most 64 characters; dicomai where it does not say.
        description: a sentence for people on what it does.
        reference: where the method is published.
        report_title: of CID 7021, where one says what its reports are; None for the general one.
    """

    name: str
    version: str
    family: Code
    weights_digest: str
    bundle_digest: str
    manufacturer: str | None = None
    description: str | None = None
    reference: str | None = None
    report_title: Code | None = None

    @property
    def device_uid(self) -> str:
        """Device UID (0018,1002): another one for every version and every set of weights."""
        return derived_uid("algorithm", self.name, self.version, self.weights_digest)


@dataclass(frozen=True, slots=True)
class Predecessor:
    """An object of the result that a new result replaces.

    Attributes:
        output: which output it was, such as 'sr'.
        study_instance_uid: the study that it lies in.
        series_instance_uid: its series.
        sop_instance_uid: the object itself.
        sop_class_uid: its class.
        series_number: the number by which a reader finds its series.
    """

    output: str
    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    series_number: int


@dataclass(frozen=True, slots=True)
class Sources:
    """The images that a result was made of.

    Attributes:
        frames: one per slice, sorted along z as in the volume.
        newest: the newest instance's attributes: the patient's and the study's are taken from it.
        lossy: whether the pixels have ever been compressed with loss.
    """

    frames: tuple[Frame, ...]
    newest: Dataset = field(repr=False)
    lossy: bool

    @property
    def instances(self) -> tuple[Instance, ...]:
        """The instances that hold the frames, each once, in order of first appearance."""
        return tuple({frame.instance.sop_instance_uid: frame.instance for frame in self.frames}.values())

    @property
    def header(self) -> Dataset:
        """The attributes of the first frame's instance: geometry, series number, body part."""
        return self.frames[0].instance.header


@dataclass(frozen=True, slots=True)
class Provenance:
    """Who made a result, when, and under which identifiers.

    Attributes:
        work_digest: the workitem's, as the worklist has it.
        generation: raised when a workitem runs again after something was sent.
        outputs: all outputs of the route, so that the report knows whether there is a segmentation to refer to.
        algorithm: what analysed the images.
        installation: UUID of this node; its device UID and serial number come from it.
        software_version: dicomai's own.
        created: when the result was made; aware of its time zone.
        timezone: the hospital's, an IANA name; None for the host's.
        series_numbers: every SeriesNumber in use in the study.
        supersedes: the objects of the result that this one replaces; empty for a first result.
        label_map: the transfer syntax in which every destination takes a Label Map Segmentation; None where one of
            them may not, and the segmentation is binary.
        prior: what the report compares with, or why it compares with nothing; None where no comparison was asked for.
    """

    work_digest: str
    generation: int
    outputs: tuple[str, ...]
    algorithm: Algorithm
    installation: str
    software_version: str
    created: datetime
    timezone: str | None = None
    series_numbers: frozenset[int] = frozenset()
    supersedes: tuple[Predecessor, ...] = ()
    label_map: str | None = None
    prior: Prior | NoPrior | None = None

    def uid(self, output: str, n: int | str) -> str:
        """Give a UID of this run: the same for the same work, generation, output and `n`."""
        return derived_uid(self.work_digest, self.generation, output, n)

    def series_number(self, output: str) -> int:
        """Give an output's SeriesNumber (0020,0011): from 9000, not used in the study, its own for every output."""
        return next(islice(self._free_numbers(), OUTPUTS.index(output), None))

    def _free_numbers(self) -> Iterator[int]:
        return (number for number in count(FIRST_SERIES_NUMBER) if number not in self.series_numbers)

    @property
    def device_uid(self) -> str:
        """Device UID (0018,1002) of this node."""
        return derived_uid("installation", self.installation)

    def predecessor(self, output: str) -> Predecessor | None:
        """Give the object of the same output that is replaced, if there is one."""
        return next((one for one in self.supersedes if one.output == output), None)

    def hospital_time(self) -> datetime:
        """Give the time of creation in the hospital's zone; in the host's where none is set."""
        return in_zone(self.created, self.timezone)


def in_zone(moment: datetime, timezone: str | None) -> datetime:
    """Give a time in the hospital's zone, an IANA name; in the host's where none is set."""
    return moment.astimezone(ZoneInfo(timezone) if timezone else None)
