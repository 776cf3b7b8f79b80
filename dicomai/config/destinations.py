"""The entries `[[destination]]` of the configuration, a class for each type."""

import posixpath
import re
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, field_validator, model_validator

from dicomai.config.sections import HOST, AETitle, Name, Port, Seconds, Section, each_once
from dicomai.profiles import Profile

_FIND = "1.2.840.10008.5.1.4.1.2.2.1"  # Study Root Query/Retrieve Information Model
_COMMITMENT = "1.2.840.10008.1.20.1"  # Storage Commitment Push Model

AETitles = Annotated[tuple[AETitle, ...], AfterValidator(each_once)]


class DicomDestination(Section):
    """`[[destination]]` of type `dicom`: C-STORE to an AE."""

    type: Literal["dicom"]
    name: Name
    profile: Profile = Profile.OHIF
    ae_title: AETitle
    host: str
    port: Port
    tls: bool = False
    verify: Literal["none", "find"] = "none"
    verify_timeout: Seconds = 300.0
    commitment: bool = False
    commitment_timeout: Seconds = 3600.0
    check_patient: bool = False
    wait_for_source: bool = False
    withdraw_superseded: bool = False
    max_age: Seconds | None = None
    returns_as: AETitles = ()

    @property
    def address(self) -> tuple[str, ...]:
        """Where it leads, whatever its name."""
        return (self.type, self.host.lower(), str(self.port), self.ae_title)

    @property
    def services(self) -> dict[str, str]:
        """What it is asked beside storing: by SOP Class UID the key that says so."""
        keys = {
            _COMMITMENT: {"commitment": self.commitment},
            _FIND: {
                "verify": self.verify == "find",
                "check_patient": self.check_patient,
                "wait_for_source": self.wait_for_source,
            },
        }
        return {uid: key for uid, some in keys.items() for key in [k for k, is_set in some.items() if is_set][:1]}


class FolderDestination(Section):
    """`[[destination]]` of type `folder`: DICOM files in a folder."""

    type: Literal["folder"]
    name: Name
    profile: Profile = Profile.OHIF
    path: Path
    max_age: Seconds | None = None
    returns_as: AETitles = ()

    @property
    def address(self) -> tuple[str, ...]:
        """Where it leads, whatever its name."""
        return (self.type, str(self.path.resolve()))


class DicomwebDestination(Section):
    """`[[destination]]` of type `dicomweb`: STOW-RS to an origin server."""

    type: Literal["dicomweb"]
    name: Name
    profile: Profile = Profile.OHIF
    url: str
    token: SecretStr = SecretStr("")
    user: str = ""
    password: SecretStr = SecretStr("")
    verify: Literal["none", "qido"] = "none"
    verify_timeout: Seconds = 300.0
    check_patient: bool = False
    withdraw_superseded: bool = False
    max_age: Seconds | None = None
    returns_as: AETitles = ()

    @property
    def address(self) -> tuple[str, ...]:
        """Where it leads, whatever its name."""
        return (self.type, self.url.lower())

    @field_validator("url")
    @classmethod
    def _base_url(cls, value: str) -> str:
        if not re.fullmatch(rf"https?://({HOST})(:[0-9]{{1,5}})?(/[A-Za-z0-9._~%:@/-]*)?", value):
            raise ValueError("this is no base URL of DICOMweb services such as 'https://pacs.example/dicom-web'")
        if urlsplit(value).port == 0:  # which raises a ValueError of its own over 65535
            raise ValueError("there is no port 0")
        return value.rstrip("/")

    @field_validator("token")
    @classmethod
    def _one_word(cls, value: SecretStr) -> SecretStr:
        if not re.fullmatch("[!-~]*", value.get_secret_value()):
            raise ValueError("a token has printable characters and no space")
        return value

    @field_validator("user")
    @classmethod
    def _no_colon(cls, value: str) -> str:
        if ":" in value:
            raise ValueError("a user name has no colon (RFC 7617)")
        return value

    @model_validator(mode="after")
    def _one_way_in(self) -> Self:
        if bool(self.user) != bool(self.password.get_secret_value()):
            raise ValueError("user and password go together: set both, or neither")
        if self.user and self.token.get_secret_value():
            raise ValueError("set token, or user and password, not both")
        return self

    @property
    def tls(self) -> bool:
        """Whether it is called with TLS."""
        return self.url.startswith("https:")

    @property
    def is_open_secret(self) -> bool:
        """Whether a token or password would travel in clear."""
        return not self.tls and bool(self.token.get_secret_value() or self.user)


class SftpDestination(Section):
    """`[[destination]]` of type `sftp`: DICOM files in a folder of an SSH server."""

    type: Literal["sftp"]
    name: Name
    profile: Profile = Profile.OHIF
    host: str
    port: Port
    user: Name
    password: SecretStr = SecretStr("")
    key: Path | None = None
    known_hosts: Path
    path: PurePosixPath
    max_age: Seconds | None = None
    returns_as: AETitles = ()

    @property
    def address(self) -> tuple[str, ...]:
        """Where it leads, whatever its name."""
        return (self.type, self.host.lower(), str(self.port), self.user, posixpath.normpath(self.path))

    @model_validator(mode="after")
    def _one_way_in(self) -> Self:
        if bool(self.password.get_secret_value()) == (self.key is not None):
            raise ValueError("set key or password, one of both")
        return self


class S3Destination(Section):
    """`[[destination]]` of type `s3`: DICOM files as objects in a bucket."""

    type: Literal["s3"]
    name: Name
    profile: Profile = Profile.OHIF
    url: str
    bucket: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$")]
    prefix: Annotated[str, Field(pattern=r"^([A-Za-z0-9_][A-Za-z0-9._-]*(/|$))*$", max_length=512)] = ""
    region: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")] = "us-east-1"
    addressing: Literal["path", "virtual"] = "path"
    access_key: Annotated[str, Field(pattern=r"^[!-~]+$")]
    secret_key: Annotated[SecretStr, Field(min_length=1)]
    max_age: Seconds | None = None
    returns_as: AETitles = ()

    @property
    def address(self) -> tuple[str, ...]:
        """Where it leads, whatever its name."""
        return (self.type, self.url.lower(), self.bucket, self.prefix)

    @field_validator("url")
    @classmethod
    def _endpoint(cls, value: str) -> str:
        if not re.fullmatch(rf"https?://({HOST})(:[0-9]{{1,5}})?/?", value) or urlsplit(value).port == 0:
            raise ValueError("this is no URL of a server such as 'https://s3.example', without the bucket")
        return value.rstrip("/")

    @field_validator("prefix")
    @classmethod
    def _folder(cls, value: str) -> str:
        return value.rstrip("/")

    @property
    def tls(self) -> bool:
        """Whether it is called with TLS."""
        return self.url.startswith("https:")


Destination = Annotated[
    DicomDestination | DicomwebDestination | FolderDestination | S3Destination | SftpDestination,
    Field(discriminator="type"),
]
