"""Authorities, certificates and revocation lists for tests, made by the `openssl` program."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest

from dicomai.config import TlsSettings

_CONFIGURATION = """
[ca]
default_ca = here
[here]
database = index.txt
new_certs_dir = .
rand_serial = yes
default_md = sha256
default_crl_days = 30
policy = any
unique_subject = no
[any]
commonName = supplied
[req]
distinguished_name = any
[authority]
basicConstraints = critical, CA:true
subjectKeyIdentifier = hash
[end]
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = DNS:localhost, IP:127.0.0.1
[elsewhere]
subjectAltName = DNS:elsewhere.example
"""


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, as PEM files."""

    certificate: Path
    key: Path


class Authority:
    """An authority of its own, in a folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "ca.cnf").write_text(_CONFIGURATION, encoding="utf-8")
        (folder / "index.txt").touch()
        self._folder = folder
        self.pair = self._request("authority")
        self._openssl(
            "req", "-x509", "-key", "authority.key", "-subj", f"/CN=Authority {folder.name}", "-days", "365",
            "-out", "authority.crt", "-config", "ca.cnf", "-extensions", "authority",
        )  # fmt: skip

    @property
    def certificate(self) -> Path:
        """Its own."""
        return self.pair.certificate

    def issue(self, name: str, start: str = "", end: str = "", *, extensions: str = "end") -> Pair:
        """Issue a certificate for this machine, valid for a year unless told otherwise.

        Args:
            name: of the files, and CommonName.
            start: such as 20200101000000Z.
            end: such as 20200201000000Z.
            extensions: `end`, or `elsewhere` for another host's.
        """
        pair = self._request(name)
        dates = [*(("-startdate", start) if start else ()), *(("-enddate", end) if end else ("-days", "365"))]
        self._openssl(
            "ca", "-batch", "-notext", "-config", "ca.cnf", "-cert", "authority.crt", "-keyfile", "authority.key",
            "-extensions", extensions, "-in", f"{name}.csr", "-out", f"{name}.crt", *dates,
        )  # fmt: skip
        return pair

    def revocations(self, *revoked: Pair) -> Path:
        """Make the list of revoked certificates, with these in it."""
        signed = ("-config", "ca.cnf", "-cert", "authority.crt", "-keyfile", "authority.key")
        for pair in revoked:
            self._openssl("ca", *signed, "-revoke", str(pair.certificate))
        self._openssl("ca", *signed, "-gencrl", "-out", "revoked.crl")
        return self._folder / "revoked.crl"

    def settings(self, pair: Pair | None = None, **keys: Any) -> TlsSettings:
        """The section `[tls]` of one that has a certificate and trusts this authority."""
        shown = {"certificate": pair.certificate, "key": pair.key} if pair else {}
        return TlsSettings(**{"authorities": self.certificate, **shown, **keys})

    def _request(self, name: str) -> Pair:
        self._openssl(
            "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}",
            "-keyout", f"{name}.key", "-out", f"{name}.csr", "-config", "ca.cnf",
        )  # fmt: skip
        return Pair(self._folder / f"{name}.crt", self._folder / f"{name}.key")

    def _openssl(self, *arguments: str) -> None:
        program = shutil.which("openssl")
        if program is None:
            pytest.fail("openssl is not installed: apt-get install openssl")
        done = subprocess.run([program, *arguments], cwd=self._folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


@dataclass(frozen=True)
class Pki:
    """A hospital's authority, a foreign one, and certificates of all kinds."""

    ours: Authority
    foreign: Authority
    node: Pair
    sender: Pair
    expired: Pair
    early: Pair
    revoked: Pair
    elsewhere: Pair
    stranger: Pair
    revocations: Path

    @classmethod
    def make(cls, folder: Path) -> Self:
        """Make them all, in a folder."""
        ours, foreign = Authority(folder / "ours"), Authority(folder / "foreign")
        revoked = ours.issue("revoked")
        return cls(
            ours=ours,
            foreign=foreign,
            node=ours.issue("node"),
            sender=ours.issue("sender"),
            expired=ours.issue("expired", "20200101000000Z", "20200201000000Z"),
            early=ours.issue("early", "20400101000000Z", "20410101000000Z"),
            revoked=revoked,
            elsewhere=ours.issue("elsewhere", extensions="elsewhere"),
            stranger=foreign.issue("stranger"),
            revocations=ours.revocations(revoked),
        )
