"""DICOMweb on the console's port, over real sockets: what is sent is kept, and can be had again as it was sent."""

import contextlib
import copy
import http.client
import json
import socket
import threading
import time
import tracemalloc
from collections.abc import Iterable, Iterator, Mapping
from email import message_from_bytes
from typing import Any

import pytest
from pydicom.dataset import FileDataset
from pydicom.uid import ExplicitVRLittleEndian

from dicomai.association import AssociationEnd
from dicomai.config import Settings
from dicomai.console import Console
from dicomai.console.dicomweb import DicomWeb
from dicomai.database.tables import Association, AssociationSeries, Version
from dicomai.errors import StorageFullError, StoreError
from dicomai.intake import Intake
from tests.beds import Bed, parts
from tests.dimse import HOST, free_port, wait_until
from tests.rejected import rejection_note
from tests.synthetic import encode, series

KIND = 'multipart/related; type="application/dicom"; boundary=cut'
TOKEN = "a-token-of-24-characters"  # noqa: S105  of these tests alone


class Web:
    """The console of a bed, with DICOMweb."""

    def __init__(self, bed: Bed, **sections: Mapping[str, Any]) -> None:
        console = {"port": free_port(), "dicomweb": True, **sections.pop("console", {})}
        settings = Settings(node={"storage": bed.folder / "storage"}, console=console, **sections)
        self.settings = settings.model_copy(update={"node": settings.node.model_copy(update={"worklist": bed.url})})
        self.web = DicomWeb(self.settings, bed.intake, bed.store, bed.database)
        self.console = Console(self.settings, self.web)
        self.port = self.console.port

    @contextlib.contextmanager
    def running(self) -> Iterator["Web"]:
        stop = threading.Event()
        thread = threading.Thread(target=self.console.run, args=(stop,))
        thread.start()
        try:
            yield self
        finally:
            stop.set()
            thread.join()

    def call(
        self, method: str, path: str, body: Any = None, *, chunked: bool = False, **more: str
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """Send a request; gives status, headers and body of the answer."""
        headers = {"Content-Type": KIND} if method == "POST" else {}
        headers |= {name.replace("_", "-"): value for name, value in more.items()}
        with contextlib.closing(http.client.HTTPConnection(HOST, self.port, timeout=20)) as connection:
            connection.request(method, path, body, headers, encode_chunked=chunked)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()

    def stow(self, files: Iterable[bytes], path: str = "/dicomweb/studies", **more: str) -> tuple[int, dict[str, Any]]:
        """Send files; gives the status and the Store Instances Response Module."""
        status, _, text = self.call("POST", path, body_of(files), **more)
        return status, json.loads(text)

    def get(self, path: str, **more: str) -> list[bytes]:
        """Have instances again."""
        status, headers, body = self.call("GET", path, **more)
        assert status == 200, body
        message = message_from_bytes(f"Content-Type: {headers['Content-Type']}\r\n\r\n".encode() + body)
        boundary = str(message.get_param("boundary")).encode()
        cut = body.split(b"\r\n--" + boundary)
        assert cut[-1] == b"--\r\n"
        return [part.partition(b"\r\n\r\n")[2] for part in cut[1:-1]]


def body_of(files: Iterable[bytes]) -> bytes:
    head = b"\r\n--cut\r\nContent-Type: application/dicom\r\n\r\n"
    return b"".join(head + file for file in files) + b"\r\n--cut--\r\n"


@pytest.fixture
def web(sqlite_bed: Bed) -> Iterator[Web]:
    with Web(sqlite_bed).running() as running:
        yield running


def ct(count: int = 2, **attributes: Any) -> list[FileDataset]:
    return series(shape=(count, 4, 4), **attributes)


def ends(bed: Bed) -> list[str | None]:
    """Give how the associations ended, once the last one has."""
    wait_until(lambda: all(row.ended_at is not None for row in bed.rows(Association)))
    return [row.end for row in bed.rows(Association)]


def assert_sound(bed: Bed) -> None:
    assert bed.files("instances") == {version.key for version in bed.rows(Version)}
    assert bed.files("incoming") == set()


def test_what_is_sent_is_kept_and_comes_back_as_it_was(bed: Bed) -> None:
    images = ct(3)
    study, one = images[0].StudyInstanceUID, images[0].SeriesInstanceUID
    with Web(bed).running() as web:
        status, module = web.stow(map(encode, images))
        assert status == 200
        assert "00081198" not in module
        base = f"http://{HOST}:{web.port}/dicomweb/studies/{study}"
        assert module["00081190"]["Value"] == [base]
        stored = module["00081199"]["Value"]
        assert [item["00081155"]["Value"] for item in stored] == [[ds.SOPInstanceUID] for ds in images]
        assert [item["00081150"]["Value"] for item in stored] == [[ds.SOPClassUID] for ds in images]
        places = [item["00081190"]["Value"][0] for item in stored]
        assert places == [f"{base}/series/{one}/instances/{ds.SOPInstanceUID}" for ds in images]
        assert ends(bed) == ["released"]
        (row,) = bed.rows(Association)
        assert (row.calling_ae, row.address) == ("STOW-RS", HOST)
        assert len(bed.rows(AssociationSeries)) == 1
        assert_sound(bed)

        sent = {ds.SOPInstanceUID: parts(ds)[1] for ds in images}
        for path in (f"/dicomweb/studies/{study}", f"/dicomweb/studies/{study}/series/{one}"):
            files = web.get(path, Accept='multipart/related; type="application/dicom"; transfer-syntax=*')
            assert sorted(f[-len(sent[images[0].SOPInstanceUID]) :] for f in files) == sorted(sent.values())
        (file,) = web.get(places[1].removeprefix(f"http://{HOST}:{web.port}"))
        assert file == bed.store.get(next(v.key for v in bed.rows(Version) if images[1].SOPInstanceUID in v.key))
        assert file.endswith(sent[images[1].SOPInstanceUID])


def test_chunks_of_any_size_give_the_same(web: Web, sqlite_bed: Bed) -> None:
    for size, image in zip((1, 7, 4096), ct(3), strict=True):
        body = body_of([encode(image)])
        pieces = (body[at : at + size] for at in range(0, len(body), size))
        status, _, _ = web.call("POST", "/dicomweb/studies", pieces, chunked=True, Transfer_Encoding="chunked")
        assert status == 200
        assert sqlite_bed.store.get(sqlite_bed.rows(Version)[-1].key).endswith(parts(image)[1])


def test_one_broken_of_two_is_named_and_the_other_kept(web: Web, sqlite_bed: Bed) -> None:
    good, broken = ct()
    data = encode(broken)
    status, module = web.stow([data[: len(data) // 4], encode(good), b"no DICOM at all" * 20])
    assert status == 202
    assert [i["00081155"]["Value"] for i in module["00081199"]["Value"]] == [[good.SOPInstanceUID]]
    (failed,) = module["00081198"]["Value"]
    assert failed["00081155"]["Value"] == [broken.SOPInstanceUID]
    assert failed["00081197"]["Value"] == [0xC000]
    assert [i["00081197"]["Value"] for i in module["0008119A"]["Value"]] == [[0xC000]]
    assert ends(sqlite_bed) == ["released"]  # what cannot be understood will not be better when it is sent again
    assert_sound(sqlite_bed)


def test_the_file_meta_information_has_to_be_that_of_the_data_set(web: Web, sqlite_bed: Bed) -> None:
    (image,) = ct(1)
    head, data = parts(image)
    uid = str(image.SOPInstanceUID)
    wrong = head.replace(uid.encode(), (uid[:-1] + ("1" if uid[-1] == "2" else "2")).encode())
    status, module = web.stow([wrong + data])
    assert status == 409
    assert module["00081198"]["Value"][0]["00081197"]["Value"] == [0xA900]
    assert sqlite_bed.rows(Version) == []
    assert_sound(sqlite_bed)


def test_a_study_takes_its_own_instances_only(web: Web, sqlite_bed: Bed) -> None:
    (ours,), (stray,) = ct(1), ct(1)
    status, module = web.stow([encode(ours), encode(stray)], f"/dicomweb/studies/{ours.StudyInstanceUID}")
    assert status == 202
    assert module["00081198"]["Value"][0]["00081155"]["Value"] == [stray.SOPInstanceUID]
    assert module["00081198"]["Value"][0]["00081197"]["Value"] == [0xA900]
    assert [v.key.split("/")[1] for v in sqlite_bed.rows(Version)] == [ours.StudyInstanceUID]
    assert len(ends(sqlite_bed)) == 1
    assert_sound(sqlite_bed)


def test_what_c_store_would_not_take_is_not_taken(web: Web, sqlite_bed: Bed) -> None:
    for keyword, value, reason in (
        ("MediaStorageSOPClassUID", "1.2.840.10008.1.3.10", 0x0122),  # a DICOMDIR
        ("TransferSyntaxUID", "1.2.840.10008.1.2.6.2", 0xC122),  # XML
        ("MediaStorageSOPInstanceUID", "1.2.3/../../4", None),
    ):
        (image,) = ct(1)
        head, data = parts(image)
        old = str(image.file_meta[keyword].value).encode()
        old += b"\0" * (len(old) % 2)
        status, module = web.stow([head.replace(old, value.encode()[: len(old)].ljust(len(old), b"\0")) + data])
        assert status == 409
        if reason is None:  # what is no UID is not said again
            assert "00081198" not in module
            assert module["0008119A"]["Value"][0]["00081197"]["Value"] == [0xA900]
        else:
            assert module["00081198"]["Value"][0]["00081197"]["Value"] == [reason]
    assert_sound(sqlite_bed)


def test_what_contradicts_a_known_instance_is_kept_and_never_handed_out(web: Web, sqlite_bed: Bed) -> None:
    (image,) = ct(1)
    other = copy.deepcopy(image)
    other.PixelData = bytes(image.PixelData[:-2]) + b"\x01\x01"
    updated = copy.deepcopy(image)
    updated.PatientComments = "corrected"
    assert web.stow([encode(image)])[0] == 200
    status, module = web.stow([encode(other)])
    assert status == 200
    assert module["00081199"]["Value"][0]["00081190"] == {"vr": "UR"}
    study = f"/dicomweb/studies/{image.StudyInstanceUID}"
    (file,) = web.get(study)
    assert file.endswith(parts(image)[1])
    web.stow([encode(updated)])
    (file,) = web.get(study)
    assert file.endswith(parts(updated)[1])
    assert len(sqlite_bed.rows(Version)) == 3


def raw_request(body: bytes, length: int) -> bytes:
    head = (
        f"POST /dicomweb/studies HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: {KIND}\r\nContent-Length: {length}\r\n\r\n"
    )
    return head.encode() + body


def test_a_request_that_breaks_off_leaves_what_came_whole_and_a_series_that_waits(web: Web, sqlite_bed: Bed) -> None:
    whole, half = ct()
    body = body_of([encode(whole), encode(half)])
    with socket.create_connection((HOST, web.port), timeout=10) as sock:
        sock.sendall(raw_request(body[:-200], len(body)))
        wait_until(lambda: len(sqlite_bed.rows(Version)) == 1)
        assert [row.ended_at for row in sqlite_bed.rows(Association)] == [None]
        wait_until(lambda: len(sqlite_bed.files("incoming")) == 2)  # the one that came whole, and half of the other
    assert ends(sqlite_bed) == ["lost"]
    wait_until(lambda: not sqlite_bed.files("incoming"))
    assert_sound(sqlite_bed)
    assert sqlite_bed.plan() == 0  # a quiet period alone makes no half study whole
    assert web.stow([encode(whole), encode(half)])[0] == 200
    assert ends(sqlite_bed) == ["lost", "released"]
    assert sqlite_bed.plan() == 1


def test_a_body_without_its_last_boundary_is_no_whole_request(web: Web, sqlite_bed: Bed) -> None:
    body = body_of(map(encode, ct()))[: -len("\r\n--cut--\r\n")]
    status, _, text = web.call("POST", "/dicomweb/studies", body)
    assert status == 400
    assert b"ends before its last boundary" in text
    assert len(sqlite_bed.rows(Version)) == 1
    assert ends(sqlite_bed) == ["lost"]
    assert_sound(sqlite_bed)


def test_a_sender_that_stands_still_is_given_up(sqlite_bed: Bed) -> None:
    with (
        Web(sqlite_bed, receiver={"idle_timeout": 0.3}).running() as web,
        socket.create_connection((HOST, web.port), timeout=10) as sock,
    ):
        sock.sendall(raw_request(body_of(map(encode, ct()))[:500], 10_000))
        assert b" 400 " in sock.recv(4096).partition(b"\r\n")[0]
        assert ends(sqlite_bed) == ["lost"]


def test_a_sender_that_takes_for_ever_is_given_up(sqlite_bed: Bed) -> None:
    with (
        Web(sqlite_bed, receiver={"total_timeout": 0.2}).running() as web,
        socket.create_connection((HOST, web.port), timeout=10) as sock,
    ):
        sock.sendall(raw_request(b"--cut\r\n", 10_000))
        for _ in range(6):
            time.sleep(0.05)
            sock.sendall(b"x")
        assert b" 408 " in sock.recv(4096).partition(b"\r\n")[0]
        assert ends(sqlite_bed) == ["lost"]


def test_a_connection_too_many_is_closed_and_the_page_comes_again(
    sqlite_bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dicomai.console.server.MOST_OTHERS", 2)
    with Web(sqlite_bed, receiver={"max_associations": 1}).running() as web:
        with contextlib.ExitStack() as stack:
            idle = [stack.enter_context(socket.create_connection((HOST, web.port), timeout=5)) for _ in range(4)]
            assert idle[3].recv(1) == b""
        wait_until(lambda: answers(web))


def test_a_head_that_comes_in_drips_does_not_hold_its_place(sqlite_bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dicomai.console.server.HEAD_SECONDS", 0.5)
    with Web(sqlite_bed).running() as web, socket.create_connection((HOST, web.port), timeout=0.1) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nX: ")
        end = time.monotonic() + 5
        with pytest.raises(OSError, match=r"reset|pipe"):  # noqa: PT012  it ends at some drip
            while time.monotonic() < end:
                sock.sendall(b"x")
                with contextlib.suppress(TimeoutError):
                    sock.recv(1)


def test_more_parts_than_may_be_are_not_kept_in_memory(sqlite_bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dicomai.console.dicomweb.MOST_PARTS", 2)
    with Web(sqlite_bed).running() as web:
        body = body_of([b"x", b"x", b"x"])
        assert web.call("POST", "/dicomweb/studies", body)[0] == 413
        assert ends(sqlite_bed) == ["lost"]


def test_behind_a_proxy_it_is_called_by_its_public_name(sqlite_bed: Bed) -> None:
    with Web(sqlite_bed, console={"public_url": "https://ai.example:8443/node/"}).running() as web:
        (image,) = ct(1)
        status, module = web.stow([encode(image)], Host="ai.example:8443", Origin="https://ai.example:8443")
    assert status == 200
    assert module["00081190"]["Value"] == [f"https://ai.example:8443/node/dicomweb/studies/{image.StudyInstanceUID}"]


def test_what_a_reader_looks_for_is_not_logged(web: Web, capsys: pytest.CaptureFixture[str]) -> None:
    web.call("GET", "/dicomweb/studies?PatientName=Secret")
    with socket.create_connection((HOST, web.port), timeout=5) as sock:
        sock.sendall(b"GET /dicomweb/studies?PatientName=Secret Name HTTP/1.1\r\n\r\n")
        assert b" 400 " in sock.recv(4096)
    said = capsys.readouterr()
    assert "Secret" not in said.out + said.err


def answers(web: Web) -> bool:
    try:
        return web.call("GET", "/health")[0] == 200
    except OSError:
        return False


def test_a_sender_that_asks_first_is_told_to_go_on_or_why_not(web: Web) -> None:
    body = body_of(map(encode, ct(1)))
    for path, answer in (("/dicomweb/studies", b"HTTP/1.1 100 "), ("/dicomweb/patients", b"HTTP/1.1 404 ")):
        with socket.create_connection((HOST, web.port), timeout=10) as sock:
            request = raw_request(b"", len(body)).replace(b"/dicomweb/studies", path.encode())
            sock.sendall(request[:-2] + b"Expect: 100-continue\r\n\r\n")
            assert sock.recv(4096).startswith(answer)
            if b"100" in answer:
                sock.sendall(body)
                assert sock.recv(4096).startswith(b"HTTP/1.1 200 ")


def test_the_disk_under_its_low_water_mark_refuses_the_request(
    web: Web, sqlite_bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_bed.intake, "has_room", lambda: False)
    status, _, text = web.call("POST", "/dicomweb/studies", body_of(map(encode, ct())))
    assert status == 503
    assert b"nearly full" in text
    assert sqlite_bed.rows(Association) == []


def test_what_could_not_be_stored_for_a_reason_of_ours_is_owed(
    web: Web, sqlite_bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = sqlite_bed.intake.accept
    failures: list[Exception] = []

    def accept(*arguments: Any) -> Any:
        if failures:
            raise failures.pop()
        return real(*arguments)

    monkeypatch.setattr(sqlite_bed.intake, "accept", accept)
    for error, reason in (
        (StorageFullError("full"), 0xA700),
        (StoreError("away"), 0x0110),
        (KeyError("Doe^Jane"), 0x0110),
    ):
        image, other = ct()
        failures = [error]
        status, module = web.stow([encode(image), encode(other)])
        assert status == 202
        assert module["00081198"]["Value"][0]["00081197"]["Value"] == [reason]
        failures = [error]
        assert web.stow([encode(image)])[0] == 503
        assert web.stow([encode(image)])[0] == 200
    assert ends(sqlite_bed) == ["lost", "lost", "released"] * 3


def test_an_instance_that_is_too_large_is_refused_and_the_next_one_taken(sqlite_bed: Bed) -> None:
    image, other = ct()
    image.PixelData = bytes(100_000)
    sqlite_bed.intake = Intake(sqlite_bed.store, sqlite_bed.database, 60.0, 0, max_instance_bytes=50_000)
    with Web(sqlite_bed).running() as web:
        status, module = web.stow([encode(image), encode(other)])
        assert status == 202
        assert module["00081198"]["Value"][0]["00081197"]["Value"] == [0xA700]
        assert web.stow([encode(image)])[0] == 413
        assert ends(sqlite_bed) == ["released", "released"]
    assert_sound(sqlite_bed)


def test_more_requests_at_a_time_than_may_be_are_refused(sqlite_bed: Bed) -> None:
    with Web(sqlite_bed, receiver={"max_associations": 1}).running() as web:
        with socket.create_connection((HOST, web.port), timeout=10) as sock:
            sock.sendall(raw_request(b"--cut", 1000))
            wait_until(lambda: sqlite_bed.rows(Association))
            assert web.call("POST", "/dicomweb/studies", body_of([]))[0] == 503
            assert web.call("GET", "/health")[0] == 200
        wait_until(lambda: web.call("GET", "/dicomweb/studies/1.2")[0] == 404)


def test_the_lease_of_a_long_request_is_renewed(web: Web, sqlite_bed: Bed) -> None:
    with socket.create_connection((HOST, web.port), timeout=10) as sock:
        sock.sendall(raw_request(b"--cut", 1000))
        wait_until(lambda: sqlite_bed.rows(Association))
        (before,) = sqlite_bed.rows(Association)
        sqlite_bed.turn(30)
        web.web._renew()
        (after,) = sqlite_bed.rows(Association)
        assert after.lease_expires > before.lease_expires
    assert ends(sqlite_bed) == ["lost"]


class TestWhoMay:
    @pytest.fixture
    def web(self, sqlite_bed: Bed) -> Iterator[Web]:
        with Web(sqlite_bed, console={"token": TOKEN}).running() as running:
            yield running

    def test_without_the_token_nothing_is_taken_or_given(self, web: Web, sqlite_bed: Bed) -> None:
        body = body_of(map(encode, ct()))
        for given in ("", "Bearer", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer \xe9"):
            for method, path, data in (("POST", "/dicomweb/studies", body), ("GET", "/dicomweb/studies/1.2", None)):
                status, headers, _ = web.call(method, path, data, Authorization=given)
                assert status == 401, given
                assert headers["WWW-Authenticate"].startswith("Bearer")
        assert web.call("GET", "/dicomweb/studies/1.2")[0] == 401
        assert sqlite_bed.rows(Association) == []

    def test_with_the_token_it_is(self, web: Web) -> None:
        images = ct()
        assert web.stow(map(encode, images), Authorization=f"Bearer {TOKEN}")[0] == 200
        assert len(web.get(f"/dicomweb/studies/{images[0].StudyInstanceUID}", Authorization=f"bearer {TOKEN}")) == 2

    def test_a_page_of_another_site_may_not(self, web: Web, sqlite_bed: Bed) -> None:
        body = body_of(map(encode, ct()))
        for origin in ("http://evil.example", "null", f"http://{HOST}:1"):
            status, _, _ = web.call("POST", "/dicomweb/studies", body, Origin=origin, Authorization=f"Bearer {TOKEN}")
            assert status == 403
        more = {"Host": "evil.example", "Origin": "http://evil.example", "Authorization": f"Bearer {TOKEN}"}
        assert web.call("POST", "/dicomweb/studies", body, **more)[0] == 421
        assert sqlite_bed.rows(Association) == []
        own = f"http://{HOST}:{web.port}"
        assert web.stow(map(encode, ct()), Origin=own, Authorization=f"Bearer {TOKEN}")[0] == 200


class TestNames:
    """By which name a request comes that is not this machine's own."""

    @staticmethod
    def ask(web: Web, path: str, *hosts: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Send a request from another address with these Host headers."""
        with contextlib.closing(http.client.HTTPConnection(HOST, web.port, 20, ("127.0.0.2", 0))) as connection:
            connection.putrequest("POST" if body else "GET", path, skip_host=True)
            for name, value in (*(("Host", host) for host in hosts), *((("Content-Type", KIND),) if body else ())):
                connection.putheader(name, value)
            connection.putheader("Content-Length", str(len(body or b"")))
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def test_the_page_is_for_the_node_s_own_only(self, sqlite_bed: Bed) -> None:
        with Web(sqlite_bed, console={"public_url": "https://ai.example:8443/node"}).running() as web:
            for path in ("/", "/worklist.json"):
                for host in (HOST, "192.0.2.7:8480", "[2001:db8::7]:8480", "ai.example", socket.gethostname()):
                    assert self.ask(web, path, host)[0] == 200, host
                for hosts in (("evil.example",), ("192.0.2.7.evil.example",), ("",), ()):
                    status, sentence = self.ask(web, path, *hosts)
                    assert (status, b"console.public_url" in sentence) == (421, True), hosts
            assert self.ask(web, "/health", "probe.example")[0] == 200  # which says nothing of anybody

    def test_without_one_no_url_could_be_given_so_nothing_is_taken(self, sqlite_bed: Bed) -> None:
        body = body_of(map(encode, ct()))
        with Web(sqlite_bed).running() as web:
            for hosts in ((), ("",), ("no name",)):
                status, sentence = self.ask(web, "/dicomweb/studies", *hosts, body=body)
                assert (status, b"no usable Host header" in sentence) == (400, True)
            assert sqlite_bed.rows(Association) == []
            assert self.ask(web, "/dicomweb/studies", "any.example", body=body)[0] == 200
        with Web(sqlite_bed, console={"public_url": "https://ai.example"}).running() as web:
            status, module = self.ask(web, "/dicomweb/studies", body=body)
            assert status == 200
            urls = [item["00081190"]["Value"][0] for item in json.loads(module)["00081199"]["Value"]]
            assert all(url.startswith("https://ai.example/dicomweb/studies/") for url in urls)


def test_what_there_is_not_is_said(web: Web, sqlite_bed: Bed) -> None:
    for method, path, kind, status in (
        ("GET", "/dicomweb/studies/1.2.3", "", 404),
        ("GET", "/dicomweb/studies", "", 405),
        ("GET", "/dicomweb/series/1.2", "", 404),
        ("GET", "/dicomweb/studies/..%2F..%2Fetc", "", 400),
        ("GET", "/dicomweb/studies/1.2/series/../../x", "", 404),
        ("POST", "/dicomweb/studies/1.2/series/1.3", KIND, 405),
        ("POST", "/dicomweb/studies", 'multipart/related; type="application/dicom+json"; boundary=cut', 415),
        ("POST", "/dicomweb/studies", "application/dicom", 415),
        ("POST", "/dicomweb/studies", KIND, 400),
        ("POST", "/worklist.json", KIND, 404),
        ("PUT", "/dicomweb/studies", KIND, 501),
    ):
        body = None if method == "GET" else b"\r\n--cut--\r\n"
        assert web.call(method, path, body, Content_Type=kind)[0] == status, (method, path)
    assert sqlite_bed.rows(Version) == []
    assert "released" not in ends(sqlite_bed)


def test_what_was_rejected_is_not_handed_out(bed: Bed) -> None:
    images, others = ct(), ct(1)
    with Web(bed).running() as web:
        web.stow(map(encode, [*images, *others]))
        bed.take([rejection_note(images[:1])])
        stranger = rejection_note(others, StudyInstanceUID=images[0].StudyInstanceUID)
        bed.take([stranger])  # of another study, so in doubt and not obeyed
        bed.planner().sweep()
        study = f"/dicomweb/studies/{images[0].StudyInstanceUID}/series/{images[0].SeriesInstanceUID}"
        (given,) = web.get(study)
        assert images[1].SOPInstanceUID.encode() in given
        assert web.call("GET", f"{study}/instances/{images[0].SOPInstanceUID}")[0] == 404
        assert len(web.get(f"/dicomweb/studies/{others[0].StudyInstanceUID}")) == 1
        status, module = web.stow([encode(images[0])])  # is kept, and stays rejected
    assert status == 200
    assert module["00081199"]["Value"][0]["00081190"] == {"vr": "UR"}


def test_what_is_stored_in_another_transfer_syntax_is_not_sent(web: Web) -> None:
    (image,) = ct(1)
    web.stow([encode(image)])
    study = f"/dicomweb/studies/{image.StudyInstanceUID}"
    kind = 'multipart/related; type="application/dicom"; transfer-syntax='
    assert len(web.get(study, Accept=f"{kind}{ExplicitVRLittleEndian}")) == 1
    assert web.call("GET", study, Accept=f"{kind}1.2.840.10008.1.2.4.90")[0] == 406
    assert web.call("GET", study, Accept="application/dicom+json")[0] == 406


def test_a_file_that_is_gone_is_no_answer(web: Web, sqlite_bed: Bed) -> None:
    images = ct()
    web.stow(map(encode, images))
    study = f"/dicomweb/studies/{images[0].StudyInstanceUID}"
    first, last = (sqlite_bed.folder / "storage" / key for key in sorted(sqlite_bed.files()))
    was = last.read_bytes()
    for now in (was[:-1], was + b"\0", b""):
        last.write_bytes(now)
        with pytest.raises(http.client.IncompleteRead):
            web.get(study)
    last.unlink()
    with pytest.raises(http.client.IncompleteRead):
        web.get(study)
    first.unlink()
    assert web.call("GET", study)[0] == 503


def test_without_its_key_it_is_not_there(sqlite_bed: Bed) -> None:
    console = Console(
        Settings(node={"storage": sqlite_bed.folder, "worklist": sqlite_bed.url}, console={"port": free_port()})
    )
    stop = threading.Event()
    thread = threading.Thread(target=console.run, args=(stop,))
    thread.start()
    try:
        for method in ("GET", "POST"):
            with contextlib.closing(http.client.HTTPConnection(HOST, console.port, timeout=5)) as connection:
                connection.request(method, "/dicomweb/studies/1.2", b"", {"Content-Type": KIND})
                assert connection.getresponse().status == 404
    finally:
        stop.set()
        thread.join()


def test_the_same_instance_from_many_at_once_is_kept_once(web: Web, sqlite_bed: Bed) -> None:
    images = ct(4)
    files = [encode(ds) for ds in images]
    association = sqlite_bed.intake.open_association("CT01", "10.0.0.1")
    statuses: list[int] = []
    threads = [threading.Thread(target=lambda: statuses.append(web.stow(files)[0])) for _ in range(3)]
    threads.append(threading.Thread(target=lambda: statuses.append(200 if sqlite_bed.take(images, association) else 0)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sqlite_bed.intake.close_association(association, AssociationEnd.RELEASED)
    assert statuses == [200] * 4
    assert len(sqlite_bed.rows(Version)) == 4
    assert len(ends(sqlite_bed)) == 4
    assert_sound(sqlite_bed)


@pytest.mark.slow
def test_memory_does_not_grow_with_an_instance(web: Web, sqlite_bed: Bed) -> None:
    (image,) = ct(1)
    image.PixelData = b""
    size, block = 200_000_000, bytes(1_000_000)
    start = encode(image)[:-4]
    body = body_of([start + size.to_bytes(4, "little")])
    head, end = body[: -len("\r\n--cut--\r\n")], b"\r\n--cut--\r\n"
    tracemalloc.start()
    try:
        with socket.create_connection((HOST, web.port), timeout=60) as sock:
            sock.sendall(raw_request(head, len(head) + size + len(end)))
            for _ in range(size // len(block)):
                sock.sendall(block)
            sock.sendall(end)
            assert sock.recv(4096).startswith(b"HTTP/1.1 200 ")
        with contextlib.closing(http.client.HTTPConnection(HOST, web.port, timeout=60)) as connection:
            connection.request("GET", f"/dicomweb/studies/{image.StudyInstanceUID}")
            answer, got = connection.getresponse(), 0
            while part := answer.read(1_000_000):
                got += len(part)
        assert got > size
        assert tracemalloc.get_traced_memory()[1] < 16_000_000
    finally:
        tracemalloc.stop()
    assert sqlite_bed.rows(Version)[0].size > size


def test_the_end_waits_for_what_is_under_way(sqlite_bed: Bed) -> None:
    web = Web(sqlite_bed)
    body = body_of(map(encode, ct()))
    with web.running():
        sock = socket.create_connection((HOST, web.port), timeout=10)
        sock.sendall(raw_request(body[:300], len(body)))
        wait_until(lambda: sqlite_bed.rows(Association))
        rest = threading.Timer(0.3, sock.sendall, (body[300:],))
        rest.start()
        begun = time.monotonic()
    with sock:
        assert 0.2 < time.monotonic() - begun < 5
        assert sock.recv(4096).startswith(b"HTTP/1.1 200 ")
