"""TLS and user identity with other people's programs on the other side: DCMTK and Orthanc, both ways."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pydicom.data
import pytest
from structlog.testing import capture_logs

from dicomai import passcodes
from dicomai.config import DicomDestination, TlsSettings, UserSettings
from dicomai.destinations import echo, send_files
from dicomai.errors import DeliveryError, RejectedError, UnreachableError
from tests import dimse
from tests.acceptance.node import Node, node
from tests.acceptance.orthanc import orthanc
from tests.acceptance.tools import dcmtk, run_dcmtk
from tests.certificates import Pair, Pki
from tests.dimse import HOST, free_port, is_listening, wait_until

FILE = Path(pydicom.data.__file__).parent / "test_files" / "CT_small.dcm"


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki.make(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, pki: Pki) -> Iterator[Node]:
    """A node that takes connections with TLS only."""
    keys = ("certificate", "key", "authorities", "revocations")
    files = pki.ours.settings(pki.node, revocations=pki.revocations)
    section = {key: str(getattr(files, key)) for key in keys}
    with node(tmp_path_factory.mktemp("node"), receiver={"tls": True}, tls=section) as one:
        one.start("--only", "receiver")
        yield one
        one.stop()


def shown(pair: Pair, pki: Pki) -> list[str]:
    """DCMTK's options for a certificate of its own, and for whom it trusts."""
    return ["+tls", str(pair.key), str(pair.certificate), "+cf", str(pki.ours.certificate)]


def storescu(port: int, *options: str) -> str:
    done = run_dcmtk("storescu", "-v", "-aet", "CT01", "-aec", "DICOMAI", *options, HOST, str(port), FILE)
    return f"{done.returncode} {done.stdout}"


class TestDcmtkSends:
    def test_echoscu_is_answered(self, running: Node, pki: Pki) -> None:
        done = run_dcmtk("echoscu", "-v", "-aec", "DICOMAI", *shown(pki.sender, pki), HOST, str(running.port))
        assert "Received Echo Response (Success)" in done.stdout

    @pytest.mark.parametrize("profile", ["+py", "+px", "+pz"])
    def test_an_instance_arrives_as_it_is(self, running: Node, pki: Pki, profile: str) -> None:
        sent = storescu(running.port, *shown(pki.sender, pki), profile)
        assert "Received Store Response (Success)" in sent, sent
        ((data_set,),) = [running.stored(str(pydicom.dcmread(FILE).SOPInstanceUID))]
        assert bytes(pydicom.dcmread(FILE).PixelData) in data_set

    @pytest.mark.parametrize(
        ("who", "reason"),
        [("expired", "has expired"), ("revoked", "has been revoked"), ("stranger", "authority that is not known")],
    )
    def test_a_certificate_that_is_not_in_order_is_refused(self, pki: Pki, who: str, reason: str) -> None:
        files = pki.ours.settings(pki.node, revocations=pki.revocations)
        with capture_logs() as logs, dimse.node(tls=files) as n:
            sent = storescu(n.port, *shown(getattr(pki, who), pki))
            assert "Success" not in sent
            wait_until(lambda: any(reason in line["event"] for line in logs))
            assert not n.intake.opened

    def test_without_tls_or_with_an_old_profile_nobody_comes_in(self, running: Node, pki: Pki) -> None:
        assert "Success" not in storescu(running.port)
        assert "connection refused: it does not speak TLS" in running.log
        assert "Success" not in storescu(running.port, *shown(pki.sender, pki), "+pn")

    def test_a_user_name_and_passcode(self) -> None:
        user = UserSettings(name="ct01", passcode=passcodes.hashed(b"4711"))
        with dimse.node(users=[user]) as n:
            assert "(Success)" in storescu(n.port, "-usr", "ct01", "-pwd", "4711", "-rsp")
            for wrong in (["-usr", "ct01", "-pwd", "4712"], ["-usr", "ct01"], []):
                refused = storescu(n.port, *wrong)
                assert "Result: Rejected Permanent, Source: Service User" in refused, refused


@contextlib.contextmanager
def storescp(folder: Path, pair: Pair, pki: Pki, *options: str) -> Iterator[int]:
    """DCMTK's storescp as a destination with TLS; gives its port."""
    port = free_port()
    folder.mkdir()
    process = subprocess.Popen(
        [dcmtk("storescp"), "-od", str(folder), *shown(pair, pki), *options, str(port)],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, "TCP_NODELAY": "1"},
    )  # fmt: skip
    try:
        wait_until(lambda: is_listening(port))
        yield port
    finally:
        process.kill()
        process.wait()


def send(port: int, tls: TlsSettings, ae_title: str = "STORESCP") -> None:
    there = DicomDestination(type="dicom", name="pacs", ae_title=ae_title, host=HOST, port=port, tls=True)
    (sent,) = send_files([FILE], there, calling_ae="DICOMAI", timeout=10.0, tls=tls)
    assert sent.status == 0x0000


class TestDcmtkReceives:
    def test_an_instance_gets_there(self, pki: Pki, tmp_path: Path) -> None:
        with storescp(tmp_path / "in", pki.sender, pki) as port:
            send(port, pki.ours.settings(pki.node))
        assert len(list((tmp_path / "in").iterdir())) == 1

    @pytest.mark.parametrize(
        ("who", "kind", "reason"),
        [
            ("expired", UnreachableError, "has expired"),
            ("revoked", RejectedError, "has been revoked"),
            ("stranger", RejectedError, "authority that is not known"),
        ],
    )
    def test_a_destination_whose_certificate_is_not_in_order_gets_nothing(
        self, pki: Pki, tmp_path: Path, who: str, kind: type[DeliveryError], reason: str
    ) -> None:
        with (
            storescp(tmp_path / "in", getattr(pki, who), pki) as port,
            pytest.raises(kind, match=reason),
        ):
            send(port, pki.ours.settings(pki.node, revocations=pki.revocations))
        assert not list((tmp_path / "in").iterdir())

    @pytest.mark.parametrize(("who", "kind"), [("expired", UnreachableError), ("stranger", RejectedError)])
    def test_a_destination_that_refuses_ours_is_told_of(
        self, pki: Pki, tmp_path: Path, who: str, kind: type[DeliveryError]
    ) -> None:
        with storescp(tmp_path / "in", pki.sender, pki) as port, pytest.raises(kind, match="refused our certificate"):
            send(port, pki.ours.settings(getattr(pki, who)))


def test_orthanc_sends_and_receives(pki: Pki, running: Node, tmp_path: Path) -> None:
    modality = {"AET": "DICOMAI", "Host": HOST, "Port": running.port, "UseDicomTls": True}
    with orthanc(
        tmp_path / "pacs",
        modalities={"DICOMAI": modality},  # type: ignore[dict-item]  its long form
        DicomTlsEnabled=True,
        DicomTlsCertificate=str(pki.sender.certificate),
        DicomTlsPrivateKey=str(pki.sender.key),
        DicomTlsTrustedCertificates=str(pki.ours.certificate),
    ) as pacs:
        files = pki.ours.settings(pki.node)
        there = DicomDestination(type="dicom", name="p", ae_title="PACS", host=HOST, port=pacs.dicom_port, tls=True)
        assert echo(there, calling_ae="DICOMAI", timeout=10.0, tls=files) > 0
        send(pacs.dicom_port, files, "PACS")
        assert len(pacs.instances()) == 1
        assert pacs.send("DICOMAI")["FailedInstancesCount"] == 0
        with pytest.raises(DeliveryError):
            send(pacs.dicom_port, pki.ours.settings(pki.stranger), "PACS")
    assert running.log.count('"association released"') > 0
