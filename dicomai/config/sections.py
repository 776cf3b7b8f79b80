"""The sections of the configuration: each key with its type, its default, and what it must be."""

import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self
from zoneinfo import ZoneInfo

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    field_validator,
    model_validator,
)
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.valuerep import VR

from dicomai import passcodes
from dicomai.routing import DEFAULT_EXCLUDE, Level, OutsideValidated


def _ae_title(value: str) -> str:
    """Check an AE title (PS3.5 6.2, VR AE): 1 to 16 printable characters, no backslash."""
    if not 1 <= len(value.strip()) <= 16 or not re.fullmatch(r"[\x20-\x5b\x5d-\x7e]+", value):
        raise ValueError(f"'{value}' is no AE title: 1 to 16 printable characters without a backslash")
    return value.strip()


def each_once(value: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse an entry that stands there twice."""
    twice = sorted({entry for entry in value if value.count(entry) > 1})
    if twice:
        raise ValueError(f"'{twice[0]}' stands there twice")
    return value


def _default_storage() -> Path:
    if os.geteuid() == 0:
        return Path("/var/lib/dicomai")
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "dicomai"


AETitle = Annotated[str, AfterValidator(_ae_title)]
Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=64)]
ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]  # the name of a folder in `models`
Names = Annotated[tuple[Name, ...], AfterValidator(each_once)]

# What no pattern can be held against: nested data sets and bulk data.
_NOT_TEXT = frozenset({VR.SQ, VR.OB, VR.OD, VR.OF, VR.OL, VR.OV, VR.OW, VR.UN, VR.OB_OW})


def _patterns(value: dict[str, str]) -> dict[str, str]:
    for keyword, pattern in value.items():
        tag = tag_for_keyword(keyword)
        if tag is None:
            raise ValueError(f"'{keyword}' is no DICOM keyword (PS3.6), such as 'SeriesDescription'")
        if dictionary_VR(tag) in _NOT_TEXT:
            raise ValueError(f"'{keyword}' has no text that a pattern could match")
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"'{pattern}' for {keyword} is no regular expression: {error}") from error
    return value


Patterns = Annotated[dict[str, str], AfterValidator(_patterns)]

_LABEL = r"[A-Za-z0-9_][A-Za-z0-9_-]{0,62}"
HOST = rf"{_LABEL}(\.{_LABEL})*\.?|\[[0-9A-Fa-f:.]+\]"
"""A host name, or an address of IPv6 in brackets."""


class Section(BaseModel):
    """A table of the configuration: frozen, and with no key that is not known."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class NodeSettings(Section):
    """`[node]`: who this node is and where it keeps its things."""

    ae_title: AETitle = "DICOMAI"
    host: str = "0.0.0.0"  # noqa: S104  a node is there to be reached
    port: Port = 11112
    storage: Path = Field(default_factory=_default_storage)
    worklist: str = Field(default="", repr=False)  # it may hold a password
    models: Path | None = None
    timezone: str | None = None
    log: Literal["auto", "console", "json"] = "auto"

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                ZoneInfo(value)
            except (KeyError, ValueError, OSError) as error:
                raise ValueError(f"'{value}' is no time zone of the IANA database, such as 'Europe/Berlin'") from error
        return value

    @field_validator("worklist")
    @classmethod
    def _known_database(cls, value: str) -> str:
        if value and not re.match(r"postgresql\+psycopg://|sqlite:///(?!:memory:)[^?]", value):
            raise ValueError("a database is sqlite:////path/of/worklist.db or postgresql+psycopg://user@host/name")
        return value

    @property
    def worklist_url(self) -> str:
        """The database's URL; the embedded SQLite worklist in `storage` unless another is given."""
        return self.worklist or f"sqlite:///{self.storage.absolute() / 'worklist.db'}"


class ReceiverSettings(Section):
    """`[receiver]`: who may send, how much, and when a series is complete."""

    allow: tuple[str, ...] = ()
    processes: Annotated[int, Field(ge=1, le=64)] = Field(default_factory=lambda: min(4, os.cpu_count() or 1))
    max_associations: Annotated[int, Field(ge=1)] = 64
    max_pdu: Annotated[int, Field(ge=4096, le=4_194_304)] = 131072  # a PDU is read whole
    quiet_period: Seconds = 60.0
    lost_period: Seconds = 600.0
    procedure_steps: bool = False
    availability: bool = False
    idle_timeout: Seconds = 300.0
    total_timeout: Seconds = 86400.0
    max_associations_per_peer: Annotated[int, Field(ge=0)] = 0  # as many as max_associations
    max_instance_bytes: Annotated[int, Field(ge=1)] = 17_179_869_184
    tls: bool = False
    min_free_bytes: Annotated[int, Field(ge=0)] = 1_000_000_000
    commitment: bool = False

    @field_validator("allow")
    @classmethod
    def _well_formed(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for entry in value:
            title, at, network = entry.partition("@")
            _ae_title(title)
            if at:
                try:
                    ipaddress.ip_network(network)
                except ValueError as error:
                    raise ValueError(f"'{entry}': {error}; write such as 'PACS@10.1.0.0/16'") from error
        return each_once(value)


class TlsSettings(Section):
    """`[tls]`: certificates, as PEM files; read again when they change."""

    certificate: Path | None = None
    key: Path | None = None
    authorities: Path | None = None
    revocations: Path | None = None
    peers: Literal["required", "none"] = "required"

    @model_validator(mode="after")
    def _in_pairs(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("tls.certificate and tls.key go together: set both, or neither")
        return self


class UserSettings(Section):
    """`[[user]]`: a user name that senders show, and the hash of the passcode that goes with it."""

    name: Name
    passcode: Annotated[str, Field(repr=False)] = ""

    @field_validator("passcode")
    @classmethod
    def _hashed(cls, value: str) -> str:
        if value and not passcodes.is_hash(value):
            raise ValueError("this is no hash of a passcode: make one by `dicomai config passcode`")
        return value


class WorkerSettings(Section):
    """`[worker]`: inference."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    lease: Seconds = 60.0
    attempts: Annotated[int, Field(ge=1)] = 3
    threads: Annotated[int, Field(ge=1)] = Field(default_factory=lambda: min(8, os.cpu_count() or 1))


class DeliverySettings(Section):
    """`[delivery]`: how results are sent, and how long it is tried."""

    first_wait: Seconds = 10.0
    longest_wait: Seconds = 3600.0
    attempts: Annotated[int, Field(ge=1)] = 30
    timeout: Seconds = 30.0


class ConsoleSettings(Section):
    """`[console]`: the web page, and DICOMweb."""

    host: str = "127.0.0.1"
    port: Port = 8480
    dicomweb: bool = False
    token: SecretStr = SecretStr("")
    public_url: str = ""

    @field_validator("public_url")
    @classmethod
    def _url(cls, value: str) -> str:
        if not re.fullmatch(r"(https?://[A-Za-z0-9.:\[\]-]+(/[A-Za-z0-9._~/-]*)?)?", value):
            raise ValueError(f"'{value}' is no URL such as 'https://ai.hospital.example'")
        return value.rstrip("/")

    @field_validator("token")
    @classmethod
    def _hard_to_guess(cls, value: SecretStr) -> SecretStr:
        if not re.fullmatch("([!-~]{16,})?", value.get_secret_value()):
            raise ValueError("a token has 16 printable characters or more, and no space")
        return value

    @model_validator(mode="after")
    def _not_open_to_all(self) -> Self:
        if self.dicomweb and not self.is_local and not self.token.get_secret_value():
            raise ValueError(f"console.dicomweb on '{self.host}' lets anyone send and fetch images: set console.token")
        return self

    @property
    def is_local(self) -> bool:
        """Whether this machine alone can reach it."""
        try:
            return self.host.lower() == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False  # some other name, which may be anywhere


class SourceSettings(Section):
    """`[[source]]`: a system that images come from, and how it can be called."""

    name: Name
    ae_title: AETitle
    host: str
    port: Port
    tls: bool = False
    method: Literal["move", "get"] = "move"
    timeout: Seconds = 300.0
    counts: bool = False


class RouteSettings(Section):
    """`[[route]]`: what to run on which images, and where the results go."""

    OUTPUTS: ClassVar[frozenset[str]] = frozenset(
        {
            "fractional",
            "gsps",
            "keyframes",
            "keyimage",
            "kos",
            "mesh",
            "pdf",
            "report",
            "reportimage",
            "rtstruct",
            "saliency",
            "seg",
            "sr",
        }
    )

    name: Name
    model: ModelName
    level: Level = Level.SERIES
    match: Patterns = Field(default_factory=dict)
    exclude: Patterns = Field(default_factory=lambda: dict(DEFAULT_EXCLUDE))
    outside_validated: OutsideValidated = OutsideValidated.REFUSE
    outputs: tuple[str, ...] = ("seg", "sr")
    destinations: Names = ()
    quiet_period: Seconds | None = None
    prior: bool = False

    @field_validator("outputs")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        unknown = set(value) - cls.OUTPUTS
        if unknown or not value:
            raise ValueError(f"outputs are some of {sorted(cls.OUTPUTS)}, not {sorted(unknown) or 'none'}")
        return each_once(value)

    @model_validator(mode="after")
    def _compares_in_a_report(self) -> Self:
        if self.prior and "sr" not in self.outputs:
            raise ValueError('prior = true compares in the report: add "sr" to outputs, or leave it off')
        return self
