"""S3 against servers that do it wrong, refuse, or break off. What needs a right one is shown against a real one."""

import base64
import hashlib
import io
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from dicomai import config
from dicomai.commands import check, wire
from dicomai.config import S3Destination, Settings
from dicomai.database.tables import ResultObject
from dicomai.destinations import Outgoing, open_destination
from dicomai.destinations.filing import Filed
from dicomai.destinations.s3 import S3
from dicomai.errors import (
    DeliveryError,
    NoAssociationError,
    NotAdmittedError,
    NotKeptError,
    RejectedError,
    UnreachableError,
)
from dicomai.workitem import State
from tests.archive import delivery
from tests.beds import Bed
from tests.dimse import HOST, free_port
from tests.synthetic import encode, series
from tests.web import send, served

SECRET = "of/the+node"  # noqa: S105
(DS,) = series(shape=(1, 300, 300))  # 180 kB: several blocks
DATA = encode(DS)
ONE = Outgoing(str(DS.SOPClassUID), str(DS.SOPInstanceUID), partial(io.BytesIO, DATA))
PATH = "/results/" + "/".join(Filed.of(ONE, "bucket").parts)
LIST = b"<?xml version='1.0'?><ListBucketResult><Name>results</Name></ListBucketResult>"


def reason(code: str) -> bytes:
    return f"<?xml version='1.0'?>\n<Error><Code>{code}</Code><Message>of {PATH}</Message></Error>".encode()


class Bucket:
    """A server of S3 as old as there are, which can be told to go wrong.

    Attributes:
        objects: its objects by their paths.
        answers: by method, given in place of what it would do.
        headers: by method, added to what it answers.
        damaged: what it stores of what it gets.
        resets: breaks off in the middle of what comes.
        asked: what it was asked.
    """

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.answers: dict[str, tuple[int, bytes]] = {}
        self.headers: dict[str, dict[str, str]] = {}
        self.damaged = bytes
        self.resets = False
        self.knows_conditions = True
        self.asked: list[tuple[str, dict[str, str]]] = []
        bucket = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one(self) -> None:
                bucket.asked.append((f"{self.command} {self.path}", dict(self.headers)))
                length = int(self.headers.get("Content-Length", 0))
                if bucket.resets and self.command == "PUT":
                    self.rfile.read(length // 2)
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.close_connection = True
                    return
                body = self.rfile.read(length)
                status, text = bucket.answers.get(self.command) or getattr(bucket, f"_{self.command.lower()}")(
                    self.path, body, self.headers
                )
                headers = {"Content-Length": str(len(text)), **bucket.headers.get(self.command, {})}
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(text)
                self.close_connection = True

            do_GET = do_HEAD = do_PUT = handle_one  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer((HOST, 0), Handler)
        self.server.daemon_threads = False  # so that closing it waits for them
        self.port = self.server.server_address[1]

    def _put(self, path: str, body: bytes, headers: Any) -> tuple[int, bytes]:
        if headers["If-None-Match"] and not self.knows_conditions:
            return 501, reason("NotImplemented")
        if headers["If-None-Match"] and path in self.objects:
            return 412, reason("PreconditionFailed")
        if base64.b64decode(headers["Content-MD5"]) != hashlib.md5(body, usedforsecurity=False).digest():
            return 400, reason("BadDigest")
        if headers["x-amz-content-sha256"] != hashlib.sha256(body).hexdigest():
            return 400, reason("XAmzContentSHA256Mismatch")
        self.objects[path] = self.damaged(body)
        return 200, b""

    def _head(self, path: str, *_: object) -> tuple[int, bytes]:
        return (200, self.objects[path]) if path in self.objects else (404, b"")

    def _get(self, path: str, *_: object) -> tuple[int, bytes]:
        if path.startswith("/results?list-type=2"):
            return 200, LIST
        return (200, self.objects[path]) if path in self.objects else (404, reason("NoSuchKey"))

    @property
    def methods(self) -> list[str]:
        """What it was asked, but for lists."""
        return [line.split()[0] for line, _ in self.asked if "list-type" not in line]

    def entry(self, **keys: Any) -> S3Destination:
        """Describe it in the configuration."""
        return entry(self.port, **keys)

    def destination(self, **keys: Any) -> S3:
        """Make the destination that an entry describes."""
        made = open_destination(self.entry(**keys), calling_ae="X", timeout=5.0)
        assert isinstance(made, S3)
        return made


def entry(port: int, **keys: Any) -> S3Destination:
    described = {"url": f"http://{HOST}:{port}", "bucket": "results", "access_key": "NODE", "secret_key": SECRET}
    return S3Destination(type="s3", name="pacs", **(described | keys))


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    made = Bucket()
    with served(made.server):
        yield made


ACCEPTED = [(ONE.sop_instance_uid, 0x0000, "")]


class TestWhatIsSent:
    def test_the_credentials_are_those_of_the_configuration(
        self, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / ".aws").mkdir()
        stranger = "aws_access_key_id = STRANGER\naws_secret_access_key = of another\nregion = eu-west-9\n"
        (tmp_path / ".aws" / "credentials").write_text(f"[default]\n{stranger}", encoding="utf-8")
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "STRANGER")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of another")
        monkeypatch.setenv("AWS_SESSION_TOKEN", "another")
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{HOST}:1")
        monkeypatch.setenv("http_proxy", f"http://{HOST}:1")
        assert send(bucket.destination(), ONE) == ACCEPTED
        assert bucket.objects == {PATH: DATA}
        headers = next(headers for line, headers in bucket.asked if line == f"PUT {PATH}")
        assert "Credential=NODE/" in headers["Authorization"]
        assert "/us-east-1/s3/aws4_request" in headers["Authorization"]
        assert "x-amz-checksum-sha256;x-amz-content-sha256" in headers["Authorization"]
        assert headers["If-None-Match"] == "*"
        assert "X-Amz-Security-Token" not in headers
        assert not any(secret in str(bucket.asked) for secret in (SECRET, "STRANGER", "another"))

    def test_the_bucket_in_the_name_of_the_host(self, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
        look_up = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", lambda _, *more, **others: look_up(HOST, *more, **others))
        virtual = bucket.destination(url=f"http://s3.example:{bucket.port}", addressing="virtual", prefix="a/b/")
        bucket.answers["GET"] = (200, LIST)
        virtual.ask()
        del bucket.answers["GET"]
        send(virtual, ONE)
        paths = [line.split()[1] for line, _ in bucket.asked]
        assert paths[0] == "/?list-type=2&max-keys=1&prefix=a%2Fb%2F"
        assert set(paths[1:]) == {f"/a/b/{PATH.removeprefix('/results/')}"}
        assert {headers["Host"] for _, headers in bucket.asked} == {f"results.s3.example:{bucket.port}"}

    def test_two_of_the_same_are_one_and_another_is_left(self, bucket: Bucket) -> None:
        assert send(bucket.destination(), ONE, ONE) == ACCEPTED * 2
        assert bucket.methods.count("PUT") == 1
        for other in (DATA + b"\0", DATA[:-1] + bytes([DATA[-1] ^ 1])):
            bucket.objects[PATH] = other
            with pytest.raises(RejectedError, match=r"holds another object at .*: move that one away, then retry"):
                send(bucket.destination(), ONE)
            assert bucket.objects[PATH] == other
        assert bucket.methods.count("PUT") == 1

    def test_what_comes_between_the_look_and_the_sending(self, bucket: Bucket) -> None:
        look = bucket._head
        for there, error in ((DATA, None), (DATA[::-1], RejectedError)):

            def first(path: str, *_: object, there: bytes = there) -> tuple[int, bytes]:
                bucket._head = look  # type: ignore[method-assign]
                bucket.objects[path] = there
                return 404, b""

            bucket._head = first  # type: ignore[method-assign]
            if error is None:
                assert send(bucket.destination(), ONE) == ACCEPTED
            else:
                with pytest.raises(error, match="holds another object"):
                    send(bucket.destination(), ONE)
            assert bucket.objects[PATH] == there

    def test_a_server_that_knows_no_condition(self, bucket: Bucket) -> None:
        bucket.knows_conditions = False
        assert send(bucket.destination(), ONE) == ACCEPTED
        assert bucket.objects == {PATH: DATA}


class TestSentMeansThere:
    def test_an_etag_or_a_checksum_that_is_right_spares_the_reading(self, bucket: Bucket) -> None:
        sha256 = base64.b64encode(hashlib.sha256(DATA).digest()).decode()
        md5 = hashlib.md5(DATA, usedforsecurity=False).hexdigest()
        for headers, is_read in (
            ({"ETag": f'"{md5}"'}, False),
            ({"x-amz-checksum-sha256": sha256, "ETag": '"of a key of the service"'}, False),
            ({"x-amz-checksum-sha256": f"{sha256[:-1]}-2", "ETag": f'"{md5[::-1]}"'}, True),  # of its parts
            ({}, True),
        ):
            bucket.objects.clear()
            bucket.asked.clear()
            bucket.headers["HEAD"] = headers
            assert send(bucket.destination(), ONE) == ACCEPTED
            assert ("GET" in bucket.methods) == is_read

    def test_what_is_lost_or_damaged_is_found_out(self, bucket: Bucket) -> None:
        for damaged, headers, shown in (
            (lambda body: body[:-1], {}, "something else"),
            (lambda body: body[::-1], {}, "something else"),
            (bytes, {"x-amz-checksum-sha256": "AAAA"}, "something else"),
        ):
            bucket.objects.clear()
            bucket.damaged, bucket.headers["HEAD"] = damaged, headers  # type: ignore[assignment]
            with pytest.raises(NotKeptError, match=f"shows {shown} at .* after .* was put there"):
                send(bucket.destination(), ONE)
        bucket.answers["PUT"] = (200, b"")
        bucket.objects.clear()
        with pytest.raises(NotKeptError, match="shows nothing at"):
            send(bucket.destination(), ONE)

    def test_half_an_object_that_is_read_back_says_nothing(self, bucket: Bucket) -> None:
        bucket.objects[PATH] = DATA
        bucket.answers["GET"] = (200, DATA[:-1])
        bucket.headers["GET"] = {"Content-Length": str(len(DATA))}
        with pytest.raises(UnreachableError, match="broke off"):
            send(bucket.destination(), ONE)
        bucket.answers["GET"], bucket.headers["GET"] = (200, DATA * 2), {"Content-Length": str(2 * len(DATA))}
        with pytest.raises(UnreachableError, match="sends more of SOP Instance"):
            send(bucket.destination(), ONE)

    def test_what_was_accepted_before_is_told(self, bucket: Bucket) -> None:
        (ds,) = series(shape=(1, 8, 8))
        other = Outgoing(str(ds.SOPClassUID), str(ds.SOPInstanceUID), partial(io.BytesIO, encode(ds)))
        accepted: list[str] = []

        def go(outgoing: Outgoing, *_: object) -> None:
            accepted.append(outgoing.sop_instance_uid)
            bucket.answers["PUT"] = (403, reason("AccessDenied"))

        with pytest.raises(NotAdmittedError):
            bucket.destination().send([ONE, other], go)
        assert accepted == [ONE.sop_instance_uid]


class TestRefusals:
    @pytest.mark.parametrize(
        ("status", "code", "error", "sentence"),
        [
            (403, "AccessDenied", NotAdmittedError, r"403 \(AccessDenied\) to SOP Instance .*: allow this key"),
            (403, "RequestTimeTooSkewed", NotAdmittedError, "set the clock right"),
            (403, "QuotaExceeded", UnreachableError, "make room, or raise the quota: another attempt"),
            (403, "", NotAdmittedError, r"403 \(Forbidden\) .*allow this key"),
            (400, "AuthorizationHeaderMalformed", NotAdmittedError, "check region"),
            (301, "PermanentRedirect", NotAdmittedError, "check url and region"),
            (307, "", NotAdmittedError, "not followed: set url"),
            (404, "NoSuchBucket", NotAdmittedError, "have the bucket made"),
            (400, "BadDigest", UnreachableError, "what arrived is not what was sent: another attempt"),
            (400, "RequestTimeout", UnreachableError, "another attempt may succeed"),
            (400, "EntityTooLarge", RejectedError, r"400 \(EntityTooLarge\)"),
            (409, "ConditionalRequestConflict", UnreachableError, "somebody else writes it"),
            (500, "InternalError", UnreachableError, r"500 \(InternalError\) .*another attempt"),
            (503, "SlowDown", NoAssociationError, r"503 \(SlowDown\) .*another attempt"),
            (507, "XMinioStorageFull", UnreachableError, "another attempt"),
            (501, "NotImplemented", NotAdmittedError, "501"),
        ],
    )
    def test_what_is_no_acceptance(
        self, bucket: Bucket, status: int, code: str, error: type[DeliveryError], sentence: str
    ) -> None:
        bucket.answers["PUT"] = (status, reason(code) if code else b"<html>geheim</html>")
        with pytest.raises(DeliveryError, match=sentence) as said:
            send(bucket.destination(), ONE)
        assert type(said.value) is error
        assert SECRET not in str(said.value)
        assert "of /results" not in str(said.value)  # it may name a patient
        # Nothing is tried again but without the condition that a server does not know.
        assert bucket.methods == ["HEAD", "PUT", *(["PUT"] if status == 501 else [])]

    def test_a_look_that_is_refused_is_explained_by_a_list(self, bucket: Bucket) -> None:
        bucket.answers = {"HEAD": (403, b""), "GET": (403, reason("SignatureDoesNotMatch"))}
        with pytest.raises(NotAdmittedError, match=r"SignatureDoesNotMatch.* check secret_key and region"):
            send(bucket.destination(), ONE)
        bucket.answers["GET"] = (200, LIST)
        with pytest.raises(NotAdmittedError, match=r"403 \(Forbidden\) to a look .*s3:GetObject"):
            send(bucket.destination(), ONE)

    def test_after_a_refusal_for_now_it_goes_on(self, bucket: Bucket) -> None:
        bucket.answers["PUT"] = (503, reason("SlowDown"))
        with pytest.raises(NoAssociationError):
            send(bucket.destination(), ONE)
        del bucket.answers["PUT"]
        assert send(bucket.destination(), ONE) == ACCEPTED

    def test_a_connection_that_is_reset_within_an_object(self, bucket: Bucket) -> None:
        bucket.resets = True
        with pytest.raises(UnreachableError, match="broke off the connection") as said:
            send(bucket.destination(), ONE)
        assert type(said.value) is UnreachableError
        assert not bucket.objects

    def test_nobody_is_there(self) -> None:
        destination = open_destination(entry(free_port()), calling_ae="X", timeout=1.0)
        with pytest.raises(NoAssociationError, match="cannot be connected to"):
            destination.reach()
        with pytest.raises(NoAssociationError, match="cannot be connected to"):
            destination.send([ONE], lambda *_: None)


class TestDeliveries:
    def test_a_result_ends_where_it_should(self, bucket: Bucket, result_bed: Bed) -> None:
        lane = result_bed.delivery(bucket.destination())
        for status, code in ((503, "SlowDown"), (403, "AccessDenied"), (500, "InternalError")):
            bucket.answers["PUT"] = (status, reason(code))
            assert lane.step()
            row = delivery(result_bed)
            assert (row.state, f"{status} ({code})" in row.reason) == (State.IN_PROGRESS, True)
            result_bed.turn(1000)
        del bucket.answers["PUT"]
        lane.step()
        assert delivery(result_bed).state == State.COMPLETED
        sent = {f"{row.sop_instance_uid}.dcm": row.key for row in result_bed.rows(ResultObject)}
        assert {path.rpartition("/")[2]: data for path, data in bucket.objects.items()} == {
            name: result_bed.store.get(key) for name, key in sent.items()
        }

    def test_another_object_under_its_name_is_for_a_person(self, bucket: Bucket, result_bed: Bed) -> None:
        lane = result_bed.delivery(bucket.destination())
        bucket.damaged = lambda body: body[:-1]  # type: ignore[assignment]
        for _ in range(2):
            lane.step()
            result_bed.turn(1000)
        row = delivery(result_bed)
        assert row.state == State.CANCELED
        assert "holds another object at" in row.reason


class TestCommands:
    def test_echo_and_the_doctor(self, bucket: Bucket, capsys: pytest.CaptureFixture[str]) -> None:
        settings = Settings.model_validate({"destination": [bucket.entry()]})
        assert wire.echo(settings, "pacs", as_json=False) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert said.startswith(f"results at http://{HOST}:{bucket.port} answered DICOMAI in")
        (found,) = check._destinations(settings)
        assert found.verdict == "good"
        bucket.answers["GET"] = (404, reason("NoSuchBucket"))
        (found,) = check._destinations(settings)
        assert found.verdict == "bad"
        assert "have the bucket made, or check bucket" in found.sentence
        bucket.answers["GET"] = (200, b"<html>Welcome</html>")
        with pytest.raises(NotAdmittedError, match="answered a list with something else: check url"):
            wire.echo(settings, "pacs", as_json=False)

    def test_keys_that_are_wrong(self, bucket: Bucket, tmp_path: Path) -> None:
        for keys in (
            {"url": "https://s3.example/bucket"},
            {"url": "s3://results"},
            {"url": "https://s3.example:0"},
            {"bucket": "../x"},
            {"bucket": "Results"},
            {"prefix": "/a"},
            {"prefix": "a/../b"},
            {"prefix": "a b"},
            {"secret_key": ""},
            {"access_key": "two words"},
        ):
            with pytest.raises(ValidationError, match=next(iter(keys))):
                bucket.entry(**keys)
        right = bucket.entry()
        assert SECRET not in repr(right) + str(right.model_dump(mode="json"))
        (tmp_path / "dicomai.toml").write_text(f"[[destination]]\nsecret_key = '{SECRET}'\n", encoding="utf-8")
        assert config.holds_secret(tmp_path / "dicomai.toml")
        with pytest.raises(ValidationError, match=r"with tls needs tls\.authorities"):
            Settings.model_validate({"destination": [bucket.entry(url="https://s3.example")]})


def test_without_its_package_a_sentence_says_so_and_nobody_else_needs_it() -> None:
    code = (
        "import sys; sys.modules['botocore'] = None\n"
        "from dicomai.config import S3Destination\n"
        "from dicomai.destinations import open_destination\n"
        "keys = {'url': 'http://h', 'bucket': 'abc', 'access_key': 'a', 'secret_key': 'b'}\n"
        "one = S3Destination(type='s3', name='f', **keys)\n"
        "try:\n    open_destination(one, calling_ae='X', timeout=1.0)\n"
        "except Exception as error:\n    print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("ConfigurationError Destination 'f' is of type s3, for which botocore")
    assert done.stdout.endswith("is not installed: pip install 'dicomai[s3]'.\n")
