"""Configuration: TOML to validated, frozen settings. The only reader of configuration.

A file is looked for where `--config` says, then in `./dicomai.toml`, then in `/etc/dicomai/dicomai.toml`; without
one the defaults below hold. `DICOMAI_SECTION__KEY` in the environment overrides a key of a section.
"""

import os
import re
import tomllib
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from dicomai.config.destinations import (
    Destination,
    DicomDestination,
    DicomwebDestination,
    FolderDestination,
    S3Destination,
    SftpDestination,
)
from dicomai.config.forwards import ForwardSettings
from dicomai.config.sections import (
    ConsoleSettings,
    DeliverySettings,
    NodeSettings,
    ReceiverSettings,
    RouteSettings,
    SourceSettings,
    TlsSettings,
    UserSettings,
    WorkerSettings,
)
from dicomai.errors import ConfigurationError
from dicomai.forwarding import Deidentify, Forward
from dicomai.routing import Route

__all__ = [
    "SEARCH_PATH",
    "ConsoleSettings",
    "DeliverySettings",
    "Destination",
    "DicomDestination",
    "DicomwebDestination",
    "FolderDestination",
    "ForwardSettings",
    "NodeSettings",
    "ReceiverSettings",
    "RouteSettings",
    "S3Destination",
    "Settings",
    "SftpDestination",
    "SourceSettings",
    "TlsSettings",
    "UserSettings",
    "WorkerSettings",
    "find",
    "holds_secret",
    "load",
]

SEARCH_PATH = (Path("dicomai.toml"), Path("/etc/dicomai/dicomai.toml"))


class Settings(BaseSettings):
    """All settings, validated as a whole and frozen."""

    model_config = SettingsConfigDict(
        env_prefix="DICOMAI_", env_nested_delimiter="__", frozen=True, extra="forbid", env_ignore_empty=True
    )
    _file: ClassVar[Path | None] = None

    node: NodeSettings = Field(default_factory=NodeSettings)
    receiver: ReceiverSettings = Field(default_factory=ReceiverSettings)
    tls: TlsSettings = Field(default_factory=TlsSettings)
    worker: WorkerSettings = Field(default_factory=WorkerSettings)
    delivery: DeliverySettings = Field(default_factory=DeliverySettings)
    console: ConsoleSettings = Field(default_factory=ConsoleSettings)
    user: tuple[UserSettings, ...] = ()
    source: tuple[SourceSettings, ...] = ()
    destination: tuple[Destination, ...] = ()
    route: tuple[RouteSettings, ...] = ()
    forward: tuple[ForwardSettings, ...] = ()

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
            ("user", [u.name for u in self.user]),
            ("source", [s.name for s in self.source]),
            ("destination", [d.name for d in self.destination]),
            ("route", [r.name for r in self.route]),
            ("forward", [f.name for f in self.forward]),
        ):
            twice = {name for name in names if names.count(name) > 1}
            if twice:
                raise ValueError(f"two entries of [[{what}]] are named '{min(twice)}': give each its own name")
        known = {d.name for d in self.destination}
        rules = [("route", r.name, r.destinations) for r in self.route]
        for what, rule, destinations in rules + [("forward", f.name, f.destinations) for f in self.forward]:
            for name in destinations:
                if name not in known:
                    raise ValueError(
                        f"{what} '{rule}' sends to '{name}', but no [[destination]] has that name"
                        f" (there are: {', '.join(sorted(known)) or 'none'})"
                    )
        return self

    @model_validator(mode="after")
    def _names_stay_apart(self) -> Self:
        """Let nobody who gets de-identified images have the same ones with a name on them."""
        address = {one.name: one.address for one in self.destination}
        named = {address[name]: f"route '{r.name}' to '{name}'" for r in self.route for name in r.destinations}
        named |= {
            address[name]: f"forward '{f.name}' to '{name}'"
            for f in self.forward
            for name in f.destinations
            if f.deidentify is Deidentify.NONE
        }
        retained: dict[tuple[str, ...], ForwardSettings] = {}
        for forward in (one for one in self.forward if one.deidentify is not Deidentify.NONE):
            for name in forward.destinations:
                if address[name] in named:
                    raise ValueError(
                        f"destination '{name}' gets de-identified images by forward '{forward.name}', and the patient's"
                        f" name by {named[address[name]]}: give each a [[destination]] of its own, with another address"
                    )
                other = retained.setdefault(address[name], forward)
                if set(other.retain) != set(forward.retain):  # the same dates moved and not tell by how much
                    raise ValueError(
                        f"forward '{forward.name}' and forward '{other.name}' send to the same destination '{name}' and"
                        " retain different things: let both retain the same, or give each a destination of its own"
                    )
        return self

    @property
    def nameless(self) -> frozenset[str]:
        """The destinations that get nothing but de-identified images."""
        return frozenset(
            name for one in self.forward if one.deidentify is not Deidentify.NONE for name in one.destinations
        )

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        tls = self.tls
        if self.receiver.tls and (tls.certificate is None or (tls.peers == "required" and tls.authorities is None)):
            raise ValueError(
                "receiver.tls needs tls.certificate and tls.key, and tls.authorities unless tls.peers is 'none'"
            )
        for what, entries in (("source", self.source), ("destination", self.destination)):
            for entry in entries:
                if not isinstance(entry, FolderDestination | SftpDestination) and entry.tls and tls.authorities is None:
                    raise ValueError(f"{what} '{entry.name}' with tls needs tls.authorities, by which it is known")
        return self

    @model_validator(mode="after")
    def _commitment_holds(self) -> Self:
        # What is committed has to be there to be had back (PS3.4 J.1.1). Nothing that is received is ever removed.
        if self.receiver.commitment and not self.console.dicomweb:
            raise ValueError(
                "receiver.commitment promises that what is kept can be had back: set console.dicomweb, or leave it off"
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
                prior=r.prior,
            )
            for r in self.route
        )

    @property
    def forwards(self) -> tuple[Forward, ...]:
        """The forward rules as nouns, each with the AE titles under which its destinations send."""
        own = {d.name: (d.ae_title,) for d in self.destination if isinstance(d, DicomDestination)}
        titles = {d.name: tuple(dict.fromkeys([*own.get(d.name, ()), *d.returns_as])) for d in self.destination}
        return tuple(
            Forward(
                name=f.name,
                match=dict(f.match),
                exclude=dict(f.exclude),
                destinations=f.destinations,
                returns_as={name: titles[name] for name in f.destinations if titles.get(name)},
                deidentify=f.deidentify,
                retain=f.retain,
            )
            for f in self.forward
        )

    def source_named(self, name: str) -> SourceSettings:
        """Find a source.

        Raises:
            ConfigurationError: there is none of that name.
        """
        for source in self.source:
            if source.name == name:
                return source
        names = ", ".join(s.name for s in self.source) or "none"
        raise ConfigurationError(f"No [[source]] is named '{name}'; the configuration has: {names}.")

    def destination_named(self, name: str) -> Destination:
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


def holds_secret(path: Path) -> bool:
    """Say whether a file that `load` took has a token, password or key in it, one in the worklist's URL included."""
    return _has_secret("", tomllib.loads(path.read_text(encoding="utf-8")))


def _has_secret(key: str, value: object) -> bool:
    if isinstance(value, dict):
        return any(_has_secret(name, inner) for name, inner in value.items())
    if isinstance(value, list):
        return any(_has_secret(key, inner) for inner in value)
    if key == "worklist":
        return re.search(r"://[^/@]*:[^/]+@|[?&]password=", str(value)) is not None
    return key in {"token", "password", "secret_key"} and bool(value)


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
        text = "a destination needs its type: 'dicom', 'dicomweb', 'folder', 's3' or 'sftp'"
    return f"{place}: {text}" if place else text
