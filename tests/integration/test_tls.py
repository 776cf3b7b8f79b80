"""TLS: who is let in and who is called, with certificates that are in order and such as are not."""

import contextlib
import os
import select
import shutil
import socket
import ssl
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from structlog.testing import capture_logs

from dicomai import passcodes, tls
from dicomai.commands import check
from dicomai.config import DicomDestination, Settings, TlsSettings
from dicomai.destinations import echo, open_destination
from dicomai.errors import ConfigurationError, RejectedError, UnreachableError
from tests.certificates import Authority, Pki
from tests.dimse import HOST, Node, associate, node, store, wait_until
from tests.integration.test_destinations import outgoing

CT = [(CTImageStorage, [ExplicitVRLittleEndian])]


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki.make(tmp_path_factory.mktemp("pki"))


def there(port: int) -> DicomDestination:
    return DicomDestination(type="dicom", name="node", ae_title="DICOMAI", host=HOST, port=port, tls=True)


def call(n: Node, settings: TlsSettings) -> float:
    return echo(there(n.port), calling_ae="CT01", timeout=5.0, tls=settings)


class TestReceiving:
    def test_an_instance_comes_over_a_connection_that_both_sides_trust(self, pki: Pki) -> None:
        data = b"\x08\x00\x18\x00" + bytes(300_000)  # many TLS records, of which a PDU may have any part
        args = (tls.client_context(pki.ours.settings(pki.sender)), HOST)
        with node(tls=pki.ours.settings(pki.node)) as n, associate(n.port, CT, tls=args) as assoc:
            for number in range(3):
                assert store(assoc, CTImageStorage, f"1.2.{number}", data).Status == 0x0000
        assert [n.intake.data_set(k) for k in range(3)] == 3 * [data]

    @pytest.mark.parametrize(
        ("who", "reason"),
        [
            ("expired", "certificate has expired"),
            ("early", "not valid yet"),
            ("revoked", "has been revoked"),
            ("stranger", "authority that is not known"),
            (None, "shows no certificate"),
        ],
    )
    def test_a_sender_without_a_sound_certificate_is_kept_out(self, pki: Pki, who: str | None, reason: str) -> None:
        settings = pki.ours.settings(getattr(pki, who) if who else None)
        with (
            capture_logs() as logs,
            node(tls=pki.ours.settings(pki.node, revocations=pki.revocations)) as n,
        ):
            with pytest.raises((RejectedError, UnreachableError)) as said:
                call(n, settings)
            wait_until(lambda: lines(logs))
            assert call(n, pki.ours.settings(pki.sender)) > 0
        (line,) = lines(logs)
        assert reason in line["event"]
        assert line["remedy"]
        assert line["address"] == HOST
        assert "refused our certificate" in str(said.value) or who is None
        assert isinstance(said.value, UnreachableError) is (who == "expired")

    def test_without_certificates_of_senders_where_none_is_asked_for(self, pki: Pki) -> None:
        with node(tls=TlsSettings(certificate=pki.node.certificate, key=pki.node.key, peers="none")) as n:
            assert call(n, pki.ours.settings()) > 0

    def test_tls_1_1_is_too_old(self, pki: Pki) -> None:
        context = tls.client_context(pki.ours.settings(pki.sender))
        context.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
        with capture_logs() as logs, node(tls=pki.ours.settings(pki.node)) as n:
            with socket.create_connection((HOST, n.port)) as plain, pytest.raises(ssl.SSLError, match=r"(?i)version"):
                context.wrap_socket(plain, server_hostname=HOST)
            wait_until(lambda: lines(logs))
        assert "neither TLS 1.2 nor TLS 1.3" in lines(logs)[0]["event"]

    @pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
    def test_tls_1_2_and_1_3_are_spoken_with_sound_ciphers(self, pki: Pki, version: ssl.TLSVersion) -> None:
        context = tls.client_context(pki.ours.settings(pki.sender))
        context.set_ciphers("ALL")
        context.minimum_version = context.maximum_version = version
        with node(tls=pki.ours.settings(pki.node)) as n, associate(n.port, CT, tls=(context, HOST)) as assoc:
            assert store(assoc, CTImageStorage, "1.2.3", b"\x08\x00\x18\x00").Status == 0x0000
            assert assoc.dul.socket is not None
            connection = assoc.dul.socket.socket
            assert isinstance(connection, ssl.SSLSocket)
            cipher = connection.cipher()
            assert cipher is not None
            assert "GCM" in cipher[0]
        context.set_ciphers("ECDHE+AES:!AESGCM:DHE:@SECLEVEL=0")
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
        with (
            node(tls=pki.ours.settings(pki.node)) as n,
            socket.create_connection((HOST, n.port)) as plain,
            pytest.raises(ssl.SSLError, match=r"(?i)handshake failure"),
        ):
            context.wrap_socket(plain, server_hostname=HOST)

    def test_one_that_speaks_no_tls_is_closed_and_told_of_once(self, pki: Pki) -> None:
        with capture_logs() as logs, node(tls=pki.ours.settings(pki.node)) as n:
            for _ in range(3):
                with associate(n.port, CT) as assoc:
                    assert not assoc.is_established
            wait_until(lambda: lines(logs))
            with socket.create_connection((HOST, n.port)):  # a load balancer's look
                pass
            assert call(n, pki.ours.settings(pki.sender)) > 0
        (line,) = lines(logs)
        assert "does not speak TLS" in line["event"]

    def test_slow_handshakes_keep_nobody_else_waiting(self, pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("dicomai.receiver.connections.ARTIM_SECONDS", 2.0)
        with capture_logs() as logs, node(tls=pki.ours.settings(pki.node)) as n, contextlib.ExitStack() as stack:
            silent = [stack.enter_context(socket.create_connection((HOST, n.port))) for _ in range(10)]
            for one in silent:
                one.sendall(b"\x16\x03\x01")  # the beginning of a record, and no more
            assert call(n, pki.ours.settings(pki.sender)) > 0
            assert select.select(silent, [], [], 0)[0] == []  # none of them has been given up
            for one in silent:
                one.settimeout(10)
                assert one.recv(1) == b""
        assert "in time" in lines(logs)[0]["event"]

    def test_a_sender_that_stops_inside_a_record_does_not_stay(self, pki: Pki) -> None:
        args = (tls.client_context(pki.ours.settings(pki.sender)), HOST)
        with (
            node(tls=pki.ours.settings(pki.node), idle_timeout=0.5) as n,
            associate(n.port, CT, tls=args) as assoc,
        ):
            assert assoc.dul.socket is not None
            connection = assoc.dul.socket.socket
            assert connection is not None
            socket.socket.send(connection, b"\x17\x03\x03\x10\x00")
            wait_until(lambda: n.intake.closed == [(1, "lost")], 3)


class TestReload:
    @pytest.fixture(autouse=True)
    def _at_every_connection(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("dicomai.tls._LOOK_SECONDS", 0.0)

    @pytest.fixture
    def mine(self, pki: Pki, tmp_path: Path) -> TlsSettings:
        """A node's own copies of its files."""
        for name, path in (
            ("node.crt", pki.node.certificate),
            ("node.key", pki.node.key),
            ("authorities.pem", pki.ours.certificate),
        ):
            shutil.copyfile(path, tmp_path / name)
        return TlsSettings(
            certificate=tmp_path / "node.crt", key=tmp_path / "node.key", authorities=tmp_path / "authorities.pem"
        )

    def test_new_files_count_from_the_next_connection_on(self, pki: Pki, mine: TlsSettings) -> None:
        assert mine.certificate is not None
        assert mine.key is not None
        assert mine.authorities is not None
        known = tls.client_context(pki.ours.settings(pki.sender)), HOST
        with node(tls=mine) as n, associate(n.port, CT, tls=known) as before:
            shutil.copyfile(pki.foreign.certificate, mine.authorities)
            with pytest.raises(RejectedError, match="refused our certificate"):
                call(n, pki.ours.settings(pki.sender))
            assert call(n, pki.ours.settings(pki.stranger)) > 0
            shutil.copyfile(pki.stranger.certificate, mine.certificate)
            shutil.copyfile(pki.stranger.key, mine.key)
            assert call(n, pki.foreign.settings(pki.stranger)) > 0
            assert store(before, CTImageStorage, "1.2.3", b"\x08\x00\x18\x00").Status == 0x0000

    def test_a_broken_file_leaves_all_as_it_was_and_is_told_of_once(self, pki: Pki, mine: TlsSettings) -> None:
        assert mine.certificate is not None
        with capture_logs() as logs, node(tls=mine) as n:
            mine.certificate.write_text("no certificate", encoding="utf-8")
            for _ in range(2):
                assert call(n, pki.ours.settings(pki.sender)) > 0
            mine.certificate.unlink()
            assert call(n, pki.ours.settings(pki.sender)) > 0
        errors = [line for line in logs if line["log_level"] == "error"]
        assert [str(mine.certificate) in line["error"] for line in errors] == [True, True]
        assert "BEGIN" not in str(logs)


class TestSending:
    @pytest.mark.parametrize(
        ("who", "kind", "reason"),
        [
            ("expired", UnreachableError, "its certificate has expired: renew it there"),
            ("early", UnreachableError, "not valid yet"),
            ("revoked", RejectedError, "has been revoked"),
            ("stranger", RejectedError, "authority that is not known"),
            ("elsewhere", RejectedError, "made out to another host"),
        ],
    )
    def test_a_destination_without_a_sound_certificate_gets_nothing(
        self, pki: Pki, who: str, kind: type[Exception], reason: str
    ) -> None:
        with node(tls=pki.ours.settings(getattr(pki, who))) as n:
            destination = open_destination(
                there(n.port),
                calling_ae="CT01",
                timeout=5.0,
                tls=pki.ours.settings(pki.sender, revocations=pki.revocations),
            )
            sent = outgoing(1)[0]
            with pytest.raises(kind, match=reason):
                destination.send([sent], lambda *_: None)
        assert not n.intake.opened

    def test_a_destination_that_speaks_no_tls_gets_nothing(self, pki: Pki) -> None:
        with node() as n, pytest.raises((RejectedError, UnreachableError), match="TLS"):
            call(n, pki.ours.settings(pki.sender))

    def test_files_that_are_being_replaced_make_a_delivery_wait(self, pki: Pki, tmp_path: Path) -> None:
        authorities = tmp_path / "authorities.pem"
        shutil.copyfile(pki.ours.certificate, authorities)
        settings = pki.ours.settings(pki.sender, authorities=authorities)
        with node(tls=pki.ours.settings(pki.node)) as n:
            destination = open_destination(there(n.port), calling_ae="CT01", timeout=5.0, tls=settings)
            authorities.unlink()
            with pytest.raises(UnreachableError, match="cannot be read"):
                destination.send([outgoing(1)[0]], lambda *_: None)
            with pytest.raises(ConfigurationError):
                call(n, settings)


class TestFiles:
    def test_what_is_wrong_with_a_file_is_said_in_a_sentence(self, pki: Pki, tmp_path: Path) -> None:
        empty = tmp_path / "empty.pem"
        empty.touch()
        for settings, words in (
            (pki.ours.settings(pki.node, key=pki.sender.key), "key values mismatch"),
            (pki.ours.settings(pki.node, certificate=tmp_path / "none.crt"), "none.crt cannot be read"),
            (pki.ours.settings(pki.node, authorities=empty), "authorities"),
            (pki.ours.settings(pki.node, authorities=pki.node.certificate), "certificates of authorities"),
            (pki.ours.settings(pki.node, revocations=pki.ours.certificate), "revocation lists"),
        ):
            with pytest.raises(ConfigurationError, match=words):
                tls.server_context(settings)
            with pytest.raises(ConfigurationError, match=words), node(tls=settings):
                pass

    def test_a_key_with_a_passphrase_is_not_asked_for_at_the_terminal(self, pki: Pki, tmp_path: Path) -> None:
        key = tmp_path / "locked.key"
        os.system(f"openssl ec -in {pki.node.key} -aes256 -passout pass:secret -out {key} 2>/dev/null")  # noqa: S605
        with pytest.raises(ConfigurationError, match="passphrase"):
            tls.server_context(pki.ours.settings(pki.node, key=key))

    def test_the_end_of_validity_is_that_of_the_certificate(self, pki: Pki) -> None:
        ends = dict(tls.ends_of_validity(pki.ours.settings(pki.node)))
        assert set(ends) == {pki.node.certificate, pki.ours.certificate}
        assert all(364 < (end - time.time()) / 86400 < 366 for end in ends.values())
        with pytest.raises(ConfigurationError, match="expired"):
            list(tls.ends_of_validity(pki.ours.settings(pki.expired)))

    def test_the_node_knows_itself_by_its_certificate(self, pki: Pki) -> None:
        settings = pki.ours.settings(pki.node)
        with node(tls=settings) as n:
            assert tls.is_ours(settings, HOST, n.port, 5.0)
            assert not tls.is_ours(pki.ours.settings(pki.sender), HOST, n.port, 5.0)
        with node() as n:
            assert not tls.is_ours(settings, HOST, n.port, 5.0)


class TestDoctor:
    def test_certificates_that_end_soon_and_a_key_for_everyone(self, pki: Pki, tmp_path: Path) -> None:
        soon = (datetime.now(UTC) + timedelta(days=20)).strftime("%Y%m%d%H%M%SZ")
        authority = Authority(tmp_path / "ca")
        pair = authority.issue("soon", "20200101000000Z", soon)
        pair.key.chmod(0o644)
        found = check._tls(Settings(tls=authority.settings(pair)))
        assert [(one.verdict, one.sentence.split()[0]) for one in found] == [
            ("warning", str(pair.certificate)),
            ("good", str(authority.certificate)),
            ("warning", str(pair.key)),
        ]
        assert "valid for 20 days: renew it" in found[0].sentence
        (expired,) = check._tls(Settings(tls=pki.ours.settings(pki.expired)))
        assert (expired.verdict, "has expired" in expired.sentence) == ("bad", True)

    def test_passcodes_in_clear(self, pki: Pki) -> None:
        user = {"name": "ct01", "passcode": passcodes.hashed(b"4711")}
        (found,) = check._users(Settings(user=[user]))
        assert (found.verdict, "receiver.tls" in found.sentence) == ("warning", True)
        assert not check._users(Settings(user=[user], receiver={"tls": True}, tls=pki.ours.settings(pki.node)))

    def test_the_node_that_answers_by_tls(self, pki: Pki) -> None:
        with node(tls=pki.ours.settings(pki.node)) as n:
            for pair, verdict in ((pki.node, "good"), (pki.sender, "bad")):
                settings = Settings(
                    node={"host": HOST, "port": n.port}, receiver={"tls": True}, tls=pki.ours.settings(pair)
                )
                assert check._receiver(settings)[-1].verdict == verdict


def lines(logs: list[dict[str, str]]) -> list[dict[str, str]]:
    return [line for line in logs if line["event"].startswith("connection refused")]
