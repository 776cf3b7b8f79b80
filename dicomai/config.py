"""Configuration: TOML to validated, frozen settings. The only reader of configuration.

A file is looked for where `--config` says, then in `./dicomai.toml`, then in `/etc/dicomai/dicomai.toml`; without
one the defaults below hold. `DICOMAI_SECTION__KEY` in the environment overrides a key of a section.
"""

import ipaddress
import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self
from zoneinfo import ZoneInfo

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.valuerep import VR

from dicomai.errors import ConfigurationError
from dicomai.routing import DEFAULT_EXCLUDE, Level, OutsideValidated, Route

SEARCH_PATH = (Path("dicomai.toml"), Path("/etc/dicomai/dicomai.toml"))


def _ae_title(value: str) -> str:
    """Check an AE title (PS3.5 6.2, VR AE): 1 to 16 printable characters, no backslash."""
    if not 1 <= len(value.strip()) <= 16 or not re.fullmatch(r"[\x20-\x5b\x5d-\x7e]+", value):
        raise ValueError(f"'{value}' is no AE title: 1 to 16 printable characters without a backslash")
    return value.strip()


def _each_once(value: tuple[str, ...]) -> tuple[str, ...]:
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
Names = Annotated[tuple[Name, ...], AfterValidator(_each_once)]

# What no pattern can be held against: nested data sets and bulk data.
_NOT_TEXT = frozenset({VR.SQ, VR.OB, VR.OD, VR.OF, VR.OL, VR.OV, VR.OW, VR.UN, VR.OB_OW})


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NodeSettings(_Section):
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


class ReceiverSettings(_Section):
    """`[receiver]`: who may send, how much, and when a series is complete."""

    allow: tuple[str, ...] = ()
    max_associations: Annotated[int, Field(ge=1)] = 64
    max_pdu: Annotated[int, Field(ge=4096)] = 131072
    quiet_period: Seconds = 60.0
    lost_period: Seconds = 600.0
    idle_timeout: Seconds = 300.0
    min_free_bytes: Annotated[int, Field(ge=0)] = 1_000_000_000

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
        return _each_once(value)


class WorkerSettings(_Section):
    """`[worker]`: inference."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    lease: Seconds = 60.0
    attempts: Annotated[int, Field(ge=1)] = 3
    threads: Annotated[int, Field(ge=1)] = Field(default_factory=lambda: min(8, os.cpu_count() or 1))


class DeliverySettings(_Section):
    """`[delivery]`: how results are sent, and how long it is tried."""

    first_wait: Seconds = 10.0
    longest_wait: Seconds = 3600.0
    attempts: Annotated[int, Field(ge=1)] = 30
    timeout: Seconds = 30.0


class ConsoleSettings(_Section):
    """`[console]`: the web page."""

    host: str = "127.0.0.1"
    port: Port = 8480


class DicomDestination(_Section):
    """`[[destination]]` of type `dicom`: C-STORE to an AE."""

    type: Literal["dicom"]
    name: Name
    ae_title: AETitle
    host: str
    port: Port


class FolderDestination(_Section):
    """`[[destination]]` of type `folder`: DICOM files in a folder."""

    type: Literal["folder"]
    name: Name
    path: Path


Destination = Annotated[DicomDestination | FolderDestination, Field(discriminator="type")]


class SourceSettings(_Section):
    """`[[source]]`: a system that images come from, and how it can be called."""

    name: Name
    ae_title: AETitle
    host: str
    port: Port


class RouteSettings(_Section):
    """`[[route]]`: what to run on which images, and where the results go."""

    OUTPUTS: ClassVar[frozenset[str]] = frozenset({"seg", "sr"})

    name: Name
    model: ModelName
    level: Level = Level.SERIES
    match: dict[str, str] = Field(default_factory=dict)
    exclude: dict[str, str] = Field(default_factory=lambda: dict(DEFAULT_EXCLUDE))
    outside_validated: OutsideValidated = OutsideValidated.REFUSE
    outputs: tuple[str, ...] = ("seg", "sr")
    destinations: Names = ()
    quiet_period: Seconds | None = None

    @field_validator("match", "exclude")
    @classmethod
    def _patterns(cls, value: dict[str, str]) -> dict[str, str]:
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

    @field_validator("outputs")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        unknown = set(value) - cls.OUTPUTS
        if unknown or not value:
            raise ValueError(f"outputs are some of {sorted(cls.OUTPUTS)}, not {sorted(unknown) or 'none'}")
        return _each_once(value)


class Settings(BaseSettings):
    """All settings, validated as a whole and frozen."""

    model_config = SettingsConfigDict(
        env_prefix="DICOMAI_", env_nested_delimiter="__", frozen=True, extra="forbid", env_ignore_empty=True
    )
    _file: ClassVar[Path | None] = None

    node: NodeSettings = Field(default_factory=NodeSettings)
    receiver: ReceiverSettings = Field(default_factory=ReceiverSettings)
    worker: WorkerSettings = Field(default_factory=WorkerSettings)
    delivery: DeliverySettings = Field(default_factory=DeliverySettings)
    console: ConsoleSettings = Field(default_factory=ConsoleSettings)
    source: tuple[SourceSettings, ...] = ()
    destination: tuple[Destination, ...] = ()
    route: tuple[RouteSettings, ...] = ()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003  the signature is the library's
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let the environment override the file."""
        sources = (init_settings, env_settings)
        if cls._file is not None:
            return (*sources, TomlConfigSettingsSource(settings_cls, cls._file))
        return sources

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        for what, names in (
            ("source", [s.name for s in self.source]),
            ("destination", [d.name for d in self.destination]),
            ("route", [r.name for r in self.route]),
        ):
            twice = {name for name in names if names.count(name) > 1}
            if twice:
                raise ValueError(f"two entries of [[{what}]] are named '{min(twice)}': give each its own name")
        known = {d.name for d in self.destination}
        for route in self.route:
            for name in route.destinations:
                if name not in known:
                    raise ValueError(
                        f"route '{route.name}' sends to '{name}', but no [[destination]] has that name"
                        f" (there are: {', '.join(sorted(known)) or 'none'})"
                    )
        return self

    @property
    def routes(self) -> tuple[Route, ...]:
        """The routes as nouns, each with its quiet period filled in."""
        return tuple(
            Route(
                name=r.name,
                model=r.model,
                match=dict(r.match),
                exclude=dict(r.exclude),
                level=r.level,
                outside_validated=r.outside_validated,
                outputs=r.outputs,
                destinations=r.destinations,
                quiet_period=r.quiet_period or self.receiver.quiet_period,
            )
            for r in self.route
        )

    def destination_named(self, name: str) -> DicomDestination | FolderDestination:
        """Find a destination.

        Raises:
            ConfigurationError: there is none of that name.
        """
        for destination in self.destination:
            if destination.name == name:
                return destination
        names = ", ".join(d.name for d in self.destination) or "none"
        raise ConfigurationError(f"No [[destination]] is named '{name}'; the configuration has: {names}.")


def find(path: Path | None) -> Path | None:
    """Say which file the settings come from; None where the defaults hold.

    Raises:
        ConfigurationError: the file that was asked for is not there.
    """
    if path is not None:
        if not path.is_file():
            raise ConfigurationError(f"The configuration file {path} does not exist.")
        return path
    return next((candidate for candidate in SEARCH_PATH if candidate.is_file()), None)


def load(path: Path | None = None) -> Settings:
    """Read the settings.

    Args:
        path: the file of `--config`, or None to look in the usual places.

    Raises:
        ConfigurationError: the file is missing, is no TOML, or a value is wrong; one sentence, all errors.
    """
    found = find(path)
    source = type("FileSettings", (Settings,), {"_file": found, "__module__": __name__})
    _check_environment()
    try:
        settings: Settings = source()
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{found} is no TOML: {error}.") from error
    except OSError as error:
        raise ConfigurationError(f"{found} cannot be read: {error.strerror}.") from error
    except SettingsError as error:
        raise ConfigurationError(
            f"The environment: {error}; a list is written as JSON, such as DICOMAI_RECEIVER__ALLOW='[\"CT01\"]'."
        ) from error
    except ValidationError as error:
        raise ConfigurationError(
            f"{found or 'The configuration'}: {'; '.join(map(_explain, error.errors()))}."
        ) from error
    return Settings.model_construct(**{name: getattr(settings, name) for name in Settings.model_fields})


def _check_environment() -> None:
    """Refuse a misspelt section: pydantic-settings would pass over it in silence."""
    for variable in os.environ:
        section, separator, _ = variable.upper().removeprefix("DICOMAI_").partition("__")
        if variable.upper().startswith("DICOMAI_") and separator and section.lower() not in Settings.model_fields:
            raise ConfigurationError(
                f"{variable} in the environment names no section of the configuration; there are: "
                f"{', '.join(sorted(Settings.model_fields))}."
            )


def _explain(error: Any) -> str:
    place = ".".join(str(part) for part in error["loc"])
    variable = "DICOMAI_" + place.replace(".", "__").upper()
    if any(name.upper() == variable for name in os.environ):
        place = variable
    text = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        text = "there is no such key"
    if error["type"] == "union_tag_not_found":
        text = "a destination needs its type: 'dicom' or 'folder'"
    return f"{place}: {text}" if place else text
