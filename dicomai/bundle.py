"""Bundle: a MONAI bundle with what `dicomai.toml` beside it adds. Imports no torch.

`models/NAME/configs/{metadata.json,inference.json}` are as MONAI's bundle specification says;
`models/NAME/dicomai.toml` says what the bundle accepts, what its segments are in codes, what is measured, and where
the weights come from.
"""

import hashlib
import json
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from dicomai.accepts import Input
from dicomai.errors import BundleError
from dicomai.findings import Segment
from dicomai.heads import PRED, Heads
from dicomai.parts import Channel, CodedConcept, DicomText, Part
from dicomai.quantities import DERIVATIONS, QUANTITIES, Kind, Quantity

_TITLES = (  # CID 7021
    Code("126000", "DCM", "Imaging Measurement Report"),
    Code("126001", "DCM", "Oncology Measurement Report"),
    Code("126002", "DCM", "Dynamic Contrast MR Measurement Report"),
    Code("126003", "DCM", "PET Measurement Report"),
)


def _file_name(value: str) -> str:
    if not value or Path(value).name != value or value.startswith("."):
        raise ValueError(f"'{value}' is no plain file name, such as 'model.pt'")
    return value


FileName = Annotated[str, AfterValidator(_file_name)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Byte = Annotated[int, Field(ge=0, le=255)]


class Algorithm(Part):
    """`[algorithm]`: what made a result (PS3.3 10.16 Algorithm Identification Macro).

    Attributes:
        name: Algorithm Name (0066,0036).
        family: Algorithm Family Code Sequence (CID 7162), such as (123110, DCM, Artificial Intelligence).
        manufacturer: who made it, for Contributing Equipment (0018,A001).
        description: what it does, in a sentence or two.
        reference: the publication.
        report_title: of its reports, of CID 7021, where one of those says what they are.
        license: of the weights, as an SPDX identifier.
        version: Algorithm Version (0066,0031): the `version` of metadata.json, not a key of `dicomai.toml`.
    """

    name: DicomText
    family: CodedConcept
    manufacturer: DicomText
    description: str
    reference: str = ""
    report_title: CodedConcept | None = None
    license: str
    version: DicomText

    @model_validator(mode="after")
    def _titled(self) -> Self:
        if self.report_title is not None and self.report_title not in _TITLES:
            known = ", ".join(f"[{one.value}, {one.scheme_designator}, {one.meaning}]" for one in _TITLES)
            raise ValueError(f"report_title is one of {known}, not '{self.report_title.meaning}'")
        return self


class Wanted(Part):
    """`[[measurement]]`: what is measured of segments that have a voxel.

    Attributes:
        name: a code of `quantities.QUANTITIES`, such as (118565006, SCT, Volume).
        unit: a UCUM code that the quantity can have, such as (cm3, UCUM, cubic centimeter).
        method: such as (126030, DCM, Sum of segmented voxel method for volume), for the SR.
        derivation: of an intensity: mean, standard deviation, minimum or maximum (CID 7464).
        segments: the labels of the segments that are measured; all where it is empty.
    """

    name: CodedConcept
    unit: CodedConcept
    method: CodedConcept | None = None
    derivation: CodedConcept | None = None
    segments: tuple[DicomText, ...] = ()

    @model_validator(mode="after")
    def _measurable(self) -> Self:
        if self.name not in QUANTITIES:
            known = ", ".join(f"[{one.value}, {one.scheme_designator}, {one.meaning}]" for one in QUANTITIES)
            raise ValueError(f"'{self.name.meaning}' cannot be measured; what can is {known}")
        units = self.quantity.units
        if self.unit.scheme_designator != "UCUM" or self.unit.value not in units:
            raise ValueError(
                f"the unit of '{self.name.meaning}' is {' or '.join(units)} of UCUM, not '{self.unit.value}'"
            )
        if self.quantity.kind is not Kind.INTENSITY and self.derivation is not None:
            raise ValueError(f"'{self.name.meaning}' takes no derivation: an intensity does")
        if self.quantity.kind is Kind.INTENSITY and (self.derivation is None or self.derivation not in DERIVATIONS):
            known = ", ".join(f"[{one.value}, {one.scheme_designator}, {one.meaning}]" for one in DERIVATIONS)
            raise ValueError(f"'{self.name.meaning}' needs a derivation, one of {known}")
        return self

    @property
    def quantity(self) -> Quantity:
        """What is measured."""
        return QUANTITIES[self.name]

    @property
    def scale(self) -> float:
        """How many of the unit are one cubic millimetre, millimetre, or one."""
        return self.quantity.units[self.unit.value]

    def wants(self, segment: Segment) -> bool:
        """Tell whether a segment is to be measured."""
        return not self.segments or segment.label in self.segments


class WeightsFile(Part):
    """`[[weights.file]]`: one file of weights.

    Attributes:
        name: what `inference.json` calls it, below `weights_dir`.
        sha256: of its bytes, in hexadecimal.
        member: where it lies in the wheel.
    """

    name: FileName
    sha256: Sha256
    member: str = ""


class Weights(Part):
    """`[weights]`: the files of weights, and the PyPI wheel that holds them.

    Attributes:
        file: the files; none for a network without parameters.
        wheel: `name==version` on PyPI; empty where the files lie in the bundle's `models` folder or are brought in
            from a folder.
        wheel_sha256: of the wheel's bytes.
    """

    file: tuple[WeightsFile, ...] = ()
    wheel: Annotated[str, Field(pattern=r"^([A-Za-z0-9._-]+==[A-Za-z0-9.!+_-]+)?$")] = ""
    wheel_sha256: Annotated[str, Field(pattern="^([0-9a-f]{64})?$")] = ""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if bool(self.wheel) != bool(self.wheel_sha256):
            raise ValueError("wheel and wheel_sha256 stand together, or neither does")
        names = [file.name for file in self.file]
        if len(set(names)) < len(names):
            raise ValueError("two files of weights bear the same name")
        if self.wheel and not all(file.member for file in self.file):
            raise ValueError("every file that comes from a wheel names its member there")
        return self

    @property
    def digest(self) -> str:
        """Sha256 (hexadecimal) over the files' names and sha256s: changes when any of the weights does."""
        lines = sorted(f"{file.sha256}  {file.name}\n" for file in self.file)
        return hashlib.sha256("".join(lines).encode()).hexdigest()


class _Segment(Part):
    """`[[segment]]`: as `findings.Segment`, with its layer (from 1), and its channel of the probabilities."""

    channel: Channel | None = None
    layer: Annotated[int, Field(ge=1)] = 1
    number: Annotated[int, Field(ge=1, le=65535)]
    label: DicomText
    category: CodedConcept
    type: CodedConcept
    finding_site: CodedConcept
    color: tuple[Byte, Byte, Byte]

    def noun(self) -> Segment:
        return Segment(self.number, self.label, self.category, self.type, self.finding_site, self.color)


class _File(Heads):
    """`dicomai.toml` as a whole, with the version of metadata.json put in."""

    empty: Literal["failure", "negative"] | None = None
    algorithm: Algorithm
    input: Annotated[tuple[Input, ...], Field(min_length=1)]
    segment: tuple[_Segment, ...] = ()
    measurement: tuple[Wanted, ...] = ()
    weights: Weights = Field(default_factory=Weights)

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not (self.segment or self.evaluation or self.score or self.detection):
            raise ValueError(
                "it says nothing: describe at least one [[segment]], [[evaluation]], [[score]], [[detection]]"
            )
        marks = bool(self.segment or self.detection)
        if marks and self.empty is None:
            raise ValueError("empty says what it means when nothing is marked or detected: 'failure' or 'negative'")
        if not marks and self.empty is not None:
            raise ValueError("empty is about segments and detections, and there are none: leave it out")
        if self.measurement and not self.segment:
            raise ValueError("[[measurement]] is of segments, and there is no [[segment]]")
        if (self.probabilities is not None) != any(one.channel is not None for one in self.segment):
            raise ValueError("[probabilities] and a channel in [[segment]] stand together, or neither does")
        for one in self.vectors:
            if self.segment and one.key == PRED:
                raise ValueError(
                    f"'{one.name.meaning}' is read under '{PRED}', where the labels of [[segment]] lie: leave its"
                    " values under another key, and name that"
                )
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        roles = [one.role for one in self.input]
        if len(set(roles)) < len(roles):
            raise ValueError("two entries of [[input]] bear the same role")
        places = [(one.layer, one.number) for one in self.segment]
        if len(set(places)) < len(places):
            raise ValueError("two entries of [[segment]] bear the same number in the same layer")
        layers = {one.layer for one in self.segment}
        if layers != set(range(1, len(layers) + 1)):
            raise ValueError(f"layers count from 1 without a gap, not {sorted(layers)}")
        labels = {one.label for one in self.segment}
        if len(labels) < len(self.segment):  # in results numbers stand beside labels
            raise ValueError("two entries of [[segment]] bear the same label: say in each what tells it from the other")
        for unknown in (label for one in self.measurement for label in one.segments if label not in labels):
            raise ValueError(f"[[measurement]] names the segment '{unknown}'; there are: {', '.join(sorted(labels))}")
        return self


@dataclass(frozen=True, slots=True)
class Bundle:
    """A model that can be run: what it takes, what it gives, and what it is.

    Attributes:
        name: its folder's name, which routes name as `model`.
        version: `version` of metadata.json.
        path: its folder.
        digest: sha256 (hexadecimal) over the configs and dicomai.toml, in which the weights' sha256s stand: changes
            when the model does.
        algorithm: what results say that made them.
        inputs: one per role; label maps lie on the grid of the first.
        layers: the segments of each label map; segments within a layer do not overlap.
        measurements: what is measured of which segments.
        empty: whether a result without any voxel or detection is a failure or a finding ('it is not there'); None for
            a bundle that marks nothing.
        weights: the files of weights and their source.
        heads: what it gives beside label maps.
        channels: of the probabilities, for each segment as in `layers`; None for one that has none.
    """

    name: str
    version: str
    path: Path
    digest: str
    algorithm: Algorithm
    inputs: tuple[Input, ...]
    layers: tuple[tuple[Segment, ...], ...]
    measurements: tuple[Wanted, ...]
    empty: Literal["failure", "negative"] | None
    weights: Weights
    heads: Heads = field(default_factory=Heads)
    channels: tuple[tuple[int | None, ...], ...] = ()

    @property
    def keys(self) -> frozenset[str]:
        """The keys of MONAI's data dictionary that findings are read from, after postprocessing."""
        return self.heads.keys | ({PRED} if self.layers else set())

    def input(self, role: str | None = None) -> Input:
        """Find what the bundle says of a role; of the first where none is given.

        Raises:
            BundleError: it has no such role.
        """
        for one in self.inputs:
            if role in (None, one.role):
                return one
        roles = ", ".join(one.role for one in self.inputs)
        raise BundleError(f"{self.name} has no input '{role}'; its [[input]] roles are: {roles}.")

    def accept(self, header: Dataset, role: str | None = None) -> None:
        """Hold a stack's attributes against the bundle's hard limits, which no setting lifts.

        Args:
            header: the attributes of an instance of the stack.
            role: which input it is to be; the first where none is given.

        Raises:
            NotAcceptedError: the modality is another than the bundle takes.
        """
        self.input(role).accept(header, self.name)

    def outside_validated(self, header: Dataset, role: str | None = None, frame: int = 1) -> str | None:
        """Say in a sentence why images are outside of what the bundle was validated for; None where they are inside.

        Args:
            header: the attributes of an instance of the stack.
            role: which input it is to be; the first where none is given.
            frame: number, from 1, of a frame of the stack, whose functional groups count in an enhanced multi-frame
                instance (PS3.3 C.7.6.16).
        """
        return self.input(role).outside_validated(header, self.name, frame)


def load(path: Path) -> Bundle:
    """Read and check a bundle's folder; the weights are not looked at.

    Raises:
        BundleError: a file is missing or unreadable, or a value is wrong; one sentence, all errors.
    """
    metadata = _json(path / "configs" / "metadata.json")
    _json(path / "configs" / "inference.json")
    version = metadata.get("version")
    if not isinstance(version, str):
        raise BundleError(f"{path / 'configs' / 'metadata.json'} has no 'version': give it one, such as \"1.0.0\".")
    toml = path / "dicomai.toml"
    try:
        table = tomllib.loads(_read(toml).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BundleError(f"{toml} is no TOML: {error}.") from error
    if isinstance(table.get("algorithm"), dict):
        if "version" in table["algorithm"]:
            raise BundleError(f"{toml}: algorithm.version: the version stands in configs/metadata.json, not here.")
        table["algorithm"]["version"] = version
    try:
        file = _File.model_validate(table)
    except ValidationError as error:
        raise BundleError(f"{toml}: {'; '.join(map(_explain, error.errors()))}.") from error
    count = max((one.layer for one in file.segment), default=0)
    layers = [[one for one in file.segment if one.layer == n + 1] for n in range(count)]
    return Bundle(
        name=path.resolve().name,
        version=version,
        path=path,
        digest=_digest(path),
        algorithm=file.algorithm,
        inputs=file.input,
        layers=tuple(tuple(one.noun() for one in layer) for layer in layers),
        measurements=file.measurement,
        empty=file.empty,
        weights=file.weights,
        heads=Heads(**{name: getattr(file, name) for name in Heads.model_fields}),
        channels=tuple(tuple(one.channel for one in layer) for layer in layers),
    )


def names(folder: Path) -> tuple[str, ...]:
    """Name the bundles of a folder, sound or not: every folder in it that has a `dicomai.toml` or a `configs`.

    Raises:
        BundleError: there is no such folder.
    """
    if not folder.is_dir():
        raise BundleError(
            f"The folder of models {folder} does not exist: set node.models to the folder that holds them."
        )
    return tuple(sorted(p.name for p in folder.iterdir() if (p / "dicomai.toml").is_file() or (p / "configs").is_dir()))


def find(name: str, folder: Path) -> Bundle:
    """Load a bundle by name.

    Raises:
        BundleError: there is none of that name, or it is not sound.
    """
    known = names(folder)
    if name not in known:
        raise BundleError(f"There is no model '{name}' in {folder}; there are: {', '.join(known) or 'none'}.")
    return load(folder / name)


def available(folder: Path) -> tuple[Bundle, ...]:
    """Load every bundle of a folder, ordered by name.

    Raises:
        BundleError: one of them is not sound.
    """
    return tuple(load(folder / name) for name in names(folder))


def packaged() -> Path:
    """Say where the models lie that come with dicomai: in the installed package, else at the checkout's root."""
    package = Path(__file__).parent
    inside = package / "models"
    return inside if inside.is_dir() else package.parent / "models"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(
            f"The model's file {path} cannot be read ({error.strerror}): a model is a folder with"
            " configs/metadata.json, configs/inference.json and dicomai.toml."
        ) from error


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_read(path))
    except ValueError as error:
        raise BundleError(f"{path} is no JSON: {error}.") from error
    if not isinstance(content, dict):
        raise BundleError(f"{path} holds no JSON object at its top.")
    return content


def _digest(path: Path) -> str:
    total = hashlib.sha256()
    files = [p for p in sorted((path / "configs").rglob("*")) if p.is_file()]
    for file in [*files, path / "dicomai.toml"]:
        content = _read(file)
        total.update(f"{file.relative_to(path).as_posix()}\0{len(content)}\0".encode())
        total.update(content)
    return total.hexdigest()


def _explain(error: Any) -> str:
    place = ".".join(str(part) for part in error["loc"])
    text = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        text = "there is no such key"
    return f"{place}: {text}" if place else text
