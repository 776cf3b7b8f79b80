"""STOW-RS and QIDO-RS as user agent: against this node's own DICOMweb, and against servers that do it wrong."""

import base64
import contextlib
import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from pydicom.uid import MRImageStorage

from dicomai.commands import check, wire
from dicomai.config import DicomwebDestination, Settings, TlsSettings
from dicomai.database.tables import Acceptance, Audit, ResultObject
from dicomai.destinations import Dicomweb, Outgoing, open_destination, send_each
from dicomai.destinations.filing import Filed
from dicomai.errors import (
    DeliveryError,
    NoAssociationError,
    NotAdmittedError,
    NotKeptError,
    RejectedError,
    UnreachableError,
)
from dicomai.workitem import State
from tests.beds import Bed
from tests.certificates import Authority
from tests.dimse import HOST, free_port
from tests.integration.test_delivery import analysed, delivery
from tests.integration.test_destinations import changed, outgoing, whole
from tests.integration.test_dicomweb import TOKEN, Web
from tests.synthetic import encode, series
from tests.web import send, served

(ONE,) = outgoing(1)
SECRET, PASSWORD = "a.secret", "geheim ß"
WHERE = Filed.of(ONE, "pacs")


def us(*values: int) -> dict[str, Any]:
    return {"vr": "US", "Value": list(values)}


def entry(uid: str = ONE.sop_instance_uid, **more: Any) -> dict[str, Any]:
    return {"00081150": {"vr": "UI", "Value": [MRImageStorage]}, "00081155": {"vr": "UI", "Value": [uid]}, **more}


def stored(**more: Any) -> bytes:
    return json.dumps({"00081199": {"vr": "SQ", "Value": [entry(**more)]}}).encode()


def failed(reason: int, sequence: str = "00081198") -> bytes:
    return json.dumps({sequence: {"vr": "SQ", "Value": [entry(**{"00081197": us(reason)})]}}).encode()


def match(**changes: str) -> dict[str, Any]:
    uids = {"0020000D": WHERE.study_instance_uid, "00080018": WHERE.sop_instance_uid, **changes}
    return {tag: {"vr": "UI", "Value": [uid]} for tag, uid in uids.items()}


class Stub:
    """A server that answers as it is told, and keeps what it was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, bytes]] = {"POST": (200, stored()), "GET": (200, b"[]")}
        self.headers: dict[str, str] = {}
        self.asked: list[tuple[str, dict[str, str], bytes]] = []
        self.cut: int | None = None
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                stub.asked.append((f"{self.command} {self.path}", dict(self.headers), body))
                status, text = stub.answers[self.command]
                self.send_response(status)
                for name, value in {"Content-Length": str(len(text)), **stub.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text[: stub.cut])
                self.close_connection = True

            do_GET = do_POST = answer  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer((HOST, 0), Handler)
        self.server.daemon_threads = False  # so that closing it waits for them
        self.port = self.server.server_address[1]

    def entry(self, **keys: Any) -> DicomwebDestination:
        url = f"http://{HOST}:{self.port}/dicom-web"
        return DicomwebDestination(type="dicomweb", name="pacs", **{"url": url, **keys})

    def destination(self, timeout: float = 5.0, tls: TlsSettings | None = None, **keys: Any) -> Dicomweb:
        made = open_destination(self.entry(**keys), calling_ae="DICOMAI", timeout=timeout, tls=tls)
        assert isinstance(made, Dicomweb)
        return made


@pytest.fixture
def stub() -> Iterator[Stub]:
    made = Stub()
    with served(made.server):
        yield made


def data_set(file: bytes) -> bytes:
    """Leave out the file meta information, which a server writes anew."""
    return file[144 + int.from_bytes(file[140:144], "little") :]


def objects_of(count: int) -> list[Outgoing]:
    return [
        Outgoing(str(ds.SOPClassUID), str(ds.SOPInstanceUID), partial(BytesIO, encode(ds)))
        for ds in series(shape=(count, 300, 300))  # 180 kB: several blocks
    ]


class TestOurOwnServer:
    def test_objects_arrive_byte_for_byte_in_order(self, sqlite_bed: Bed) -> None:
        objects = objects_of(3)
        with Web(sqlite_bed, console={"token": TOKEN}).running() as web:
            there = DicomwebDestination(
                type="dicomweb", name="node", url=f"http://{HOST}:{web.port}/dicomweb/", token=TOKEN
            )
            destination = Dicomweb(there, timeout=10.0)
            destination.reach()
            assert "check url" in destination.ask().remark  # for it offers no search
            assert send(destination, *objects) == [(o.sop_instance_uid, 0x0000, "") for o in objects]
            study = Filed.of(objects[0], "node").study_instance_uid
            kept = web.get(f"/dicomweb/studies/{study}", Authorization=f"Bearer {TOKEN}")
            assert sorted(map(data_set, kept)) == sorted(data_set(whole(o)) for o in objects)
            with pytest.raises(RejectedError, match="cannot be looked for"):
                destination.whereabouts(objects)
            with pytest.raises(RejectedError, match=r"0122 .*look up the reason in its log"):
                send(
                    destination,
                    changed(objects[0], whole(objects[0]).replace(b"840.10008.5.1.4.1.1.2", b"840.10008.5.1.4.9.9.9")),
                )
            stranger = Dicomweb(there.model_copy(update={"token": type(there.token)("wrong")}), timeout=10.0)
            with pytest.raises(RejectedError, match=r"401 \(Unauthorized\) to a search: check token"):
                stranger.ask()
            stranger.reach()  # it is there
            with pytest.raises(NotAdmittedError, match="401"):
                send(stranger, objects[0])

    def test_echo_and_send(self, sqlite_bed: Bed, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for number, one in enumerate(objects_of(2)):
            (tmp_path / f"{number}.dcm").write_bytes(whole(one))
        (tmp_path / "none.dcm").write_bytes(b"no DICOM")
        with Web(sqlite_bed).running() as web:
            there = {"type": "dicomweb", "name": "node", "url": f"http://{HOST}:{web.port}/dicomweb"}
            settings = Settings.model_validate({"destination": [there]})
            assert wire.echo(settings, "node", as_json=False) == 0
            said = " ".join(capsys.readouterr().out.split())
            assert re.search(r"answered DICOMAI in \d+ ms: 405 to a search, which is in order if", said)
            assert wire.send(settings, sorted(tmp_path.glob("*.dcm")), "node", as_json=False) == 1
            said = capsys.readouterr()
        assert "2 of 3 files accepted by node" in said.out
        assert "it is no DICOM file" in said.err


class TestAnswers:
    def test_what_is_sent(self, stub: Stub) -> None:
        assert send(stub.destination(token=SECRET), ONE) == [(ONE.sop_instance_uid, 0x0000, "")]
        (line, headers, body), *_ = stub.asked
        assert line == "POST /dicom-web/studies"
        assert headers["Authorization"] == f"Bearer {SECRET}"
        assert headers["Accept"] == "application/dicom+json"
        kind, boundary = headers["Content-Type"].split("; boundary=")
        assert kind == 'multipart/related; type="application/dicom"'
        head, _, rest = body.partition(b"\r\n\r\n")
        assert head == f"--{boundary}\r\nContent-Type: application/dicom".encode()
        assert rest == whole(ONE) + f"\r\n--{boundary}--\r\n".encode()
        send(stub.destination(user="ai", password=PASSWORD), ONE)
        assert stub.asked[-1][1]["Authorization"] == f"Basic {base64.b64encode(f'ai:{PASSWORD}'.encode()).decode()}"

    def test_warnings_are_recorded(self, stub: Stub) -> None:
        stub.answers["POST"] = (202, stored(**{"00081196": us(0xB000)}))
        ((_, status, meaning),) = send(stub.destination(), ONE)
        assert status == 0xB000
        assert "oercion" in meaning

    @pytest.mark.parametrize(
        ("status", "body", "error", "sentence"),
        [
            (409, failed(0xA700), UnreachableError, "A700 .*another attempt may succeed"),
            (409, failed(0x0110), UnreachableError, "0110 .*another attempt may succeed"),
            (202, failed(0x0110), UnreachableError, "0110"),
            (200, failed(0xA900), RejectedError, "A900 .*correct it, then retry"),
            (409, failed(0x0122), RejectedError, "0122"),
            (409, failed(0xC122), RejectedError, "does not take MR Image Storage in Explicit VR Little Endian"),
            (409, failed(0xC001), NotKeptError, "C001"),
            (409, failed(0xC001, "0008119A"), NotKeptError, "C001"),
            (409, b"", NotKeptError, "gives no reason"),
            (409, json.dumps({"00081198": {"vr": "SQ", "Value": [entry()]}}).encode(), NotKeptError, "no reason"),
            (200, b"", RejectedError, "without naming it. Set verify"),
            (200, b"<html>Please log in</html>", RejectedError, "without naming it"),
            (200, stored(uid="1.2.3"), RejectedError, "without naming it"),
            (200, b"[" * 100_000, RejectedError, "without naming it"),
            (200, b" " * 5_000_000, RejectedError, "answered with over"),
            (301, b"", NotAdmittedError, "301 .*not followed: set url"),
            (307, b"", NotAdmittedError, "307 .*not followed: set url"),
            (400, stored(), RejectedError, "400"),
            (401, b"", NotAdmittedError, "check token, or user and password"),
            (403, b"", NotAdmittedError, "allow this node"),
            (404, b"", NotAdmittedError, "check url"),
            (413, failed(0xA700), RejectedError, "take larger requests"),
            (415, b"", RejectedError, "this transfer syntax"),
            (408, b"", UnreachableError, "408 .*another attempt"),
            (425, b"", UnreachableError, "425"),
            (429, b"", NoAssociationError, "429"),
            (500, b"", UnreachableError, "500"),
            (501, b"", NotAdmittedError, "501"),
            (502, b"", UnreachableError, "502"),
            (503, failed(0xA700), NoAssociationError, "503"),
        ],
    )
    def test_what_is_no_acceptance(
        self, stub: Stub, status: int, body: bytes, error: type[DeliveryError], sentence: str
    ) -> None:
        stub.answers["POST"] = (status, body)
        stub.headers = {"Location": f"http://{HOST}:{stub.port}/elsewhere"} if 300 <= status < 400 else {}
        with pytest.raises(DeliveryError, match=sentence) as said:
            send(stub.destination(token=SECRET), ONE, ONE)
        assert type(said.value) is error
        assert SECRET not in str(said.value)
        assert len(stub.asked) == 1  # nothing is sent after it, tried again or followed

    def test_what_was_accepted_before_is_told(self, stub: Stub) -> None:
        (other,) = outgoing(1)
        accepted: list[str] = []
        with pytest.raises(RejectedError, match="without naming it"):
            stub.destination().send([ONE, other], lambda o, *_: accepted.append(o.sop_instance_uid))
        assert accepted == [ONE.sop_instance_uid]

    def test_an_answer_that_is_cut_says_nothing(self, stub: Stub) -> None:
        stub.cut = len(stored()) - 1
        with pytest.raises(UnreachableError, match="broke off"):
            send(stub.destination(), ONE)


class TestSearch:
    def test_what_is_shown(self, stub: Stub) -> None:
        destination = stub.destination(verify="qido")
        assert destination.verify_timeout == 300.0
        cases: list[tuple[int, Any, str | None]] = [
            (200, [match()], ""),
            (200, [match(**{"00080018": "1.2.3"}), match()], ""),  # it passes over the keys
            (200, [], None),
            (204, None, None),
            (200, [match(**{"00080018": "1.2.3"})], None),
            (200, [match(**{"0020000D": "1.2.3"})], "filed under another StudyInstanceUID"),
            (200, [match(**{"0020000E": "1.2.3"})], "filed under another SeriesInstanceUID"),
            (200, [match(**{"00100020": "SOMEBODY ELSE"})], "filed under another PatientID"),
        ]
        for status, found, where in cases:
            stub.answers["GET"] = (status, b"" if found is None else json.dumps(found).encode())
            stub.asked.clear()
            assert destination.whereabouts([ONE]) == {ONE.sop_instance_uid: where}, found
        assert [line for line, *_ in stub.asked][1:] == [
            f"GET /dicom-web/studies?StudyInstanceUID={WHERE.study_instance_uid}"
        ]
        assert stub.asked[0][0] == (
            f"GET /dicom-web/instances?StudyInstanceUID={WHERE.study_instance_uid}"
            f"&SeriesInstanceUID={WHERE.series_instance_uid}&SOPInstanceUID={WHERE.sop_instance_uid}"
        )
        for status, body, error in (
            (404, b"", RejectedError),
            (200, b"{}", RejectedError),
            (401, b"", NotAdmittedError),
            (302, b"", NotAdmittedError),
            (500, b"", UnreachableError),
        ):
            stub.answers["GET"] = (status, body)
            with pytest.raises(error) as said:
                destination.whereabouts([ONE])
            assert type(said.value) is error

    @pytest.mark.parametrize(("status", "body"), [(409, failed(0x0111)), (200, b"")])
    def test_what_is_not_sure_counts_only_if_it_is_shown(self, stub: Stub, status: int, body: bytes) -> None:
        destination = stub.destination(verify="qido")
        stub.answers["POST"] = (status, body)
        with pytest.raises(NotKeptError, match="QIDO-RS does not show it"):
            send(destination, ONE)
        stub.answers["GET"] = (401, b"")
        with pytest.raises(NotAdmittedError, match="check token"):
            send(destination, ONE)
        stub.answers["GET"] = (404, b"")
        with pytest.raises(RejectedError, match="QIDO-RS cannot tell"):
            send(destination, ONE)
        stub.answers["GET"] = (200, json.dumps([match()]).encode())
        ((_, code, meaning),) = send(destination, ONE)
        assert code == (0x0111 if status == 409 else 0x0000)
        assert "QIDO-RS shows it there" in meaning

    def test_asking_whether_it_is_there_brings_no_patients(self, stub: Stub) -> None:
        stub.destination().reach()
        assert stub.asked[-1][0] == "GET /dicom-web/studies?StudyInstanceUID=2.25.0&limit=1"
        stub.answers["GET"] = (404, b"")
        stub.destination().ask()
        with pytest.raises(RejectedError, match="404"):
            stub.destination(verify="qido").ask()
        stub.answers["GET"] = (503, b"")
        with pytest.raises(UnreachableError):
            stub.destination().reach()


@contextlib.contextmanager
def peer(behave: Callable[[socket.socket], None]) -> Iterator[int]:
    """Listen, and behave somehow towards the first who connects."""
    with socket.create_server((HOST, 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                behave(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        thread.join()


def at(port: int, timeout: float = 5.0, scheme: str = "http", **keys: Any) -> Dicomweb:
    there = DicomwebDestination(type="dicomweb", name="pacs", url=f"{scheme}://{HOST}:{port}")
    return Dicomweb(there, timeout=timeout, **keys)


def test_the_doctor_asks_and_warns_of_a_token_in_clear(stub: Stub) -> None:
    def verdicts(**keys: Any) -> list[tuple[str, str]]:
        settings = Settings.model_validate({"destination": [stub.entry(**keys)]})
        return [(found.verdict, found.sentence) for found in check._destinations(settings)]

    ((verdict, said),) = verdicts()
    assert (verdict, said.partition(" in ")[0]) == ("good", "it answered")
    assert [verdict for verdict, _ in verdicts(token=SECRET)] == ["good", "warning"]
    stub.answers["GET"] = (401, b"")
    ((verdict, said), _) = verdicts(user="ai", password=PASSWORD)
    assert verdict == "bad"
    assert "check token, or user and password" in said
    stub.answers["GET"] = (404, b"")
    ((verdict, said),) = verdicts()
    assert verdict == "warning"
    assert "404 to a search, which is in order if it offers none; else check url" in said


class TestConnections:
    def test_nobody_is_there(self) -> None:
        with pytest.raises(NoAssociationError, match=r"cannot be connected to \(Connection refused\)"):
            send(at(free_port()), ONE)
        with pytest.raises(NoAssociationError):
            at(free_port()).reach()

    def test_it_stops_answering(self) -> None:
        done = threading.Event()
        with peer(lambda _: done.wait(10) and None) as port:
            with pytest.raises(UnreachableError, match=r"stopped answering for 0.1 s"):
                send(at(port, timeout=0.1), ONE)
            done.set()

    def test_an_answer_without_end_is_cut(self) -> None:
        def drip(connection: socket.socket) -> None:
            connection.recv(1000)
            with contextlib.suppress(OSError):
                connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                while True:
                    connection.sendall(b"1\r\n \r\n")

        with peer(drip) as port, pytest.raises(DeliveryError, match=r"stopped answering|answered with over"):
            send(at(port, timeout=0.2), ONE)

    @pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\nX-a: ", b"HTTP/1.1 100 Continue\r\n\r\n"])
    def test_a_head_without_end_is_cut(self, head: bytes) -> None:
        def drip(connection: socket.socket) -> None:
            connection.recv(1000)
            with contextlib.suppress(OSError):
                connection.sendall(head)
                for _ in range(500):  # until it is cut
                    connection.sendall(head if b"100" in head else b"x")
                    time.sleep(0.02)

        with peer(drip) as port, pytest.raises(UnreachableError, match=r"stopped answering for 0.2 s"):
            at(port, timeout=0.2).reach()

    def test_it_is_no_web_server(self) -> None:
        with peer(lambda c: c.sendall(b"SSH-2.0-x\r\n")) as port, pytest.raises(UnreachableError, match="broke off"):
            send(at(port), ONE)

    def test_who_refuses_before_all_is_read_is_heard(self) -> None:
        large = changed(ONE, whole(ONE) + bytes(20_000_000))

        def refuse(connection: socket.socket) -> None:
            connection.recv(1000)
            connection.sendall(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")  # and it is closed

        with peer(refuse) as port, pytest.raises(RejectedError, match="401"):
            send(at(port), large)

    def test_tls_of_both_sides(self, stub: Stub, tmp_path: Path) -> None:
        ours = Authority(tmp_path / "ours")
        pair = ours.issue("node")
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=ours.certificate)
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(pair.certificate, pair.key)
        stub.server.socket = context.wrap_socket(stub.server.socket, server_side=True, do_handshake_on_connect=False)
        url = f"https://{HOST}:{stub.port}"
        assert send(stub.destination(url=url, tls=ours.settings(pair)), ONE) == [(ONE.sop_instance_uid, 0x0000, "")]
        with pytest.raises(NotAdmittedError, match="it refused our certificate"):
            send(stub.destination(url=url, tls=ours.settings()), ONE)
        with pytest.raises(NotAdmittedError, match="authority that is not known here"):
            send(stub.destination(url=url, tls=Authority(tmp_path / "foreign").settings()), ONE)

    def test_sending_files_ends_where_nobody_is_there(self, tmp_path: Path) -> None:
        (tmp_path / "one.dcm").write_bytes(whole(ONE))
        with pytest.raises(NoAssociationError):
            send_each([tmp_path], at(free_port()))

    def test_a_password_that_is_refused_is_not_tried_once_per_file(self, stub: Stub, tmp_path: Path) -> None:
        for number in range(3):
            (tmp_path / f"{number}.dcm").write_bytes(whole(ONE))
        stub.answers["POST"] = (401, b"")
        with pytest.raises(NotAdmittedError, match="check token"):
            send_each([tmp_path], stub.destination(user="ai", password=PASSWORD))
        assert len(stub.asked) == 1

        def expires(*_: object) -> None:
            stub.answers["POST"] = (401, b"")

        stub.answers["POST"] = (200, stored())
        sent = send_each([tmp_path], stub.destination(user="ai", password=PASSWORD), progress=expires)
        assert [one.is_accepted for one in sent] == [True, False, False]
        assert len(stub.asked) == 3


class TestDeliveries:
    @pytest.mark.parametrize(("code", "steps"), [(401, 20), (503, 5)])
    def test_who_answers_and_takes_nothing_is_waited_for_and_called_ever_less(
        self, sqlite_bed: Bed, stub: Stub, code: int, steps: int
    ) -> None:
        analysed(sqlite_bed)
        stub.answers["POST"] = (code, b"")
        lane = sqlite_bed.delivery(stub.destination(token=SECRET), attempts=2)
        sent = []
        for _ in range(steps):
            before = len(stub.asked)
            lane.step()
            sent.append(sum(line.startswith("POST") for line, *_ in stub.asked[before:]))
            row = delivery(sqlite_bed)
            assert row.state == State.IN_PROGRESS
            assert f"answered {code} " in row.reason
            sqlite_bed.turn(150)
        assert sum(sent) > 2
        assert steps < 20 or sum(sent[10:]) < sum(sent[:10])
        said = [[row.event for row in sqlite_bed.rows(Audit)].count(event) for event in ("unreachable", "reachable")]
        assert said == [1, 0]  # that it answers a search is no news while it takes nothing
        stub.answers["POST"] = (200, stored_all(sqlite_bed))
        sqlite_bed.turn(720)
        lane.step()
        assert delivery(sqlite_bed).state == State.COMPLETED
        assert [row.event for row in sqlite_bed.rows(Audit)].count("reachable") == 1

    def test_what_waits_says_why_while_it_goes_on(self, sqlite_bed: Bed, stub: Stub) -> None:
        analysed(sqlite_bed)
        stub.answers["POST"] = (401, b"")
        lane = sqlite_bed.delivery(stub.destination())
        lane.step()
        sqlite_bed.turn(73)
        assert lane._circuit.closed()
        assert "check token" in delivery(sqlite_bed).reason

    def test_a_search_that_is_forbidden_ends_no_delivery_that_was_accepted(self, sqlite_bed: Bed, stub: Stub) -> None:
        analysed(sqlite_bed)
        stub.answers |= {"POST": (200, stored_all(sqlite_bed)), "GET": (401, b"")}
        lane = sqlite_bed.delivery(stub.destination(verify="qido"), attempts=1)
        for _ in range(3):
            lane.step()
            assert (delivery(sqlite_bed).state, len(sqlite_bed.rows(Acceptance))) == (State.IN_PROGRESS, 2)
            assert "check token" in delivery(sqlite_bed).reason
            sqlite_bed.turn(720)
        assert sum(line.startswith("POST") for line, *_ in stub.asked) == 2

    def test_what_was_filed_otherwise_is_there_and_alerts(self, sqlite_bed: Bed, stub: Stub) -> None:
        analysed(sqlite_bed)
        objects = [row.sop_instance_uid for row in sqlite_bed.rows(ResultObject)]
        stub.answers["POST"] = (202, stored_all(sqlite_bed, **{"00081196": us(0xB000)}))
        elsewhere = [match(**{"0020000D": "1.2.3", "00080018": uid}) for uid in objects]
        stub.answers["GET"] = (200, json.dumps(elsewhere).encode())
        sqlite_bed.delivery(stub.destination(verify="qido")).step()
        row = delivery(sqlite_bed)
        assert row.state == State.COMPLETED
        assert "filed under another StudyInstanceUID (2 objects)" in row.reason
        assert sum(line.startswith("POST") for line, *_ in stub.asked) == 2


def stored_all(sqlite_bed: Bed, **more: Any) -> bytes:
    """Answer for every object of the results at once: each request finds its own."""
    items = [entry(row.sop_instance_uid, **more) for row in sqlite_bed.rows(ResultObject)]
    return json.dumps({"00081199": {"vr": "SQ", "Value": items}}).encode()


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"url": "pacs.example/dicom-web"}, "no base URL"),
        ({"url": "https://ai:word@pacs.example/dicom-web"}, "no base URL"),
        ({"url": "https://pacs..example"}, "no base URL"),
        ({"url": "https://pacs.example:99999"}, "ort"),
        ({"user": "ai"}, "go together"),
        ({"user": "ai", "password": "x", "token": "t"}, "not both"),
        ({"token": "two words"}, "no space"),
    ],
)
def test_what_cannot_be_configured(keys: dict[str, str], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence) as said:
        DicomwebDestination.model_validate({"type": "dicomweb", "name": "p", "url": "https://pacs.example", **keys})
    (error,) = said.value.errors()
    assert not re.search("ai:word|two words", error["msg"])  # which is all that a person is shown


def test_a_server_with_tls_needs_authorities() -> None:
    there = {"type": "dicomweb", "name": "p", "url": "https://pacs.example"}
    with pytest.raises(ValueError, match=r"destination 'p' with tls needs tls.authorities"):
        Settings.model_validate({"destination": [there]})
